// Portable C++: runs everywhere, and is what every other back end is compared with.
#include "passes.h"
#include "product_scalar.h"

namespace bicrossnet {
namespace {

bool runs_anywhere() { return true; }

}  // namespace

const Backend scalar_backend = {"scalar", runs_anywhere, kScalarProduct,
                                make_passes<ScalarVector>()};

}  // namespace bicrossnet
