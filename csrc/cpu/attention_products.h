// Products of queries with keys and of weights with values, included once per instruction set (see
// cpu/attention_kernel.h). Every sum of a query runs in one order, whatever its place in a tile.

#include <algorithm>

#include "cpu/attention_tile.h"

namespace ruprompt {
namespace {

constexpr int kLanes = 16;

inline float to_float(float value) { return value; }
inline float to_float(BFloat16 value) { return value.to_float(); }
inline float to_float(Float16 value) { return value.to_float(); }
inline void from_float(float value, float* to) { *to = value; }
inline void from_float(float value, BFloat16* to) { *to = BFloat16::from_float(value); }
inline void from_float(float value, Float16* to) { *to = Float16::from_float(value); }

// The first `count` lanes from memory, the others zero.
template <typename T>
RUPROMPT_TARGET inline Vec load_some(const T* from, int64_t count) {
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = to_float(from[i]);
  return load(lanes);
}

// Scores of Q queries with P pages: each lane is a token, each step one dimension. What `ahead` points to is fetched
// meanwhile: a head's part of a page is too short for the processor to do that by itself.
template <typename T, int Q, int P>
RUPROMPT_TARGET void score_pages(const float* query, int64_t head_dim, const T* const* keys, const T* const* ahead,
                                 float* scores) {
  Vec sums[Q][P];
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) sums[q][p] = splat(0.0f);
  }
  for (int64_t d = 0; d < head_dim; ++d) {
    Vec key[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      key[p] = load(keys[p] + d * kPageTokens);
      prefetch(ahead[p] + d * kPageTokens);
    }
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) {
      const Vec element = splat(query[q * head_dim + d]);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) sums[q][p] = fma(element, key[p], sums[q][p]);
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) store(scores + q * kBlockTokens + p * kPageTokens, sums[q][p]);
  }
}

// Q queries with any number of pages, as many at once as the registers hold.
template <typename T, int Q, int P>
RUPROMPT_TARGET void score_queries(const float* query, int64_t head_dim, const T* const* keys, const T* const* ahead,
                                   int64_t count, float* scores) {
  int64_t page = 0;
  for (; page + P <= count; page += P) {
    score_pages<T, Q, P>(query, head_dim, keys + page, ahead + page, scores + page * kPageTokens);
  }
  if constexpr (P > 1) {
    score_queries<T, Q, P / 2>(query, head_dim, keys + page, ahead + page, count - page, scores + page * kPageTokens);
  }
}

// All queries from tiles of Q on with all pages.
template <typename T, int Q>
RUPROMPT_TARGET void score_tile(const float* query, int64_t queries, int64_t head_dim, const T* const* keys,
                                const T* const* ahead, int64_t count, float* scores) {
  int64_t q = 0;
  for (; q + Q <= queries; q += Q) {
    score_queries<T, Q, kScoreTile / Q>(query + q * head_dim, head_dim, keys, ahead, count, scores + q * kBlockTokens);
  }
  if constexpr (Q > 1) {
    score_tile<T, Q / 2>(query + q * head_dim, queries - q, head_dim, keys, ahead, count, scores + q * kBlockTokens);
  }
}

// Adds probability * value of the pages' tokens to C vectors of Q queries' outputs; `width` is that of the last vector.
template <typename T, int Q, int C, bool kWhole>
RUPROMPT_TARGET void add_values(const float* weights, const T* const* values, const T* const* ahead, int64_t value_dim,
                                int64_t tokens, int64_t width, float* out, int64_t out_stride) {
  Vec sums[Q][C];
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) sums[q][c] = load(out + q * out_stride + c * kLanes);
  }
  for (int64_t first = 0; first < tokens; first += kPageTokens, ++values, ++ahead) {
    const T* row = *values;
    const T* next = *ahead;
    const int64_t end = std::min(tokens, first + kPageTokens);
    for (int64_t t = first; t < end; ++t, row += value_dim, next += value_dim) {
      Vec value[C];
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) {
        value[c] = kWhole ? load(row + c * kLanes) : load_some(row + c * kLanes, width);
        prefetch(next + c * kLanes);
      }
#pragma GCC unroll 8
      for (int q = 0; q < Q; ++q) {
        const Vec weight = splat(weights[q * kBlockTokens + t]);
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) sums[q][c] = fma(weight, value[c], sums[q][c]);
      }
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store(out + q * out_stride + c * kLanes, sums[q][c]);
  }
}

// Q queries with all dimensions of the values.
template <typename T, int Q>
RUPROMPT_TARGET void add_value_rows(const float* weights, const T* const* pages, const T* const* pages_ahead,
                                    int64_t value_dim, int64_t tokens, float* out, int64_t out_stride) {
  constexpr int64_t kWide = kOutVectors * kLanes;
  const T *values[kBlockPages], *ahead[kBlockPages];
  for (int64_t d = 0; d < value_dim;) {
    for (int64_t p = 0; p * kPageTokens < tokens; ++p) {
      values[p] = pages[p] + d;
      ahead[p] = pages_ahead[p] + d;
    }
    const int64_t width = value_dim - d;
    if (width >= kWide) {
      add_values<T, Q, kOutVectors, true>(weights, values, ahead, value_dim, tokens, kLanes, out + d, out_stride);
      d += kWide;
    } else if (width >= kLanes) {
      add_values<T, Q, 1, true>(weights, values, ahead, value_dim, tokens, kLanes, out + d, out_stride);
      d += kLanes;
    } else {
      add_values<T, Q, 1, false>(weights, values, ahead, value_dim, tokens, width, out + d, out_stride);
      d += width;
    }
  }
}

template <typename T, int Q>
RUPROMPT_TARGET void add_value_tile(const float* weights, int64_t queries, const T* const* pages, const T* const* ahead,
                                    int64_t value_dim, int64_t tokens, float* out, int64_t out_stride) {
  int64_t q = 0;
  for (; q + Q <= queries; q += Q) {
    add_value_rows<T, Q>(weights + q * kBlockTokens, pages, ahead, value_dim, tokens, out + q * out_stride, out_stride);
  }
  if constexpr (Q > 1) {
    add_value_tile<T, Q / 2>(weights + q * kBlockTokens, queries - q, pages, ahead, value_dim, tokens,
                             out + q * out_stride, out_stride);
  }
}

}  // namespace
}  // namespace ruprompt
