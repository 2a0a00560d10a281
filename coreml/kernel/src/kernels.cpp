#include "kernels.h"

namespace mobilemoe {

const Kernels* const* all_kernels(int* count) {
  static const Kernels* const kernels[] = {
#if defined(MOBILEMOE_X86)
      &kAvx512,
      &kAvx2,
#endif
#if defined(MOBILEMOE_ARM64)
      &kNeonI8mm,
      &kNeonDot,
      &kNeon,
#endif
      &kPortable,
  };
  *count = static_cast<int>(sizeof kernels / sizeof kernels[0]);
  return kernels;
}

}  // namespace mobilemoe
