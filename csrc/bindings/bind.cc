// The Python module ruprompt_fast._C. Tensors cross as addresses: the module is built without torch's headers, so one
// build serves every torch. Each component has one register function; the interpreter lock is released while it runs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bind.h"
#include "cpu/block_pool.h"
#include "cpu/isa.h"
#include "cpu/markers.h"
#include "cpu/splice.h"
#include "bindings/dlpack.h"

namespace py = pybind11;

namespace ruprompt {
namespace {

using Address = std::uintptr_t;

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

void register_cpu(py::module_& m) {
  m.def("cpu_isa", [] { return isa_name(cpu_isa()); });
}

void register_pool(py::module_& m) {
  m.def(
      "pooled_tensor",
      [](std::vector<int64_t> shape, const std::string& dtype) {
        return pooled_tensor(std::move(shape), parse_dtype(dtype));
      },
      py::arg("shape"), py::arg("dtype"));
  m.def("release_pool", [] { return BlockPool::instance().release(); }, py::call_guard<py::gil_scoped_release>());
}

void register_splice(py::module_& m) {
  m.def(
      "splice",
      [](Address ids, int id_width, int64_t count, Address tokens, int64_t token_rows, int64_t token_stride,
         Address prompts, int64_t prompt_rows, int64_t prompt_stride, int64_t first_prompt_id, int64_t row_bytes,
         Address out, int threads) {
        return splice({pointer<const void>(ids), count, id_width},
                      {pointer<const char>(tokens), token_rows, token_stride},
                      {pointer<const char>(prompts), prompt_rows, prompt_stride}, first_prompt_id, row_bytes,
                      pointer<char>(out), threads);
      },
      py::arg("ids"), py::arg("id_width"), py::arg("count"), py::arg("tokens"), py::arg("token_rows"),
      py::arg("token_stride"), py::arg("prompts"), py::arg("prompt_rows"), py::arg("prompt_stride"),
      py::arg("first_prompt_id"), py::arg("row_bytes"), py::arg("out"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "splice_prompt_grad",
      [](Address ids, int id_width, int64_t count, Address grad, int64_t grad_stride, const std::string& dtype,
         int64_t width, int64_t first_prompt_id, int64_t rows, Address out, int threads) {
        splice_prompt_grad({pointer<const void>(ids), count, id_width}, pointer<const void>(grad), grad_stride,
                           parse_dtype(dtype), width, first_prompt_id, rows, pointer<void>(out), threads);
      },
      py::arg("ids"), py::arg("id_width"), py::arg("count"), py::arg("grad"), py::arg("grad_stride"), py::arg("dtype"),
      py::arg("width"), py::arg("first_prompt_id"), py::arg("rows"), py::arg("out"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>());
}

void register_markers(py::module_& m) {
  m.def(
      "resolve_markers",
      [](Address ids, int id_width, int64_t sequences, int64_t length, const std::vector<int64_t>& marker_ids,
         const std::vector<int64_t>& starts, const std::vector<int64_t>& rows, Address out, int out_width) {
        std::vector<Marker> markers;
        markers.reserve(marker_ids.size());
        for (size_t m = 0; m < marker_ids.size(); ++m) {
          markers.push_back({marker_ids[m], starts.at(m), rows.at(m)});
        }
        const MarkerMismatch wrong = resolve_markers(pointer<const void>(ids), id_width, sequences, length,
                                                     std::move(markers), pointer<void>(out), out_width);
        return std::make_tuple(wrong.sequence, wrong.marker, wrong.found, wrong.expected);
      },
      py::arg("ids"), py::arg("id_width"), py::arg("sequences"), py::arg("length"), py::arg("marker_ids"),
      py::arg("starts"), py::arg("rows"), py::arg("out"), py::arg("out_width"),
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace
}  // namespace ruprompt

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled CPU kernels of ruprompt_fast.";
  ruprompt::register_cpu(m);
  ruprompt::register_pool(m);
  ruprompt::register_splice(m);
  ruprompt::register_markers(m);
  ruprompt::register_attention(m);
  ruprompt::register_scheduler(m);
  ruprompt::register_linear(m);
}
