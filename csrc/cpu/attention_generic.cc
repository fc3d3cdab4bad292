// The attention over pages for any processor: loops of 16 that the compiler may vectorize.
#include <algorithm>
#include <cmath>

#include "cpu/dtype.h"

#define RUPROMPT_TARGET

namespace ruprompt {
namespace {

struct Vec {
  float lane[16];
};

constexpr int kScoreTile = 4;
constexpr int kOutVectors = 1;

inline Vec load(const float* from) {
  Vec out;
  std::copy(from, from + 16, out.lane);
  return out;
}

template <typename T>
inline Vec load(const T* from) {
  Vec out;
  for (int i = 0; i < 16; ++i) out.lane[i] = from[i].to_float();
  return out;
}

inline void store(float* to, const Vec& value) { std::copy(value.lane, value.lane + 16, to); }

template <typename T>
inline void store(T* to, const Vec& value) {
  for (int i = 0; i < 16; ++i) to[i] = T::from_float(value.lane[i]);
}

inline void prefetch(const void*) {}

inline Vec splat(float value) {
  Vec out;
  std::fill(out.lane, out.lane + 16, value);
  return out;
}

template <typename Function>
inline Vec map(const Vec& a, Function function) {
  Vec out;
  for (int i = 0; i < 16; ++i) out.lane[i] = function(a.lane[i]);
  return out;
}

template <typename Function>
inline Vec map(const Vec& a, const Vec& b, Function function) {
  Vec out;
  for (int i = 0; i < 16; ++i) out.lane[i] = function(a.lane[i], b.lane[i]);
  return out;
}

inline Vec add(const Vec& a, const Vec& b) {
  return map(a, b, [](float x, float y) { return x + y; });
}
inline Vec sub(const Vec& a, const Vec& b) {
  return map(a, b, [](float x, float y) { return x - y; });
}
inline Vec mul(const Vec& a, const Vec& b) {
  return map(a, b, [](float x, float y) { return x * y; });
}
inline Vec div(const Vec& a, const Vec& b) {
  return map(a, b, [](float x, float y) { return x / y; });
}
inline Vec max(const Vec& a, const Vec& b) {
  return map(a, b, [](float x, float y) { return x > y ? x : y; });
}
inline Vec fma(const Vec& a, const Vec& b, const Vec& c) { return add(mul(a, b), c); }
inline Vec exp2(const Vec& a) {
  return map(a, [](float x) { return std::exp2(x); });
}
inline Vec tanh(const Vec& a) {
  return map(a, [](float x) { return std::tanh(x); });
}
inline float first(const Vec& a) { return a.lane[0]; }
inline float largest(const Vec& a) { return *std::max_element(a.lane, a.lane + 16); }

inline float sum_of(const Vec& a) {
  float sum = 0;
  for (const float lane : a.lane) sum += lane;
  return sum;
}

}  // namespace
}  // namespace ruprompt

#include "cpu/attention_kernel.h"

namespace ruprompt {

TileKernels tile_kernels_generic(Dtype dtype) { return tile_kernels(dtype); }

}  // namespace ruprompt
