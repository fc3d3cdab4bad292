// What the division of the work (attention.cc) and the vector code (attention_<isa>.cc) share.
#pragma once

#include <cstdint>

#include "cpu/attention.h"

namespace ruprompt {

// Queries that meet a page while it is in the first-level cache.
constexpr int64_t kTileQueries = 16;
// Pages whose scores are known before their softmax: one rescaling of the output per block. Blocks begin at fixed
// places of the context, so that a query's sums run in one order whatever tile it is in.
constexpr int64_t kBlockPages = 8;
constexpr int64_t kBlockTokens = kBlockPages * kPageTokens;
// Below every score, and finite: a block in which a query sees nothing changes nothing.
constexpr float kLowest = -1e30f;

struct TileQuery {
  int64_t token;  // of the packed query
  int64_t head;
  int64_t start;  // first and one past the last position that it sees
  int64_t end;
};

struct TileRow {
  const int32_t* pages;
  int64_t first_query;
  int64_t num_queries;
  int64_t start;  // the range of positions that any of its queries sees
  int64_t end;
};

struct TileJob {
  const AttentionCall* call;
  int64_t kv_head;
  int64_t next_head;     // the one that the same thread takes next, -1 if none
  int64_t shared_pages;  // leading pages that all rows have in common, if there are several
  int64_t num_rows;
  int64_t num_queries;
  int64_t start;
  int64_t end;
  TileRow rows[kTileQueries];
  TileQuery queries[kTileQueries];
};

// The online softmax of a tile's queries over a part of the context. Scores are in units of log2.
struct TileState {
  float* out;      // [queries, out_stride]: sum of exp2(score - highest) * value
  float* highest;  // [queries]
  float* sum;      // [queries]: sum of exp2(score - highest)
  int64_t out_stride;
};

struct TileKernels {
  // query * scaling as float32 [queries, head_dim].
  void (*load_queries)(const TileJob& job, float* query);
  // The state of the pages [page_begin, page_end) alone. There is room for [queries, kBlockTokens] at `scores` and for
  // [queries, out_stride] at `block_out`.
  void (*attend)(const TileJob& job, int64_t page_begin, int64_t page_end, const float* query, float* scores,
                 float* block_out, const TileState& state);
  // The output rows of the tile's queries.
  void (*finish)(const TileJob& job, const TileState& state);
};

TileKernels tile_kernels_generic(Dtype dtype);
TileKernels tile_kernels_avx2(Dtype dtype);
TileKernels tile_kernels_avx512(Dtype dtype);

}  // namespace ruprompt
