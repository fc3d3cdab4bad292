// The splice of token and prompt rows, and its gradient.
#include "bindings/bindings.h"

#include <cstdint>
#include <string>

#include "cpu/dtype.h"
#include "cpu/splice.h"

namespace py = pybind11;

namespace ruprompt {

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

}  // namespace ruprompt
