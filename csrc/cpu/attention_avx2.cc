// The attention over pages with AVX2: a page's 16 tokens are two registers.
#include "cpu/dtype.h"
#include "cpu/isa.h"

#ifdef RUPROMPT_X86
#include <immintrin.h>

#define RUPROMPT_TARGET RUPROMPT_TARGET_AVX2
#define RUPROMPT_VEC RUPROMPT_TARGET inline __attribute__((always_inline))

namespace ruprompt {
namespace {

struct Vec {
  __m256 low;
  __m256 high;
};

constexpr int kScoreTile = 4;
constexpr int kOutVectors = 1;

RUPROMPT_VEC __m256 widen(__m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
RUPROMPT_VEC __m128i half(const void* from, int index) {
  return _mm_loadu_si128(static_cast<const __m128i*>(from) + index);
}

RUPROMPT_VEC Vec load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
RUPROMPT_VEC Vec load(const BFloat16* from) { return {widen(half(from, 0)), widen(half(from, 1))}; }
RUPROMPT_VEC Vec load(const Float16* from) {
  return {_mm256_cvtph_ps(half(from, 0)), _mm256_cvtph_ps(half(from, 1))};
}

// Rounds to nearest, ties to even; a NaN becomes the quiet one.
RUPROMPT_VEC __m128i narrow(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256 rounded = _mm256_blendv_ps(_mm256_castsi256_ps(sum), _mm256_set1_ps(bits_to_float(0x7fc00000u)),
                                          _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  const __m256i upper = _mm256_srli_epi32(_mm256_castps_si256(rounded), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
}

RUPROMPT_VEC void store(float* to, Vec a) {
  _mm256_storeu_ps(to, a.low);
  _mm256_storeu_ps(to + 8, a.high);
}
RUPROMPT_VEC void store_halves(void* to, __m128i low, __m128i high) {
  _mm_storeu_si128(static_cast<__m128i*>(to), low);
  _mm_storeu_si128(static_cast<__m128i*>(to) + 1, high);
}
RUPROMPT_VEC void store(BFloat16* to, Vec a) { store_halves(to, narrow(a.low), narrow(a.high)); }
RUPROMPT_VEC void store(Float16* to, Vec a) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT;
  store_halves(to, _mm256_cvtps_ph(a.low, kNearest), _mm256_cvtps_ph(a.high, kNearest));
}

RUPROMPT_VEC void prefetch(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T1); }
RUPROMPT_VEC Vec splat(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
RUPROMPT_VEC Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
RUPROMPT_VEC Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
RUPROMPT_VEC Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
RUPROMPT_VEC Vec div(Vec a, Vec b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
RUPROMPT_VEC Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
RUPROMPT_VEC Vec fma(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
RUPROMPT_VEC Vec round(Vec a) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.low, kNearest), _mm256_round_ps(a.high, kNearest)};
}
RUPROMPT_VEC __m256 scale_half(__m256 a, __m256 n, __m256 x, __m256 lowest) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  const __m256 scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), exponent));
  return _mm256_andnot_ps(_mm256_cmp_ps(x, lowest, _CMP_LT_OQ), scaled);
}
// a * 2^n for whole n, and zero where x is below `lowest`.
RUPROMPT_VEC Vec scale(Vec a, Vec n, Vec x, float lowest) {
  const __m256 limit = _mm256_set1_ps(lowest);
  return {scale_half(a.low, n.low, x.low, limit), scale_half(a.high, n.high, x.high, limit)};
}
RUPROMPT_VEC Vec absolute(Vec a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}
// The smaller one; b where either is NaN.
RUPROMPT_VEC Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
RUPROMPT_VEC Vec with_sign(Vec a, Vec sign) {
  const __m256 bit = _mm256_set1_ps(-0.0f);
  return {_mm256_or_ps(a.low, _mm256_and_ps(sign.low, bit)), _mm256_or_ps(a.high, _mm256_and_ps(sign.high, bit))};
}
RUPROMPT_VEC Vec where_less(Vec x, float limit, Vec then, Vec otherwise) {
  const __m256 bound = _mm256_set1_ps(limit);
  return {_mm256_blendv_ps(otherwise.low, then.low, _mm256_cmp_ps(x.low, bound, _CMP_LT_OQ)),
          _mm256_blendv_ps(otherwise.high, then.high, _mm256_cmp_ps(x.high, bound, _CMP_LT_OQ))};
}
RUPROMPT_VEC float first(Vec a) { return _mm256_cvtss_f32(a.low); }
RUPROMPT_VEC float largest(Vec a) {
  const __m256 eight = _mm256_max_ps(a.low, a.high);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
RUPROMPT_VEC float sum_of(Vec a) {
  const __m256 eight = _mm256_add_ps(a.low, a.high);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

}  // namespace
}  // namespace ruprompt

#include "cpu/attention_math.h"
#include "cpu/attention_kernel.h"

namespace ruprompt {

TileKernels tile_kernels_avx2(Dtype dtype) { return tile_kernels(dtype); }

}  // namespace ruprompt
#endif
