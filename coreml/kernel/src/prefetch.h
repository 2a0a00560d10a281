// Asking for memory before it is used.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mobilemoe {

// Codes and scales are read once, in the order of memory: asking for them this far ahead hides the
// memory's latency, which the hardware's prefetcher, stopping at every page, does not.
constexpr int kPrefetchBytes = 6 * 1024;
constexpr int kLine = 64;  // bytes that come together

inline void prefetch(const void* address) {
#if defined(__GNUC__)
  __builtin_prefetch(address, 0, 2);  // into the second cache: the first can wait for few lines
  asm volatile("");  // GCC takes a function that only prefetches for one without effect, and drops it
#else
  static_cast<void>(address);
#endif
}

// A short stretch.
inline void prefetch_row(const void* row, size_t bytes) {
  for (size_t byte = 0; byte < bytes; byte += kLine) prefetch(static_cast<const uint8_t*>(row) + byte);
}

// The first stretch of a matrix, as far as loops ask ahead.
inline void prefetch_stretch(const uint8_t* codes, const uint8_t* scales) {
  for (int byte = 0; byte < kPrefetchBytes; byte += kLine) prefetch(codes + byte);
  for (int byte = 0; byte < kPrefetchBytes / 8; byte += kLine) prefetch(scales + byte);
}

// A stretch of memory that is read in order, and where reading goes on behind its end. The address
// that is asked for may lie behind both; prefetching never faults.
class Ahead {
 public:
  // `next`: null where that is not known; then the memory behind the end is asked for.
  Ahead(const uint8_t* end, const uint8_t* next)
      : end_(reinterpret_cast<uintptr_t>(end)),
        jump_(next == nullptr ? 0 : reinterpret_cast<uintptr_t>(next) - end_) {}

  // While `at` is read.
  void operator()(const uint8_t* at, int distance = kPrefetchBytes) const {
    uintptr_t address = reinterpret_cast<uintptr_t>(at) + distance;
    if (address >= end_) address += jump_;
    prefetch(reinterpret_cast<const void*>(address));
  }

 private:
  const uintptr_t end_, jump_;
};

}  // namespace mobilemoe
