// A token of many, as tiles read it. Plain code: included before what is compiled for a code path
// (vectors_avx2.h).
#pragma once

#include <cstddef>
#include <cstdint>

namespace mobilemoe {

// A token as tiles read it. Of kLanes blocks of 32 inputs the activations lie together, a word of 32
// bits of each in turn: so they come when a vector has a lane for each block (fold_avx2.h).
struct TileToken {
  const uint8_t* x;        // [padded blocks / kLanes][words of a block][kLanes] words of 32 bits
  const float* steps;      // [padded blocks]
  const int32_t* initial;  // [padded blocks]

  // The first word of a block of `words`; the others follow kLanes words apart.
  template <int kLanes>
  const uint8_t* block(int index, int words) const {
    return x + index / kLanes * (words * kLanes * 4) + index % kLanes * 4;
  }
};

// Some blocks of a token that are folded: what they were and what they become (expert_many.h).
template <typename Value>
struct FoldedToken {
  const int16_t* words;
  const float* steps;
  Value* x;
  float* new_steps;
  int32_t* initial;
};

template <int kLanes>
inline int padded_blocks(int blocks) {
  return (blocks + kLanes - 1) / kLanes * kLanes;
}

}  // namespace mobilemoe
