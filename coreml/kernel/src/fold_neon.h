// Activations of many tokens times the scales of a routed expert's group of outputs, rounded
// (expert_many.h). A block of 32 inputs at a time: NEON finds the largest of a vector at once.
//
// Of a block: words [32] times a step are a token, ratios [32] times the largest scale the scales.
// Results: x times a new step. A template of the loops (vectors_avx2.h): `V` tells the code paths apart.
#pragma once

#include "activation_bytes.h"
#include "vectors_neon.h"

namespace mobilemoe {

// Words times ratios over 2^15 stay within two bytes.
constexpr float kFullRatio = kTwoByteLimit;

// float16 scales of 32 rows of `row_bytes` to ratios to the largest.
template <typename V>
inline void fold_ratios(const uint8_t* scales, size_t row_bytes, float* largest, int16_t* ratios) {
  uint16_t halves[kGroup];
  for (int i = 0; i < kGroup; ++i) halves[i] = load<uint16_t>(scales + i * row_bytes);
  float all[kGroup];
  typename V::Floats most = V::zero();
  for (int i = 0; i < kGroup; i += 8) {
    const typename V::Floats eight = V::widen(halves + i);
    V::store(all + i, eight);
    most = V::max(most, eight);
  }
  *largest = V::largest(most);
  const typename V::Floats inverse = V::zero_above(V::set(kFullRatio / *largest), 3e38f);
  for (int i = 0; i < kGroup; i += 16) {
    V::store_words(ratios + i, V::round(V::mul(V::load(all + i), inverse)),
                   V::round(V::mul(V::load(all + i + 8), inverse)));
  }
}

// The inputs in their order, [kBytes][32]. To one byte: the products are formed with 16 bits first, so
// that 127 stands for the largest of the block that there really is; peaks below 127 are left
// as they are.
template <typename V, int kBytes>
inline void fold_block(const int16_t* words, float step, const int16_t* ratios, float largest,
                       int8_t* x, float* new_step) {
  int16x8_t products[4];
  for (int i = 0; i < 4; ++i) {
    products[i] = vqrdmulhq_s16(vld1q_s16(words + i * 8), vld1q_s16(ratios + i * 8));
  }
  float size = step * largest * (32768.0f / kFullRatio);
  if (kBytes == 1) {
    int16x8_t peaks = vabsq_s16(products[0]);
    for (int i = 1; i < 4; ++i) peaks = vmaxq_s16(peaks, vabsq_s16(products[i]));
    const float exact = 127.0f * 32768 / static_cast<float>(vmaxvq_s16(peaks));
    const auto factor = static_cast<int16_t>(exact < 32767.0f ? exact : 32767.0f);
    for (auto& product : products) product = vqrdmulhq_n_s16(product, factor);
    size = size * 32768.0f / static_cast<float>(factor);
  }
  for (int byte = 0; byte < kBytes; ++byte) {
    for (int i = 0; i < 4; i += 2, x += 16) {
      vst1q_s8(x, byte == kBytes - 1
                      ? vcombine_s8(vmovn_s16(products[i]), vmovn_s16(products[i + 1]))
                      : vcombine_s8(vrshrn_n_s16(products[i], 8), vrshrn_n_s16(products[i + 1], 8)));
    }
  }
  *new_step = size;
}

}  // namespace mobilemoe
