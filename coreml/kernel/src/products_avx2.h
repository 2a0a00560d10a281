// The products of the AVX2 code path, a file each.
#pragma once

#include "kernels.h"

namespace mobilemoe {
namespace avx2 {

// linear_exact_avx2.cpp
void prepare_linear_exact(const float* x, int columns, bool single, uint8_t* prepared);
void linear_exact(const LinearTask& task);
size_t linear_exact_scratch(int columns, int count);
// experts_exact_avx2.cpp
void expert_exact(const ExpertTask& task);
size_t expert_exact_scratch(int inputs, int outputs, int count);
// linear_int8_avx2.cpp
size_t linear_int8_bytes(int columns);
void prepare_linear_int8(const float* x, int columns, bool single, uint8_t* prepared);
void linear_int8(const LinearTask& task);
size_t linear_int8_scratch(int columns, int count);
// experts_int8_avx2.cpp
size_t expert_int8_bytes(int inputs);
// Of int8 and of int16.
void prepare_expert_rounded(const float* x, int inputs, bool single, uint8_t* prepared);
void expert_int8(const ExpertTask& task);
size_t expert_int8_scratch(int inputs, int outputs, int count);
// linear_int16_avx2.cpp
size_t linear_int16_bytes(int columns);
void prepare_linear_int16(const float* x, int columns, bool single, uint8_t* prepared);
void linear_int16(const LinearTask& task);
size_t linear_int16_scratch(int columns, int count);
// experts_int16_avx2.cpp
size_t expert_int16_bytes(int inputs);
void expert_int16(const ExpertTask& task);
size_t expert_int16_scratch(int inputs, int outputs, int count);
// attention_avx2.cpp
void attend_float32(AttendTask& task);
void attend_float16(AttendTask& task);
void attend_int8(AttendTask& task);

}  // namespace avx2
}  // namespace mobilemoe
