// Element types of the tensors that cross from Python, and their conversion to the type that sums run in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace ruprompt {

enum class Dtype { kFloat64, kFloat32, kFloat16, kBFloat16 };

inline Dtype parse_dtype(const std::string& name) {
  if (name == "float32") return Dtype::kFloat32;
  if (name == "float16") return Dtype::kFloat16;
  if (name == "bfloat16") return Dtype::kBFloat16;
  if (name == "float64") return Dtype::kFloat64;
  throw std::invalid_argument("unknown dtype '" + name + "'");
}

inline size_t dtype_bytes(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64:
      return 8;
    case Dtype::kFloat32:
      return 4;
    default:
      return 2;
  }
}

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Brain float: the upper half of a float32.
struct BFloat16 {
  uint16_t bits;

  float to_float() const { return bits_to_float(static_cast<uint32_t>(bits) << 16); }

  // Rounds to nearest, ties to even; a NaN stays a NaN.
  static BFloat16 from_float(float value) {
    const uint32_t wide = float_to_bits(value);
    if ((wide & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((wide >> 16) | 0x40u)};
    return {static_cast<uint16_t>((wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16)};
  }
};

// IEEE half precision, in integer arithmetic so that it needs no instruction-set extension.
struct Float16 {
  uint16_t bits;

  float to_float() const {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
    const uint32_t rest = static_cast<uint32_t>(bits & 0x7fffu) << 13;
    const uint32_t exponent = rest & 0x0f800000u;
    if (exponent == 0x0f800000u) return bits_to_float(sign | (rest + 0x70000000u));  // infinity or NaN
    if (exponent != 0) return bits_to_float(sign | (rest + 0x38000000u));
    // Subnormal: the hidden bit of 2^-14 is added by exponent and taken away as a number.
    const float magnitude = bits_to_float(rest + 0x38800000u) - bits_to_float(0x38800000u);
    return bits_to_float(sign | float_to_bits(magnitude));
  }

  // Rounds to nearest, ties to even; a NaN stays a NaN and what is too large becomes infinite.
  static Float16 from_float(float value) {
    const uint32_t wide = float_to_bits(value);
    const auto sign = static_cast<uint16_t>((wide >> 16) & 0x8000u);
    const uint32_t magnitude = wide & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
    if (magnitude >= 0x47800000u) return {static_cast<uint16_t>(sign | 0x7c00u)};
    if (magnitude < 0x38800000u) {
      // Adding 0.5 puts the last place of the sum at 2^-24, the smallest half: the processor's rounding does the rest.
      const uint32_t shifted = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
      return {static_cast<uint16_t>(sign | shifted)};
    }
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
  }
};

}  // namespace ruprompt
