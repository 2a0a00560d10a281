// Cuts one piece of memory into aligned arrays; without memory it only counts the bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bytes.h"

namespace mobilemoe {

class Arena {
 public:
  static constexpr size_t kAlignment = 64;

  Arena() = default;  // counts
  explicit Arena(void* memory)
      : base_(reinterpret_cast<uint8_t*>(
            round_up(reinterpret_cast<uintptr_t>(memory), kAlignment))) {}

  template <typename T>
  T* take(size_t count) {
    T* array = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += round_up(count * sizeof(T), kAlignment);
    return array;
  }

  // Bytes that a piece of memory of any alignment must have for all that was taken.
  size_t bytes() const { return used_ + kAlignment; }

 private:
  uint8_t* base_ = nullptr;
  size_t used_ = 0;
};

}  // namespace mobilemoe
