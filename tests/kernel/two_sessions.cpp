// Two sessions of one model at once, each from its own thread, while a third thread cancels one of
// them: for the thread sanitizer (test_kernel_sanitizers.py). Ends with 0 when every call returned
// what it may.
#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>

#include "random_model.h"

namespace {

constexpr int kTokens = 24, kRounds = 4;

std::atomic<int> mistakes{0};

void expect(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "%s\n", what);
  ++mistakes;
}

}  // namespace

int main() {
  std::vector<float> periods(8);
  mobilemoe_rope_periods(16, 10000, 1, 1, 1, 8192, periods.data(), nullptr);
  const mobilemoe_config config{96, 64, 2,    4,    2, 16, 32,
                                64, 6,  2,    1,    1, 1e-5f, 2.5f, periods.data()};
  const RandomModel weights(config);
  // More threads than cores: some sleep, and their tasks are taken by others.
  const mobilemoe_runtime_options options{MOBILEMOE_INT8, 4, nullptr};
  mobilemoe_runtime* runtime;
  mobilemoe_model* model;
  expect(mobilemoe_runtime_create(&options, &runtime, nullptr) == MOBILEMOE_OK, "runtime");
  expect(mobilemoe_model_create(runtime, &config, &weights.weights(), &model, nullptr) ==
             MOBILEMOE_OK,
         "model");
  const mobilemoe_session_options session_options{64, MOBILEMOE_CACHE_FLOAT16, 8};
  mobilemoe_session* sessions[2];
  for (auto& session : sessions) {
    expect(mobilemoe_session_create(model, &session_options, &session, nullptr) == MOBILEMOE_OK,
           "session");
  }
  std::vector<float> first[2];  // logits of the first round
  const auto feed = [&](int index) {
    std::vector<int32_t> tokens(kTokens);
    for (int i = 0; i < kTokens; ++i) tokens[i] = (i * 7 + index) % config.vocab_size;
    std::vector<float> logits(config.vocab_size);
    for (int round = 0; round < kRounds;) {
      mobilemoe_session_rewind(sessions[index], 0, nullptr);
      const mobilemoe_status status = mobilemoe_session_feed(
          sessions[index], tokens.data(), kTokens, MOBILEMOE_LOGITS_LAST, logits.data(), nullptr);
      if (index == 1 && status == MOBILEMOE_CANCELLED) continue;
      expect(status == MOBILEMOE_OK, "feed");
      if (round++ == 0) first[index] = logits;
      expect(logits == first[index], "the same tokens gave other logits");
    }
  };
  std::thread other([&] { feed(1); });
  std::thread canceller([&] {
    for (int i = 0; i < 5; ++i) {
      mobilemoe_session_cancel(sessions[1]);
      expect(mobilemoe_session_position(sessions[1]) <= kTokens, "position");
      std::this_thread::yield();
    }
  });
  feed(0);
  other.join();
  canceller.join();
  for (auto* session : sessions) mobilemoe_session_destroy(session);
  mobilemoe_model_destroy(model);
  mobilemoe_runtime_destroy(runtime);
  return mistakes == 0 ? 0 : 1;
}
