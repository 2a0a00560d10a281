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
constexpr int kFoldTokens = 4;
constexpr float kFullRatio = 32767.0f;

// One scale of each of four blocks, `stride` bytes apart; 0 behind the last of `blocks`.
inline uint64_t four_scales(const uint8_t* scales, size_t stride, int blocks) {
  uint64_t words = 0;
  const int count = blocks < 4 ? blocks : 4;
  for (int i = 0; i < count; ++i) {
    words |= static_cast<uint64_t>(load<uint16_t>(scales + i * stride)) << (16 * i);
  }
  return words;
}

// float16 scales of up to 16 blocks, [block][32] rows of `row_bytes`, to ratios to the largest of
// each block.
inline void fold_ratios(const uint8_t* scales, size_t row_bytes, int blocks, float* largest,
                        int16_t* ratios) {
  const size_t stride = kGroup * row_bytes;
  for (int half = 0; half < 2; ++half, scales += 8 * stride, blocks -= 8, ratios += 8) {
    __m128i rows[kGroup];
    __m256 most = Avx2::zero();
    for (int row = 0; row < kGroup; ++row) {
      const uint8_t* at = scales + row * row_bytes;
      rows[row] = _mm_set_epi64x(static_cast<int64_t>(four_scales(at + 4 * stride, stride, blocks - 4)),
                                 static_cast<int64_t>(four_scales(at, stride, blocks)));
      most = _mm256_max_ps(most, _mm256_cvtph_ps(rows[row]));
    }
    Avx2::store(largest + half * 8, most);
    const __m256 inverse = Avx2::zero_above(Avx2::div(Avx2::set(kFullRatio), most), 3e38f);
    for (int row = 0; row < kGroup; ++row) {
      const __m256i ratio = Avx2::round(Avx2::mul(_mm256_cvtph_ps(rows[row]), inverse));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(ratios + row * kFoldLanes),
                       _mm_packs_epi32(_mm256_castsi256_si128(ratio),
                                       _mm256_extracti128_si256(ratio, 1)));
    }
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
// block that there really is; peaks below 127 are left as they are. Several tokens at a time, for
// between the two halves is a wait for divisions. `sums`: -8 times the sums of each token's results, for
// codes are unsigned, code + 8; kept in 16 bits, which they fit.
template <int kCount>
inline void fold_int8(const FoldedToken<int8_t>* tokens, const int16_t* ratios,
                      const float* largest, __m256i* sums) {
  __m256i products[kCount][kGroup];
  __m256i peaks[kCount];
  for (__m256i& peak : peaks) peak = _mm256_setzero_si256();
  for (int row = 0; row < kGroup; ++row) {
    const __m256i ratio = Avx2::load_32(ratios + row * 16);
    for (int t = 0; t < kCount; ++t) {
      products[t][row] = _mm256_mulhrs_epi16(Avx2::load_32(tokens[t].words + row * 16), ratio);
      peaks[t] = _mm256_max_epu16(peaks[t], _mm256_abs_epi16(products[t][row]));
    }
  }
  __m256i factor[kCount];
  for (int t = 0; t < kCount; ++t) {
    const __m256i halves[2] = {_mm256_cvtepu16_epi32(_mm256_castsi256_si128(peaks[t])),
                               _mm256_cvtepu16_epi32(_mm256_extracti128_si256(peaks[t], 1))};
    __m256i factors[2];
    for (int half = 0; half < 2; ++half) {
      const __m256 exact = Avx2::div(Avx2::set(127.0f * 32768), Avx2::to_floats(halves[half]));
      factors[half] = _mm256_cvttps_epi32(_mm256_min_ps(exact, Avx2::set(32767.0f)));
      const __m256 step =
          Avx2::mul(Avx2::load(tokens[t].steps + half * 8), Avx2::load(largest + half * 8));
      Avx2::store(tokens[t].new_steps + half * 8,
                  Avx2::div(Avx2::mul(step, Avx2::set(32768.0f / kFullRatio * 32768.0f)),
                            Avx2::to_floats(factors[half])));
    }
    factor[t] = _mm256_permute4x64_epi64(_mm256_packs_epi32(factors[0], factors[1]), 0xD8);
  }
  for (int t = 0; t < kCount; ++t) {
    __m256i sum = _mm256_setzero_si256();
    for (int row = 0; row < kGroup; row += 4) {
      __m256i q[4];
      for (int i = 0; i < 4; ++i) {
        q[i] = _mm256_mulhrs_epi16(products[t][row + i], factor[t]);
        sum = _mm256_add_epi16(sum, q[i]);
      }
      const __m256i even = _mm256_packs_epi16(q[0], q[2]), odd = _mm256_packs_epi16(q[1], q[3]);
      store_interleaved(_mm256_unpacklo_epi8(even, odd), _mm256_unpackhi_epi8(even, odd),
                        tokens[t].x + row * 8);
    }
    sums[t] = _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_slli_epi16(sum, 3));
  }
}

// To 16 bits, by one multiplication. Codes are signed, so that sums begin with nothing.
template <int kCount>
inline void fold_int16(const FoldedToken<int16_t>* tokens, const int16_t* ratios,
                       const float* largest) {
  for (int row = 0; row < kGroup; row += 2) {
    const __m256i ratio[2] = {Avx2::load_32(ratios + row * 16),
                              Avx2::load_32(ratios + row * 16 + 16)};
    for (int t = 0; t < kCount; ++t) {
      const int16_t* words = tokens[t].words + row * 16;
      store_interleaved(_mm256_mulhrs_epi16(Avx2::load_32(words), ratio[0]),
                        _mm256_mulhrs_epi16(Avx2::load_32(words + 16), ratio[1]),
                        tokens[t].x + row * 8);
    }
  }
  for (int i = 0; i < 16; i += 8) {
    const __m256 scale =
        Avx2::mul(Avx2::load(largest + i), Avx2::set(32768.0f / kFullRatio));
    for (int t = 0; t < kCount; ++t) {
      Avx2::store(tokens[t].new_steps + i, Avx2::mul(Avx2::load(tokens[t].steps + i), scale));
    }
  }
}

}  // namespace avx2
}  // namespace mobilemoe

MOBILEMOE_END

#endif  // MOBILEMOE_X86
