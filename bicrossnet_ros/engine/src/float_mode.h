// The arithmetic that the results are defined with: rounding to nearest, no float flushed to zero.
// A thread may come with another: a library built with -ffast-math, or a call of the host's,
// changes it, and the results would depend on which thread computes what.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace bicrossnet {

// Sets it for as long as this lives; elsewhere than on x86-64 and ARM it stays as it is.
class DefaultFloatMode {
 public:
  DefaultFloatMode() : before_(read()) { write(kDefault); }
  ~DefaultFloatMode() { write(before_); }
  DefaultFloatMode(const DefaultFloatMode&) = delete;
  DefaultFloatMode& operator=(const DefaultFloatMode&) = delete;

 private:
#if defined(__x86_64__)
  using Mode = unsigned;
  static constexpr Mode kDefault = 0x1f80;  // no exception traps
  static Mode read() { return _mm_getcsr(); }
  static void write(Mode mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
  using Mode = uint64_t;
  static constexpr Mode kDefault = 0;
  static Mode read() {
    Mode mode;
    asm volatile("mrs %0, FPCR" : "=r"(mode));
    return mode;
  }
  static void write(Mode mode) { asm volatile("msr FPCR, %0" : : "r"(mode) : "memory"); }
#else
  using Mode = int;
  static constexpr Mode kDefault = 0;
  static Mode read() { return kDefault; }
  static void write(Mode) {}
#endif

  const Mode before_;
};

}  // namespace bicrossnet
