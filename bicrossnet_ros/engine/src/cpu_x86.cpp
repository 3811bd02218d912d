// Reads CPUID and XCR0 by hand: compilers that link without their own runtime library lack
// __builtin_cpu_supports, and some versions of it forget to ask the operating system.
#include "cpu_x86.h"

#if defined(__x86_64__)

#include <cpuid.h>
#include <stdint.h>

namespace bicrossnet {
namespace {

struct Registers {
  unsigned eax, ebx, ecx, edx;
};

// All zero where the CPU does not know the leaf.
Registers cpuid(unsigned leaf) {
  Registers r = {0, 0, 0, 0};
  if (!__get_cpuid_count(leaf, 0, &r.eax, &r.ebx, &r.ecx, &r.edx)) return {0, 0, 0, 0};
  return r;
}

bool has_all(unsigned word, unsigned bits) { return (word & bits) == bits; }

constexpr unsigned bit(int i) { return 1u << i; }

// The register sets that the operating system saves when it switches threads.
bool system_saves(unsigned states) {
  constexpr unsigned kOsXsave = bit(27);
  if (!has_all(cpuid(1).ecx, kOsXsave)) return false;
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return has_all(low, states);
}

constexpr unsigned kXmmYmmStates = bit(1) | bit(2);
constexpr unsigned kMaskZmmStates = bit(5) | bit(6) | bit(7);

}  // namespace

bool cpu_runs_x86_64_v2() {
  // SSE3, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, POPCNT.
  return has_all(cpuid(1).ecx, bit(0) | bit(9) | bit(13) | bit(19) | bit(20) | bit(23));
}

bool cpu_runs_avx2() {
  constexpr unsigned kAvx = bit(28), kAvx2 = bit(5);
  return cpu_runs_x86_64_v2() && has_all(cpuid(1).ecx, kAvx) && has_all(cpuid(7).ebx, kAvx2) &&
         system_saves(kXmmYmmStates);
}

bool cpu_runs_avx512() {
  // F, DQ, BW, VL in EBX; VPOPCNTDQ in ECX.
  const Registers features = cpuid(7);
  return cpu_runs_avx2() && has_all(features.ebx, bit(16) | bit(17) | bit(30) | bit(31)) &&
         has_all(features.ecx, bit(14)) && system_saves(kXmmYmmStates | kMaskZmmStates);
}

}  // namespace bicrossnet

#endif
