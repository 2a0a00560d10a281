// A model: the sizes, and where the caller's weights lie.
#pragma once

#include <memory>
#include <vector>

#include "attention.h"
#include "linear.h"
#include "moe.h"

namespace mobilemoe {

struct Layer {
  std::vector<float> input_norm, post_attention_norm;  // [d]
  Linear q, k, v, o;
  AttentionShape attention;
  std::vector<float> expert_bias;  // [E]
  Moe moe;
};

}  // namespace mobilemoe

struct mobilemoe_model {
  mobilemoe_runtime& runtime;
  int vocab_size, hidden_size, heads, kv_heads, head_dim;
  float eps;
  std::vector<float> rope_periods;  // [head_dim / 2]
  mobilemoe::Linear embed_tokens;
  std::vector<float> norm;  // [d]
  std::vector<mobilemoe::Layer> layers;
  std::unique_ptr<mobilemoe::ExpertCache> expert_cache;  // null: routed experts lie in memory
};

namespace mobilemoe {

using Model = mobilemoe_model;

// How many routed experts a token chooses in a layer; 0 in a dense model.
inline size_t routed_slots(const Model& model) {
  const mobilemoe_moe_shape& shape = model.layers[0].moe.shape;
  return shape.num_local_experts > 0 ? shape.num_experts_per_tok : 0;
}

// x [count, d] = rows of the table; tokens are checked.
void embed(const Linear& table, const int32_t* tokens, int count, float* x);

}  // namespace mobilemoe
