// The buffers and threads that carry images of one size through a network.
#pragma once

#include <memory>
#include <vector>

#include "network.h"
#include "team.h"
#include "unit_runner.h"

namespace bicrossnet {

class Session {
 public:
  // Throws std::invalid_argument, std::bad_alloc, std::runtime_error (no more threads).
  Session(std::shared_ptr<const Network> network, int height, int width, int threads);

  void run(const float* images, int count, float* embeddings);
  // nanoseconds: see bcn_session_profile.
  void profile(const float* image, float* embedding, int64_t* nanoseconds);
  std::size_t bytes() const;

 private:
  using Thresholds = std::vector<const float*>;

  RunnerSizes plan();
  Map first_map();
  Map next_map(const Map& before, int stride, int channels);
  void forward(const float* image, float* embedding, Team::Member& member, int64_t* times);
  void stem(const float* image, const Map& map, Team::Member& member);
  void pool(const Map& map, float* embedding, Team::Member& member);

  const std::shared_ptr<const Network> network_;
  const int height_, width_;
  std::size_t value_count_ = 0, sum_count_ = 0, sign_bytes_ = 0;
  std::unique_ptr<UnitRunner> runner_;
  // Two of each: what a unit reads and what it writes.
  Buffer<float> values_[2], sums_[2];
  Buffer<uint8_t> signs_[2][2];
  // Of every unit, for each part of its output: the thresholds of those that read it.
  std::vector<Thresholds> readers_;
  Thresholds stem_reader_;
  // Last, so that its threads are joined before anything that a late one may still look at goes.
  Team team_;
};

}  // namespace bicrossnet
