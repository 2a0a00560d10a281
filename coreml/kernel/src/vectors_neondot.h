// NEON with FEAT_DotProd: sdot multiplies 16 pairs of signed bytes and adds four products to each of
// four sums. And the pragmas around what is compiled for it (vectors_avx2.h says what those mean).
#pragma once

#include "vectors_neon.h"

#if defined(MOBILEMOE_ARM64)

#if defined(__clang__)
#define MOBILEMOE_BEGIN_NEONDOT \
  _Pragma("clang attribute push(__attribute__((target(\"dotprod\"))), apply_to=function)")
#define MOBILEMOE_END _Pragma("clang attribute pop")
#else
#define MOBILEMOE_BEGIN_NEONDOT \
  _Pragma("GCC push_options") _Pragma("GCC target(\"arch=armv8.2-a+dotprod\")")
#define MOBILEMOE_END _Pragma("GCC pop_options")
#endif

MOBILEMOE_BEGIN_NEONDOT

namespace mobilemoe {

// Codes are sixteen times as large, in the upper four bits of a byte, where they need no sign to be
// filled in; the conversion to floats divides by sixteen.
struct NeonDot : Neon {
  static int8x16_t even_codes(uint8x16_t bytes) {
    return vreinterpretq_s8_u8(vshlq_n_u8(bytes, 4));
  }
  static int8x16_t odd_codes(uint8x16_t bytes) {
    return vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(0xf0)));
  }
  static float32x4_t sums_to_floats(int32x4_t sums) { return vcvtq_n_f32_s32(sums, 4); }

  static int32x4_t add_products(int32x4_t sums, int8x16_t a, int8x16_t b, int8x16_t c,
                                int8x16_t d) {
    return vdotq_s32(vdotq_s32(sums, a, b), c, d);
  }
  static int32x4_t add_fours(int32x4_t sums, int8x16_t a, int8x16_t b) {
    return vdotq_s32(sums, a, b);
  }
  template <int kLane>
  static int32x4_t add_fours(int32x4_t sums, int8x16_t a, int8x16_t b) {
    return vdotq_laneq_s32(sums, a, b, kLane);
  }
};

}  // namespace mobilemoe

MOBILEMOE_END

#endif  // MOBILEMOE_ARM64
