// The inner products of int16 with AVX-512 VNNI: dpwssd multiplies words and adds two products to 32
// bits.
#include "code_paths_x86.h"
#include "fold_avx2.h"
#include "vectors_avx512.h"

#if defined(MOBILEMOE_X86)

MOBILEMOE_BEGIN_AVX512

#include "activation_order.h"
#include "products.h"
#include "tile_avx512.h"

namespace mobilemoe {
namespace avx512 {
namespace {

// A word of codes holds four columns, which are taken apart into four planes of unsigned nibbles.
struct LinearInt16 {
  using V = Avx512;
  using Wide = Quads;
  static constexpr float kLimit = kInt16Limit;

  struct Block {
    int16_t planes[4][32];  // columns 4 j + plane: 8 of each group
    int32_t initial[16];
  };

  static void put(const int16_t* q, int part, Block* block) {
    split_planes<V>(q, part, block->planes);
    less_eight_times_lanes<V>(q, block->initial + part * 4);
  }

  static __m512i multiply(__m512i codes, const Block& block) {
    const __m512i mask = _mm512_set1_epi16(15);
    __m512i acc = _mm512_loadu_si512(block.initial);
    for (int plane = 0; plane < 4; ++plane) {
      acc = _mm512_dpwssd_epi32(acc, nibbles(codes, mask),
                                _mm512_loadu_si512(block.planes[plane]));
      codes = _mm512_srli_epi16(codes, 4);
    }
    return acc;
  }
};

// Words of two rows are interleaved. A word has four columns; planes 1 and 2 stay where they lie in
// it, 16 and 256 times as large, which the steps take back.
struct ExpertInt16 {
  using V = Avx512;
  using Wide = Quads;
  static constexpr float kLimit = kInt16Limit;
  static constexpr int kTogether = 2, kWords = 1;

  static __m256i pack(const __m256i* q, int) {
    return _mm256_blend_epi16(q[0], _mm256_slli_epi32(q[1], 16), 0xAA);
  }
  static __m256i initial(__m256i sum) {
    return _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(sum, 3));
  }

  struct Sums {
    __m512i acc[2][4];  // [half of a group's bytes][plane]

    void begin(__m512i initial) {
      for (auto& half : acc) {
        half[0] = half[3] = initial;
        half[1] = _mm512_slli_epi32(initial, 4);
        half[2] = _mm512_slli_epi32(initial, 8);
      }
    }
    void add(const __m512i* rows, const __m512i* words) {
      const __m512i q = words[0];
      const __m512i halves[2] = {_mm512_unpacklo_epi16(rows[0], rows[1]),
                                 _mm512_unpackhi_epi16(rows[0], rows[1])};
      for (int half = 0; half < 2; ++half) {
        const __m512i words = halves[half];
        const __m512i planes[4] = {nibbles(words, _mm512_set1_epi16(0x000f)),
                                   nibbles(words, _mm512_set1_epi16(0x00f0)),
                                   nibbles(words, _mm512_set1_epi16(0x0f00)),
                                   nibbles(_mm512_srli_epi16(words, 12), _mm512_set1_epi16(15))};
        for (int plane = 0; plane < 4; ++plane) {
          acc[half][plane] = _mm512_dpwssd_epi32(acc[half][plane], planes[plane], q);
        }
      }
    }
    // sums [half][plane][group][4 words]
    void flush(__m512 step, float* sums) const {
      const __m512 steps[4] = {step, _mm512_mul_ps(step, _mm512_set1_ps(1.0f / 16)),
                               _mm512_mul_ps(step, _mm512_set1_ps(1.0f / 256)), step};
      for (const auto& half : acc) {
        for (int plane = 0; plane < 4; ++plane, sums += 16) {
          Quads::store(sums, Quads::fma(Quads::to_floats(half[plane]), steps[plane],
                                        Quads::load(sums)));
        }
      }
    }
  };

  static void store_group(const float* sums, int group, float* y) {
    store_planes<Wide>(sums, group, y);
  }
};

// A block of 32 inputs stays below 32 x 32,767 x 8.
struct TileInt16 : Tile<int16_t, int16_t> {
  static constexpr float kLimit = kInt16Limit;
  static constexpr int kPairs = kGroup / 2;  // two inputs that dpwssd adds up

  static void order(const int16_t* q, int16_t* x) { order_pairs<V>(q, x); }
  static int32_t initial(const int16_t*) { return 0; }

  static __m512i codes_of(__m512i words) {
    return _mm512_sub_epi16(nibbles(words, _mm512_set1_epi16(15)), _mm512_set1_epi16(8));
  }
  static void fill_linear(const uint8_t* const* rows, size_t offset, int16_t* to) {
    for (int half = 0; half < 2; ++half, to += 32) {
      __m512i dwords[4];
      transpose_rows(rows + half * 16, offset, dwords);
      for (int i = 0; i < 4; ++i) {
        for (int plane = 0; plane < 4; ++plane) {
          _mm512_storeu_si512(to + (i * 4 + plane) * 64, codes_of(dwords[i]));
          dwords[i] = _mm512_srli_epi16(dwords[i], 4);
        }
      }
    }
  }
  // Even columns, then odd ones.
  static void fill_expert(const uint8_t* codes, size_t row_bytes, int, int16_t* to) {
    for (int pair = 0; pair < kPairs; ++pair, codes += 2 * row_bytes, to += 64) {
      const __m128i a = Avx2::load_16(codes), b = Avx2::load_16(codes + row_bytes);
      const __m512i words = _mm512_cvtepu8_epi16(
          _mm256_set_m128i(_mm_unpackhi_epi8(a, b), _mm_unpacklo_epi8(a, b)));
      _mm512_storeu_si512(to, codes_of(words));
      _mm512_storeu_si512(to + 32, codes_of(_mm512_srli_epi16(words, 4)));
    }
  }

  template <int kCount>
  static void fold(const FoldedToken<int16_t>* tokens, const int16_t* ratios,
                   const float* largest) {
    avx2::fold_int16<kCount>(tokens, ratios, largest);
  }

  template <int kCount, bool kScaled>
  static void multiply(const TileToken* x, const Panel<int16_t, kOutputs>& panel,
                       int blocks, float (*sums)[kOutputs]) {
    __m512 totals[kCount][2];
    for (auto& total : totals) total[0] = total[1] = _mm512_setzero_ps();
    const int16_t* codes = panel.codes;
    for (int block = 0; block < blocks; ++block) {
      const uint8_t* words[kCount];
      for (int t = 0; t < kCount; ++t) words[t] = x[t].block<kLanes>(block, kPairs);
      __m512i acc[kCount][2];
      for (auto& token : acc) token[0] = token[1] = _mm512_setzero_si512();
#pragma GCC unroll 16
      for (int pair = 0; pair < kPairs; ++pair, codes += 64) {
        const __m512i w0 = _mm512_loadu_si512(codes), w1 = _mm512_loadu_si512(codes + 32);
        for (int t = 0; t < kCount; ++t) {
          __m512i q = _mm512_set1_epi32(load<int32_t>(words[t] + pair * kLanes * 4));
          pin(q);  // or it is loaded twice
          acc[t][0] = _mm512_dpwssd_epi32(acc[t][0], w0, q);
          acc[t][1] = _mm512_dpwssd_epi32(acc[t][1], w1, q);
        }
      }
      add_block<kCount, kScaled>(acc, x, block, panel.scales, totals);
    }
    store_sums<kCount>(totals, sums);
  }
};

}  // namespace

extern const Products kInt16 = RoundedProducts<LinearInt16, ExpertInt16, TileInt16>::table();

}  // namespace avx512
}  // namespace mobilemoe

MOBILEMOE_END

#endif  // MOBILEMOE_X86
