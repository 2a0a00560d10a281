// What callers hand over, checked against the sizes that it must have.
#pragma once

#include "attention.h"
#include "linear.h"
#include "mobilemoe.h"
#include "moe.h"
#include "status.h"

namespace mobilemoe {

// Each returns MOBILEMOE_OK, or fills `error`. `name` is the tensor's, for the sentence.
Status check_tensor(const mobilemoe_tensor& tensor, size_t bytes, const char* name, Error* error);
// `count` matrices [rows, columns], grouped along the columns.
Status check_int4(const mobilemoe_int4& tensor, size_t count, size_t rows, size_t columns,
                  const char* name, Error* error);
// A vector of bfloat16 or float32.
Status check_vector(const mobilemoe_tensor& tensor, size_t size, const char* name, Error* error);
Status check_moe_shape(const mobilemoe_moe_shape& shape, Error* error);
Status check_attention_shape(const mobilemoe_attention_shape& shape, Error* error);
// A size from 1 on; `multiple`: of which it must be one.
Status check_size(int32_t size, int32_t multiple, const char* name, Error* error);

// The tensors of a checked `shape`; those of routed experts only `with_experts`.
Status check_moe_weights(const mobilemoe_moe_weights& weights, const mobilemoe_moe_shape& shape,
                         bool with_experts, Error* error);

// Widens a checked vector.
void read_vector(const mobilemoe_tensor& tensor, size_t size, float* values);

Linear linear_of(const mobilemoe_int4& tensor, int rows, int columns);
// `expert_bias`: the widened bias [E].
Moe moe_of(const mobilemoe_moe_weights& weights, const mobilemoe_moe_shape& shape,
           const float* expert_bias);

}  // namespace mobilemoe
