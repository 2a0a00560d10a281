// Models whose experts come through a callback, against one that has them in memory, bit for bit: with
// least memory and more, in every precision; while the callback fails; two sessions at once. For the
// sanitizers (test_kernel_sanitizers.py). Ends with 0 when every call returned what it may.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "random_model.h"

namespace {

constexpr int kTokens = 24, kContext = 64;
using Logits = std::vector<float>;

std::atomic<int> mistakes{0};

void expect(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "%s\n", what);
  ++mistakes;
}

// The owner: copies from the weights in memory, and fails when it is told to.
struct Owner {
  const mobilemoe_weights* weights;
  size_t values;  // of down
  std::atomic<int> reads_until_failure{-1};

  static void copy(const mobilemoe_tensor& from, int32_t expert, size_t bytes, uint8_t* to) {
    std::memcpy(to, static_cast<const uint8_t*>(from.data) + expert * bytes, bytes);
  }

  static int32_t read(void* owner, int32_t layer, int32_t expert,
                      const mobilemoe_expert_buffers* to, char* message) {
    auto& self = *static_cast<Owner*>(owner);
    if (self.reads_until_failure >= 0 && self.reads_until_failure-- <= 0) {
      std::snprintf(message, MOBILEMOE_MESSAGE_BYTES, "Expert %d is not there.", expert);
      return 1;
    }
    const mobilemoe_moe_weights& from = self.weights->layers[layer].feed_forward;
    copy(from.gate_up.codes, expert, self.values, to->gate_up_codes);
    copy(from.gate_up.scales, expert, self.values / 8, to->gate_up_scales);
    copy(from.down.codes, expert, self.values / 2, to->down_codes);
    copy(from.down.scales, expert, self.values / 16, to->down_scales);
    return 0;
  }
};

// Logits after a prompt, and after each of two more tokens.
Logits conversation(mobilemoe_session* session, int vocab, int salt) {
  Logits all(3 * vocab);
  std::vector<int32_t> tokens(kTokens + 2);
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<int32_t>((i * 7 + salt) % vocab);
  }
  mobilemoe_session_rewind(session, 0, nullptr);
  int first = 0;
  for (int call = 0; call < 3; ++call) {
    const int count = call == 0 ? kTokens : 1;
    const mobilemoe_status status =
        mobilemoe_session_feed(session, tokens.data() + first, count, MOBILEMOE_LOGITS_LAST,
                               all.data() + call * vocab, nullptr);
    if (status == MOBILEMOE_CANCELLED) {
      --call;
      continue;
    }
    expect(status == MOBILEMOE_OK, "feed");
    first += count;
  }
  return all;
}

mobilemoe_session* new_session(mobilemoe_model* model) {
  const mobilemoe_session_options options{kContext, MOBILEMOE_CACHE_FLOAT16, 8};
  mobilemoe_session* session = nullptr;
  expect(mobilemoe_session_create(model, &options, &session, nullptr) == MOBILEMOE_OK, "session");
  return session;
}

void fails_and_goes_on(mobilemoe_session* session, Owner& owner, int vocab,
                       const Logits& wanted) {
  for (int after = 0; after < 20; ++after) {
    mobilemoe_session_rewind(session, 0, nullptr);
    std::vector<int32_t> tokens(kTokens);
    for (int i = 0; i < kTokens; ++i) tokens[i] = (i * 11 + after) % vocab;
    mobilemoe_error error;
    owner.reads_until_failure = after;
    const mobilemoe_status status = mobilemoe_session_feed(
        session, tokens.data(), kTokens, MOBILEMOE_LOGITS_NONE, nullptr, &error);
    if (owner.reads_until_failure < -1) {  // it came to the failure
      expect(status == MOBILEMOE_READ_FAILED, "a failure is told");
      expect(std::strstr(error.message, "is not there.") != nullptr, "with its sentence");
      expect(mobilemoe_session_position(session) == 0, "the session is as it was");
    }
    owner.reads_until_failure = -1;
  }
  expect(conversation(session, vocab, 0) == wanted, "after failures");
}

void two_at_once(mobilemoe_model* model, int vocab, const Logits (&wanted)[2]) {
  mobilemoe_session* sessions[2] = {new_session(model), new_session(model)};
  const auto talk = [&](int index) {
    for (int round = 0; round < 3; ++round) {
      expect(conversation(sessions[index], vocab, index) == wanted[index], "two at once");
    }
  };
  std::thread other([&] { talk(1); });
  std::thread canceller([&] {
    for (int i = 0; i < 5; ++i) {
      mobilemoe_session_cancel(sessions[1]);
      mobilemoe_expert_counters counters;
      mobilemoe_model_expert_counters(model, &counters);
      expect(counters.held > 0 && counters.bytes_read >= 0, "counters");
      std::this_thread::yield();
    }
  });
  talk(0);
  other.join();
  canceller.join();
  for (auto* session : sessions) mobilemoe_session_destroy(session);
}

}  // namespace

int main() {
  std::vector<float> periods(8);
  mobilemoe_rope_periods(16, 10000, 1, 1, 1, 8192, periods.data(), nullptr);
  const mobilemoe_config config{96, 64, 3,    4,    2, 16, 32,
                                64, 10, 3,    1,    1, 1e-5f, 2.5f, periods.data()};
  const RandomModel random(config);
  Owner owner{&random.weights(), size_t(config.hidden_size) * config.intermediate_size};
  const size_t least = mobilemoe_least_expert_memory(&config);
  for (const int precision : {MOBILEMOE_EXACT, MOBILEMOE_INT16, MOBILEMOE_INT8}) {
    const mobilemoe_runtime_options options{precision, 3, nullptr};
    mobilemoe_runtime* runtime;
    mobilemoe_model* model;
    expect(mobilemoe_runtime_create(&options, &runtime, nullptr) == MOBILEMOE_OK, "runtime");
    expect(mobilemoe_model_create(runtime, &config, &random.weights(), &model, nullptr) ==
               MOBILEMOE_OK,
           "model");
    mobilemoe_session* session = new_session(model);
    const Logits wanted[2] = {conversation(session, config.vocab_size, 0),
                              conversation(session, config.vocab_size, 1)};
    mobilemoe_session_destroy(session);
    mobilemoe_model_destroy(model);

    for (const size_t memory : {least, 2 * least, 5 * least, 100 * least}) {
      const mobilemoe_expert_source source{Owner::read, &owner, memory};
      mobilemoe_weights weights = random.weights();
      weights.expert_source = &source;
      expect(mobilemoe_model_create(runtime, &config, &weights, &model, nullptr) == MOBILEMOE_OK,
             "model with a source");
      session = new_session(model);
      fails_and_goes_on(session, owner, config.vocab_size, wanted[0]);
      mobilemoe_session_destroy(session);
      two_at_once(model, config.vocab_size, wanted);
      mobilemoe_model_destroy(model);
    }
    mobilemoe_runtime_destroy(runtime);
  }
  return mistakes == 0 ? 0 : 1;
}
