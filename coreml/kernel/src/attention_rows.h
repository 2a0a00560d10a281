// Attention over a cache of rows, one position after the other (RowCache). A template of the loops
// (vectors_avx2.h): scores are sums over features, two positions at a time. Memory is asked for in the
// order of reading: the keys of a chunk, its values, the keys of the next.
#pragma once

#include "attention_blocks.h"

namespace mobilemoe {

// What is asked for ahead, in positions: 8 kB of 64 features.
constexpr int kRowsAhead = 32;

// The features of a position; T: of the cache's keys and values.
template <typename T>
const T* row_of(const void* rows, int position, int head_dim) {
  return static_cast<const T*>(rows) + static_cast<size_t>(position) * head_dim;
}

// weights[i][p] = query i . key p, for kPositions positions from `first` on.
template <typename V, typename T, int kCount, int kPositions>
void score_rows(const AttendTask& task, int first) {
  using Floats = typename V::Floats;
  const int head_dim = task.head_dim;
  const T* keys = row_of<T>(task.keys, first, head_dim);
  Floats sums[kCount][kPositions];
  for (auto& of_query : sums) {
    for (auto& sum : of_query) sum = V::zero();
  }
  int f = 0;
  for (; f + V::kLanes <= head_dim; f += V::kLanes) {
    Floats key[kPositions];
    for (int p = 0; p < kPositions; ++p) key[p] = V::widen(keys + p * head_dim + f);
    for (int i = 0; i < kCount; ++i) {
      const Floats query = V::load(task.queries[i] + f);
      for (int p = 0; p < kPositions; ++p) sums[i][p] = V::fma(query, key[p], sums[i][p]);
    }
  }
  for (int i = 0; i < kCount; ++i) {
    for (int p = 0; p < kPositions; ++p) {
      float sum = V::sum(sums[i][p]);
      for (int rest = f; rest < head_dim; ++rest) {
        sum += task.queries[i][rest] * float_of(keys[p * head_dim + rest]);
      }
      task.weights[i * kChunk + first + p] = sum;
    }
  }
}

// mixed[i] = sum over positions of weights[i][p] value p, for kVectors vectors of features; the first of
// them ask ahead.
template <typename V, typename T, int kCount, int kVectors>
void mix_rows(const AttendTask& task, int begin, int end, int f) {
  using Floats = typename V::Floats;
  const int head_dim = task.head_dim;
  Floats sums[kCount][kVectors];
  for (auto& of_query : sums) {
    for (auto& part : of_query) part = V::zero();
  }
  for (int p = begin; p < end; ++p) {
    const T* value = row_of<T>(task.values, p, head_dim) + f;
    if (f == 0) {
      const int ahead = p + kRowsAhead;
      const T* row = row_of<T>(ahead < end ? task.values : task.keys, ahead, head_dim);
      prefetch_row(row, head_dim * sizeof(T));
    }
    Floats v[kVectors];
    for (int part = 0; part < kVectors; ++part) v[part] = V::widen(value + part * V::kLanes);
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

template <typename V, typename T, int kCount>
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
      prefetch_row(ahead < end ? row_of<T>(task.keys, ahead, head_dim)
                               : row_of<T>(task.values, begin + ahead - end, head_dim),
                   head_dim * sizeof(T));
    }
    score_rows<V, T, kCount, 2>(task, p);
  }
  if (p < end) score_rows<V, T, kCount, 1>(task, p);
  soften<V>(task);
  int f = 0;
  for (; f + 4 * V::kLanes <= head_dim; f += 4 * V::kLanes) {
    mix_rows<V, T, kCount, 4>(task, begin, end, f);
  }
  for (; f + V::kLanes <= head_dim; f += V::kLanes) mix_rows<V, T, kCount, 1>(task, begin, end, f);
  for (int i = 0; i < kCount; ++i) {
    for (int rest = f; rest < value_width(head_dim); ++rest) {
      float sum = 0;
      for (int row = begin; rest < head_dim && row < end; ++row) {
        sum += task.weights[i * kChunk + row] * float_of(row_of<T>(task.values, row, head_dim)[rest]);
      }
      task.mixed[i][rest] = sum;
    }
  }
}

template <typename V, typename T>
void attend_rows(AttendTask& task) {
  switch (task.count) {
    case 1: attend_some_rows<V, T, 1>(task); break;
    case 2: attend_some_rows<V, T, 2>(task); break;
    case 3: attend_some_rows<V, T, 3>(task); break;
    case 4: attend_some_rows<V, T, 4>(task); break;
    case 5: attend_some_rows<V, T, 5>(task); break;
    default: attend_some_rows<V, T, 6>(task);
  }
}

}  // namespace mobilemoe
