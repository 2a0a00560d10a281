// A session: the cache of one conversation and the room that a forward pass needs.
#pragma once

#include <atomic>
#include <cstdlib>
#include <memory>

#include "attention.h"
#include "model.h"
#include "moe.h"

namespace mobilemoe {

// Arrays of a forward pass of up to `block` tokens.
struct ForwardScratch {
  ForwardScratch(Arena& arena, const Model& model, int context, int block);

  float* angles;    // [context][head_dim]: cos and sin
  float* residual;  // [block, d]
  float* normed;    // [block, d]
  Prepared prepared;
  float* qkv;    // [block, (heads + 2 kv_heads) head_dim]
  float* mixed;  // [block, heads head_dim]
  float* delta;  // [block, d]: what a layer's half adds to the residual stream
  AttendScratch attend;
  MoeScratch moe;
  int32_t* chosen;  // [layer][block, slots]: each token's experts
  uint8_t* threads;
  size_t thread_stride;
};

struct FreeMemory {
  void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<void, FreeMemory>;

}  // namespace mobilemoe

struct mobilemoe_session {
  mobilemoe_model& model;
  const int context, block;
  const mobilemoe::CacheType cache_type;
  const size_t layer_bytes, head_bytes, block_bytes;
  mobilemoe::Memory cache_memory, scratch_memory;
  uint8_t* cache;  // [layer][kv_head][block]
  mobilemoe::ForwardScratch scratch;
  std::atomic<int32_t> position{0};
  int32_t last_count = 0;  // tokens of the last forward pass, whose experts scratch.chosen has
  std::atomic<bool> cancelled{false};
  std::atomic<bool> busy{false};

  mobilemoe::LayerCache layer_cache(size_t layer) const {
    return {cache + layer * layer_bytes, cache_type, block_bytes, head_bytes};
  }
};

namespace mobilemoe {

using Session = mobilemoe_session;

// Computes tokens at positions position to position + count - 1 (count <= block) into the cache,
// and their residual stream. Fails when cancelled, and where an expert cannot be read.
Status forward(Session& session, const int32_t* tokens, int position, int count, Error* error);

// logits [count, vocab] of rows first to first + count - 1 of the residual stream.
void compute_logits(Session& session, int first, int count, float* logits);

}  // namespace mobilemoe
