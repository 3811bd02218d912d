// The passes over floats, written once for every vector type; see backend.h for what they compute.
//
// A pass walks the channels in blocks and, inside a block, the pixels of its chunk: what belongs
// to a channel (gains, slopes, thresholds, the running sum) then stays in registers.
#pragma once

#include "backend.h"
#include "vector_scalar.h"

namespace bicrossnet {
namespace {

// V::block channels of one pixel.
template <class V>
struct Lanes {
  static constexpr int count = V::block / V::width;
  typename V::Floats part[count];

  static Lanes set(float value) {
    Lanes lanes;
    for (int i = 0; i < count; ++i) lanes.part[i] = V::set(value);
    return lanes;
  }
  static Lanes load(const float* from) {
    Lanes lanes;
    for (int i = 0; i < count; ++i) lanes.part[i] = V::load(from + i * V::width);
    return lanes;
  }
  static Lanes load_dots(const int16_t* from) {
    Lanes lanes;
    for (int i = 0; i < count; ++i) lanes.part[i] = V::load_dots(from + i * V::width);
    return lanes;
  }
  void store(float* to) const {
    for (int i = 0; i < count; ++i) V::store(to + i * V::width, part[i]);
  }
  Lanes operator+(const Lanes& other) const {
    Lanes lanes;
    for (int i = 0; i < count; ++i) lanes.part[i] = V::add(part[i], other.part[i]);
    return lanes;
  }
  Lanes operator*(const Lanes& other) const {
    Lanes lanes;
    for (int i = 0; i < count; ++i) lanes.part[i] = V::multiply(part[i], other.part[i]);
    return lanes;
  }
  Lanes prelu(const Lanes& slope) const {
    Lanes lanes;
    for (int i = 0; i < count; ++i) lanes.part[i] = V::prelu(part[i], slope.part[i]);
    return lanes;
  }
  void store_signs(const Lanes& threshold, uint8_t* to) const {
    uint32_t bits = 0;
    for (int i = 0; i < count; ++i) {
      bits |= V::at_least(part[i], threshold.part[i]) << (i * V::width);
    }
    memcpy(to, &bits, V::block / 8);
  }
};

// V with blocks half as wide.
template <class V>
struct Half : V {
  static constexpr int block = V::block / 2;
};

// Calls function(V(), channel) for the blocks of [begin, end); what is left over after whole
// blocks goes by narrower ones.
template <class V, class Function>
void for_blocks(int begin, int end, Function function) {
  int channel = begin;
  for (; channel + V::block <= end; channel += V::block) function(V(), channel);
  if constexpr (V::width > 1) {
    constexpr bool halves = V::block / 2 >= V::width && V::block / 2 >= 8;
    if (channel == end) return;
    if constexpr (halves) for_blocks<Half<V>>(channel, end, function);
    else for_blocks<ScalarVector>(channel, end, function);
  }
}

// One block of channels of a MapOutput.
template <class V, int kSigns>
class BlockWriter {
 public:
  BlockWriter(const MapOutput& output, int channel)
      : map_(output.map + channel), stride_(output.stride), sign_stride_(output.sign_stride),
        sums_(Lanes<V>::set(0.0f)) {
    for (int i = 0; i < kSigns; ++i) {
      thresholds_[i] = Lanes<V>::load(output.thresholds[i] + channel);
      signs_[i] = output.signs[i] + channel / 8;
    }
  }

  void write(int pixel, const Lanes<V>& value) {
    value.store(map_ + pixel * stride_);
    sums_ = sums_ + value;
    for (int i = 0; i < kSigns; ++i) {
      value.store_signs(thresholds_[i], signs_[i] + pixel * sign_stride_);
    }
  }

  void store_sums(float* sums) const { sums_.store(sums); }

 private:
  float* map_;
  size_t stride_, sign_stride_;
  Lanes<V> sums_;
  Lanes<V> thresholds_[kSigns > 0 ? kSigns : 1];
  uint8_t* signs_[kSigns > 0 ? kSigns : 1];
};

// ---- y = prelu(dots * gain + offset) * gate [* residual] + offset2 + residual

template <class V, bool kElementwise>
Lanes<V> residual_at(const float* x, const Lanes<V>& slope) {
  const Lanes<V> value = Lanes<V>::load(x);
  return kElementwise ? value.prelu(slope) : value;
}

template <class V, bool kElementwise, int kStride, int kSigns>
void finish_block(const FinishArguments& a, int channel) {
  using L = Lanes<V>;
  const L gain = L::load(a.gain + channel), offset = L::load(a.offset + channel);
  const L slope = L::load(a.slope + channel), gate = L::load(a.gate + channel);
  const L offset2 = L::load(a.offset2 + channel), quarter = L::set(0.25f);
  const L residual_slope = kElementwise ? L::load(a.residual_slope + channel) : L::set(0.0f);
  BlockWriter<V, kSigns> writer(a.output, channel);
  const int16_t* dots = a.dots + a.pixel_begin * a.dot_stride + channel;
  const int width = kStride == 2 ? a.x_width / 2 : 1;
  int row = a.pixel_begin / width, column = a.pixel_begin % width;
  for (int p = a.pixel_begin; p < a.pixel_end; ++p, dots += a.dot_stride) {
    L residual;
    if (kStride == 1) {
      residual = residual_at<V, kElementwise>(a.x + p * a.x_stride + channel, residual_slope);
    } else {
      const float* upper =
          a.x + (static_cast<size_t>(2 * row) * a.x_width + 2 * column) * a.x_stride + channel;
      const float* lower = upper + a.x_width * a.x_stride;
      residual = (residual_at<V, kElementwise>(upper, residual_slope) +
                  residual_at<V, kElementwise>(upper + a.x_stride, residual_slope)) +
                 (residual_at<V, kElementwise>(lower, residual_slope) +
                  residual_at<V, kElementwise>(lower + a.x_stride, residual_slope));
      residual = residual * quarter;
      if (++column == width) {
        column = 0;
        ++row;
      }
    }
    L y = (L::load_dots(dots) * gain + offset).prelu(slope) * gate;
    if (kElementwise) y = y * residual;
    writer.write(p, y + offset2 + residual);
  }
  writer.store_sums(a.output.sums + channel);
}

template <class V, bool kElementwise, int kStride, int kSigns>
void finish_channels(const FinishArguments& a) {
  for_blocks<V>(a.channel_begin, a.channel_end, [&](auto vector, int channel) {
    finish_block<decltype(vector), kElementwise, kStride, kSigns>(a, channel);
  });
}

template <class V, bool kElementwise, int kStride>
void finish_signs(const FinishArguments& a) {
  if (a.output.sign_count == 0) return finish_channels<V, kElementwise, kStride, 0>(a);
  if (a.output.sign_count == 1) return finish_channels<V, kElementwise, kStride, 1>(a);
  finish_channels<V, kElementwise, kStride, 2>(a);
}

template <class V>
void finish(const FinishArguments& a) {
  if (a.residual_slope) {
    return a.stride == 1 ? finish_signs<V, true, 1>(a) : finish_signs<V, true, 2>(a);
  }
  return a.stride == 1 ? finish_signs<V, false, 1>(a) : finish_signs<V, false, 2>(a);
}

// ---- Sums over the pixels of a chunk

template <class V>
void sum_activated_block(const ActivatedSumArguments& a, int channel) {
  using L = Lanes<V>;
  const L gain = L::load(a.gain + channel), offset = L::load(a.offset + channel);
  const L slope = L::load(a.slope + channel);
  L sum = L::set(0.0f);
  const int16_t* dots = a.dots + channel;
  for (int p = 0; p < a.pixels; ++p, dots += a.dot_stride) {
    sum = sum + (L::load_dots(dots) * gain + offset).prelu(slope);
  }
  sum.store(a.sums + channel);
}

template <class V>
void sum_activated(const ActivatedSumArguments& a) {
  for_blocks<V>(a.channel_begin, a.channel_end, [&](auto vector, int channel) {
    sum_activated_block<decltype(vector)>(a, channel);
  });
}

template <class V>
void sum_map_block(const float* x, int channels, int pixels, const float* slope, float* sums) {
  using L = Lanes<V>;
  const L slopes = L::load(slope);
  L sum = L::set(0.0f);
  for (int p = 0; p < pixels; ++p, x += channels) sum = sum + L::load(x).prelu(slopes);
  sum.store(sums);
}

template <class V>
void sum_map(const float* x, int channels, int pixel_begin, int pixel_end, const float* slope,
             float* sums) {
  x += static_cast<size_t>(pixel_begin) * channels;
  const int pixels = pixel_end - pixel_begin;
  for_blocks<V>(0, channels, [&](auto vector, int channel) {
    sum_map_block<decltype(vector)>(x + channel, channels, pixels, slope + channel,
                                    sums + channel);
  });
}

template <class V, int kSigns>
void copy_block(const float* x, int channels, int channel, int pixel_begin, int pixel_end,
                const MapOutput& output) {
  BlockWriter<V, kSigns> writer(output, channel);
  for (int p = pixel_begin; p < pixel_end; ++p) {
    writer.write(p, Lanes<V>::load(x + static_cast<size_t>(p) * channels + channel));
  }
  writer.store_sums(output.sums + channel);
}

template <class V>
void copy(const float* x, int channels, int pixel_begin, int pixel_end, const MapOutput& output) {
  for_blocks<V>(0, channels, [&](auto vector, int channel) {
    copy_block<decltype(vector), 1>(x, channels, channel, pixel_begin, pixel_end, output);
  });
}

// ---- Stem: 3x3, stride 2, three channels in; taps outside the image count as 0

constexpr int kTaps = 27;

// What one tap sees from `count` pixels of one output row on, the first at column `column`.
inline void gather_tap(const float* line, int column, int shift, int count, float* taps) {
  int i = 0;
  if (column + shift < 0) taps[i++] = 0.0f;  // left of the image; its right border is never passed
  const float* from = line + column + shift;
  for (; i < count; ++i) taps[i] = from[2 * i];
}

// taps[t][i]: what tap t of the chunk's pixel i sees.
inline void gather_taps(const StemArguments& a, float (*taps)[kChunkPixels]) {
  const int out_width = a.width / 2;
  for (int p = a.pixel_begin, count; p < a.pixel_end; p += count) {
    const int row = p / out_width, column = p % out_width;
    count = out_width - column < a.pixel_end - p ? out_width - column : a.pixel_end - p;
    for (int tap = 0; tap < kTaps; ++tap) {
      const int in_row = 2 * row - 1 + tap / 3 % 3;
      float* to = taps[tap] + (p - a.pixel_begin);
      if (in_row < 0) {
        memset(to, 0, count * sizeof(float));
      } else {
        const float* line = a.image + (static_cast<size_t>(tap / 9) * a.height + in_row) * a.width;
        gather_tap(line, 2 * column, tap % 3 - 1, count, to);
      }
    }
  }
}

// kPixels pixels of one block of channels at once, so that a weight is loaded once for all.
template <class V, int kPixels, class Writer>
void stem_pixels(const StemArguments& a, int channel, const float (*taps)[kChunkPixels], int first,
                 Writer& writer) {
  using L = Lanes<V>;
  L sums[kPixels];
  for (int i = 0; i < kPixels; ++i) sums[i] = L::set(0.0f);
  for (int tap = 0; tap < kTaps; ++tap) {
    const L weight = L::load(a.weight + tap * a.channels + channel);
    for (int i = 0; i < kPixels; ++i) sums[i] = sums[i] + weight * L::set(taps[tap][first + i]);
  }
  const L gain = L::load(a.gain + channel), offset = L::load(a.offset + channel);
  for (int i = 0; i < kPixels; ++i) {
    writer.write(a.pixel_begin + first + i, sums[i] * gain + offset);
  }
}

template <class V>
void stem_block(const StemArguments& a, int channel, const float (*taps)[kChunkPixels]) {
  constexpr int kPixels = Lanes<V>::count >= 8 ? 1 : 8 / Lanes<V>::count;
  const int pixels = a.pixel_end - a.pixel_begin;
  BlockWriter<V, 1> writer(a.output, channel);
  int p = 0;
  for (; p + kPixels <= pixels; p += kPixels) {
    stem_pixels<V, kPixels>(a, channel, taps, p, writer);
  }
  for (; p < pixels; ++p) stem_pixels<V, 1>(a, channel, taps, p, writer);
  writer.store_sums(a.output.sums + channel);
}

template <class V>
void stem(const StemArguments& a) {
  float taps[kTaps][kChunkPixels];
  gather_taps(a, taps);
  for_blocks<V>(0, a.channels, [&](auto vector, int channel) {
    stem_block<decltype(vector)>(a, channel, taps);
  });
}

// ---- The gate of the squeeze-excite

// kVectors vectors of outputs; weight: their first lane.
template <class V, int kVectors>
void linear_lanes(const LinearArguments& a, const float* weight, int output) {
  typename V::Floats sums[4][kVectors];
  for (int k = 0; k < 4; ++k) {
    for (int v = 0; v < kVectors; ++v) sums[k][v] = V::set(0.0f);
  }
  const auto add = [&](int input, int k) {
    const typename V::Floats x = V::set(a.inputs[input]);
    const float* from = weight + static_cast<size_t>(input) * kLinearBlock;
    for (int v = 0; v < kVectors; ++v) {
      sums[k][v] = V::add(sums[k][v], V::multiply(V::load(from + v * V::width), x));
    }
  };
  int i = 0;
  for (; i + 4 <= a.input_count; i += 4) {
    for (int k = 0; k < 4; ++k) add(i + k, k);
  }
  for (int k = 0; i < a.input_count; ++i, ++k) add(i, k);
  for (int v = 0; v < kVectors; ++v, output += V::width) {
    const typename V::Floats total =
        V::add(V::add(sums[0][v], sums[1][v]), V::add(sums[2][v], sums[3][v]));
    V::store(a.outputs + output, V::add(total, V::load(a.bias + output)));
  }
}

template <class V>
void linear(const LinearArguments& a) {
  constexpr int kVectors = kLinearBlock / V::width >= 2 && V::width > 1 ? 2 : 1;
  for (int output = a.begin; output < a.end; output += kLinearBlock) {
    const float* block = a.weight + static_cast<size_t>(output) * a.input_count;
    for (int lane = 0; lane < kLinearBlock; lane += kVectors * V::width) {
      linear_lanes<V, kVectors>(a, block + lane, output + lane);
    }
  }
}

// e^x to about 1e-7, without a branch, so that compilers vectorise the loop around it; the C
// library's expf would differ from one system to the next.
// Coefficients: Cephes mathematical library (Moshier 1989), expf.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;  // NaN passes, so that what overflowed shows in the embedding
  x = x > 87.0f ? 87.0f : x;
  // Adding 1.5 * 2^23 rounds to an integer, which the lowest bits of the sum are.
  const float to_integer = 12582912.0f;
  const float sum = x * 1.44269504088896341f + to_integer;
  const float n = sum - to_integer;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = (y * (r * r) + r) + 1.0f;
  uint32_t bits;
  memcpy(&bits, &sum, sizeof bits);
  bits = (bits + 127) << 23;  // 2^n
  float power;
  memcpy(&power, &bits, sizeof power);
  return y * power;
}

inline void gate(float* gate, const float* gain, int count) {
  for (int i = 0; i < count; ++i) gate[i] = gain[i] / (1.0f + exponential(-gate[i]));
}

template <class V>
constexpr Passes make_passes() {
  return {stem<V>, sum_activated<V>, finish<V>, linear<V>, gate, copy<V>, sum_map<V>};
}

}  // namespace
}  // namespace bicrossnet
