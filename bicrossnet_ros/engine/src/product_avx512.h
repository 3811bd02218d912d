// The binary matrix product with AVX-512 and VPOPCNTDQ: lanes are output channels, 32 bits of
// depth a lane; an input word is broadcast to all of them.
//
// Counting each word alone takes three instructions (xor, popcount, add). Words are counted by
// twos instead: with o a running word of odd bits, w, v two weight words and a, b two inputs,
//   o' = o ^ (a ^ b) ^ (w ^ v)     the new odd bits: one ternary instruction
//   x  = a ^ w
//   t  = carry of o + (a ^ w) + (b ^ v): a function of o, x and o' alone, one ternary instruction
//   twos += popcount(t)
// which is five instructions for two words. It needs a ^ b and w ^ v in place of b and v: the
// weights are stored so, and the inputs are copied so into the scratch, once for all channels.
#pragma once

#include "backend.h"
#include "intrinsics_avx512.h"

#include <string.h>

namespace bicrossnet {
namespace {

using Words = __m512i;  // 16 words of 32 bits

constexpr int kTileChannels = 32;
constexpr int kTileVectors = 2;
constexpr int kGroupPixels = 4;
constexpr size_t kWordBytes = 4;
constexpr size_t kTileWordBytes = kTileChannels * kWordBytes;

// Few words are counted one by one: a pair has a cost of its own, that of the odd bits.
constexpr bool counts_by_twos(size_t words) { return words > 8 || (words % 2 == 1 && words > 1); }

inline size_t round_up(size_t x, size_t granule) { return (x + granule - 1) / granule * granule; }

// The channel of a tile in a lane, such that packing the two vectors to 16 bits, which works
// within 128 bits, leaves the channels in order.
constexpr int channel_of_lane(int vector, int lane) {
  return lane / 4 * 8 + vector * 4 + lane % 4;
}

inline size_t packed_bytes_avx512(int channels, size_t row_bytes) {
  return round_up(channels, kTileChannels) * row_bytes;
}

// Word i of a row whose second words of pairs are joined with the first: an odd first word stands
// alone, since it is the first running word.
inline uint32_t joined_word(const uint8_t* row, size_t i, size_t words) {
  uint32_t word, before;
  memcpy(&word, row + i * kWordBytes, kWordBytes);
  const bool is_second = counts_by_twos(words) && i > 0 && (i % 2 == 1) == (words % 2 == 0);
  if (!is_second) return word;
  memcpy(&before, row + (i - 1) * kWordBytes, kWordBytes);
  return word ^ before;
}

// packed: [tile][word][vector][lane]
inline void pack_avx512(const uint8_t* weights, int channels, size_t row_bytes, uint8_t* packed) {
  const size_t words = row_bytes / kWordBytes;
  for (int tile = 0; tile < channels; tile += kTileChannels) {
    for (size_t i = 0; i < words; ++i) {
      for (int vector = 0; vector < kTileVectors; ++vector) {
        for (int lane = 0; lane < 16; ++lane, packed += kWordBytes) {
          const int channel = tile + channel_of_lane(vector, lane);
          const uint32_t word =
              channel < channels ? joined_word(weights + channel * row_bytes, i, words) : 0;
          memcpy(packed, &word, kWordBytes);
        }
      }
    }
  }
}

inline size_t joined_row_bytes(size_t row_bytes) { return round_up(row_bytes, 64); }

inline size_t scratch_bytes_avx512(size_t row_bytes) {
  return counts_by_twos(row_bytes / kWordBytes) ? kChunkPixels * joined_row_bytes(row_bytes) : 0;
}

// Copies a row with the second words of pairs joined with the first; pairs start at an odd word
// where the number of words is odd.
inline void join_row(const uint8_t* row, size_t words, uint8_t* to) {
  const __mmask16 seconds = words % 2 == 0 ? 0xaaaa : 0x5555;
  __mmask16 joined = words % 2 == 0 ? 0xaaaa : 0x5554;
  Words last = _mm512_setzero_si512();  // the last word before goes on into the next vector
  for (size_t i = 0; i < words; i += 16) {
    const size_t left = words - i;
    const __mmask16 inside = left >= 16 ? 0xffff : (1u << left) - 1;
    const Words x = _mm512_maskz_loadu_epi32(inside, row + i * kWordBytes);
    const Words before = _mm512_alignr_epi32(x, last, 15);
    _mm512_storeu_si512(to + i * kWordBytes, _mm512_mask_xor_epi32(x, joined, x, before));
    joined = seconds;
    last = x;
  }
}

inline Words broadcast(const uint8_t* word) {
  int32_t x;
  memcpy(&x, word, kWordBytes);
  return _mm512_set1_epi32(x);
}

inline Words load_words(const uint8_t* from) { return _mm512_load_si512(from); }

// A tile's weights and where its dots go.
struct TileAvx512 {
  const uint8_t* weights;
  const uint8_t* rows;
  size_t row_stride;
  size_t words;
  int16_t* dots;
  size_t dot_stride;
  __mmask32 channels;
  Words depth;
};

// dots = depth - 2 * mismatches
inline void store_dots(const TileAvx512& tile, int pixel, Words mismatches0, Words mismatches1) {
  const Words mismatches = _mm512_packus_epi32(mismatches0, mismatches1);
  const Words dots =
      _mm512_sub_epi16(tile.depth, _mm512_add_epi16(mismatches, mismatches));
  int16_t* to = tile.dots + pixel * tile.dot_stride;
  if (tile.channels == 0xffffffff) _mm512_storeu_si512(to, dots);
  else _mm512_mask_storeu_epi16(to, tile.channels, dots);
}

// Without this, compilers load weights again for every pixel, or copy counters around.
inline void keep_in_register(Words& x) { __asm__("" : "+v"(x)); }

// Two words of a tile's weights, the second joined with the first.
struct PairOfWeights {
  Words first[kTileVectors], joined[kTileVectors];

  explicit PairOfWeights(const uint8_t* from)
      : first{load_words(from), load_words(from + 64)},
        joined{load_words(from + 128), load_words(from + 192)} {
    for (int v = 0; v < kTileVectors; ++v) {
      keep_in_register(first[v]);
      keep_in_register(joined[v]);
    }
  }
};

// Counts by twos, for one pixel and 16 channels; see the top.
struct TwosCounter {
  Words odd, twos;

  void start(Words first) {
    odd = first;
    twos = _mm512_setzero_si512();
  }
  void add(const uint8_t* pair, Words first, Words joined) {
    const Words x = _mm512_xor_si512(first, broadcast(pair));
    const Words sum =
        _mm512_ternarylogic_epi32(odd, joined, broadcast(pair + kWordBytes), 0x96);
    // The carry of odd + x + y, given their sum: odd where it equals x, else not the sum.
    const Words carry = _mm512_ternarylogic_epi32(x, sum, odd, 0xb2);
    twos = _mm512_add_epi32(twos, _mm512_popcnt_epi32(carry));
    odd = sum;
    keep_in_register(twos);
    keep_in_register(odd);
  }
  Words total() const {
    return _mm512_add_epi32(_mm512_add_epi32(twos, twos), _mm512_popcnt_epi32(odd));
  }
};

// The counters of some pixels. A recursion where a loop over an array would do: compilers keep
// these in registers, while arrays pass through memory before and after the loop over words.
template <int kPixels>
struct PixelGroup {
  TwosCounter counters[kTileVectors];
  PixelGroup<kPixels - 1> others;

  [[gnu::always_inline]] void start() {
    for (TwosCounter& counter : counters) counter.start(_mm512_setzero_si512());
    others.start();
  }
  [[gnu::always_inline]] void start(const uint8_t* row, size_t row_stride,
                                    const uint8_t* weights) {
    counters[0].start(_mm512_xor_si512(load_words(weights), broadcast(row)));
    counters[1].start(_mm512_xor_si512(load_words(weights + 64), broadcast(row)));
    others.start(row + row_stride, row_stride, weights);
  }
  [[gnu::always_inline]] void add(const uint8_t* row, size_t row_stride,
                                  const PairOfWeights& weights) {
    counters[0].add(row, weights.first[0], weights.joined[0]);
    counters[1].add(row, weights.first[1], weights.joined[1]);
    others.add(row + row_stride, row_stride, weights);
  }
  [[gnu::always_inline]] void store(const TileAvx512& tile, int pixel) const {
    store_dots(tile, pixel, counters[0].total(), counters[1].total());
    others.store(tile, pixel + 1);
  }
};

template <>
struct PixelGroup<0> {
  void start() {}
  void start(const uint8_t*, size_t, const uint8_t*) {}
  void add(const uint8_t*, size_t, const PairOfWeights&) {}
  void store(const TileAvx512&, int) const {}
};

template <int kPixels>
void multiply_by_twos(const TileAvx512& tile, int pixel) {
  const size_t stride = tile.row_stride;
  const uint8_t* row = tile.rows + pixel * stride;
  const uint8_t* weights = tile.weights;
  PixelGroup<kPixels> group;
  if (tile.words % 2 == 0) {
    group.start();
  } else {
    group.start(row, stride, weights);
    row += kWordBytes;
    weights += kTileWordBytes;
  }
  for (size_t pairs = tile.words / 2; pairs > 0; --pairs) {
    group.add(row, stride, PairOfWeights(weights));
    row += 2 * kWordBytes;
    weights += 2 * kTileWordBytes;
  }
  group.store(tile, pixel);
}

using GroupKernel = void (*)(const TileAvx512&, int);

inline void multiply_tile_by_twos(const TileAvx512& tile, int pixels) {
  constexpr GroupKernel kernels[] = {nullptr, multiply_by_twos<1>, multiply_by_twos<2>,
                                     multiply_by_twos<3>, multiply_by_twos<4>};
  // Groups of nearly the same size, so that none is left with one pixel.
  for (int p = 0, groups = (pixels + kGroupPixels - 1) / kGroupPixels; groups > 0; --groups) {
    const int size = (pixels - p + groups - 1) / groups;
    kernels[size](tile, p);
    p += size;
  }
}

// Words one by one, all weights in registers for all pixels.
template <int kWords>
void multiply_tile_by_ones(const TileAvx512& tile, int pixels) {
  Words weights[kWords][kTileVectors];
  for (int i = 0; i < kWords; ++i) {
    for (int v = 0; v < kTileVectors; ++v) {
      weights[i][v] = load_words(tile.weights + i * kTileWordBytes + 64 * v);
    }
  }
  const uint8_t* row = tile.rows;
  for (int p = 0; p < pixels; ++p, row += tile.row_stride) {
    Words counts[kTileVectors];
    for (int v = 0; v < kTileVectors; ++v) {
      counts[v] = _mm512_popcnt_epi32(_mm512_xor_si512(broadcast(row), weights[0][v]));
      for (int i = 1; i < kWords; ++i) {
        const Words differing =
            _mm512_xor_si512(broadcast(row + i * kWordBytes), weights[i][v]);
        counts[v] = _mm512_add_epi32(counts[v], _mm512_popcnt_epi32(differing));
      }
    }
    store_dots(tile, p, counts[0], counts[1]);
  }
}

using TileKernel = void (*)(const TileAvx512&, int);

inline TileKernel choose_kernel(size_t words) {
  if (counts_by_twos(words)) return multiply_tile_by_twos;
  constexpr TileKernel by_ones[] = {nullptr,
                                    multiply_tile_by_ones<1>,
                                    multiply_tile_by_ones<2>,
                                    nullptr,
                                    multiply_tile_by_ones<4>,
                                    nullptr,
                                    multiply_tile_by_ones<6>,
                                    nullptr,
                                    multiply_tile_by_ones<8>};
  return by_ones[words];
}

inline __mmask32 channel_mask(int channels) {
  return channels >= kTileChannels ? 0xffffffff : (1u << channels) - 1;
}

inline void multiply_avx512(const ProductArguments& a) {
  TileAvx512 tile = {};
  tile.words = a.row_bytes / kWordBytes;
  tile.rows = a.rows;
  tile.row_stride = a.row_stride;
  if (counts_by_twos(tile.words)) {
    tile.rows = a.scratch;
    tile.row_stride = joined_row_bytes(a.row_bytes);
    for (int p = 0; p < a.pixels; ++p) {
      join_row(a.rows + p * a.row_stride, tile.words, a.scratch + p * tile.row_stride);
    }
  }
  tile.dot_stride = a.dot_stride;
  tile.depth = _mm512_set1_epi16(static_cast<int16_t>(a.depth_bits));
  const TileKernel multiply_tile = choose_kernel(tile.words);
  for (int c = a.channel_begin; c < a.channel_end; c += kTileChannels) {
    tile.weights = a.packed + c * a.row_bytes;
    tile.dots = a.dots + c;
    tile.channels = channel_mask(a.channel_end - c);
    multiply_tile(tile, a.pixels);
  }
}

constexpr Product kAvx512Product = {kWordBytes,  kTileChannels,        packed_bytes_avx512,
                                    pack_avx512, scratch_bytes_avx512, multiply_avx512};

}  // namespace
}  // namespace bicrossnet
