// The vector code of the attention over pages, included once per instruction set after a definition of
//   RUPROMPT_TARGET                   the function attribute of the set
//   Vec                               16 float32 lanes: the tokens of a page, or 16 value dimensions
//   load, store, splat, ...           its operations
//   kScoreTile, kOutVectors           how many Vecs of sums fit the registers
// so that there is no #pragma once.

#include <algorithm>
#include <limits>

#include "cpu/attention_products.h"
#include "cpu/attention_tile.h"

namespace ruprompt {
namespace {

constexpr float kLog2E = 1.44269504f;

template <typename T>
RUPROMPT_TARGET void load_queries(const TileJob& job, float* to) {
  const AttentionCall& call = *job.call;
  const float factor = call.softcap > 0 ? call.scaling / call.softcap : call.scaling * kLog2E;
  for (int64_t i = 0; i < job.num_queries; ++i, to += call.head_dim) {
    const TileQuery& query = job.queries[i];
    const T* from = static_cast<const T*>(call.query) + query.token * call.query_token_stride +
                    query.head * call.query_head_stride;
    int64_t d = 0;
    for (; d + kLanes <= call.head_dim; d += kLanes) store(to + d, mul(load(from + d), splat(factor)));
    for (; d < call.head_dim; ++d) to[d] = to_float(from[d]) * factor;
  }
}

// Turns one query's scores of a block into exp2(score - highest), zero where it does not see, and updates the highest
// score and the sum. Returns what the output so far is to be multiplied by. `scores` are those of the positions from
// `base` on, `tokens` (a multiple of 16) of them.
RUPROMPT_TARGET inline float soften(const AttentionCall& call, const TileQuery& query, int64_t base, int64_t tokens,
                                    float* scores, float* highest_so_far, float* sum) {
  const int64_t low = std::min(std::max<int64_t>(query.start - base, 0), tokens);
  const int64_t high = std::min(std::max<int64_t>(query.end - base, 0), tokens);
  if (low >= high) {
    std::fill(scores, scores + tokens, 0.0f);
    return 1.0f;
  }
  const int64_t seen = (high + kLanes - 1) / kLanes * kLanes;
  if (call.softcap > 0) {
    const Vec cap = splat(call.softcap * kLog2E);
    for (int64_t t = 0; t < seen; t += kLanes) store(scores + t, mul(cap, tanh(load(scores + t))));
  }
  std::fill(scores, scores + low, -std::numeric_limits<float>::infinity());
  std::fill(scores + high, scores + seen, -std::numeric_limits<float>::infinity());
  Vec most = load(scores);
  for (int64_t t = kLanes; t < seen; t += kLanes) most = max(most, load(scores + t));
  const float highest = std::max(*highest_so_far, largest(most));
  Vec total = splat(0.0f);
  for (int64_t t = 0; t < seen; t += kLanes) {
    const Vec weight = exp2(sub(load(scores + t), splat(highest)));
    store(scores + t, weight);
    total = add(total, weight);
  }
  std::fill(scores + seen, scores + tokens, 0.0f);
  const float factor = first(exp2(splat(*highest_so_far - highest)));
  *highest_so_far = highest;
  *sum = *sum * factor + sum_of(total);
  return factor;
}

// Pages of one block that the queries of `row` meet together.
struct Segment {
  const TileRow* row;
  int64_t begin;
  int64_t end;
  int64_t kv_head;

  int64_t count() const { return end - begin; }
};

// The segments of a block in the order in which they are worked on.
struct Block {
  Block(const TileJob& job, const TileRow& together, int64_t base, int64_t end, int64_t kv_head) {
    const int64_t own = std::min(std::max(base, job.shared_pages), end);
    add(together, base, own, kv_head);
    for (int64_t r = 0; r < job.num_rows; ++r) add(job.rows[r], own, end, kv_head);
  }

  void add(const TileRow& row, int64_t begin, int64_t end, int64_t kv_head) {
    begin = std::max(begin, row.start / kPageTokens);
    end = std::min(end, (row.end + kPageTokens - 1) / kPageTokens);
    if (begin < end) segments[count++] = {&row, begin, end, kv_head};
  }

  int64_t count = 0;
  Segment segments[kTileQueries + 1];
};

// Where a segment's keys or values lie, page by page, for `count` pages; the last one again if it has fewer.
template <typename T>
inline void locate(const void* tensor, int64_t kv_heads, int64_t page_elements, const Segment& segment, int64_t count,
                   const T** to) {
  for (int64_t p = 0; p < count; ++p) {
    const int64_t page = segment.row->pages[segment.begin + std::min(p, segment.count() - 1)];
    to[p] = static_cast<const T*>(tensor) + (page * kv_heads + segment.kv_head) * page_elements;
  }
}

template <typename T>
void locate_keys(const AttentionCall& call, const Segment& segment, int64_t count, const T** to) {
  locate(call.key_pages, call.kv_heads, call.head_dim * kPageTokens, segment, count, to);
}

template <typename T>
void locate_values(const AttentionCall& call, const Segment& segment, int64_t count, const T** to) {
  locate(call.value_pages, call.kv_heads, call.value_dim * kPageTokens, segment, count, to);
}

// The scores of a block that starts at page `base`.
template <typename T>
RUPROMPT_TARGET void score_block(const AttentionCall& call, const Block& block, int64_t base, const float* query,
                                 float* scores) {
  const T *keys[kBlockPages], *ahead[kBlockPages];
  for (int64_t i = 0; i < block.count; ++i) {
    const Segment& segment = block.segments[i];
    locate_keys(call, segment, segment.count(), keys);
    if (i + 1 < block.count) {
      locate_keys(call, block.segments[i + 1], segment.count(), ahead);
    } else {
      locate_values(call, block.segments[0], segment.count(), ahead);
    }
    const TileRow& row = *segment.row;
    score_tile<T, kScoreTile>(query + row.first_query * call.head_dim, row.num_queries, call.head_dim, keys, ahead,
                              segment.count(),
                              scores + row.first_query * kBlockTokens + (segment.begin - base) * kPageTokens);
  }
}

// Adds the block's values; `next` is the block after it. Positions from row.end on hold nothing, and are not read.
template <typename T>
RUPROMPT_TARGET void add_block(const AttentionCall& call, const Block& block, const Block& next, int64_t base,
                               const float* weights, float* out, int64_t out_stride) {
  const T *values[kBlockPages], *ahead[kBlockPages];
  for (int64_t i = 0; i < block.count; ++i) {
    const Segment& segment = block.segments[i];
    locate_values(call, segment, segment.count(), values);
    if (i + 1 < block.count) {
      locate_values(call, block.segments[i + 1], segment.count(), ahead);
    } else if (next.count > 0) {
      locate_keys(call, next.segments[0], segment.count(), ahead);
    } else {
      locate_values(call, segment, segment.count(), ahead);
    }
    const TileRow& row = *segment.row;
    const int64_t tokens = std::min(row.end, segment.end * kPageTokens) - segment.begin * kPageTokens;
    add_value_tile<T, 4>(weights + row.first_query * kBlockTokens + (segment.begin - base) * kPageTokens,
                         row.num_queries, values, ahead, call.value_dim, tokens, out + row.first_query * out_stride,
                         out_stride);
  }
}

// The block that follows the one before page `base`: of this head, or the first one of the head that comes next.
inline Block following(const TileJob& job, const TileRow& together, int64_t base) {
  const int64_t last = (job.end + kPageTokens - 1) / kPageTokens;
  if (base < last) return Block(job, together, base, std::min(base + kBlockPages, last), job.kv_head);
  const int64_t first = job.start / kBlockTokens * kBlockPages;
  return Block(job, together, first, job.next_head < 0 ? first : std::min(first + kBlockPages, last), job.next_head);
}

template <typename T>
RUPROMPT_TARGET void attend(const TileJob& job, int64_t page_begin, int64_t page_end, const float* query, float* scores,
                            float* block_out, const TileState& state) {
  const int64_t floats = job.num_queries * state.out_stride;
  std::fill(state.out, state.out + floats, 0.0f);
  std::fill(state.highest, state.highest + job.num_queries, kLowest);
  std::fill(state.sum, state.sum + job.num_queries, 0.0f);
  // The shared pages are met by all queries as if they were of one row.
  const TileRow together{job.rows[0].pages, 0, job.num_queries, job.start, job.shared_pages * kPageTokens};
  page_end = std::min(page_end, (job.end + kPageTokens - 1) / kPageTokens);
  page_begin = std::max(page_begin, job.start / kBlockTokens * kBlockPages);
  float factors[kTileQueries];
  for (int64_t base = page_begin; base < page_end; base += kBlockPages) {
    const int64_t end = std::min(base + kBlockPages, page_end);
    const Block block(job, together, base, end, job.kv_head);
    score_block<T>(*job.call, block, base, query, scores);
    for (int64_t q = 0; q < job.num_queries; ++q) {
      factors[q] = soften(*job.call, job.queries[q], base * kPageTokens, (end - base) * kPageTokens,
                          scores + q * kBlockTokens, state.highest + q, state.sum + q);
    }
    // Sums of a block are apart from those before it, which are larger and would round them.
    std::fill(block_out, block_out + floats, 0.0f);
    add_block<T>(*job.call, block, following(job, together, end), base, scores, block_out, state.out_stride);
    for (int64_t i = 0; i < floats; i += kLanes) {
      store(state.out + i, fma(load(state.out + i), splat(factors[i / state.out_stride]), load(block_out + i)));
    }
  }
}

template <typename T>
RUPROMPT_TARGET void finish(const TileJob& job, const TileState& state) {
  const AttentionCall& call = *job.call;
  for (int64_t i = 0; i < job.num_queries; ++i) {
    const TileQuery& query = job.queries[i];
    const float* from = state.out + i * state.out_stride;
    T* to = static_cast<T*>(call.out) + (query.token * call.heads + query.head) * call.value_dim;
    const Vec sum = splat(state.sum[i]);
    int64_t d = 0;
    for (; d + kLanes <= call.value_dim; d += kLanes) store(to + d, div(load(from + d), sum));
    for (; d < call.value_dim; ++d) from_float(from[d] / state.sum[i], to + d);
  }
}

template <typename T>
TileKernels tile_kernels_of() {
  return {load_queries<T>, attend<T>, finish<T>};
}

TileKernels tile_kernels(Dtype dtype) {
  switch (dtype) {
    case Dtype::kBFloat16:
      return tile_kernels_of<BFloat16>();
    case Dtype::kFloat16:
      return tile_kernels_of<Float16>();
    default:
      return tile_kernels_of<float>();
  }
}

}  // namespace
}  // namespace ruprompt
