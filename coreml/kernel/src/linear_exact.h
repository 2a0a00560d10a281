// Linears in float32. A template of the loops (vectors_avx2.h).
//
// A row's codes are widened to floats and multiplied by their scales, which is exact; each output is
// one sum of eight lanes over the columns, in one order for any number of tokens.
#pragma once

#include "kernels.h"
#include "prefetch.h"

namespace mobilemoe {

// The 32 weights of a group that has one scale: even columns in 0 and 1, odd ones in 2 and 3.
template <typename V>
inline void unpack_weights(const uint8_t* codes, const uint8_t* scale,
                           typename V::Floats* weights) {
  const typename V::Floats factor = V::set(V::scale_of(scale));
  V::unpack(codes, weights);
  for (int i = 0; i < 4; ++i) weights[i] = V::mul(weights[i], factor);
}

template <typename V>
class LinearExact {
  using Floats = typename V::Floats;
  static constexpr int kRows = 8;    // of one token alone
  static constexpr int kTokens = 4;  // of a tile of many
  static constexpr int kTileRows = 2;

 public:
  static size_t bytes(int columns) { return columns * sizeof(float); }

  // Columns of a group in the order in which V::unpack has them.
  static void prepare(const float* x, int columns, bool, uint8_t* prepared) {
    auto* to = reinterpret_cast<float*>(prepared);
    for (int g = 0; g < columns; g += kGroup) {
      for (int i = 0; i < kGroup / 2; ++i) {
        to[g + i] = x[g + 2 * i];
        to[g + kGroup / 2 + i] = x[g + 2 * i + 1];
      }
    }
  }

  static size_t scratch_bytes(int columns, int count) {
    return count == 1 ? 0 : static_cast<size_t>(columns) * kRows * sizeof(float);
  }

  static void multiply(const LinearTask& task) {
    task.single ? multiply_one(task) : multiply_many(task);
  }

 private:
  static void multiply_one(const LinearTask& task) {
    const int groups = task.columns / kGroup;
    const auto* x = reinterpret_cast<const float*>(task.prepared);
    const Ahead ahead(task.codes + static_cast<size_t>(task.end) * groups * (kGroup / 2),
                      task.next_codes);
    for (int row = task.begin; row < task.end; row += kRows) {
      const int rows = task.end - row < kRows ? task.end - row : kRows;
      const uint8_t* first = task.codes + static_cast<size_t>(row) * groups * (kGroup / 2);
      Floats sums[kRows];
      for (int r = 0; r < kRows; ++r) sums[r] = V::zero();
      for (int g = 0; g < groups; ++g) {
        Floats v[4];
        for (int i = 0; i < 4; ++i) v[i] = V::load(x + g * kGroup + i * 8);
        for (int r = 0; r < rows; ++r) {
          const size_t at = static_cast<size_t>(row + r) * groups + g;
          const uint8_t* codes = task.codes + at * (kGroup / 2);
          const int in_order = (g * rows + r) * (kGroup / 2);  // as if the groups lay so in memory
          if (in_order % kLine == 0) ahead(first + in_order);
          Floats w[4];
          unpack_weights<V>(codes, task.scales + at * 2, w);
          for (int i = 0; i < 4; ++i) sums[r] = V::fma(w[i], v[i], sums[r]);
        }
      }
      for (int r = 0; r < rows; ++r) task.y[row + r] = V::sum(sums[r]);
    }
  }

  // kTokenCount tokens times two unpacked rows.
  template <int kTokenCount>
  static void multiply_tile(const float* const* x, const float* weights, int columns,
                            float (*y)[kTileRows]) {
    Floats sums[kTokenCount][kTileRows];
    for (auto& token : sums) {
      for (auto& sum : token) sum = V::zero();
    }
    for (int i = 0; i < columns; i += 8) {
      const Floats w0 = V::load(weights + i), w1 = V::load(weights + columns + i);
      for (int t = 0; t < kTokenCount; ++t) {
        const Floats v = V::load(x[t] + i);
        sums[t][0] = V::fma(w0, v, sums[t][0]);
        sums[t][1] = V::fma(w1, v, sums[t][1]);
      }
    }
    for (int t = 0; t < kTokenCount; ++t) {
      for (int r = 0; r < kTileRows; ++r) y[t][r] = V::sum(sums[t][r]);
    }
  }

  static void multiply_many(const LinearTask& task) {
    const int groups = task.columns / kGroup;
    auto* weights = reinterpret_cast<float*>(task.scratch);  // [kRows][columns]
    for (int row = task.begin; row < task.end; row += kRows) {
      const int rows = task.end - row < kRows ? task.end - row : kRows;
      for (int r = 0; r < kRows; ++r) {
        float* to = weights + static_cast<size_t>(r) * task.columns;
        // A tile has two rows: behind the last there is one more to read, whose sums are dropped.
        const size_t first = static_cast<size_t>(row + (r < rows ? r : 0)) * groups;
        for (int g = 0; g < groups; ++g, to += kGroup) {
          Floats w[4];
          unpack_weights<V>(task.codes + (first + g) * (kGroup / 2), task.scales + (first + g) * 2, w);
          for (int i = 0; i < 4; ++i) V::store(to + i * 8, w[i]);
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
};

}  // namespace mobilemoe
