// The instruction set that the CPU kernels use, chosen once per process.
#pragma once

#include <string>

namespace ruprompt {

enum class Isa { kGeneric = 0, kAvx2 = 1, kAvx512 = 2 };

// The best set that this processor has; the environment variable RUPROMPT_FAST_ISA (generic, avx2 or avx512)
// lowers it, so that one machine can test every path, and never raises it.
Isa cpu_isa();

// "generic", "avx2" or "avx512".
std::string isa_name(Isa isa);

}  // namespace ruprompt

#if defined(__x86_64__) && defined(__GNUC__)
#define RUPROMPT_X86 1
#define RUPROMPT_TARGET_AVX2 __attribute__((target("avx2,fma,f16c")))
#define RUPROMPT_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")))
#endif
