// The memory of large outputs, memory that is watched, and the instruction set that the kernels use.
#include "bindings/bindings.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "bindings/dlpack.h"
#include "cpu/block_pool.h"
#include "cpu/isa.h"
#include "cpu/memory_blocks.h"

namespace py = pybind11;

namespace ruprompt {

void register_isa(py::module_& m) {
  m.def("cpu_isa", [] { return isa_name(cpu_isa()); });
}

void register_memory(py::module_& m) {
  m.def(
      "pooled_tensor",
      [](std::vector<int64_t> shape, const std::string& dtype) {
        return pooled_tensor(std::move(shape), parse_dtype(dtype));
      },
      py::arg("shape"), py::arg("dtype"));
  m.def("release_pool", [] { return BlockPool::instance().release(); }, py::call_guard<py::gil_scoped_release>());

  py::class_<MemoryBlocks>(m, "MemoryBlocks", plain_metaclass())
      .def(py::init([](const std::vector<std::pair<Address, size_t>>& blocks) {
             std::vector<MemoryBlocks::Block> found;
             for (const auto& [start, size] : blocks) found.push_back({pointer<const char>(start), size});
             return MemoryBlocks(std::move(found));
           }),
           py::arg("blocks"))
      .def("differ", &MemoryBlocks::differ);
}

}  // namespace ruprompt
