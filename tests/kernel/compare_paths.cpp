// Every code path of this build and CPU against the plain C++ one in float32, on random weights: for
// CPUs that only an emulator has (test_kernel_cross.py). Prints the code paths, fastest first, and how
// far each is off; ends with 0 if none is too far.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "random_model.h"

namespace {

// Relative L2 error of the logits of two layers, by precision: random layers blow up what is rounded.
// With a cache of int8 a key that is a little off may be rounded to the next integer.
constexpr double kLimits[] = {2e-5, 1e-3, 3e-1}, kInt8CacheLimits[] = {1e-4, 5e-3, 3e-1};
constexpr int kCounts[] = {1, 2, 3, 31, 33};

mobilemoe_error error;

void check(mobilemoe_status status) {
  if (status == MOBILEMOE_OK) return;
  std::fprintf(stderr, "%s\n", error.message);
  std::exit(2);
}

// Logits of all tokens, fed as kCounts says, [tokens][vocabulary].
std::vector<float> logits(const mobilemoe_config& config, const RandomModel& weights,
                          const char* path, int precision, int cache_type) {
  const mobilemoe_runtime_options options{precision, 2, path};
  mobilemoe_runtime* runtime;
  mobilemoe_model* model;
  mobilemoe_session* session;
  check(mobilemoe_runtime_create(&options, &runtime, &error));
  check(mobilemoe_model_create(runtime, &config, &weights.weights(), &model, &error));
  const mobilemoe_session_options session_options{128, cache_type, 64};
  check(mobilemoe_session_create(model, &session_options, &session, &error));
  std::vector<float> all;
  int32_t next = 1;
  for (const int count : kCounts) {
    std::vector<int32_t> tokens(count);
    for (auto& token : tokens) token = next = (next * 29 + 7) % config.vocab_size;
    const size_t before = all.size();
    all.resize(before + static_cast<size_t>(count) * config.vocab_size);
    check(mobilemoe_session_feed(session, tokens.data(), count, MOBILEMOE_LOGITS_ALL,
                                 all.data() + before, &error));
  }
  mobilemoe_session_destroy(session);
  mobilemoe_model_destroy(model);
  mobilemoe_runtime_destroy(runtime);
  return all;
}

}  // namespace

int main() {
  std::vector<float> periods(9);
  check(mobilemoe_rope_periods(18, 10000, 1, 1, 1, 8192, periods.data(), &error));
  // 16 heads of 18 features: neither a block nor a vector is full.
  const mobilemoe_config config{97, 96, 2, 16, 4, 18, 160, 224, 7, 2, 1, 1, 1e-5f, 2.5f,
                                periods.data()};
  const RandomModel weights(config, 20);
  int mistakes = 0;
  for (int cache_type = 0; cache_type < 3; ++cache_type) {
    const std::vector<float> wanted = logits(config, weights, "portable", 0, cache_type);
    double size = 0;
    for (const float y : wanted) size += static_cast<double>(y) * y;
    for (int i = 0; const char* path = mobilemoe_cpu_path_name(i); ++i) {
      for (int precision = 0; precision < 3; ++precision) {
        const std::vector<float> found = logits(config, weights, path, precision, cache_type);
        double difference = 0;
        for (size_t j = 0; j < found.size(); ++j) {
          difference += std::pow(static_cast<double>(found[j]) - wanted[j], 2);
        }
        const double relative = std::sqrt(difference / size);
        std::printf("%s, precision %d, cache %d: %.1e\n", path, precision, cache_type, relative);
        const double* limits = cache_type == MOBILEMOE_CACHE_INT8 ? kInt8CacheLimits : kLimits;
        mistakes += !(relative < limits[precision]);
      }
    }
  }
  return mistakes == 0 ? 0 : 1;
}
