#include "convolution.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace bicrossnet {
namespace {

constexpr int kMostChannels = 8192;

// Borders of the map that the window around a pixel reaches over.
constexpr int kTop = 1, kBottom = 2, kLeft = 4, kRight = 8;

int borders_at(const ConvolutionTask& task, int row, int column) {
  return (row == 0 ? kTop : 0) | (row == task.height - 1 ? kBottom : 0) |
         (column == 0 ? kLeft : 0) | (column == task.width - 1 ? kRight : 0);
}

bool is_outside(int tap, int borders) {
  const int row = tap / 3, column = tap % 3;
  return (row == 0 && (borders & kTop)) || (row == 2 && (borders & kBottom)) ||
         (column == 0 && (borders & kLeft)) || (column == 2 && (borders & kRight));
}

void check(const ConvolutionShape& s) {
  const auto fail = [](const std::string& what) { throw std::invalid_argument(what); };
  for (const int channels : {s.channels_in, s.channels_out}) {
    if (channels < 8 || channels > kMostChannels || channels % 8 != 0) {
      fail("a convolution has " + std::to_string(channels) +
           " channels; expected a multiple of 8 from 8 to 8192");
    }
  }
  if (s.kernel != 1 && s.kernel != 3) {
    fail("a kernel is " + std::to_string(s.kernel) + " pixels wide; expected 1 or 3");
  }
  if (s.stride != 1 && s.stride != 2) {
    fail("a stride is " + std::to_string(s.stride) + "; expected 1 or 2");
  }
  const int depth = s.kernel * s.kernel * s.channels_in;
  if (depth > INT16_MAX) {
    fail("a convolution sums " + std::to_string(depth) + " products; the engine takes at most " +
         std::to_string(INT16_MAX));
  }
}

// Pixels of one output row, from which copy_windows takes the 3x3 taps around each.
struct Run {
  const uint8_t* left;  // the left neighbour of the first
  std::size_t line, step;  // bytes to the next line; to the next pixel of the output
  std::size_t bytes;  // of a pixel
  bool above, below;  // the lines there are outside the map
  int count;
};

// `bytes` as a constant where kBytes > 0, since a call of memcpy would cost more than such a short
// copy.
template <int kBytes>
void copy_windows(const Run& run, uint8_t* to, std::size_t to_stride) {
  const std::size_t bytes = kBytes > 0 ? kBytes : run.bytes;
  const uint8_t* middle = run.left;
  for (int i = 0; i < run.count; ++i, middle += run.step, to += to_stride) {
    if (run.above) std::memset(to, 0, 3 * bytes);
    else std::memcpy(to, middle - run.line, 3 * bytes);
    std::memcpy(to + 3 * bytes, middle, 3 * bytes);
    if (run.below) std::memset(to + 6 * bytes, 0, 3 * bytes);
    else std::memcpy(to + 6 * bytes, middle + run.line, 3 * bytes);
  }
}

using CopyWindows = void (*)(const Run&, uint8_t*, std::size_t);

CopyWindows choose_copy(std::size_t bytes) {
  switch (bytes) {
    case 2: return copy_windows<2>;
    case 4: return copy_windows<4>;
    case 6: return copy_windows<6>;
    case 8: return copy_windows<8>;
    case 12: return copy_windows<12>;
    case 16: return copy_windows<16>;
    case 24: return copy_windows<24>;
    case 32: return copy_windows<32>;
    default: return copy_windows<0>;
  }
}

// Calls function(pixel, row, column, count) for the parts of output rows in a task.
template <class Function>
void for_rows(const ConvolutionTask& task, int out_width, Function&& function) {
  for (int pixel = task.pixel_begin, count; pixel < task.pixel_end; pixel += count) {
    const int column = pixel % out_width;
    count = std::min(out_width - column, task.pixel_end - pixel);
    function(pixel, pixel / out_width, column, count);
  }
}

}  // namespace

Convolution::Convolution(const ConvolutionShape& shape, const uint8_t* bits,
                         const Backend& backend)
    : shape_(shape), product_(backend.product) {
  check(shape);
  const std::size_t granule = product_.row_granule;
  pixel_bytes_ = shape.channels_in / 8;
  depth_bytes_ = shape.kernel * shape.kernel * pixel_bytes_;
  row_bytes_ = (depth_bytes_ + granule - 1) / granule * granule;
  rows_bytes_ = (kChunkPixels * row_bytes_ + 63) / 64 * 64;
  product_scratch_bytes_ = product_.scratch_bytes(row_bytes_);
  Buffer<uint8_t> rows(shape.channels_out * row_bytes_);
  for (int c = 0; c < shape.channels_out; ++c) {
    std::memcpy(rows.data() + c * row_bytes_, bits + c * depth_bytes_, depth_bytes_);
  }
  packed_ = Buffer<uint8_t>(product_.packed_bytes(shape.channels_out, row_bytes_));
  product_.pack(rows.data(), shape.channels_out, row_bytes_, packed_.data());
  if (shape.kernel == 3) make_border(bits);
}

// A tap outside the map reads zero bits, so the product counts it as inputs of -1: it adds minus
// the sum of its weights, where zero padding adds nothing.
void Convolution::make_border(const uint8_t* bits) {
  border_ = Buffer<int16_t>(16 * static_cast<std::size_t>(shape_.channels_out));
  for (int c = 0; c < shape_.channels_out; ++c) {
    int tap_sums[9];
    for (int tap = 0; tap < 9; ++tap) {
      int positive = 0;
      for (std::size_t i = 0; i < pixel_bytes_; ++i) positive += __builtin_popcount(*bits++);
      tap_sums[tap] = 2 * positive - shape_.channels_in;
    }
    for (int borders = 0; borders < 16; ++borders) {
      int sum = 0;
      for (int tap = 0; tap < 9; ++tap) {
        if (is_outside(tap, borders)) sum += tap_sums[tap];
      }
      border_[borders * shape_.channels_out + c] = static_cast<int16_t>(sum);
    }
  }
}

bool Convolution::reads_in_place() const {
  return shape_.kernel == 1 && shape_.stride == 1 && row_bytes_ == depth_bytes_;
}

void Convolution::run(const ConvolutionTask& task) const {
  const std::size_t stride = shape_.channels_out;
  ProductArguments arguments = {};
  arguments.pixels = task.pixel_end - task.pixel_begin;
  arguments.row_bytes = row_bytes_;
  arguments.packed = packed_.data();
  arguments.channel_begin = task.channel_begin;
  arguments.channel_end = task.channel_end;
  arguments.depth_bits = shape_.kernel * shape_.kernel * shape_.channels_in;
  arguments.dots = task.dots + task.pixel_begin * stride;
  arguments.dot_stride = stride;
  arguments.scratch = task.scratch + rows_bytes_;
  arguments.row_stride = row_bytes_;
  if (reads_in_place()) {
    arguments.rows = task.signs + task.pixel_begin * pixel_bytes_;
  } else {
    gather(task, task.scratch);
    arguments.rows = task.scratch;
  }
  product_.multiply(arguments);
  if (shape_.kernel == 3) correct_border(task);
}

void Convolution::gather(const ConvolutionTask& task, uint8_t* rows) const {
  if (row_bytes_ > depth_bytes_) std::memset(rows, 0, kChunkPixels * row_bytes_);  // padding
  const std::size_t line = task.width * pixel_bytes_, step = shape_.stride * pixel_bytes_;
  const CopyWindows copy = choose_copy(pixel_bytes_);
  for_rows(task, out_side(task.width), [&](int pixel, int row, int column, int count) {
    const int centre_row = row * shape_.stride;
    const uint8_t* from = task.signs + centre_row * line + column * step;
    uint8_t* to = rows + (pixel - task.pixel_begin) * row_bytes_;
    if (shape_.kernel == 1) {
      for (int i = 0; i < count; ++i) {
        std::memcpy(to + i * row_bytes_, from + i * step, pixel_bytes_);
      }
      return;
    }
    const auto at_side = [&](int i) {
      const int borders = borders_at(task, centre_row, (column + i) * shape_.stride);
      gather_at_side(to + i * row_bytes_, from + i * step, line, borders);
    };
    const bool at_left = column == 0;
    const bool at_right = (column + count - 1) * shape_.stride == task.width - 1;
    if (at_left) at_side(0);
    if (at_right && !(at_left && count == 1)) at_side(count - 1);
    const int first = at_left ? 1 : 0, inner = count - first - (at_right ? 1 : 0);
    if (inner <= 0) return;
    const Run run = {from + first * step - pixel_bytes_, line, step, pixel_bytes_,
                     centre_row == 0, centre_row == task.height - 1, inner};
    copy(run, to + first * row_bytes_, row_bytes_);
  });
}

void Convolution::gather_at_side(uint8_t* to, const uint8_t* pixel, std::size_t line,
                                 int borders) const {
  for (int tap = 0; tap < 9; ++tap, to += pixel_bytes_) {
    if (is_outside(tap, borders)) {
      std::memset(to, 0, pixel_bytes_);
    } else {
      const std::ptrdiff_t down = tap / 3 - 1, right = tap % 3 - 1;
      std::memcpy(to, pixel + down * static_cast<std::ptrdiff_t>(line) +
                          right * static_cast<std::ptrdiff_t>(pixel_bytes_), pixel_bytes_);
    }
  }
}

void Convolution::correct_border(const ConvolutionTask& task) const {
  const int out_width = out_side(task.width);
  for_rows(task, out_width, [&](int pixel, int row, int column, int count) {
    const int centre_row = row * shape_.stride;
    const bool whole_row = centre_row == 0 || centre_row == task.height - 1;
    // Elsewhere only the ends of the row lie at a border.
    const int step = whole_row ? 1 : std::max(1, out_width - 1);
    const int first = whole_row || column == 0 ? column : out_width - 1;
    for (int c = first; c < column + count; c += step) {
      correct_pixel(task, pixel + c - column, borders_at(task, centre_row, c * shape_.stride));
    }
  });
}

void Convolution::correct_pixel(const ConvolutionTask& task, int pixel, int borders) const {
  if (borders == 0) return;
  const int16_t* correction = border_.data() + borders * shape_.channels_out;
  int16_t* dots = task.dots + pixel * static_cast<std::size_t>(shape_.channels_out);
  for (int c = task.channel_begin; c < task.channel_end; ++c) {
    dots[c] = static_cast<int16_t>(dots[c] + correction[c]);
  }
}

}  // namespace bicrossnet
