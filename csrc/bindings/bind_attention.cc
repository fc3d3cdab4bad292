// The binding of the key/value pages and of the attention over them.
#include "bindings/bind.h"

#include <pybind11/numpy.h>

#include <cstdint>
#include <string>

#include "cpu/attention.h"
#include "cpu/dtype.h"
#include "cpu/kv.h"

namespace py = pybind11;

namespace ruprompt {
namespace {

using Address = std::uintptr_t;

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

void register_kv_pages(py::module_& m) {
  m.def(
      "write_kv",
      [](Address key, int64_t key_token_stride, int64_t key_head_stride, int64_t head_dim, Address value,
         int64_t value_token_stride, int64_t value_head_stride, int64_t value_dim, Address key_pages,
         Address value_pages, int64_t num_pages, int64_t kv_heads, int64_t element_bytes, Address write_slots,
         int64_t tokens, int threads) {
        return write_kv({pointer<const void>(key), key_token_stride, key_head_stride, head_dim},
                        {pointer<const void>(value), value_token_stride, value_head_stride, value_dim},
                        {pointer<void>(key_pages), pointer<void>(value_pages), num_pages, kv_heads, element_bytes},
                        pointer<const int64_t>(write_slots), tokens, threads);
      },
      py::arg("key"), py::arg("key_token_stride"), py::arg("key_head_stride"), py::arg("head_dim"), py::arg("value"),
      py::arg("value_token_stride"), py::arg("value_head_stride"), py::arg("value_dim"), py::arg("key_pages"),
      py::arg("value_pages"), py::arg("num_pages"), py::arg("kv_heads"), py::arg("element_bytes"),
      py::arg("write_slots"), py::arg("tokens"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "copy_pages",
      [](Address pages, int64_t num_pages, int64_t page_bytes, Address pairs, int index_width, int64_t count,
         int threads) {
        char* data = pointer<char>(pages);
        return index_width == 4
                   ? copy_pages(data, num_pages, page_bytes, pointer<const int32_t>(pairs), count, threads)
                   : copy_pages(data, num_pages, page_bytes, pointer<const int64_t>(pairs), count, threads);
      },
      py::arg("pages"), py::arg("num_pages"), py::arg("page_bytes"), py::arg("pairs"), py::arg("index_width"),
      py::arg("count"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
}

void register_paged_attention(py::module_& m) {
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

}  // namespace

void register_attention(py::module_& m) {
  register_kv_pages(m);
  register_paged_attention(m);
}

}  // namespace ruprompt
