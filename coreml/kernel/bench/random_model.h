// A model of any size with random INT4 weights, for measurements.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "mobilemoe.h"

class RandomModel {
 public:
  // Codes have mean 0: with the mean of -0.5 that uniform codes in -8..7 have, activations collapse
  // onto one direction, which neither times nor errors of real models show.
  explicit RandomModel(const mobilemoe_config& config, int sliding_window = 0)
      : layers_(config.num_hidden_layers) {
    const size_t d = config.hidden_size, w = config.intermediate_size;
    const size_t e = config.num_local_experts, shared = config.intermediate_size_mlp;
    const size_t q = size_t(config.num_attention_heads) * config.head_dim;
    const size_t kv = size_t(config.num_key_value_heads) * config.head_dim;
    weights_.embed_tokens = int4(config.vocab_size, d);
    weights_.norm = ones(d);
    for (size_t i = 0; i < layers_.size(); ++i) {
      mobilemoe_layer_weights& layer = layers_[i];
      layer = {};
      layer.input_layernorm = ones(d);
      layer.q_proj = int4(q, d);
      layer.k_proj = int4(kv, d);
      layer.v_proj = int4(kv, d);
      layer.o_proj = int4(d, q);
      layer.post_attention_layernorm = ones(d);
      if (e > 0) {
        layer.feed_forward.router = floats(e * d);
        layer.feed_forward.expert_bias = floats(e);
        layer.feed_forward.gate_up = int4(e * d, 2 * w);
        layer.feed_forward.down = int4(e * w, d);
      }
      layer.feed_forward.shared_gate = int4(shared, d);
      layer.feed_forward.shared_up = int4(shared, d);
      layer.feed_forward.shared_down = int4(d, shared);
      // As MobileLLM-Pro: three layers of four see a window, the first and the last everything.
      const bool global = i % 4 == 0 || i + 1 == layers_.size();
      layer.sliding_window = global ? 0 : sliding_window;
    }
    weights_.layers = layers_.data();
  }

  const mobilemoe_weights& weights() const { return weights_; }
  size_t bytes() const { return bytes_; }

 private:
  uint64_t random() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }

  mobilemoe_tensor keep(size_t bytes) {
    memory_.emplace_back(bytes);
    bytes_ += bytes;
    return {memory_.back().data(), bytes};
  }

  mobilemoe_int4 int4(size_t rows, size_t columns) {
    const mobilemoe_int4 tensor{keep(rows * columns / 2), keep(rows * columns / 32 * 2)};
    uint8_t* codes = memory_[memory_.size() - 2].data();
    for (size_t i = 0; i < tensor.codes.bytes; ++i) {
      const uint64_t r = random() >> 20;
      codes[i] = static_cast<uint8_t>((r % 15 + 9) % 16 | (r / 15 % 15 + 9) % 16 << 4);  // -7..7
    }
    // Float16 between 0.5 and 1.5 times 2^-5: bits of the mantissa and the last of the exponent.
    auto* scales = reinterpret_cast<uint16_t*>(memory_.back().data());
    for (size_t i = 0; i < tensor.scales.bytes / 2; ++i) {
      scales[i] = static_cast<uint16_t>(0x2400 + (random() >> 40) % 0x600);
    }
    return tensor;
  }

  mobilemoe_tensor ones(size_t count) {
    const mobilemoe_tensor tensor = keep(count * 2);
    auto* values = reinterpret_cast<uint16_t*>(memory_.back().data());
    for (size_t i = 0; i < count; ++i) values[i] = 0x3f80;  // bfloat16
    return tensor;
  }

  mobilemoe_tensor floats(size_t count) {
    const mobilemoe_tensor tensor = keep(count * 4);
    auto* values = reinterpret_cast<float*>(memory_.back().data());
    for (size_t i = 0; i < count; ++i) {
      values[i] = (static_cast<float>(random() >> 40) / (1 << 24) - 0.5f) * 0.1f;
    }
    return tensor;
  }

  uint64_t state_ = 0x9E3779B97F4A7C15u;
  size_t bytes_ = 0;
  std::vector<std::vector<uint8_t>> memory_;
  std::vector<mobilemoe_layer_weights> layers_;
  mobilemoe_weights weights_{};
};
