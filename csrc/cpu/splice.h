// Row lookup in two tables through one range of ids, and its gradient. No Python, no torch: pointers and sizes.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"

namespace ruprompt {

// Integer ids, `count` of them one after another, each of `width` bytes (4 or 8).
struct Ids {
  const void* data;
  int64_t count;
  int width;
};

// A matrix that is only copied from: its rows' bytes are contiguous, the rows `row_stride` bytes apart.
struct ByteTable {
  const char* data;
  int64_t rows;
  int64_t row_stride;
};

// Writes row i of `out` ([ids.count, row_bytes], contiguous) as
//   tokens[id]                      if 0 <= id < min(first_prompt_id, tokens.rows)
//   prompts[id - first_prompt_id]   if first_prompt_id <= id < first_prompt_id + prompts.rows
// and returns -1; or returns the position of the first id that is neither, with nothing written.
int64_t splice(const Ids& ids, const ByteTable& tokens, const ByteTable& prompts, int64_t first_prompt_id,
               int64_t row_bytes, char* out, int threads);

// The gradient of splice for the prompt table:
//   out[r] = sum over i with ids[i] == first_prompt_id + r, in rising order of i, of grad[i]
// grad is [ids.count, width] with rows `grad_stride` elements apart, out [rows, width] contiguous, both of `dtype`.
// Sums run in float32 (float64 for float64) and in one fixed order, whatever the number of threads.
void splice_prompt_grad(const Ids& ids, const void* grad, int64_t grad_stride, Dtype dtype, int64_t width,
                        int64_t first_prompt_id, int64_t rows, void* out, int threads);

}  // namespace ruprompt
