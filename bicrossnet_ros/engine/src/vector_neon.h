// Four lanes of NEON; the members are those of ScalarVector, and so are the bits.
#pragma once

#include <arm_neon.h>
#include <stdint.h>

namespace bicrossnet {
namespace {

struct NeonVector {
  using Floats = float32x4_t;
  static constexpr int width = 4;
  static constexpr int block = 16;

  static Floats set(float value) { return vdupq_n_f32(value); }
  static Floats load(const float* from) { return vld1q_f32(from); }
  static void store(float* to, Floats x) { vst1q_f32(to, x); }
  static Floats load_dots(const int16_t* from) {
    return vcvtq_f32_s32(vmovl_s16(vld1_s16(from)));
  }
  static Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
  static Floats multiply(Floats a, Floats b) { return vmulq_f32(a, b); }
  // A comparison and a selection: a maximum and a minimum would lose NaN and the sign of zero.
  static Floats prelu(Floats x, Floats slope) {
    return vbslq_f32(vcgezq_f32(x), x, vmulq_f32(x, slope));
  }
  static uint32_t at_least(Floats x, Floats threshold) {
    const uint32x4_t lane_bits = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(vcgeq_f32(x, threshold), lane_bits));
  }
};

}  // namespace
}  // namespace bicrossnet
