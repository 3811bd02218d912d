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
      bytes[i] = static_cast<uint8_t>(ones_in_nibble(a ^ weight) + 16 * ones_in_nibble(b ^ weight));
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

// Offsets of 16 bytes of two rows: 32 nibbles, the lower of a byte first.
inline void write_offsets(__m128i a, __m128i b, uint16_t* to) {
  const __m128i nibble = _mm_set1_epi8(0x0f), zero = _mm_setzero_si128();
  const __m128i lower = _mm_or_si128(_mm_and_si128(a, nibble),
                                     _mm_slli_epi16(_mm_and_si128(b, nibble), 4));
  const __m128i upper = _mm_or_si128(_mm_and_si128(_mm_srli_epi16(a, 4), nibble),
                                     _mm_andnot_si128(nibble, b));
  const __m128i numbers[2] = {_mm_unpacklo_epi8(lower, upper), _mm_unpackhi_epi8(lower, upper)};
  for (int i = 0; i < 2; ++i, to += 16) {
    const __m128i first = _mm_slli_epi16(_mm_unpacklo_epi8(numbers[i], zero), 4);
    const __m128i second = _mm_slli_epi16(_mm_unpackhi_epi8(numbers[i], zero), 4);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), first);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 8), second);
  }
}

// One block of depth of two rows.
inline void write_block_offsets(const uint8_t* a, const uint8_t* b, int bytes, uint16_t* to) {
  write_offsets(load_bytes(a, bytes), load_bytes(b, bytes), to);
  if (bytes <= 16) return;
  const int last = bytes - 16;
  write_offsets(load_bytes(a + last, 16), load_bytes(b + last, 16), to + 2 * last);
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

// Mismatches of two pixels with a tile, in words: first half of the channels, second half.
template <class V>
struct PairSums {
  Register<V> first[2], second[2];
};

// Counters of some pairs of pixels. A recursion where a loop over an array would do: compilers
// keep these in registers, while arrays pass through memory.
template <class V, int kPairs>
struct PairGroup {
  Register<V> low, high;
  PairGroup<V, kPairs - 1> others;

  void start() {
    low = high = V::zero();
    others.start();
  }
  void add(const uint16_t* offsets, Register<V> w0, Register<V> w1, Register<V> w2) {
    spread(V::add8(V::add8(lookup<V>(offsets[0], w0), lookup<V>(offsets[1], w1)),
                   lookup<V>(offsets[2], w2)));
    others.add(offsets + kBlockSlots, w0, w1, w2);
  }
  void add(const uint16_t* offsets, Register<V> w0, Register<V> w1) {
    spread(V::add8(lookup<V>(offsets[0], w0), lookup<V>(offsets[1], w1)));
    others.add(offsets + kBlockSlots, w0, w1);
  }
  void spread(Register<V> sum) {
    low = V::add8(low, V::both(sum, V::set8(0x0f)));
    high = V::add16(high, V::template right16<4>(sum));
    keep_here(low);
    keep_here(high);
  }
  // Compilers would rather add up several sums first, and run out of registers.
  static void keep_here(Register<V>& x) { __asm__("" : "+x"(x)); }
  void add_to(PairSums<V>* sums) const {
    const Register<V> even = V::set16(0x00ff), odd_first = V::template right16<8>(low);
    const Register<V> seconds = V::subtract16(high, V::template left16<4>(odd_first));
    sums->first[0] = V::add16(sums->first[0], V::both(low, even));
    sums->first[1] = V::add16(sums->first[1], odd_first);
    sums->second[0] = V::add16(sums->second[0], V::both(seconds, even));
    sums->second[1] = V::add16(sums->second[1], V::template right16<8>(seconds));
    others.add_to(sums + 1);
  }
};

template <class V>
struct PairGroup<V, 0> {
  void start() {}
  void add(const uint16_t*, Register<V>, Register<V>, Register<V>) {}
  void add(const uint16_t*, Register<V>, Register<V>) {}
  void add_to(PairSums<V>*) const {}
};

// One block of depth of a tile and a group.
template <class V, int kPairs>
void add_block(const uint8_t* weights, int bytes, const BlockOffsets& block, PairSums<V>* sums) {
  const uint16_t* offsets = block[0];
  PairGroup<V, kPairs> group;
  group.start();
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
  group.add_to(sums);
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

// dots = depth - 2 * mismatches
template <class V>
void store_dots(const TileShuffle<V>& tile, int pixel, const Register<V> (&mismatches)[2]) {
  constexpr int kHalf = V::width / 2;
  int16_t* to = tile.dots + pixel * tile.dot_stride;
  Register<V> dots[2];
  for (int i = 0; i < 2; ++i) {
    dots[i] = V::subtract16(tile.depth, V::add16(mismatches[i], mismatches[i]));
  }
  if (tile.channels >= V::width) {
    V::store(to, dots[0]);
    V::store(to + kHalf, dots[1]);
  } else {
    memcpy(to, dots, tile.channels * sizeof(int16_t));
  }
}

template <class V, int kPairs>
void multiply_group(const TileShuffle<V>& tile, const BlockOffsets* offsets, int pixel,
                    int pixels) {
  PairSums<V> sums[kPairs] = {};
  const uint8_t* weights = tile.weights;
  for (size_t left = tile.row_bytes; left > 0; ++offsets) {
    const int bytes = left < kBlockBytes ? static_cast<int>(left) : kBlockBytes;
    add_block<V, kPairs>(weights, bytes, *offsets, sums);
    weights += bytes * V::width;
    left -= bytes;
  }
  for (int i = 0; i < kPairs; ++i) {
    store_dots<V>(tile, pixel + 2 * i, sums[i].first);
    if (2 * i + 1 < pixels) store_dots<V>(tile, pixel + 2 * i + 1, sums[i].second);
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
