// The inner products of one token with NEON (linear_one.h, expert_one.h). Templates of the loops: `V`
// tells the code paths apart; kBytes of an activation, see activation_bytes.h.
#pragma once

#include "activation_bytes.h"
#include "vectors_neon.h"

namespace mobilemoe {

// `Wide` of linear_one.h and expert_one.h: one group of 32 codes, 16 bytes.
template <typename V>
struct OneGroup {
  using Codes = uint8x16_t;
  using Floats = float32x4_t;
  static constexpr int kGroups = 1;

  static Codes load_codes(const uint8_t* bytes, int) { return vld1q_u8(bytes); }
  static Floats zero() { return vdupq_n_f32(0); }
  static Floats load(const float* x) { return vld1q_f32(x); }
  static Floats mul(Floats a, Floats b) { return vmulq_f32(a, b); }
  static Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
  static float sum(Floats x) { return vaddvq_f32(x); }
  static Floats to_floats(int32x4_t sums) { return V::sums_to_floats(sums); }
  // Up to four scales; what lies behind `count` is 0, and not read.
  static Floats load_scales(const uint8_t* bytes, int count) {
    if (count >= 4) return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(bytes)));
    uint16x4_t some = vset_lane_u16(mobilemoe::load<uint16_t>(bytes), vdup_n_u16(0), 0);
    if (count > 1) some = vset_lane_u16(mobilemoe::load<uint16_t>(bytes + 2), some, 1);
    if (count > 2) some = vset_lane_u16(mobilemoe::load<uint16_t>(bytes + 4), some, 2);
    return vcvt_f32_f16(vreinterpret_f16_u16(some));
  }
  // Of four values, the one of load `i`, in all lanes. Compilers unroll the loop over `i`, and take the
  // lane into the multiplication.
  static int lanes_of(int i) { return i; }
  static Floats spread(Floats values, int lane) {
    switch (lane) {
      case 0: return vdupq_laneq_f32(values, 0);
      case 1: return vdupq_laneq_f32(values, 1);
      case 2: return vdupq_laneq_f32(values, 2);
      default: return vdupq_laneq_f32(values, 3);
    }
  }
  static int32x4_t spread(const int32_t* value) { return vld1q_dup_s32(value); }
  static Floats spread(const float* value) { return vld1q_dup_f32(value); }
};

template <typename VOf, int kBytes>
struct LinearNeon {
  using V = VOf;
  using Wide = OneGroup<V>;
  static constexpr float kLimit = byte_limit<kBytes>();

  struct Block {
    int8_t x[kBytes][2][16];  // even columns, odd columns
  };

  static void put(const int16_t* q, int, Block* block) { split_bytes<kBytes>(q, block->x[0][0]); }

  static int32x4_t multiply(uint8x16_t codes, const Block& block) {
    const int8x16_t even = V::even_codes(codes), odd = V::odd_codes(codes);
    int32x4_t sums = vdupq_n_s32(0);
    for (int byte = 0; byte < kBytes; ++byte) {
      if (byte > 0) sums = vshlq_n_s32(sums, 8);
      const auto& x = block.x[byte];
      sums = V::add_products(sums, even, vld1q_s8(x[0]), odd, vld1q_s8(x[1]));
    }
    return sums;
  }
};

// Four rows are interleaved; 16 rows of two bytes stay below 16 x 32,639 x 128.
template <typename VOf, int kBytes>
struct ExpertNeon {
  using V = VOf;
  using Wide = OneGroup<V>;
  static constexpr float kLimit = byte_limit<kBytes>();
  static constexpr int kTogether = 4, kWords = kBytes;

  // Byte `byte` of four rows.
  static typename V::Ints pack(const typename V::Ints* q, int byte) {
    typename V::Ints words;
    for (int i = 0; i < 2; ++i) {
      int32x4_t row[4];
      for (int r = 0; r < 4; ++r) {
        row[r] = byte == kBytes - 1 ? q[r].val[i] : vrshrq_n_s32(q[r].val[i], 8);
      }
      // Each takes the place of what the one before it has above its byte.
      words.val[i] = vsliq_n_s32(
          vsliq_n_s32(vsliq_n_s32(row[0], row[1], 8), row[2], 16), row[3], 24);
    }
    return words;
  }
  static typename V::Ints initial(typename V::Ints) { return V::set_ints(0); }

  // Of each four bytes of a group's 16: even columns, then odd ones.
  struct Sums {
    int32x4_t acc[4][2][kBytes];

    void begin(int32x4_t) {
      for (auto& four : acc) {
        for (auto& parity : four) {
          for (int32x4_t& sum : parity) sum = vdupq_n_s32(0);
        }
      }
    }
    void add(const uint8x16_t* rows, const int32x4_t* words) {
      const uint16x8_t a = vreinterpretq_u16_u8(vzip1q_u8(rows[0], rows[1]));
      const uint16x8_t b = vreinterpretq_u16_u8(vzip1q_u8(rows[2], rows[3]));
      const uint16x8_t c = vreinterpretq_u16_u8(vzip2q_u8(rows[0], rows[1]));
      const uint16x8_t d = vreinterpretq_u16_u8(vzip2q_u8(rows[2], rows[3]));
      const uint16x8_t fours[4] = {vzip1q_u16(a, b), vzip2q_u16(a, b), vzip1q_u16(c, d),
                                   vzip2q_u16(c, d)};
      for (int i = 0; i < 4; ++i) {
        const uint8x16_t bytes = vreinterpretq_u8_u16(fours[i]);
        const int8x16_t even = V::even_codes(bytes), odd = V::odd_codes(bytes);
        for (int byte = 0; byte < kBytes; ++byte) {
          const int8x16_t q = vreinterpretq_s8_s32(words[byte]);
          acc[i][0][byte] = V::add_fours(acc[i][0][byte], even, q);
          acc[i][1][byte] = V::add_fours(acc[i][1][byte], odd, q);
        }
      }
    }
    // sums [four][even, odd][4]
    void flush(float32x4_t steps, float* sums) const {
      for (const auto& four : acc) {
        for (const auto& parity : four) {
          const int32x4_t part =
              kBytes == 1 ? parity[0] : vaddq_s32(vshlq_n_s32(parity[0], 8), parity[kBytes - 1]);
          vst1q_f32(sums, vfmaq_f32(vld1q_f32(sums), V::sums_to_floats(part), steps));
          sums += 4;
        }
      }
    }
  };

  static void store_group(const float* sums, int, float* y) {
    for (int four = 0; four < 4; ++four, sums += 8, y += 8) {
      V::store_columns(vld1q_f32(sums), vld1q_f32(sums + 4), y);
    }
  }
};

}  // namespace mobilemoe
