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

// Where a position's features lie, and what they are multiplied with.
template <typename T>
class Blocks {
 public:
  explicit Blocks(const AttendTask& task)
      : first_(task.block),
        head_dim_(task.head_dim),
        width_(value_width(task.head_dim)),
        stride_(block_bytes(sizeof(T) == 4   ? CacheType::float32
                            : sizeof(T) == 2 ? CacheType::float16
                                             : CacheType::int8,
                            task.head_dim)) {}

  float key(int p, int f) const { return float_of(elements(p)[f * kBlock + p % kBlock]); }
  float value(int p, int f) const {
    return float_of(elements(p)[kBlock * head_dim_ + p % kBlock * width_ + f]);
  }
  float key_scale(int p) const { return scale(p, 0); }
  float value_scale(int p) const { return scale(p, kBlock); }

 private:
  const T* elements(int p) const {
    return reinterpret_cast<const T*>(first_ + p / kBlock * stride_);
  }
  float scale(int p, int first) const {
    if (sizeof(T) != 1) return 1;
    return reinterpret_cast<const float*>(elements(p) + kBlock * (head_dim_ + width_))[first + p % kBlock];
  }

  const uint8_t* first_;
  int head_dim_, width_;
  size_t stride_;
};

template <typename T>
class Rows {
 public:
  explicit Rows(const AttendTask& task)
      : keys_(static_cast<const T*>(task.keys)),
        values_(static_cast<const T*>(task.values)),
        head_dim_(task.head_dim) {}

  float key(int p, int f) const { return float_of(keys_[p * head_dim_ + f]); }
  float value(int p, int f) const { return float_of(values_[p * head_dim_ + f]); }
  float key_scale(int) const { return 1; }
  float value_scale(int) const { return 1; }

 private:
  const T* keys_;
  const T* values_;
  size_t head_dim_;
};

template <typename Cache>
void attend(AttendTask& task) {
  const Cache cache(task);
  const int head_dim = task.head_dim, width = value_width(head_dim);
  for (int i = 0; i < task.count; ++i) {
    float* weights = task.weights + static_cast<size_t>(i) * kChunk;
    float largest = -std::numeric_limits<float>::infinity();
    for (int p = task.begin[i]; p < task.end[i]; ++p) {
      float score = 0;
      for (int f = 0; f < head_dim; ++f) score += task.queries[i][f] * cache.key(p, f);
      score *= cache.key_scale(p);
      weights[p] = score;
      largest = score > largest ? score : largest;
    }
    float* mixed = task.mixed[i];
    float sum = 0;
    for (int f = 0; f < width; ++f) mixed[f] = 0;
    for (int p = task.begin[i]; p < task.end[i]; ++p) {
      float weight = std::exp(weights[p] - largest);
      sum += weight;
      weight *= cache.value_scale(p);
      for (int f = 0; f < head_dim; ++f) mixed[f] += weight * cache.value(p, f);
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
    {attend<Blocks<float>>, attend<Blocks<uint16_t>>, attend<Blocks<int8_t>>},
    {attend<Rows<float>>, attend<Rows<uint16_t>>},
};

}  // namespace mobilemoe
