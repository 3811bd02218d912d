// The passes over floats, written once for every vector type; see backend.h for what they compute.
//
// A pass walks the channels in blocks and, inside a block, the pixels of its chunk: what belongs to
// a channel (gains, slopes, thresholds, the running sum) then stays in registers.
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
  int channel = 0;
  for (; channel + V::block <= a.channels; channel += V::block) {
    finish_block<V, kElementwise, kStride, kSigns>(a, channel);
  }
  for (; channel < a.channels; channel += ScalarVector::block) {
    finish_block<ScalarVector, kElementwise, kStride, kSigns>(a, channel);
  }
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
  int channel = a.channel_begin;
  for (; channel + V::block <= a.channel_end; channel += V::block) {
    sum_activated_block<V>(a, channel);
  }
  for (; channel < a.channel_end; channel += ScalarVector::block) {
    sum_activated_block<ScalarVector>(a, channel);
  }
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
  int channel = 0;
  for (; channel + V::block <= channels; channel += V::block) {
    sum_map_block<V>(x + channel, channels, pixels, slope + channel, sums + channel);
  }
  for (; channel < channels; channel += ScalarVector::block) {
    sum_map_block<ScalarVector>(x + channel, channels, pixels, slope + channel, sums + channel);
  }
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
  int channel = 0;
  for (; channel + V::block <= channels; channel += V::block) {
    copy_block<V, 1>(x, channels, channel, pixel_begin, pixel_end, output);
  }
  for (; channel < channels; channel += ScalarVector::block) {
    copy_block<ScalarVector, 1>(x, channels, channel, pixel_begin, pixel_end, output);
  }
}

// ---- Stem: 3x3, stride 2, three channels in; taps outside the image count as 0

constexpr int kTaps = 27;

// taps[t][i]: what tap t of the chunk's pixel i sees.
inline void gather_taps(const StemArguments& a, float (*taps)[kChunkPixels]) {
  const int out_width = a.width / 2;
  for (int p = a.pixel_begin; p < a.pixel_end; ++p) {
    const int row = p / out_width * 2 - 1, column = p % out_width * 2 - 1;
    int tap = 0;
    for (int channel = 0; channel < 3; ++channel) {
      const float* plane = a.image + static_cast<size_t>(channel) * a.height * a.width;
      for (int r = row; r < row + 3; ++r) {
        for (int c = column; c < column + 3; ++c, ++tap) {
          const bool inside = r >= 0 && c >= 0 && r < a.height && c < a.width;
          taps[tap][p - a.pixel_begin] =
              inside ? plane[static_cast<size_t>(r) * a.width + c] : 0.0f;
        }
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
  int channel = 0;
  for (; channel + V::block <= a.channels; channel += V::block) stem_block<V>(a, channel, taps);
  for (; channel < a.channels; channel += ScalarVector::block) {
    stem_block<ScalarVector>(a, channel, taps);
  }
}

// ---- The gate of the squeeze-excite

template <class V>
void linear_lanes(const LinearArguments& a, int output) {
  typename V::Floats sums[4];
  for (int k = 0; k < 4; ++k) sums[k] = V::set(0.0f);
  const float* weight = a.weight + output;
  int i = 0;
  for (; i + 4 <= a.input_count; i += 4) {
    for (int k = 0; k < 4; ++k, weight += a.output_count) {
      sums[k] = V::add(sums[k], V::multiply(V::load(weight), V::set(a.inputs[i + k])));
    }
  }
  for (int k = 0; i < a.input_count; ++i, ++k, weight += a.output_count) {
    sums[k] = V::add(sums[k], V::multiply(V::load(weight), V::set(a.inputs[i])));
  }
  const typename V::Floats total = V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3]));
  V::store(a.outputs + output, V::add(total, V::load(a.bias + output)));
}

template <class V>
void linear(const LinearArguments& a) {
  int output = a.begin;
  for (; output + V::width <= a.end; output += V::width) linear_lanes<V>(a, output);
  for (; output < a.end; ++output) linear_lanes<ScalarVector>(a, output);
}

// e^x to about 1e-7, without a branch, so that compilers vectorise the loop around it; the C
// library's expf would differ from one system to the next.
// Coefficients: Cephes mathematical library (Moshier 1989), expf.
inline float exponential(float x) {
  x = x > -87.0f ? x : -87.0f;  // also for NaN: the map itself carries it on
  x = x < 87.0f ? x : 87.0f;
  const float to_integer = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float n = (x * 1.44269504088896341f + to_integer) - to_integer;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = (y * (r * r) + r) + 1.0f;
  const int32_t exponent = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  memcpy(&power, &exponent, sizeof power);
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
