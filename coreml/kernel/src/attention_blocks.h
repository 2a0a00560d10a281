// Attention over blocks of the cache. A template of the loops (vectors_avx2.h): queries that share a
// key/value head use each load together. Two or four vectors are worked on at a time: with eight floats a
// vector they are the 16 positions of a block or of two, with 16 floats of two or four blocks.
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
      Floats seen = V::load(weights + p);
      if (p < task.begin[i] || p + kLanes > task.end[i]) {
        seen = V::select_range(seen, nothing, p, task.begin[i], task.end[i]);
        V::store(weights + p, seen);
      }
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
      const Floats weight = exponential<V, true>(V::sub(V::load(weights + p), top));
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
  // That are summed together for each of some queries: 12 sums in all, for each addition waits for the
  // one before.
  template <int kCount>
  static constexpr int vectors() {
    return kCount > 3 ? 2 : 4;
  }

  // sums[i][v] += query(i) * vector(v), with the fewer of the two kept in registers.
  template <typename Query, typename Vector, int kCount, int kVectors>
  static void add_products(const Query& query, const Vector& vector,
                           Floats (&sums)[kCount][kVectors]) {
    if constexpr (kCount < kVectors) {
      Floats q[kCount];
      for (int i = 0; i < kCount; ++i) q[i] = query(i);
      for (int v = 0; v < kVectors; ++v) {
        const Floats x = vector(v);
        for (int i = 0; i < kCount; ++i) sums[i][v] = V::fma(q[i], x, sums[i][v]);
      }
    } else {
      Floats x[kVectors];
      for (int v = 0; v < kVectors; ++v) x[v] = vector(v);
      for (int i = 0; i < kCount; ++i) {
        const Floats q = query(i);
        for (int v = 0; v < kVectors; ++v) sums[i][v] = V::fma(q, x[v], sums[i][v]);
      }
    }
  }

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
    constexpr int kVectors = vectors<kCount>(), kTogether = kVectors * kLanes / kBlock;
    for (int b = 0; b < task.blocks; b += kTogether) {
      const uint8_t *blocks[kTogether], *ahead[kTogether];
      for (int i = 0; i < kTogether; ++i) {
        // Behind the last block, the first of these once more; its weights are not read.
        const int at = b + i < task.blocks ? b + i : b;
        blocks[i] = task.block + at * stride;
        ahead[i] = ahead_of(task, stride, at);
      }
      const T* keys[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        keys[v] = reinterpret_cast<const T*>(blocks[v * kLanes / kBlock]) + v * kLanes % kBlock;
      }
      Floats sums[kCount][kVectors];
      for (auto& sum : sums) {
        for (auto& part : sum) part = V::zero();
      }
      for (int f = 0; f < task.head_dim; ++f) {
        for (int i = 0; i < kTogether; ++i) prefetch(ahead[i] + f * kBlock * sizeof(T));
        add_products(
            [&](int i) { return V::set(task.queries[i][f]); },
            [&](int v) { return V::widen(keys[v] + f * kBlock); }, sums);
      }
      for (int v = 0; v < kVectors; ++v) {
        float* weights = task.weights + b * kBlock + v * kLanes;
        if (sizeof(T) == 1) {
          const float* scales = scales_of(blocks[v * kLanes / kBlock], task.head_dim);
          const Floats scale = V::load(scales + v * kLanes % kBlock);
          for (int i = 0; i < kCount; ++i) sums[i][v] = V::mul(sums[i][v], scale);
        }
        for (int i = 0; i < kCount; ++i) V::store(weights + i * kChunk, sums[i][v]);
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
        prefetch(ahead + p * width * sizeof(T));
        add_products([&](int i) { return V::set(task.weights[i * kChunk + b * kBlock + p]); },
                     [&](int v) { return V::widen(values + p * width + v * kLanes); }, sums);
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
    constexpr int kVectors = vectors<kCount>();
    const int width = value_width(task.head_dim);
    int f = 0;
    for (; f + kVectors * kLanes <= width; f += kVectors * kLanes) {
      mix_features<kCount, kVectors>(task, stride, begin, end, f);
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
