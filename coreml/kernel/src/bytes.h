// Numbers as they lie in the caller's bytes: unaligned, little endian, half precision widened.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace mobilemoe {

constexpr int kGroup = 32;  // values that share a scale

template <typename T>
inline T load(const uint8_t* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t bits_from_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_from_bfloat16(uint16_t bits) { return float_from_bits(uint32_t{bits} << 16); }

// Exact, subnormal numbers included.
inline float float_from_float16(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
  const uint32_t rest = bits & 0x7fffu;
  if (rest >= 0x7c00u) return float_from_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  if (rest >= 0x400u) return float_from_bits(sign | ((rest << 13) + 0x38000000u));
  const float magnitude = static_cast<float>(rest) * 0x1p-24f;
  return float_from_bits(sign | bits_from_float(magnitude));
}

// Rounds to nearest, ties to even; beyond float16's range becomes infinite.
inline uint16_t float16_from_float(float value) {
  const uint32_t bits = bits_from_float(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return sign | 0x7e00u;   // NaN
  if (rest >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and above round to infinity
  if (rest < 0x38800000u) {
    // Below 2^-14: adding 0.5 leaves the rounded subnormal in the low bits of the sum.
    return static_cast<uint16_t>(
        sign | (bits_from_float(float_from_bits(rest) + 0.5f) - bits_from_float(0.5f)));
  }
  const uint32_t rounded = rest + 0xfffu + (rest >> 13 & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

// An element of a cache.
inline float float_of(float value) { return value; }
inline float float_of(uint16_t value) { return float_from_float16(value); }
inline float float_of(int8_t value) { return value; }

inline float load_float16(const uint8_t* bytes) {
  return float_from_float16(load<uint16_t>(bytes));
}

// The code of a nibble: two's complement, -8 to 7.
inline int code_of(unsigned nibble) { return static_cast<int>(nibble ^ 8u) - 8; }

inline size_t round_up(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace mobilemoe
