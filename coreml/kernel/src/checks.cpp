#include "checks.h"

#include "bytes.h"

namespace mobilemoe {
namespace {

constexpr int32_t kMostExperts = 1024;
constexpr int32_t kMostSlots = 64;
constexpr int32_t kLargestHead = 256;
// Of any width: sums of 16 products of 32-bit integers and offsets into one matrix stay in range.
constexpr int32_t kLargestWidth = 1 << 20;

const uint8_t* bytes_of(const mobilemoe_tensor& tensor) {
  return static_cast<const uint8_t*>(tensor.data);
}

}  // namespace

Status check_size(int32_t size, int32_t multiple, const char* name, Error* error) {
  if (size < 1 || size % multiple != 0 || size > kLargestWidth * 8) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "%s is %d: it must be a multiple of %d from 1 to %d.",
                name, size, multiple, kLargestWidth * 8);
  }
  return MOBILEMOE_OK;
}

Status check_tensor(const mobilemoe_tensor& tensor, size_t bytes, const char* name, Error* error) {
  if (tensor.data == nullptr) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "%s is missing.", name);
  }
  if (tensor.bytes != bytes) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "%s has %zu bytes; its shape needs %zu.", name,
                tensor.bytes, bytes);
  }
  return MOBILEMOE_OK;
}

Status check_int4(const mobilemoe_int4& tensor, size_t count, size_t rows, size_t columns,
                  const char* name, Error* error) {
  const size_t values = count * rows * columns;
  char part[96];
  std::snprintf(part, sizeof part, "%s (codes)", name);
  MOBILEMOE_TRY(check_tensor(tensor.codes, values / 2, part, error));
  std::snprintf(part, sizeof part, "%s (scales)", name);
  return check_tensor(tensor.scales, values / kGroup * 2, part, error);
}

Status check_vector(const mobilemoe_tensor& tensor, size_t size, const char* name, Error* error) {
  return check_tensor(tensor, tensor.bytes == size * 2 ? size * 2 : size * 4, name, error);
}

Status check_moe_shape(const mobilemoe_moe_shape& shape, Error* error) {
  MOBILEMOE_TRY(check_size(shape.hidden_size, kGroup, "hidden_size", error));
  const int32_t experts = shape.num_local_experts, slots = shape.num_experts_per_tok;
  if (experts < 0 || experts > kMostExperts) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "num_local_experts is %d: 0 to %d are possible.",
                experts, kMostExperts);
  }
  if (experts > 0) {
    MOBILEMOE_TRY(check_size(shape.intermediate_size, kGroup, "intermediate_size", error));
    if (slots < 1 || slots > experts || slots > kMostSlots) {
      return fail(error, MOBILEMOE_BAD_ARGUMENT,
                  "num_experts_per_tok is %d: it must be 1 to num_local_experts (%d), at most %d.",
                  slots, experts, kMostSlots);
    }
  }
  if (shape.intermediate_size_mlp != 0 || experts == 0) {
    MOBILEMOE_TRY(check_size(shape.intermediate_size_mlp, kGroup, "intermediate_size_mlp", error));
  }
  return MOBILEMOE_OK;
}

Status check_attention_shape(const mobilemoe_attention_shape& shape, Error* error) {
  MOBILEMOE_TRY(check_size(shape.kv_heads, 1, "kv_heads", error));
  MOBILEMOE_TRY(check_size(shape.heads, shape.kv_heads, "heads", error));
  MOBILEMOE_TRY(check_size(shape.head_dim, 2, "head_dim", error));
  if (shape.head_dim > kLargestHead || shape.heads > 4096) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "%d heads of %d: at most 4096 heads of %d.",
                shape.heads, shape.head_dim, kLargestHead);
  }
  return MOBILEMOE_OK;
}

Status check_moe_weights(const mobilemoe_moe_weights& weights, const mobilemoe_moe_shape& shape,
                         bool with_experts, Error* error) {
  const size_t d = shape.hidden_size, w = shape.intermediate_size, e = shape.num_local_experts;
  const size_t shared = shape.intermediate_size_mlp;
  if (e > 0) {
    MOBILEMOE_TRY(check_tensor(weights.router, e * d * sizeof(float), "router", error));
    MOBILEMOE_TRY(check_vector(weights.expert_bias, e, "expert_bias", error));
  }
  if (e > 0 && with_experts) {
    MOBILEMOE_TRY(check_int4(weights.gate_up, e, d, 2 * w, "experts.gate_up", error));
    MOBILEMOE_TRY(check_int4(weights.down, e, w, d, "experts.down", error));
  }
  if (shared > 0) {
    MOBILEMOE_TRY(check_int4(weights.shared_gate, 1, shared, d, "shared_expert.gate_proj", error));
    MOBILEMOE_TRY(check_int4(weights.shared_up, 1, shared, d, "shared_expert.up_proj", error));
    MOBILEMOE_TRY(check_int4(weights.shared_down, 1, d, shared, "shared_expert.down_proj", error));
  }
  return MOBILEMOE_OK;
}

void read_vector(const mobilemoe_tensor& tensor, size_t size, float* values) {
  const uint8_t* bytes = bytes_of(tensor);
  for (size_t i = 0; i < size; ++i) {
    values[i] = tensor.bytes == size * 2 ? float_from_bfloat16(load<uint16_t>(bytes + 2 * i))
                                         : load<float>(bytes + 4 * i);
  }
}

Linear linear_of(const mobilemoe_int4& tensor, int rows, int columns) {
  return {bytes_of(tensor.codes), bytes_of(tensor.scales), rows, columns};
}

Moe moe_of(const mobilemoe_moe_weights& weights, const mobilemoe_moe_shape& shape,
           const float* expert_bias) {
  Moe moe;
  moe.shape = shape;
  if (shape.num_local_experts > 0) {
    moe.router = bytes_of(weights.router);
    moe.expert_bias = expert_bias;
    moe.first_expert = {{bytes_of(weights.gate_up.codes), bytes_of(weights.gate_up.scales)},
                        {bytes_of(weights.down.codes), bytes_of(weights.down.scales)}};
  }
  const int d = shape.hidden_size, shared = shape.intermediate_size_mlp;
  if (shared > 0) {
    moe.shared_gate = linear_of(weights.shared_gate, shared, d);
    moe.shared_up = linear_of(weights.shared_up, shared, d);
    moe.shared_down = linear_of(weights.shared_down, d, shared);
  }
  return moe;
}

}  // namespace mobilemoe
