// The operators one by one: checks, room cut from the caller's workspace, one call.
#include <algorithm>
#include <mutex>

#include "attention.h"
#include "checks.h"
#include "model.h"
#include "moe.h"
#include "status.h"

using namespace mobilemoe;

namespace {

constexpr int32_t kMostPositions = 1 << 24;

Status check_workspace(const void* workspace, size_t bytes, size_t needed, Error* error) {
  if (workspace == nullptr || bytes < needed) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "The workspace has %zu bytes; %zu are needed.",
                workspace == nullptr ? size_t{0} : bytes, needed);
  }
  return MOBILEMOE_OK;
}

Status check_pointers(bool all, const char* name, Error* error) {
  return all ? MOBILEMOE_OK
             : fail(error, MOBILEMOE_BAD_ARGUMENT, "%s: a pointer is NULL.", name);
}

struct LinearScratch {
  LinearScratch(Arena& arena, const Runtime& runtime, int count, int columns) {
    prepared.stride = round_up(runtime.products.linear_bytes(columns), Arena::kAlignment);
    prepared.data = arena.take<uint8_t>(prepared.stride * count);
    thread_stride =
        round_up(runtime.products.linear_scratch_bytes(columns, count), Arena::kAlignment);
    threads = arena.take<uint8_t>(thread_stride * runtime.pool.threads());
  }

  Prepared prepared;
  uint8_t* threads;
  size_t thread_stride;
};

struct HeadScratch {
  HeadScratch(Arena& arena, const Runtime& runtime, int count, int hidden)
      : norm(arena.take<float>(hidden)),
        normed(arena.take<float>(static_cast<size_t>(count) * hidden)),
        linear(arena, runtime, count, hidden) {}

  float* norm;
  float* normed;
  LinearScratch linear;
};

AttentionShape attention_shape(const mobilemoe_attention_shape& shape) {
  return {shape.heads,       shape.kv_heads,    shape.head_dim, shape.qk_norm != 0,
          shape.qk_norm_eps, shape.score_scale, 0};
}

struct AttentionScratch {
  AttentionScratch(Arena& arena, const Runtime& runtime, const AttentionShape& shape, int position,
                   int count)
      : angles(arena.take<float>(static_cast<size_t>(count) * shape.head_dim)),
        queries(arena.take<float>(static_cast<size_t>(count) * shape.heads * shape.head_dim)),
        attend(arena, shape, position + count, runtime.pool.threads()) {
    const size_t blocks = (static_cast<size_t>(position) + count + kBlock - 1) / kBlock;
    cache.type = CacheType::float32;
    cache.block_bytes = block_bytes(cache.type, shape.head_dim);
    cache.head_bytes = blocks * cache.block_bytes;
    cache.data = arena.take<uint8_t>(cache.head_bytes * shape.kv_heads);
  }

  float* angles;
  float* queries;
  AttendScratch attend;
  LayerCache cache;  // the caller's rows and the new ones, in blocks
};

struct MoeOperatorScratch {
  MoeOperatorScratch(Arena& arena, const Runtime& runtime, const mobilemoe_moe_shape& shape,
                     int count)
      : expert_bias(arena.take<float>(shape.num_local_experts)),
        moe(arena, runtime.products, shape, count, runtime.pool.threads()) {}

  float* expert_bias;
  MoeScratch moe;
};

}  // namespace

mobilemoe_status mobilemoe_embedding(mobilemoe_runtime* runtime, const mobilemoe_int4* table,
                                     int32_t vocab, int32_t hidden, const int32_t* tokens,
                                     int32_t count, float* y, mobilemoe_error* error) {
  MOBILEMOE_TRY(check_pointers(runtime && table && tokens && y, "embedding", error));
  MOBILEMOE_TRY(check_size(vocab, 1, "vocab", error));
  MOBILEMOE_TRY(check_size(hidden, kGroup, "hidden", error));
  MOBILEMOE_TRY(check_size(count, 1, "count", error));
  MOBILEMOE_TRY(check_int4(*table, 1, vocab, hidden, "table", error));
  for (int32_t i = 0; i < count; ++i) {
    if (tokens[i] < 0 || tokens[i] >= vocab) {
      return fail(error, MOBILEMOE_BAD_ARGUMENT, "Token %d is %d: the table has rows 0 to %d.", i,
                  tokens[i], vocab - 1);
    }
  }
  embed(linear_of(*table, vocab, hidden), tokens, count, y);
  return succeed(error);
}

mobilemoe_status mobilemoe_rms_norm(mobilemoe_runtime* runtime, const float* x,
                                    const mobilemoe_tensor* weight, int32_t count, int32_t width,
                                    float eps, float* y, mobilemoe_error* error) {
  MOBILEMOE_TRY(check_pointers(runtime && x && weight && y, "rms_norm", error));
  MOBILEMOE_TRY(check_size(count, 1, "count", error));
  MOBILEMOE_TRY(check_size(width, 1, "width", error));
  MOBILEMOE_TRY(check_vector(*weight, width, "weight", error));
  const auto* bytes = static_cast<const uint8_t*>(weight->data);
  const bool narrow = weight->bytes == static_cast<size_t>(width) * 2;
  for (int32_t t = 0; t < count; ++t) {
    const size_t row = static_cast<size_t>(t) * width;
    runtime->kernels.rms_norm(x + row, nullptr, width, eps, y + row);
    for (int32_t i = 0; i < width; ++i) {
      y[row + i] *= narrow ? float_from_bfloat16(load<uint16_t>(bytes + size_t{2} * i))
                           : load<float>(bytes + size_t{4} * i);
    }
  }
  return succeed(error);
}

size_t mobilemoe_linear_int4_workspace(const mobilemoe_runtime* runtime, int32_t count,
                                       int32_t rows, int32_t columns) {
  if (runtime == nullptr || check_size(count, 1, "count", nullptr) != MOBILEMOE_OK ||
      check_size(rows, 1, "rows", nullptr) != MOBILEMOE_OK ||
      check_size(columns, kGroup, "columns", nullptr) != MOBILEMOE_OK) {
    return 0;
  }
  Arena arena;
  LinearScratch(arena, *runtime, count, columns);
  return arena.bytes();
}

mobilemoe_status mobilemoe_linear_int4(mobilemoe_runtime* runtime, const mobilemoe_int4* weight,
                                       int32_t rows, int32_t columns, const float* x,
                                       int32_t count, float* y, void* workspace,
                                       size_t workspace_bytes, mobilemoe_error* error) {
  MOBILEMOE_TRY(check_pointers(runtime && weight && x && y, "linear_int4", error));
  MOBILEMOE_TRY(check_size(count, 1, "count", error));
  MOBILEMOE_TRY(check_size(rows, 1, "rows", error));
  MOBILEMOE_TRY(check_size(columns, kGroup, "columns", error));
  MOBILEMOE_TRY(check_int4(*weight, 1, rows, columns, "weight", error));
  MOBILEMOE_TRY(check_workspace(workspace, workspace_bytes,
                                mobilemoe_linear_int4_workspace(runtime, count, rows, columns),
                                error));
  Arena arena(workspace);
  const LinearScratch scratch(arena, *runtime, count, columns);
  const std::lock_guard<std::mutex> turn(runtime->pool.turn());
  prepare_linear(*runtime, x, count, columns, scratch.prepared);
  linear(*runtime, linear_of(*weight, rows, columns), scratch.prepared, count, y, scratch.threads,
         scratch.thread_stride);
  return succeed(error);
}

size_t mobilemoe_head_workspace(const mobilemoe_runtime* runtime, int32_t count, int32_t vocab,
                                int32_t hidden) {
  if (mobilemoe_linear_int4_workspace(runtime, count, vocab, hidden) == 0) return 0;
  Arena arena;
  HeadScratch(arena, *runtime, count, hidden);
  return arena.bytes();
}

mobilemoe_status mobilemoe_head(mobilemoe_runtime* runtime, const float* x,
                                const mobilemoe_tensor* norm, float eps,
                                const mobilemoe_int4* table, int32_t vocab, int32_t hidden,
                                int32_t count, float* logits, void* workspace,
                                size_t workspace_bytes, mobilemoe_error* error) {
  MOBILEMOE_TRY(check_pointers(runtime && x && norm && table && logits, "head", error));
  MOBILEMOE_TRY(check_size(count, 1, "count", error));
  MOBILEMOE_TRY(check_size(vocab, 1, "vocab", error));
  MOBILEMOE_TRY(check_size(hidden, kGroup, "hidden", error));
  MOBILEMOE_TRY(check_vector(*norm, hidden, "norm", error));
  MOBILEMOE_TRY(check_int4(*table, 1, vocab, hidden, "table", error));
  MOBILEMOE_TRY(check_workspace(workspace, workspace_bytes,
                                mobilemoe_head_workspace(runtime, count, vocab, hidden), error));
  Arena arena(workspace);
  const HeadScratch scratch(arena, *runtime, count, hidden);
  read_vector(*norm, hidden, scratch.norm);
  const std::lock_guard<std::mutex> turn(runtime->pool.turn());
  const Cut cut = cut_tokens(count);
  runtime->pool.run(cut.tasks(), [&](int task, int) {
    for (int t = cut.begin(task); t < cut.end(task); ++t) {
      const size_t row = static_cast<size_t>(t) * hidden;
      runtime->kernels.rms_norm(x + row, scratch.norm, hidden, eps, scratch.normed + row);
    }
  });
  prepare_linear(*runtime, scratch.normed, count, hidden, scratch.linear.prepared);
  linear(*runtime, linear_of(*table, vocab, hidden), scratch.linear.prepared, count, logits,
         scratch.linear.threads, scratch.linear.thread_stride);
  return succeed(error);
}

size_t mobilemoe_attention_workspace(const mobilemoe_runtime* runtime,
                                     const mobilemoe_attention_shape* shape, int32_t position,
                                     int32_t count) {
  if (runtime == nullptr || shape == nullptr || position < 0 || count < 1 ||
      position > kMostPositions - count || check_attention_shape(*shape, nullptr) != MOBILEMOE_OK) {
    return 0;
  }
  Arena arena;
  AttentionScratch(arena, *runtime, attention_shape(*shape), position, count);
  return arena.bytes();
}

mobilemoe_status mobilemoe_attention(mobilemoe_runtime* runtime,
                                     const mobilemoe_attention_shape* shape, const float* q,
                                     const float* k, const float* v, int32_t position,
                                     int32_t count, const float* key_cache,
                                     const float* value_cache, const float* periods,
                                     float* new_keys, float* new_values, float* y, void* workspace,
                                     size_t workspace_bytes, mobilemoe_error* error) {
  MOBILEMOE_TRY(check_pointers(runtime && shape && q && k && v && periods && new_keys &&
                                   new_values && y && (position == 0 || (key_cache && value_cache)),
                               "attention", error));
  MOBILEMOE_TRY(check_attention_shape(*shape, error));
  if (position < 0 || count < 1 || position > kMostPositions - count) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "attention: position %d with %d tokens.", position,
                count);
  }
  if (position + count > shape->context) {
    return fail(error, MOBILEMOE_CONTEXT_FULL,
                "%d tokens at position %d do not fit into the context of %d.", count, position,
                shape->context);
  }
  MOBILEMOE_TRY(check_workspace(workspace, workspace_bytes,
                                mobilemoe_attention_workspace(runtime, shape, position, count),
                                error));
  const AttentionShape inner = attention_shape(*shape);
  Arena arena(workspace);
  AttentionScratch s(arena, *runtime, inner, position, count);
  const auto head_dim = static_cast<size_t>(inner.head_dim);
  const size_t q_width = inner.heads * head_dim, kv_width = inner.kv_heads * head_dim;
  const std::lock_guard<std::mutex> turn(runtime->pool.turn());

  const Cut tokens = cut_tokens(count);
  runtime->pool.run(tokens.tasks(), [&](int task, int) {
    for (int t = tokens.begin(task); t < tokens.end(task); ++t) {
      float* angles = s.angles + t * head_dim;
      rope_angles(periods, inner.head_dim, position + t, angles);
      float* query = s.queries + t * q_width;
      std::copy(q + t * q_width, q + (t + 1) * q_width, query);
      for (int head = 0; head < inner.heads; ++head) {
        rotate_head(inner, angles, query + head * head_dim);
      }
      for (size_t i = 0; i < q_width; ++i) query[i] *= inner.score_scale;
      for (int head = 0; head < inner.kv_heads; ++head) {
        const size_t from = t * kv_width + head * head_dim;
        const size_t to = (static_cast<size_t>(head) * count + t) * head_dim;
        std::copy(k + from, k + from + head_dim, new_keys + to);
        std::copy(v + from, v + from + head_dim, new_values + to);
        rotate_head(inner, angles, new_keys + to);
        store_position(s.cache, inner.head_dim, head, position + t, new_keys + to,
                       new_values + to);
      }
    }
  });
  const Cut rows{position, kBlock};
  runtime->pool.run(inner.kv_heads * rows.tasks(), [&](int task, int) {
    const int head = task / rows.tasks(), block = task % rows.tasks();
    for (int p = rows.begin(block); p < rows.end(block); ++p) {
      const size_t row = (static_cast<size_t>(head) * shape->context + p) * head_dim;
      store_position(s.cache, inner.head_dim, head, p, key_cache + row, value_cache + row);
    }
  });
  attend(*runtime, inner, s.cache, s.queries, q_width, position, count, y, s.attend);
  return succeed(error);
}

size_t mobilemoe_moe_ffn_workspace(const mobilemoe_runtime* runtime,
                                   const mobilemoe_moe_shape* shape, int32_t count) {
  if (runtime == nullptr || shape == nullptr ||
      check_size(count, 1, "count", nullptr) != MOBILEMOE_OK ||
      check_moe_shape(*shape, nullptr) != MOBILEMOE_OK) {
    return 0;
  }
  Arena arena;
  MoeOperatorScratch(arena, *runtime, *shape, count);
  return arena.bytes();
}

mobilemoe_status mobilemoe_moe_ffn(mobilemoe_runtime* runtime, const mobilemoe_moe_shape* shape,
                                   const mobilemoe_moe_weights* weights, const float* x,
                                   int32_t count, float* y, void* workspace,
                                   size_t workspace_bytes, mobilemoe_error* error) {
  MOBILEMOE_TRY(check_pointers(runtime && shape && weights && x && y, "moe_ffn", error));
  MOBILEMOE_TRY(check_size(count, 1, "count", error));
  MOBILEMOE_TRY(check_moe_shape(*shape, error));
  MOBILEMOE_TRY(check_moe_weights(*weights, *shape, true, error));
  MOBILEMOE_TRY(check_workspace(workspace, workspace_bytes,
                                mobilemoe_moe_ffn_workspace(runtime, shape, count), error));
  Arena arena(workspace);
  MoeOperatorScratch scratch(arena, *runtime, *shape, count);
  if (shape->num_local_experts > 0) {
    read_vector(weights->expert_bias, shape->num_local_experts, scratch.expert_bias);
  }
  const std::lock_guard<std::mutex> turn(runtime->pool.turn());
  MOBILEMOE_TRY(moe_ffn(*runtime, moe_of(*weights, *shape, scratch.expert_bias), x, count, y,
                        scratch.moe, nullptr, error));
  return succeed(error);
}
