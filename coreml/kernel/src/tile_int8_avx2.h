// The inner loop of both int8 products of many tokens: up to 4 tokens times 16 outputs.
//
// Activations are unsigned, q + 128, and codes signed, as maddubs wants them; what the 128 adds is
// taken off by the sums' initial values. Products of a block of 32 inputs are summed in int16: with
// the signs right their sum is at most 32 x 127 x 8 = 32,512, and what wraps around on the way
// wraps back. Then they become floats, times the scale of the block.
#pragma once

#include "avx2.h"

#if defined(MOBILEMOE_X86)

MOBILEMOE_BEGIN_AVX2

namespace mobilemoe {
namespace avx2 {

constexpr int kTileTokens = 4;
constexpr int kTileOutputs = 16;
constexpr int kQuads = kGroup / 4;  // of a block: four inputs that maddubs and madd add up

// Codes of 16 outputs, unpacked into a thread's scratch for all tokens.
struct Int8Panel {
  int8_t* codes;     // [blocks][kQuads][16 outputs][4 inputs]
  int16_t* initial;  // [blocks][16 outputs][2]: -128 x sums of codes
  float* scales;     // [blocks][16 outputs]: of linears; experts have theirs in the activations

  static size_t bytes(int inputs) {
    const size_t blocks = inputs / kGroup;
    return blocks * kTileOutputs * (kGroup + 2 * sizeof(int16_t) + sizeof(float));
  }
  Int8Panel(uint8_t* memory, int inputs) {
    const size_t blocks = inputs / kGroup;
    codes = reinterpret_cast<int8_t*>(memory);
    initial = reinterpret_cast<int16_t*>(memory + blocks * kTileOutputs * kGroup);
    scales = reinterpret_cast<float*>(initial + blocks * kTileOutputs * 2);
  }
};

// The sums' initial values of one block, once its codes are there.
inline void set_initial(const Int8Panel& panel, int block) {
  const __m256i offset = _mm256_set1_epi8(static_cast<char>(128));
  const int8_t* codes = panel.codes + static_cast<size_t>(block) * kQuads * kTileOutputs * 4;
  for (int half = 0; half < 2; ++half) {
    __m256i sum = _mm256_setzero_si256();
    for (int quad = 0; quad < kQuads; ++quad) {
      const __m256i w = load_32(reinterpret_cast<const uint8_t*>(codes) + quad * 64 + half * 32);
      sum = _mm256_sub_epi16(sum, _mm256_maddubs_epi16(offset, w));
    }
    store_32(panel.initial + block * 32 + half * 16, sum);
  }
}

// sums [kTokens][16] = x . codes. x[t]: q + 128, [blocks x 32], its quads in the panel's order;
// steps[t] [blocks]: the scale of a token's block.
template <int kTokens, bool kOutputScales>
inline void multiply_tile_int8(const uint8_t* const* x, const float* const* steps,
                               const Int8Panel& panel, int blocks, float (*sums)[kTileOutputs]) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (int t = 0; t < kTokens; ++t) {
    _mm256_storeu_ps(sums[t], _mm256_setzero_ps());
    _mm256_storeu_ps(sums[t] + 8, _mm256_setzero_ps());
  }
  const auto* codes = reinterpret_cast<const uint8_t*>(panel.codes);
  for (int block = 0; block < blocks; ++block) {
    __m256i acc[kTokens][2];
    const __m256i initial_0 = load_32(panel.initial + block * 32);
    const __m256i initial_1 = load_32(panel.initial + block * 32 + 16);
    for (int t = 0; t < kTokens; ++t) {
      acc[t][0] = initial_0;
      acc[t][1] = initial_1;
    }
#pragma GCC unroll 8
    for (int quad = 0; quad < kQuads; ++quad, codes += 64) {
      __m256i w0 = load_32(codes), w1 = load_32(codes + 32);
      pin(w0);  // or the load is done again in each maddubs
      pin(w1);
      for (int t = 0; t < kTokens; ++t) {
        const __m256i q = _mm256_set1_epi32(load<int32_t>(x[t] + block * kGroup + quad * 4));
        acc[t][0] = _mm256_add_epi16(acc[t][0], _mm256_maddubs_epi16(q, w0));
        acc[t][1] = _mm256_add_epi16(acc[t][1], _mm256_maddubs_epi16(q, w1));
        pin(acc[t][0]);
        pin(acc[t][1]);
      }
    }
    for (int t = 0; t < kTokens; ++t) {
      const __m256 step = _mm256_broadcast_ss(steps[t] + block);
      for (int half = 0; half < 2; ++half) {
        float* sum = sums[t] + half * 8;
        const __m256 part = _mm256_cvtepi32_ps(_mm256_madd_epi16(acc[t][half], ones));
        const __m256 scale =
            kOutputScales
                ? _mm256_mul_ps(step, _mm256_loadu_ps(panel.scales + block * 16 + half * 8))
                : step;
        _mm256_storeu_ps(sum, _mm256_fmadd_ps(part, scale, _mm256_loadu_ps(sum)));
      }
    }
  }
}

template <bool kOutputScales>
inline void multiply_tile_int8(int tokens, const uint8_t* const* x, const float* const* steps,
                               const Int8Panel& panel, int blocks, float (*sums)[kTileOutputs]) {
  switch (tokens) {
    case 1: multiply_tile_int8<1, kOutputScales>(x, steps, panel, blocks, sums); break;
    case 2: multiply_tile_int8<2, kOutputScales>(x, steps, panel, blocks, sums); break;
    case 3: multiply_tile_int8<3, kOutputScales>(x, steps, panel, blocks, sums); break;
    default: multiply_tile_int8<4, kOutputScales>(x, steps, panel, blocks, sums);
  }
}

}  // namespace avx2
}  // namespace mobilemoe

MOBILEMOE_END_AVX2

#endif  // MOBILEMOE_X86
