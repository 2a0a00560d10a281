// Attention over blocks of the cache: queries that share a key/value head use each load together.
#include "avx2.h"

#if defined(MOBILEMOE_X86)

#include <limits>

#include "products_avx2.h"

MOBILEMOE_BEGIN_AVX2

namespace mobilemoe {
namespace avx2 {
namespace {

inline __m256 widen_8(const float* values) { return _mm256_loadu_ps(values); }
inline __m256 widen_8(const uint16_t* values) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
}
inline __m256 widen_8(const int8_t* values) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(values))));
}

template <typename T>
struct Layout;
template <>
struct Layout<float> {
  static constexpr CacheType type = CacheType::float32;
};
template <>
struct Layout<uint16_t> {
  static constexpr CacheType type = CacheType::float16;
};
template <>
struct Layout<int8_t> {
  static constexpr CacheType type = CacheType::int8;
};

// Scales of an int8 block: of its keys, then of its values.
inline const float* scales_of(const uint8_t* block, int head_dim) {
  return reinterpret_cast<const float*>(block + kBlock * (head_dim + value_width(head_dim)));
}

// weights[i][p] = query i . key p, for every position of the blocks.
template <typename T, int kCount>
void score(const AttendTask& task, size_t stride) {
  for (int b = 0; b < task.blocks; ++b) {
    const uint8_t* block = task.block + b * stride;
    const auto* keys = reinterpret_cast<const T*>(block);
    __m256 sums[kCount][2];
    for (auto& sum : sums) sum[0] = sum[1] = _mm256_setzero_ps();
    for (int f = 0; f < task.head_dim; ++f) {
      const __m256 k0 = widen_8(keys + f * kBlock), k1 = widen_8(keys + f * kBlock + 8);
      for (int i = 0; i < kCount; ++i) {
        const __m256 q = _mm256_broadcast_ss(task.queries[i] + f);
        sums[i][0] = _mm256_fmadd_ps(q, k0, sums[i][0]);
        sums[i][1] = _mm256_fmadd_ps(q, k1, sums[i][1]);
      }
    }
    if (sizeof(T) == 1) {
      const float* scales = scales_of(block, task.head_dim);
      const __m256 s0 = _mm256_loadu_ps(scales), s1 = _mm256_loadu_ps(scales + 8);
      for (auto& sum : sums) {
        sum[0] = _mm256_mul_ps(sum[0], s0);
        sum[1] = _mm256_mul_ps(sum[1], s1);
      }
    }
    for (int i = 0; i < kCount; ++i) {
      float* weights = task.weights + i * kChunk + b * kBlock;
      _mm256_storeu_ps(weights, sums[i][0]);
      _mm256_storeu_ps(weights + 8, sums[i][1]);
    }
  }
}

// Scores to exp(score - largest), 0 where a query does not see.
void soften(AttendTask& task) {
  const __m256 nothing = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
  const __m256i steps = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  for (int i = 0; i < task.count; ++i) {
    float* weights = task.weights + i * kChunk;
    const int end = task.blocks * kBlock;
    const __m256i from = _mm256_set1_epi32(task.begin[i] - 1);
    const __m256i to = _mm256_set1_epi32(task.end[i]);
    __m256 largest = nothing;
    for (int p = 0; p < end; p += 8) {
      const __m256i position = _mm256_add_epi32(_mm256_set1_epi32(p), steps);
      const __m256i seen = _mm256_and_si256(_mm256_cmpgt_epi32(position, from),
                                            _mm256_cmpgt_epi32(to, position));
      const __m256 masked =
          _mm256_blendv_ps(nothing, _mm256_loadu_ps(weights + p), _mm256_castsi256_ps(seen));
      _mm256_storeu_ps(weights + p, masked);
      largest = _mm256_max_ps(largest, masked);
    }
    task.largest[i] = largest_lane(largest);
    if (task.begin[i] >= task.end[i]) {  // -infinity - -infinity is not a number
      std::memset(weights, 0, end * sizeof(float));
      task.sum[i] = 0;
      continue;
    }
    const __m256 top = _mm256_set1_ps(task.largest[i]);
    __m256 sum = _mm256_setzero_ps();
    for (int p = 0; p < end; p += 8) {
      const __m256 weight = exponential(_mm256_sub_ps(_mm256_loadu_ps(weights + p), top));
      _mm256_storeu_ps(weights + p, weight);
      sum = _mm256_add_ps(sum, weight);
    }
    task.sum[i] = sum_lanes(sum);
  }
}

// mixed[i] = sum over positions of weights[i][p] value p, 16 features at a time.
template <typename T, int kCount>
void mix(const AttendTask& task, size_t stride, int begin, int end) {
  const int width = value_width(task.head_dim);
  for (int f = 0; f < width; f += 16) {
    __m256 sums[kCount][2];
    for (auto& sum : sums) sum[0] = sum[1] = _mm256_setzero_ps();
    for (int p = begin; p < end; ++p) {
      const auto* values = reinterpret_cast<const T*>(task.block + p / kBlock * stride) +
                           kBlock * task.head_dim + p % kBlock * width + f;
      const __m256 v0 = widen_8(values), v1 = widen_8(values + 8);
      for (int i = 0; i < kCount; ++i) {
        const __m256 weight = _mm256_broadcast_ss(task.weights + i * kChunk + p);
        sums[i][0] = _mm256_fmadd_ps(weight, v0, sums[i][0]);
        sums[i][1] = _mm256_fmadd_ps(weight, v1, sums[i][1]);
      }
    }
    for (int i = 0; i < kCount; ++i) {
      _mm256_storeu_ps(task.mixed[i] + f, sums[i][0]);
      _mm256_storeu_ps(task.mixed[i] + f + 8, sums[i][1]);
    }
  }
}

template <typename T, int kCount>
void attend_some(AttendTask& task) {
  const size_t stride = block_bytes(Layout<T>::type, task.head_dim);
  score<T, kCount>(task, stride);
  soften(task);
  if (sizeof(T) == 1) {
    for (int b = 0; b < task.blocks; ++b) {
      const float* scales = scales_of(task.block + b * stride, task.head_dim) + kBlock;
      for (int i = 0; i < kCount; ++i) {
        float* weights = task.weights + i * kChunk + b * kBlock;
        for (int p = 0; p < kBlock; ++p) weights[p] *= scales[p];
      }
    }
  }
  // Only positions that some query sees: what lies in others may not be a number.
  int begin = task.begin[0], end = task.end[0];
  for (int i = 1; i < kCount; ++i) {
    begin = task.begin[i] < begin ? task.begin[i] : begin;
    end = task.end[i] > end ? task.end[i] : end;
  }
  mix<T, kCount>(task, stride, begin, end);
}

template <typename T>
void attend(AttendTask& task) {
  switch (task.count) {
    case 1: attend_some<T, 1>(task); break;
    case 2: attend_some<T, 2>(task); break;
    case 3: attend_some<T, 3>(task); break;
    case 4: attend_some<T, 4>(task); break;
    case 5: attend_some<T, 5>(task); break;
    default: attend_some<T, 6>(task);
  }
}

}  // namespace

void attend_float32(AttendTask& task) { attend<float>(task); }
void attend_float16(AttendTask& task) { attend<uint16_t>(task); }
void attend_int8(AttendTask& task) { attend<int8_t>(task); }

}  // namespace avx2
}  // namespace mobilemoe

MOBILEMOE_END_AVX2

#endif  // MOBILEMOE_X86
