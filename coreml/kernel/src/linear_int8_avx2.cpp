// Linears with activations of 8 bits per group of 32.
//
// One token: codes as unsigned nibbles (code + 8) times signed activations, whose even and odd
// columns lie apart as the codes' low and high nibbles do; sums begin with -8 times the activations'
// sum. Many tokens: 16 rows at a time are unpacked for the tile of tile_int8_avx2.h.
#include "avx2.h"

#if defined(MOBILEMOE_X86)

#include "products_avx2.h"
#include "quantise_avx2.h"
#include "tile_int8_avx2.h"

MOBILEMOE_BEGIN_AVX2

namespace mobilemoe {
namespace avx2 {
namespace {

constexpr int kRows = 4;         // of one token, walked together
constexpr int kPairsPerLoad = 4;  // pairs of groups whose scales come in one load

// One token: two groups of 32 columns.
struct Pair {
  int8_t even[32], odd[32];  // 16 columns of the first group, 16 of the second
  int16_t initial[16];
};

size_t steps_offset(int columns, bool single) {
  const size_t pairs = (static_cast<size_t>(columns) / kGroup + 1) / 2;
  return single ? pairs * sizeof(Pair) : columns;
}

void prepare_one(const float* x, int columns, uint8_t* prepared) {
  auto* pairs = reinterpret_cast<Pair*>(prepared);
  auto* steps = reinterpret_cast<float*>(prepared + steps_offset(columns, true));
  const int groups = columns / kGroup;
  const __m128i split = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
  for (int g = 0; g < (groups + 1) / 2 * 2; ++g) {
    Pair& pair = pairs[g / 2];
    const int half = g % 2 * 16;
    if (g >= groups) {
      std::memset(pair.even + half, 0, 16);
      std::memset(pair.odd + half, 0, 16);
      std::memset(pair.initial + half / 2, 0, 16);
      continue;
    }
    const float largest = largest_of_group(x + g * kGroup);
    int16_t q[kGroup];
    round_group(x + g * kGroup, inverse_step(largest, 127.0f), q);
    steps[g] = largest / 127.0f;
    const auto* words = reinterpret_cast<const __m128i*>(q);
    const __m128i low = _mm_shuffle_epi8(
        _mm_packs_epi16(_mm_loadu_si128(words), _mm_loadu_si128(words + 1)), split);
    const __m128i high = _mm_shuffle_epi8(
        _mm_packs_epi16(_mm_loadu_si128(words + 2), _mm_loadu_si128(words + 3)), split);
    const __m128i even = _mm_unpacklo_epi64(low, high), odd = _mm_unpackhi_epi64(low, high);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(pair.even + half), even);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(pair.odd + half), odd);
    const __m128i eight = _mm_set1_epi8(8);
    const __m128i sums =
        _mm_add_epi16(_mm_maddubs_epi16(eight, even), _mm_maddubs_epi16(eight, odd));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(pair.initial + half / 2),
                     _mm_sub_epi16(_mm_setzero_si128(), sums));
  }
}

// Many tokens: q + 128, per group the even columns, then the odd ones; then the steps.
void prepare_many(const float* x, int columns, uint8_t* prepared) {
  auto* steps = reinterpret_cast<float*>(prepared + steps_offset(columns, false));
  const __m256i split = _mm256_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15,  //
                                         0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
  for (int g = 0; g < columns / kGroup; ++g) {
    const float largest = largest_of_group(x + g * kGroup);
    int16_t q[kGroup];
    round_group(x + g * kGroup, inverse_step(largest, 127.0f), q);
    steps[g] = largest / 127.0f;
    const __m256i packed = _mm256_packs_epi16(load_32(q), load_32(q + 16));
    const __m256i ordered = _mm256_permute4x64_epi64(packed, 0xD8);
    const __m256i parted =
        _mm256_permute4x64_epi64(_mm256_shuffle_epi8(ordered, split), 0xD8);
    store_32(prepared + g * kGroup,
             _mm256_xor_si256(parted, _mm256_set1_epi8(static_cast<char>(0x80))));
  }
}

template <int kRowCount>
void multiply_rows_of_one(const LinearTask& task, int row) {
  const int groups = task.columns / kGroup;
  const auto* pairs = reinterpret_cast<const Pair*>(task.prepared);
  const auto* steps =
      reinterpret_cast<const float*>(task.prepared + steps_offset(task.columns, true));
  const uint8_t* codes = task.codes + static_cast<size_t>(row) * groups * (kGroup / 2);
  const uint8_t* scales = task.scales + static_cast<size_t>(row) * groups * 2;
  const size_t row_bytes = static_cast<size_t>(groups) * (kGroup / 2);
  const __m256i mask = _mm256_set1_epi8(15), flip = _mm256_set1_epi8(static_cast<char>(0x88));
  const __m256i ones = _mm256_set1_epi16(1);
  __m256 sums[kRowCount];
  for (auto& sum : sums) sum = _mm256_setzero_ps();
  for (int g = 0; g < groups; g += 2 * kPairsPerLoad) {
    const int left = groups - g < 8 ? groups - g : 8;
    float some[8] = {};
    if (left < 8) std::memcpy(some, steps + g, left * sizeof(float));
    const __m256 step = _mm256_loadu_ps(left < 8 ? some : steps + g);
    __m256 scale[kRowCount];
    for (int r = 0; r < kRowCount; ++r) {
      const uint8_t* at = scales + (static_cast<size_t>(r) * groups + g) * 2;
      scale[r] = _mm256_mul_ps(load_scales(at, left), step);
      prefetch(at);
    }
    __m256i lanes = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    for (int p = 0; p < (left + 1) / 2; ++p) {
      const Pair& pair = pairs[g / 2 + p];
      const __m256i even = load_32(reinterpret_cast<const uint8_t*>(pair.even));
      const __m256i odd = load_32(reinterpret_cast<const uint8_t*>(pair.odd));
      const __m256i initial = load_32(pair.initial);
      for (int r = 0; r < kRowCount; ++r) {
        const uint8_t* at = codes + r * row_bytes + (g / 2 + p) * 32;
        if (p % 2 == 0) prefetch(at);
        const __m256i bytes = _mm256_xor_si256(load_codes(at, left - 2 * p >= 2), flip);
        const __m256i low = _mm256_and_si256(bytes, mask);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
        __m256i acc = _mm256_add_epi16(initial, _mm256_maddubs_epi16(low, even));
        acc = _mm256_add_epi16(acc, _mm256_maddubs_epi16(high, odd));
        const __m256 part = _mm256_cvtepi32_ps(_mm256_madd_epi16(acc, ones));
        sums[r] = _mm256_fmadd_ps(part, _mm256_permutevar8x32_ps(scale[r], lanes), sums[r]);
      }
      lanes = _mm256_add_epi32(lanes, _mm256_set1_epi32(2));
    }
  }
  for (int r = 0; r < kRowCount; ++r) task.y[row + r] = sum_lanes(sums[r]);
}

void multiply_one(const LinearTask& task) {
  int row = task.begin;
  for (; row + kRows <= task.end; row += kRows) multiply_rows_of_one<kRows>(task, row);
  for (; row < task.end; ++row) multiply_rows_of_one<1>(task, row);
}

// Rows `row` to row + 15; behind the last row of the task the last one is taken again.
void fill_panel(const LinearTask& task, int row, const Int8Panel& panel) {
  const int groups = task.columns / kGroup;
  const __m256i mask = _mm256_set1_epi8(15), flip = _mm256_set1_epi8(static_cast<char>(0x88));
  const __m256i eight = _mm256_set1_epi8(8);
  for (int g = 0; g < groups; ++g) {
    int8_t* codes = panel.codes + static_cast<size_t>(g) * kQuads * 64;
    for (int half = 0; half < 2; ++half) {
      __m128i quads[2][4];
      for (int part = 0; part < 2; ++part) {
        const uint8_t* rows[4];
        for (int r = 0; r < 4; ++r) {
          const int index = row + half * 8 + part * 4 + r;
          const size_t at = static_cast<size_t>(index < task.end ? index : task.end - 1) * groups + g;
          rows[r] = task.codes + at * (kGroup / 2);
          panel.scales[g * 16 + half * 8 + part * 4 + r] = load_one_float16(task.scales + at * 2);
        }
        transpose_rows(rows, quads[part]);
      }
      for (int quad = 0; quad < 4; ++quad) {
        const __m256i bytes =
            _mm256_xor_si256(_mm256_set_m128i(quads[1][quad], quads[0][quad]), flip);
        const __m256i low = _mm256_and_si256(bytes, mask);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
        store_32(codes + quad * 64 + half * 32, _mm256_sub_epi8(low, eight));
        store_32(codes + (4 + quad) * 64 + half * 32, _mm256_sub_epi8(high, eight));
      }
    }
    set_initial(panel, g);
  }
}

void multiply_many(const LinearTask& task) {
  const int groups = task.columns / kGroup;
  const Int8Panel panel(task.scratch, task.columns);
  for (int row = task.begin; row < task.end; row += kTileOutputs) {
    fill_panel(task, row, panel);
    const int rows = task.end - row < kTileOutputs ? task.end - row : kTileOutputs;
    for (int t = 0; t < task.count; t += kTileTokens) {
      const int tokens = task.count - t < kTileTokens ? task.count - t : kTileTokens;
      const uint8_t* x[kTileTokens];
      const float* steps[kTileTokens];
      for (int i = 0; i < tokens; ++i) {
        x[i] = task.prepared + (t + i) * task.prepared_stride;
        steps[i] = reinterpret_cast<const float*>(x[i] + steps_offset(task.columns, false));
      }
      float sums[kTileTokens][kTileOutputs];
      multiply_tile_int8<true>(tokens, x, steps, panel, groups, sums);
      for (int i = 0; i < tokens; ++i) {
        std::memcpy(task.y + (t + i) * task.y_stride + row, sums[i], rows * sizeof(float));
      }
    }
  }
}

}  // namespace

size_t linear_int8_bytes(int columns) {
  return steps_offset(columns, true) + static_cast<size_t>(columns) / kGroup * sizeof(float);
}

size_t linear_int8_scratch(int columns, int count) {
  return count == 1 ? 0 : Int8Panel::bytes(columns);
}

void prepare_linear_int8(const float* x, int columns, bool single, uint8_t* prepared) {
  if (single) {
    prepare_one(x, columns, prepared);
  } else {
    prepare_many(x, columns, prepared);
  }
}

void linear_int8(const LinearTask& task) {
  if (task.single) {
    multiply_one(task);
  } else {
    multiply_many(task);
  }
}

}  // namespace avx2
}  // namespace mobilemoe

MOBILEMOE_END_AVX2

#endif  // MOBILEMOE_X86
