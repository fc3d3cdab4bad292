// The resolution of prompt markers.
#include "bindings/bindings.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/markers.h"

namespace py = pybind11;

namespace ruprompt {

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

}  // namespace ruprompt
