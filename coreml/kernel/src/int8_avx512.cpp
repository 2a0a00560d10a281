// The inner products of int8 with AVX-512 VNNI: dpbusd multiplies unsigned bytes, code + 8, by
// signed ones, activations, and adds four products to 32 bits.
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

// Even columns of four groups are the low nibbles of their bytes, odd ones the high nibbles.
struct LinearInt8 {
  using V = Avx512;
  using Wide = Quads;
  static constexpr float kLimit = kInt8Limit;

  struct Block {
    int8_t even[64], odd[64];  // 16 columns of each group
    int32_t initial[16];
  };

  static void put(const int16_t* q, int part, Block* block) {
    split_even_odd<V>(q, block->even + part * 16, block->odd + part * 16);
    less_eight_times_lanes<V>(q, block->initial + part * 4);
  }

  static __m512i multiply(__m512i codes, const Block& block) {
    const __m512i mask = _mm512_set1_epi8(15);
    const __m512i low = nibbles(codes, mask), high = nibbles(_mm512_srli_epi16(codes, 4), mask);
    const __m512i acc = _mm512_dpbusd_epi32(_mm512_loadu_si512(block.initial), low,
                                            _mm512_loadu_si512(block.even));
    return _mm512_dpbusd_epi32(acc, high, _mm512_loadu_si512(block.odd));
  }
};

// Four rows are interleaved.
struct ExpertInt8 {
  using V = Avx512;
  using Wide = Quads;
  static constexpr float kLimit = kInt8Limit;
  static constexpr int kTogether = 4, kWords = 1;

  static __m256i pack(const __m256i* q, int) {
    const __m256i byte = _mm256_set1_epi32(255);
    const __m256i low = _mm256_or_si256(_mm256_and_si256(q[0], byte),
                                        _mm256_slli_epi32(_mm256_and_si256(q[1], byte), 8));
    const __m256i high = _mm256_or_si256(_mm256_slli_epi32(_mm256_and_si256(q[2], byte), 16),
                                         _mm256_slli_epi32(q[3], 24));
    return _mm256_or_si256(low, high);
  }
  static __m256i initial(__m256i sum) {
    return _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(sum, 3));
  }

  // Of each four bytes of a group's 16: even columns, then odd ones.
  struct Sums {
    __m512i acc[4][2];

    void begin(__m512i initial) {
      for (auto& four : acc) four[0] = four[1] = initial;
    }
    void add(const __m512i* rows, const __m512i* words) {
      const __m512i q = words[0];
      const __m512i a = _mm512_unpacklo_epi8(rows[0], rows[1]);
      const __m512i b = _mm512_unpacklo_epi8(rows[2], rows[3]);
      const __m512i c = _mm512_unpackhi_epi8(rows[0], rows[1]);
      const __m512i d = _mm512_unpackhi_epi8(rows[2], rows[3]);
      const __m512i fours[4] = {_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b),
                                _mm512_unpacklo_epi16(c, d), _mm512_unpackhi_epi16(c, d)};
      const __m512i mask = _mm512_set1_epi8(15);
      for (int i = 0; i < 4; ++i) {
        acc[i][0] = _mm512_dpbusd_epi32(acc[i][0], nibbles(fours[i], mask), q);
        acc[i][1] =
            _mm512_dpbusd_epi32(acc[i][1], nibbles(_mm512_srli_epi16(fours[i], 4), mask), q);
      }
    }
    // sums [four][even, odd][group][4]
    void flush(__m512 steps, float* sums) const {
      for (const auto& four : acc) {
        for (const __m512i part : four) {
          Quads::store(sums, Quads::fma(Quads::to_floats(part), steps, Quads::load(sums)));
          sums += 16;
        }
      }
    }
  };

  static void store_group(const float* sums, int group, float* y) {
    sums += group * 4;
    for (int four = 0; four < 4; ++four, sums += 32, y += 8) {
      const __m128 even = _mm_loadu_ps(sums), odd = _mm_loadu_ps(sums + 16);
      _mm_storeu_ps(y, _mm_unpacklo_ps(even, odd));
      _mm_storeu_ps(y + 4, _mm_unpackhi_ps(even, odd));
    }
  }
};

struct TileInt8 : Tile<int8_t, uint8_t> {
  static constexpr float kLimit = kInt8Limit;
  static constexpr int kQuads = kGroup / 4;  // four inputs that dpbusd adds up

  // Even columns, then odd ones.
  static void order(const int16_t* q, int8_t* x) {
    split_even_odd<V>(q, x, x + 16);
  }
  static int32_t initial(const int16_t* q) { return less_eight_times_sum<V>(q); }

  static void fill_linear(const uint8_t* const* rows, size_t offset, uint8_t* to) {
    const __m512i mask = _mm512_set1_epi8(15);
    for (int half = 0; half < 2; ++half, to += 64) {
      __m512i quads[4];
      transpose_rows(rows + half * 16, offset, quads);
      for (int quad = 0; quad < 4; ++quad) {
        _mm512_storeu_si512(to + quad * 128, nibbles(quads[quad], mask));
        _mm512_storeu_si512(to + (4 + quad) * 128,
                            nibbles(_mm512_srli_epi16(quads[quad], 4), mask));
      }
    }
  }
  // Even columns, then odd ones.
  static void fill_expert(const uint8_t* codes, size_t row_bytes, int, uint8_t* to) {
    const __m512i mask = _mm512_set1_epi8(15);
    // Four rows of 16 bytes: first a dword of each into the same lane, then their bytes in turn.
    const __m512i dwords =
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i bytes = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    for (int quad = 0; quad < kQuads; ++quad, codes += 4 * row_bytes, to += 128) {
      __m512i rows = _mm512_castsi128_si512(Avx2::load_16(codes));
      rows = _mm512_inserti32x4(rows, Avx2::load_16(codes + row_bytes), 1);
      rows = _mm512_inserti32x4(rows, Avx2::load_16(codes + 2 * row_bytes), 2);
      rows = _mm512_inserti32x4(rows, Avx2::load_16(codes + 3 * row_bytes), 3);
      rows = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(dwords, rows), bytes);
      _mm512_storeu_si512(to, nibbles(rows, mask));
      _mm512_storeu_si512(to + 64, nibbles(_mm512_srli_epi16(rows, 4), mask));
    }
  }

  template <int kCount>
  static void fold(const FoldedToken<int8_t>* tokens, const int16_t* ratios,
                   const float* largest) {
    __m256i sums[kCount];
    avx2::fold_int8<kCount>(tokens, ratios, largest, sums);
    for (int t = 0; t < kCount; ++t) {
      Avx2::store_ints(tokens[t].initial, _mm256_cvtepi16_epi32(_mm256_castsi256_si128(sums[t])));
      Avx2::store_ints(tokens[t].initial + 8,
                       _mm256_cvtepi16_epi32(_mm256_extracti128_si256(sums[t], 1)));
    }
  }

  template <int kCount, bool kScaled>
  static void multiply(const TileToken* x, const Panel<uint8_t, kOutputs>& panel,
                       int blocks, float (*sums)[kOutputs]) {
    __m512 totals[kCount][2];
    for (auto& total : totals) total[0] = total[1] = _mm512_setzero_ps();
    const uint8_t* codes = panel.codes;
    for (int block = 0; block < blocks; ++block) {
      const uint8_t* words[kCount];
      for (int t = 0; t < kCount; ++t) words[t] = x[t].block<kLanes>(block, kQuads);
      __m512i acc[kCount][2];
      for (int t = 0; t < kCount; ++t) {
        acc[t][0] = acc[t][1] = _mm512_set1_epi32(x[t].initial[block]);
      }
#pragma GCC unroll 8
      for (int quad = 0; quad < kQuads; ++quad, codes += 128) {
        const __m512i w0 = _mm512_loadu_si512(codes), w1 = _mm512_loadu_si512(codes + 64);
        for (int t = 0; t < kCount; ++t) {
          __m512i q = _mm512_set1_epi32(load<int32_t>(words[t] + quad * kLanes * 4));
          pin(q);  // or it is loaded twice
          acc[t][0] = _mm512_dpbusd_epi32(acc[t][0], w0, q);
          acc[t][1] = _mm512_dpbusd_epi32(acc[t][1], w1, q);
        }
      }
      add_block<kCount, kScaled>(acc, x, block, panel.scales, totals);
    }
    store_sums<kCount>(totals, sums);
  }
};

}  // namespace

extern const Products kInt8 = RoundedProducts<LinearInt8, ExpertInt8, TileInt8>::table();

}  // namespace avx512
}  // namespace mobilemoe

MOBILEMOE_END

#endif  // MOBILEMOE_X86
