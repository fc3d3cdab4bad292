#include "cpu/int8_linear.h"

#include <algorithm>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "cpu/int8_kernels.h"

namespace ruprompt {
namespace {

constexpr int64_t kWidth = kInt8PanelWidth;
// Rows whose inputs are brought into tiles at once; the weight is read once per block.
constexpr int64_t kBlockRows = 40 * kInt8MaxTileRows;
// Inputs that one thread brings into tiles at a time.
constexpr int64_t kGatherDepth = 256;
// Below this many weights a parallel region costs more than it saves.
constexpr int64_t kParallelWeights = 32 << 10;

inline float to_float(float value) { return value; }
inline float to_float(BFloat16 value) { return value.to_float(); }
inline void store(float value, float* to) { *to = value; }
inline void store(float value, BFloat16* to) { *to = BFloat16::from_float(value); }

// A block of rows cut into tiles of nearly equal height.
struct Tiling {
  Tiling(int64_t rows, int max_rows) : rows(rows), count((rows + max_rows - 1) / max_rows) {}
  int64_t begin(int64_t tile) const { return tile * rows / count; }
  int height(int64_t tile) const { return static_cast<int>(begin(tile + 1) - begin(tile)); }

  int64_t rows;
  int64_t count;
};

template <typename T>
class Int8Linear {
 public:
  Int8Linear(const Int8Input& x, const Int8Weight& weight, const void* bias, void* out)
      : x_(static_cast<const T*>(x.data)),
        row_stride_(x.row_stride),
        weight_(weight),
        bias_(static_cast<const T*>(bias)),
        out_(static_cast<T*>(out)),
        panels_((weight.out_features + kWidth - 1) / kWidth),
        kernels_(int8_kernels()) {}

  void run(int64_t first_row, int64_t rows, float* scratch, int threads) const {
    const Tiling tiling(rows, kernels_.max_rows);
    const int64_t depth = weight_.in_features;
    // Every tile takes the same groups of panels: the widest that one of them wants.
    const int group = kernels_.tiles[tiling.height(0) - 1].group;
    const int64_t groups = (panels_ + group - 1) / group;
    const bool parallel = threads > 1 && depth * weight_.out_features >= kParallelWeights;
    const float* inputs = tiled_already(rows, first_row);
#pragma omp parallel num_threads(threads) if (parallel)
    {
      if (inputs == nullptr) gather(tiling, first_row, scratch);
#pragma omp for schedule(static)
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t panel = g * group;
        const auto count = static_cast<int>(std::min<int64_t>(group, panels_ - panel));
        for (int64_t t = 0; t < tiling.count; ++t) {
          const int64_t begin = tiling.begin(t);
          const float* tile = (inputs == nullptr ? scratch : inputs) + begin * depth;
          multiply(tile, tiling.height(t), panel, count, first_row + begin);
        }
      }
    }
  }

 private:
  // A single float row lies as a tile does.
  const float* tiled_already(int64_t rows, int64_t first_row) const {
    if constexpr (std::is_same_v<T, float>) {
      if (rows == 1) return x_ + first_row * row_stride_;
    }
    return nullptr;
  }

  // Within a parallel region: writes every tile's inputs one k after another, as the kernels read them.
  void gather(const Tiling& tiling, int64_t first_row, float* scratch) const {
    const int64_t depth = weight_.in_features;
#pragma omp for schedule(static) collapse(2)
    for (int64_t t = 0; t < tiling.count; ++t) {
      for (int64_t from = 0; from < depth; from += kGatherDepth) {
        const int64_t begin = tiling.begin(t);
        const int rows = tiling.height(t);
        float* to = scratch + begin * depth;
        for (int r = 0; r < rows; ++r) {
          const T* x = x_ + (first_row + begin + r) * row_stride_;
          for (int64_t k = from; k < std::min(from + kGatherDepth, depth); ++k) to[k * rows + r] = to_float(x[k]);
        }
      }
    }
  }

  // One tile by `count` panels from `panel` on.
  void multiply(const float* x, int rows, int64_t panel, int count, int64_t first_row) const {
    const Int8TileKernel& kernel = kernels_.tiles[rows - 1];
    const int64_t depth = weight_.in_features;
    alignas(64) float sums[kInt8MaxTileRows * kWidth];
    int done = 0;
    while (done < count) {
      const int step = count - done >= kernel.group ? kernel.group : 1;
      (step == 1 ? kernel.single : kernel.grouped)(x, weight_.values + (panel + done) * depth * kWidth, depth, sums);
      for (int p = 0; p < step; ++p) finish(sums + p * rows * kWidth, rows, panel + done + p, first_row);
      done += step;
    }
  }

  void finish(const float* sums, int rows, int64_t panel, int64_t first_row) const {
    const int64_t channel = panel * kWidth;
    const int64_t width = std::min(kWidth, weight_.out_features - channel);
    for (int r = 0; r < rows; ++r) {
      T* to = out_ + (first_row + r) * weight_.out_features + channel;
      for (int64_t c = 0; c < width; ++c) {
        const float scaled = sums[r * kWidth + c] * weight_.scales[channel + c];
        store(bias_ == nullptr ? scaled : scaled + to_float(bias_[channel + c]), to + c);
      }
    }
  }

  const T* x_;
  int64_t row_stride_;
  Int8Weight weight_;
  const T* bias_;
  T* out_;
  int64_t panels_;
  Int8KernelSet kernels_;
};

template <typename T>
void run_blocks(const Int8Input& x, const Int8Weight& weight, const void* bias, void* out, int threads) {
  // Kept between calls: a step makes one call per layer.
  thread_local std::vector<float> scratch;
  const auto needed = static_cast<size_t>(std::min(x.rows, kBlockRows) * weight.in_features);
  if (scratch.size() < needed) scratch.resize(needed);
  const Int8Linear<T> linear(x, weight, bias, out);
  for (int64_t row = 0; row < x.rows; row += kBlockRows) {
    linear.run(row, std::min(kBlockRows, x.rows - row), scratch.data(), threads);
  }
}

}  // namespace

void int8_linear(const Int8Input& x, const Int8Weight& weight, const void* bias, void* out, int threads) {
  switch (x.dtype) {
    case Dtype::kFloat32:
      return run_blocks<float>(x, weight, bias, out, threads);
    case Dtype::kBFloat16:
      return run_blocks<BFloat16>(x, weight, bias, out, threads);
    default:
      throw std::invalid_argument("the input of an int8 layer must be float32 or bfloat16");
  }
}

}  // namespace ruprompt
