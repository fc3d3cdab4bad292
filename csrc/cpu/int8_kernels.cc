#include "cpu/int8_kernels.h"

#include <algorithm>
#include <array>
#include <utility>

#include "cpu/isa.h"

#ifdef RUPROMPT_X86
// GCC's headers begin many intrinsics with an undefined register and warn of it: its bug 105593.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#endif

namespace ruprompt {
namespace {

constexpr int64_t kWidth = kInt8PanelWidth;

template <int kRows>
void multiply_generic(const float* x, const int8_t* panel, int64_t depth, float* sums) {
  float total[kRows][kWidth] = {};
  for (int64_t k = 0; k < depth; ++k) {
    float weight[kWidth];
    for (int c = 0; c < kWidth; ++c) weight[c] = panel[k * kWidth + c];
    for (int r = 0; r < kRows; ++r) {
      const float input = x[k * kRows + r];
      for (int c = 0; c < kWidth; ++c) total[r][c] += input * weight[c];
    }
  }
  std::copy(&total[0][0], &total[0][0] + kRows * kWidth, sums);
}

#ifdef RUPROMPT_X86
// Two passes over half a panel each: the sums of six rows and half a panel fill the sixteen registers.
template <int kRows>
RUPROMPT_TARGET_AVX2 void multiply_avx2(const float* x, const int8_t* panel, int64_t depth, float* sums) {
  for (int half = 0; half < 2; ++half) {
    const int8_t* weights = panel + half * 16;
    __m256 low[kRows], high[kRows];
    for (int r = 0; r < kRows; ++r) low[r] = high[r] = _mm256_setzero_ps();
    for (int64_t k = 0; k < depth; ++k) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weights + k * kWidth));
      const __m256 first = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
      const __m256 second = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)));
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const __m256 input = _mm256_broadcast_ss(x + k * kRows + r);
        low[r] = _mm256_fmadd_ps(input, first, low[r]);
        high[r] = _mm256_fmadd_ps(input, second, high[r]);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      _mm256_storeu_ps(sums + r * kWidth + half * 16, low[r]);
      _mm256_storeu_ps(sums + r * kWidth + half * 16 + 8, high[r]);
    }
  }
}

template <int kRows, int kPanels>
RUPROMPT_TARGET_AVX512 void multiply_avx512(const float* x, const int8_t* panels, int64_t depth, float* sums) {
  constexpr int kVectors = 2 * kPanels;
  __m512 total[kRows][kVectors];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) total[r][v] = _mm512_setzero_ps();
  }
  for (int64_t k = 0; k < depth; ++k) {
    __m512 weight[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const int8_t* from = panels + ((v / 2) * depth + k) * kWidth + (v % 2) * 16;
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
      weight[v] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const __m512 input = _mm512_set1_ps(x[k * kRows + r]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) total[r][v] = _mm512_fmadd_ps(input, weight[v], total[r][v]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      _mm512_storeu_ps(sums + ((v / 2) * kRows + r) * kWidth + (v % 2) * 16, total[r][v]);
    }
  }
}
#endif

constexpr int group_of(int rows) { return rows <= 2 ? 4 : rows <= 6 ? 2 : 1; }

template <size_t... kIndex>
Int8KernelSet generic_kernels(std::index_sequence<kIndex...>) {
  static const std::array<Int8TileKernel, sizeof...(kIndex)> tiles{
      Int8TileKernel{multiply_generic<kIndex + 1>, multiply_generic<kIndex + 1>, 1}...};
  return {tiles.data(), static_cast<int>(tiles.size())};
}

#ifdef RUPROMPT_X86
template <size_t... kIndex>
Int8KernelSet avx2_kernels(std::index_sequence<kIndex...>) {
  static const std::array<Int8TileKernel, sizeof...(kIndex)> tiles{
      Int8TileKernel{multiply_avx2<kIndex + 1>, multiply_avx2<kIndex + 1>, 1}...};
  return {tiles.data(), static_cast<int>(tiles.size())};
}

template <size_t... kIndex>
Int8KernelSet avx512_kernels(std::index_sequence<kIndex...>) {
  static const std::array<Int8TileKernel, sizeof...(kIndex)> tiles{Int8TileKernel{
      multiply_avx512<kIndex + 1, 1>, multiply_avx512<kIndex + 1, group_of(kIndex + 1)>, group_of(kIndex + 1)}...};
  return {tiles.data(), static_cast<int>(tiles.size())};
}
#endif

}  // namespace

Int8KernelSet int8_kernels() {
#ifdef RUPROMPT_X86
  if (cpu_isa() == Isa::kAvx512) return avx512_kernels(std::make_index_sequence<kInt8MaxTileRows>());
  if (cpu_isa() == Isa::kAvx2) return avx2_kernels(std::make_index_sequence<6>());
#endif
  return generic_kernels(std::make_index_sequence<4>());
}

}  // namespace ruprompt
