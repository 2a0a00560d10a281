// The products of int16 with NEON's sdot.
#include "code_paths_arm64.h"
#include "vectors_neondot.h"

#if defined(MOBILEMOE_ARM64)

MOBILEMOE_BEGIN_NEONDOT

#include "one_token_neon.h"
#include "products.h"
#include "tile_neon.h"

namespace mobilemoe {
namespace neondot {

extern const Products kInt16 =
    RoundedProducts<LinearNeon<NeonDot, 2>, ExpertNeon<NeonDot, 2>,
                    TileFours<NeonDot, 2>>::table();

}  // namespace neondot
}  // namespace mobilemoe

MOBILEMOE_END

#endif  // MOBILEMOE_ARM64
