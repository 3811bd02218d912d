// The binary matrix product with byte shuffles (pshufb), for 128 and for 256 bits: lanes are
// output channels, a byte each.
//
// Four bits of an input and four weights differ in popcount(input ^ weight) places: for a given
// input a table of 16 bytes, and a shuffle looks 16 or 32 channels up at once. A table holds two
// pixels: the first one's count in the low half of a byte, the second one's in the high half.
// Three lookups fit into a half (3 * 4 < 16); then a sum s is spread over two accumulators,
//   low  += s & 0x0f, in bytes: the count of the first pixel
//   high += s >> 4, in words of 16 bits: with e and o the even and the odd byte of the word,
//           second(e) + 16 * first(o) + 256 * second(o), where low tells first(o)
// so that 12 bits of two pixels take nine instructions. Bytes hold the counts of 31 bytes of
// depth; what is longer is cut into blocks, summed up in words.
#pragma once

#include "backend.h"

#include <immintrin.h>
#include <string.h>

namespace bicrossnet {
namespace {

// Bytes of depth in a block: a multiple of 3, 8 * 30 < 256.
constexpr int kBlockBytes = 30;
constexpr int kBlockNibbles = 2 * kBlockBytes;
constexpr int kBlockSlots = 64;
constexpr int kGroupPairs = 4;
constexpr int kTableBytes = 16;

inline size_t round_up(size_t x, size_t granule) { return (x + granule - 1) / granule * granule; }

constexpr int ones_in_nibble(int x) { return (x & 1) + (x >> 1 & 1) + (x >> 2 & 1) + (x >> 3); }

// The table of nibbles a and b of two pixels is number a + 16 * b.
struct PairTables {
  uint8_t bytes[256 * kTableBytes];

  constexpr PairTables() : bytes() {
    for (int i = 0; i < 256 * kTableBytes; ++i) {
      const int weight = i % 16, a = i / 16 % 16, b = i / 256;
      const int first = ones_in_nibble(a ^ weight), second = ones_in_nibble(b ^ weight);
      bytes[i] = static_cast<uint8_t>(first + 16 * second);
    }
  }
};

alignas(64) constexpr PairTables kPairTables;

// ---- Rows of two pixels to offsets of tables

// Offsets of the tables of one block of depth, [pair][nibble], for the pairs of a group.
using BlockOffsets = uint16_t[kGroupPairs][kBlockSlots];

inline size_t block_count(size_t row_bytes) { return (row_bytes + kBlockBytes - 1) / kBlockBytes; }

inline uint64_t load_word(const uint8_t* from, size_t bytes) {
  uint64_t word = 0;
  memcpy(&word, from, bytes);
  return word;
}

// The first bytes of a register, the others zero; reads nothing beyond.
inline __m128i load_bytes(const uint8_t* from, int bytes) {
  if (bytes >= 16) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  uint64_t low = 0, high = 0;
  if (bytes > 8) {
    low = load_word(from, 8);
    high = load_word(from + bytes - 8, 8) >> 8 * (16 - bytes);
  } else if (bytes == 8) {
    low = load_word(from, 8);
  } else if (bytes >= 4) {
    low = load_word(from, 4) | load_word(from + bytes - 4, 4) << 8 * (bytes - 4);
  } else {
    for (int i = 0; i < bytes; ++i) low |= static_cast<uint64_t>(from[i]) << 8 * i;
  }
  return _mm_set_epi64x(static_cast<int64_t>(high), static_cast<int64_t>(low));
}

// Offsets of 8 bytes of two rows, or of 16: two nibbles a byte, the lower one first.
inline void write_offsets(__m128i a, __m128i b, bool all_16, uint16_t* to) {
  const __m128i nibble = _mm_set1_epi8(0x0f), zero = _mm_setzero_si128();
  const __m128i lower = _mm_or_si128(_mm_and_si128(a, nibble),
                                     _mm_slli_epi16(_mm_and_si128(b, nibble), 4));
  const __m128i upper = _mm_or_si128(_mm_and_si128(_mm_srli_epi16(a, 4), nibble),
                                     _mm_andnot_si128(nibble, b));
  const auto write_8 = [zero](__m128i numbers, uint16_t* to) {
    const __m128i first = _mm_slli_epi16(_mm_unpacklo_epi8(numbers, zero), 4);
    const __m128i second = _mm_slli_epi16(_mm_unpackhi_epi8(numbers, zero), 4);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), first);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 8), second);
  };
  write_8(_mm_unpacklo_epi8(lower, upper), to);
  if (all_16) write_8(_mm_unpackhi_epi8(lower, upper), to + 16);
}

// One block of depth of two rows.
inline void write_block_offsets(const uint8_t* a, const uint8_t* b, int bytes, uint16_t* to) {
  write_offsets(load_bytes(a, bytes), load_bytes(b, bytes), bytes > 8, to);
  if (bytes <= 16) return;
  const int last = bytes - 16;
  write_offsets(load_bytes(a + last, 16), load_bytes(b + last, 16), true, to + 2 * last);
}

// offsets: [group][block]. A last pixel without a partner is its own.
inline void write_row_offsets(const ProductArguments& a, BlockOffsets* offsets) {
  const size_t blocks = block_count(a.row_bytes);
  for (int p = 0; p < a.pixels; p += 2) {
    const uint8_t* first = a.rows + p * a.row_stride;
    const uint8_t* second = p + 1 < a.pixels ? first + a.row_stride : first;
    const int pair = p / 2;
    BlockOffsets* to = offsets + pair / kGroupPairs * blocks;
    size_t left = a.row_bytes;
    for (size_t block = 0; block < blocks; ++block, left -= kBlockBytes) {
      const int bytes = left < kBlockBytes ? static_cast<int>(left) : kBlockBytes;
      const size_t from = block * kBlockBytes;
      write_block_offsets(first + from, second + from, bytes, to[block][pair % kGroupPairs]);
    }
  }
}

// ---- Registers

struct Bytes128 {
  using Register = __m128i;
  static constexpr int width = 16;

  static Register zero() { return _mm_setzero_si128(); }
  static Register set8(int x) { return _mm_set1_epi8(static_cast<char>(x)); }
  static Register set16(int x) { return _mm_set1_epi16(static_cast<int16_t>(x)); }
  static Register load(const void* from) {
    return _mm_loadu_si128(static_cast<const __m128i*>(from));
  }
  static void store(void* to, Register x) { _mm_storeu_si128(static_cast<__m128i*>(to), x); }
  static Register table(const void* from) {
    return _mm_load_si128(static_cast<const __m128i*>(from));
  }
  static Register lookup(Register table, Register i) { return _mm_shuffle_epi8(table, i); }
  static Register both(Register a, Register b) { return _mm_and_si128(a, b); }
  static Register add8(Register a, Register b) { return _mm_add_epi8(a, b); }
  static Register add16(Register a, Register b) { return _mm_add_epi16(a, b); }
  static Register subtract16(Register a, Register b) { return _mm_sub_epi16(a, b); }
  template <int kBits>
  static Register right16(Register x) { return _mm_srli_epi16(x, kBits); }
  template <int kBits>
  static Register left16(Register x) { return _mm_slli_epi16(x, kBits); }
};

#ifdef __AVX2__
struct Bytes256 {
  using Register = __m256i;
  static constexpr int width = 32;

  static Register zero() { return _mm256_setzero_si256(); }
  static Register set8(int x) { return _mm256_set1_epi8(static_cast<char>(x)); }
  static Register set16(int x) { return _mm256_set1_epi16(static_cast<int16_t>(x)); }
  static Register load(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
  }
  static void store(void* to, Register x) { _mm256_storeu_si256(static_cast<__m256i*>(to), x); }
  static Register table(const void* from) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(static_cast<const __m128i*>(from)));
  }
  static Register lookup(Register table, Register i) { return _mm256_shuffle_epi8(table, i); }
  static Register both(Register a, Register b) { return _mm256_and_si256(a, b); }
  static Register add8(Register a, Register b) { return _mm256_add_epi8(a, b); }
  static Register add16(Register a, Register b) { return _mm256_add_epi16(a, b); }
  static Register subtract16(Register a, Register b) { return _mm256_sub_epi16(a, b); }
  template <int kBits>
  static Register right16(Register x) { return _mm256_srli_epi16(x, kBits); }
  template <int kBits>
  static Register left16(Register x) { return _mm256_slli_epi16(x, kBits); }
};
#endif

// ---- Weights: [tile][byte of depth][lane]

// Even lanes are the first half of a tile's channels, odd ones the second half, so that widening
// to words keeps the channels in order.
template <class V>
constexpr int channel_of_lane(int lane) { return lane / 2 + lane % 2 * (V::width / 2); }

template <class V>
size_t packed_bytes_shuffle(int channels, size_t row_bytes) {
  return round_up(round_up(channels, V::width) * row_bytes, 64);
}

template <class V>
void pack_shuffle(const uint8_t* weights, int channels, size_t row_bytes, uint8_t* packed) {
  memset(packed, 0, packed_bytes_shuffle<V>(channels, row_bytes));
  for (int tile = 0; tile < channels; tile += V::width) {
    for (size_t i = 0; i < row_bytes; ++i, packed += V::width) {
      for (int lane = 0; lane < V::width; ++lane) {
        const int channel = tile + channel_of_lane<V>(lane);
        if (channel < channels) packed[lane] = weights[channel * row_bytes + i];
      }
    }
  }
}

// ---- The product

template <class V>
using Register = typename V::Register;

// The two nibbles of a byte of depth of all weights of a tile.
template <class V>
struct Nibbles {
  Register<V> lower, upper;

  explicit Nibbles(const uint8_t* weights) {
    const Register<V> bytes = V::load(weights), mask = V::set8(0x0f);
    lower = V::both(bytes, mask);
    upper = V::both(V::template right16<4>(bytes), mask);
  }
};

template <class V>
Register<V> lookup(uint16_t offset, Register<V> weights) {
  return V::lookup(V::table(kPairTables.bytes + offset), weights);
}

// Where the dots of a tile go.
template <class V>
struct TileShuffle {
  const uint8_t* weights;
  size_t row_bytes;
  int16_t* dots;
  size_t dot_stride;
  int channels;
  Register<V> depth;
};

// Mismatches of a pixel with a tile, in words: the first half of the channels, the second half.
template <class V>
struct PixelSums {
  Register<V> halves[2];

  PixelSums operator+(const PixelSums& other) const {
    return {V::add16(halves[0], other.halves[0]), V::add16(halves[1], other.halves[1])};
  }
};

// dots = depth - 2 * mismatches
template <class V>
void store_dots(const TileShuffle<V>& tile, int pixel, const PixelSums<V>& mismatches) {
  int16_t* to = tile.dots + pixel * tile.dot_stride;
  const PixelSums<V> twice = mismatches + mismatches;
  const Register<V> dots[2] = {V::subtract16(tile.depth, twice.halves[0]),
                               V::subtract16(tile.depth, twice.halves[1])};
  if (tile.channels >= V::width) {
    V::store(to, dots[0]);
    V::store(to + V::width / 2, dots[1]);
  } else {
    memcpy(to, dots, tile.channels * sizeof(int16_t));
  }
}

// Counters of some pairs of pixels. A recursion where a loop over an array would do: compilers
// keep these in registers, while arrays pass through memory, as would a group that is handed to a
// function of its own.
template <class V, int kPairs>
struct PairGroup {
  Register<V> low, high;
  PairGroup<V, kPairs - 1> others;

  [[gnu::always_inline]] void start() {
    low = high = V::zero();
    others.start();
  }
  [[gnu::always_inline]] void add(const uint16_t* offsets, Register<V> w0, Register<V> w1,
                                  Register<V> w2) {
    spread(V::add8(V::add8(lookup<V>(offsets[0], w0), lookup<V>(offsets[1], w1)),
                   lookup<V>(offsets[2], w2)));
    others.add(offsets + kBlockSlots, w0, w1, w2);
  }
  [[gnu::always_inline]] void add(const uint16_t* offsets, Register<V> w0, Register<V> w1) {
    spread(V::add8(lookup<V>(offsets[0], w0), lookup<V>(offsets[1], w1)));
    others.add(offsets + kBlockSlots, w0, w1);
  }
  [[gnu::always_inline]] void spread(Register<V> sum) {
    low = V::add8(low, V::both(sum, V::set8(0x0f)));
    high = V::add16(high, V::template right16<4>(sum));
    keep_here(low);
    keep_here(high);
  }
  // Compilers would rather add up several sums first, and run out of registers.
  static void keep_here(Register<V>& x) { __asm__("" : "+x"(x)); }

  PixelSums<V> first() const {
    return {V::both(low, V::set16(0x00ff)), V::template right16<8>(low)};
  }
  PixelSums<V> second() const {
    const Register<V> odd_first = V::template right16<8>(low);
    const Register<V> words = V::subtract16(high, V::template left16<4>(odd_first));
    return {V::both(words, V::set16(0x00ff)), V::template right16<8>(words)};
  }
  // sums: of the pixels, one after another.
  [[gnu::always_inline]] void put(PixelSums<V>* sums) const {
    sums[0] = first();
    sums[1] = second();
    others.put(sums + 2);
  }
  [[gnu::always_inline]] void add_to(PixelSums<V>* sums) const {
    sums[0] = sums[0] + first();
    sums[1] = sums[1] + second();
    others.add_to(sums + 2);
  }
  // sums: of the blocks before, or null. pixels: how many there are from this pixel on.
  [[gnu::always_inline]] void store(const TileShuffle<V>& tile, int pixel, int pixels,
                                    const PixelSums<V>* sums) const {
    store_dots<V>(tile, pixel, sums ? sums[0] + first() : first());
    if (pixels > 1) store_dots<V>(tile, pixel + 1, sums ? sums[1] + second() : second());
    others.store(tile, pixel + 2, pixels - 2, sums ? sums + 2 : nullptr);
  }
};

template <class V>
struct PairGroup<V, 0> {
  void start() {}
  void add(const uint16_t*, Register<V>, Register<V>, Register<V>) {}
  void add(const uint16_t*, Register<V>, Register<V>) {}
  void put(PixelSums<V>*) const {}
  void add_to(PixelSums<V>*) const {}
  void store(const TileShuffle<V>&, int, int, const PixelSums<V>*) const {}
};

template <class V, int kPairs>
void multiply_group(const TileShuffle<V>& tile, const BlockOffsets* block, int pixel, int pixels) {
  const uint8_t* weights = tile.weights;
  PixelSums<V> memory[2 * kPairs];
  PixelSums<V>* sums = nullptr;  // of the blocks before
  for (int left = static_cast<int>(tile.row_bytes);; ++block) {
    const uint16_t* offsets = (*block)[0];
    PairGroup<V, kPairs> group;
    group.start();
    int bytes = left < kBlockBytes ? left : kBlockBytes;
    left -= bytes;
    for (; bytes >= 3; bytes -= 3, weights += 3 * V::width, offsets += 6) {
      const Nibbles<V> a(weights), b(weights + V::width);
      group.add(offsets, a.lower, a.upper, b.lower);
      const Nibbles<V> c(weights + 2 * V::width);
      group.add(offsets + 3, b.upper, c.lower, c.upper);
    }
    for (; bytes > 0; --bytes, weights += V::width, offsets += 2) {
      const Nibbles<V> a(weights);
      group.add(offsets, a.lower, a.upper);
    }
    if (left == 0) return group.store(tile, pixel, pixels, sums);
    if (sums) group.add_to(sums);
    else group.put(sums = memory);
  }
}

template <class V>
void multiply_tile(const TileShuffle<V>& tile, const BlockOffsets* offsets, int pixels) {
  using Kernel = void (*)(const TileShuffle<V>&, const BlockOffsets*, int, int);
  constexpr Kernel kernels[] = {nullptr, multiply_group<V, 1>, multiply_group<V, 2>,
                                multiply_group<V, 3>, multiply_group<V, 4>};
  const size_t blocks = block_count(tile.row_bytes);
  for (int p = 0; p < pixels; p += 2 * kGroupPairs, offsets += blocks) {
    const int left = pixels - p, pairs = (left + 1) / 2;
    kernels[pairs < kGroupPairs ? pairs : kGroupPairs](tile, offsets, p, left);
  }
}

inline size_t scratch_bytes_shuffle(size_t row_bytes) {
  constexpr int kGroups = kChunkPixels / 2 / kGroupPairs;
  return kGroups * block_count(row_bytes) * sizeof(BlockOffsets);
}

template <class V>
void multiply_shuffle(const ProductArguments& a) {
  BlockOffsets* offsets = reinterpret_cast<BlockOffsets*>(a.scratch);
  write_row_offsets(a, offsets);
  TileShuffle<V> tile = {};
  tile.row_bytes = a.row_bytes;
  tile.dot_stride = a.dot_stride;
  tile.depth = V::set16(a.depth_bits);
  for (int c = a.channel_begin; c < a.channel_end; c += V::width) {
    tile.weights = a.packed + c * a.row_bytes;
    tile.dots = a.dots + c;
    tile.channels = a.channel_end - c;
    multiply_tile<V>(tile, offsets, a.pixels);
  }
}

template <class V>
constexpr Product make_shuffle_product() {
  return {1, V::width, packed_bytes_shuffle<V>, pack_shuffle<V>, scratch_bytes_shuffle,
          multiply_shuffle<V>};
}

}  // namespace
}  // namespace bicrossnet
