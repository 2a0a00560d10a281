// Linears with activations of 16 bits per group of 32.
//
// One token: a word of codes holds four columns, which are taken apart into four planes of unsigned
// nibbles (code + 8), times activations that lie in such planes too; sums begin with -8 times the
// activations' sum. Many tokens: 16 rows at a time are unpacked for the tile of tile_int16_avx2.h.
#include "avx2.h"

#if defined(MOBILEMOE_X86)

#include "products_avx2.h"
#include "quantise_avx2.h"
#include "tile_int16_avx2.h"

MOBILEMOE_BEGIN_AVX2

namespace mobilemoe {
namespace avx2 {
namespace {

constexpr int kRows = 4;  // of one token, walked together
constexpr float kLimit = 32767.0f;

// One token: two groups of 32 columns.
struct Pair {
  int16_t planes[4][16];  // columns 4 j + plane: 8 of the first group, 8 of the second
  int32_t initial[8];
};

size_t steps_offset(int columns, bool single) {
  const size_t pairs = (static_cast<size_t>(columns) / kGroup + 1) / 2;
  return single ? pairs * sizeof(Pair) : static_cast<size_t>(columns) * sizeof(int16_t);
}

void prepare_one(const float* x, int columns, uint8_t* prepared) {
  auto* pairs = reinterpret_cast<Pair*>(prepared);
  auto* steps = reinterpret_cast<float*>(prepared + steps_offset(columns, true));
  const int groups = columns / kGroup;
  for (int g = 0; g < (groups + 1) / 2 * 2; ++g) {
    Pair& pair = pairs[g / 2];
    const int half = g % 2;
    int16_t q[kGroup] = {};
    if (g < groups) {
      const float largest = largest_of_group(x + g * kGroup);
      round_group(x + g * kGroup, inverse_step(largest, kLimit), q);
      steps[g] = largest / kLimit;
    }
    for (int i = 0; i < kGroup; ++i) pair.planes[i % 4][half * 8 + i / 4] = q[i];
    for (int lane = 0; lane < 4; ++lane) {
      int32_t sum = 0;
      for (int i = 0; i < 8; ++i) sum += q[lane * 8 + i];
      pair.initial[half * 4 + lane] = -8 * sum;
    }
  }
}

// Many tokens: of each 8 columns the pairs (0, 4), (1, 5), (2, 6), (3, 7), as a panel has them; then
// the steps.
void prepare_many(const float* x, int columns, uint8_t* prepared) {
  auto* words = reinterpret_cast<int16_t*>(prepared);
  auto* steps = reinterpret_cast<float*>(prepared + steps_offset(columns, false));
  const __m256i order = _mm256_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15,  //
                                         0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
  for (int g = 0; g < columns / kGroup; ++g) {
    const float largest = largest_of_group(x + g * kGroup);
    int16_t q[kGroup];
    round_group(x + g * kGroup, inverse_step(largest, kLimit), q);
    steps[g] = largest / kLimit;
    store_32(words + g * kGroup, _mm256_shuffle_epi8(load_32(q), order));
    store_32(words + g * kGroup + 16, _mm256_shuffle_epi8(load_32(q + 16), order));
  }
}

template <int kRowCount>
void multiply_rows_of_one(const LinearTask& task, int row) {
  const int groups = task.columns / kGroup;
  const auto* pairs = reinterpret_cast<const Pair*>(task.prepared);
  const auto* steps =
      reinterpret_cast<const float*>(task.prepared + steps_offset(task.columns, true));
  const size_t row_bytes = static_cast<size_t>(groups) * (kGroup / 2);
  const uint8_t* codes = task.codes + static_cast<size_t>(row) * row_bytes;
  const uint8_t* scales = task.scales + static_cast<size_t>(row) * groups * 2;
  const __m256i mask = _mm256_set1_epi16(15), flip = _mm256_set1_epi8(static_cast<char>(0x88));
  __m256 sums[kRowCount];
  for (auto& sum : sums) sum = _mm256_setzero_ps();
  for (int g = 0; g < groups; g += 8) {
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
      for (int r = 0; r < kRowCount; ++r) {
        const uint8_t* at = codes + r * row_bytes + (g / 2 + p) * 32;
        if (p % 2 == 0) prefetch(at);
        const __m256i words = _mm256_xor_si256(load_codes(at, left - 2 * p >= 2), flip);
        __m256i acc = load_32(pair.initial);
        const auto add = [&](__m256i nibbles, int plane) {
          acc = _mm256_add_epi32(acc, _mm256_madd_epi16(nibbles, load_32(pair.planes[plane])));
          pin(acc);
        };
        add(_mm256_and_si256(words, mask), 0);
        add(_mm256_and_si256(_mm256_srli_epi16(words, 4), mask), 1);
        add(_mm256_and_si256(_mm256_srli_epi16(words, 8), mask), 2);
        add(_mm256_srli_epi16(words, 12), 3);
        sums[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc),
                                  _mm256_permutevar8x32_ps(scale[r], lanes), sums[r]);
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
void fill_panel(const LinearTask& task, int row, const Int16Panel& panel) {
  const int groups = task.columns / kGroup;
  const __m256i mask = _mm256_set1_epi16(15), flip = _mm256_set1_epi8(static_cast<char>(0x88));
  const __m256i eight = _mm256_set1_epi16(8);
  for (int g = 0; g < groups; ++g) {
    int16_t* codes = panel.codes + static_cast<size_t>(g) * kInputPairs * 32;
    for (int half = 0; half < 2; ++half) {
      __m128i dwords[2][4];
      for (int part = 0; part < 2; ++part) {
        const uint8_t* rows[4];
        for (int r = 0; r < 4; ++r) {
          const int index = row + half * 8 + part * 4 + r;
          const size_t at = static_cast<size_t>(index < task.end ? index : task.end - 1) * groups + g;
          rows[r] = task.codes + at * (kGroup / 2);
          panel.scales[g * 16 + half * 8 + part * 4 + r] = load_one_float16(task.scales + at * 2);
        }
        transpose_rows(rows, dwords[part]);
      }
      for (int i = 0; i < 4; ++i) {
        __m256i words = _mm256_xor_si256(_mm256_set_m128i(dwords[1][i], dwords[0][i]), flip);
        for (int plane = 0; plane < 4; ++plane) {
          const __m256i nibbles = _mm256_and_si256(words, mask);
          store_32(codes + (i * 4 + plane) * 32 + half * 16, _mm256_sub_epi16(nibbles, eight));
          words = _mm256_srli_epi16(words, 4);
        }
      }
    }
  }
}

void multiply_many(const LinearTask& task) {
  const int groups = task.columns / kGroup;
  const Int16Panel panel(task.scratch, task.columns);
  for (int row = task.begin; row < task.end; row += kWideOutputs) {
    fill_panel(task, row, panel);
    const int rows = task.end - row < kWideOutputs ? task.end - row : kWideOutputs;
    for (int t = 0; t < task.count; t += kWideTokens) {
      const int tokens = task.count - t < kWideTokens ? task.count - t : kWideTokens;
      const int16_t* x[kWideTokens];
      const float* steps[kWideTokens];
      for (int i = 0; i < tokens; ++i) {
        const uint8_t* prepared = task.prepared + (t + i) * task.prepared_stride;
        x[i] = reinterpret_cast<const int16_t*>(prepared);
        steps[i] = reinterpret_cast<const float*>(prepared + steps_offset(task.columns, false));
      }
      float sums[kWideTokens][kWideOutputs];
      multiply_tile_int16<true>(tokens, x, steps, panel, groups, sums);
      for (int i = 0; i < tokens; ++i) {
        std::memcpy(task.y + (t + i) * task.y_stride + row, sums[i], rows * sizeof(float));
      }
    }
  }
}

}  // namespace

size_t linear_int16_bytes(int columns) {
  return steps_offset(columns, true) + static_cast<size_t>(columns) / kGroup * sizeof(float);
}

size_t linear_int16_scratch(int columns, int count) {
  return count == 1 ? 0 : Int16Panel::bytes(columns);
}

void prepare_linear_int16(const float* x, int columns, bool single, uint8_t* prepared) {
  if (single) {
    prepare_one(x, columns, prepared);
  } else {
    prepare_many(x, columns, prepared);
  }
}

void linear_int16(const LinearTask& task) {
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
