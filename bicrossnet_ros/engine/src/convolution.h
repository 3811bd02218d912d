// One binary convolution, exact: bits in, int16 out, with zero padding of kernel / 2.
#pragma once

#include <cstdint>

#include "backend.h"
#include "buffer.h"

namespace bicrossnet {

struct ConvolutionShape {
  int channels_in, channels_out, kernel, stride;
};

// What one call works on.
struct ConvolutionTask {
  const uint8_t* signs;  // the whole input, [height][width][channels_in / 8]
  int height, width;
  int pixel_begin, pixel_end;  // of the output; at most kChunkPixels
  int channel_begin, channel_end;
  int16_t* dots;  // [output pixels][channels_out]
  uint8_t* scratch;
};

class Convolution {
 public:
  // bits: [channels_out][kernel][kernel][channels_in / 8]. Throws std::invalid_argument.
  Convolution(const ConvolutionShape& shape, const uint8_t* bits, const Backend& backend);

  const ConvolutionShape& shape() const { return shape_; }
  int out_side(int side) const { return (side - 1) / shape_.stride + 1; }
  std::size_t scratch_bytes() const { return rows_bytes_ + product_scratch_bytes_; }
  std::size_t bytes() const { return packed_.bytes() + border_.bytes(); }
  // Channel ranges of tasks begin at multiples of this.
  int channel_tile() const { return product_.channel_tile; }

  void run(const ConvolutionTask& task) const;

 private:
  bool reads_in_place() const;
  void gather(const ConvolutionTask& task, uint8_t* rows) const;
  void gather_at_side(uint8_t* to, const uint8_t* pixel, std::size_t line, int borders) const;
  void correct_border(const ConvolutionTask& task) const;
  void correct_pixel(const ConvolutionTask& task, int pixel, int borders) const;
  void make_border(const uint8_t* bits);

  ConvolutionShape shape_;
  Product product_;
  std::size_t pixel_bytes_, depth_bytes_, row_bytes_, rows_bytes_, product_scratch_bytes_;
  Buffer<uint8_t> packed_;
  // What taps outside the map are to add, for every combination of borders that a pixel touches:
  // [borders][channels_out]. 3x3 only.
  Buffer<int16_t> border_;
};

}  // namespace bicrossnet
