// Attention over blocks of the cache. A template of the loops (vectors_avx2.h): queries that share a
// key/value head use each load together.
#pragma once

#include "elementwise.h"
#include "kernels.h"

namespace mobilemoe {

template <typename T>
struct CacheOf;
template <>
struct CacheOf<float> {
  static constexpr CacheType type = CacheType::float32;
};
template <>
struct CacheOf<uint16_t> {
  static constexpr CacheType type = CacheType::float16;
};
template <>
struct CacheOf<int8_t> {
  static constexpr CacheType type = CacheType::int8;
};

// T: of the cache's keys and values.
template <typename V, typename T>
class AttentionBlocks {
  using Floats = typename V::Floats;

 public:
  static void attend(AttendTask& task) {
    switch (task.count) {
      case 1: attend_some<1>(task); break;
      case 2: attend_some<2>(task); break;
      case 3: attend_some<3>(task); break;
      case 4: attend_some<4>(task); break;
      case 5: attend_some<5>(task); break;
      default: attend_some<6>(task);
    }
  }

 private:
  // Scales of an int8 block: of its keys, then of its values.
  static const float* scales_of(const uint8_t* block, int head_dim) {
    return reinterpret_cast<const float*>(block + kBlock * (head_dim + value_width(head_dim)));
  }

  // weights[i][p] = query i . key p, for every position of the blocks.
  template <int kCount>
  static void score(const AttendTask& task, size_t stride) {
    for (int b = 0; b < task.blocks; ++b) {
      const uint8_t* block = task.block + b * stride;
      const auto* keys = reinterpret_cast<const T*>(block);
      Floats sums[kCount][2];
      for (auto& sum : sums) sum[0] = sum[1] = V::zero();
      for (int f = 0; f < task.head_dim; ++f) {
        const Floats k0 = V::widen(keys + f * kBlock), k1 = V::widen(keys + f * kBlock + 8);
        for (int i = 0; i < kCount; ++i) {
          const Floats q = V::set(task.queries[i][f]);
          sums[i][0] = V::fma(q, k0, sums[i][0]);
          sums[i][1] = V::fma(q, k1, sums[i][1]);
        }
      }
      if (sizeof(T) == 1) {
        const float* scales = scales_of(block, task.head_dim);
        const Floats s0 = V::load(scales), s1 = V::load(scales + 8);
        for (auto& sum : sums) {
          sum[0] = V::mul(sum[0], s0);
          sum[1] = V::mul(sum[1], s1);
        }
      }
      for (int i = 0; i < kCount; ++i) {
        float* weights = task.weights + i * kChunk + b * kBlock;
        V::store(weights, sums[i][0]);
        V::store(weights + 8, sums[i][1]);
      }
    }
  }

  // Scores to exp(score - largest), 0 where a query does not see.
  static void soften(AttendTask& task) {
    const Floats nothing = V::set(-std::numeric_limits<float>::infinity());
    for (int i = 0; i < task.count; ++i) {
      float* weights = task.weights + i * kChunk;
      const int end = task.blocks * kBlock;
      Floats largest = nothing;
      for (int p = 0; p < end; p += 8) {
        const Floats seen =
            V::select_range(V::load(weights + p), nothing, p, task.begin[i], task.end[i]);
        V::store(weights + p, seen);
        largest = V::max(largest, seen);
      }
      task.largest[i] = V::largest(largest);
      if (task.begin[i] >= task.end[i]) {  // -infinity - -infinity is not a number
        std::memset(weights, 0, end * sizeof(float));
        task.sum[i] = 0;
        continue;
      }
      const Floats top = V::set(task.largest[i]);
      Floats sum = V::zero();
      for (int p = 0; p < end; p += 8) {
        const Floats weight = exponential<V>(V::sub(V::load(weights + p), top));
        V::store(weights + p, weight);
        sum = V::add(sum, weight);
      }
      task.sum[i] = V::sum(sum);
    }
  }

  // mixed[i] = sum over positions of weights[i][p] value p, 16 features at a time.
  template <int kCount>
  static void mix(const AttendTask& task, size_t stride, int begin, int end) {
    const int width = value_width(task.head_dim);
    for (int f = 0; f < width; f += 16) {
      Floats sums[kCount][2];
      for (auto& sum : sums) sum[0] = sum[1] = V::zero();
      for (int p = begin; p < end; ++p) {
        const auto* values = reinterpret_cast<const T*>(task.block + p / kBlock * stride) +
                             kBlock * task.head_dim + p % kBlock * width + f;
        const Floats v0 = V::widen(values), v1 = V::widen(values + 8);
        for (int i = 0; i < kCount; ++i) {
          const Floats weight = V::set(task.weights[i * kChunk + p]);
          sums[i][0] = V::fma(weight, v0, sums[i][0]);
          sums[i][1] = V::fma(weight, v1, sums[i][1]);
        }
      }
      for (int i = 0; i < kCount; ++i) {
        V::store(task.mixed[i] + f, sums[i][0]);
        V::store(task.mixed[i] + f + 8, sums[i][1]);
      }
    }
  }

  template <int kCount>
  static void attend_some(AttendTask& task) {
    const size_t stride = block_bytes(CacheOf<T>::type, task.head_dim);
    score<kCount>(task, stride);
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
    mix<kCount>(task, stride, begin, end);
  }
};

}  // namespace mobilemoe
