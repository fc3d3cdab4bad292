// The attention over pages: a step's tables, which are made from NumPy's arrays, and the call of a layer.
#include "bindings/bindings.h"

#include <pybind11/numpy.h>

#include <cstdint>
#include <string>

#include "cpu/attention.h"
#include "cpu/dtype.h"

namespace py = pybind11;

namespace ruprompt {

void register_attention(py::module_& m) {
  using Indices = py::array_t<int32_t>;
  py::class_<AttentionTables>(m, "AttentionTables", plain_metaclass())
      .def(py::init([](const Indices& query_starts, const Indices& context_lens, const Indices& block_tables) {
             const int64_t rows = context_lens.shape(0);
             const int64_t stride = block_tables.strides(0) / static_cast<int64_t>(sizeof(int32_t));
             const int64_t width = block_tables.shape(1);
             const py::gil_scoped_release release;
             return AttentionTables(query_starts.data(), context_lens.data(), rows, block_tables.data(), stride, width);
           }),
           py::arg("query_starts").noconvert(), py::arg("context_lens").noconvert(),
           py::arg("block_tables").noconvert())
      .def_property_readonly("num_tokens", &AttentionTables::num_tokens);
  m.def(
      "paged_attention",
      [](const AttentionTables& tables, const std::string& dtype, Address query, int64_t query_token_stride,
         int64_t query_head_stride, Address key_pages, Address value_pages, int64_t num_pages, int64_t heads,
         int64_t kv_heads, int64_t head_dim, int64_t value_dim, float scaling, float softcap, int64_t window,
         Address out, int threads) {
        paged_attention(tables,
                        {parse_dtype(dtype), pointer<const void>(query), query_token_stride, query_head_stride,
                         pointer<const void>(key_pages), pointer<const void>(value_pages), num_pages, heads, kv_heads,
                         head_dim, value_dim, scaling, softcap, window, pointer<void>(out)},
                        threads);
      },
      py::arg("tables"), py::arg("dtype"), py::arg("query"), py::arg("query_token_stride"),
      py::arg("query_head_stride"), py::arg("key_pages"), py::arg("value_pages"), py::arg("num_pages"),
      py::arg("heads"), py::arg("kv_heads"), py::arg("head_dim"), py::arg("value_dim"), py::arg("scaling"),
      py::arg("softcap"), py::arg("window"), py::arg("out"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace ruprompt
