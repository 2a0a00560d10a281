// The products of int8 with NEON's sdot.
#include "code_paths_arm64.h"
#include "vectors_neondot.h"

#if defined(MOBILEMOE_ARM64)

MOBILEMOE_BEGIN_NEONDOT

#include "one_token_neon.h"
#include "products.h"
#include "tile_neon.h"

namespace mobilemoe {
namespace neondot {

extern const Products kInt8 =
    RoundedProducts<LinearNeon<NeonDot, 1>, ExpertNeon<NeonDot, 1>,
                    TileFours<NeonDot, 1>>::table();

}  // namespace neondot
}  // namespace mobilemoe

MOBILEMOE_END

#endif  // MOBILEMOE_ARM64
