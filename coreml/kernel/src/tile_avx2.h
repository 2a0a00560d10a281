// What the tiles of many tokens of the AVX2 code path share: 4 tokens times 16 outputs, whose sums of
// a block stay in 8 of the 16 registers. Included where vectors_avx2.h says.
#pragma once

#include "fold_avx2.h"
#include "linear_many.h"
#include "products_avx2.h"

namespace mobilemoe {
namespace avx2 {

template <typename ValueOf, typename CodeOf>
struct Tile {
  using V = Avx2;
  using Value = ValueOf;
  using Code = CodeOf;
  static constexpr int kTokens = 4, kOutputs = 16, kFolded = 16;
  static constexpr int kLanes = 8, kFoldLanes = avx2::kFoldLanes,
                       kFoldTokens = avx2::kFoldTokens;

  static void ratios(const uint8_t* scales, size_t row_bytes, int blocks, float* largest,
                     int16_t* ratios) {
    avx2::fold_ratios(scales, row_bytes, blocks, largest, ratios);
  }

  static void store_outputs(const float* sums, float* y) {
    Avx2::store_columns(sums, sums + 8, y);
  }
};

template <int kCount>
inline void clear_sums(float (*sums)[16]) {
  for (int t = 0; t < kCount; ++t) {
    Avx2::store(sums[t], Avx2::zero());
    Avx2::store(sums[t] + 8, Avx2::zero());
  }
}

// The end of a block for one token: sums [16 outputs] += acc x step x scales.
template <bool kScaled>
inline void add_block(const __m256i* acc, float step, const float* scales, float* sums) {
  for (int half = 0; half < 2; ++half, sums += 8) {
    const __m256 steps = _mm256_set1_ps(step);
    const __m256 scale =
        kScaled ? _mm256_mul_ps(steps, Avx2::load(scales + half * 8)) : steps;
    Avx2::store(sums, Avx2::fma(_mm256_cvtepi32_ps(acc[half]), scale, Avx2::load(sums)));
  }
}

}  // namespace avx2
}  // namespace mobilemoe
