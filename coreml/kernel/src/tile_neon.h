// Tiles of many tokens with NEON: 4 tokens times 16 outputs, whose sums of a block stay in 16 of the 32
// registers. Templates of the loops (vectors_avx2.h): `V` tells the code paths apart; kBytes of an
// activation, see activation_bytes.h.
#pragma once

#include "fold_neon.h"
#include "linear_many.h"

namespace mobilemoe {

// What tiles of both kinds of product share: all but the order of the codes. Even columns (of an
// expert: outputs) of a group come before the odd ones, as they come out of their bytes.
template <typename VOf, int kBytes>
struct TileNeon {
  using V = VOf;
  using Value = std::conditional_t<kBytes == 1, int8_t, int16_t>;
  using Code = int8_t;
  static constexpr float kLimit = byte_limit<kBytes>();
  static constexpr int kTokens = 4, kOutputs = 16, kFolded = 16, kLanes = 1, kFoldLanes = 1,
                       kFoldTokens = 1;

  static void order(const int16_t* q, Value* x) {
    split_bytes<kBytes>(q, reinterpret_cast<int8_t*>(x));
  }
  static int32_t initial(const int16_t*) { return 0; }
  static void store_outputs(const float* sums, float* y) { V::store_columns(sums, sums + 8, y); }

  static void ratios(const uint8_t* scales, size_t row_bytes, int, float* largest,
                     int16_t* ratios) {
    fold_ratios<V>(scales, row_bytes, largest, ratios);
  }
  template <int kCount>
  static void fold(const FoldedToken<Value>* token, const int16_t* ratios, const float* largest) {
    fold_block<V, kBytes>(token->words, *token->steps, ratios, *largest,
                          reinterpret_cast<int8_t*>(token->x), token->new_steps);
  }

 protected:
  // Byte `byte` of half a block's activations: 16 of them.
  static int8x16_t load_half(const TileToken& token, int block, int byte, int half) {
    return vld1q_s8(reinterpret_cast<const int8_t*>(token.x) +
                    ((block * kBytes + byte) * 2 + half) * 16);
  }
  template <int kSums, int kVectors>
  static void clear(int32x4_t (*acc)[kVectors]) {
    for (int i = 0; i < kSums; ++i) {
      for (int32x4_t& sums : acc[i]) sums = vdupq_n_s32(0);
    }
  }
  // Before the low bytes are added.
  template <int kSums, int kVectors>
  static void raise(int32x4_t (*acc)[kVectors]) {
    for (int i = 0; i < kSums; ++i) {
      for (int32x4_t& sums : acc[i]) sums = vshlq_n_s32(sums, 8);
    }
  }
};

// Products of four inputs (add_fours): codes [8 fours][16 outputs][4 inputs].
template <typename VOf, int kBytes>
struct TileFours : TileNeon<VOf, kBytes> {
  using Base = TileNeon<VOf, kBytes>;
  using V = VOf;
  using Base::kOutputs;

  static void store_codes(uint8x16_t bytes, int8_t* even, int8_t* odd) {
    vst1q_s8(even, V::even_codes(bytes));
    vst1q_s8(odd, V::odd_codes(bytes));
  }
  static void fill_linear(const uint8_t* const* rows, size_t offset, int8_t* to) {
    for (int four = 0; four < kOutputs / 4; ++four, to += 16) {
      uint32x4_t r[4];
      for (int i = 0; i < 4; ++i) {
        r[i] = vreinterpretq_u32_u8(vld1q_u8(rows[four * 4 + i] + offset));
      }
      const uint32x4x2_t a = vzipq_u32(r[0], r[2]), b = vzipq_u32(r[1], r[3]);
      const uint32x4x2_t columns[2] = {vzipq_u32(a.val[0], b.val[0]),
                                       vzipq_u32(a.val[1], b.val[1])};
      for (int i = 0; i < 4; ++i) {
        int8_t* even = to + i * kOutputs * 4;
        store_codes(vreinterpretq_u8_u32(columns[i / 2].val[i % 2]), even,
                    even + 4 * kOutputs * 4);
      }
    }
  }
  static void fill_expert(const uint8_t* codes, size_t row_bytes, int part, int8_t* to) {
    codes += part * (kOutputs / 2);
    for (int four = 0; four < kGroup / 4; ++four, codes += 4 * row_bytes, to += kOutputs * 4) {
      uint8x8_t r[4];
      for (int i = 0; i < 4; ++i) r[i] = vld1_u8(codes + i * row_bytes);
      const uint8x8x2_t a = vzip_u8(r[0], r[1]), b = vzip_u8(r[2], r[3]);
      for (int half = 0; half < 2; ++half) {
        const uint16x4x2_t c =
            vzip_u16(vreinterpret_u16_u8(a.val[half]), vreinterpret_u16_u8(b.val[half]));
        store_codes(vreinterpretq_u8_u16(vcombine_u16(c.val[0], c.val[1])), to + half * 16,
                    to + kOutputs * 2 + half * 16);
      }
    }
  }

  template <int kCount, bool kScaled>
  static void multiply(const TileToken* x, const Panel<int8_t, kOutputs>& panel, int blocks,
                       float (*sums)[kOutputs]) {
    std::memset(sums, 0, kCount * sizeof *sums);
    for (int block = 0; block < blocks; ++block) {
      int32x4_t acc[kCount][4];
      Base::template clear<kCount>(acc);
      for (int byte = 0; byte < kBytes; ++byte) {
        if (byte > 0) Base::template raise<kCount>(acc);
        const int8_t* codes = panel.codes + block * kGroup * kOutputs;
        for (int half = 0, halves = V::rounds(2); half < halves; ++half, codes += 16 * kOutputs) {
          int8x16_t q[kCount];
          for (int t = 0; t < kCount; ++t) q[t] = Base::load_half(x[t], block, byte, half);
          add_four<kCount, 0>(codes, q, acc);
          add_four<kCount, 1>(codes, q, acc);
          add_four<kCount, 2>(codes, q, acc);
          add_four<kCount, 3>(codes, q, acc);
        }
      }
      for (int t = 0; t < kCount; ++t) {
        for (int i = 0; i < 4; ++i) {
          float* to = sums[t] + 4 * i;
          const float32x4_t part = V::sums_to_floats(acc[t][i]), sum = vld1q_f32(to);
          const float step = x[t].steps[block];
          if (kScaled) {
            const float32x4_t scales = vld1q_f32(panel.scales + block * kOutputs + 4 * i);
            vst1q_f32(to, vfmaq_f32(sum, part, vmulq_n_f32(scales, step)));
          } else {
            vst1q_f32(to, vfmaq_n_f32(sum, part, step));
          }
        }
      }
    }
  }

 private:
  template <int kCount, int kFour>
  static void add_four(const int8_t* codes, const int8x16_t* q, int32x4_t (*acc)[4]) {
    for (int i = 0; i < 4; ++i) {
      const int8x16_t w = vld1q_s8(codes + kFour * kOutputs * 4 + i * 16);
      for (int t = 0; t < kCount; ++t) acc[t][i] = V::template add_fours<kFour>(acc[t][i], w, q[t]);
    }
  }
};

}  // namespace mobilemoe
