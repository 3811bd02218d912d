// A vector of one lane. Every other vector type has the same members and gives the same bits.
#pragma once

#include <stdint.h>
#include <string.h>

namespace bicrossnet {
namespace {

struct ScalarVector {
  using Floats = float;
  static constexpr int width = 1;
  // Channels that a pass handles at once: a multiple of 8 and of width. Whole maps are walked in
  // blocks of this; channels left over are walked by ScalarVector, in blocks of 8.
  static constexpr int block = 8;

  static Floats set(float value) { return value; }
  static Floats load(const float* from) { return *from; }
  static void store(float* to, Floats x) { *to = x; }
  static Floats load_dots(const int16_t* from) { return static_cast<float>(*from); }
  static Floats add(Floats a, Floats b) { return a + b; }
  static Floats multiply(Floats a, Floats b) { return a * b; }
  // x where x >= 0, else x * slope.
  static Floats prelu(Floats x, Floats slope) { return x >= 0.0f ? x : x * slope; }
  // Bit i: lane i of x >= threshold (false for NaN).
  static uint32_t at_least(Floats x, Floats threshold) { return x >= threshold ? 1 : 0; }
};

}  // namespace
}  // namespace bicrossnet
