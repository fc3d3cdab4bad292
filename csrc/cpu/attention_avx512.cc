// The attention over pages with AVX-512: a page's 16 tokens are one register.
#include "cpu/dtype.h"
#include "cpu/isa.h"

#ifdef RUPROMPT_X86
// GCC's own headers begin many intrinsics with an undefined register and warn of it: its bug 105593.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#define RUPROMPT_TARGET RUPROMPT_TARGET_AVX512
#define RUPROMPT_VEC RUPROMPT_TARGET inline __attribute__((always_inline))

namespace ruprompt {
namespace {

struct Vec {
  __m512 v;
};

constexpr int kScoreTile = 8;
constexpr int kOutVectors = 4;

RUPROMPT_VEC Vec load(const float* from) { return {_mm512_loadu_ps(from)}; }
RUPROMPT_VEC Vec load(const BFloat16* from) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
RUPROMPT_VEC Vec load(const Float16* from) {
  return {_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
}

RUPROMPT_VEC void store(float* to, Vec a) { _mm512_storeu_ps(to, a.v); }
// Rounds to nearest, ties to even; a NaN becomes the quiet one.
RUPROMPT_VEC void store(BFloat16* to, Vec a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
RUPROMPT_VEC void store(Float16* to, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}

RUPROMPT_VEC void prefetch(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T1); }
RUPROMPT_VEC Vec splat(float value) { return {_mm512_set1_ps(value)}; }
RUPROMPT_VEC Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
RUPROMPT_VEC Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
RUPROMPT_VEC Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
RUPROMPT_VEC Vec div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
RUPROMPT_VEC Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
RUPROMPT_VEC Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
RUPROMPT_VEC Vec round(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// a * 2^n for whole n, and zero where x is below `lowest`.
RUPROMPT_VEC Vec scale(Vec a, Vec n, Vec x, float lowest) {
  const __mmask16 small = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(lowest), _CMP_LT_OQ);
  return {_mm512_mask_mov_ps(_mm512_scalef_ps(a.v, n.v), small, _mm512_setzero_ps())};
}
RUPROMPT_VEC Vec absolute(Vec a) { return {_mm512_abs_ps(a.v)}; }
// The smaller one; b where either is NaN.
RUPROMPT_VEC Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
RUPROMPT_VEC Vec with_sign(Vec a, Vec sign) {
  return {_mm512_or_ps(a.v, _mm512_and_ps(sign.v, _mm512_set1_ps(-0.0f)))};
}
RUPROMPT_VEC Vec where_less(Vec x, float limit, Vec then, Vec otherwise) {
  const __mmask16 less = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_LT_OQ);
  return {_mm512_mask_mov_ps(otherwise.v, less, then.v)};
}
RUPROMPT_VEC float first(Vec a) { return _mm512_cvtss_f32(a.v); }
RUPROMPT_VEC float largest(Vec a) { return _mm512_reduce_max_ps(a.v); }
RUPROMPT_VEC float sum_of(Vec a) { return _mm512_reduce_add_ps(a.v); }

}  // namespace
}  // namespace ruprompt

#include "cpu/attention_math.h"
#include "cpu/attention_kernel.h"

namespace ruprompt {

TileKernels tile_kernels_avx512(Dtype dtype) { return tile_kernels(dtype); }

}  // namespace ruprompt
#endif
