// NEON with the dot product instructions of ARMv8.2 (Cortex-A55, A75 and later).
#if defined(__aarch64__)

#define BCN_NEON_DOT
#include "passes.h"
#include "product_neon.h"
#include "vector_neon.h"

namespace bicrossnet {

const Backend neon_dot_backend = {"neon_dot", has_dot_product, kNeonProduct,
                                  make_passes<NeonVector>()};

}  // namespace bicrossnet

#endif
