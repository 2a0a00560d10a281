#include "feed_forward.h"

#include "checks.h"

namespace mobilemoe::ort {

FeedForward::FeedForward(const NodeInfo& node, size_t first, const char* norm_name)
    : eps_(node.number("norm_eps")) {
  if (!(eps_ > 0)) refuse("the attribute norm_eps is %g: it must be above 0.", eps_);
  // Sizes are those of the router and of the experts' codes; everything else must agree with them.
  const Tensor router = node.weight(first + 1, "router");
  const Tensor gate_up = node.weight(first + 3, "gate_up_codes");
  const Tensor shared = node.weight(first + 7, "shared_gate_codes");
  if (router.dimensions.size() != 2 || gate_up.dimensions.size() != 3 ||
      shared.dimensions.size() != 2) {
    refuse("router has the shape %s, gate_up_codes %s, shared_gate_codes %s: [experts, hidden], "
           "[experts, hidden, width] and [shared width, hidden / 2] are expected.",
           text_of(router.dimensions).c_str(), text_of(gate_up.dimensions).c_str(),
           text_of(shared.dimensions).c_str());
  }
  const int64_t e = router.dimensions[0], d = router.dimensions[1];
  const int64_t w = gate_up.dimensions[2], s = shared.dimensions[0];
  shape_ = {static_cast<int32_t>(d),
            static_cast<int32_t>(w),
            static_cast<int32_t>(s),
            static_cast<int32_t>(e),
            static_cast<int32_t>(node.integer("experts_per_token")),
            node.integer("norm_topk_prob", 1) != 0,
            node.number("routed_scaling_factor")};
  mobilemoe_error error;
  check(check_moe_shape(shape_, &error), error);
  norm_ = node.vector(first, norm_name, d);
  expert_bias_ = node.vector(first + 2, "expert_bias", e);
  const mobilemoe_moe_weights weights{
      {router.data, static_cast<size_t>(e * d) * sizeof(float)},
      {expert_bias_.data(), expert_bias_.size() * sizeof(float)},
      node.int4(first + 3, "gate_up", {e, d}, 2 * w),
      node.int4(first + 5, "down", {e, w}, d),
      node.int4(first + 7, "shared_gate", {s}, d),
      node.int4(first + 9, "shared_up", {s}, d),
      node.int4(first + 11, "shared_down", {d}, s)};
  check(check_moe_weights(weights, shape_, true, &error), error);
  moe_ = moe_of(weights, shape_, expert_bias_.data());
}

FeedForward::Scratch::Scratch(Arena& arena, const Runtime& runtime,
                              const mobilemoe_moe_shape& shape, int count)
    : normed(arena.take<float>(static_cast<size_t>(count) * shape.hidden_size)),
      delta(arena.take<float>(static_cast<size_t>(count) * shape.hidden_size)),
      moe(arena, runtime.products, shape, count, runtime.pool.threads()) {}

void FeedForward::compute(Runtime& runtime, const float* x, const float* before, int count,
                          float* y, Scratch& scratch, const Linear* next) const {
  const auto d = static_cast<size_t>(shape_.hidden_size);
  const Cut cut = cut_tokens(count);
  runtime.pool.run(cut.tasks(), [&](int task, int) {
    for (int t = cut.begin(task); t < cut.end(task); ++t) {
      for (size_t i = t * d; i < (t + 1) * d; ++i) y[i] = before == nullptr ? x[i] : x[i] + before[i];
      runtime.kernels.rms_norm(y + t * d, norm_.data(), shape_.hidden_size, eps_,
                               scratch.normed + t * d);
    }
  });
  mobilemoe_error error;
  check(moe_ffn(runtime, moe_, scratch.normed, count, scratch.delta, scratch.moe, next, &error),
        error);
  runtime.pool.run(cut.tasks(), [&](int task, int) {
    const size_t begin = cut.begin(task) * d, end = cut.end(task) * d;
    for (size_t i = begin; i < end; ++i) y[i] += scratch.delta[i];
  });
}

}  // namespace mobilemoe::ort
