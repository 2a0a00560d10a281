// The AVX2 code path: its table of functions.
#include "code_paths_x86.h"
#include "vectors_avx2.h"

#if defined(MOBILEMOE_X86)

MOBILEMOE_BEGIN_AVX2

#include "attention_blocks.h"
#include "attention_rows.h"
#include "elementwise.h"
#include "expert_exact.h"

namespace mobilemoe {
namespace avx2 {

const Products kExact = exact_products<Avx2>();

bool runs_here() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

}  // namespace avx2

const Kernels kAvx2 = {
    "avx2",
    avx2::runs_here,
    rms_norm<Avx2>,
    swiglu<Avx2>,
    router<Avx2>,
    {&avx2::kExact, &avx2::kInt16, &avx2::kInt8},
    {AttentionBlocks<Avx2, float>::attend, AttentionBlocks<Avx2, uint16_t>::attend,
     AttentionBlocks<Avx2, int8_t>::attend},
    {attend_rows<Avx2, float>, attend_rows<Avx2, uint16_t>},
};

}  // namespace mobilemoe

MOBILEMOE_END

#endif  // MOBILEMOE_X86
