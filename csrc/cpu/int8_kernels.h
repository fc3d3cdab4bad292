// The inner loops of the int8 linear layer, for every instruction set.
#pragma once

#include <cstdint>

#include "cpu/int8_linear.h"

namespace ruprompt {

constexpr int kInt8MaxTileRows = 12;

// Multiplies a tile of inputs, x[k * rows + r], by neighbouring panels and writes sums[p][r][c] of unscaled products,
// summed in rising order of k.
using Int8Kernel = void (*)(const float* x, const int8_t* panels, int64_t depth, float* sums);

// One tile height's kernel for a single panel and for a group of them. Few rows need several panels, because one
// panel's sums are too few to hide the latency of an addition. rows * group is at most kInt8MaxTileRows.
struct Int8TileKernel {
  Int8Kernel single;
  Int8Kernel grouped;
  int group;
};

// The kernels of this processor's instruction set, by the number of rows less one.
struct Int8KernelSet {
  const Int8TileKernel* tiles;
  int max_rows;
};

Int8KernelSet int8_kernels();

}  // namespace ruprompt
