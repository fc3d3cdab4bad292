#include "bindings/bind.h"

#include <cstdint>
#include <string>

#include "cpu/int8_linear.h"

namespace py = pybind11;

namespace ruprompt {

void register_linear(py::module_& m) {
  using Address = std::uintptr_t;
  m.attr("INT8_PANEL_WIDTH") = kInt8PanelWidth;
  m.def(
      "int8_linear",
      [](Address x, const std::string& dtype, int64_t rows, int64_t row_stride, Address values, Address scales,
         int64_t in_features, int64_t out_features, Address bias, Address out, int threads) {
        int8_linear({reinterpret_cast<const void*>(x), parse_dtype(dtype), rows, row_stride},
                    {reinterpret_cast<const int8_t*>(values), reinterpret_cast<const float*>(scales), in_features,
                     out_features},
                    reinterpret_cast<const void*>(bias), reinterpret_cast<void*>(out), threads);
      },
      py::arg("x"), py::arg("dtype"), py::arg("rows"), py::arg("row_stride"), py::arg("values"), py::arg("scales"),
      py::arg("in_features"), py::arg("out_features"), py::arg("bias"), py::arg("out"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace ruprompt
