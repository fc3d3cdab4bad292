// The linear layer of int8 weights.
#include "bindings/bindings.h"

#include <cstdint>
#include <string>

#include "cpu/dtype.h"
#include "cpu/int8_linear.h"

namespace py = pybind11;

namespace ruprompt {

void register_int8_linear(py::module_& m) {
  m.attr("INT8_PANEL_WIDTH") = kInt8PanelWidth;
  m.def(
      "int8_linear",
      [](Address x, const std::string& dtype, int64_t rows, int64_t row_stride, Address values, Address scales,
         int64_t in_features, int64_t out_features, Address bias, Address out, int threads) {
        int8_linear({pointer<const void>(x), parse_dtype(dtype), rows, row_stride},
                    {pointer<const int8_t>(values), pointer<const float>(scales), in_features, out_features},
                    pointer<const void>(bias), pointer<void>(out), threads);
      },
      py::arg("x"), py::arg("dtype"), py::arg("rows"), py::arg("row_stride"), py::arg("values"), py::arg("scales"),
      py::arg("in_features"), py::arg("out_features"), py::arg("bias"), py::arg("out"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace ruprompt
