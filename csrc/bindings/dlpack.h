// Hands memory of the block pool to any array library as a DLPack capsule.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "cpu/dtype.h"

namespace ruprompt {

// A capsule "dltensor" of an uninitialized contiguous CPU tensor; the block returns to the pool with its last user.
pybind11::capsule pooled_tensor(std::vector<int64_t> shape, Dtype dtype);

}  // namespace ruprompt
