// The code path of every CPU: norms, SwiGLU, router and attention in plain C++.
#include <cmath>
#include <limits>

#include "bytes.h"
#include "kernels.h"
#include "products_portable.h"

namespace mobilemoe {
namespace {

bool always() { return true; }

void rms_norm(const float* x, const float* weight, int width, float eps, float* y) {
  double squares = 0;
  for (int i = 0; i < width; ++i) squares += static_cast<double>(x[i]) * x[i];
  const auto scale = static_cast<float>(1 / std::sqrt(squares / width + eps));
  for (int i = 0; i < width; ++i) y[i] = x[i] * scale * (weight == nullptr ? 1.0f : weight[i]);
}

void swiglu(float* gate, const float* up, int width) {
  for (int i = 0; i < width; ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
}

void router(const float* x, const uint8_t* weight, int rows, int columns, float* y) {
  for (int row = 0; row < rows; ++row) {
    const uint8_t* bytes = weight + static_cast<size_t>(row) * columns * sizeof(float);
    float sums[8] = {};  // of every eighth product: less rounding than one sum
    for (int i = 0; i < columns; ++i) sums[i % 8] += x[i] * load<float>(bytes + i * sizeof(float));
    y[row] = ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
  }
}

float widen(float value) { return value; }
float widen(uint16_t value) { return float_from_float16(value); }
float widen(int8_t value) { return value; }

template <typename T>
void attend(AttendTask& task) {
  const int head_dim = task.head_dim, width = value_width(head_dim);
  const size_t stride = block_bytes(sizeof(T) == 4   ? CacheType::float32
                                    : sizeof(T) == 2 ? CacheType::float16
                                                     : CacheType::int8,
                                    head_dim);
  const size_t elements = static_cast<size_t>(kBlock) * (head_dim + width);
  for (int i = 0; i < task.count; ++i) {
    float* weights = task.weights + static_cast<size_t>(i) * kChunk;
    float largest = -std::numeric_limits<float>::infinity();
    for (int p = task.begin[i]; p < task.end[i]; ++p) {
      const uint8_t* block = task.block + p / kBlock * stride;
      const auto* keys = reinterpret_cast<const T*>(block) + p % kBlock;
      float score = 0;
      for (int f = 0; f < head_dim; ++f) score += task.queries[i][f] * widen(keys[f * kBlock]);
      if (sizeof(T) == 1) {
        score *= reinterpret_cast<const float*>(block + elements)[p % kBlock];
      }
      weights[p] = score;
      largest = score > largest ? score : largest;
    }
    float* mixed = task.mixed[i];
    float sum = 0;
    for (int f = 0; f < width; ++f) mixed[f] = 0;
    for (int p = task.begin[i]; p < task.end[i]; ++p) {
      const uint8_t* block = task.block + p / kBlock * stride;
      const auto* values =
          reinterpret_cast<const T*>(block) + kBlock * head_dim + p % kBlock * width;
      float weight = std::exp(weights[p] - largest);
      sum += weight;
      if (sizeof(T) == 1) {
        weight *= reinterpret_cast<const float*>(block + elements)[kBlock + p % kBlock];
      }
      for (int f = 0; f < width; ++f) mixed[f] += weight * widen(values[f]);
    }
    task.largest[i] = largest;
    task.sum[i] = sum;
  }
}

}  // namespace

const Kernels kPortable = {
    "portable",
    always,
    rms_norm,
    swiglu,
    router,
    {&portable::kExact, &portable::kInt16, &portable::kInt8},
    {attend<float>, attend<uint16_t>, attend<int8_t>},
};

}  // namespace mobilemoe
