// The gradient of the splice for the prompt table: a segment sum over equal ids.
#include <algorithm>
#include <vector>

#include "cpu/isa.h"
#include "cpu/splice.h"

#ifdef RUPROMPT_X86
// GCC's headers begin many intrinsics with an undefined register and warn of it: its bug 105593.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#endif

namespace ruprompt {
namespace {

// Columns that one task sums: 2 KB of float32 accumulators stay in the first-level cache.
constexpr int64_t kColumns = 512;
constexpr int64_t kParallelElements = 16 << 10;

// Positions of the ids of every prompt row, rising within a row: row r owns positions[starts[r] .. starts[r + 1]).
struct Segments {
  std::vector<int64_t> starts;
  std::vector<int64_t> positions;
};

template <typename Id>
Segments group_by_row(const Id* ids, int64_t count, int64_t first, int64_t rows) {
  Segments segments;
  segments.starts.assign(static_cast<size_t>(rows) + 1, 0);
  const auto row_of = [&](int64_t i) { return static_cast<int64_t>(ids[i]) - first; };
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = row_of(i);
    if (row >= 0 && row < rows) ++segments.starts[static_cast<size_t>(row) + 1];
  }
  for (size_t r = 1; r < segments.starts.size(); ++r) segments.starts[r] += segments.starts[r - 1];
  segments.positions.resize(static_cast<size_t>(segments.starts.back()));
  std::vector<int64_t> next(segments.starts.begin(), segments.starts.end() - 1);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = row_of(i);
    if (row >= 0 && row < rows) segments.positions[static_cast<size_t>(next[static_cast<size_t>(row)]++)] = i;
  }
  return segments;
}

inline double widen(double value) { return value; }
inline float widen(float value) { return value; }
inline float widen(BFloat16 value) { return value.to_float(); }
inline float widen(Float16 value) { return value.to_float(); }
inline void narrow(double value, double* to) { *to = value; }
inline void narrow(float value, float* to) { *to = value; }
inline void narrow(float value, BFloat16* to) { *to = BFloat16::from_float(value); }
inline void narrow(float value, Float16* to) { *to = Float16::from_float(value); }

// sum[c] += row[c], the whole of the arithmetic; the copies below differ in the instructions they may use.
template <typename Value, typename Sum>
inline __attribute__((always_inline)) void add_row_inline(Sum* sum, const Value* row, int64_t columns) {
  for (int64_t c = 0; c < columns; ++c) sum[c] += widen(row[c]);
}

template <typename Value, typename Sum>
void add_row(Sum* sum, const Value* row, int64_t columns) {
  add_row_inline(sum, row, columns);
}

#ifdef RUPROMPT_X86
template <typename Value, typename Sum>
RUPROMPT_TARGET_AVX2 void add_row_avx2(Sum* sum, const Value* row, int64_t columns) {
  add_row_inline(sum, row, columns);
}

template <typename Value, typename Sum>
RUPROMPT_TARGET_AVX512 void add_row_avx512(Sum* sum, const Value* row, int64_t columns) {
  add_row_inline(sum, row, columns);
}

// Compilers do not turn the integer conversion of halves into the instruction for it.
template <>
RUPROMPT_TARGET_AVX2 void add_row_avx2(float* sum, const Float16* row, int64_t columns) {
  int64_t c = 0;
  for (; c + 8 <= columns; c += 8) {
    const __m256 value = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + c)));
    _mm256_storeu_ps(sum + c, _mm256_add_ps(_mm256_loadu_ps(sum + c), value));
  }
  add_row_inline(sum + c, row + c, columns - c);
}

template <>
RUPROMPT_TARGET_AVX512 void add_row_avx512(float* sum, const Float16* row, int64_t columns) {
  int64_t c = 0;
  for (; c + 16 <= columns; c += 16) {
    const __m512 value = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + c)));
    _mm512_storeu_ps(sum + c, _mm512_add_ps(_mm512_loadu_ps(sum + c), value));
  }
  add_row_inline(sum + c, row + c, columns - c);
}
#endif

template <typename Value, typename Sum>
using AddRow = void (*)(Sum*, const Value*, int64_t);

template <typename Value, typename Sum>
AddRow<Value, Sum> choose_add_row() {
#ifdef RUPROMPT_X86
  if (cpu_isa() == Isa::kAvx512) return add_row_avx512<Value, Sum>;
  if (cpu_isa() == Isa::kAvx2) return add_row_avx2<Value, Sum>;
#endif
  return add_row<Value, Sum>;
}

template <typename Value, typename Sum>
void sum_segments(const Segments& segments, const Value* grad, int64_t grad_stride, int64_t width, int64_t rows,
                  Value* out, int threads) {
  const AddRow<Value, Sum> add = choose_add_row<Value, Sum>();
  const int64_t blocks = (width + kColumns - 1) / kColumns;
  const auto work = static_cast<int64_t>(segments.positions.size()) * width;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads) if (threads > 1 && work >= kParallelElements)
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t begin = block * kColumns;
      const int64_t columns = std::min(kColumns, width - begin);
      alignas(64) Sum sum[kColumns] = {};
      for (int64_t k = segments.starts[row]; k < segments.starts[row + 1]; ++k) {
        add(sum, grad + segments.positions[k] * grad_stride + begin, columns);
      }
      for (int64_t c = 0; c < columns; ++c) narrow(sum[c], out + row * width + begin + c);
    }
  }
}

Segments group_by_row(const Ids& ids, int64_t first, int64_t rows) {
  if (ids.width == 4) return group_by_row(static_cast<const int32_t*>(ids.data), ids.count, first, rows);
  return group_by_row(static_cast<const int64_t*>(ids.data), ids.count, first, rows);
}

}  // namespace

void splice_prompt_grad(const Ids& ids, const void* grad, int64_t grad_stride, Dtype dtype, int64_t width,
                        int64_t first_prompt_id, int64_t rows, void* out, int threads) {
  const Segments segments = group_by_row(ids, first_prompt_id, rows);
  const auto run = [&](auto value, auto sum) {
    using Value = decltype(value);
    sum_segments<Value, decltype(sum)>(segments, static_cast<const Value*>(grad), grad_stride, width, rows,
                                       static_cast<Value*>(out), threads);
  };
  switch (dtype) {
    case Dtype::kFloat64:
      return run(double{}, double{});
    case Dtype::kFloat32:
      return run(float{}, float{});
    case Dtype::kFloat16:
      return run(Float16{}, float{});
    case Dtype::kBFloat16:
      return run(BFloat16{}, float{});
  }
}

}  // namespace ruprompt
