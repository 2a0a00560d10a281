// What the AVX2 files share. Everything after MOBILEMOE_BEGIN_AVX2 is compiled for AVX2, FMA and
// F16C, whatever the flags of the build, and must only run where runs_here() says so. Headers of the
// standard library come before it, or their inline functions would be compiled for AVX2 as well.
#pragma once

#include "kernels.h"

#if defined(MOBILEMOE_X86)

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "bytes.h"

#if defined(__clang__)
#define MOBILEMOE_BEGIN_AVX2 \
  _Pragma("clang attribute push(__attribute__((target(\"avx2,fma,f16c\"))), apply_to=function)")
#define MOBILEMOE_END_AVX2 _Pragma("clang attribute pop")
#else
#define MOBILEMOE_BEGIN_AVX2 \
  _Pragma("GCC push_options") _Pragma("GCC target(\"avx2,fma,f16c\")")
#define MOBILEMOE_END_AVX2 _Pragma("GCC pop_options")
#endif

MOBILEMOE_BEGIN_AVX2

namespace mobilemoe {
namespace avx2 {

// Codes and scales are read once, in the order of memory: asking for them this far ahead hides the
// memory's latency, which the hardware's prefetcher, stopping at every page, does not.
constexpr int kPrefetchBytes = 6 * 1024;

// The address may lie behind the matrix, where the next one begins; prefetching never faults.
inline void prefetch(const uint8_t* bytes) {
  _mm_prefetch(reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(bytes) + kPrefetchBytes),
               _MM_HINT_T0);
}

// Keeps a sum in its register: GCC 12 otherwise reorders integer sums and spills every product.
inline void pin(__m256i& x) { asm volatile("" : "+x"(x)); }

inline __m128i load_16(const uint8_t* bytes) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
}
inline __m256i load_32(const uint8_t* bytes) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
}
inline __m256i load_32(const int16_t* values) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
}
inline __m256i load_32(const int32_t* values) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
}
inline void store_32(void* to, __m256i value) {
  _mm256_storeu_si256(static_cast<__m256i*>(to), value);
}

// Eight float16.
inline __m256 load_float16(const uint8_t* bytes) { return _mm256_cvtph_ps(load_16(bytes)); }

inline float load_one_float16(const uint8_t* bytes) {
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(load<uint16_t>(bytes))));
}

// The sum of eight lanes, always in the same order.
inline float sum_lanes(__m256 x) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

inline float largest_lane(__m256 x) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

inline __m256 absolute(__m256 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }

// exp(x): 2^n times a polynomial in the rest (Cephes' coefficients), relative error 2e-7; 0 below
// -87.3 and at most exp(88.7).
inline __m256 exponential(__m256 x) {
  const __m256 low = _mm256_set1_ps(-87.336544f), high = _mm256_set1_ps(88.72283f);
  const __m256 tiny = _mm256_cmp_ps(x, low, _CMP_LT_OQ);
  x = _mm256_min_ps(high, _mm256_max_ps(low, x));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.9875691500e-4f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
  p = _mm256_add_ps(_mm256_fmadd_ps(_mm256_mul_ps(r, r), p, r), _mm256_set1_ps(1.0f));
  // In two steps, for 2^128 is beyond float32.
  const __m256i exponent = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(exponent, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i second =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(exponent, half), bias), 23);
  p = _mm256_mul_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
  return _mm256_andnot_ps(tiny, p);
}

}  // namespace avx2
}  // namespace mobilemoe

MOBILEMOE_END_AVX2

#endif  // MOBILEMOE_X86
