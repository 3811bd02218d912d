// NEON as every 64-bit ARM core has it.
#if defined(__aarch64__)

#include "passes.h"
#include "product_neon.h"
#include "vector_neon.h"

namespace bicrossnet {
namespace {

bool runs_on_all() { return true; }

}  // namespace

const Backend neon_backend = {"neon", runs_on_all, kNeonProduct, make_passes<NeonVector>()};

}  // namespace bicrossnet

#endif
