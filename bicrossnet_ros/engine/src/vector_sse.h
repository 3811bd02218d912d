// Four floats in an SSE register; see vector_scalar.h for what the members mean.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace bicrossnet {
namespace {

struct SseVector {
  using Floats = __m128;
  static constexpr int width = 4;
  static constexpr int block = 8;

  static Floats set(float value) { return _mm_set1_ps(value); }
  static Floats load(const float* from) { return _mm_loadu_ps(from); }
  static void store(float* to, Floats x) { _mm_storeu_ps(to, x); }
  static Floats load_dots(const int16_t* from) {
    const __m128i words = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return _mm_cvtepi32_ps(_mm_cvtepi16_epi32(words));
  }
  static Floats add(Floats a, Floats b) { return _mm_add_ps(a, b); }
  static Floats multiply(Floats a, Floats b) { return _mm_mul_ps(a, b); }
  static Floats prelu(Floats x, Floats slope) {
    const __m128 keep = _mm_cmpge_ps(x, _mm_setzero_ps());
    return _mm_blendv_ps(_mm_mul_ps(x, slope), x, keep);
  }
  static uint32_t at_least(Floats x, Floats threshold) {
    return static_cast<uint32_t>(_mm_movemask_ps(_mm_cmpge_ps(x, threshold)));
  }
};

}  // namespace
}  // namespace bicrossnet
