#include "products_portable.h"

#include <cmath>
#include <limits>

#include "bytes.h"

namespace mobilemoe {
namespace portable {
namespace {

size_t no_scratch(int, int) { return 0; }
size_t no_scratch(int, int, int) { return 0; }
size_t float_bytes(int width) { return static_cast<size_t>(width) * sizeof(float); }

void copy_floats(const float* x, int width, bool, uint8_t* prepared) {
  std::memcpy(prepared, x, float_bytes(width));
}

// The codes of a group of 16 bytes, in their order.
void unpack_group(const uint8_t* bytes, int* codes) {
  for (int i = 0; i < kGroup / 2; ++i) {
    codes[2 * i] = code_of(bytes[i] & 15u);
    codes[2 * i + 1] = code_of(bytes[i] >> 4);
  }
}

// A rounded x / step, never beyond +-limit.
int round_to(float x, float inverse_step, int limit) {
  const float scaled = x * inverse_step;
  if (scaled <= static_cast<float>(-limit)) return -limit;
  if (scaled >= static_cast<float>(limit)) return limit;
  return static_cast<int>(std::lrint(scaled));
}

// ---- exact ----

void linear_exact(const LinearTask& task) {
  const int groups = task.columns / kGroup;
  int codes[kGroup];
  for (int t = 0; t < task.count; ++t) {
    const auto* x = reinterpret_cast<const float*>(task.prepared + t * task.prepared_stride);
    for (int row = task.begin; row < task.end; ++row) {
      const size_t group_0 = static_cast<size_t>(row) * groups;
      float sum = 0;
      for (int g = 0; g < groups; ++g) {
        unpack_group(task.codes + (group_0 + g) * (kGroup / 2), codes);
        float part = 0;
        for (int i = 0; i < kGroup; ++i) part += static_cast<float>(codes[i]) * x[g * kGroup + i];
        sum += part * load_float16(task.scales + (group_0 + g) * 2);
      }
      task.y[t * task.y_stride + row] = sum;
    }
  }
}

void expert_exact(const ExpertTask& task) {
  const int row_groups = task.outputs / kGroup;
  int codes[kGroup];
  for (int i = 0; i < task.count; ++i) {
    const auto* x =
        reinterpret_cast<const float*>(task.prepared + task.rows[i] * task.prepared_stride);
    for (int g = task.begin / kGroup; g < task.end / kGroup; ++g) {
      float sums[kGroup] = {};
      for (int r = 0; r < task.inputs; ++r) {
        const size_t group = static_cast<size_t>(r) * row_groups + g;
        unpack_group(task.codes + group * (kGroup / 2), codes);
        const float scaled = x[r] * load_float16(task.scales + group * 2);
        for (int c = 0; c < kGroup; ++c) sums[c] += static_cast<float>(codes[c]) * scaled;
      }
      std::memcpy(task.y + i * task.y_stride + g * kGroup, sums, sizeof sums);
    }
  }
}

// ---- quantised: activations rounded to +-kLimit per 32 values, sums in integers ----

// One prepared token: int32 [columns], then its steps, float32 [columns / 32].
size_t quantised_bytes(int columns) { return float_bytes(columns) + float_bytes(columns / kGroup); }

template <int kLimit>
float quantise_group(const float* x, int32_t* q) {
  float largest = 0;
  for (int i = 0; i < kGroup; ++i) largest = std::fabs(x[i]) > largest ? std::fabs(x[i]) : largest;
  // What is not finite has no integer: all sums with it are to be NaN.
  bool finite = true;
  for (int i = 0; i < kGroup; ++i) finite = finite && std::isfinite(x[i]);
  // Not 1 / step: for the smallest numbers that would be infinite.
  const float inverse = largest > 0 ? static_cast<float>(kLimit) / largest : 0.0f;
  const bool usable = finite && inverse <= 3e38f;
  for (int i = 0; i < kGroup; ++i) q[i] = usable ? round_to(x[i], inverse, kLimit) : 0;
  if (!finite) return std::numeric_limits<float>::quiet_NaN();
  return usable ? largest / static_cast<float>(kLimit) : 0.0f;
}

template <int kLimit>
void prepare_quantised(const float* x, int columns, bool, uint8_t* prepared) {
  auto* q = reinterpret_cast<int32_t*>(prepared);
  auto* steps = reinterpret_cast<float*>(prepared + float_bytes(columns));
  for (int g = 0; g < columns / kGroup; ++g) {
    steps[g] = quantise_group<kLimit>(x + g * kGroup, q + g * kGroup);
  }
}

void linear_quantised(const LinearTask& task) {
  const int groups = task.columns / kGroup;
  int codes[kGroup];
  for (int t = 0; t < task.count; ++t) {
    const uint8_t* prepared = task.prepared + t * task.prepared_stride;
    const auto* q = reinterpret_cast<const int32_t*>(prepared);
    const auto* steps = reinterpret_cast<const float*>(prepared + float_bytes(task.columns));
    for (int row = task.begin; row < task.end; ++row) {
      const size_t group_0 = static_cast<size_t>(row) * groups;
      float sum = 0;
      for (int g = 0; g < groups; ++g) {
        unpack_group(task.codes + (group_0 + g) * (kGroup / 2), codes);
        int32_t part = 0;
        for (int i = 0; i < kGroup; ++i) part += codes[i] * q[g * kGroup + i];
        sum += static_cast<float>(part) * steps[g] * load_float16(task.scales + (group_0 + g) * 2);
      }
      task.y[t * task.y_stride + row] = sum;
    }
  }
}

// The scale of an expert's weight depends on the input: it is multiplied into the activation, which
// is then rounded, per 32 inputs and group of outputs.
template <int kLimit>
void expert_quantised(const ExpertTask& task) {
  const int row_groups = task.outputs / kGroup;
  int codes[kGroup];
  int32_t q[kGroup];
  float scaled[kGroup];
  for (int i = 0; i < task.count; ++i) {
    const auto* x =
        reinterpret_cast<const float*>(task.prepared + task.rows[i] * task.prepared_stride);
    for (int g = task.begin / kGroup; g < task.end / kGroup; ++g) {
      float sums[kGroup] = {};
      for (int r = 0; r < task.inputs; r += kGroup) {
        for (int j = 0; j < kGroup; ++j) {
          const size_t group = static_cast<size_t>(r + j) * row_groups + g;
          scaled[j] = x[r + j] * load_float16(task.scales + group * 2);
        }
        const float step = quantise_group<kLimit>(scaled, q);
        int32_t parts[kGroup] = {};
        for (int j = 0; j < kGroup; ++j) {
          const size_t group = static_cast<size_t>(r + j) * row_groups + g;
          unpack_group(task.codes + group * (kGroup / 2), codes);
          for (int c = 0; c < kGroup; ++c) parts[c] += codes[c] * q[j];
        }
        for (int c = 0; c < kGroup; ++c) sums[c] += static_cast<float>(parts[c]) * step;
      }
      std::memcpy(task.y + i * task.y_stride + g * kGroup, sums, sizeof sums);
    }
  }
}

template <int kLimit>
constexpr Products quantised() {
  return {quantised_bytes, prepare_quantised<kLimit>, linear_quantised,         no_scratch, 8,
          float_bytes,     copy_floats,               expert_quantised<kLimit>, no_scratch};
}

}  // namespace

const Products kExact = {float_bytes, copy_floats, linear_exact, no_scratch, 8,
                         float_bytes, copy_floats, expert_exact, no_scratch};
const Products kInt16 = quantised<32767>();
const Products kInt8 = quantised<127>();

}  // namespace portable
}  // namespace mobilemoe
