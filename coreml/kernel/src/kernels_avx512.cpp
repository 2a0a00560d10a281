// The code path of AVX-512 with VNNI: its table of functions.
#include "code_paths_x86.h"
#include "vectors_avx512.h"

#if defined(MOBILEMOE_X86)

MOBILEMOE_BEGIN_AVX512

#include "attention_blocks.h"
#include "attention_rows.h"
#include "elementwise.h"
#include "expert_exact.h"

namespace mobilemoe {
namespace avx512 {
namespace {

const Products kExact = exact_products<Avx512>();

bool runs_here() {
  return avx2::runs_here() && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

}  // namespace
}  // namespace avx512

const Kernels kAvx512 = {
    "avx512vnni",
    avx512::runs_here,
    rms_norm<Avx512>,
    swiglu<Avx512>,
    router<Avx512>,
    {&avx512::kExact, &avx512::kInt16, &avx512::kInt8},
    {AttentionBlocks<avx512::Sixteen, float>::attend,
     AttentionBlocks<avx512::Sixteen, uint16_t>::attend,
     AttentionBlocks<avx512::Sixteen, int8_t>::attend},
    {attend_rows<avx512::Sixteen, float>, attend_rows<avx512::Sixteen, uint16_t>},
};

}  // namespace mobilemoe

MOBILEMOE_END

#endif  // MOBILEMOE_X86
