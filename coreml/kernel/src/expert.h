// Where the weights of one routed expert lie.
#pragma once

#include <cstdint>

namespace mobilemoe {

struct ExpertMatrix {
  const uint8_t* codes;
  const uint8_t* scales;
};

struct ExpertWeights {
  ExpertMatrix gate_up;  // [d, 2 w]
  ExpertMatrix down;     // [w, d]
};

}  // namespace mobilemoe
