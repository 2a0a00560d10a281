// The second half of a layer, which the operators MoE and DecoderLayer share:
// y = x + routed experts + shared expert of norm(x).
#pragma once

#include "engine.h"
#include "moe.h"
#include "node.h"

namespace mobilemoe::ort {

// Most tokens that are computed together; more are cut, which bounds the room.
constexpr int kBlockTokens = 512;

class FeedForward {
 public:
  static constexpr size_t kInputs = 13;
  static constexpr const char* kNames =
      "norm, router, expert_bias, gate_up, down, shared_gate, shared_up, shared_down";

  // Its inputs from `first` on: norm [d], router [E, d], expert_bias [E], then codes and scales of gate_up
  // [E, d, 2 w], down [E, w, d], shared_gate and shared_up [s, d], shared_down [d, s].
  FeedForward(const NodeInfo& node, size_t first, const char* norm_name);
  FeedForward(const FeedForward&) = delete;
  FeedForward& operator=(const FeedForward&) = delete;

  int hidden_size() const { return shape_.hidden_size; }
  const mobilemoe_moe_shape& shape() const { return shape_; }
  const Moe& moe() const { return moe_; }

  struct Scratch {
    Scratch(Arena& arena, const Runtime& runtime, const mobilemoe_moe_shape& shape, int count);

    float* normed;  // [count, d]
    float* delta;   // [count, d]
    MoeScratch moe;
  };

  // y [count, d] = x + ..., of x + `before` [count, d], where that is not null; y may be x. `next`: the
  // linear that is read after this, or null. The caller has the pool's turn.
  void compute(Runtime& runtime, const float* x, const float* before, int count, float* y,
               Scratch& scratch, const Linear* next) const;

 private:
  float eps_;
  std::vector<float> norm_, expert_bias_;
  mobilemoe_moe_shape shape_{};
  Moe moe_;
};

}  // namespace mobilemoe::ort
