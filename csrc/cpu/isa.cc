#include "cpu/isa.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

namespace ruprompt {
namespace {

Isa supported_isa() {
#ifdef RUPROMPT_X86
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512) return Isa::kAvx512;
  if (avx2) return Isa::kAvx2;
#endif
  return Isa::kGeneric;
}

Isa requested_isa() {
  const char* value = std::getenv("RUPROMPT_FAST_ISA");
  if (value == nullptr || *value == '\0') return Isa::kAvx512;
  const std::string name(value);
  for (const Isa isa : {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512}) {
    if (name == isa_name(isa)) return isa;
  }
  throw std::invalid_argument("RUPROMPT_FAST_ISA is '" + name + "'; it must be generic, avx2 or avx512");
}

}  // namespace

Isa cpu_isa() {
  static const Isa isa = std::min(supported_isa(), requested_isa());
  return isa;
}

std::string isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "generic";
  }
}

}  // namespace ruprompt
