// Linears in float32. A row's codes are widened to floats and multiplied by their scales, which is
// exact; each output is one sum of eight lanes over the columns, in one order for any number of
// tokens.
#include "avx2.h"

#if defined(MOBILEMOE_X86)

#include "products_avx2.h"

MOBILEMOE_BEGIN_AVX2

namespace mobilemoe {
namespace avx2 {
namespace {

constexpr int kRows = 8;    // of one token alone
constexpr int kTokens = 4;  // of a tile of many
constexpr int kTileRows = 2;

// Eight codes (int8) as weights.
inline __m256 weights_of(__m128i codes, __m256 scale) {
  return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)), scale);
}

// A group's 32 weights: columns 0, 2, ..., 14; 16, ..., 30; 1, 3, ..., 15; 17, ..., 31.
struct Group {
  __m256 weights[4];
};

inline Group unpack_group(const uint8_t* codes, const uint8_t* scales) {
  const __m128i bytes = _mm_xor_si128(load_16(codes), _mm_set1_epi8(static_cast<char>(0x88)));
  const __m128i mask = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
  const __m128i even = _mm_sub_epi8(_mm_and_si128(bytes, mask), eight);
  const __m128i odd = _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(bytes, 4), mask), eight);
  const __m256 scale = _mm256_set1_ps(load_one_float16(scales));
  return {{weights_of(even, scale), weights_of(_mm_srli_si128(even, 8), scale),
           weights_of(odd, scale), weights_of(_mm_srli_si128(odd, 8), scale)}};
}

void multiply_one(const LinearTask& task) {
  const int groups = task.columns / kGroup;
  const auto* x = reinterpret_cast<const float*>(task.prepared);
  for (int row = task.begin; row < task.end; row += kRows) {
    const int rows = task.end - row < kRows ? task.end - row : kRows;
    __m256 sums[kRows];
    for (int r = 0; r < kRows; ++r) sums[r] = _mm256_setzero_ps();
    for (int g = 0; g < groups; ++g) {
      const __m256 x0 = _mm256_loadu_ps(x + g * kGroup), x1 = _mm256_loadu_ps(x + g * kGroup + 8);
      const __m256 x2 = _mm256_loadu_ps(x + g * kGroup + 16);
      const __m256 x3 = _mm256_loadu_ps(x + g * kGroup + 24);
      for (int r = 0; r < rows; ++r) {
        const size_t at = static_cast<size_t>(row + r) * groups + g;
        const uint8_t* codes = task.codes + at * (kGroup / 2);
        prefetch(codes);
        const Group w = unpack_group(codes, task.scales + at * 2);
        sums[r] = _mm256_fmadd_ps(w.weights[0], x0, sums[r]);
        sums[r] = _mm256_fmadd_ps(w.weights[1], x1, sums[r]);
        sums[r] = _mm256_fmadd_ps(w.weights[2], x2, sums[r]);
        sums[r] = _mm256_fmadd_ps(w.weights[3], x3, sums[r]);
      }
    }
    for (int r = 0; r < rows; ++r) task.y[row + r] = sum_lanes(sums[r]);
  }
}

// kTokenCount tokens times two unpacked rows.
template <int kTokenCount>
void multiply_tile(const float* const* x, const float* weights, int columns, float (*y)[kTileRows]) {
  __m256 sums[kTokenCount][kTileRows];
  for (auto& token : sums) {
    for (auto& sum : token) sum = _mm256_setzero_ps();
  }
  for (int i = 0; i < columns; i += 8) {
    const __m256 w0 = _mm256_loadu_ps(weights + i), w1 = _mm256_loadu_ps(weights + columns + i);
    for (int t = 0; t < kTokenCount; ++t) {
      const __m256 v = _mm256_loadu_ps(x[t] + i);
      sums[t][0] = _mm256_fmadd_ps(w0, v, sums[t][0]);
      sums[t][1] = _mm256_fmadd_ps(w1, v, sums[t][1]);
    }
  }
  for (int t = 0; t < kTokenCount; ++t) {
    for (int r = 0; r < kTileRows; ++r) y[t][r] = sum_lanes(sums[t][r]);
  }
}

void multiply_many(const LinearTask& task) {
  const int groups = task.columns / kGroup;
  auto* weights = reinterpret_cast<float*>(task.scratch);  // [kRows][columns]
  for (int row = task.begin; row < task.end; row += kRows) {
    const int rows = task.end - row < kRows ? task.end - row : kRows;
    for (int r = 0; r < kRows; ++r) {
      float* to = weights + static_cast<size_t>(r) * task.columns;
      // A tile has two rows: behind the last there is one more to read, whose sums are dropped.
      const size_t first = static_cast<size_t>(row + (r < rows ? r : 0)) * groups;
      for (int g = 0; g < groups; ++g, to += kGroup) {
        const Group w =
            unpack_group(task.codes + (first + g) * (kGroup / 2), task.scales + (first + g) * 2);
        for (int part = 0; part < 4; ++part) _mm256_storeu_ps(to + part * 8, w.weights[part]);
      }
    }
    for (int t = 0; t < task.count; t += kTokens) {
      const int tokens = task.count - t < kTokens ? task.count - t : kTokens;
      const float* x[kTokens];
      for (int i = 0; i < tokens; ++i) {
        x[i] = reinterpret_cast<const float*>(task.prepared + (t + i) * task.prepared_stride);
      }
      for (int r = 0; r < rows; r += kTileRows) {
        float y[kTokens][kTileRows];
        const float* w = weights + static_cast<size_t>(r) * task.columns;
        switch (tokens) {
          case 1: multiply_tile<1>(x, w, task.columns, y); break;
          case 2: multiply_tile<2>(x, w, task.columns, y); break;
          case 3: multiply_tile<3>(x, w, task.columns, y); break;
          default: multiply_tile<4>(x, w, task.columns, y);
        }
        for (int i = 0; i < tokens; ++i) {
          float* to = task.y + (t + i) * task.y_stride + row + r;
          to[0] = y[i][0];
          if (r + 1 < rows) to[1] = y[i][1];
        }
      }
    }
  }
}

}  // namespace

size_t linear_exact_scratch(int columns, int count) {
  return count == 1 ? 0 : static_cast<size_t>(columns) * kRows * sizeof(float);
}

// Columns of a group in the order in which unpack_group has them.
void prepare_linear_exact(const float* x, int columns, bool, uint8_t* prepared) {
  auto* to = reinterpret_cast<float*>(prepared);
  for (int g = 0; g < columns; g += kGroup) {
    for (int i = 0; i < kGroup / 2; ++i) {
      to[g + i] = x[g + 2 * i];
      to[g + kGroup / 2 + i] = x[g + 2 * i + 1];
    }
  }
}

void linear_exact(const LinearTask& task) {
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
