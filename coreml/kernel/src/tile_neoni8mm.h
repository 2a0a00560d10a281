// Tiles of many tokens whose products are those of two tokens by two outputs and eight inputs (add_rows
// of vectors_neoni8mm.h). A template of the loops.
#pragma once

#include "tile_neon.h"
#include "vectors_neoni8mm.h"

namespace mobilemoe {

// Codes [4 eights of inputs][8 pairs of outputs][2][8].
template <int kBytes>
struct TileEights : TileNeon<NeonI8mm, kBytes> {
  using Base = TileNeon<NeonI8mm, kBytes>;
  using V = NeonI8mm;
  using Base::kOutputs;
  static constexpr int kPairs = kOutputs / 2;
  static constexpr int kEight = kOutputs * 8;  // codes of eight inputs

  static void fill_linear(const uint8_t* const* rows, size_t offset, int8_t* to) {
    for (int pair = 0; pair < kPairs; ++pair, to += 16) {
      const uint8x16_t a = vld1q_u8(rows[2 * pair] + offset);
      const uint8x16_t b = vld1q_u8(rows[2 * pair + 1] + offset);
      store_rows(V::even_codes(a), V::even_codes(b), to);
      store_rows(V::odd_codes(a), V::odd_codes(b), to + 2 * kEight);
    }
  }
  static void fill_expert(const uint8_t* codes, size_t row_bytes, int part, int8_t* to) {
    codes += part * (kOutputs / 2);
    for (int eight = 0; eight < kGroup / 8; ++eight, codes += 8 * row_bytes, to += kEight) {
      // Eight rows of eight bytes, to eight bytes of each column of bytes.
      uint8x16_t fours[4];  // rows i and 4 + i, in turn
      for (int i = 0; i < 4; ++i) {
        const uint8x8_t low = vld1_u8(codes + i * row_bytes);
        const uint8x8_t high = vld1_u8(codes + (4 + i) * row_bytes);
        fours[i] = vcombine_u8(vzip1_u8(low, high), vzip2_u8(low, high));
      }
      const uint8x16x2_t a = vzipq_u8(fours[0], fours[2]), b = vzipq_u8(fours[1], fours[3]);
      for (int half = 0; half < 2; ++half) {
        const uint8x16x2_t c = vzipq_u8(a.val[half], b.val[half]);
        for (int i = 0; i < 2; ++i) {
          int8_t* even = to + (half * 2 + i) * 16;
          vst1q_s8(even, V::even_codes(c.val[i]));
          vst1q_s8(even + kOutputs * 4, V::odd_codes(c.val[i]));
        }
      }
    }
  }

  template <int kCount, bool kScaled>
  static void multiply(const TileToken* x, const Panel<int8_t, kOutputs>& panel, int blocks,
                       float (*sums)[kOutputs]) {
    constexpr int kTwos = (kCount + 1) / 2;
    // Of two tokens each; behind the last one the same again. [pair]: two outputs of either token.
    float totals[kTwos][kPairs][4] = {};
    for (int block = 0; block < blocks; ++block) {
      int32x4_t acc[kTwos][kPairs];
      Base::template clear<kTwos>(acc);
      for (int byte = 0; byte < kBytes; ++byte) {
        if (byte > 0) Base::template raise<kTwos>(acc);
        const int8_t* codes = panel.codes + block * kGroup * kOutputs;
        for (int half = 0, halves = V::rounds(2); half < halves; ++half, codes += 2 * kEight) {
          int8x16_t q[2][kTwos];
          for (int two = 0; two < kTwos; ++two) {
            const int8x16_t a = Base::load_half(x[2 * two], block, byte, half);
            const int8x16_t b = Base::load_half(x[second<kCount>(two)], block, byte, half);
            q[0][two] = join(a, b, 0);
            q[1][two] = join(a, b, 1);
          }
          for (int eight = 0; eight < 2; ++eight) {
            for (int pair = 0; pair < kPairs; ++pair) {
              const int8x16_t w = vld1q_s8(codes + eight * kEight + pair * 16);
              for (int two = 0; two < kTwos; ++two) {
                acc[two][pair] = V::add_rows(acc[two][pair], q[eight][two], w);
              }
            }
          }
        }
      }
      for (int two = 0; two < kTwos; ++two) {
        const float32x4_t steps = vcombine_f32(vdup_n_f32(x[2 * two].steps[block]),
                                               vdup_n_f32(x[second<kCount>(two)].steps[block]));
        for (int pair = 0; pair < kPairs; ++pair) {
          float* to = totals[two][pair];
          float32x4_t scale = steps;
          if (kScaled) {
            const float32x2_t scales = vld1_f32(panel.scales + block * kOutputs + 2 * pair);
            scale = vmulq_f32(scale, vcombine_f32(scales, scales));
          }
          vst1q_f32(to, vfmaq_f32(vld1q_f32(to), V::sums_to_floats(acc[two][pair]), scale));
        }
      }
    }
    for (int t = 0; t < kCount; ++t) {
      for (int pair = 0; pair < kPairs; ++pair) {
        std::memcpy(sums[t] + 2 * pair, totals[t / 2][pair] + t % 2 * 2, 2 * sizeof(float));
      }
    }
  }

 private:
  template <int kCount>
  static constexpr int second(int two) {
    return 2 * two + 1 < kCount ? 2 * two + 1 : 2 * two;
  }
  // The lower or upper eight bytes of both.
  static int8x16_t join(int8x16_t a, int8x16_t b, int upper) {
    const int64x2_t x = vreinterpretq_s64_s8(a), y = vreinterpretq_s64_s8(b);
    return vreinterpretq_s8_s64(upper == 0 ? vzip1q_s64(x, y) : vzip2q_s64(x, y));
  }
  static void store_rows(int8x16_t a, int8x16_t b, int8_t* to) {
    vst1q_s8(to, join(a, b, 0));
    vst1q_s8(to + kEight, join(a, b, 1));
  }
};

}  // namespace mobilemoe
