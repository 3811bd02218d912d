// What a back end gives: the binary matrix product and the passes over floats, for one instruction
// set. One source file a back end, compiled with the flags of its instruction set. Such a file
// includes no header of the C++ library: an inline function compiled for AVX-512 must never be the
// copy that the linker keeps for everyone.
//
// Every back end computes the same bits. Integers are exact; floats keep to three rules: a product
// and a sum are rounded separately (no fused multiply-add; -ffp-contract=off), lanes are channels
// (or outputs) and never mix, and a sum over pixels or inputs runs in the order given here.
#pragma once

#include <stddef.h>
#include <stdint.h>

// What is not so here would give other bits, without a word.
#if defined(__FAST_MATH__)
#error "the engine is not compiled with -ffast-math: it would give other bits than other builds"
#endif
#if __FLT_EVAL_METHOD__ != 0 && __FLT_EVAL_METHOD__ != 16  // 16: halves are, too
#error "the engine needs floats that are rounded after every operation (on x86: -mfpmath=sse)"
#endif
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the engine packs bits for little-endian machines"
#endif

namespace bicrossnet {

// Pixels of one chunk, the unit of work of a thread and of the partial sums over pixels. A part of
// the definition of the results: sums run over the pixels of a chunk, then over the chunks.
constexpr int kChunkPixels = 64;

// dots[p][c] = depth_bits - 2 * popcount(rows[p] ^ weights[c]), c in [channel_begin, channel_end).
struct ProductArguments {
  const uint8_t* rows;   // [pixels] rows of row_bytes, row_stride bytes apart; no alignment
  size_t row_stride;
  int pixels;            // 1 to kChunkPixels
  size_t row_bytes;      // a multiple of Product::row_granule; padding bits are 0
  const uint8_t* packed; // what pack wrote
  int channel_begin;     // a multiple of Product::channel_tile
  int channel_end;       // a multiple of channel_tile, or the number of channels
  int depth_bits;        // without padding
  int16_t* dots;         // row of pixel 0, channel 0
  size_t dot_stride;     // in elements
  uint8_t* scratch;      // scratch_bytes(row_bytes), aligned to 64
};

struct Product {
  size_t row_granule;
  int channel_tile;
  // Bytes of the packed weights, a multiple of 64.
  size_t (*packed_bytes)(int channels, size_t row_bytes);
  // weights: [channels][row_bytes], padding bits 0. packed: aligned to 64; pack writes all of it.
  void (*pack)(const uint8_t* weights, int channels, size_t row_bytes, uint8_t* packed);
  size_t (*scratch_bytes)(size_t row_bytes);
  void (*multiply)(const ProductArguments& arguments);
};

// Where a pass writes a map: the floats, their sums over the chunk, and the signs that the next
// one or two units take.
struct MapOutput {
  float* map;                  // pixel 0, first channel of this writer
  size_t stride;               // floats between pixels
  float* sums;                 // [channels], of this chunk alone
  int sign_count;              // 0, 1 or 2
  const float* thresholds[2];  // [channels]: bit 1 where value >= threshold
  uint8_t* signs[2];           // pixel 0, first channel of this writer (byte aligned)
  size_t sign_stride;          // bytes between pixels
};

struct StemArguments {
  const float* image;    // [3][height][width]
  int height, width;
  const float* weight;   // [27][channels]: tap (in, row, column) major
  const float* gain;
  const float* offset;
  int channels;
  int pixel_begin, pixel_end;  // of the output, height / 2 x width / 2
  MapOutput output;
};

// sums[c] = sum over the chunk's pixels, in order, of prelu(dots * gain + offset).
struct ActivatedSumArguments {
  const int16_t* dots;   // of the chunk's first pixel, channel 0
  size_t dot_stride;
  int pixels;
  int channel_begin, channel_end;
  const float* gain;
  const float* offset;
  const float* slope;
  float* sums;           // [channels]; only the range is written
};

// y = prelu(dots * gain + offset) * gate [* residual] + offset2 + residual, where gate holds
// sigmoid * gain2 already, and residual is x, or prelu(x, residual_slope), averaged over 2x2 at
// stride 2 as ((a + b) + (c + d)) * 0.25 with a, b the upper row.
struct FinishArguments {
  const int16_t* dots;   // of output pixel 0, channel 0
  size_t dot_stride;
  const float* x;        // of input pixel 0, channel 0
  size_t x_stride;
  int x_width;           // in pixels; stride 2 only
  int stride;
  int channel_begin, channel_end;
  int pixel_begin, pixel_end;  // of the output
  const float* gain;
  const float* offset;
  const float* slope;
  const float* gate;
  const float* offset2;
  const float* residual_slope;  // null: not elementwise
  MapOutput output;             // map may be x itself (stride 1)
};

// Outputs whose weights lie together; vectors are at most as wide.
constexpr int kLinearBlock = 16;

// outputs[j] for j in [begin, end): ((s0 + s1) + (s2 + s3)) + bias[j], where sk runs over the
// inputs i = k, k + 4, ... in order: sk += weight of (i, j) * inputs[i].
struct LinearArguments {
  const float* inputs;
  int input_count;
  const float* weight;  // [blocks of kLinearBlock outputs][input_count][kLinearBlock]
  const float* bias;    // as long as `outputs`
  int begin, end;       // multiples of kLinearBlock
  float* outputs;       // rounded up to whole blocks
};

struct Passes {
  void (*stem)(const StemArguments&);
  void (*sum_activated)(const ActivatedSumArguments&);
  void (*finish)(const FinishArguments&);
  void (*linear)(const LinearArguments&);
  // gate[c] = gain[c] / (1 + exp(-gate[c])): the sigmoid times the gain of the norm after it
  void (*gate)(float* gate, const float* gain, int count);
  // Writes a given map again as a pass would: for the first input of a unit that is run alone.
  void (*copy)(const float* x, int channels, int pixel_begin, int pixel_end,
               const MapOutput& output);
  // sums[c] = sum over the pixels [begin, end), in order, of prelu(x, slope).
  void (*sum_map)(const float* x, int channels, int pixel_begin, int pixel_end, const float* slope,
                  float* sums);
};

struct Backend {
  const char* name;
  bool (*runs_here)();
  Product product;
  Passes passes;
};

extern const Backend scalar_backend;
#if defined(__x86_64__)
extern const Backend x86_64_v2_backend, avx2_backend, avx512_backend;
#elif defined(__aarch64__)
extern const Backend neon_backend, neon_dot_backend;
#endif

// Best first, ended by a null.
extern const Backend* const kBackends[];

}  // namespace bicrossnet
