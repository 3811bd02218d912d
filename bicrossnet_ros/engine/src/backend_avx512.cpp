// x86-64 with AVX-512 and its VPOPCNTDQ.
#if defined(__x86_64__)

#include "cpu_x86.h"
#include "passes.h"
#include "product_avx512.h"
#include "vector_avx512.h"

namespace bicrossnet {

const Backend avx512_backend = {"avx512", cpu_runs_avx512, kAvx512Product,
                                make_passes<Avx512Vector>()};

}  // namespace bicrossnet

#endif
