// Rounding of activations, and scales read eight at a time.
#pragma once

#include "avx2.h"

#if defined(MOBILEMOE_X86)

MOBILEMOE_BEGIN_AVX2

namespace mobilemoe {
namespace avx2 {

inline float largest_of_group(const float* x) {
  __m256 largest = absolute(_mm256_loadu_ps(x));
  for (int i = 8; i < kGroup; i += 8) {
    largest = _mm256_max_ps(largest, absolute(_mm256_loadu_ps(x + i)));
  }
  return largest_lane(largest);
}

// limit / largest, or 0 where that is no number to multiply by: such a group rounds to zeros.
inline float inverse_step(float largest, float limit) {
  const float inverse = limit / largest;
  return inverse <= 3e38f ? inverse : 0.0f;
}

// 32 values to int16 in their order.
inline void round_group(const float* x, float inverse, int16_t* q) {
  const __m256 factor = _mm256_set1_ps(inverse);
  for (int i = 0; i < kGroup; i += 16) {
    const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), factor));
    const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8), factor));
    store_32(q + i, _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8));
  }
}

// Up to eight float16; what lies behind `count` is 0, and not read.
inline __m256 load_scales(const uint8_t* bytes, int count) {
  if (count >= 8) return load_float16(bytes);
  uint8_t some[16] = {};
  std::memcpy(some, bytes, static_cast<size_t>(count) * 2);
  return load_float16(some);
}

// 32 bytes of codes, or 16 and zeros: a row may end in the middle of a pair of groups.
inline __m256i load_codes(const uint8_t* bytes, bool pair) {
  return pair ? load_32(bytes) : _mm256_inserti128_si256(_mm256_setzero_si256(), load_16(bytes), 0);
}

// Four rows of a group, 16 bytes each, to four vectors of one dword (8 columns) of each row.
inline void transpose_rows(const uint8_t* const* rows, __m128i* dwords) {
  const __m128i r0 = load_16(rows[0]), r1 = load_16(rows[1]);
  const __m128i r2 = load_16(rows[2]), r3 = load_16(rows[3]);
  const __m128i a = _mm_unpacklo_epi32(r0, r1), b = _mm_unpacklo_epi32(r2, r3);
  const __m128i c = _mm_unpackhi_epi32(r0, r1), d = _mm_unpackhi_epi32(r2, r3);
  dwords[0] = _mm_unpacklo_epi64(a, b);
  dwords[1] = _mm_unpackhi_epi64(a, b);
  dwords[2] = _mm_unpacklo_epi64(c, d);
  dwords[3] = _mm_unpackhi_epi64(c, d);
}

// Even columns (eight) and odd ones back into their order.
inline void store_columns(const float* even, const float* odd, float* y) {
  const __m256 e = _mm256_loadu_ps(even), o = _mm256_loadu_ps(odd);
  const __m256 low = _mm256_unpacklo_ps(e, o), high = _mm256_unpackhi_ps(e, o);
  _mm256_storeu_ps(y, _mm256_permute2f128_ps(low, high, 0x20));
  _mm256_storeu_ps(y + 8, _mm256_permute2f128_ps(low, high, 0x31));
}

}  // namespace avx2
}  // namespace mobilemoe

MOBILEMOE_END_AVX2

#endif  // MOBILEMOE_X86
