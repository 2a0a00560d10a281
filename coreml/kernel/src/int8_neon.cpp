// The products of int8 with NEON as every arm64 CPU has it: bytes are multiplied to words, whose sums
// are added in pairs.
#include "code_paths_arm64.h"
#include "vectors_neon.h"

#if defined(MOBILEMOE_ARM64)

#include "one_token_neon.h"
#include "products.h"
#include "tile_neon.h"

namespace mobilemoe {
namespace neon {

extern const Products kInt8 =
    RoundedProducts<LinearNeon<Neon, 1>, ExpertNeon<Neon, 1>, TileFours<Neon, 1>>::table();

}  // namespace neon
}  // namespace mobilemoe

#endif  // MOBILEMOE_ARM64
