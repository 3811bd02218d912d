#include "cpu_arm.h"

#if defined(__aarch64__)

#include <stdint.h>

#if defined(__linux__)
#include <sys/auxv.h>
#endif

namespace bicrossnet {
namespace {

#if defined(__linux__)

// Named here because older system headers lack them.
constexpr unsigned long kIdRegisters = 1ul << 11;
constexpr unsigned long kDotProduct = 1ul << 20;

bool kernel_reports(unsigned long capability) {
  return (getauxval(AT_HWCAP) & capability) != 0;
}

// Main ID register; 0 where the kernel does not answer for it.
uint64_t main_id() {
  if (!kernel_reports(kIdRegisters)) return 0;
  uint64_t id;
  asm("mrs %0, MIDR_EL1" : "=r"(id));
  return id;
}

bool is_in_order(uint64_t id) {
  constexpr uint64_t kArm = 0x41, kA53 = 0xd03, kA35 = 0xd04, kA55 = 0xd05;
  const uint64_t implementer = id >> 24 & 0xff, part = id >> 4 & 0xfff;
  return implementer == kArm && (part == kA35 || part == kA53 || part == kA55);
}

#else

bool kernel_reports(unsigned long) { return false; }
constexpr unsigned long kDotProduct = 0;
uint64_t main_id() { return 0; }
bool is_in_order(uint64_t) { return false; }

#endif

}  // namespace

bool has_dot_product() {
  static const bool has = kernel_reports(kDotProduct);
  return has;
}

// On a chip of two kinds of cores this is the kind of the first call: a matter of speed alone.
// The macro lets tests run this path where no such core is, nor emulated.
bool loads_in_halves() {
#if defined(BCN_LOADS_IN_HALVES)
  return true;
#endif
  static const bool halves = is_in_order(main_id());
  return halves;
}

}  // namespace bicrossnet

#endif
