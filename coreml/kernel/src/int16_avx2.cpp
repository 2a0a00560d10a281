// The inner products of int16 with AVX2: madd multiplies words and adds pairs of products into 32
// bits.
#include "code_paths_x86.h"
#include "fold_avx2.h"
#include "products_avx2.h"

#if defined(MOBILEMOE_X86)

MOBILEMOE_BEGIN_AVX2

#include "activation_order.h"
#include "products.h"
#include "tile_avx2.h"

namespace mobilemoe {
namespace avx2 {
namespace {

// A word of codes holds four columns, which are taken apart into four planes of unsigned nibbles.
struct LinearInt16 {
  using V = Avx2;
  using Wide = Pairs;
  static constexpr float kLimit = kInt16Limit;

  struct Block {
    int16_t planes[4][16];  // columns 4 j + plane: 8 of the first group, 8 of the second
    int32_t initial[8];
  };

  static void put(const int16_t* q, int part, Block* block) {
    split_planes<V>(q, part, block->planes);
    less_eight_times_lanes<V>(q, block->initial + part * 4);
  }

  static __m256i multiply(__m256i codes, const Block& block) {
    const __m256i mask = _mm256_set1_epi16(15);
    const __m256i words = _mm256_xor_si256(codes, flip());
    __m256i acc = Avx2::load_32(block.initial);
    const auto add = [&](__m256i nibbles, int plane) {
      acc = _mm256_add_epi32(acc,
                             _mm256_madd_epi16(nibbles, Avx2::load_32(block.planes[plane])));
      pin(acc);
    };
    add(_mm256_and_si256(words, mask), 0);
    add(_mm256_and_si256(_mm256_srli_epi16(words, 4), mask), 1);
    add(_mm256_and_si256(_mm256_srli_epi16(words, 8), mask), 2);
    add(_mm256_srli_epi16(words, 12), 3);
    return acc;
  }
};

// Words of two rows are interleaved. A word has four columns; planes 1 and 2 stay where they lie in
// it, 16 and 256 times as large, which the steps take back.
struct ExpertInt16 {
  using V = Avx2;
  using Wide = Pairs;
  static constexpr float kLimit = kInt16Limit;
  static constexpr int kTogether = 2, kWords = 1;

  static __m256i pack(const __m256i* q, int) {
    return _mm256_blend_epi16(q[0], _mm256_slli_epi32(q[1], 16), 0xAA);
  }
  static __m256i initial(__m256i sum) {
    return _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(sum, 3));
  }

  struct Sums {
    __m256i acc[2][4];  // [half of a group's bytes][plane]

    void begin(__m256i initial) {
      for (auto& half : acc) {
        half[0] = half[3] = initial;
        half[1] = _mm256_slli_epi32(initial, 4);
        half[2] = _mm256_slli_epi32(initial, 8);
      }
    }
    void add(const __m256i* rows, const __m256i* words) {
      const __m256i q = words[0];
      const __m256i halves[2] = {
          _mm256_xor_si256(_mm256_unpacklo_epi16(rows[0], rows[1]), flip()),
          _mm256_xor_si256(_mm256_unpackhi_epi16(rows[0], rows[1]), flip())};
      for (int half = 0; half < 2; ++half) {
        const __m256i words = halves[half];
        add_product(acc[half][0], _mm256_and_si256(words, _mm256_set1_epi16(0x000f)), q);
        add_product(acc[half][1], _mm256_and_si256(words, _mm256_set1_epi16(0x00f0)), q);
        add_product(acc[half][2], _mm256_and_si256(words, _mm256_set1_epi16(0x0f00)), q);
        add_product(acc[half][3], _mm256_srli_epi16(words, 12), q);
      }
    }
    void flush(__m256 step, float* sums) const {
      const __m256 steps[4] = {step, _mm256_mul_ps(step, _mm256_set1_ps(1.0f / 16)),
                               _mm256_mul_ps(step, _mm256_set1_ps(1.0f / 256)), step};
      for (int half = 0; half < 2; ++half) {
        for (int plane = 0; plane < 4; ++plane, sums += 8) {
          const __m256 part = _mm256_cvtepi32_ps(acc[half][plane]);
          Avx2::store(sums, Avx2::fma(part, steps[plane], Avx2::load(sums)));
        }
      }
    }

   private:
    static void add_product(__m256i& sum, __m256i nibbles, __m256i q) {
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(nibbles, q));
      pin(sum);
    }
  };

  // sums [half][plane][group][4 words]
  static void store_group(const float* sums, int group, float* y) {
    store_planes<Wide>(sums, group, y);
  }
};

// A block of 32 inputs stays below 32 x 32,767 x 8.
struct TileInt16 : Tile<int16_t, int16_t> {
  static constexpr float kLimit = kInt16Limit;
  static constexpr int kPairs = kGroup / 2;  // two inputs that madd adds up

  static void order(const int16_t* q, int16_t* x) { order_pairs<V>(q, x); }
  static int32_t initial(const int16_t*) { return 0; }

  static void fill_linear(const uint8_t* const* rows, size_t offset, int16_t* to) {
    const __m256i mask = _mm256_set1_epi16(15), eight = _mm256_set1_epi16(8);
    for (int half = 0; half < 2; ++half) {
      __m128i dwords[2][4];
      transpose_rows(rows + half * 8, offset, dwords[0]);
      transpose_rows(rows + half * 8 + 4, offset, dwords[1]);
      for (int i = 0; i < 4; ++i) {
        __m256i words = _mm256_xor_si256(_mm256_set_m128i(dwords[1][i], dwords[0][i]), flip());
        for (int plane = 0; plane < 4; ++plane) {
          const __m256i nibbles = _mm256_and_si256(words, mask);
          Avx2::store_ints(to + (i * 4 + plane) * 32 + half * 16,
                           _mm256_sub_epi16(nibbles, eight));
          words = _mm256_srli_epi16(words, 4);
        }
      }
    }
  }
  // Of the part's 16 columns: even ones, then odd ones.
  static void fill_expert(const uint8_t* codes, size_t row_bytes, int part, int16_t* to) {
    const __m128i mask = _mm_set1_epi8(15), flip = _mm_set1_epi8(static_cast<char>(0x88));
    const __m256i eight = _mm256_set1_epi16(8);
    codes += part * 8;
    for (int pair = 0; pair < kPairs; ++pair, codes += 2 * row_bytes, to += 32) {
      const __m128i a = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
      const __m128i b = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + row_bytes));
      const __m128i bytes = _mm_xor_si128(_mm_unpacklo_epi8(a, b), flip);
      const __m128i low = _mm_and_si128(bytes, mask);
      const __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask);
      Avx2::store_ints(to, _mm256_sub_epi16(_mm256_cvtepu8_epi16(low), eight));
      Avx2::store_ints(to + 16, _mm256_sub_epi16(_mm256_cvtepu8_epi16(high), eight));
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
    clear_sums<kCount>(sums);
    const int16_t* codes = panel.codes;
    for (int block = 0; block < blocks; ++block) {
      const uint8_t* words[kCount];
      for (int t = 0; t < kCount; ++t) words[t] = x[t].block<kLanes>(block, kPairs);
      __m256i acc[kCount][2];
      for (auto& token : acc) token[0] = token[1] = _mm256_setzero_si256();
#pragma GCC unroll 16
      for (int pair = 0; pair < kPairs; ++pair, codes += 32) {
        __m256i w0 = Avx2::load_32(codes), w1 = Avx2::load_32(codes + 16);
        pin(w0);  // or the load is done again in each madd
        pin(w1);
        for (int t = 0; t < kCount; ++t) {
          const __m256i q = _mm256_set1_epi32(load<int32_t>(words[t] + pair * kLanes * 4));
          acc[t][0] = _mm256_add_epi32(acc[t][0], _mm256_madd_epi16(q, w0));
          acc[t][1] = _mm256_add_epi32(acc[t][1], _mm256_madd_epi16(q, w1));
          pin(acc[t][0]);
          pin(acc[t][1]);
        }
      }
      for (int t = 0; t < kCount; ++t) {
        add_block<kScaled>(acc[t], x[t].steps[block], panel.scales + block * 16, sums[t]);
      }
    }
  }
};

}  // namespace

extern const Products kInt16 = RoundedProducts<LinearInt16, ExpertInt16, TileInt16>::table();

}  // namespace avx2
}  // namespace mobilemoe

MOBILEMOE_END

#endif  // MOBILEMOE_X86
