// A network's weights, prepared for one back end; never changed after construction.
#pragma once

#include <vector>

#include "backend.h"
#include "bicrossnet_engine.h"
#include "buffer.h"
#include "convolution.h"

namespace bicrossnet {

// Channels of a unit over those of the hidden layer of its squeeze-excite.
constexpr int kReduction = 8;

// A matrix and a bias, as Passes::linear takes them.
struct Linear {
  int inputs, outputs;  // outputs: rounded up to whole blocks
  Buffer<float> weight, bias;
};

struct Unit {
  Unit(const bcn_unit& description, const Backend& backend);

  std::size_t bytes() const;

  int channels, kernel, stride;
  Convolution convolution;
  Buffer<float> threshold, gain1, offset1, slope, mix, gain2, offset2;
  Buffer<float> residual_slope;  // empty: not elementwise
  Linear reduce, expand;         // the two of the squeeze-excite
};

// A 3x3 unit, then one 1x1 unit or two side by side.
struct Block {
  int first;       // index of the 3x3 unit
  int pointwise;   // number of the 1x1 units after it
};

class Network {
 public:
  // Throws std::invalid_argument.
  Network(const bcn_network_description& description, const Backend& backend);

  const Backend& backend() const { return backend_; }
  const std::vector<Unit>& units() const { return units_; }
  const std::vector<Block>& blocks() const { return blocks_; }
  int stem_channels() const { return stem_channels_; }
  int embedding_dim() const { return embedding_dim_; }
  const float* stem_weight() const { return stem_weight_.data(); }
  const float* stem_gain() const { return stem_gain_.data(); }
  const float* stem_offset() const { return stem_offset_.data(); }
  const float* last_slope() const { return last_slope_.data(); }
  std::size_t bytes() const;

 private:
  void lay_out_blocks();

  const Backend& backend_;
  std::vector<Unit> units_;
  std::vector<Block> blocks_;
  int stem_channels_, embedding_dim_;
  Buffer<float> stem_weight_, stem_gain_, stem_offset_, last_slope_;
};

}  // namespace bicrossnet
