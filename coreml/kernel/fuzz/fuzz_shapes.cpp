// A libFuzzer target: any sizes through the C interface, with weights in buffers of exactly their
// size, so that a sanitizer sees a read or write beyond them.
//
//   clang++ -std=c++17 -g -O1 -fsanitize=fuzzer,address,undefined -Iinclude src/*.cpp
//       fuzz/fuzz_shapes.cpp -o fuzz_shapes
// Without libFuzzer, -DMOBILEMOE_STANDALONE adds a main that runs a number of random inputs, for
// compilers and sanitizers (thread) that come without one.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "mobilemoe.h"

namespace {

// Takes numbers from the input, then zeros.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  uint8_t byte() { return at_ < size_ ? data_[at_++] : 0; }
  // A number from `low` to `high`; now and then one that is not allowed.
  int number(int low, int high) {
    const uint8_t b = byte();
    if (b == 255) return low - 1 - byte() % 3;
    return low + b % (high - low + 1);
  }
  int size(int most) {
    const uint8_t b = byte();
    return b == 255 ? byte() : 32 * (1 + b % most);
  }
  uint32_t random() { return state_ = state_ * 1664525u + 1013904223u + byte(); }

 private:
  const uint8_t* data_;
  const size_t size_;
  size_t at_ = 0;
  uint32_t state_ = 1;
};

// Owns what it hands out.
class Buffers {
 public:
  explicit Buffers(Input& input) : input_(input) {}

  mobilemoe_tensor bytes(long long count, bool random) {
    const size_t size = count < 0 ? 0 : static_cast<size_t>(count);
    memory_.emplace_back(new uint8_t[size]);
    uint8_t* data = memory_.back().get();
    for (size_t i = 0; i < size; ++i) data[i] = random ? input_.random() >> 16 : 0;
    return {data, size};
  }
  mobilemoe_int4 int4(long long rows, long long columns) {
    const mobilemoe_tensor codes = bytes(rows * columns / 2, true);
    const mobilemoe_tensor scales = bytes(rows * columns / 32 * 2, true);
    auto* data = static_cast<uint8_t*>(const_cast<void*>(scales.data));
    for (size_t i = 1; i < scales.bytes; i += 2) data[i] = 0x20 + data[i] % 8;
    return {codes, scales};
  }
  mobilemoe_tensor floats(long long count) {
    const mobilemoe_tensor tensor = bytes(count * 4, false);
    auto* data = static_cast<float*>(const_cast<void*>(tensor.data));
    for (size_t i = 0; i < tensor.bytes / 4; ++i) {
      data[i] = static_cast<float>(input_.random() >> 16 & 0xffff) / 32768 - 1;
    }
    return tensor;
  }
  float* results(long long count) {
    return static_cast<float*>(const_cast<void*>(bytes(count * 4, false).data));
  }

 private:
  Input& input_;
  std::deque<std::unique_ptr<uint8_t[]>> memory_;
};

const float* as_floats(const mobilemoe_tensor& tensor) {
  return static_cast<const float*>(tensor.data);
}

mobilemoe_moe_weights moe_weights(Buffers& buffers, const mobilemoe_moe_shape& s) {
  const long long d = s.hidden_size, w = s.intermediate_size, e = s.num_local_experts;
  const long long shared = s.intermediate_size_mlp;
  return {buffers.floats(e * d),       buffers.floats(e),        buffers.int4(e * d, 2 * w),
          buffers.int4(e * w, d),      buffers.int4(shared, d),  buffers.int4(shared, d),
          buffers.int4(d, shared)};
}

mobilemoe_moe_shape moe_shape(Input& input) {
  return {input.size(4), input.size(4), input.byte() % 4 == 0 ? 0 : input.size(4),
          input.number(0, 9), input.number(1, 3), input.byte() % 2, 2.5f};
}

void linear(Input& input, mobilemoe_runtime* runtime) {
  Buffers buffers(input);
  const int rows = input.number(1, 70), columns = input.size(9), count = input.number(1, 40);
  const mobilemoe_int4 weight = buffers.int4(rows, columns);
  const size_t room = mobilemoe_linear_int4_workspace(runtime, count, rows, columns);
  const mobilemoe_tensor workspace = buffers.bytes(room, true);
  mobilemoe_linear_int4(runtime, &weight, rows, columns,
                        as_floats(buffers.floats(static_cast<long long>(count) * columns)), count,
                        buffers.results(static_cast<long long>(count) * rows),
                        const_cast<void*>(workspace.data), workspace.bytes, nullptr);
}

void moe(Input& input, mobilemoe_runtime* runtime) {
  Buffers buffers(input);
  const mobilemoe_moe_shape shape = moe_shape(input);
  const int count = input.number(1, 40);
  const mobilemoe_moe_weights weights = moe_weights(buffers, shape);
  const mobilemoe_tensor workspace =
      buffers.bytes(mobilemoe_moe_ffn_workspace(runtime, &shape, count), true);
  const long long size = static_cast<long long>(count) * shape.hidden_size;
  mobilemoe_moe_ffn(runtime, &shape, &weights, as_floats(buffers.floats(size)), count,
                    buffers.results(size), const_cast<void*>(workspace.data), workspace.bytes,
                    nullptr);
}

void attention(Input& input, mobilemoe_runtime* runtime) {
  Buffers buffers(input);
  const int kv_heads = input.number(1, 3), heads = kv_heads * input.number(1, 8);
  const int head_dim = input.number(1, 40) * 2, position = input.number(0, 250) * 2;
  const int count = input.number(1, 40), context = position + count + input.number(0, 2);
  const mobilemoe_attention_shape shape{heads, kv_heads, head_dim,           context,
                                        input.byte() % 2, 1e-5f, 0.125f};
  const long long q = static_cast<long long>(count) * heads * head_dim;
  const long long kv = static_cast<long long>(count) * kv_heads * head_dim;
  const long long cache = static_cast<long long>(kv_heads) * context * head_dim;
  const mobilemoe_tensor workspace =
      buffers.bytes(mobilemoe_attention_workspace(runtime, &shape, position, count), true);
  const mobilemoe_tensor periods = buffers.floats(head_dim / 2);
  mobilemoe_attention(runtime, &shape, as_floats(buffers.floats(q)), as_floats(buffers.floats(kv)),
                      as_floats(buffers.floats(kv)), position, count,
                      as_floats(buffers.floats(cache)), as_floats(buffers.floats(cache)),
                      as_floats(periods), buffers.results(kv), buffers.results(kv),
                      buffers.results(q), const_cast<void*>(workspace.data), workspace.bytes,
                      nullptr);
}

// Experts that are copied when they are asked for, until that fails.
struct ExpertReader {
  const std::vector<mobilemoe_layer_weights>& layers;
  int experts;
  std::atomic<int> reads_until_failure;

  static void copy(const mobilemoe_tensor& from, int expert, int experts, uint8_t* to) {
    const size_t bytes = from.bytes / experts;
    std::memcpy(to, static_cast<const uint8_t*>(from.data) + expert * bytes, bytes);
  }
  static int32_t read(void* owner, int32_t layer, int32_t expert,
                      const mobilemoe_expert_buffers* to, char* message) {
    auto& self = *static_cast<ExpertReader*>(owner);
    if (self.reads_until_failure-- <= 0) {
      std::snprintf(message, MOBILEMOE_MESSAGE_BYTES, "No more.");
      return 1;
    }
    const mobilemoe_moe_weights& from = self.layers[layer].feed_forward;
    copy(from.gate_up.codes, expert, self.experts, to->gate_up_codes);
    copy(from.gate_up.scales, expert, self.experts, to->gate_up_scales);
    copy(from.down.codes, expert, self.experts, to->down_codes);
    copy(from.down.scales, expert, self.experts, to->down_scales);
    return 0;
  }
};

void session(Input& input, mobilemoe_runtime* runtime) {
  Buffers buffers(input);
  const mobilemoe_moe_shape shape = moe_shape(input);
  const int kv_heads = input.number(1, 2), heads = kv_heads * input.number(1, 4);
  const int head_dim = 16 * input.number(1, 3), layers = 2, vocab = input.number(1, 50);
  const mobilemoe_tensor periods = buffers.bytes(head_dim / 2 * 4LL, false);
  if (head_dim > 0) {
    mobilemoe_rope_periods(head_dim, 10000, 1, 1, 1, 8192,
                           static_cast<float*>(const_cast<void*>(periods.data)), nullptr);
  }
  const mobilemoe_config config{vocab,
                                shape.hidden_size,
                                layers,
                                heads,
                                kv_heads,
                                head_dim,
                                shape.intermediate_size,
                                shape.intermediate_size_mlp,
                                shape.num_local_experts,
                                shape.num_experts_per_tok,
                                1,
                                1,
                                1e-5f,
                                2.5f,
                                as_floats(periods)};
  const long long d = shape.hidden_size, q = heads * head_dim, kv = kv_heads * head_dim;
  std::vector<mobilemoe_layer_weights> weights(layers);
  for (auto& layer : weights) {
    layer = {buffers.floats(d), buffers.int4(q, d),          buffers.int4(kv, d),
             buffers.int4(kv, d), buffers.int4(d, q),        buffers.floats(d),
             moe_weights(buffers, shape), input.number(0, 20)};
  }
  ExpertReader reader{weights, shape.num_local_experts, {input.number(0, 100)}};
  const mobilemoe_expert_source source{
      ExpertReader::read, &reader,
      mobilemoe_least_expert_memory(&config) * static_cast<size_t>(input.number(0, 4))};
  const mobilemoe_weights all{buffers.int4(vocab, d), buffers.floats(d), weights.data(),
                              input.byte() % 2 == 0 ? &source : nullptr};
  mobilemoe_model* model;
  if (mobilemoe_model_create(runtime, &config, &all, &model, nullptr) != MOBILEMOE_OK) return;
  const mobilemoe_session_options options{
      input.number(1, 300), input.number(0, 2),
      input.number(1, 20)};
  mobilemoe_session* made;
  if (mobilemoe_session_create(model, &options, &made, nullptr) == MOBILEMOE_OK) {
    std::vector<float> logits(static_cast<size_t>(vocab) * 64);
    for (int call = 0; call < 4; ++call) {
      const int count = input.number(1, 60);
      std::vector<int32_t> tokens(count < 0 ? 0 : count);
      for (auto& token : tokens) token = input.number(0, vocab - 1);
      const int which = input.number(0, 2);
      if (input.byte() % 8 == 1) mobilemoe_session_cancel(made);
      mobilemoe_session_feed(made, tokens.data(), count, which, logits.data(), nullptr);
      const int asked = input.number(0, 24);
      std::vector<int32_t> chosen(static_cast<size_t>(asked) * layers *
                                  std::max(0, shape.num_experts_per_tok));
      if (!chosen.empty()) mobilemoe_session_experts(made, asked, chosen.data(), nullptr);
      std::vector<uint8_t> saved(mobilemoe_session_saved_bytes(made));
      mobilemoe_session_save(made, saved.data(), saved.size(), nullptr);
      if (!saved.empty()) saved[input.random() % saved.size()] ^= input.byte();
      mobilemoe_session_load(made, saved.data(), saved.size(), nullptr);
      mobilemoe_session_rewind(made, input.number(0, 60), nullptr);
    }
    mobilemoe_session_destroy(made);
  }
  mobilemoe_model_destroy(model);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  const mobilemoe_runtime_options options{
      input.number(0, 2), input.number(1, 4),
      mobilemoe_cpu_path_name(input.byte() % 3)};
  mobilemoe_runtime* runtime;
  if (mobilemoe_runtime_create(&options, &runtime, nullptr) != MOBILEMOE_OK) return 0;
  switch (input.byte() % 4) {
    case 0: linear(input, runtime); break;
    case 1: moe(input, runtime); break;
    case 2: attention(input, runtime); break;
    default: session(input, runtime);
  }
  mobilemoe_runtime_destroy(runtime);
  return 0;
}

#if defined(MOBILEMOE_STANDALONE)
int main(int argc, char** argv) {
  const int runs = argc > 1 ? std::atoi(argv[1]) : 200;
  uint32_t state = 12345;
  for (int run = 0; run < runs; ++run) {
    std::vector<uint8_t> data(400);
    for (auto& byte : data) {
      state = state * 1664525u + 1013904223u;
      byte = static_cast<uint8_t>(state >> 24);
    }
    LLVMFuzzerTestOneInput(data.data(), data.size());
  }
  std::printf("%d inputs\n", runs);
}
#endif
