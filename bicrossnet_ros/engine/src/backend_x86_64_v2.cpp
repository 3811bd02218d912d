// x86-64 with SSE4.2 and POPCNT: every PC processor since about 2009.
#if defined(__x86_64__)

#include "cpu_x86.h"
#include "passes.h"
#include "product_shuffle.h"
#include "vector_sse.h"

namespace bicrossnet {

const Backend x86_64_v2_backend = {"x86_64_v2", cpu_runs_x86_64_v2,
                                   make_shuffle_product<Bytes128>(), make_passes<SseVector>()};

}  // namespace bicrossnet

#endif
