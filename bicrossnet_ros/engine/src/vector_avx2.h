// Eight floats in an AVX register; see vector_scalar.h for what the members mean.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace bicrossnet {
namespace {

struct Avx2Vector {
  using Floats = __m256;
  static constexpr int width = 8;
  static constexpr int block = 32;

  static Floats set(float value) { return _mm256_set1_ps(value); }
  static Floats load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Floats x) { _mm256_storeu_ps(to, x); }
  static Floats load_dots(const int16_t* from) {
    const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(words));
  }
  static Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats prelu(Floats x, Floats slope) {
    const __m256 keep = _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GE_OQ);
    return _mm256_blendv_ps(_mm256_mul_ps(x, slope), x, keep);
  }
  static uint32_t at_least(Floats x, Floats threshold) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(x, threshold, _CMP_GE_OQ)));
  }
};

}  // namespace
}  // namespace bicrossnet
