// The binary matrix product on NEON; with BCN_NEON_DOT, on its dot product instructions.
//
// Lanes are channels, so that nothing is summed across a vector at the end and a short depth costs
// no padding. A step takes kStepBytes bytes of depth: those of a pixel are repeated over a vector,
// those of a channel lie in one lane of four vectors of channels. Exclusive or, count, add: three
// instructions for 128 products, on a tile of 4 pixels x 4 vectors.
//
// Bytes are added as bytes, which hold 31 steps and are then widened. The dot product adds four
// of them to a sum of 32 bits for the price of one addition, and nothing is widened.
#pragma once

#include "backend.h"
#include "cpu_arm.h"

#include <arm_neon.h>
#include <string.h>

namespace bicrossnet {
namespace {

constexpr int kTilePixels = 4;
constexpr int kTileVectors = 4;
constexpr size_t kWeightBytes = 16 * kTileVectors;  // of one step

#if defined(BCN_NEON_DOT)

using Counts = uint32x4_t;
constexpr size_t kStepBytes = 4;
// The assembler is told here, so that no flag is needed: compilers spell it in different ways.
#if defined(__ARM_FEATURE_DOTPROD)
#define BCN_NEEDS
#else
#define BCN_NEEDS ".arch armv8.2-a+dotprod\n"
#endif
#define BCN_REPEAT(to, pixel) "ld1r {v" #to ".4s}, [%[pixel" #pixel "]]\n"
#define BCN_ADVANCE(pixel) "add %[pixel" #pixel "], %[pixel" #pixel "], #4\n"
#define BCN_ADD(sum, from) "udot %[sum" sum "].4s, v" #from ".16b, v20.16b\n"

#else

using Counts = uint8x16_t;
constexpr size_t kStepBytes = 2;
constexpr int kMostSteps = 31;  // 31 * 8 bits fit a byte
#define BCN_NEEDS
#define BCN_REPEAT(to, pixel) "ld1r {v" #to ".8h}, [%[pixel" #pixel "]]\n"
#define BCN_ADVANCE(pixel) "add %[pixel" #pixel "], %[pixel" #pixel "], #2\n"
#define BCN_ADD(sum, from) "add %[sum" sum "].16b, %[sum" sum "].16b, v" #from ".16b\n"

#endif

constexpr int kVectorChannels = 16 / kStepBytes;
constexpr int kTileChannels = kTileVectors * kVectorChannels;

struct Tile {
  Counts sums[kTilePixels][kTileVectors];
};

struct TileInputs {
  const uint8_t* pixels[kTilePixels];
  const uint8_t* weights;
};

// The inner loop is assembly because the order of its instructions is what an in-order core runs:
// four chains side by side, and beside a vector instruction never more than one other, mostly a
// load for the next step. v0-v3: weights, v4-v7: pixels, v16-v19: what is counted, v20: ones.

// Pixel p, which is in vector x, with four vectors of weights. s*: what follows an instruction.
#define BCN_PIXEL(p, x, s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11) \
  "eor v16.16b, v" #x ".16b, v0.16b\n" s0                                 \
  "eor v17.16b, v" #x ".16b, v1.16b\n" s1                                 \
  "eor v18.16b, v" #x ".16b, v2.16b\n" s2                                 \
  "eor v19.16b, v" #x ".16b, v3.16b\n" s3                                 \
  "cnt v16.16b, v16.16b\n" s4                                             \
  "cnt v17.16b, v17.16b\n" s5                                             \
  "cnt v18.16b, v18.16b\n" s6                                             \
  "cnt v19.16b, v19.16b\n" s7                                             \
  BCN_ADD(#p "0", 16) s8                                                  \
  BCN_ADD(#p "1", 17) s9                                                  \
  BCN_ADD(#p "2", 18) s10                                                 \
  BCN_ADD(#p "3", 19) s11

#define BCN_STEP_WITHOUT_LOADS                \
  BCN_PIXEL(0, 4, , , , , , , , , , , , )     \
  BCN_PIXEL(1, 5, , , , , , , , , , , , )     \
  BCN_PIXEL(2, 6, , , , , , , , , , , , )     \
  BCN_PIXEL(3, 7, , , , , , , , , , , , )

#define BCN_NEXT_WEIGHTS "add %[weights], %[weights], #64\n"
#define BCN_WHOLE(to, at) "ldr q" #to ", [%[weights], #" #at "]\n"

#define BCN_STEP_WHOLE                                                                      \
  BCN_PIXEL(0, 4, , , , , BCN_REPEAT(4, 0), BCN_ADVANCE(0), , , , , , )                     \
  BCN_PIXEL(1, 5, , , , , BCN_REPEAT(5, 1), BCN_ADVANCE(1), , , , , , )                     \
  BCN_PIXEL(2, 6, , , , , BCN_REPEAT(6, 2), BCN_ADVANCE(2), , , , , , )                     \
  BCN_PIXEL(3, 7, , BCN_WHOLE(0, 0), BCN_WHOLE(1, 16), BCN_WHOLE(2, 32), BCN_WHOLE(3, 48),  \
            BCN_REPEAT(7, 3), BCN_ADVANCE(3), BCN_NEXT_WEIGHTS, , , , )

// Cortex-A53 and A55 stall on a load of 128 bits, but hide one of 64 bits and an insertion.
#define BCN_LOWER(to, at) "ldr d" #to ", [%[weights], #" #at "]\n"
#define BCN_UPPER(to, at) "ldr x" #to ", [%[weights], #" #at "]\n"
#define BCN_JOIN(to, upper) "ins v" #to ".d[1], x" #upper "\n"

#define BCN_STEP_HALVES                                                                     \
  BCN_PIXEL(0, 4, , , , , BCN_REPEAT(4, 0), BCN_ADVANCE(0), , , , , , )                     \
  BCN_PIXEL(1, 5, , , , , BCN_REPEAT(5, 1), BCN_ADVANCE(1), , , , , , )                     \
  BCN_PIXEL(2, 6, , , , , BCN_REPEAT(6, 2), BCN_ADVANCE(2), , , BCN_UPPER(9, 8),            \
            BCN_UPPER(10, 24), BCN_UPPER(11, 40), BCN_UPPER(12, 56))                        \
  BCN_PIXEL(3, 7, BCN_LOWER(0, 0), BCN_LOWER(1, 16), BCN_LOWER(2, 32), BCN_LOWER(3, 48),    \
            BCN_JOIN(0, 9), BCN_JOIN(1, 10), BCN_JOIN(2, 11), BCN_JOIN(3, 12),              \
            BCN_REPEAT(7, 3), BCN_ADVANCE(3), BCN_NEXT_WEIGHTS, )

// The step in the loop loads for the one after it, so the last one stands alone and nothing is
// read past the end.
#define BCN_LOOP(step)                                                                      \
  BCN_WHOLE(0, 0) BCN_WHOLE(1, 16) BCN_WHOLE(2, 32) BCN_WHOLE(3, 48) BCN_NEXT_WEIGHTS       \
  BCN_REPEAT(4, 0) BCN_REPEAT(5, 1) BCN_REPEAT(6, 2) BCN_REPEAT(7, 3)                       \
  BCN_ADVANCE(0) BCN_ADVANCE(1) BCN_ADVANCE(2) BCN_ADVANCE(3)                               \
  BCN_CLEAR(0) BCN_CLEAR(1) BCN_CLEAR(2) BCN_CLEAR(3)                                       \
  "movi v20.16b, #1\n"                                                                      \
  "cbz %w[more], 2f\n"                                                                      \
  "1:\n"                                                                                    \
  step                                                                                      \
  "subs %w[more], %w[more], #1\n"                                                           \
  "b.ne 1b\n"                                                                               \
  "2:\n"                                                                                    \
  BCN_STEP_WITHOUT_LOADS

#define BCN_CLEAR(p)               \
  "movi %[sum" #p "0].2d, #0\n"    \
  "movi %[sum" #p "1].2d, #0\n"    \
  "movi %[sum" #p "2].2d, #0\n"    \
  "movi %[sum" #p "3].2d, #0\n"

#define BCN_SUM(p, v) [sum##p##v] "=&w"(tile.sums[p][v])
#define BCN_SUMS(p) BCN_SUM(p, 0), BCN_SUM(p, 1), BCN_SUM(p, 2), BCN_SUM(p, 3)

#define BCN_RUN(step)                                                                       \
  asm volatile(BCN_NEEDS BCN_LOOP(step)                                                     \
               : BCN_SUMS(0), BCN_SUMS(1), BCN_SUMS(2), BCN_SUMS(3),                        \
                 [pixel0] "+&r"(in.pixels[0]), [pixel1] "+&r"(in.pixels[1]),                \
                 [pixel2] "+&r"(in.pixels[2]), [pixel3] "+&r"(in.pixels[3]),                \
                 [weights] "+&r"(in.weights), [more] "+&r"(more)                            \
               :                                                                            \
               : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16", "v17", "v18",       \
                 "v19", "v20", "x9", "x10", "x11", "x12", "cc", "memory")

// Counts the differing bits of at least one step, and advances the inputs past them.
template <bool kHalves>
inline Tile count(TileInputs& in, int steps) {
  Tile tile;
  int more = steps - 1;
  if (kHalves) BCN_RUN(BCN_STEP_HALVES);
  else BCN_RUN(BCN_STEP_WHOLE);
  return tile;
}

inline int16x8_t dots_of(uint16x8_t differing, int depth_bits) {
  const uint16x8_t depth = vdupq_n_u16(static_cast<uint16_t>(depth_bits));
  return vreinterpretq_s16_u16(vsubq_u16(depth, vaddq_u16(differing, differing)));
}

constexpr int kTileResults = kTileChannels / 8;

// Differing bits by channel, eight to a vector.
struct TileCounts {
  uint16x8_t counts[kTilePixels][kTileResults];
};

#if defined(BCN_NEON_DOT)

template <bool kHalves>
TileCounts count_all(TileInputs in, int steps) {
  const Tile tile = count<kHalves>(in, steps);
  TileCounts all;
  for (int p = 0; p < kTilePixels; ++p) {
    for (int i = 0; i < kTileResults; ++i) {
      all.counts[p][i] = vcombine_u16(vmovn_u32(tile.sums[p][2 * i]),
                                      vmovn_u32(tile.sums[p][2 * i + 1]));
    }
  }
  return all;
}

#else

// Short depths end after one round of the loop.
template <bool kHalves>
TileCounts count_all(TileInputs in, int steps) {
  TileCounts all;
  for (int done = 0; done < steps; done += kMostSteps) {
    const Tile tile = count<kHalves>(in, steps - done < kMostSteps ? steps - done : kMostSteps);
    for (int p = 0; p < kTilePixels; ++p) {
      for (int i = 0; i < kTileResults; ++i) {
        all.counts[p][i] = done == 0 ? vpaddlq_u8(tile.sums[p][i])
                                     : vpadalq_u8(all.counts[p][i], tile.sums[p][i]);
      }
    }
  }
  return all;
}

#endif

// A whole tile, all its loops unrolled, so that the counts stay in registers.
inline void store_tile(const TileCounts& tile, int depth_bits, int16_t* dots, size_t stride) {
  for (int p = 0; p < kTilePixels; ++p, dots += stride) {
    for (int i = 0; i < kTileResults; ++i) {
      vst1q_s16(dots + 8 * i, dots_of(tile.counts[p][i], depth_bits));
    }
  }
}

// Of a tile that reaches over an edge, only what is asked for.
inline void store_part(const TileCounts& tile, int depth_bits, int pixels, int channels,
                       int16_t* dots, size_t stride) {
  int16_t whole[kTilePixels][kTileChannels];
  store_tile(tile, depth_bits, whole[0], kTileChannels);
  for (int p = 0; p < pixels; ++p) {
    memcpy(dots + p * stride, whole[p], channels * sizeof(int16_t));
  }
}

template <bool kHalves>
void multiply_neon(const ProductArguments& a) {
  const int steps = static_cast<int>(a.row_bytes / kStepBytes);
  for (int c = a.channel_begin; c < a.channel_end; c += kTileChannels) {
    const int left = a.channel_end - c;
    const int channels = left < kTileChannels ? left : kTileChannels;
    TileInputs in;
    in.weights = a.packed + c / kTileChannels * (steps * kWeightBytes);
    for (int first = 0; first < a.pixels; first += kTilePixels) {
      const int pixels = a.pixels - first < kTilePixels ? a.pixels - first : kTilePixels;
      for (int p = 0; p < kTilePixels; ++p) {
        // What is missing in the last tile is computed from its last pixel, and dropped.
        in.pixels[p] = a.rows + (first + (p < pixels ? p : pixels - 1)) * a.row_stride;
      }
      const TileCounts counts = count_all<kHalves>(in, steps);
      int16_t* dots = a.dots + first * a.dot_stride + c;
      if (pixels == kTilePixels && channels == kTileChannels) {
        store_tile(counts, a.depth_bits, dots, a.dot_stride);
      } else {
        store_part(counts, a.depth_bits, pixels, channels, dots, a.dot_stride);
      }
    }
  }
}

inline void multiply_on_this_core(const ProductArguments& a) {
  loads_in_halves() ? multiply_neon<true>(a) : multiply_neon<false>(a);
}

inline size_t packed_bytes_neon(int channels, size_t row_bytes) {
  const size_t tiles = (channels + kTileChannels - 1) / kTileChannels;
  return tiles * (row_bytes / kStepBytes) * kWeightBytes;
}

// [tile of channels][step][channel of the tile][bytes of the step]
inline void pack_neon(const uint8_t* weights, int channels, size_t row_bytes, uint8_t* packed) {
  const size_t tile_bytes = kTileChannels * row_bytes;
  memset(packed, 0, packed_bytes_neon(channels, row_bytes));
  for (int c = 0; c < channels; ++c) {
    uint8_t* to = packed + c / kTileChannels * tile_bytes + c % kTileChannels * kStepBytes;
    for (size_t i = 0; i < row_bytes; i += kStepBytes, to += kWeightBytes) {
      memcpy(to, weights + c * row_bytes + i, kStepBytes);
    }
  }
}

inline size_t no_scratch(size_t) { return 0; }

constexpr Product kNeonProduct = {kStepBytes,        kTileChannels, packed_bytes_neon,
                                  pack_neon,         no_scratch,    multiply_on_this_core};

}  // namespace
}  // namespace bicrossnet
