// Linears over many rows, cut into tasks.
#pragma once

#include <initializer_list>

#include "bytes.h"
#include "prefetch.h"
#include "runtime.h"

namespace mobilemoe {

struct Linear {
  const uint8_t* codes = nullptr;
  const uint8_t* scales = nullptr;
  int rows = 0, columns = 0;
};

// Activations as a product reads them.
struct Prepared {
  uint8_t* data = nullptr;
  size_t stride = 0;
};

// Rows per task: long enough to pay for taking it, short enough to share evenly.
inline Cut cut_rows(const Products& products, int rows, int columns, int count) {
  constexpr int kBytesAlone = 24 * 1024;  // of codes, for one token: about 2 microseconds
  constexpr int kTokenRows = 1024;        // for many tokens: rows x tokens
  if (rows == 0) return {0, 1};
  int chunk;
  if (count == 1) {
    chunk = kBytesAlone / (columns / 2);
  } else {
    chunk = kTokenRows / count;
  }
  const int tile = count == 1 ? 8 : products.linear_rows;
  chunk = chunk < tile ? tile : chunk / tile * tile;
  return {rows, chunk};
}

// Asks for the beginning of what a thread will read of a linear, for one token: its memory comes while
// threads wait for each other and while little phases run, which read none.
inline void ask_for_share(const Runtime& runtime, const Linear& weight, int thread) {
  if (weight.rows == 0) return;
  const Cut cut = cut_rows(runtime.products, weight.rows, weight.columns, 1);
  const size_t row = cut.begin(runtime.pool.share_begin(cut.tasks(), thread));
  prefetch_stretch(weight.codes + row * (weight.columns / 2),
                   weight.scales + row * (weight.columns / kGroup) * 2);
}

inline void multiply_rows(const Products& products, const Linear& weight, const Prepared& x,
                          int count, int begin, int end, float* y, size_t y_stride,
                          uint8_t* scratch) {
  products.linear({x.data, x.stride, count, count == 1, weight.columns, weight.codes,
                   weight.scales, begin, end, y, y_stride, scratch, nullptr, nullptr});
}

inline void prepare_linear(Runtime& runtime, const float* x, int count, int columns,
                           const Prepared& prepared) {
  const Cut cut = cut_tokens(count);
  runtime.pool.run(cut.tasks(), [&](int task, int) {
    for (int t = cut.begin(task); t < cut.end(task); ++t) {
      runtime.products.prepare_linear(x + static_cast<size_t>(t) * columns, columns, count == 1,
                                      prepared.data + t * prepared.stride);
    }
  });
}

// `scratch`: one piece of `scratch_stride` bytes per thread. `next`: the linears that are
// read after this one.
inline void linear(Runtime& runtime, const Linear& weight, const Prepared& x, int count, float* y,
                   uint8_t* scratch, size_t scratch_stride, std::initializer_list<const Linear*> next = {}) {
  const Cut cut = cut_rows(runtime.products, weight.rows, weight.columns, count);
  runtime.pool.run(cut.tasks(), [&](int task, int thread) {
    multiply_rows(runtime.products, weight, x, count, cut.begin(task), cut.end(task), y,
                  weight.rows, scratch + thread * scratch_stride);
    int owner;
    if (count == 1 && runtime.pool.ends_share(cut.tasks(), task, &owner)) {
      for (const Linear* weight_after : next) ask_for_share(runtime, *weight_after, owner);
    }
  });
}

// What attention multiplies its input with: y [count] rows of q, k and v one after the other, `y_stride`
// floats apart. `o` is read after them.
struct QkvLinears {
  const Linear& q;
  const Linear& k;
  const Linear& v;
  const Linear& o;
};

inline void multiply_qkv(Runtime& runtime, const QkvLinears& weights, const Prepared& x, int count,
                         float* y, size_t y_stride, uint8_t* scratch, size_t scratch_stride) {
  const Cut q_rows = cut_rows(runtime.products, weights.q.rows, weights.q.columns, count);
  const Cut kv_rows = cut_rows(runtime.products, weights.k.rows, weights.k.columns, count);
  const auto multiply = [&](const Linear& weight, const Cut& cut, int task, float* to, int thread) {
    multiply_rows(runtime.products, weight, x, count, cut.begin(task), cut.end(task), to, y_stride,
                  scratch + thread * scratch_stride);
  };
  float* k = y + weights.q.rows;
  float* v = k + weights.k.rows;
  runtime.pool.run(
      q_rows.tasks(), [&](int task, int thread) { multiply(weights.q, q_rows, task, y, thread); },
      2 * kv_rows.tasks(),
      [&](int task, int thread) {
        if (task < kv_rows.tasks()) {
          multiply(weights.k, kv_rows, task, k, thread);
        } else {
          multiply(weights.v, kv_rows, task - kv_rows.tasks(), v, thread);
        }
        int owner;
        if (count == 1 && runtime.pool.ends_share(2 * kv_rows.tasks(), task, &owner)) {
          ask_for_share(runtime, weights.o, owner);
        }
      });
}

}  // namespace mobilemoe
