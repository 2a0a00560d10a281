// A model of any size with random INT4 weights, for measurements.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "mobilemoe.h"

class RandomModel {
 public:
  // Codes have mean 0: with the mean of -0.5 that uniform codes in -8..7 have, activations collapse
  // onto one direction, which neither times nor errors of real models show.
  // `mapped`: the weights lie in a memory map of a temporary file, as those of users do.
  explicit RandomModel(const mobilemoe_config& config, int sliding_window = 0, bool mapped = false)
      : layers_(config.num_hidden_layers) {
    if (mapped) begin_file();
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
    if (mapped) map_file();
  }
  ~RandomModel() {
    if (map_ != nullptr) munmap(map_, kMostBytes);
  }
  RandomModel(const RandomModel&) = delete;
  RandomModel& operator=(const RandomModel&) = delete;

  const mobilemoe_weights& weights() const { return weights_; }
  size_t bytes() const { return bytes_; }

 private:
  uint64_t random() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }

  static void need(bool done, const char* what) {
    if (done) return;
    std::perror(what);
    std::exit(2);
  }

  // Tensors get their addresses before the file is mapped there.
  void begin_file() {
    file_ = std::tmpfile();
    need(file_ != nullptr, "A temporary file for the weights");
    map_ = mmap(nullptr, kMostBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    need(map_ != MAP_FAILED, "Room for the weights");
  }

  void map_file() {
    need(std::fflush(file_) == 0, "The temporary file of the weights");
    void* const map = mmap(map_, bytes_, PROT_READ, MAP_SHARED | MAP_FIXED, fileno(file_), 0);
    need(map != MAP_FAILED, "A map of the weights");
    std::fclose(file_);
  }

  template <typename T>
  mobilemoe_tensor keep(const std::vector<T>& content) {
    const auto* data = reinterpret_cast<const uint8_t*>(content.data());
    const size_t bytes = content.size() * sizeof(T);
    if (file_ != nullptr) {
      need(std::fwrite(data, 1, bytes, file_) == bytes, "The temporary file of the weights");
      data = static_cast<uint8_t*>(map_) + bytes_;
    } else {
      memory_.emplace_back(data, data + bytes);
      data = memory_.back().data();
    }
    bytes_ += bytes;
    return {data, bytes};
  }

  mobilemoe_int4 int4(size_t rows, size_t columns) {
    std::vector<uint8_t> codes(rows * columns / 2);
    for (auto& byte : codes) {
      const uint64_t r = random() >> 20;
      byte = static_cast<uint8_t>((r % 15 + 9) % 16 | (r / 15 % 15 + 9) % 16 << 4);  // -7..7
    }
    // Float16 between 0.5 and 1.5 times 2^-5: bits of the mantissa and the last of the exponent.
    std::vector<uint16_t> scales(rows * columns / 32);
    for (auto& scale : scales) scale = static_cast<uint16_t>(0x2400 + (random() >> 40) % 0x600);
    const mobilemoe_tensor kept = keep(codes);
    return {kept, keep(scales)};
  }

  mobilemoe_tensor ones(size_t count) {
    return keep(std::vector<uint16_t>(count, 0x3f80));  // bfloat16
  }

  mobilemoe_tensor floats(size_t count) {
    std::vector<float> values(count);
    for (auto& value : values) {
      value = (static_cast<float>(random() >> 40) / (1 << 24) - 0.5f) * 0.1f;
    }
    return keep(values);
  }

  static constexpr size_t kMostBytes = size_t{16} << 30;

  uint64_t state_ = 0x9E3779B97F4A7C15u;
  size_t bytes_ = 0;
  std::vector<std::vector<uint8_t>> memory_;
  std::FILE* file_ = nullptr;
  void* map_ = nullptr;
  std::vector<mobilemoe_layer_weights> layers_;
  mobilemoe_weights weights_{};
};
