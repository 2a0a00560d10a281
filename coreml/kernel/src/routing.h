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

// The (token, slot) pairs in the order of their experts: the expert used[i] has the entries begins[i] to
// begins[i + 1] - 1.
struct Dispatch {
  int32_t* counts;    // [E]: how many entries an expert has
  int32_t* used;      // [used_count]: the experts that have entries, in the order of their entries
  int32_t* begins;    // [used_count + 1]
  int32_t* tokens;    // [entries]: the token of an entry
  int32_t* entries;   // [tokens, slots]: the entry of a slot
  int used_count;
};

// Fills `counts` and, by rising number, `used`. experts: [tokens, slots].
void count_by_expert(const int32_t* experts, int tokens, int slots, int expert_count,
                     Dispatch* dispatch);

// Fills the rest, for `used` in any order; stable. `counts` are used up.
void sort_by_expert(const int32_t* experts, int tokens, int slots, Dispatch* dispatch);

}  // namespace mobilemoe
