// Eight floats at a time with AVX2, and the pragmas around what is compiled for it.
//
// What stands between MOBILEMOE_BEGIN_AVX2 and MOBILEMOE_END is compiled for AVX2, FMA and F16C,
// whatever the flags of the build, and must only run where runs_here() of kernels_avx2.cpp says so.
// Templates of the loops are included between the two. Headers of the standard library and others
// with plain inline functions come before, or those would be compiled for AVX2 as well.
#pragma once

#include "kernels.h"

#if defined(MOBILEMOE_X86)

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "bytes.h"
#include "prefetch.h"

#if defined(__clang__)
#define MOBILEMOE_BEGIN_AVX2 \
  _Pragma("clang attribute push(__attribute__((target(\"avx2,fma,f16c\"))), apply_to=function)")
#define MOBILEMOE_END _Pragma("clang attribute pop")
#else
#define MOBILEMOE_BEGIN_AVX2 \
  _Pragma("GCC push_options") _Pragma("GCC target(\"avx2,fma,f16c\")")
#define MOBILEMOE_END _Pragma("GCC pop_options")
#endif

MOBILEMOE_BEGIN_AVX2

namespace mobilemoe {

struct Avx2 {
  using Floats = __m256;
  using Ints = __m256i;
  static constexpr int kLanes = 8;

  static Floats zero() { return _mm256_setzero_ps(); }
  static Floats set(float x) { return _mm256_set1_ps(x); }
  static Floats load(const float* x) { return _mm256_loadu_ps(x); }
  // Of any alignment.
  static Floats load_bytes(const uint8_t* x) { return _mm256_castsi256_ps(load_32(x)); }
  static void store(float* to, Floats x) { _mm256_storeu_ps(to, x); }
  static Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static Floats sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats div(Floats a, Floats b) { return _mm256_div_ps(a, b); }
  static Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
  static Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
  static Floats absolute(Floats x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
  // a * b + c, and c - a * b.
  static Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static Floats fnma(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }

  // The sum of eight lanes, always in the same order.
  static float sum(Floats x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
  static float largest(Floats x) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
  }

  // The larger of `sizes` and |x|, and the largest of eight sizes. Compared as integers, whose order is
  // that of floats without a sign: what is not a number comes out as larger than all.
  static Floats larger_size(Floats sizes, Floats x) {
    return _mm256_castsi256_ps(
        _mm256_max_epi32(_mm256_castps_si256(sizes), _mm256_castps_si256(absolute(x))));
  }
  static float largest_size(Floats sizes) {
    const Ints ints = _mm256_castps_si256(sizes);
    __m128i half = _mm_max_epi32(_mm256_castsi256_si128(ints), _mm256_extracti128_si256(ints, 1));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4E));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0xB1));
    return _mm_cvtss_f32(_mm_castsi128_ps(half));
  }

  static Ints set_ints(int32_t x) { return _mm256_set1_epi32(x); }
  static Ints load_ints(const int32_t* x) { return load_32(x); }
  static void store_ints(void* to, Ints x) {
    _mm256_storeu_si256(static_cast<__m256i*>(to), x);
  }
  static Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
  static Ints sub_ints(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
  static Ints and_ints(Ints a, Ints b) { return _mm256_and_si256(a, b); }
  static Ints or_ints(Ints a, Ints b) { return _mm256_or_si256(a, b); }
  template <int kBits>
  static Ints shift_left(Ints x) {
    return _mm256_slli_epi32(x, kBits);
  }
  // To the nearest, ties to even.
  static Ints round(Floats x) { return _mm256_cvtps_epi32(x); }
  static Floats to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }

  // x where `limit` is not exceeded, else 0, which a value that is not a number gives as well.
  static Floats zero_above(Floats x, float limit) {
    return _mm256_and_ps(x, _mm256_cmp_ps(x, _mm256_set1_ps(limit), _CMP_LE_OQ));
  }
  // `x` where `condition` is not below `limit`, else 0.
  static Floats zero_below(Floats x, Floats condition, float limit) {
    return _mm256_andnot_ps(_mm256_cmp_ps(condition, _mm256_set1_ps(limit), _CMP_LT_OQ), x);
  }
  // `x` in the lanes that hold begin <= first + lane < end, else `other`.
  static Floats select_range(Floats x, Floats other, int first, int begin, int end) {
    const Ints at = _mm256_add_epi32(_mm256_set1_epi32(first),
                                     _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    const Ints inside = _mm256_and_si256(_mm256_cmpgt_epi32(at, _mm256_set1_epi32(begin - 1)),
                                         _mm256_cmpgt_epi32(_mm256_set1_epi32(end), at));
    return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(inside));
  }
  // x times 2^n, which is beyond float32's largest power for n = 128: two steps.
  static Floats times_power_of_two(Floats x, Ints n) {
    const Ints half = _mm256_srai_epi32(n, 1), bias = _mm256_set1_epi32(127);
    const Ints first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    const Ints second = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(x, _mm256_castsi256_ps(first)),
                         _mm256_castsi256_ps(second));
  }
  // For -126 <= n <= 127.
  static Floats times_normal_power_of_two(Floats x, Ints n) {
    const Ints power = _mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(x, _mm256_castsi256_ps(power));
  }

  static Floats widen(const float* x) { return _mm256_loadu_ps(x); }
  static Floats widen(const uint16_t* x) {  // float16
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
  }
  static Floats widen(const int8_t* x) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x))));
  }
  static float scale_of(const uint8_t* bytes) {
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(mobilemoe::load<uint16_t>(bytes))));
  }
  // Up to eight scales; what lies behind `count` is 0, and not read.
  static Floats load_scales(const uint8_t* bytes, int count) {
    if (count >= 8) return _mm256_cvtph_ps(load_16(bytes));
    uint8_t some[16] = {};
    std::memcpy(some, bytes, static_cast<size_t>(count) * 2);
    return _mm256_cvtph_ps(load_16(some));
  }

  // The 32 codes of a group: columns 0, 2, ..., 14; 16, ..., 30; 1, 3, ..., 15; 17, ..., 31.
  static void unpack(const uint8_t* codes, Floats* values) {
    const __m128i bytes = _mm_xor_si128(load_16(codes), _mm_set1_epi8(static_cast<char>(0x88)));
    const __m128i mask = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
    const __m128i even = _mm_sub_epi8(_mm_and_si128(bytes, mask), eight);
    const __m128i odd = _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(bytes, 4), mask), eight);
    values[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(even));
    values[1] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(even, 8)));
    values[2] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(odd));
    values[3] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(odd, 8)));
  }
  // Eight even columns and eight odd ones, back into their order.
  static void store_columns(const float* even, const float* odd, float* y) {
    const Floats e = load(even), o = load(odd);
    const Floats low = _mm256_unpacklo_ps(e, o), high = _mm256_unpackhi_ps(e, o);
    store(y, _mm256_permute2f128_ps(low, high, 0x20));
    store(y + 8, _mm256_permute2f128_ps(low, high, 0x31));
  }
  // Integers that fit into 16 bits, 16 of them.
  static void store_words(int16_t* to, Ints a, Ints b) {
    store_ints(to, _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8));
  }

  // What the inner products of the integer precisions use besides.
  static __m128i load_16(const void* x) {
    return _mm_loadu_si128(static_cast<const __m128i*>(x));
  }
  static __m256i load_32(const void* x) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(x));
  }
};

}  // namespace mobilemoe

MOBILEMOE_END

#endif  // MOBILEMOE_X86
