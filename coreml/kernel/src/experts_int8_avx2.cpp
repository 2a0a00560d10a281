// Routed experts with activations of 8 bits.
//
// The scale of a weight depends on its input and its group of outputs, so that it cannot be taken
// out of a sum over inputs: it is multiplied into the activation, and the product is rounded, for
// each block of inputs and group of outputs. Codes and scales stay as they are.
#include "avx2.h"

#if defined(MOBILEMOE_X86)

#include "products_avx2.h"
#include "quantise_avx2.h"
#include "tile_int8_avx2.h"

MOBILEMOE_BEGIN_AVX2

namespace mobilemoe {
namespace avx2 {
namespace {

// ---- One token: 16 whole rows at a time, which lie together in memory ----

constexpr int kRows = 16;

// Activations of 16 inputs times their scales, rounded per group of outputs.
struct Folded {
  int32_t* pairs;    // [8 pairs of inputs][groups]: two int8, twice
  int32_t* initial;  // [groups]: -8 x their sum, int16, twice
  float* steps;      // [groups]
  float* sums;       // [groups][32]: of all rows so far; even columns, then odd, of each half

  static size_t bytes(int row_groups) {
    const size_t groups = row_groups + 8;
    return groups * sizeof(float) * (kRows / 2 + 2 + kGroup);
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
    const __m256 limit = _mm256_set1_ps(127.0f);
    __m256 inverse = _mm256_div_ps(limit, largest);
    inverse = _mm256_and_ps(inverse, _mm256_cmp_ps(inverse, _mm256_set1_ps(3e38f), _CMP_LE_OQ));
    __m256i sum = _mm256_setzero_si256();
    const __m256i byte = _mm256_set1_epi32(255);
    for (int r = 0; r < kRows; r += 2) {
      const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(products[r], inverse));
      const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(products[r + 1], inverse));
      sum = _mm256_add_epi32(sum, _mm256_add_epi32(a, b));
      const __m256i pair = _mm256_or_si256(_mm256_and_si256(a, byte),
                                           _mm256_slli_epi32(_mm256_and_si256(b, byte), 8));
      store_32(folded.pairs + r / 2 * folded.stride + g,
               _mm256_or_si256(pair, _mm256_slli_epi32(pair, 16)));
    }
    const __m256i initial = _mm256_and_si256(
        _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(sum, 3)),
        _mm256_set1_epi32(0xffff));
    store_32(folded.initial + g, _mm256_or_si256(initial, _mm256_slli_epi32(initial, 16)));
    _mm256_storeu_ps(folded.steps + g, _mm256_div_ps(largest, limit));
  }
}

// The value of one group in the lower half, of the next in the upper.
inline __m256i two_groups(const int32_t* values) {
  return _mm256_blend_epi32(_mm256_set1_epi32(values[0]), _mm256_set1_epi32(values[1]), 0xF0);
}

inline void add_scaled(__m128i words, float step, float* sums) {
  const __m256 part = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(words));
  _mm256_storeu_ps(sums, _mm256_fmadd_ps(part, _mm256_set1_ps(step), _mm256_loadu_ps(sums)));
}

// 16 rows times two groups of columns, or one.
template <bool kPair>
inline void multiply_columns(const uint8_t* codes, size_t row_bytes, int g, const Folded& folded) {
  const __m256i mask = _mm256_set1_epi8(15), flip = _mm256_set1_epi8(static_cast<char>(0x88));
  const __m256i initial = two_groups(folded.initial + g);
  __m256i acc[4] = {initial, initial, initial, initial};
#pragma GCC unroll 8
  for (int r = 0; r < kRows; r += 2) {
    const uint8_t* at = codes + r * row_bytes;
    const __m256i a = load_codes(at, kPair), b = load_codes(at + row_bytes, kPair);
    const __m256i front = _mm256_xor_si256(_mm256_unpacklo_epi8(a, b), flip);
    const __m256i back = _mm256_xor_si256(_mm256_unpackhi_epi8(a, b), flip);
    const __m256i q = two_groups(folded.pairs + r / 2 * folded.stride + g);
    const auto add = [&](__m256i& sum, __m256i nibbles) {
      sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(nibbles, q));
      pin(sum);
    };
    add(acc[0], _mm256_and_si256(front, mask));
    add(acc[1], _mm256_and_si256(_mm256_srli_epi16(front, 4), mask));
    add(acc[2], _mm256_and_si256(back, mask));
    add(acc[3], _mm256_and_si256(_mm256_srli_epi16(back, 4), mask));
  }
  float* sums = folded.sums + static_cast<size_t>(g) * kGroup;
  for (int i = 0; i < 4; ++i) {
    add_scaled(_mm256_castsi256_si128(acc[i]), folded.steps[g], sums + i * 8);
    if (kPair) {
      add_scaled(_mm256_extracti128_si256(acc[i], 1), folded.steps[g + 1], sums + kGroup + i * 8);
    }
  }
}

void multiply_one(const ExpertTask& task) {
  const auto* x =
      reinterpret_cast<const float*>(task.prepared + task.rows[0] * task.prepared_stride);
  const int row_groups = task.outputs / kGroup;
  const int begin = task.begin / kGroup, end = task.end / kGroup;
  const size_t row_bytes = static_cast<size_t>(task.outputs) / 2;
  const Folded folded(task.scratch, row_groups);
  std::memset(folded.sums + static_cast<size_t>(begin) * kGroup, 0,
              static_cast<size_t>(end - begin) * kGroup * sizeof(float));
  for (int r = 0; r < task.inputs; r += kRows) {
    const uint8_t* codes = task.codes + r * row_bytes;
    fold(x + r, task.scales + static_cast<size_t>(r) * row_groups * 2, row_groups, begin, end,
         folded);
    int g = begin;
    for (; g + 2 <= end; g += 2) {
      const uint8_t* at = codes + static_cast<size_t>(g) * (kGroup / 2);
      // The same columns of the next 16 rows, a line of memory each second time.
      if ((g - begin) % 4 == 0) {
        for (int row = 0; row < kRows; ++row) {
          _mm_prefetch(reinterpret_cast<const char*>(at + (kRows + row) * row_bytes), _MM_HINT_T0);
        }
      }
      multiply_columns<true>(at, row_bytes, g, folded);
    }
    if (g < end) {
      multiply_columns<false>(codes + static_cast<size_t>(g) * (kGroup / 2), row_bytes, g, folded);
    }
  }
  for (int g = begin; g < end; ++g) {
    const float* sums = folded.sums + static_cast<size_t>(g) * kGroup;
    store_columns(sums, sums + 8, task.y + g * kGroup);
    store_columns(sums + 16, sums + 24, task.y + g * kGroup + 16);
  }
}

// ---- Many tokens ----

// Of a prepared token's values and of a panel's scales, relative to the largest of their block.
constexpr float kFull = 32767.0f;

// Tokens that are folded together: they and half a panel stay in the first cache.
constexpr int kBatch = 4 * kTileTokens;

// Scratch of a group of 32 outputs.
struct ExpertPanel {
  static size_t bytes(int inputs) {
    const size_t blocks = inputs / kGroup;
    return 2 * Int8Panel::bytes(inputs) + inputs * sizeof(int16_t) + blocks * sizeof(float) +
           inputs * sizeof(int16_t) + kBatch * (inputs + blocks * sizeof(float)) +
           2 * (blocks + 8) * sizeof(int32_t);
  }
  ExpertPanel(uint8_t* memory, int inputs)
      : halves{Int8Panel(memory, inputs), Int8Panel(memory + Int8Panel::bytes(inputs), inputs)} {
    const size_t blocks = inputs / kGroup;
    ratios = reinterpret_cast<int16_t*>(memory + 2 * Int8Panel::bytes(inputs));
    products = ratios + inputs;
    largest_scales = reinterpret_cast<float*>(products + inputs);
    steps = largest_scales + blocks;
    peaks = reinterpret_cast<int32_t*>(steps + kBatch * blocks);
    factors = peaks + blocks + 8;
    x = reinterpret_cast<uint8_t*>(factors + blocks + 8);
  }

  Int8Panel halves[2];  // columns 0 to 15, 16 to 31: even ones, then odd
  int16_t* ratios;      // [inputs]: scale over the largest of its block
  float* largest_scales;  // [blocks]
  int16_t* products;    // [inputs]: of one token, activation x scale
  int32_t* peaks;       // [blocks, and 7 more]: the largest of those
  int32_t* factors;     // [blocks, and 7 more]: what brings it to 127
  float* steps;         // [kBatch][blocks]
  uint8_t* x;           // [kBatch][inputs]
};

void fill_panel(const ExpertTask& task, int g, const ExpertPanel& panel) {
  const int row_groups = task.outputs / kGroup;
  const __m256i mask = _mm256_set1_epi8(15), flip = _mm256_set1_epi8(static_cast<char>(0x88));
  const __m256i eight = _mm256_set1_epi8(8);
  for (int block = 0; block < task.inputs / kGroup; ++block) {
    float scales[kGroup];
    for (int r = 0; r < kGroup; ++r) {
      const size_t at = static_cast<size_t>(block * kGroup + r) * row_groups + g;
      scales[r] = load_one_float16(task.scales + at * 2);
    }
    const float largest = largest_of_group(scales);
    panel.largest_scales[block] = largest;
    round_group(scales, inverse_step(largest, kFull), panel.ratios + block * kGroup);
    for (int quad = 0; quad < kQuads; ++quad) {
      __m128i rows[4];
      for (int r = 0; r < 4; ++r) {
        const size_t at = static_cast<size_t>(block * kGroup + quad * 4 + r) * row_groups + g;
        rows[r] = load_16(task.codes + at * (kGroup / 2));
      }
      const __m128i a = _mm_unpacklo_epi8(rows[0], rows[1]), b = _mm_unpacklo_epi8(rows[2], rows[3]);
      const __m128i c = _mm_unpackhi_epi8(rows[0], rows[1]), d = _mm_unpackhi_epi8(rows[2], rows[3]);
      const __m256i halves[2] = {
          _mm256_set_m128i(_mm_unpackhi_epi16(a, b), _mm_unpacklo_epi16(a, b)),
          _mm256_set_m128i(_mm_unpackhi_epi16(c, d), _mm_unpacklo_epi16(c, d))};
      for (int half = 0; half < 2; ++half) {
        const __m256i bytes = _mm256_xor_si256(halves[half], flip);
        const __m256i low = _mm256_and_si256(bytes, mask);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
        int8_t* to = panel.halves[half].codes + (static_cast<size_t>(block) * kQuads + quad) * 64;
        store_32(to, _mm256_sub_epi8(low, eight));
        store_32(to + 32, _mm256_sub_epi8(high, eight));
      }
    }
    set_initial(panel.halves[0], block);
    set_initial(panel.halves[1], block);
  }
}

// The largest of 16 absolute values.
inline int32_t peak(__m256i values) {
  const __m128i half =
      _mm_max_epu16(_mm256_castsi256_si128(values), _mm256_extracti128_si256(values, 1));
  const __m128i top = _mm_set1_epi16(-1);
  return 0xffff - (_mm_cvtsi128_si32(_mm_minpos_epu16(_mm_sub_epi16(top, half))) & 0xffff);
}

// A token's activations times the scales of the panel, rounded to q + 128. The products are formed
// with 16 bits first, so that 127 stands for the largest of a block that there really is.
void fold_token(const uint8_t* prepared, int inputs, const ExpertPanel& panel, int tile_token) {
  const auto* words = reinterpret_cast<const int16_t*>(prepared);
  const auto* largest = reinterpret_cast<const float*>(prepared + inputs * sizeof(int16_t));
  const int blocks = inputs / kGroup;
  for (int block = 0; block < blocks; ++block) {
    const int i = block * kGroup;
    const __m256i a = _mm256_mulhrs_epi16(load_32(words + i), load_32(panel.ratios + i));
    const __m256i b = _mm256_mulhrs_epi16(load_32(words + i + 16), load_32(panel.ratios + i + 16));
    store_32(panel.products + i, a);
    store_32(panel.products + i + 16, b);
    panel.peaks[block] = peak(_mm256_max_epu16(_mm256_abs_epi16(a), _mm256_abs_epi16(b)));
  }
  // mulhrs divides by 2^15. Peaks below 127 are left as they are.
  float* steps = panel.steps + tile_token * blocks;
  for (int block = 0; block < blocks; block += 8) {
    const __m256 peaks = _mm256_cvtepi32_ps(load_32(panel.peaks + block));
    const __m256 exact = _mm256_div_ps(_mm256_set1_ps(127.0f * 32768), peaks);
    store_32(panel.factors + block,
             _mm256_cvttps_epi32(_mm256_min_ps(exact, _mm256_set1_ps(kFull))));
  }
  uint8_t* x = panel.x + static_cast<size_t>(tile_token) * inputs;
  for (int block = 0; block < blocks; ++block) {
    const int i = block * kGroup;
    const __m256i factor = _mm256_set1_epi16(static_cast<int16_t>(panel.factors[block]));
    const __m256i a = _mm256_mulhrs_epi16(load_32(panel.products + i), factor);
    const __m256i b = _mm256_mulhrs_epi16(load_32(panel.products + i + 16), factor);
    const __m256i q = _mm256_permute4x64_epi64(_mm256_packs_epi16(a, b), 0xD8);
    store_32(x + i, _mm256_xor_si256(q, _mm256_set1_epi8(static_cast<char>(0x80))));
    steps[block] = largest[block] * panel.largest_scales[block] * (32768.0f / kFull) *
                   (32768.0f / kFull) / static_cast<float>(panel.factors[block]);
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
        for (int t = 0; t < batch; t += kTileTokens) {
          const int tokens = batch - t < kTileTokens ? batch - t : kTileTokens;
          const uint8_t* x[kTileTokens];
          const float* steps[kTileTokens];
          for (int i = 0; i < tokens; ++i) {
            x[i] = panel.x + static_cast<size_t>(t + i) * task.inputs;
            steps[i] = panel.steps + (t + i) * blocks;
          }
          float sums[kTileTokens][kTileOutputs];
          multiply_tile_int8<false>(tokens, x, steps, panel.halves[half], blocks, sums);
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

size_t expert_int8_bytes(int inputs) { return inputs * sizeof(float); }

size_t expert_int8_scratch(int inputs, int outputs, int count) {
  return count == 1 ? Folded::bytes(outputs / kGroup) : ExpertPanel::bytes(inputs);
}

// One token: as it is. Many: int16, then the largest of each block of 32.
void prepare_expert_rounded(const float* x, int inputs, bool single, uint8_t* prepared) {
  if (single) {
    std::memcpy(prepared, x, inputs * sizeof(float));
    return;
  }
  auto* words = reinterpret_cast<int16_t*>(prepared);
  auto* largest = reinterpret_cast<float*>(prepared + inputs * sizeof(int16_t));
  for (int i = 0; i < inputs; i += kGroup) {
    largest[i / kGroup] = largest_of_group(x + i);
    round_group(x + i, inverse_step(largest[i / kGroup], kFull), words + i);
  }
}

void expert_int8(const ExpertTask& task) {
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
