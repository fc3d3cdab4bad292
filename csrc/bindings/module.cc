// The Python module ruprompt_fast._C. Tensors cross as addresses: the module is built without torch's headers, so one
// build serves every torch. Each component registers its functions; the interpreter lock is released while they run.
#include <pybind11/pybind11.h>

#include "bindings/bindings.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled CPU kernels and scheduler of ruprompt_fast.";
  ruprompt::register_isa(m);
  ruprompt::register_memory(m);
  ruprompt::register_splice(m);
  ruprompt::register_markers(m);
  ruprompt::register_kv_pages(m);
  ruprompt::register_attention(m);
  ruprompt::register_int8_linear(m);
  ruprompt::register_scheduler(m);
}
