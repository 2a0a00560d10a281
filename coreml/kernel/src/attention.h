// Attention: rotation and norm of heads, the key/value cache, and the weighted sum over it.
#pragma once

#include "arena.h"
#include "runtime.h"

namespace mobilemoe {

struct AttentionShape {
  int heads, kv_heads, head_dim;
  bool qk_norm;
  float qk_norm_eps;
  float score_scale;
  int sliding_window;  // 0: none
};

// cos and sin of a position's angles, float32 [head_dim / 2] each, one after the other. Angles are
// formed in double: at position 8,000 a float32 angle is off by 2e-4.
void rope_angles(const float* periods, int head_dim, int position, float* cos_sin);

// Turns adjacent pairs of a head by the angles, then divides by the root mean square if asked.
void rotate_head(const AttentionShape& shape, const float* cos_sin, float* head);

// One layer's cache: for each key/value head its blocks, one after the other.
struct LayerCache {
  uint8_t* data;
  CacheType type;
  size_t block_bytes;
  size_t head_bytes;  // from one head to the next

  uint8_t* block(int head, int index) const {
    return data + head * head_bytes + index * block_bytes;
  }
};

// A cache whose keys and values are rows, [kv_heads][positions][head_dim]: of a graph that holds it in
// tensors. For many tokens, blocks are read faster.
struct RowCache {
  CacheType type;  // float32 or float16
  uint8_t* keys;
  uint8_t* values;
  size_t head_bytes;  // from one head to the next

  size_t row_bytes(int head_dim) const { return head_dim * element_bytes(type); }
};

// One head's row of one position: written, and brought into blocks of the same type.
void store_row(const RowCache& cache, int head_dim, int head, int position, const float* key,
               const float* value);
void copy_to_blocks(const RowCache& rows, const LayerCache& blocks, int head_dim, int head,
                    int position);

// Writes one head's key and value of one position.
void store_position(const LayerCache& cache, int head_dim, int head, int position,
                    const float* key, const float* value);

// Room for the sums of a call.
struct AttendScratch {
  AttendScratch(Arena& arena, const AttentionShape& shape, int context, int threads);

  float* partial;  // one token: for each head and chunk: largest, sum, mixed
  float* threads;  // one piece per thread: weights, mixed of a chunk
  size_t thread_stride;
};

// y [count, heads, head_dim] from queries (times the score scale) whose rows lie `q_stride` floats
// apart: token t, at position + t, sees all positions of the cache up to its own.
void attend(Runtime& runtime, const AttentionShape& shape, const LayerCache& cache, const float* q,
            size_t q_stride, int position, int count, float* y, AttendScratch& scratch);

void attend(Runtime& runtime, const AttentionShape& shape, const RowCache& cache, const float* q,
            size_t q_stride, int position, int count, float* y, AttendScratch& scratch);

}  // namespace mobilemoe
