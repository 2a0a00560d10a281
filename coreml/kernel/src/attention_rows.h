// Attention over a cache of rows, one position after the other (RowCache). A template of the loops
// (vectors_avx2.h): scores are sums over features, two positions at a time.
#pragma once

#include "attention_blocks.h"

namespace mobilemoe {

// What is asked for ahead, in positions: 8 kB of 64 features.
constexpr int kRowsAhead = 32;

// weights[i][p] = query i . key p, for kPositions positions from `first` on.
template <typename V, int kCount, int kPositions>
void score_rows(const AttendTask& task, int first) {
  using Floats = typename V::Floats;
  const int head_dim = task.head_dim;
  const float* keys = task.keys + static_cast<size_t>(first) * head_dim;
  Floats sums[kCount][kPositions];
  for (auto& of_query : sums) {
    for (auto& sum : of_query) sum = V::zero();
  }
  int f = 0;
  for (; f + V::kLanes <= head_dim; f += V::kLanes) {
    Floats key[kPositions];
    for (int p = 0; p < kPositions; ++p) key[p] = V::load(keys + p * head_dim + f);
    for (int i = 0; i < kCount; ++i) {
      const Floats query = V::load(task.queries[i] + f);
      for (int p = 0; p < kPositions; ++p) sums[i][p] = V::fma(query, key[p], sums[i][p]);
    }
  }
  for (int i = 0; i < kCount; ++i) {
    for (int p = 0; p < kPositions; ++p) {
      float sum = V::sum(sums[i][p]);
      for (int rest = f; rest < head_dim; ++rest) {
        sum += task.queries[i][rest] * keys[p * head_dim + rest];
      }
      task.weights[i * kChunk + first + p] = sum;
    }
  }
}

// mixed[i] = sum over positions of weights[i][p] value p, for kVectors vectors of features.
template <typename V, int kCount, int kVectors>
void mix_rows(const AttendTask& task, int begin, int end, int f) {
  using Floats = typename V::Floats;
  Floats sums[kCount][kVectors];
  for (auto& of_query : sums) {
    for (auto& part : of_query) part = V::zero();
  }
  for (int p = begin; p < end; ++p) {
    const float* value = task.values + static_cast<size_t>(p) * task.head_dim + f;
    prefetch(value + static_cast<size_t>(kRowsAhead) * task.head_dim);
    Floats v[kVectors];
    for (int part = 0; part < kVectors; ++part) v[part] = V::load(value + part * V::kLanes);
    for (int i = 0; i < kCount; ++i) {
      const Floats weight = V::set(task.weights[i * kChunk + p]);
      for (int part = 0; part < kVectors; ++part) {
        sums[i][part] = V::fma(weight, v[part], sums[i][part]);
      }
    }
  }
  for (int i = 0; i < kCount; ++i) {
    for (int part = 0; part < kVectors; ++part) {
      V::store(task.mixed[i] + f + part * V::kLanes, sums[i][part]);
    }
  }
}

template <typename V, int kCount>
void attend_some_rows(AttendTask& task) {
  const int head_dim = task.head_dim;
  int begin = task.begin[0], end = task.end[0];
  for (int i = 1; i < kCount; ++i) {
    begin = task.begin[i] < begin ? task.begin[i] : begin;
    end = task.end[i] > end ? task.end[i] : end;
  }
  int p = begin;
  for (; p + 2 <= end; p += 2) {
    for (int row = p; row < p + 2; ++row) {
      const int ahead = row + kRowsAhead;
      prefetch_row(ahead < end ? task.keys + static_cast<size_t>(ahead) * head_dim
                               : task.values + static_cast<size_t>(begin + ahead - end) * head_dim,
                   head_dim);
    }
    score_rows<V, kCount, 2>(task, p);
  }
  if (p < end) score_rows<V, kCount, 1>(task, p);
  soften<V>(task);
  int f = 0;
  for (; f + 2 * V::kLanes <= head_dim; f += 2 * V::kLanes) {
    mix_rows<V, kCount, 2>(task, begin, end, f);
  }
  for (; f + V::kLanes <= head_dim; f += V::kLanes) mix_rows<V, kCount, 1>(task, begin, end, f);
  for (int i = 0; i < kCount; ++i) {
    for (int rest = f; rest < value_width(head_dim); ++rest) {
      float sum = 0;
      for (int row = begin; rest < head_dim && row < end; ++row) {
        sum += task.weights[i * kChunk + row] *
               task.values[static_cast<size_t>(row) * head_dim + rest];
      }
      task.mixed[i][rest] = sum;
    }
  }
}

template <typename V>
void attend_rows(AttendTask& task) {
  switch (task.count) {
    case 1: attend_some_rows<V, 1>(task); break;
    case 2: attend_some_rows<V, 2>(task); break;
    case 3: attend_some_rows<V, 3>(task); break;
    case 4: attend_some_rows<V, 4>(task); break;
    case 5: attend_some_rows<V, 5>(task); break;
    default: attend_some_rows<V, 6>(task);
  }
}

}  // namespace mobilemoe
