// Rounded activations as signed bytes, for products of bytes: one byte each, or for int16 two, 256 times
// the high one plus the low one. A product of 16 bits by 4 is two products of bytes then, exactly, of
// which a CPU does four to eight times as many as of 16 bits. A template of the loops (vectors_avx2.h).
#pragma once

#include "rounding.h"

namespace mobilemoe {

// Both bytes are within -128 to 127.
constexpr float kTwoByteLimit = 127 * 256 + 127;

template <int kBytes>
constexpr float byte_limit() {
  return kBytes == 1 ? kInt8Limit : kTwoByteLimit;
}

// Byte `byte` of a value, the highest first. The low byte is signed, which the high one makes up for.
template <int kBytes>
inline int8_t byte_of(int q, int byte) {
  return static_cast<int8_t>(byte == kBytes - 1 ? q : (q + 128) >> 8);
}

// 32 values as [kBytes][even columns, odd columns][16], as codes come out of their bytes.
template <int kBytes>
inline void split_bytes(const int16_t* q, int8_t* x) {
  for (int byte = 0; byte < kBytes; ++byte, x += kGroup) {
    for (int i = 0; i < kGroup / 2; ++i) {
      x[i] = byte_of<kBytes>(q[2 * i], byte);
      x[kGroup / 2 + i] = byte_of<kBytes>(q[2 * i + 1], byte);
    }
  }
}

}  // namespace mobilemoe
