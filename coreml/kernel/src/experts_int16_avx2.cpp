// Routed experts with activations of 16 bits: as experts_int8_avx2.cpp, with madd on words.
#include "avx2.h"

#if defined(MOBILEMOE_X86)

#include "products_avx2.h"
#include "quantise_avx2.h"
#include "tile_int16_avx2.h"

MOBILEMOE_BEGIN_AVX2

namespace mobilemoe {
namespace avx2 {
namespace {

constexpr float kLimit = 32767.0f;

// ---- One token: 16 whole rows at a time, which lie together in memory ----

constexpr int kRows = 16;

// Activations of 16 inputs times their scales, rounded per group of outputs.
struct Folded {
  int32_t* pairs;    // [8 pairs of inputs][groups]: two int16
  int32_t* initial;  // [groups]: -8 x their sum
  float* steps;      // [groups]
  float* sums;       // [pairs of groups][half][plane][8]: of all rows so far

  static size_t bytes(int row_groups) {
    const size_t groups = row_groups + 8;
    return groups * sizeof(float) * (kRows / 2 + 2) + (groups + 1) * kGroup * sizeof(float);
  }
  Folded(uint8_t* memory, int row_groups) : stride(row_groups + 8) {
    pairs = reinterpret_cast<int32_t*>(memory);
    initial = pairs + kRows / 2 * stride;
    steps = reinterpret_cast<float*>(initial + stride);
    sums = steps + stride;
  }
  const size_t stride;  // eight more than there are: groups are folded eight at a time
};

// Groups `begin` to end - 1 of the rows whose scales begin at `scales`.
void fold(const float* x, const uint8_t* scales, int row_groups, int begin, int end,
          const Folded& folded) {
  for (int g = begin; g < end; g += 8) {
    __m256 products[kRows];
    __m256 largest = _mm256_setzero_ps();
    for (int r = 0; r < kRows; ++r) {
      const uint8_t* at = scales + (static_cast<size_t>(r) * row_groups + g) * 2;
      products[r] = _mm256_mul_ps(load_scales(at, row_groups - g), _mm256_broadcast_ss(x + r));
      largest = _mm256_max_ps(largest, absolute(products[r]));
    }
    _mm_prefetch(reinterpret_cast<const char*>(scales + (size_t{kRows} * row_groups + g) * 2),
                 _MM_HINT_T0);
    const __m256 limit = _mm256_set1_ps(kLimit);
    __m256 inverse = _mm256_div_ps(limit, largest);
    inverse = _mm256_and_ps(inverse, _mm256_cmp_ps(inverse, _mm256_set1_ps(3e38f), _CMP_LE_OQ));
    __m256i sum = _mm256_setzero_si256();
    for (int r = 0; r < kRows; r += 2) {
      const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(products[r], inverse));
      const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(products[r + 1], inverse));
      sum = _mm256_add_epi32(sum, _mm256_add_epi32(a, b));
      store_32(folded.pairs + r / 2 * folded.stride + g,
               _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0xAA));
    }
    store_32(folded.initial + g,
             _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(sum, 3)));
    _mm256_storeu_ps(folded.steps + g, _mm256_div_ps(largest, limit));
  }
}

// The value of one group in the lower half, of the next in the upper.
inline __m256i two_groups(const int32_t* values) {
  return _mm256_blend_epi32(_mm256_set1_epi32(values[0]), _mm256_set1_epi32(values[1]), 0xF0);
}
inline __m256 two_groups(const float* values) {
  return _mm256_blend_ps(_mm256_set1_ps(values[0]), _mm256_set1_ps(values[1]), 0xF0);
}

// 16 rows times two groups of columns, or one. A word has four columns. Planes 1 and 2 stay where
// they lie in the word, 16 and 256 times as large, which the steps take back.
template <bool kPair>
inline void multiply_columns(const uint8_t* codes, size_t row_bytes, int g, const Folded& folded,
                             float* sums) {
  const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x88));
  const __m256i mask_0 = _mm256_set1_epi16(0x000f), mask_1 = _mm256_set1_epi16(0x00f0);
  const __m256i mask_2 = _mm256_set1_epi16(0x0f00);
  const __m256i initial = two_groups(folded.initial + g);
  __m256i acc[2][4];
  for (auto& half : acc) {
    half[0] = half[3] = initial;
    half[1] = _mm256_slli_epi32(initial, 4);
    half[2] = _mm256_slli_epi32(initial, 8);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; r += 2) {
    const uint8_t* at = codes + r * row_bytes;
    const __m256i a = load_codes(at, kPair), b = load_codes(at + row_bytes, kPair);
    const __m256i halves[2] = {_mm256_xor_si256(_mm256_unpacklo_epi16(a, b), flip),
                               _mm256_xor_si256(_mm256_unpackhi_epi16(a, b), flip)};
    const __m256i q = two_groups(folded.pairs + r / 2 * folded.stride + g);
    for (int half = 0; half < 2; ++half) {
      const auto add = [&](__m256i& sum, __m256i nibbles) {
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(nibbles, q));
        pin(sum);
      };
      add(acc[half][0], _mm256_and_si256(halves[half], mask_0));
      add(acc[half][1], _mm256_and_si256(halves[half], mask_1));
      add(acc[half][2], _mm256_and_si256(halves[half], mask_2));
      add(acc[half][3], _mm256_srli_epi16(halves[half], 12));
    }
  }
  const __m256 step = two_groups(folded.steps + g);
  const __m256 steps[4] = {step, _mm256_mul_ps(step, _mm256_set1_ps(1.0f / 16)),
                           _mm256_mul_ps(step, _mm256_set1_ps(1.0f / 256)), step};
  for (int half = 0; half < 2; ++half) {
    for (int plane = 0; plane < 4; ++plane, sums += 8) {
      _mm256_storeu_ps(sums, _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[half][plane]), steps[plane],
                                             _mm256_loadu_ps(sums)));
    }
  }
}

// Sums of a group, of which `sums` are its lanes of the pair, to columns in their order.
void store_group(const float* sums, float* y) {
  for (int half = 0; half < 2; ++half) {
    __m128 columns[4];
    for (int plane = 0; plane < 4; ++plane) {
      columns[plane] = _mm_loadu_ps(sums + (half * 4 + plane) * 8);
    }
    _MM_TRANSPOSE4_PS(columns[0], columns[1], columns[2], columns[3]);
    for (int word = 0; word < 4; ++word) _mm_storeu_ps(y + half * 16 + word * 4, columns[word]);
  }
}

void multiply_one(const ExpertTask& task) {
  const auto* x =
      reinterpret_cast<const float*>(task.prepared + task.rows[0] * task.prepared_stride);
  const int row_groups = task.outputs / kGroup;
  const int begin = task.begin / kGroup, end = task.end / kGroup;
  const size_t row_bytes = static_cast<size_t>(task.outputs) / 2;
  const Folded folded(task.scratch, row_groups);
  std::memset(folded.sums, 0, static_cast<size_t>(end - begin + 1) * kGroup * sizeof(float));
  for (int r = 0; r < task.inputs; r += kRows) {
    const uint8_t* codes = task.codes + r * row_bytes;
    fold(x + r, task.scales + static_cast<size_t>(r) * row_groups * 2, row_groups, begin, end,
         folded);
    for (int g = begin; g < end; g += 2) {
      const uint8_t* at = codes + static_cast<size_t>(g) * (kGroup / 2);
      // The same columns of the next 16 rows, a line of memory each second time.
      if ((g - begin) % 4 == 0) {
        for (int row = 0; row < kRows; ++row) {
          _mm_prefetch(reinterpret_cast<const char*>(at + (kRows + row) * row_bytes), _MM_HINT_T0);
        }
      }
      float* sums = folded.sums + static_cast<size_t>(g - begin) * kGroup;
      if (g + 2 <= end) {
        multiply_columns<true>(at, row_bytes, g, folded, sums);
      } else {
        multiply_columns<false>(at, row_bytes, g, folded, sums);
      }
    }
  }
  for (int g = begin; g < end; ++g) {
    const int pair = (g - begin) / 2;
    store_group(folded.sums + static_cast<size_t>(pair) * 2 * kGroup + (g - begin) % 2 * 4,
                task.y + g * kGroup);
  }
}

// ---- Many tokens ----

// Tokens that are folded together while half a panel stays in a near cache.
constexpr int kBatch = 4 * kWideTokens;

// Scratch of a group of 32 outputs.
struct ExpertPanel {
  static size_t bytes(int inputs) {
    const size_t blocks = inputs / kGroup;
    return 2 * Int16Panel::bytes(inputs) + inputs * sizeof(int16_t) + blocks * sizeof(float) +
           kBatch * (inputs * sizeof(int16_t) + blocks * sizeof(float));
  }
  ExpertPanel(uint8_t* memory, int inputs)
      : halves{Int16Panel(memory, inputs), Int16Panel(memory + Int16Panel::bytes(inputs), inputs)} {
    const size_t blocks = inputs / kGroup;
    ratios = reinterpret_cast<int16_t*>(memory + 2 * Int16Panel::bytes(inputs));
    largest_scales = reinterpret_cast<float*>(ratios + inputs);
    steps = largest_scales + blocks;
    x = reinterpret_cast<int16_t*>(steps + kBatch * blocks);
  }

  Int16Panel halves[2];   // columns 0 to 15, 16 to 31: even ones, then odd
  int16_t* ratios;        // [inputs]: scale over the largest of its block
  float* largest_scales;  // [blocks]
  float* steps;           // [kBatch][blocks]
  int16_t* x;             // [kBatch][inputs]
};

void fill_panel(const ExpertTask& task, int g, const ExpertPanel& panel) {
  const int row_groups = task.outputs / kGroup;
  const __m128i mask = _mm_set1_epi8(15), flip = _mm_set1_epi8(static_cast<char>(0x88));
  const __m256i eight = _mm256_set1_epi16(8);
  for (int block = 0; block < task.inputs / kGroup; ++block) {
    float scales[kGroup];
    for (int r = 0; r < kGroup; ++r) {
      const size_t at = static_cast<size_t>(block * kGroup + r) * row_groups + g;
      scales[r] = load_one_float16(task.scales + at * 2);
    }
    panel.largest_scales[block] = largest_of_group(scales);
    round_group(scales, inverse_step(panel.largest_scales[block], kLimit),
                panel.ratios + block * kGroup);
    for (int pair = 0; pair < kInputPairs; ++pair) {
      const size_t at = static_cast<size_t>(block * kGroup + pair * 2) * row_groups + g;
      const __m128i a = load_16(task.codes + at * (kGroup / 2));
      const __m128i b = load_16(task.codes + (at + row_groups) * (kGroup / 2));
      const __m128i halves[2] = {_mm_unpacklo_epi8(a, b), _mm_unpackhi_epi8(a, b)};
      for (int half = 0; half < 2; ++half) {
        const __m128i bytes = _mm_xor_si128(halves[half], flip);
        const __m128i low = _mm_and_si128(bytes, mask);
        const __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask);
        int16_t* to =
            panel.halves[half].codes + (static_cast<size_t>(block) * kInputPairs + pair) * 32;
        store_32(to, _mm256_sub_epi16(_mm256_cvtepu8_epi16(low), eight));
        store_32(to + 16, _mm256_sub_epi16(_mm256_cvtepu8_epi16(high), eight));
      }
    }
  }
}

// A token's activations times the scales of the panel.
void fold_token(const uint8_t* prepared, int inputs, const ExpertPanel& panel, int batch_token) {
  const auto* words = reinterpret_cast<const int16_t*>(prepared);
  const auto* largest = reinterpret_cast<const float*>(prepared + inputs * sizeof(int16_t));
  int16_t* x = panel.x + static_cast<size_t>(batch_token) * inputs;
  for (int i = 0; i < inputs; i += 16) {
    store_32(x + i, _mm256_mulhrs_epi16(load_32(words + i), load_32(panel.ratios + i)));
  }
  const int blocks = inputs / kGroup;
  for (int block = 0; block < blocks; ++block) {
    // mulhrs divides by 2^15.
    panel.steps[batch_token * blocks + block] =
        largest[block] * panel.largest_scales[block] * (32768.0f / (kLimit * kLimit));
  }
}

void multiply_many(const ExpertTask& task) {
  const int blocks = task.inputs / kGroup;
  const ExpertPanel panel(task.scratch, task.inputs);
  for (int g = task.begin / kGroup; g < task.end / kGroup; ++g) {
    fill_panel(task, g, panel);
    for (int first = 0; first < task.count; first += kBatch) {
      const int batch = task.count - first < kBatch ? task.count - first : kBatch;
      for (int i = 0; i < batch; ++i) {
        fold_token(task.prepared + task.rows[first + i] * task.prepared_stride, task.inputs, panel,
                   i);
      }
      for (int half = 0; half < 2; ++half) {
        for (int t = 0; t < batch; t += kWideTokens) {
          const int tokens = batch - t < kWideTokens ? batch - t : kWideTokens;
          const int16_t* x[kWideTokens];
          const float* steps[kWideTokens];
          for (int i = 0; i < tokens; ++i) {
            x[i] = panel.x + static_cast<size_t>(t + i) * task.inputs;
            steps[i] = panel.steps + (t + i) * blocks;
          }
          float sums[kWideTokens][kWideOutputs];
          multiply_tile_int16<false>(tokens, x, steps, panel.halves[half], blocks, sums);
          for (int i = 0; i < tokens; ++i) {
            store_columns(sums[i], sums[i] + 8,
                          task.y + (first + t + i) * task.y_stride + g * kGroup + half * 16);
          }
        }
      }
    }
  }
}

}  // namespace

size_t expert_int16_bytes(int inputs) { return inputs * sizeof(float); }

size_t expert_int16_scratch(int inputs, int outputs, int count) {
  return count == 1 ? Folded::bytes(outputs / kGroup) : ExpertPanel::bytes(inputs);
}

void expert_int16(const ExpertTask& task) {
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
