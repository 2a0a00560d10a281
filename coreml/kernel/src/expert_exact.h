// Routed experts in float32. A template of the loops (vectors_avx2.h).
//
// Lanes are columns; each output is one chain of additions over the inputs, in their order, for any
// number of tokens.
#pragma once

#include "kernels.h"
#include "linear_exact.h"
#include "prefetch.h"

namespace mobilemoe {

template <typename V>
class ExpertExact {
  using Floats = typename V::Floats;
  static constexpr int kRows = 8;     // whole rows walked together for one token: contiguous memory
  static constexpr int kPanel = 128;  // inputs that are unpacked together for many: 16 kB of floats
  static constexpr int kTokens = 3;   // of a tile: 3 x 4 sums, 4 weights

 public:
  static size_t bytes(int inputs) { return inputs * sizeof(float); }
  static void prepare(const float* x, int inputs, bool, uint8_t* prepared) {
    std::memcpy(prepared, x, bytes(inputs));
  }

  static size_t scratch_bytes(int, int outputs, int count) {
    const size_t one = outputs;
    const size_t many = static_cast<size_t>(kPanel + count) * kGroup;
    return (one > many ? one : many) * sizeof(float);
  }

  static void multiply(const ExpertTask& task) {
    task.single ? multiply_one(task) : multiply_many(task);
  }

 private:
  static void store_group(const float* sums, float* y) {
    V::store_columns(sums, sums + 16, y);
    V::store_columns(sums + 8, sums + 24, y + 16);
  }

  static void multiply_one(const ExpertTask& task) {
    const auto* x =
        reinterpret_cast<const float*>(task.prepared + task.rows[0] * task.prepared_stride);
    auto* sums = reinterpret_cast<float*>(task.scratch);  // [outputs]
    std::memset(sums + task.begin, 0, (task.end - task.begin) * sizeof(float));
    const int row_groups = task.outputs / kGroup;
    const Ahead ahead(task.codes + static_cast<size_t>(task.inputs) * row_groups * (kGroup / 2),
                      task.next_codes);
    for (int r = 0; r < task.inputs; r += kRows) {
      const uint8_t* first = task.codes + static_cast<size_t>(r) * row_groups * (kGroup / 2);
      for (int g = task.begin / kGroup; g < task.end / kGroup; ++g) {
        Floats group[4];
        for (int i = 0; i < 4; ++i) group[i] = V::load(sums + g * kGroup + i * 8);
        for (int j = r; j < r + kRows; ++j) {
          const size_t at = static_cast<size_t>(j) * row_groups + g;
          const uint8_t* codes = task.codes + at * (kGroup / 2);
          // In the order of memory, as if the rows' groups lay behind each other.
          const int in_order = (g * kRows + j - r) * (kGroup / 2);
          if (in_order % kLine == 0) ahead(first + in_order);
          Floats w[4];
          unpack_weights<V>(codes, task.scales + at * 2, w);
          const Floats v = V::set(x[j]);
          for (int i = 0; i < 4; ++i) group[i] = V::fma(w[i], v, group[i]);
        }
        for (int i = 0; i < 4; ++i) V::store(sums + g * kGroup + i * 8, group[i]);
      }
    }
    for (int g = task.begin; g < task.end; g += kGroup) store_group(sums + g, task.y + g);
  }

  template <int kTokenCount>
  static void multiply_tile(const float* const* x, const float* weights, int inputs, float* sums) {
    Floats tile[kTokenCount][4];
    for (int t = 0; t < kTokenCount; ++t) {
      for (int i = 0; i < 4; ++i) tile[t][i] = V::load(sums + t * kGroup + i * 8);
    }
    for (int r = 0; r < inputs; ++r) {
      Floats w[4];
      for (int i = 0; i < 4; ++i) w[i] = V::load(weights + r * kGroup + i * 8);
      for (int t = 0; t < kTokenCount; ++t) {
        const Floats v = V::set(x[t][r]);
        for (int i = 0; i < 4; ++i) tile[t][i] = V::fma(w[i], v, tile[t][i]);
      }
    }
    for (int t = 0; t < kTokenCount; ++t) {
      for (int i = 0; i < 4; ++i) V::store(sums + t * kGroup + i * 8, tile[t][i]);
    }
  }

  static void multiply_many(const ExpertTask& task) {
    const int row_groups = task.outputs / kGroup;
    auto* panel = reinterpret_cast<float*>(task.scratch);  // [kPanel][32]
    float* sums = panel + kPanel * kGroup;                 // [count][32]
    for (int g = task.begin / kGroup; g < task.end / kGroup; ++g) {
      std::memset(sums, 0, static_cast<size_t>(task.count) * kGroup * sizeof(float));
      for (int begin = 0; begin < task.inputs; begin += kPanel) {
        const int rows = task.inputs - begin < kPanel ? task.inputs - begin : kPanel;
        for (int r = 0; r < rows; ++r) {
          const size_t at = static_cast<size_t>(begin + r) * row_groups + g;
          Floats w[4];
          unpack_weights<V>(task.codes + at * (kGroup / 2), task.scales + at * 2, w);
          for (int i = 0; i < 4; ++i) V::store(panel + r * kGroup + i * 8, w[i]);
        }
        for (int t = 0; t < task.count; t += kTokens) {
          const int tokens = task.count - t < kTokens ? task.count - t : kTokens;
          const float* x[kTokens];
          for (int i = 0; i < tokens; ++i) {
            x[i] = reinterpret_cast<const float*>(task.prepared +
                                                  task.rows[t + i] * task.prepared_stride) +
                   begin;
          }
          float* tile = sums + static_cast<size_t>(t) * kGroup;
          switch (tokens) {
            case 1: multiply_tile<1>(x, panel, rows, tile); break;
            case 2: multiply_tile<2>(x, panel, rows, tile); break;
            default: multiply_tile<3>(x, panel, rows, tile);
          }
        }
      }
      for (int t = 0; t < task.count; ++t) {
        store_group(sums + static_cast<size_t>(t) * kGroup,
                    task.y + t * task.y_stride + g * kGroup);
      }
    }
  }
};

// Both products.
template <typename V>
constexpr Products exact_products() {
  return {LinearExact<V>::bytes,    LinearExact<V>::prepare,       LinearExact<V>::multiply,
          LinearExact<V>::scratch_bytes, 8,                        ExpertExact<V>::bytes,
          ExpertExact<V>::prepare,  ExpertExact<V>::multiply,      ExpertExact<V>::scratch_bytes};
}

}  // namespace mobilemoe
