// The inner products of int8 with AVX2: maddubs multiplies unsigned bytes, code + 8, by signed ones,
// activations, and adds pairs of products into 16 bits.
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

// Even columns of two groups are the low nibbles of their bytes, odd ones the high nibbles. The sums
// of 16 products begin with -8 times those of the activations, and fit into 16 bits.
struct LinearInt8 {
  using V = Avx2;
  using Wide = Pairs;
  static constexpr float kLimit = kInt8Limit;

  struct Block {
    int8_t even[32], odd[32];  // 16 columns of the first group, 16 of the second
    int16_t initial[16];
  };

  static void put(const int16_t* q, int part, Block* block) {
    split_even_odd<V>(q, block->even + part * 16, block->odd + part * 16);
    const __m256i fours = less_eight_times_fours<V>(q);  // which fit into 16 bits
    _mm_storeu_si128(reinterpret_cast<__m128i*>(block->initial + part * 8),
                     _mm_packs_epi32(_mm256_castsi256_si128(fours),
                                     _mm256_extracti128_si256(fours, 1)));
  }

  static __m256i multiply(__m256i codes, const Block& block) {
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i bytes = _mm256_xor_si256(codes, flip());
    const __m256i low = _mm256_and_si256(bytes, mask);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
    __m256i acc = _mm256_add_epi16(Avx2::load_32(block.initial),
                                   _mm256_maddubs_epi16(low, Avx2::load_32(block.even)));
    acc = _mm256_add_epi16(acc, _mm256_maddubs_epi16(high, Avx2::load_32(block.odd)));
    return _mm256_madd_epi16(acc, _mm256_set1_epi16(1));
  }
};

// Two rows are interleaved; 16 rows fit into 16 bits.
struct ExpertInt8 {
  using V = Avx2;
  using Wide = Pairs;
  static constexpr float kLimit = kInt8Limit;
  static constexpr int kTogether = 2, kWords = 1;

  // Two bytes, twice.
  static __m256i pack(const __m256i* q, int) {
    const __m256i byte = _mm256_set1_epi32(255);
    const __m256i pair = _mm256_or_si256(_mm256_and_si256(q[0], byte),
                                         _mm256_slli_epi32(_mm256_and_si256(q[1], byte), 8));
    return _mm256_or_si256(pair, _mm256_slli_epi32(pair, 16));
  }
  // -8 times the sum, a word, twice.
  static __m256i initial(__m256i sum) {
    const __m256i words =
        _mm256_and_si256(_mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(sum, 3)),
                         _mm256_set1_epi32(0xffff));
    return _mm256_or_si256(words, _mm256_slli_epi32(words, 16));
  }

  // Of a group: even columns of bytes 0 to 7, odd ones, then those of bytes 8 to 15.
  struct Sums {
    __m256i acc[4];

    void begin(__m256i initial) { acc[0] = acc[1] = acc[2] = acc[3] = initial; }
    void add(const __m256i* rows, const __m256i* words) {
      const __m256i q = words[0];
      const __m256i mask = _mm256_set1_epi8(15);
      const __m256i halves[2] = {
          _mm256_xor_si256(_mm256_unpacklo_epi8(rows[0], rows[1]), flip()),
          _mm256_xor_si256(_mm256_unpackhi_epi8(rows[0], rows[1]), flip())};
      for (int half = 0; half < 2; ++half) {
        const __m256i low = _mm256_and_si256(halves[half], mask);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(halves[half], 4), mask);
        add_words(acc[2 * half], _mm256_maddubs_epi16(low, q));
        add_words(acc[2 * half + 1], _mm256_maddubs_epi16(high, q));
      }
    }
    void flush(__m256 steps, float* sums) const {
      const __m256 step[2] = {_mm256_permute2f128_ps(steps, steps, 0x00),
                              _mm256_permute2f128_ps(steps, steps, 0x11)};
      for (int i = 0; i < 4; ++i) {
        const __m128i words[2] = {_mm256_castsi256_si128(acc[i]),
                                  _mm256_extracti128_si256(acc[i], 1)};
        for (int group = 0; group < 2; ++group) {
          float* to = sums + group * kGroup + i * 8;
          const __m256 part = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(words[group]));
          Avx2::store(to, Avx2::fma(part, step[group], Avx2::load(to)));
        }
      }
    }

   private:
    static void add_words(__m256i& sum, __m256i words) {
      sum = _mm256_add_epi16(sum, words);
      pin(sum);
    }
  };

  static void store_group(const float* sums, int group, float* y) {
    sums += group * kGroup;
    Avx2::store_columns(sums, sums + 8, y);
    Avx2::store_columns(sums + 16, sums + 24, y + 16);
  }
};

// The 32 products of a block are summed in 16 bits: with the signs right
// their sum is at most 32 x 127 x 8 = 32,512, and what wraps around on the way wraps back.
struct TileInt8 : Tile<int8_t, uint8_t> {
  static constexpr float kLimit = kInt8Limit;
  static constexpr int kQuads = kGroup / 4;  // four inputs that maddubs and madd add up

  // Even columns, then odd ones.
  static void order(const int16_t* q, int8_t* x) {
    split_even_odd<V>(q, x, x + 16);
  }
  // The lower of two words; the upper one begins with 0.
  static int32_t initial(const int16_t* q) { return less_eight_times_sum<V>(q) & 0xffff; }

  static void store_nibbles(__m256i bytes, uint8_t* low, uint8_t* high) {
    const __m256i mask = _mm256_set1_epi8(15);
    bytes = _mm256_xor_si256(bytes, flip());
    Avx2::store_ints(low, _mm256_and_si256(bytes, mask));
    Avx2::store_ints(high, _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask));
  }
  static void fill_linear(const uint8_t* const* rows, size_t offset, uint8_t* to) {
    for (int half = 0; half < 2; ++half) {
      __m128i quads[2][4];
      transpose_rows(rows + half * 8, offset, quads[0]);
      transpose_rows(rows + half * 8 + 4, offset, quads[1]);
      for (int quad = 0; quad < 4; ++quad) {
        uint8_t* low = to + quad * 64 + half * 32;
        store_nibbles(_mm256_set_m128i(quads[1][quad], quads[0][quad]), low, low + 4 * 64);
      }
    }
  }
  // Of the part's 16 columns: even ones, then odd ones.
  static void fill_expert(const uint8_t* codes, size_t row_bytes, int part, uint8_t* to) {
    for (int quad = 0; quad < kQuads; ++quad, to += 64) {
      __m128i rows[4];
      for (int r = 0; r < 4; ++r) {
        rows[r] = _mm_loadl_epi64(
            reinterpret_cast<const __m128i*>(codes + (quad * 4 + r) * row_bytes + part * 8));
      }
      const __m128i a = _mm_unpacklo_epi8(rows[0], rows[1]);
      const __m128i b = _mm_unpacklo_epi8(rows[2], rows[3]);
      store_nibbles(_mm256_set_m128i(_mm_unpackhi_epi16(a, b), _mm_unpacklo_epi16(a, b)), to,
                    to + 32);
    }
  }

  template <int kCount>
  static void fold(const FoldedToken<int8_t>* tokens, const int16_t* ratios,
                   const float* largest) {
    __m256i sums[kCount];
    avx2::fold_int8<kCount>(tokens, ratios, largest, sums);
    for (int t = 0; t < kCount; ++t) {
      Avx2::store_ints(tokens[t].initial, _mm256_cvtepu16_epi32(_mm256_castsi256_si128(sums[t])));
      Avx2::store_ints(tokens[t].initial + 8,
                       _mm256_cvtepu16_epi32(_mm256_extracti128_si256(sums[t], 1)));
    }
  }

  template <int kCount, bool kScaled>
  static void multiply(const TileToken* x, const Panel<uint8_t, kOutputs>& panel,
                       int blocks, float (*sums)[kOutputs]) {
    const __m256i ones = _mm256_set1_epi16(1);
    clear_sums<kCount>(sums);
    const uint8_t* codes = panel.codes;
    for (int block = 0; block < blocks; ++block) {
      const uint8_t* words[kCount];
      for (int t = 0; t < kCount; ++t) words[t] = x[t].block<kLanes>(block, kQuads);
      __m256i acc[kCount][2];
      for (int t = 0; t < kCount; ++t) {
        acc[t][0] = acc[t][1] = _mm256_set1_epi32(x[t].initial[block]);
      }
#pragma GCC unroll 8
      for (int quad = 0; quad < kQuads; ++quad, codes += 64) {
        __m256i w0 = Avx2::load_32(codes), w1 = Avx2::load_32(codes + 32);
        pin(w0);  // or the load is done again in each maddubs
        pin(w1);
        for (int t = 0; t < kCount; ++t) {
          const __m256i q = _mm256_set1_epi32(load<int32_t>(words[t] + quad * kLanes * 4));
          acc[t][0] = _mm256_add_epi16(acc[t][0], _mm256_maddubs_epi16(w0, q));
          acc[t][1] = _mm256_add_epi16(acc[t][1], _mm256_maddubs_epi16(w1, q));
          pin(acc[t][0]);
          pin(acc[t][1]);
        }
      }
      for (int t = 0; t < kCount; ++t) {
        for (__m256i& half : acc[t]) half = _mm256_madd_epi16(half, ones);
        add_block<kScaled>(acc[t], x[t].steps[block], panel.scales + block * 16, sums[t]);
      }
    }
  }
};

}  // namespace

extern const Products kInt8 = RoundedProducts<LinearInt8, ExpertInt8, TileInt8>::table();

}  // namespace avx2
}  // namespace mobilemoe

MOBILEMOE_END

#endif  // MOBILEMOE_X86
