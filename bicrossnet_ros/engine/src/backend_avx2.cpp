// x86-64 with AVX2.
#if defined(__x86_64__)

#include "cpu_x86.h"
#include "passes.h"
#include "product_shuffle.h"
#include "vector_avx2.h"

namespace bicrossnet {

const Backend avx2_backend = {"avx2", cpu_runs_avx2, make_shuffle_product<Bytes256>(),
                              make_passes<Avx2Vector>()};

}  // namespace bicrossnet

#endif
