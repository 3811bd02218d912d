#include "session.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "float_mode.h"

namespace bicrossnet {
namespace {

constexpr int kMostThreads = 256;

int checked_side(int side, const char* name) {
  if (side < 2 || side > kLargestSide || side % 2 != 0) {
    throw std::invalid_argument(std::string("the input's ") + name + " is " +
                                std::to_string(side) + " px; expected an even number from 2 to " +
                                std::to_string(kLargestSide));
  }
  return side;
}

int checked_threads(int threads) {
  if (threads < 1 || threads > kMostThreads) {
    throw std::invalid_argument("threads is " + std::to_string(threads) +
                                "; expected 1 to " + std::to_string(kMostThreads));
  }
  return threads;
}

}  // namespace

Session::Session(std::shared_ptr<const Network> network, int height, int width, int threads)
    : network_(std::move(network)), height_(checked_side(height, "height")),
      width_(checked_side(width, "width")), team_(checked_threads(threads)) {
  runner_ = std::make_unique<UnitRunner>(network_->backend(), team_, plan());
  for (int i = 0; i < 2; ++i) {
    values_[i] = Buffer<float>(value_count_);
    sums_[i] = Buffer<float>(sum_count_);
    for (Buffer<uint8_t>& signs : signs_[i]) signs = Buffer<uint8_t>(sign_bytes_);
  }
}

// Walks through the network once for the largest of every buffer and for who reads what.
RunnerSizes Session::plan() {
  RunnerSizes sizes;
  int height = height_ / 2, width = width_ / 2;
  const auto include_map = [&](int channels) {
    const std::size_t pixels = static_cast<std::size_t>(height) * width;
    value_count_ = std::max(value_count_, pixels * channels);
    sign_bytes_ = std::max(sign_bytes_, pixels * channels / 8);
    sum_count_ = std::max(sum_count_, static_cast<std::size_t>(chunk_count(height * width)) *
                                          channels);
  };
  include_map(network_->stem_channels());
  const std::vector<Unit>& units = network_->units();
  stem_reader_ = {units.front().threshold.data()};
  readers_.resize(units.size());
  for (const Block& block : network_->blocks()) {
    const Unit& first = units[block.first];
    const int in_pixels = height * width;
    if (first.stride == 2) {
      if (height % 2 != 0 || width % 2 != 0) {
        throw std::invalid_argument(
            "an input of " + std::to_string(height_) + " x " + std::to_string(width_) +
            " px cannot be halved as often as this network does; its sides must be multiples "
            "of 32");
      }
      height /= 2;
      width /= 2;
    }
    sizes.include(first, in_pixels, height * width);
    include_map(first.channels);
    const std::size_t next = block.first + 1 + block.pointwise;
    for (int k = 0; k < block.pointwise; ++k) {
      const std::size_t index = block.first + 1 + k;
      sizes.include(units[index], height * width, height * width);
      readers_[block.first].push_back(units[index].threshold.data());
      if (next < units.size()) {
        readers_[index].push_back(units[next].threshold.data() + k * first.channels);
      }
    }
    include_map(first.channels * block.pointwise);
  }
  sizes.sums = std::max(sizes.sums, sum_count_);  // pool writes its sums there
  return sizes;
}

std::size_t Session::bytes() const {
  std::size_t sum = runner_->bytes();
  for (int i = 0; i < 2; ++i) {
    sum += values_[i].bytes() + sums_[i].bytes() + signs_[i][0].bytes() + signs_[i][1].bytes();
  }
  return sum;
}

Map Session::first_map() {
  return {height_ / 2, width_ / 2, network_->stem_channels(), values_[0].data(), sums_[0].data(),
          {signs_[0][0].data(), signs_[0][1].data()}};
}

// The other buffers; but the values stay in place where every pixel is read and written by the
// same task of one unit: half the memory traffic.
Map Session::next_map(const Map& before, int stride, int channels) {
  const int side = before.sums == sums_[0].data() ? 1 : 0;
  const bool in_place = stride == 1 && channels == before.channels;
  float* other = before.values == values_[0].data() ? values_[1].data() : values_[0].data();
  return {before.height / stride, before.width / stride, channels,
          in_place ? before.values : other, sums_[side].data(),
          {signs_[side][0].data(), signs_[side][1].data()}};
}

void Session::run(const float* images, int count, float* embeddings) {
  team_.run([this, images, count, embeddings](Team::Member& member) {
    const std::size_t image_size = static_cast<std::size_t>(3) * height_ * width_;
    for (int i = 0; i < count; ++i) {
      forward(images + i * image_size,
              embeddings + i * static_cast<std::size_t>(network_->embedding_dim()), member,
              nullptr);
    }
  });
}

void Session::profile(const float* image, float* embedding, int64_t* nanoseconds) {
  team_.run([this, image, embedding, nanoseconds](Team::Member& member) {
    forward(image, embedding, member, nanoseconds);
  });
}

void Session::forward(const float* image, float* embedding, Team::Member& member,
                      int64_t* times) {
  const DefaultFloatMode mode;
  const bool measure = times && member.index() == 0;
  int64_t last = measure ? now_ns() : 0;
  const auto lap = [&](int64_t now) {
    *times++ = now - last;
    last = now;
  };
  const std::vector<Unit>& units = network_->units();
  Map map = first_map();
  stem(image, map, member);
  if (measure) lap(now_ns());
  for (const Block& block : network_->blocks()) {
    const Unit& first = units[block.first];
    UnitTimes ends = {};
    const auto run = [&](int index, const Map& input, int reader, const Map& output,
                         int channel) {
      runner_->run(units[index], input, reader, output, channel, readers_[index], member,
                   measure ? &ends : nullptr);
      if (measure) {
        lap(ends.convolution);
        lap(ends.gate);
        lap(ends.finish);
      }
    };
    const Map middle = next_map(map, first.stride, first.channels);
    run(block.first, map, 0, middle, 0);
    const Map output = next_map(middle, 1, first.channels * block.pointwise);
    for (int k = 0; k < block.pointwise; ++k) {
      run(block.first + 1 + k, middle, k, output, k * first.channels);
    }
    map = output;
  }
  pool(map, embedding, member);
}

void Session::stem(const float* image, const Map& map, Team::Member& member) {
  StemArguments all = {};
  all.image = image;
  all.height = height_;
  all.width = width_;
  all.weight = network_->stem_weight();
  all.gain = network_->stem_gain();
  all.offset = network_->stem_offset();
  all.channels = map.channels;
  member.share(map.chunks(), [&](int chunk) {
    StemArguments part = all;
    part.pixel_begin = chunk * kChunkPixels;
    part.pixel_end = std::min(part.pixel_begin + kChunkPixels, map.pixels());
    part.output = map.output(chunk, 0, stem_reader_);
    network_->backend().passes.stem(part);
  });
}

void Session::pool(const Map& map, float* embedding, Team::Member& member) {
  float* sums = runner_->sums();
  member.share(map.chunks(), [&](int chunk) {
    const int begin = chunk * kChunkPixels;
    network_->backend().passes.sum_map(map.values, map.channels, begin,
                                       std::min(begin + kChunkPixels, map.pixels()),
                                       network_->last_slope(),
                                       sums + static_cast<std::size_t>(chunk) * map.channels);
  });
  member.share(1, [&](int) {
    mean_of_chunks(sums, map.chunks(), map.channels, map.pixels(), embedding);
  });
}

}  // namespace bicrossnet
