// Attention over blocks of the cache. A template of the loops (vectors_avx2.h): queries that share a
// key/value head use each load together. Two vectors are worked on at a time: with eight floats a
// vector they are the 16 positions of a block, with 16 floats two blocks.
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

// Scores to exp(score - largest), 0 where a query does not see.
template <typename V>
void soften(AttendTask& task) {
  using Floats = typename V::Floats;
  constexpr int kLanes = V::kLanes;
  const Floats nothing = V::set(-std::numeric_limits<float>::infinity());
  for (int i = 0; i < task.count; ++i) {
    float* weights = task.weights + i * kChunk;
    const int end = task.blocks * kBlock;
    Floats largest = nothing;
    for (int p = 0; p < end; p += kLanes) {
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
    for (int p = 0; p < end; p += kLanes) {
      const Floats weight = exponential<V>(V::sub(V::load(weights + p), top));
      V::store(weights + p, weight);
      sum = V::add(sum, weight);
    }
    task.sum[i] = V::sum(sum);
  }
}

// T: of the cache's keys and values.
template <typename V, typename T>
class AttentionBlocks {
  using Floats = typename V::Floats;
  static constexpr int kLanes = V::kLanes;
  static constexpr int kTogether = 2 * kLanes / kBlock;  // blocks whose scores are summed together
  static constexpr int kSecond = kLanes % kBlock;        // where the second vector is in its block
  static constexpr int kHalvesAhead = 4;                 // of blocks: 8 kB of 64 float16 features

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

  // What is read kHalvesAhead after half `half` of the blocks, in the order of reading: all keys,
  // then all values, then the keys of the next chunk.
  static const uint8_t* ahead_of(const AttendTask& task, size_t stride, int half) {
    const int at = half + kHalvesAhead;
    if (at < task.blocks) return task.block + at * stride;
    const uint8_t* block = task.block + (at - task.blocks) * stride;
    return at < 2 * task.blocks ? block + sizeof(T) * kBlock * task.head_dim : block;
  }

  // weights[i][p] = query i . key p, for every position of the blocks.
  template <int kCount>
  static void score(const AttendTask& task, size_t stride) {
    for (int b = 0; b < task.blocks; b += kTogether) {
      // Behind an odd last block, that block once more; its weights are not read.
      const int second = b + kTogether - 1 < task.blocks ? b + kTogether - 1 : b;
      const uint8_t* blocks[2] = {task.block + b * stride, task.block + second * stride};
      const uint8_t* ahead[2] = {ahead_of(task, stride, b), ahead_of(task, stride, second)};
      const auto* keys0 = reinterpret_cast<const T*>(blocks[0]);
      const auto* keys1 = reinterpret_cast<const T*>(blocks[1]) + kSecond;
      Floats sums[kCount][2];
      for (auto& sum : sums) sum[0] = sum[1] = V::zero();
      for (int f = 0; f < task.head_dim; ++f) {
        for (int i = 0; i < kTogether; ++i) prefetch(ahead[i] + f * kBlock * sizeof(T));
        const Floats k0 = V::widen(keys0 + f * kBlock), k1 = V::widen(keys1 + f * kBlock);
        for (int i = 0; i < kCount; ++i) {
          const Floats q = V::set(task.queries[i][f]);
          sums[i][0] = V::fma(q, k0, sums[i][0]);
          sums[i][1] = V::fma(q, k1, sums[i][1]);
        }
      }
      if (sizeof(T) == 1) {
        const Floats s0 = V::load(scales_of(blocks[0], task.head_dim));
        const Floats s1 = V::load(scales_of(blocks[1], task.head_dim) + kSecond);
        for (auto& sum : sums) {
          sum[0] = V::mul(sum[0], s0);
          sum[1] = V::mul(sum[1], s1);
        }
      }
      for (int i = 0; i < kCount; ++i) {
        float* weights = task.weights + i * kChunk + b * kBlock;
        V::store(weights, sums[i][0]);
        V::store(weights + kLanes, sums[i][1]);
      }
    }
  }

  // mixed[i] = sum over positions of weights[i][p] value p, for kVectors vectors of features.
  template <int kCount, int kVectors>
  static void mix_features(const AttendTask& task, size_t stride, int begin, int end, int f) {
    const int width = value_width(task.head_dim);
    Floats sums[kCount][kVectors];
    for (auto& sum : sums) {
      for (auto& part : sum) part = V::zero();
    }
    for (int b = begin / kBlock; b * kBlock < end; ++b) {
      const auto* values = reinterpret_cast<const T*>(task.block + b * stride) +
                           kBlock * task.head_dim + f;
      const uint8_t* ahead = ahead_of(task, stride, task.blocks + b) + f * sizeof(T);
      const int first = b * kBlock < begin ? begin - b * kBlock : 0;
      const int last = end - b * kBlock < kBlock ? end - b * kBlock : kBlock;
      for (int p = first; p < last; ++p) {
        Floats v[kVectors];
        for (int part = 0; part < kVectors; ++part) {
          v[part] = V::widen(values + p * width + part * kLanes);
        }
        prefetch(ahead + p * width * sizeof(T));
        for (int i = 0; i < kCount; ++i) {
          const Floats weight = V::set(task.weights[i * kChunk + b * kBlock + p]);
          for (int part = 0; part < kVectors; ++part) {
            sums[i][part] = V::fma(weight, v[part], sums[i][part]);
          }
        }
      }
    }
    for (int i = 0; i < kCount; ++i) {
      for (int part = 0; part < kVectors; ++part) {
        V::store(task.mixed[i] + f + part * kLanes, sums[i][part]);
      }
    }
  }

  template <int kCount>
  static void mix(const AttendTask& task, size_t stride, int begin, int end) {
    const int width = value_width(task.head_dim);
    int f = 0;
    for (; f + 2 * kLanes <= width; f += 2 * kLanes) {
      mix_features<kCount, 2>(task, stride, begin, end, f);
    }
    for (; f < width; f += kLanes) mix_features<kCount, 1>(task, stride, begin, end, f);
  }

  template <int kCount>
  static void attend_some(AttendTask& task) {
    const size_t stride = block_bytes(CacheOf<T>::type, task.head_dim);
    score<kCount>(task, stride);
    soften<V>(task);
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
