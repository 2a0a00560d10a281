// The router's decision, and the tokens sorted by expert.
#pragma once

#include <cstdint>

#include "mobilemoe.h"

namespace mobilemoe {

// Of one token: the experts with the largest sigmoid(logit) + bias, by falling sum, ties to the
// lower index; their weights are the sigmoids alone, normed and scaled as `shape` says.
// logits [E] are overwritten. experts, weights: [num_experts_per_tok].
void select_experts(const mobilemoe_moe_shape& shape, float* logits, const float* bias,
                    int32_t* experts, float* weights);

// The (token, slot) pairs in the order of their experts.
struct Dispatch {
  int32_t* begins;    // [E + 1]: expert e has entries begins[e] to begins[e + 1] - 1
  int32_t* tokens;    // [entries]: the token of an entry
  int32_t* entries;   // [tokens, slots]: the entry of a slot
  int32_t* used;      // [used_count]: experts that have an entry
  int used_count;
};

// experts [tokens, slots]; a counting sort, stable.
void sort_by_expert(const int32_t* experts, int tokens, int slots, int expert_count,
                    Dispatch* dispatch);

}  // namespace mobilemoe
