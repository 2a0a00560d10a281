// The AVX2 code path: norms, SwiGLU, router, and the table of its functions.
#include "avx2.h"

#if defined(MOBILEMOE_X86)

#include "products_avx2.h"

MOBILEMOE_BEGIN_AVX2

namespace mobilemoe {
namespace avx2 {
namespace {

void rms_norm(const float* x, const float* weight, int width, float eps, float* y) {
  __m256 squares = _mm256_setzero_ps();
  int i = 0;
  for (; i + 8 <= width; i += 8) {
    const __m256 v = _mm256_loadu_ps(x + i);
    squares = _mm256_fmadd_ps(v, v, squares);
  }
  float sum = sum_lanes(squares);
  for (int rest = i; rest < width; ++rest) sum += x[rest] * x[rest];
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(width) + eps);
  const __m256 scales = _mm256_set1_ps(scale);
  for (i = 0; i + 8 <= width; i += 8) {
    __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + i), scales);
    if (weight != nullptr) v = _mm256_mul_ps(v, _mm256_loadu_ps(weight + i));
    _mm256_storeu_ps(y + i, v);
  }
  for (; i < width; ++i) y[i] = x[i] * scale * (weight == nullptr ? 1.0f : weight[i]);
}

// Widths are multiples of 8.
void swiglu(float* gate, const float* up, int width) {
  const __m256 one = _mm256_set1_ps(1.0f);
  for (int i = 0; i < width; i += 8) {
    const __m256 g = _mm256_loadu_ps(gate + i);
    const __m256 e = exponential(_mm256_sub_ps(_mm256_setzero_ps(), g));
    const __m256 silu = _mm256_div_ps(g, _mm256_add_ps(one, e));
    _mm256_storeu_ps(gate + i, _mm256_mul_ps(silu, _mm256_loadu_ps(up + i)));
  }
}

// Columns are multiples of 32. Two sums of eight lanes per row hide the latency of the addition.
void router(const float* x, const uint8_t* weight, int rows, int columns, float* y) {
  for (int row = 0; row < rows; ++row) {
    const uint8_t* bytes = weight + static_cast<size_t>(row) * columns * sizeof(float);
    __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                      _mm256_setzero_ps()};
    for (int i = 0; i < columns; i += 32) {
      for (int part = 0; part < 4; ++part) {
        const int at = i + part * 8;
        const __m256 w = _mm256_castsi256_ps(load_32(bytes + at * sizeof(float)));
        sums[part] = _mm256_fmadd_ps(w, _mm256_loadu_ps(x + at), sums[part]);
      }
      prefetch(bytes + i * sizeof(float));
      prefetch(bytes + i * sizeof(float) + 64);
    }
    y[row] = sum_lanes(
        _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3])));
  }
}

size_t float_bytes(int width) { return static_cast<size_t>(width) * sizeof(float); }

void copy_floats(const float* x, int width, bool, uint8_t* prepared) {
  std::memcpy(prepared, x, float_bytes(width));
}

}  // namespace
}  // namespace avx2

namespace {

const Products kExact = {avx2::float_bytes,
                         avx2::prepare_linear_exact,
                         avx2::linear_exact,
                         avx2::linear_exact_scratch,
                         8,
                         avx2::float_bytes,
                         avx2::copy_floats,
                         avx2::expert_exact,
                         avx2::expert_exact_scratch};

const Products kInt8 = {avx2::linear_int8_bytes, avx2::prepare_linear_int8, avx2::linear_int8,
                        avx2::linear_int8_scratch, 16,
                        avx2::expert_int8_bytes, avx2::prepare_expert_rounded, avx2::expert_int8,
                        avx2::expert_int8_scratch};

const Products kInt16 = {avx2::linear_int16_bytes, avx2::prepare_linear_int16, avx2::linear_int16,
                         avx2::linear_int16_scratch, 16,
                         avx2::expert_int16_bytes, avx2::prepare_expert_rounded,
                         avx2::expert_int16, avx2::expert_int16_scratch};

bool runs_here() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

}  // namespace

MOBILEMOE_END_AVX2

const Kernels kAvx2 = {
    "avx2",
    runs_here,
    avx2::rms_norm,
    avx2::swiglu,
    avx2::router,
    {&kExact, &kInt16, &kInt8},
    {avx2::attend_float32, avx2::attend_float16, avx2::attend_int8},
};

}  // namespace mobilemoe

#endif  // MOBILEMOE_X86
