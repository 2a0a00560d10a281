// Vectors of 512 bits for the integer products and attention, and the pragmas around what is compiled
// for AVX-512 with VNNI (vectors_avx2.h says what those mean). Everything else of this code
// path stays at eight floats: CPUs do as many of their operations in a cycle, or run 512 bits in two
// halves.
#pragma once

#include "vectors_avx2.h"

#if defined(MOBILEMOE_X86)

#if defined(__clang__)
#define MOBILEMOE_BEGIN_AVX512                                                             \
  _Pragma("clang attribute push(__attribute__((target(                                     \
      \"avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni\"))), apply_to=function)")
#else
// GCC 12 takes the undefined values in its own intrinsics for mistakes (GCC bug 105593), at the end
// of the file, where templates are compiled: this holds for the rest of the file.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#define MOBILEMOE_BEGIN_AVX512   \
  _Pragma("GCC push_options") \
  _Pragma("GCC target(\"avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni\")")
#endif

MOBILEMOE_BEGIN_AVX512

namespace mobilemoe {

// Its own type, so that the loops are compiled anew, with 32 registers.
struct Avx512 : Avx2 {};

namespace avx512 {

// 16 floats: what the loops of attention use, and the sums of products.
struct Sixteen {
  using Floats = __m512;
  using Ints = __m512i;
  static constexpr int kLanes = 16;

  static Floats zero() { return _mm512_setzero_ps(); }
  static Floats set(float x) { return _mm512_set1_ps(x); }
  static Floats load(const float* x) { return _mm512_loadu_ps(x); }
  static void store(float* to, Floats x) { _mm512_storeu_ps(to, x); }
  static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
  static Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Floats fnma(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
  // Always in the same order.
  static float sum(Floats x) {
    return Avx2::sum(_mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1)));
  }
  static float largest(Floats x) {
    return Avx2::largest(_mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1)));
  }
  static Ints round(Floats x) { return _mm512_cvtps_epi32(x); }
  static Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
  static Floats times_power_of_two(Floats x, Ints n) {
    return _mm512_scalef_ps(x, _mm512_cvtepi32_ps(n));
  }
  static Floats times_normal_power_of_two(Floats x, Ints n) { return times_power_of_two(x, n); }
  static Floats zero_below(Floats x, Floats condition, float limit) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(condition, set(limit), _CMP_NLT_UQ), x);
  }
  static Floats select_range(Floats x, Floats other, int first, int begin, int end) {
    const Ints at = _mm512_add_epi32(
        _mm512_set1_epi32(first),
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    const __mmask16 seen = _mm512_cmpge_epi32_mask(at, _mm512_set1_epi32(begin)) &
                           _mm512_cmplt_epi32_mask(at, _mm512_set1_epi32(end));
    return _mm512_mask_mov_ps(other, seen, x);
  }
  static Floats widen(const float* x) { return _mm512_loadu_ps(x); }
  static Floats widen(const uint16_t* x) {  // float16
    return _mm512_cvtph_ps(Avx2::load_32(x));
  }
  static Floats widen(const int8_t* x) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(Avx2::load_16(x)));
  }
};

// `Wide` of linear_one.h and expert_one.h.
struct Quads : Sixteen {
  using Codes = __m512i;
  static constexpr int kGroups = 4;

  // Up to 16 float16; what lies behind `count` is 0, and not read.
  static Floats load_scales(const uint8_t* bytes, int count) {
    const __mmask16 some = static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << count) - 1);
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(some, bytes));
  }
  // 64 bytes, or those of fewer groups and zeros.
  static Codes load_codes(const uint8_t* bytes, int groups) {
    return groups >= 4 ? _mm512_loadu_si512(bytes)
                       : _mm512_maskz_loadu_epi64(
                             static_cast<__mmask8>((1 << 2 * groups) - 1), bytes);
  }

  // Of 16 values, those of load `i`: each in the lanes of its group.
  static __m512i lanes_of(int i) {
    return _mm512_add_epi32(_mm512_set1_epi32(4 * i), each_four_times());
  }
  static Floats spread(Floats values, __m512i lanes) {
    return _mm512_permutexvar_ps(lanes, values);
  }
  static __m512i spread(const int32_t* values) {
    return _mm512_permutexvar_epi32(each_four_times(),
                                    _mm512_castsi128_si512(Avx2::load_16(values)));
  }
  static Floats spread(const float* values) {
    return _mm512_permutexvar_ps(each_four_times(), _mm512_castps128_ps512(_mm_loadu_ps(values)));
  }

 private:
  static __m512i each_four_times() {
    return _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  }
};

// Keeps a value in its register.
inline void pin(__m512i& x) { asm volatile("" : "+v"(x)); }

// (x ^ flip) & mask: nibbles of codes as code + 8, for masks of nibbles.
inline __m512i nibbles(__m512i x, __m512i mask) {
  return _mm512_ternarylogic_epi32(x, _mm512_set1_epi8(static_cast<char>(0x88)), mask, 0x28);
}

// 16 rows of a group, 16 bytes each, to four vectors of one dword (8 columns) of each row.
inline void transpose_rows(const uint8_t* const* rows, size_t offset, __m512i* dwords) {
  __m512i r[4];  // rows i, 4 + i, 8 + i, 12 + i
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_castsi128_si512(Avx2::load_16(rows[i] + offset));
    r[i] = _mm512_inserti32x4(r[i], Avx2::load_16(rows[4 + i] + offset), 1);
    r[i] = _mm512_inserti32x4(r[i], Avx2::load_16(rows[8 + i] + offset), 2);
    r[i] = _mm512_inserti32x4(r[i], Avx2::load_16(rows[12 + i] + offset), 3);
  }
  const __m512i a = _mm512_unpacklo_epi32(r[0], r[1]), b = _mm512_unpacklo_epi32(r[2], r[3]);
  const __m512i c = _mm512_unpackhi_epi32(r[0], r[1]), d = _mm512_unpackhi_epi32(r[2], r[3]);
  dwords[0] = _mm512_unpacklo_epi64(a, b);
  dwords[1] = _mm512_unpackhi_epi64(a, b);
  dwords[2] = _mm512_unpacklo_epi64(c, d);
  dwords[3] = _mm512_unpackhi_epi64(c, d);
}

// 16 even columns and 16 odd ones, back into their order.
inline void store_columns(const float* sums, float* y) {
  const __m512 even = Quads::load(sums), odd = Quads::load(sums + 16);
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  Quads::store(y, _mm512_permutex2var_ps(even, low, odd));
  Quads::store(y + 16, _mm512_permutex2var_ps(even, high, odd));
}

}  // namespace avx512
}  // namespace mobilemoe

MOBILEMOE_END

#endif  // MOBILEMOE_X86
