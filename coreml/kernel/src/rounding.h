// Rounding of activations to integers, 32 at a time. A template of the loops (vectors_avx2.h).
#pragma once

#include "bytes.h"

namespace mobilemoe {

// Of the rounded activations.
constexpr float kInt8Limit = 127.0f, kInt16Limit = 32767.0f;

template <typename V>
inline float largest_of_group(const float* x) {
  typename V::Floats largest = V::absolute(V::load(x));
  for (int i = 8; i < kGroup; i += 8) largest = V::larger_size(largest, V::load(x + i));
  return V::largest_size(largest);
}

// q = x / step, at most `limit`; returns the step. Zeros where limit / largest is no number to
// multiply by. A value that is not finite has no integer: the step is NaN then, and all sums with it.
template <typename V>
inline float round_group(const float* x, float limit, int16_t* q) {
  const float largest = largest_of_group<V>(x);
  const float inverse_step = limit / largest;
  const typename V::Floats inverse = V::set(inverse_step <= 3e38f ? inverse_step : 0.0f);
  for (int i = 0; i < kGroup; i += 16) {
    V::store_words(q + i, V::round(V::mul(V::load(x + i), inverse)),
                   V::round(V::mul(V::load(x + i + 8), inverse)));
  }
  return largest / limit + (largest - largest);
}

}  // namespace mobilemoe
