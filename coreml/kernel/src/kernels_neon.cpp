// The NEON code path: float32 and attention in vectors; the integer precisions are plain C++ still.
#include "vectors_neon.h"

#if defined(MOBILEMOE_ARM64)

#include "attention_blocks.h"
#include "elementwise.h"
#include "expert_exact.h"
#include "products_portable.h"

namespace mobilemoe {
namespace {

const Products kExact = exact_products<Neon>();

bool runs_here() { return true; }

}  // namespace

const Kernels kNeon = {
    "neon",
    runs_here,
    rms_norm<Neon>,
    swiglu<Neon>,
    router<Neon>,
    {&kExact, &portable::kInt16, &portable::kInt8},
    {AttentionBlocks<Neon, float>::attend, AttentionBlocks<Neon, uint16_t>::attend,
     AttentionBlocks<Neon, int8_t>::attend},
};

}  // namespace mobilemoe

#endif  // MOBILEMOE_ARM64
