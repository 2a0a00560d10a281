// In which order rounded activations meet the codes, as far as AVX2 and AVX-512 agree, and the sums
// of their columns. A template of the loops (vectors_avx2.h): `V` tells the code paths apart.
#pragma once

#include "vectors_avx2.h"

namespace mobilemoe {

// int8: 32 values as 16 of even and 16 of odd columns, the low and the high nibbles of the codes.
template <typename V>
inline void split_even_odd(const int16_t* q, int8_t* even, int8_t* odd) {
  for (int i = 0; i < 16; ++i) {
    even[i] = static_cast<int8_t>(q[2 * i]);
    odd[i] = static_cast<int8_t>(q[2 * i + 1]);
  }
}

// int16: 32 values of part `part` as planes of columns 4 j + plane.
template <typename V, int kWords>
inline void split_planes(const int16_t* q, int part, int16_t (*planes)[kWords]) {
  for (int i = 0; i < kGroup; ++i) planes[i % 4][part * 8 + i / 4] = q[i];
}

// int16, for tiles: of each 8 columns the pairs (0, 4), (1, 5), (2, 6), (3, 7).
template <typename V>
inline void order_pairs(const int16_t* q, int16_t* x) {
  for (int i = 0; i < kGroup; ++i) x[i / 8 * 8 + i % 4 * 2 + i / 4 % 2] = q[i];
}

// What unsigned codes, code + 8, add to the products of 32 values, to be taken away: of all.
template <typename V>
inline int32_t less_eight_times_sum(const int16_t* q, int count = kGroup) {
  int32_t sum = 0;
  for (int i = 0; i < count; ++i) sum += q[i];
  return -8 * sum;
}

// The same in four lanes of 8 values.
template <typename V>
inline void less_eight_times_lanes(const int16_t* q, int32_t* initial) {
  for (int lane = 0; lane < 4; ++lane) initial[lane] = less_eight_times_sum<V>(q + lane * 8, 8);
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
