// A linear layer whose weight is int8 with one scale per output channel. No Python, no torch: pointers and sizes.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"

namespace ruprompt {

// Output channels lie in panels of this many, so that one input multiplies a run of neighbouring bytes.
constexpr int64_t kInt8PanelWidth = 32;

// values[(p * in_features + k) * 32 + c] is the weight of input k for output channel 32 * p + c; the channels that fill
// the last panel up are zero.
struct Int8Weight {
  const int8_t* values;
  const float* scales;  // [out_features]
  int64_t in_features;
  int64_t out_features;
};

// Rows of float32 or bfloat16, `row_stride` elements apart.
struct Int8Input {
  const void* data;
  Dtype dtype;
  int64_t rows;
  int64_t row_stride;
};

// out[r][n] = scales[n] * (sum over k of x[r][k] * values(n, k)) + bias[n], rounded once to the dtype of x.
// Sums run in float32, in rising order of k: a row's result depends neither on the other rows nor on `threads`.
// bias: [out_features] of the dtype of x, or null. out: [rows, out_features] of the dtype of x, contiguous.
void int8_linear(const Int8Input& x, const Int8Weight& weight, const void* bias, void* out, int threads);

}  // namespace ruprompt
