// NEON with FEAT_I8MM: smmla multiplies two rows of eight signed bytes by two others and adds the sums
// of the products to four sums.
#pragma once

#include "vectors_neondot.h"

#if defined(MOBILEMOE_ARM64)

#if defined(__clang__)
#define MOBILEMOE_BEGIN_NEONI8MM \
  _Pragma("clang attribute push(__attribute__((target(\"dotprod,i8mm\"))), apply_to=function)")
#else
#define MOBILEMOE_BEGIN_NEONI8MM \
  _Pragma("GCC push_options") _Pragma("GCC target(\"arch=armv8.2-a+dotprod+i8mm\")")
#endif

MOBILEMOE_BEGIN_NEONI8MM

namespace mobilemoe {

struct NeonI8mm : NeonDot {
  // sums: a0 b0, a0 b1, a1 b0, a1 b1 of the rows 0 and 1 of `a` and of `b`.
  static int32x4_t add_rows(int32x4_t sums, int8x16_t a, int8x16_t b) {
    return vmmlaq_s32(sums, a, b);
  }
};

}  // namespace mobilemoe

MOBILEMOE_END

#endif  // MOBILEMOE_ARM64
