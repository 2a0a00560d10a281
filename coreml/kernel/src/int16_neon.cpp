// The products of int16 with NEON as every arm64 CPU has it: bytes are multiplied to words, whose sums
// are added in pairs.
#include "code_paths_arm64.h"
#include "vectors_neon.h"

#if defined(MOBILEMOE_ARM64)

#include "one_token_neon.h"
#include "products.h"
#include "tile_neon.h"

namespace mobilemoe {
namespace neon {

extern const Products kInt16 =
    RoundedProducts<LinearNeon<Neon, 2>, ExpertNeon<Neon, 2>, TileFours<Neon, 2>>::table();

}  // namespace neon
}  // namespace mobilemoe

#endif  // MOBILEMOE_ARM64
