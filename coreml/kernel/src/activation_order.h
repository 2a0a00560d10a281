// In which order rounded activations meet the codes, as far as AVX2 and AVX-512 agree, and the sums
// of their columns. A template of the loops (vectors_avx2.h): `V` tells the code paths apart.
#pragma once

#include "vectors_avx2.h"

namespace mobilemoe {

// int8: 32 values as 16 of even and 16 of odd columns, the low and the high nibbles of the codes.
template <typename V>
inline void split_even_odd(const int16_t* q, int8_t* even, int8_t* odd) {
  const __m256i a = V::load_32(q), b = V::load_32(q + 16);
  const __m256i even_words = _mm256_packs_epi32(_mm256_srai_epi32(_mm256_slli_epi32(a, 16), 16),
                                                _mm256_srai_epi32(_mm256_slli_epi32(b, 16), 16));
  const __m256i odd_words =
      _mm256_packs_epi32(_mm256_srai_epi32(a, 16), _mm256_srai_epi32(b, 16));
  // Dwords of four values: a, b even, a, b odd of the lower halves, then of the upper ones.
  const __m256i bytes = _mm256_packs_epi16(even_words, odd_words);
  const __m256i in_order =
      _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(even), _mm256_castsi256_si128(in_order));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(odd), _mm256_extracti128_si256(in_order, 1));
}

// int16: 32 values of part `part` as planes of columns 4 j + plane.
template <typename V, int kWords>
inline void split_planes(const int16_t* q, int part, int16_t (*planes)[kWords]) {
  // Of 8 columns, 4 pairs of a plane.
  const __m128i pairs = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
  __m128 rows[4];
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm_castsi128_ps(_mm_shuffle_epi8(V::load_16(q + i * 8), pairs));
  }
  _MM_TRANSPOSE4_PS(rows[0], rows[1], rows[2], rows[3]);
  for (int i = 0; i < 4; ++i) {
    _mm_storeu_ps(reinterpret_cast<float*>(planes[i] + part * 8), rows[i]);
  }
}

// int16, for tiles: of each 8 columns the pairs (0, 4), (1, 5), (2, 6), (3, 7).
template <typename V>
inline void order_pairs(const int16_t* q, int16_t* x) {
  for (int i = 0; i < kGroup; i += 16) {
    const __m256i words = V::load_32(q + i);
    V::store_ints(x + i, _mm256_unpacklo_epi16(words, _mm256_unpackhi_epi64(words, words)));
  }
}

// What unsigned codes, code + 8, add to the products of 32 values, to be taken away: of each four.
template <typename V>
inline __m256i less_eight_times_fours(const int16_t* q) {
  const __m256i eight = _mm256_set1_epi16(-8);
  const __m256i fours = _mm256_hadd_epi32(_mm256_madd_epi16(V::load_32(q), eight),
                                          _mm256_madd_epi16(V::load_32(q + 16), eight));
  return _mm256_permute4x64_epi64(fours, 0xD8);
}

// The same in four lanes of 8 values.
template <typename V>
inline void less_eight_times_lanes(const int16_t* q, int32_t* initial) {
  const __m256i fours = less_eight_times_fours<V>(q);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(initial),
                   _mm_hadd_epi32(_mm256_castsi256_si128(fours),
                                  _mm256_extracti128_si256(fours, 1)));
}

// The same of all.
template <typename V>
inline int32_t less_eight_times_sum(const int16_t* q) {
  int32_t lanes[4];
  less_eight_times_lanes<V>(q, lanes);
  return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

// int16: sums [half][plane][kGroups][4 words] of a routed expert, to the 32 columns of one group.
template <typename Wide>
inline void store_planes(const float* sums, int group, float* y) {
  for (int half = 0; half < 2; ++half) {
    __m128 columns[4];
    for (int plane = 0; plane < 4; ++plane) {
      columns[plane] = _mm_loadu_ps(sums + ((half * 4 + plane) * Wide::kGroups + group) * 4);
    }
    _MM_TRANSPOSE4_PS(columns[0], columns[1], columns[2], columns[3]);
    for (int word = 0; word < 4; ++word) _mm_storeu_ps(y + half * 16 + word * 4, columns[word]);
  }
}

}  // namespace mobilemoe
