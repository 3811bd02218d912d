// Sixteen floats in an AVX-512 register; see vector_scalar.h for what the members mean.
#pragma once

#include "intrinsics_avx512.h"

#include <stdint.h>

namespace bicrossnet {
namespace {

struct Avx512Vector {
  using Floats = __m512;
  static constexpr int width = 16;
  static constexpr int block = 32;

  static Floats set(float value) { return _mm512_set1_ps(value); }
  static Floats load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, Floats x) { _mm512_storeu_ps(to, x); }
  static Floats load_dots(const int16_t* from) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(words));
  }
  static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats prelu(Floats x, Floats slope) {
    // Not x >= 0, NaN included, so that every lane with a select of its own is multiplied.
    const __mmask16 scale = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NGE_UQ);
    return _mm512_mask_mul_ps(x, scale, x, slope);
  }
  static uint32_t at_least(Floats x, Floats threshold) {
    return _mm512_cmp_ps_mask(x, threshold, _CMP_GE_OQ);
  }
};

}  // namespace
}  // namespace bicrossnet
