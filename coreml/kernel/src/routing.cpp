#include "routing.h"

#include <cmath>

namespace mobilemoe {

void select_experts(const mobilemoe_moe_shape& shape, float* logits, const float* bias,
                    int32_t* experts, float* weights) {
  const int count = shape.num_local_experts, slots = shape.num_experts_per_tok;
  float* scores = logits;
  for (int e = 0; e < count; ++e) scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
  float total = 0;
  for (int slot = 0; slot < slots; ++slot) {
    int best = -1;
    float best_sum = 0;
    for (int e = 0; e < count; ++e) {
      bool taken = false;
      for (int s = 0; s < slot; ++s) taken |= experts[s] == e;
      // The first expert that is free wins against nothing, even with a score that is not a number.
      const float sum = scores[e] + bias[e];
      if (!taken && (best < 0 || sum > best_sum)) {
        best = e;
        best_sum = sum;
      }
    }
    experts[slot] = best;
    weights[slot] = scores[best];
    total += scores[best];
  }
  const float divisor = shape.norm_topk_prob != 0 ? total + 1e-20f : 1.0f;
  for (int slot = 0; slot < slots; ++slot) {
    weights[slot] = weights[slot] / divisor * shape.routed_scaling_factor;
  }
}

void count_by_expert(const int32_t* experts, int tokens, int slots, int expert_count,
                     Dispatch* dispatch) {
  int32_t* counts = dispatch->counts;
  for (int e = 0; e < expert_count; ++e) counts[e] = 0;
  for (int i = 0; i < tokens * slots; ++i) ++counts[experts[i]];
  dispatch->used_count = 0;
  for (int e = 0; e < expert_count; ++e) {
    if (counts[e] > 0) dispatch->used[dispatch->used_count++] = e;
  }
}

void sort_by_expert(const int32_t* experts, int tokens, int slots, Dispatch* dispatch) {
  int32_t* next = dispatch->counts;  // of an expert: where its next entry goes
  int32_t* begins = dispatch->begins;
  begins[0] = 0;
  for (int i = 0; i < dispatch->used_count; ++i) {
    begins[i + 1] = begins[i] + next[dispatch->used[i]];
    next[dispatch->used[i]] = begins[i];
  }
  for (int i = 0; i < tokens * slots; ++i) {
    const int32_t entry = next[experts[i]]++;
    dispatch->tokens[entry] = i / slots;
    dispatch->entries[i] = entry;
  }
}

}  // namespace mobilemoe
