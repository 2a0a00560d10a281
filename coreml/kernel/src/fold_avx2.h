// Activations of many tokens times the scales of a routed expert's panel, rounded (expert_many.h).
//
// words [blocks x 32] times steps [blocks]: a token; ratios [blocks x 32] times largest [blocks]:
// scales. Results: x [blocks x 32] times new_steps [blocks], and with what a block's sum begins.
#pragma once

#include "vectors_avx2.h"

#if defined(MOBILEMOE_X86)

MOBILEMOE_BEGIN_AVX2

namespace mobilemoe {
namespace avx2 {

// The largest of 16 absolute values.
inline int32_t peak(__m256i values) {
  const __m128i half =
      _mm_max_epu16(_mm256_castsi256_si128(values), _mm256_extracti128_si256(values, 1));
  const __m128i top = _mm_set1_epi16(-1);
  return 0xffff - (_mm_cvtsi128_si32(_mm_minpos_epu16(_mm_sub_epi16(top, half))) & 0xffff);
}

// To 8 bits. The products are formed with 16 bits first, so that 127 stands for the largest of a
// block that there really is. mulhrs divides by 2^15; peaks below 127 are left as they are. The sum
// of a block begins with -8 times that of its values, for codes are unsigned, code + 8.
inline void fold_int8(const int16_t* words, const float* steps, const int16_t* ratios,
                      const float* largest, int blocks, int8_t* x, float* new_steps,
                      int32_t* initial) {
  const __m256i eights = _mm256_set1_epi8(8), ones = _mm256_set1_epi16(1);
  for (int block = 0; block < blocks; ++block) {
    const int i = block * kGroup;
    const __m256i a = _mm256_mulhrs_epi16(Avx2::load_32(words + i), Avx2::load_32(ratios + i));
    const __m256i b =
        _mm256_mulhrs_epi16(Avx2::load_32(words + i + 16), Avx2::load_32(ratios + i + 16));
    const int32_t top = peak(_mm256_max_epu16(_mm256_abs_epi16(a), _mm256_abs_epi16(b)));
    const float exact = 127.0f * 32768 / static_cast<float>(top);
    const int factor = exact < 32767.0f ? static_cast<int>(exact) : 32767;
    const __m256i factors = _mm256_set1_epi16(static_cast<int16_t>(factor));
    const __m256i q = _mm256_permute4x64_epi64(
        _mm256_packs_epi16(_mm256_mulhrs_epi16(a, factors), _mm256_mulhrs_epi16(b, factors)), 0xD8);
    Avx2::store_ints(x + i, q);
    const __m256i sums = _mm256_madd_epi16(_mm256_maddubs_epi16(eights, q), ones);
    __m128i half =
        _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4E));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xB1));
    initial[block] = -_mm_cvtsi128_si32(half);
    new_steps[block] = steps[block] * largest[block] * 32768.0f / 32767.0f * 32768.0f /
                       static_cast<float>(factor);
  }
}

// To 16 bits, by one multiplication. Codes are signed, so that sums begin with nothing.
inline void fold_int16(const int16_t* words, const float* steps, const int16_t* ratios,
                       const float* largest, int blocks, int16_t* x, float* new_steps) {
  for (int i = 0; i < blocks * kGroup; i += 16) {
    Avx2::store_ints(x + i,
                     _mm256_mulhrs_epi16(Avx2::load_32(words + i), Avx2::load_32(ratios + i)));
  }
  for (int block = 0; block < blocks; ++block) {
    new_steps[block] = steps[block] * largest[block] * (32768.0f / 32767.0f);
  }
}

}  // namespace avx2
}  // namespace mobilemoe

MOBILEMOE_END

#endif  // MOBILEMOE_X86
