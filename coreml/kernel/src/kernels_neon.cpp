// The NEON code paths: their tables of functions. They differ in the products of integers alone.
#include "arm64_features.h"
#include "code_paths_arm64.h"
#include "vectors_neon.h"

#if defined(MOBILEMOE_ARM64)

#include "attention_blocks.h"
#include "attention_rows.h"
#include "elementwise.h"
#include "expert_exact.h"

namespace mobilemoe {
namespace {

const Products kExact = exact_products<Neon>();

constexpr Kernels with(const char* name, bool (*runs_here)(), const Products* int16,
                       const Products* int8) {
  return {name,
          runs_here,
          rms_norm<Neon>,
          swiglu<Neon>,
          router<Neon>,
          {&kExact, int16, int8},
          {AttentionBlocks<Neon, float>::attend, AttentionBlocks<Neon, uint16_t>::attend,
           AttentionBlocks<Neon, int8_t>::attend},
          {attend_rows<Neon, float>, attend_rows<Neon, uint16_t>}};
}

bool always() { return true; }
bool has_both() { return has_dotprod() && has_i8mm(); }

}  // namespace

const Kernels kNeon = with("neon", always, &neon::kInt16, &neon::kInt8);
const Kernels kNeonDot = with("neondot", has_dotprod, &neondot::kInt16, &neondot::kInt8);
const Kernels kNeonI8mm = with("neoni8mm", has_both, &neoni8mm::kInt16, &neoni8mm::kInt8);

}  // namespace mobilemoe

#endif  // MOBILEMOE_ARM64
