// What the tiles of many tokens of the AVX-512 code path share: 6 tokens times 32 outputs, whose
// sums stay in 24 of the 32 registers. Included where vectors_avx512.h says.
#pragma once

#include "fold_avx2.h"
#include "linear_many.h"
#include "vectors_avx512.h"

namespace mobilemoe {
namespace avx512 {

template <typename ValueOf, typename CodeOf>
struct Tile {
  using V = Avx512;
  using Value = ValueOf;
  using Code = CodeOf;
  static constexpr int kTokens = 6, kOutputs = 32, kFolded = 6;
  static constexpr int kLanes = 8, kFoldLanes = avx2::kFoldLanes,
                       kFoldTokens = avx2::kFoldTokens;

  static void ratios(const uint8_t* scales, size_t row_bytes, int blocks, float* largest,
                     int16_t* ratios) {
    avx2::fold_ratios(scales, row_bytes, blocks, largest, ratios);
  }

  static void store_outputs(const float* sums, float* y) { store_columns(sums, y); }
};

// The end of a block: sums [tokens][32 outputs] += acc x step x scales. One vector of
// floats for each of integers.
template <int kCount, bool kScaled>
inline void add_block(const __m512i (*acc)[2], const TileToken* x, int block,
                      const float* scales, __m512 (*sums)[2]) {
  for (int t = 0; t < kCount; ++t) {
    const __m512 step = _mm512_set1_ps(x[t].steps[block]);
    for (int half = 0; half < 2; ++half) {
      const __m512 scale =
          kScaled ? _mm512_mul_ps(step, Quads::load(scales + block * 32 + half * 16)) : step;
      sums[t][half] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[t][half]), scale, sums[t][half]);
    }
  }
}

template <int kCount>
inline void store_sums(const __m512 (*totals)[2], float (*sums)[32]) {
  for (int t = 0; t < kCount; ++t) {
    Quads::store(sums[t], totals[t][0]);
    Quads::store(sums[t] + 16, totals[t][1]);
  }
}

}  // namespace avx512
}  // namespace mobilemoe
