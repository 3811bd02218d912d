#include "backend.h"

namespace bicrossnet {

// The macros say which back ends this compiler could not build (engine/build.py).
const Backend* const kBackends[] = {
#if defined(__x86_64__)
#ifndef BCN_NO_AVX512
    &avx512_backend,
#endif
#ifndef BCN_NO_AVX2
    &avx2_backend,
#endif
#ifndef BCN_NO_X86_64_V2
    &x86_64_v2_backend,
#endif
#elif defined(__aarch64__)
#ifndef BCN_NO_NEON_DOT
    &neon_dot_backend,
#endif
#ifndef BCN_NO_NEON
    &neon_backend,
#endif
#endif
    &scalar_backend,
    nullptr,
};

}  // namespace bicrossnet
