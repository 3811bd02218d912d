// One binary unit on a map: convolution, gate and last pass, shared out over a team.
#pragma once

#include <cstdint>
#include <vector>

#include "network.h"
#include "team.h"

namespace bicrossnet {

constexpr int kLargestSide = 8192;  // of a map, so that its pixels can be counted in an int

inline int chunk_count(int pixels) { return (pixels + kChunkPixels - 1) / kChunkPixels; }

// A map between two units. It owns nothing.
struct Map {
  int height, width, channels;
  float* values;      // [pixels][channels]
  float* sums;        // [chunks][channels], over the pixels of each chunk
  uint8_t* signs[2];  // [pixels][channels / 8] for each unit that reads the map

  int pixels() const { return height * width; }
  int chunks() const { return chunk_count(pixels()); }

  // Where chunk `chunk` of channels from `channel` on is written, for the given readers.
  MapOutput output(int chunk, int channel, const std::vector<const float*>& thresholds) const;
};

// Largest needs over all units that a runner will run.
struct RunnerSizes {
  std::size_t dots = 0, sums = 0, scratch = 0;
  int channels = 0;

  // out_pixels: of the unit's output.
  void include(const Unit& unit, int in_pixels, int out_pixels);
};

// When each phase ended, written by one member of the team; null: not measured.
struct UnitTimes {
  int64_t convolution, gate, finish;
};

class UnitRunner {
 public:
  UnitRunner(const Backend& backend, Team& team, const RunnerSizes& sizes);

  // Called by every member of the team with the same arguments. Reads signs[reader] of `input`;
  // writes the channels of `output` from `channel` on, and signs of it for each of `thresholds`
  // (given from that channel on). `output` may share its values with `input` at stride 1.
  void run(const Unit& unit, const Map& input, int reader, const Map& output, int channel,
           const std::vector<const float*>& thresholds, Team::Member& member, UnitTimes* times);

  // Scratch of one member; also free for others between two runs.
  float* sums() { return sums_.data(); }
  std::size_t bytes() const;

 private:
  void convolve(const Unit& unit, const Map& input, int reader, const Map& output,
                Team::Member& member);
  void compute_gate(const Unit& unit, const Map& input, const Map& output, Team::Member& member);
  template <class Function>
  void share_linear(const Linear& linear, const float* inputs, float* outputs,
                    int outputs_of_task, Team::Member& member, Function&& after);
  void finish(const Unit& unit, const Map& input, const Map& output, int channel,
              const std::vector<const float*>& thresholds, Team::Member& member);

  const Backend& backend_;
  Team& team_;
  Buffer<int16_t> dots_;
  Buffer<float> sums_;   // of the activated convolution, [chunks][channels]
  Buffer<float> mixed_, mean_, hidden_, gate_;
  std::size_t scratch_bytes_;
  Buffer<uint8_t> scratch_;
};

// mean[c] = (sum over the chunks, in order) / pixels.
void mean_of_chunks(const float* sums, int chunks, int channels, int pixels, float* mean);

// Nanoseconds of a clock that only goes forward.
int64_t now_ns();

}  // namespace bicrossnet
