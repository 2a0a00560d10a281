// What the files of the x86 code paths give to the tables of functions.
#pragma once

#include "kernels.h"

namespace mobilemoe {
namespace avx2 {

extern const Products kInt8;   // int8_avx2.cpp
extern const Products kInt16;  // int16_avx2.cpp
bool runs_here();              // kernels_avx2.cpp

}  // namespace avx2

namespace avx512 {

extern const Products kInt8;   // int8_avx512.cpp
extern const Products kInt16;  // int16_avx512.cpp

}  // namespace avx512
}  // namespace mobilemoe
