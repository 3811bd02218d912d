/* C interface of the engine: a packed-binary BNext on a CPU.
 *
 * A network holds the weights as one back end wants them and is never changed after its creation;
 * any number of sessions, in any threads, may share it. A session holds the buffers and the
 * worker threads of one call at a time: two threads never run the same session at once.
 *
 * All functions that can fail return 0 on success and another value on failure, with a sentence in
 * `error` (at most `error_bytes` bytes, ended by a zero). Nothing is thrown across this interface.
 *
 * Results do not depend on the back end, the number of threads or the batch: every back end rounds
 * the same operations in the same order, so the same network gives the same bits everywhere.
 */
#ifndef BICROSSNET_ENGINE_H
#define BICROSSNET_ENGINE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BCN_API __attribute__((visibility("default")))
#define BCN_ABI_VERSION 1

/* BatchNorm and everything else per channel is folded before it comes here:
 * norm(x) = x * gain + offset. All pointers are read during bcn_network_create only. */
typedef struct {
  int32_t channels; /* in and out, a multiple of 8 */
  int32_t kernel;   /* 1 or 3; zero padding of kernel / 2 */
  int32_t stride;   /* 1 or 2 */
  int32_t elementwise;
  const uint8_t* bits;           /* [channels][kernel][kernel][channels / 8], bit 1 is +1 */
  const float* threshold;        /* [channels]: an input is +1 where x >= threshold */
  const float* gain1;            /* [channels] */
  const float* offset1;          /* [channels] */
  const float* slope;            /* [channels]: of the PReLU after the first norm */
  const float* mix;              /* [channels]: share of the input in the gate's input */
  const float* reduce_weight;    /* [channels / 8][channels] */
  const float* reduce_bias;      /* [channels / 8] */
  const float* expand_weight;    /* [channels][channels / 8] */
  const float* expand_bias;      /* [channels] */
  const float* gain2;            /* [channels] */
  const float* offset2;          /* [channels] */
  const float* residual_slope;   /* [channels]: of the PReLU on the shortcut; elementwise only */
} bcn_unit;

/* A 3x3 unit and the one or two 1x1 units that follow it, side by side: units are listed in the
 * order of execution, so the network's shape follows from their kernels. */
typedef struct {
  int32_t stem_channels;    /* a multiple of 8 */
  const float* stem_weight; /* [stem_channels][3][3][3] as (out, in, row, column); stride 2 */
  const float* stem_gain;   /* [stem_channels] */
  const float* stem_offset; /* [stem_channels] */
  int32_t unit_count;
  const bcn_unit* units;
  const float* last_slope; /* [channels of the last map]: PReLU before the mean */
} bcn_network_description;

typedef struct bcn_network bcn_network;
typedef struct bcn_session bcn_session;

BCN_API int32_t bcn_abi_version(void);

/* Names of the back ends that were built in, best first; NULL past the end. */
BCN_API const char* bcn_backend_name(int32_t index);
/* 1 if this CPU runs the back end, else 0 (also for an unknown name). */
BCN_API int32_t bcn_backend_runs(const char* name);

/* backend: a name, or NULL for the best that this CPU runs. */
BCN_API int32_t bcn_network_create(const bcn_network_description* description,
                                   const char* backend, bcn_network** network, char* error,
                                   int32_t error_bytes);
BCN_API void bcn_network_release(bcn_network* network);
BCN_API const char* bcn_network_backend(const bcn_network* network);
BCN_API int64_t bcn_network_bytes(const bcn_network* network);
BCN_API int32_t bcn_network_embedding_dim(const bcn_network* network);

/* height, width: of the input, multiples of 32. threads: 1 to 256, the caller's included.
 * The network stays alive until its last session is released. */
BCN_API int32_t bcn_session_create(bcn_network* network, int32_t height, int32_t width,
                                   int32_t threads, bcn_session** session, char* error,
                                   int32_t error_bytes);
BCN_API void bcn_session_release(bcn_session* session);
BCN_API int64_t bcn_session_bytes(const bcn_session* session);

/* images: [count][3][height][width]; embeddings: [count][embedding_dim], not normalised. */
BCN_API void bcn_session_run(bcn_session* session, const float* images, int32_t count,
                             float* embeddings);

/* One image; nanoseconds: [1 + 3 * unit_count]: the stem, then of every unit the convolution with
 * its channel sums, the gate, and the last pass. */
BCN_API void bcn_session_profile(bcn_session* session, const float* image, float* embedding,
                                 int64_t* nanoseconds);

/* One unit alone, for tests: x [height][width][channels] to
 * y [height / stride][width / stride][channels]. */
BCN_API int32_t bcn_unit_run(const bcn_unit* unit, const char* backend, const float* x,
                             int32_t height, int32_t width, float* y, char* error,
                             int32_t error_bytes);

/* One binary convolution alone, for tests and measurements. */
typedef struct bcn_convolution bcn_convolution;
BCN_API int32_t bcn_convolution_create(int32_t channels_in, int32_t channels_out, int32_t kernel,
                                       int32_t stride, int32_t height, int32_t width,
                                       const uint8_t* bits, const char* backend,
                                       bcn_convolution** convolution, char* error,
                                       int32_t error_bytes);
/* x: [height][width][channels_in / 8] bits; y: [ceil(height / stride)][...][channels_out] */
BCN_API void bcn_convolution_run(bcn_convolution* convolution, const uint8_t* x, int16_t* y);
BCN_API void bcn_convolution_release(bcn_convolution* convolution);

/* Cycles per second of this core right now, from a chain of dependent additions. */
BCN_API double bcn_clock_hz(void);

#ifdef __cplusplus
}
#endif
#endif
