// Exponential, norm, SwiGLU and router. Templates of the loops (vectors_avx2.h).
#pragma once

#include "prefetch.h"

namespace mobilemoe {

// exp(x): 2^n times a polynomial in the rest (Cephes' coefficients), relative error 2e-7; 0 below
// -87.3 and at most exp(88.7). kNotAbove0: x is not above 0, so that 2^n is a normal number.
template <typename V, bool kNotAbove0 = false>
inline typename V::Floats exponential(typename V::Floats x) {
  using Floats = typename V::Floats;
  constexpr float kLow = -87.336544f, kHigh = 88.72283f;
  Floats inside = V::max(V::set(kLow), x);
  if (!kNotAbove0) inside = V::min(V::set(kHigh), inside);
  const typename V::Ints n = V::round(V::mul(inside, V::set(1.44269504f)));
  Floats r = V::fnma(V::to_floats(n), V::set(0.693359375f), inside);
  r = V::fnma(V::to_floats(n), V::set(-2.12194440e-4f), r);
  Floats p = V::set(1.9875691500e-4f);
  p = V::fma(p, r, V::set(1.3981999507e-3f));
  p = V::fma(p, r, V::set(8.3334519073e-3f));
  p = V::fma(p, r, V::set(4.1665795894e-2f));
  p = V::fma(p, r, V::set(1.6666665459e-1f));
  p = V::fma(p, r, V::set(5.0000001201e-1f));
  p = V::add(V::fma(V::mul(r, r), p, r), V::set(1.0f));
  p = kNotAbove0 ? V::times_normal_power_of_two(p, n) : V::times_power_of_two(p, n);
  return V::zero_below(p, x, kLow);
}

// Kernels::rms_norm.
template <typename V>
void rms_norm(const float* x, const float* weight, int width, float eps, float* y) {
  typename V::Floats squares = V::zero();
  int i = 0;
  for (; i + 8 <= width; i += 8) squares = V::fma(V::load(x + i), V::load(x + i), squares);
  float sum = V::sum(squares);
  for (int rest = i; rest < width; ++rest) sum += x[rest] * x[rest];
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(width) + eps);
  for (i = 0; i + 8 <= width; i += 8) {
    typename V::Floats v = V::mul(V::load(x + i), V::set(scale));
    if (weight != nullptr) v = V::mul(v, V::load(weight + i));
    V::store(y + i, v);
  }
  for (; i < width; ++i) y[i] = x[i] * scale * (weight == nullptr ? 1.0f : weight[i]);
}

// Kernels::swiglu. Widths are multiples of 8.
template <typename V>
void swiglu(float* gate, const float* up, int width) {
  for (int i = 0; i < width; i += 8) {
    const typename V::Floats g = V::load(gate + i);
    const typename V::Floats e = exponential<V>(V::sub(V::zero(), g));
    const typename V::Floats silu = V::div(g, V::add(V::set(1.0f), e));
    V::store(gate + i, V::mul(silu, V::load(up + i)));
  }
}

// Kernels::router. Columns are multiples of 32; four sums of eight lanes hide the latency of the
// addition.
template <typename V>
void router(const float* x, const uint8_t* weight, int rows, int columns, float* y) {
  for (int row = 0; row < rows; ++row) {
    const uint8_t* bytes = weight + static_cast<size_t>(row) * columns * sizeof(float);
    typename V::Floats sums[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
    for (int i = 0; i < columns; i += 32) {
      for (int part = 0; part < 4; ++part) {
        const int at = i + part * 8;
        sums[part] =
            V::fma(V::load_bytes(bytes + at * sizeof(float)), V::load(x + at), sums[part]);
      }
      prefetch(bytes + i * sizeof(float) + kPrefetchBytes);
      prefetch(bytes + i * sizeof(float) + kPrefetchBytes + kLine);
    }
    y[row] = V::sum(V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3])));
  }
}

}  // namespace mobilemoe
