// The C interface: turns exceptions into messages, and nothing else.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>

#include "backend.h"
#include "bicrossnet_engine.h"
#include "float_mode.h"
#include "network.h"
#include "session.h"
#include "unit_runner.h"

struct bcn_network {
  std::shared_ptr<const bicrossnet::Network> network;
};

struct bcn_session {
  bicrossnet::Session session;
};

struct bcn_convolution {
  bicrossnet::Convolution convolution;
  int height, width;
  bicrossnet::Buffer<uint8_t> scratch;
};

namespace bicrossnet {
namespace {

int32_t fail(char* error, int32_t error_bytes, const char* message) {
  if (error && error_bytes > 0) {
    std::snprintf(error, static_cast<std::size_t>(error_bytes), "%s", message);
  }
  return 1;
}

// Runs `function`; returns 0, or 1 with the message of what it threw. Makes no string of it: there
// may be no memory for one.
template <class Function>
int32_t guarded(char* error, int32_t error_bytes, Function&& function) {
  try {
    function();
    return 0;
  } catch (const std::bad_alloc&) {
    return fail(error, error_bytes, "not enough memory");
  } catch (const std::exception& exception) {
    return fail(error, error_bytes, exception.what());
  }
}

const Backend* find_backend(const char* name) {
  for (const Backend* const* backend = kBackends; *backend; ++backend) {
    if (std::strcmp((*backend)->name, name) == 0) return *backend;
  }
  return nullptr;
}

const Backend& choose_backend(const char* name) {
  if (!name) {
    for (const Backend* const* backend = kBackends; *backend; ++backend) {
      if ((*backend)->runs_here()) return **backend;
    }
  }
  const Backend* backend = name ? find_backend(name) : nullptr;
  if (!backend) {
    throw std::invalid_argument(std::string("no back end '") + (name ? name : "") +
                                "' in this build");
  }
  if (!backend->runs_here()) {
    throw std::invalid_argument(std::string("this CPU does not run the back end '") + name + "'");
  }
  return *backend;
}

void check_map(int height, int width) {
  if (height < 1 || width < 1 || height > kLargestSide || width > kLargestSide) {
    throw std::invalid_argument("a map is " + std::to_string(height) + " x " +
                                std::to_string(width) + " pixels; expected 1 to " +
                                std::to_string(kLargestSide) + " each");
  }
}

void check_pointers(bool all_there) {
  if (!all_there) throw std::invalid_argument("a pointer is null");
}

void run_unit(const bcn_unit& description, const Backend& backend, const float* x, int height,
              int width, float* y) {
  check_map(height, width);
  const DefaultFloatMode mode;
  const Unit unit(description, backend);
  if (unit.stride == 2 && (height % 2 != 0 || width % 2 != 0)) {
    throw std::invalid_argument("at stride 2 the map's sides must be even");
  }
  const std::vector<const float*> reader = {unit.threshold.data()};
  const int in_pixels = height * width, out_pixels = in_pixels / (unit.stride * unit.stride);
  const std::size_t count = static_cast<std::size_t>(in_pixels) * unit.channels;
  Buffer<float> values(count);
  Buffer<float> sums(static_cast<std::size_t>(chunk_count(in_pixels)) * unit.channels);
  Buffer<float> output_sums(sums.size());
  Buffer<uint8_t> signs(count / 8);
  const Map input = {height, width, unit.channels, values.data(), sums.data(),
                     {signs.data(), nullptr}};
  const Map output = {height / unit.stride, width / unit.stride, unit.channels, y,
                      output_sums.data(), {nullptr, nullptr}};
  for (int chunk = 0; chunk < input.chunks(); ++chunk) {
    const int begin = chunk * kChunkPixels, end = std::min(begin + kChunkPixels, in_pixels);
    backend.passes.copy(x, unit.channels, begin, end, input.output(chunk, 0, reader));
  }
  RunnerSizes sizes;
  sizes.include(unit, in_pixels, out_pixels);
  Team alone(1);
  UnitRunner runner(backend, alone, sizes);
  alone.run([&](Team::Member& member) {
    runner.run(unit, input, 0, output, 0, {}, member, nullptr);
  });
}

}  // namespace
}  // namespace bicrossnet

using bicrossnet::guarded;

extern "C" {

int32_t bcn_abi_version(void) { return BCN_ABI_VERSION; }

const char* bcn_backend_name(int32_t index) {
  int32_t count = 0;
  while (bicrossnet::kBackends[count]) ++count;
  return index >= 0 && index < count ? bicrossnet::kBackends[index]->name : nullptr;
}

int32_t bcn_backend_runs(const char* name) {
  const bicrossnet::Backend* backend = name ? bicrossnet::find_backend(name) : nullptr;
  return backend && backend->runs_here() ? 1 : 0;
}

int32_t bcn_network_create(const bcn_network_description* description, const char* backend,
                           bcn_network** network, char* error, int32_t error_bytes) {
  return guarded(error, error_bytes, [&] {
    bicrossnet::check_pointers(description && network);
    *network = nullptr;
    const bicrossnet::Backend& chosen = bicrossnet::choose_backend(backend);
    auto made = std::make_unique<bcn_network>();
    made->network = std::make_shared<const bicrossnet::Network>(*description, chosen);
    *network = made.release();
  });
}

void bcn_network_release(bcn_network* network) { delete network; }

const char* bcn_network_backend(const bcn_network* network) {
  return network->network->backend().name;
}

int64_t bcn_network_bytes(const bcn_network* network) {
  return static_cast<int64_t>(network->network->bytes());
}

int32_t bcn_network_embedding_dim(const bcn_network* network) {
  return network->network->embedding_dim();
}

int32_t bcn_session_create(bcn_network* network, int32_t height, int32_t width, int32_t threads,
                           bcn_session** session, char* error, int32_t error_bytes) {
  return guarded(error, error_bytes, [&] {
    bicrossnet::check_pointers(network && session);
    *session = nullptr;
    *session = new bcn_session{{network->network, height, width, threads}};
  });
}

void bcn_session_release(bcn_session* session) { delete session; }

int64_t bcn_session_bytes(const bcn_session* session) {
  return static_cast<int64_t>(session->session.bytes());
}

void bcn_session_run(bcn_session* session, const float* images, int32_t count,
                     float* embeddings) {
  session->session.run(images, count, embeddings);
}

void bcn_session_profile(bcn_session* session, const float* image, float* embedding,
                         int64_t* nanoseconds) {
  session->session.profile(image, embedding, nanoseconds);
}

int32_t bcn_unit_run(const bcn_unit* unit, const char* backend, const float* x, int32_t height,
                     int32_t width, float* y, char* error, int32_t error_bytes) {
  return guarded(error, error_bytes, [&] {
    bicrossnet::check_pointers(unit && x && y);
    bicrossnet::run_unit(*unit, bicrossnet::choose_backend(backend), x, height, width, y);
  });
}

int32_t bcn_convolution_create(int32_t channels_in, int32_t channels_out, int32_t kernel,
                               int32_t stride, int32_t height, int32_t width, const uint8_t* bits,
                               const char* backend, bcn_convolution** convolution, char* error,
                               int32_t error_bytes) {
  return guarded(error, error_bytes, [&] {
    bicrossnet::check_pointers(bits && convolution);
    *convolution = nullptr;
    bicrossnet::check_map(height, width);
    bicrossnet::Convolution made({channels_in, channels_out, kernel, stride}, bits,
                                 bicrossnet::choose_backend(backend));
    bicrossnet::Buffer<uint8_t> scratch(made.scratch_bytes());
    *convolution = new bcn_convolution{std::move(made), height, width, std::move(scratch)};
  });
}

void bcn_convolution_run(bcn_convolution* c, const uint8_t* x, int16_t* y) {
  const int pixels = c->convolution.out_side(c->height) * c->convolution.out_side(c->width);
  bicrossnet::ConvolutionTask task = {};
  task.signs = x;
  task.height = c->height;
  task.width = c->width;
  task.channel_end = c->convolution.shape().channels_out;
  task.dots = y;
  task.scratch = c->scratch.data();
  for (int begin = 0; begin < pixels; begin += bicrossnet::kChunkPixels) {
    task.pixel_begin = begin;
    task.pixel_end = std::min(begin + bicrossnet::kChunkPixels, pixels);
    c->convolution.run(task);
  }
}

void bcn_convolution_release(bcn_convolution* convolution) { delete convolution; }

double bcn_clock_hz(void) {
  // Each addition waits for the one before: one cycle each on every CPU this runs on.
  constexpr int64_t kAdditions = 1 << 22;
  double best = 0.0;
  for (int round = 0; round < 5; ++round) {
    const int64_t begin = bicrossnet::now_ns();
    uint64_t x = static_cast<uint64_t>(begin);
    for (int64_t i = 0; i < kAdditions / 8; ++i) {
      for (int k = 0; k < 8; ++k) {
        x += static_cast<uint64_t>(i) | 1;
        asm volatile("" : "+r"(x));
      }
    }
    const int64_t elapsed = bicrossnet::now_ns() - begin;
    best = std::max(best, kAdditions * 1e9 / static_cast<double>(std::max<int64_t>(elapsed, 1)));
  }
  return best;
}

}  // extern "C"
