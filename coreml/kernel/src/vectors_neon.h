// Eight floats at a time with NEON, as two vectors of four: every arm64 CPU has it.
#pragma once

#include "kernels.h"

#if defined(MOBILEMOE_ARM64)

#include <arm_neon.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "bytes.h"

namespace mobilemoe {

struct Neon {
  using Floats = float32x4x2_t;
  using Ints = int32x4x2_t;
  static constexpr int kLanes = 8;

  static Floats zero() { return set(0.0f); }
  static Floats set(float x) { return {{vdupq_n_f32(x), vdupq_n_f32(x)}}; }
  static Floats load(const float* x) { return {{vld1q_f32(x), vld1q_f32(x + 4)}}; }
  // Of any alignment.
  static Floats load_bytes(const uint8_t* x) {
    return {{vreinterpretq_f32_u8(vld1q_u8(x)), vreinterpretq_f32_u8(vld1q_u8(x + 16))}};
  }
  static void store(float* to, Floats x) {
    vst1q_f32(to, x.val[0]);
    vst1q_f32(to + 4, x.val[1]);
  }
  static Floats add(Floats a, Floats b) {
    return {{vaddq_f32(a.val[0], b.val[0]), vaddq_f32(a.val[1], b.val[1])}};
  }
  static Floats sub(Floats a, Floats b) {
    return {{vsubq_f32(a.val[0], b.val[0]), vsubq_f32(a.val[1], b.val[1])}};
  }
  static Floats mul(Floats a, Floats b) {
    return {{vmulq_f32(a.val[0], b.val[0]), vmulq_f32(a.val[1], b.val[1])}};
  }
  static Floats div(Floats a, Floats b) {
    return {{vdivq_f32(a.val[0], b.val[0]), vdivq_f32(a.val[1], b.val[1])}};
  }
  static Floats max(Floats a, Floats b) {
    return {{vmaxq_f32(a.val[0], b.val[0]), vmaxq_f32(a.val[1], b.val[1])}};
  }
  static Floats min(Floats a, Floats b) {
    return {{vminq_f32(a.val[0], b.val[0]), vminq_f32(a.val[1], b.val[1])}};
  }
  // a * b + c, and c - a * b.
  static Floats fma(Floats a, Floats b, Floats c) {
    return {{vfmaq_f32(c.val[0], a.val[0], b.val[0]), vfmaq_f32(c.val[1], a.val[1], b.val[1])}};
  }
  static Floats fnma(Floats a, Floats b, Floats c) {
    return {{vfmsq_f32(c.val[0], a.val[0], b.val[0]), vfmsq_f32(c.val[1], a.val[1], b.val[1])}};
  }
  // Always in the same order.
  static float sum(Floats x) { return vaddvq_f32(vaddq_f32(x.val[0], x.val[1])); }
  static float largest(Floats x) { return vmaxvq_f32(vmaxq_f32(x.val[0], x.val[1])); }
  // The larger of `sizes` and |x|, and the largest of eight sizes: what is not a number comes out of
  // NEON's maxima whatever it is compared with.
  static Floats larger_size(Floats sizes, Floats x) { return max(sizes, absolute(x)); }
  static float largest_size(Floats sizes) { return largest(sizes); }

  static Floats absolute(Floats x) { return {{vabsq_f32(x.val[0]), vabsq_f32(x.val[1])}}; }

  static Ints set_ints(int32_t x) { return {{vdupq_n_s32(x), vdupq_n_s32(x)}}; }
  static void store_ints(int32_t* to, Ints x) {
    vst1q_s32(to, x.val[0]);
    vst1q_s32(to + 4, x.val[1]);
  }
  static Ints add_ints(Ints a, Ints b) {
    return {{vaddq_s32(a.val[0], b.val[0]), vaddq_s32(a.val[1], b.val[1])}};
  }
  // To the nearest, ties to even; 0 for what is not a number.
  static Ints round(Floats x) { return {{vcvtnq_s32_f32(x.val[0]), vcvtnq_s32_f32(x.val[1])}}; }
  static Floats to_floats(Ints x) {
    return {{vcvtq_f32_s32(x.val[0]), vcvtq_f32_s32(x.val[1])}};
  }
  // x where `limit` is not exceeded, else 0, which a value that is not a number gives as well.
  static Floats zero_above(Floats x, float limit) {
    Floats y;
    for (int i = 0; i < 2; ++i) {
      const uint32x4_t inside = vcleq_f32(x.val[i], vdupq_n_f32(limit));
      y.val[i] = vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x.val[i]), inside));
    }
    return y;
  }
  // `x` where `condition` is not below `limit`, else 0.
  static Floats zero_below(Floats x, Floats condition, float limit) {
    Floats y;
    for (int i = 0; i < 2; ++i) {
      const uint32x4_t below = vcltq_f32(condition.val[i], vdupq_n_f32(limit));
      y.val[i] = vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(x.val[i]), below));
    }
    return y;
  }
  // `x` in the lanes that hold begin <= first + lane < end, else `other`.
  static Floats select_range(Floats x, Floats other, int first, int begin, int end) {
    static const int32_t lanes[4] = {0, 1, 2, 3};
    Floats y;
    for (int i = 0; i < 2; ++i) {
      const int32x4_t at = vaddq_s32(vld1q_s32(lanes), vdupq_n_s32(first + 4 * i));
      const uint32x4_t inside =
          vandq_u32(vcgeq_s32(at, vdupq_n_s32(begin)), vcltq_s32(at, vdupq_n_s32(end)));
      y.val[i] = vbslq_f32(inside, x.val[i], other.val[i]);
    }
    return y;
  }
  // x times 2^n, which is beyond float32's largest power for n = 128: two steps.
  static Floats times_power_of_two(Floats x, Ints n) {
    Floats y;
    for (int i = 0; i < 2; ++i) {
      const int32x4_t half = vshrq_n_s32(n.val[i], 1), bias = vdupq_n_s32(127);
      const int32x4_t first = vshlq_n_s32(vaddq_s32(half, bias), 23);
      const int32x4_t second = vshlq_n_s32(vaddq_s32(vsubq_s32(n.val[i], half), bias), 23);
      y.val[i] = vmulq_f32(vmulq_f32(x.val[i], vreinterpretq_f32_s32(first)),
                           vreinterpretq_f32_s32(second));
    }
    return y;
  }
  // For -126 <= n <= 127.
  static Floats times_normal_power_of_two(Floats x, Ints n) {
    Floats y;
    for (int i = 0; i < 2; ++i) {
      const int32x4_t power = vshlq_n_s32(vaddq_s32(n.val[i], vdupq_n_s32(127)), 23);
      y.val[i] = vmulq_f32(x.val[i], vreinterpretq_f32_s32(power));
    }
    return y;
  }

  static Floats widen(const float* x) { return load(x); }
  static Floats widen(const uint16_t* x) {  // float16
    return widen(vreinterpretq_f16_u16(vld1q_u16(x)));
  }
  static Floats widen(const int8_t* x) { return widen(vld1_s8(x)); }
  static float scale_of(const uint8_t* bytes) { return mobilemoe::load<__fp16>(bytes); }
  // Up to eight scales; what lies behind `count` is 0, and not read.
  static Floats load_scales(const uint8_t* bytes, int count) {
    if (count >= 8) return widen(vreinterpretq_f16_u8(vld1q_u8(bytes)));
    uint16_t some[8] = {};
    std::memcpy(some, bytes, static_cast<size_t>(count) * 2);
    return widen(some);
  }

  // The 32 codes of a group: columns 0, 2, ..., 14; 16, ..., 30; 1, 3, ..., 15; 17, ..., 31.
  static void unpack(const uint8_t* codes, Floats* values) {
    const int8x16_t bytes = vreinterpretq_s8_u8(vld1q_u8(codes));
    const int8x16_t even = vshrq_n_s8(vshlq_n_s8(bytes, 4), 4), odd = vshrq_n_s8(bytes, 4);
    values[0] = widen(vget_low_s8(even));
    values[1] = widen(vget_high_s8(even));
    values[2] = widen(vget_low_s8(odd));
    values[3] = widen(vget_high_s8(odd));
  }
  // Eight even columns and eight odd ones, back into their order.
  static void store_columns(const float* even, const float* odd, float* y) {
    store_columns(vld1q_f32(even), vld1q_f32(odd), y);
    store_columns(vld1q_f32(even + 4), vld1q_f32(odd + 4), y + 8);
  }
  static void store_columns(float32x4_t even, float32x4_t odd, float* y) {
    const float32x4x2_t columns{{even, odd}};  // clang's vst2q is a macro: no braces in its arguments
    vst2q_f32(y, columns);
  }
  // Integers that fit into 16 bits, 16 of them.
  static void store_words(int16_t* to, Ints a, Ints b) {
    vst1q_s16(to, vcombine_s16(vmovn_s32(a.val[0]), vmovn_s32(a.val[1])));
    vst1q_s16(to + 8, vcombine_s16(vmovn_s32(b.val[0]), vmovn_s32(b.val[1])));
  }

  // What the inner products of the integer precisions use besides. Codes as signed bytes, from the
  // low nibbles (even columns) and from the high ones.
  static int8x16_t even_codes(uint8x16_t bytes) {
    return vshrq_n_s8(vreinterpretq_s8_u8(vshlq_n_u8(bytes, 4)), 4);
  }
  static int8x16_t odd_codes(uint8x16_t bytes) {
    return vshrq_n_s8(vreinterpretq_s8_u8(bytes), 4);
  }
  // `count`, which the compiler does not see: of a loop that shall stay one. GCC 12 else unrolls it and
  // loads ahead until sums have no registers left.
  static int rounds(int count) {
    asm volatile("" : "+r"(count));
    return count;
  }
  // Of sums of such codes times integers.
  static float32x4_t sums_to_floats(int32x4_t sums) { return vcvtq_f32_s32(sums); }

  // Adds a[i] b[i] + c[i] d[i] for 16 columns, in any lane. Four products fit into 16 bits.
  static int32x4_t add_products(int32x4_t sums, int8x16_t a, int8x16_t b, int8x16_t c,
                                int8x16_t d) {
    int16x8_t words = vmull_s8(vget_low_s8(a), vget_low_s8(b));
    words = vmlal_high_s8(words, a, b);
    words = vmlal_s8(words, vget_low_s8(c), vget_low_s8(d));
    words = vmlal_high_s8(words, c, d);
    return vpadalq_s16(sums, words);
  }
  // Adds to lane i the products 4 i to 4 i + 3.
  static int32x4_t add_fours(int32x4_t sums, int8x16_t a, int8x16_t b) {
    const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_high_s8(a, b);
    return vpadalq_s16(sums, vpaddq_s16(low, high));
  }
  // The same with four bytes `b` for all lanes: those of lane kLane.
  template <int kLane>
  static int32x4_t add_fours(int32x4_t sums, int8x16_t a, int8x16_t b) {
    return add_fours(sums, a, vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(b), kLane)));
  }

 private:
  static Floats widen(int8x8_t x) {
    const int16x8_t words = vmovl_s8(x);
    return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(words))), vcvtq_f32_s32(vmovl_high_s16(words))}};
  }
  static Floats widen(float16x8_t x) {
    return {{vcvt_f32_f16(vget_low_f16(x)), vcvt_high_f32_f16(x)}};
  }
};

}  // namespace mobilemoe

#endif  // MOBILEMOE_ARM64
