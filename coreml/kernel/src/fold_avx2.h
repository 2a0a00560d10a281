// Activations of many tokens times the scales of a routed expert's group of outputs, rounded
// (expert_many.h). Lanes are blocks of 32 inputs, so that nothing is ever summed over lanes.
//
// Of 16 blocks: words [32][16] times steps [16] are a token, ratios [32][16] times largest [16] scales.
// Results: x, in the order of TileToken, times new_steps [16].
#pragma once

#include "tile_token.h"
#include "vectors_avx2.h"

#if defined(MOBILEMOE_X86)

MOBILEMOE_BEGIN_AVX2

namespace mobilemoe {
namespace avx2 {

constexpr int kFoldLanes = 16;  // blocks
constexpr float kFullRatio = 32767.0f;

// float16 scales [32][16] to ratios to the largest of each block.
inline void fold_ratios(const uint16_t (*scales)[kFoldLanes], float* largest, int16_t* ratios) {
  __m256 inverse[2];
  for (int half = 0; half < 2; ++half) {
    __m256 most = Avx2::zero();
    for (int row = 0; row < kGroup; ++row) {
      most = _mm256_max_ps(most, Avx2::widen(scales[row] + half * 8));
    }
    Avx2::store(largest + half * 8, most);
    inverse[half] = Avx2::zero_above(Avx2::div(Avx2::set(kFullRatio), most), 3e38f);
  }
  for (int row = 0; row < kGroup; ++row) {
    Avx2::store_words(ratios + row * kFoldLanes,
                      Avx2::round(Avx2::mul(Avx2::widen(scales[row]), inverse[0])),
                      Avx2::round(Avx2::mul(Avx2::widen(scales[row] + 8), inverse[1])));
  }
}

// mulhrs divides by 2^15.
inline __m256i fold_row(const int16_t* words, const int16_t* ratios, int row) {
  return _mm256_mulhrs_epi16(Avx2::load_32(words + row * 16), Avx2::load_32(ratios + row * 16));
}

// Two vectors of words, interleaved: eight words of 32 bits, and eight of the next blocks.
template <typename Value>
inline void store_interleaved(__m256i a, __m256i b, Value* to) {
  const __m256i low = _mm256_unpacklo_epi16(a, b), high = _mm256_unpackhi_epi16(a, b);
  Avx2::store_ints(to, _mm256_permute2x128_si256(low, high, 0x20));
  Avx2::store_ints(to + kGroup * 8, _mm256_permute2x128_si256(low, high, 0x31));
}

// To 8 bits. The products are formed with 16 bits first, so that 127 stands for the largest of a
// block that there really is; peaks below 127 are left as they are. Returns -8 times the
// sums of the results, for codes are unsigned, code + 8; kept in 16 bits, which they fit.
inline __m256i fold_int8(const int16_t* words, const float* steps, const int16_t* ratios,
                         const float* largest, int8_t* x, float* new_steps) {
  __m256i peaks = _mm256_setzero_si256();
  for (int row = 0; row < kGroup; ++row) {
    peaks = _mm256_max_epu16(peaks, _mm256_abs_epi16(fold_row(words, ratios, row)));
  }
  const __m256i halves[2] = {_mm256_cvtepu16_epi32(_mm256_castsi256_si128(peaks)),
                             _mm256_cvtepu16_epi32(_mm256_extracti128_si256(peaks, 1))};
  __m256i factors[2];
  for (int half = 0; half < 2; ++half) {
    const __m256 exact = Avx2::div(Avx2::set(127.0f * 32768), Avx2::to_floats(halves[half]));
    factors[half] = _mm256_cvttps_epi32(_mm256_min_ps(exact, Avx2::set(32767.0f)));
    const __m256 step = Avx2::mul(Avx2::load(steps + half * 8), Avx2::load(largest + half * 8));
    Avx2::store(new_steps + half * 8,
                Avx2::div(Avx2::mul(step, Avx2::set(32768.0f / kFullRatio * 32768.0f)),
                          Avx2::to_floats(factors[half])));
  }
  const __m256i factor =
      _mm256_permute4x64_epi64(_mm256_packs_epi32(factors[0], factors[1]), 0xD8);
  const __m256i byte = _mm256_set1_epi16(255);
  __m256i sum = _mm256_setzero_si256();
  for (int row = 0; row < kGroup; row += 4) {
    __m256i q[4];
    for (int i = 0; i < 4; ++i) {
      q[i] = _mm256_mulhrs_epi16(fold_row(words, ratios, row + i), factor);
      sum = _mm256_add_epi16(sum, q[i]);
    }
    store_interleaved(
        _mm256_or_si256(_mm256_and_si256(q[0], byte), _mm256_slli_epi16(q[1], 8)),
        _mm256_or_si256(_mm256_and_si256(q[2], byte), _mm256_slli_epi16(q[3], 8)), x + row * 8);
  }
  return _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_slli_epi16(sum, 3));
}

// To 16 bits, by one multiplication. Codes are signed, so that sums begin with nothing.
inline void fold_int16(const int16_t* words, const float* steps, const int16_t* ratios,
                       const float* largest, int16_t* x, float* new_steps) {
  for (int row = 0; row < kGroup; row += 2) {
    store_interleaved(fold_row(words, ratios, row), fold_row(words, ratios, row + 1),
                      x + row * 8);
  }
  for (int i = 0; i < 16; i += 8) {
    const __m256 step = Avx2::mul(Avx2::load(steps + i), Avx2::load(largest + i));
    Avx2::store(new_steps + i, Avx2::mul(step, Avx2::set(32768.0f / kFullRatio)));
  }
}

}  // namespace avx2
}  // namespace mobilemoe

MOBILEMOE_END

#endif  // MOBILEMOE_X86
