// What the files of the arm64 code paths give to the tables of functions.
#pragma once

#include "kernels.h"

namespace mobilemoe {
namespace neon {

extern const Products kInt8;   // int8_neon.cpp
extern const Products kInt16;  // int16_neon.cpp

}  // namespace neon

namespace neondot {

extern const Products kInt8;   // int8_neondot.cpp
extern const Products kInt16;  // int16_neondot.cpp

}  // namespace neondot

namespace neoni8mm {

extern const Products kInt8;   // int8_neoni8mm.cpp
extern const Products kInt16;  // int16_neoni8mm.cpp

}  // namespace neoni8mm
}  // namespace mobilemoe
