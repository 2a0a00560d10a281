// The inner loop of both int16 products of many tokens: up to 4 tokens times 16 outputs.
//
// madd multiplies two inputs at a time and adds them up in int32. A block of 32 inputs stays below
// 32 x 32,767 x 8, then becomes floats, times the scale of the block.
#pragma once

#include "avx2.h"

#if defined(MOBILEMOE_X86)

MOBILEMOE_BEGIN_AVX2

namespace mobilemoe {
namespace avx2 {

constexpr int kWideTokens = 4;
constexpr int kWideOutputs = 16;
constexpr int kInputPairs = kGroup / 2;  // of a block

// Codes of 16 outputs, unpacked into a thread's scratch for all tokens.
struct Int16Panel {
  int16_t* codes;  // [blocks][kInputPairs][16 outputs][2 inputs]
  float* scales;   // [blocks][16 outputs]: of linears; experts have theirs in the activations

  static size_t bytes(int inputs) {
    const size_t blocks = inputs / kGroup;
    return blocks * kWideOutputs * (kGroup * sizeof(int16_t) + sizeof(float));
  }
  Int16Panel(uint8_t* memory, int inputs)
      : codes(reinterpret_cast<int16_t*>(memory)),
        scales(reinterpret_cast<float*>(memory + static_cast<size_t>(inputs) * kWideOutputs *
                                                     sizeof(int16_t))) {}
};

// sums [kTokens][16] = x . codes. x[t]: int16 [blocks x 32], its pairs in the panel's order;
// steps[t] [blocks]: the scale of a token's block.
template <int kTokens, bool kOutputScales>
inline void multiply_tile_int16(const int16_t* const* x, const float* const* steps,
                                const Int16Panel& panel, int blocks, float (*sums)[kWideOutputs]) {
  for (int t = 0; t < kTokens; ++t) {
    _mm256_storeu_ps(sums[t], _mm256_setzero_ps());
    _mm256_storeu_ps(sums[t] + 8, _mm256_setzero_ps());
  }
  const int16_t* codes = panel.codes;
  for (int block = 0; block < blocks; ++block) {
    __m256i acc[kTokens][2];
    for (auto& token : acc) token[0] = token[1] = _mm256_setzero_si256();
#pragma GCC unroll 16
    for (int pair = 0; pair < kInputPairs; ++pair, codes += 32) {
      __m256i w0 = load_32(codes), w1 = load_32(codes + 16);
      pin(w0);  // or the load is done again in each madd
      pin(w1);
      for (int t = 0; t < kTokens; ++t) {
        const auto* bytes = reinterpret_cast<const uint8_t*>(x[t] + block * kGroup + pair * 2);
        const __m256i q = _mm256_set1_epi32(load<int32_t>(bytes));
        acc[t][0] = _mm256_add_epi32(acc[t][0], _mm256_madd_epi16(q, w0));
        acc[t][1] = _mm256_add_epi32(acc[t][1], _mm256_madd_epi16(q, w1));
        pin(acc[t][0]);
        pin(acc[t][1]);
      }
    }
    for (int t = 0; t < kTokens; ++t) {
      const __m256 step = _mm256_broadcast_ss(steps[t] + block);
      for (int half = 0; half < 2; ++half) {
        float* sum = sums[t] + half * 8;
        const __m256 scale =
            kOutputScales
                ? _mm256_mul_ps(step, _mm256_loadu_ps(panel.scales + block * 16 + half * 8))
                : step;
        _mm256_storeu_ps(sum, _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[t][half]), scale,
                                              _mm256_loadu_ps(sum)));
      }
    }
  }
}

template <bool kOutputScales>
inline void multiply_tile_int16(int tokens, const int16_t* const* x, const float* const* steps,
                                const Int16Panel& panel, int blocks, float (*sums)[kWideOutputs]) {
  switch (tokens) {
    case 1: multiply_tile_int16<1, kOutputScales>(x, steps, panel, blocks, sums); break;
    case 2: multiply_tile_int16<2, kOutputScales>(x, steps, panel, blocks, sums); break;
    case 3: multiply_tile_int16<3, kOutputScales>(x, steps, panel, blocks, sums); break;
    default: multiply_tile_int16<4, kOutputScales>(x, steps, panel, blocks, sums);
  }
}

}  // namespace avx2
}  // namespace mobilemoe

MOBILEMOE_END_AVX2

#endif  // MOBILEMOE_X86
