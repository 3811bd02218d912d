// The binary matrix product as its definition reads: the oracle of all others.
#pragma once

#include "backend.h"

#include <string.h>

namespace bicrossnet {
namespace {

inline int mismatches(const uint8_t* a, const uint8_t* b, size_t bytes) {
  int count = 0;
  for (size_t i = 0; i < bytes; i += 8) {
    uint64_t x, y;
    memcpy(&x, a + i, 8);
    memcpy(&y, b + i, 8);
    count += __builtin_popcountll(x ^ y);
  }
  return count;
}

inline void multiply_scalar(const ProductArguments& a) {
  for (int p = 0; p < a.pixels; ++p) {
    const uint8_t* row = a.rows + p * a.row_stride;
    for (int c = a.channel_begin; c < a.channel_end; ++c) {
      const int differing = mismatches(row, a.packed + c * a.row_bytes, a.row_bytes);
      a.dots[p * a.dot_stride + c] = static_cast<int16_t>(a.depth_bits - 2 * differing);
    }
  }
}

inline size_t packed_bytes_scalar(int channels, size_t row_bytes) {
  return (channels * row_bytes + 63) / 64 * 64;
}

inline void pack_scalar(const uint8_t* weights, int channels, size_t row_bytes, uint8_t* packed) {
  memset(packed, 0, packed_bytes_scalar(channels, row_bytes));
  memcpy(packed, weights, channels * row_bytes);
}

inline size_t no_scratch(size_t) { return 0; }

constexpr Product kScalarProduct = {8, 1, packed_bytes_scalar, pack_scalar, no_scratch,
                                    multiply_scalar};

}  // namespace
}  // namespace bicrossnet
