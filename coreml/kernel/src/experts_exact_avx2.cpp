// Routed experts in float32. Lanes are columns; each output is one chain of additions over the
// inputs, in their order, for any number of tokens.
#include "avx2.h"

#if defined(MOBILEMOE_X86)

#include "products_avx2.h"

MOBILEMOE_BEGIN_AVX2

namespace mobilemoe {
namespace avx2 {
namespace {

constexpr int kRows = 8;     // whole rows walked together for one token: contiguous memory
constexpr int kPanel = 128;  // inputs that are unpacked together for many: 16 kB of floats
constexpr int kTokens = 3;   // of a tile: 3 x 4 sums, 4 weights

inline __m256 widen(__m128i codes, __m256 scale) {
  return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)), scale);
}

// The 32 weights of a row and group: even columns in 0 and 1, odd ones in 2 and 3.
inline void unpack(const uint8_t* codes, const uint8_t* scale_bytes, __m256* weights) {
  const __m128i bytes = _mm_xor_si128(load_16(codes), _mm_set1_epi8(static_cast<char>(0x88)));
  const __m128i mask = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
  const __m128i even = _mm_sub_epi8(_mm_and_si128(bytes, mask), eight);
  const __m128i odd = _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(bytes, 4), mask), eight);
  const __m256 scale = _mm256_set1_ps(load_one_float16(scale_bytes));
  weights[0] = widen(even, scale);
  weights[1] = widen(_mm_srli_si128(even, 8), scale);
  weights[2] = widen(odd, scale);
  weights[3] = widen(_mm_srli_si128(odd, 8), scale);
}

// Even and odd columns, eight of each, back into their order.
inline void store_columns(const float* even, const float* odd, float* y) {
  const __m256 e = _mm256_loadu_ps(even), o = _mm256_loadu_ps(odd);
  const __m256 low = _mm256_unpacklo_ps(e, o), high = _mm256_unpackhi_ps(e, o);
  _mm256_storeu_ps(y, _mm256_permute2f128_ps(low, high, 0x20));
  _mm256_storeu_ps(y + 8, _mm256_permute2f128_ps(low, high, 0x31));
}

inline void store_group(const float* sums, float* y) {
  store_columns(sums, sums + 16, y);
  store_columns(sums + 8, sums + 24, y + 16);
}

void multiply_one(const ExpertTask& task) {
  const auto* x =
      reinterpret_cast<const float*>(task.prepared + task.rows[0] * task.prepared_stride);
  auto* sums = reinterpret_cast<float*>(task.scratch);  // [outputs]
  std::memset(sums + task.begin, 0, (task.end - task.begin) * sizeof(float));
  const int row_groups = task.outputs / kGroup;
  for (int r = 0; r < task.inputs; r += kRows) {
    for (int g = task.begin / kGroup; g < task.end / kGroup; ++g) {
      __m256 group[4];
      for (int i = 0; i < 4; ++i) group[i] = _mm256_loadu_ps(sums + g * kGroup + i * 8);
      for (int j = r; j < r + kRows; ++j) {
        const size_t at = static_cast<size_t>(j) * row_groups + g;
        const uint8_t* codes = task.codes + at * (kGroup / 2);
        prefetch(codes);
        __m256 w[4];
        unpack(codes, task.scales + at * 2, w);
        const __m256 v = _mm256_set1_ps(x[j]);
        for (int i = 0; i < 4; ++i) group[i] = _mm256_fmadd_ps(w[i], v, group[i]);
      }
      for (int i = 0; i < 4; ++i) _mm256_storeu_ps(sums + g * kGroup + i * 8, group[i]);
    }
  }
  for (int g = task.begin; g < task.end; g += kGroup) store_group(sums + g, task.y + g);
}

template <int kTokenCount>
void multiply_tile(const float* const* x, const float* weights, int inputs, float* sums) {
  __m256 tile[kTokenCount][4];
  for (int t = 0; t < kTokenCount; ++t) {
    for (int i = 0; i < 4; ++i) tile[t][i] = _mm256_loadu_ps(sums + t * kGroup + i * 8);
  }
  for (int r = 0; r < inputs; ++r) {
    __m256 w[4];
    for (int i = 0; i < 4; ++i) w[i] = _mm256_loadu_ps(weights + r * kGroup + i * 8);
    for (int t = 0; t < kTokenCount; ++t) {
      const __m256 v = _mm256_broadcast_ss(x[t] + r);
      for (int i = 0; i < 4; ++i) tile[t][i] = _mm256_fmadd_ps(w[i], v, tile[t][i]);
    }
  }
  for (int t = 0; t < kTokenCount; ++t) {
    for (int i = 0; i < 4; ++i) _mm256_storeu_ps(sums + t * kGroup + i * 8, tile[t][i]);
  }
}

void multiply_many(const ExpertTask& task) {
  const int row_groups = task.outputs / kGroup;
  auto* panel = reinterpret_cast<float*>(task.scratch);  // [kPanel][32]
  float* sums = panel + kPanel * kGroup;                 // [count][32]
  for (int g = task.begin / kGroup; g < task.end / kGroup; ++g) {
    std::memset(sums, 0, static_cast<size_t>(task.count) * kGroup * sizeof(float));
    for (int begin = 0; begin < task.inputs; begin += kPanel) {
      const int rows = task.inputs - begin < kPanel ? task.inputs - begin : kPanel;
      for (int r = 0; r < rows; ++r) {
        const size_t at = static_cast<size_t>(begin + r) * row_groups + g;
        __m256 w[4];
        unpack(task.codes + at * (kGroup / 2), task.scales + at * 2, w);
        for (int i = 0; i < 4; ++i) _mm256_storeu_ps(panel + r * kGroup + i * 8, w[i]);
      }
      for (int t = 0; t < task.count; t += kTokens) {
        const int tokens = task.count - t < kTokens ? task.count - t : kTokens;
        const float* x[kTokens];
        for (int i = 0; i < tokens; ++i) {
          x[i] = reinterpret_cast<const float*>(task.prepared +
                                                task.rows[t + i] * task.prepared_stride) +
                 begin;
        }
        float* tile = sums + static_cast<size_t>(t) * kGroup;
        switch (tokens) {
          case 1: multiply_tile<1>(x, panel, rows, tile); break;
          case 2: multiply_tile<2>(x, panel, rows, tile); break;
          default: multiply_tile<3>(x, panel, rows, tile);
        }
      }
    }
    for (int t = 0; t < task.count; ++t) {
      store_group(sums + static_cast<size_t>(t) * kGroup, task.y + t * task.y_stride + g * kGroup);
    }
  }
}

}  // namespace

size_t expert_exact_scratch(int, int outputs, int count) {
  const size_t one = outputs;
  const size_t many = static_cast<size_t>(kPanel + count) * kGroup;
  return (one > many ? one : many) * sizeof(float);
}

void expert_exact(const ExpertTask& task) {
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
