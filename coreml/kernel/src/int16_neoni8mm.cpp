// The products of int16 with NEON's smmla for many tokens, and its sdot for one.
#include "code_paths_arm64.h"
#include "vectors_neoni8mm.h"

#if defined(MOBILEMOE_ARM64)

MOBILEMOE_BEGIN_NEONI8MM

#include "one_token_neon.h"
#include "products.h"
#include "tile_neoni8mm.h"

namespace mobilemoe {
namespace neoni8mm {

extern const Products kInt16 =
    RoundedProducts<LinearNeon<NeonI8mm, 2>, ExpertNeon<NeonI8mm, 2>, TileEights<2>>::table();

}  // namespace neoni8mm
}  // namespace mobilemoe

MOBILEMOE_END

#endif  // MOBILEMOE_ARM64
