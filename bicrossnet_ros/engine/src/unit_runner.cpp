#include "unit_runner.h"

#include <algorithm>
#include <chrono>

namespace bicrossnet {
namespace {

constexpr int kTasksPerMember = 4;    // so that members that are late or slow take fewer
constexpr int kFewestChannels = 64;   // of a task: below, gathering the rows again costs too much
constexpr int kHiddenOfTask = 32, kGatesOfTask = 256;

int rounded_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// Channels of one task: all of them where the chunks alone keep the team busy, else a multiple of
// `step`.
int channels_of_task(int channels, int step, int chunks, int team) {
  if (team == 1 || chunks >= kTasksPerMember * team) return channels;
  const int groups = (kTasksPerMember * team + chunks - 1) / chunks;
  const int wanted = std::max(kFewestChannels, (channels + groups - 1) / groups);
  return std::min(channels, rounded_up(wanted, step));
}

// Signs and passes go by eight channels at least.
int channel_step(const Convolution& convolution) {
  const int tile = convolution.channel_tile();
  return tile % 8 == 0 ? tile : 8 * tile;
}

}  // namespace

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

MapOutput Map::output(int chunk, int channel, const std::vector<const float*>& thresholds) const {
  MapOutput output = {};
  output.map = values + channel;
  output.stride = channels;
  output.sums = sums + static_cast<std::size_t>(chunk) * channels + channel;
  output.sign_count = static_cast<int>(thresholds.size());
  for (std::size_t i = 0; i < thresholds.size(); ++i) {
    output.thresholds[i] = thresholds[i];
    output.signs[i] = signs[i] + channel / 8;
  }
  output.sign_stride = channels / 8;
  return output;
}

void RunnerSizes::include(const Unit& unit, int in_pixels, int out_pixels) {
  const std::size_t width = unit.channels;
  dots = std::max(dots, out_pixels * width);
  sums = std::max(sums, chunk_count(in_pixels) * width);
  scratch = std::max(scratch, unit.convolution.scratch_bytes());
  channels = std::max(channels, unit.channels);
}

UnitRunner::UnitRunner(const Backend& backend, Team& team, const RunnerSizes& sizes)
    : backend_(backend), team_(team), dots_(sizes.dots), sums_(sizes.sums),
      mixed_(sizes.channels), mean_(sizes.channels),
      hidden_(rounded_up(sizes.channels, kLinearBlock)),
      gate_(rounded_up(sizes.channels, kLinearBlock)),
      scratch_bytes_((sizes.scratch + 63) / 64 * 64),  // members share no cache line
      scratch_(scratch_bytes_ * team.size()) {}

std::size_t UnitRunner::bytes() const {
  return dots_.bytes() + sums_.bytes() + scratch_.bytes() + mixed_.bytes() + mean_.bytes() +
         hidden_.bytes() + gate_.bytes();
}

void UnitRunner::run(const Unit& unit, const Map& input, int reader, const Map& output,
                     int channel, const std::vector<const float*>& thresholds,
                     Team::Member& member, UnitTimes* times) {
  const bool measure = times && member.index() == 0;
  convolve(unit, input, reader, output, member);
  if (measure) times->convolution = now_ns();
  compute_gate(unit, input, output, member);
  if (measure) times->gate = now_ns();
  finish(unit, input, output, channel, thresholds, member);
  if (measure) times->finish = now_ns();
}

void UnitRunner::convolve(const Unit& unit, const Map& input, int reader, const Map& output,
                          Team::Member& member) {
  const int chunks = output.chunks();
  const int width = channels_of_task(unit.channels, channel_step(unit.convolution), chunks,
                                     team_.size());
  const int groups = (unit.channels + width - 1) / width;
  member.share(chunks * groups, [&](int task) {
    const int chunk = task / groups, begin = task % groups * width;
    ConvolutionTask work = {};
    work.signs = input.signs[reader];
    work.height = input.height;
    work.width = input.width;
    work.pixel_begin = chunk * kChunkPixels;
    work.pixel_end = std::min(work.pixel_begin + kChunkPixels, output.pixels());
    work.channel_begin = begin;
    work.channel_end = std::min(begin + width, unit.channels);
    work.dots = dots_.data();
    work.scratch = scratch_.data() + member.index() * scratch_bytes_;
    unit.convolution.run(work);

    ActivatedSumArguments sum = {};
    sum.dots = dots_.data() + static_cast<std::size_t>(work.pixel_begin) * unit.channels;
    sum.dot_stride = unit.channels;
    sum.pixels = work.pixel_end - work.pixel_begin;
    sum.channel_begin = work.channel_begin;
    sum.channel_end = work.channel_end;
    sum.gain = unit.gain1.data();
    sum.offset = unit.offset1.data();
    sum.slope = unit.slope.data();
    sum.sums = sums_.data() + static_cast<std::size_t>(chunk) * unit.channels;
    backend_.passes.sum_activated(sum);
  });
}

void mean_of_chunks(const float* sums, int chunks, int channels, int pixels, float* mean) {
  std::copy(sums, sums + channels, mean);
  for (int chunk = 1; chunk < chunks; ++chunk) {
    sums += channels;
    for (int c = 0; c < channels; ++c) mean[c] += sums[c];
  }
  const float scale = 1.0f / static_cast<float>(pixels);
  for (int c = 0; c < channels; ++c) mean[c] *= scale;
}

// The squeeze-excite sees mix * input + (1 - mix) * output, of which it needs the mean alone: no
// pass over a map. An input that is pooled for the shortcut has the mean of its pooled map.
void UnitRunner::compute_gate(const Unit& unit, const Map& input, const Map& output,
                              Team::Member& member) {
  const int channels = unit.channels;
  float* mixed = mixed_.data();
  member.share(1, [&](int) {
    mean_of_chunks(sums_.data(), output.chunks(), channels, output.pixels(), mixed);
    mean_of_chunks(input.sums, input.chunks(), channels, input.pixels(), mean_.data());
    for (int c = 0; c < channels; ++c) mixed[c] += unit.mix[c] * (mean_[c] - mixed[c]);
  });
  share_linear(unit.reduce, mixed, hidden_.data(), kHiddenOfTask, member,
               [&](int begin, int end) {
    for (int i = begin; i < end; ++i) hidden_[i] = std::max(hidden_[i], 0.0f);
  });
  share_linear(unit.expand, hidden_.data(), gate_.data(), kGatesOfTask, member,
               [&](int begin, int end) {
    backend_.passes.gate(gate_.data() + begin, unit.gain2.data() + begin,
                         std::min(end, channels) - begin);
  });
}

// outputs = matrix * inputs + bias, then `after` for every range of outputs.
template <class Function>
void UnitRunner::share_linear(const Linear& linear, const float* inputs, float* outputs,
                              int outputs_of_task, Team::Member& member, Function&& after) {
  const int tasks = (linear.outputs + outputs_of_task - 1) / outputs_of_task;
  member.share(tasks, [&](int task) {
    LinearArguments part = {};
    part.inputs = inputs;
    part.input_count = linear.inputs;
    part.weight = linear.weight.data();
    part.bias = linear.bias.data();
    part.begin = task * outputs_of_task;
    part.end = std::min(part.begin + outputs_of_task, linear.outputs);
    part.outputs = outputs;
    backend_.passes.linear(part);
    after(part.begin, part.end);
  });
}

void UnitRunner::finish(const Unit& unit, const Map& input, const Map& output, int channel,
                        const std::vector<const float*>& thresholds, Team::Member& member) {
  FinishArguments all = {};
  all.dots = dots_.data();
  all.dot_stride = unit.channels;
  all.x = input.values;
  all.x_stride = input.channels;
  all.x_width = input.width;
  all.stride = unit.stride;
  all.gain = unit.gain1.data();
  all.offset = unit.offset1.data();
  all.slope = unit.slope.data();
  all.gate = gate_.data();
  all.offset2 = unit.offset2.data();
  all.residual_slope = unit.residual_slope.data();
  const int width = channels_of_task(unit.channels, kFewestChannels, output.chunks(),
                                     team_.size());
  const int groups = (unit.channels + width - 1) / width;
  member.share(output.chunks() * groups, [&](int task) {
    const int chunk = task / groups;
    FinishArguments part = all;
    part.channel_begin = task % groups * width;
    part.channel_end = std::min(part.channel_begin + width, unit.channels);
    part.pixel_begin = chunk * kChunkPixels;
    part.pixel_end = std::min(part.pixel_begin + kChunkPixels, output.pixels());
    part.output = output.output(chunk, channel, thresholds);
    backend_.passes.finish(part);
  });
}

}  // namespace bicrossnet
