// Replaces prompt markers by prompt ids: one pass of integers. No Python, no torch.
#pragma once

#include <cstdint>
#include <vector>

namespace ruprompt {

// The k-th occurrence of `marker` in a sequence becomes start + k; a sequence holds none of them or `rows`.
struct Marker {
  int64_t marker;
  int64_t start;
  int64_t rows;
};

// A sequence that holds another number of a marker than its prompt has rows.
struct MarkerMismatch {
  int64_t sequence;  // -1: every sequence is right
  int64_t marker;
  int64_t found;
  int64_t expected;
};

// ids and out: [sequences, length], contiguous, of 4 or 8 byte integers each.
// `out` holds garbage in the sequence of a mismatch and after it.
MarkerMismatch resolve_markers(const void* ids, int id_width, int64_t sequences, int64_t length,
                               std::vector<Marker> markers, void* out, int out_width);

}  // namespace ruprompt
