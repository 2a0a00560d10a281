// The feed-forward: router, dispatch, routed experts, shared expert and combination.
#pragma once

#include "arena.h"
#include "expert_cache.h"
#include "linear.h"
#include "routing.h"
#include "runtime.h"

namespace mobilemoe {

struct Moe {
  mobilemoe_moe_shape shape{};
  const uint8_t* router = nullptr;     // float32 [E, d]
  const float* expert_bias = nullptr;  // [E]
  ExpertWeights first_expert{};  // the others follow it
  ExpertCache* cache = nullptr;  // where they are in its place, and by which number of
  int layer = 0;                 // this layer
  Linear shared_gate, shared_up, shared_down;
};

// Room for `count` tokens.
struct MoeScratch {
  MoeScratch(Arena& arena, const Products& products, const mobilemoe_moe_shape& shape, int count,
             int threads);

  Prepared linear_x, linear_hidden;  // of the shared expert
  Prepared expert_x, expert_hidden;  // of the routed ones
  float* shared_gate;                // [count, shared width]
  float* shared_up;                  // [count, shared width]
  float* logits;                     // [count, E]
  int32_t* experts;                  // [count, slots]
  float* weights;                    // [count, slots]
  Dispatch dispatch;
  ExpertWeights* used;  // [E]: the weights of dispatch.used
  int32_t* numbers;  // 0, 1, 2, ... [count * slots]
  float* gate_up;    // [entries, 2 w]
  float* routed;     // [entries, d]
  uint8_t* threads;  // one piece per thread
  size_t thread_stride;
};

// y [count, d] = routed + shared of x [count, d]. `next`: the linear that is read after this, or null.
// Fails only where experts come from a cache.
Status moe_ffn(Runtime& runtime, const Moe& moe, const float* x, int count, float* y,
               MoeScratch& scratch, const Linear* next, Error* error);

}  // namespace mobilemoe
