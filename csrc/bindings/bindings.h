// What the bindings share, and one function per component that puts it into the module.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace ruprompt {

// How a tensor crosses: the address of its first element.
using Address = std::uintptr_t;

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// pybind11's own metaclass is of use only to static properties and to subclasses; a stub cannot name it.
inline pybind11::metaclass plain_metaclass() {
  return pybind11::metaclass(reinterpret_cast<PyObject*>(&PyType_Type));
}

void register_isa(pybind11::module_& m);
void register_memory(pybind11::module_& m);
void register_splice(pybind11::module_& m);
void register_markers(pybind11::module_& m);
void register_kv_pages(pybind11::module_& m);
void register_attention(pybind11::module_& m);
void register_int8_linear(pybind11::module_& m);
void register_scheduler(pybind11::module_& m);

}  // namespace ruprompt
