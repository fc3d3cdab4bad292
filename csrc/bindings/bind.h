// One function per component that puts it into the module.
#pragma once

#include <pybind11/pybind11.h>

namespace ruprompt {

// pybind11's own metaclass is of use only to static properties and to subclasses; a stub cannot name it.
inline pybind11::metaclass plain_metaclass() {
  return pybind11::metaclass(reinterpret_cast<PyObject*>(&PyType_Type));
}

void register_attention(pybind11::module_& m);
void register_linear(pybind11::module_& m);
void register_scheduler(pybind11::module_& m);

}  // namespace ruprompt
