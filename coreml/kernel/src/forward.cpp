// One forward pass through all layers, and the output head.
#include <algorithm>
#include <cstring>

#include "session.h"

namespace mobilemoe {

ForwardScratch::ForwardScratch(Arena& arena, const Model& model, int context, int block)
    : angles(arena.take<float>(static_cast<size_t>(context) * model.head_dim)),
      residual(arena.take<float>(static_cast<size_t>(block) * model.hidden_size)),
      normed(arena.take<float>(static_cast<size_t>(block) * model.hidden_size)),
      qkv(arena.take<float>(static_cast<size_t>(block) * (model.heads + 2 * model.kv_heads) *
                            model.head_dim)),
      mixed(arena.take<float>(static_cast<size_t>(block) * model.heads * model.head_dim)),
      delta(arena.take<float>(static_cast<size_t>(block) * model.hidden_size)),
      attend(arena, model.layers[0].attention, context, model.runtime.pool.threads()),
      moe(arena, model.runtime.products, model.layers[0].moe.shape, block,
          model.runtime.pool.threads()),
      chosen(arena.take<int32_t>(model.layers.size() * static_cast<size_t>(block) *
                                 routed_slots(model))) {
  const Products& products = model.runtime.products;
  const int query_width = model.heads * model.head_dim;
  prepared.stride = round_up(std::max(products.linear_bytes(model.hidden_size),
                                      products.linear_bytes(query_width)),
                             Arena::kAlignment);
  prepared.data = arena.take<uint8_t>(prepared.stride * block);
  thread_stride = round_up(std::max(products.linear_scratch_bytes(model.hidden_size, block),
                                    products.linear_scratch_bytes(query_width, block)),
                           Arena::kAlignment);
  threads = arena.take<uint8_t>(thread_stride * model.runtime.pool.threads());
}

namespace {

// residual += delta (when given), then normed = norm(residual).
void add_and_norm(Session& session, const float* delta, const std::vector<float>& norm,
                  int count) {
  const Model& model = session.model;
  ForwardScratch& s = session.scratch;
  const auto d = static_cast<size_t>(model.hidden_size);
  const Cut cut = cut_tokens(count);
  model.runtime.pool.run(cut.tasks(), [&](int task, int) {
    for (int t = cut.begin(task); t < cut.end(task); ++t) {
      float* residual = s.residual + t * d;
      if (delta != nullptr) {
        for (size_t i = 0; i < d; ++i) residual[i] += delta[t * d + i];
      }
      model.runtime.kernels.rms_norm(residual, norm.data(), model.hidden_size, model.eps,
                                     s.normed + t * d);
    }
  });
}

// delta = attention of normed.
void attention_layer(Session& session, size_t index, int position, int count) {
  const Model& model = session.model;
  const Layer& layer = model.layers[index];
  Runtime& runtime = model.runtime;
  ForwardScratch& s = session.scratch;
  const int head_dim = model.head_dim, query_width = model.heads * head_dim;
  const int kv_width = model.kv_heads * head_dim;
  const size_t qkv_width = query_width + 2 * static_cast<size_t>(kv_width);
  const LayerCache cache = session.layer_cache(index);

  prepare_linear(runtime, s.normed, count, model.hidden_size, s.prepared);
  multiply_qkv(runtime, {layer.q, layer.k, layer.v, layer.o}, s.prepared, count, s.qkv, qkv_width,
               s.threads, s.thread_stride);

  const Cut tokens = cut_tokens(count);
  runtime.pool.run(tokens.tasks(), [&](int task, int) {
    for (int t = tokens.begin(task); t < tokens.end(task); ++t) {
      float* q = s.qkv + t * qkv_width;
      float* k = q + query_width;
      const float* v = k + kv_width;
      const float* angles = s.angles + static_cast<size_t>(position + t) * head_dim;
      for (int head = 0; head < model.heads; ++head) {
        rotate_head(layer.attention, angles, q + head * head_dim);
      }
      for (int i = 0; i < query_width; ++i) q[i] *= layer.attention.score_scale;
      for (int head = 0; head < model.kv_heads; ++head) {
        rotate_head(layer.attention, angles, k + head * head_dim);
        store_position(cache, head_dim, head, position + t, k + head * head_dim,
                       v + head * head_dim);
      }
    }
  });

  attend(runtime, layer.attention, cache, s.qkv, qkv_width, position, count, s.mixed, s.attend);
  prepare_linear(runtime, s.mixed, count, query_width, s.prepared);
  linear(runtime, layer.o, s.prepared, count, s.delta, s.threads, s.thread_stride,
         {&layer.moe.shared_gate, &layer.moe.shared_up});
}

}  // namespace

Status forward(Session& session, const int32_t* tokens, int position, int count, Error* error) {
  const Model& model = session.model;
  ForwardScratch& s = session.scratch;
  embed(model.embed_tokens, tokens, count, s.residual);
  const float* delta = nullptr;
  const size_t slots = routed_slots(model);
  session.last_count = 0;  // until the pass is done
  for (size_t index = 0; index < model.layers.size(); ++index) {
    if (session.cancelled.load(std::memory_order_relaxed)) {
      session.cancelled = false;
      return fail(error, MOBILEMOE_CANCELLED, "Cancelled; the session is as it was before.");
    }
    add_and_norm(session, delta, model.layers[index].input_norm, count);
    attention_layer(session, index, position, count);
    add_and_norm(session, s.delta, model.layers[index].post_attention_norm, count);
    const bool last = index + 1 == model.layers.size();
    MOBILEMOE_TRY(moe_ffn(model.runtime, model.layers[index].moe, s.normed, count, s.delta, s.moe,
                          last ? &model.embed_tokens : &model.layers[index + 1].q, error));
    std::memcpy(s.chosen + index * session.block * slots, s.moe.experts,
                count * slots * sizeof(int32_t));
    delta = s.delta;
  }
  add_and_norm(session, delta, model.norm, count);
  session.last_count = count;
  return MOBILEMOE_OK;
}

void compute_logits(Session& session, int first, int count, float* logits) {
  const Model& model = session.model;
  ForwardScratch& s = session.scratch;
  prepare_linear(model.runtime, s.normed + static_cast<size_t>(first) * model.hidden_size, count,
                 model.hidden_size, s.prepared);
  linear(model.runtime, model.embed_tokens, s.prepared, count, logits, s.threads, s.thread_stride);
}

}  // namespace mobilemoe
