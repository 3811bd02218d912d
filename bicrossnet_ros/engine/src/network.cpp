#include "network.h"

#include <stdexcept>
#include <string>

namespace bicrossnet {
namespace {

constexpr int kMostUnits = 1000;

const float* required(const float* values, const char* name) {
  if (!values) throw std::invalid_argument(std::string(name) + " is missing");
  return values;
}

// from: [rows][columns]; to: [columns][rows].
Buffer<float> transposed(const float* from, int rows, int columns) {
  Buffer<float> to(static_cast<std::size_t>(rows) * columns);
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < columns; ++c) to[c * static_cast<std::size_t>(rows) + r] = *from++;
  }
  return to;
}

// weight: [outputs][inputs]; see LinearArguments.
Linear make_linear(const float* weight, const float* bias, int outputs, int inputs) {
  const int padded = (outputs + kLinearBlock - 1) / kLinearBlock * kLinearBlock;
  Linear linear = {inputs, padded, Buffer<float>(static_cast<std::size_t>(padded) * inputs),
                   Buffer<float>(padded)};
  for (int j = 0; j < outputs; ++j) {
    float* block = linear.weight.data() + static_cast<std::size_t>(j / kLinearBlock) * inputs *
                                              kLinearBlock;
    for (int i = 0; i < inputs; ++i) block[i * kLinearBlock + j % kLinearBlock] = *weight++;
    linear.bias[j] = bias[j];
  }
  return linear;
}

Convolution make_convolution(const bcn_unit& u, const Backend& backend) {
  if (!u.bits) throw std::invalid_argument("bits is missing");
  return Convolution({u.channels, u.channels, u.kernel, u.stride}, u.bits, backend);
}

}  // namespace

Unit::Unit(const bcn_unit& u, const Backend& backend)
    : channels(u.channels), kernel(u.kernel), stride(u.stride),
      convolution(make_convolution(u, backend)) {
  const auto per_channel = [&](const float* values, const char* name) {
    return copy_of(required(values, name), channels);
  };
  threshold = per_channel(u.threshold, "threshold");
  gain1 = per_channel(u.gain1, "gain1");
  offset1 = per_channel(u.offset1, "offset1");
  slope = per_channel(u.slope, "slope");
  mix = per_channel(u.mix, "mix");
  gain2 = per_channel(u.gain2, "gain2");
  offset2 = per_channel(u.offset2, "offset2");
  if (u.elementwise) residual_slope = per_channel(u.residual_slope, "residual_slope");
  reduce = make_linear(required(u.reduce_weight, "reduce_weight"),
                       required(u.reduce_bias, "reduce_bias"), channels / kReduction, channels);
  expand = make_linear(required(u.expand_weight, "expand_weight"),
                       required(u.expand_bias, "expand_bias"), channels, channels / kReduction);
}

std::size_t Unit::bytes() const {
  std::size_t sum = convolution.bytes();
  for (const Buffer<float>* buffer :
       {&threshold, &gain1, &offset1, &slope, &mix, &gain2, &offset2, &residual_slope,
        &reduce.weight, &reduce.bias, &expand.weight, &expand.bias}) {
    sum += buffer->bytes();
  }
  return sum;
}

Network::Network(const bcn_network_description& d, const Backend& backend)
    : backend_(backend), stem_channels_(d.stem_channels) {
  if (!d.units) throw std::invalid_argument("units is missing");
  if (d.unit_count < 2 || d.unit_count > kMostUnits) {
    throw std::invalid_argument("the network has " + std::to_string(d.unit_count) +
                                " units; expected 2 to " + std::to_string(kMostUnits));
  }
  units_.reserve(d.unit_count);
  for (int i = 0; i < d.unit_count; ++i) {
    try {
      units_.emplace_back(d.units[i], backend);
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument("unit " + std::to_string(i) + ": " + error.what());
    }
  }
  lay_out_blocks();
  const int count = stem_channels_;
  stem_weight_ = transposed(required(d.stem_weight, "stem_weight"), count, 27);
  stem_gain_ = copy_of(required(d.stem_gain, "stem_gain"), count);
  stem_offset_ = copy_of(required(d.stem_offset, "stem_offset"), count);
  last_slope_ = copy_of(required(d.last_slope, "last_slope"), embedding_dim_);
}

void Network::lay_out_blocks() {
  int channels = stem_channels_;
  std::size_t i = 0;
  while (i < units_.size()) {
    Block block = {static_cast<int>(i), 0};
    if (units_[i].kernel != 3 || units_[i].channels != channels) {
      throw std::invalid_argument(
          "unit " + std::to_string(i) + " is " + std::to_string(units_[i].kernel) + " pixels wide "
          "with " + std::to_string(units_[i].channels) + " channels; expected 3 with " +
          std::to_string(channels));
    }
    for (++i; i < units_.size() && units_[i].kernel == 1; ++i) {
      const Unit& unit = units_[i];
      if (unit.channels != channels || unit.stride != 1 || unit.residual_slope.size()) {
        throw std::invalid_argument("unit " + std::to_string(i) +
                                    ": a 1x1 unit has stride 1, no elementwise product and as "
                                    "many channels as the 3x3 unit before it");
      }
      ++block.pointwise;
    }
    if (block.pointwise < 1 || block.pointwise > 2) {
      throw std::invalid_argument("unit " + std::to_string(block.first) + " is followed by " +
                                  std::to_string(block.pointwise) +
                                  " units of 1x1; expected one or two");
    }
    channels *= block.pointwise;
    blocks_.push_back(block);
  }
  embedding_dim_ = channels;
}

std::size_t Network::bytes() const {
  std::size_t sum = stem_weight_.bytes() + stem_gain_.bytes() + stem_offset_.bytes() +
                    last_slope_.bytes();
  for (const Unit& unit : units_) sum += unit.bytes();
  return sum;
}

}  // namespace bicrossnet
