// What the integer products of the AVX2 code path share: two groups of codes at a time.
#pragma once

#include "vectors_avx2.h"

#if defined(MOBILEMOE_X86)

MOBILEMOE_BEGIN_AVX2

namespace mobilemoe {
namespace avx2 {

// `Wide` of linear_one.h and expert_one.h.
struct Pairs : Avx2 {
  using Codes = __m256i;
  static constexpr int kGroups = 2;

  // 32 bytes, or 16 and zeros: a row may end in the middle of a pair.
  static Codes load_codes(const uint8_t* bytes, int groups) {
    return groups >= 2 ? load_32(bytes)
                       : _mm256_inserti128_si256(_mm256_setzero_si256(), load_16(bytes), 0);
  }
  // Of eight values, those of load `i`: each in the lanes of its group.
  static __m256i lanes_of(int i) {
    return _mm256_add_epi32(_mm256_set1_epi32(2 * i), _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
  }
  static Floats spread(Floats values, __m256i lanes) {
    return _mm256_permutevar8x32_ps(values, lanes);
  }
  static __m256i spread(const int32_t* values) {
    return _mm256_blend_epi32(_mm256_set1_epi32(values[0]), _mm256_set1_epi32(values[1]), 0xF0);
  }
  static Floats spread(const float* values) {
    return _mm256_blend_ps(_mm256_set1_ps(values[0]), _mm256_set1_ps(values[1]), 0xF0);
  }
};

// Keeps a sum in its register: GCC 12 otherwise reorders integer sums and spills every product.
inline void pin(__m256i& x) { asm volatile("" : "+x"(x)); }

// Codes come out of their bytes as code + 8: flipping the upper bit of a nibble adds 8 to it.
inline __m256i flip() { return _mm256_set1_epi8(static_cast<char>(0x88)); }

// Four rows of a group, 16 bytes each, to four vectors of one dword (8 columns) of each row.
inline void transpose_rows(const uint8_t* const* rows, size_t offset, __m128i* dwords) {
  const __m128i r0 = Avx2::load_16(rows[0] + offset), r1 = Avx2::load_16(rows[1] + offset);
  const __m128i r2 = Avx2::load_16(rows[2] + offset), r3 = Avx2::load_16(rows[3] + offset);
  const __m128i a = _mm_unpacklo_epi32(r0, r1), b = _mm_unpacklo_epi32(r2, r3);
  const __m128i c = _mm_unpackhi_epi32(r0, r1), d = _mm_unpackhi_epi32(r2, r3);
  dwords[0] = _mm_unpacklo_epi64(a, b);
  dwords[1] = _mm_unpackhi_epi64(a, b);
  dwords[2] = _mm_unpacklo_epi64(c, d);
  dwords[3] = _mm_unpackhi_epi64(c, d);
}

}  // namespace avx2
}  // namespace mobilemoe

MOBILEMOE_END

#endif  // MOBILEMOE_X86
