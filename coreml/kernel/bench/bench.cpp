// Times a full-size model with random weights in a map of a temporary file; prints one JSON line per
// round: tokens per second, and beside decoding what the memory gives just before and after it.
//
// bench [--shape S|M|L|pro] [--precision exact|int16|int8] [--threads N] [--contexts 0,1024]
//       [--prompts 512,1024] [--cache float32|float16|int8] [--cpu-path NAME] [--rounds N]
// With --rounds 0 a round is run for each line of standard input.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "random_model.h"

namespace {

constexpr int kDecodeTokens = 32;
constexpr size_t kReadWords = size_t{16} << 20;  // 128 MB per thread, to measure the memory's rate

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

[[noreturn]] void stop(const std::string& sentence) {
  std::fprintf(stderr, "%s\n", sentence.c_str());
  std::exit(2);
}

void check(mobilemoe_status status, const mobilemoe_error& error) {
  if (status != MOBILEMOE_OK) stop(error.message);
}

// Gigabytes per second that all threads read together, the best of three times.
double bandwidth(const std::vector<std::vector<uint64_t>>& memory) {
  const size_t threads = memory.size();
  std::vector<uint64_t> sums(threads * 8);
  double best = 0;
  for (int round = 0; round < 3; ++round) {
    std::vector<std::thread> workers;
    const double start = now();
    for (size_t i = 0; i < threads; ++i) {
      workers.emplace_back([&, i] {
        uint64_t sum[8] = {};
        for (size_t j = 0; j < kReadWords; j += 8) {
          for (int k = 0; k < 8; ++k) sum[k] += memory[i][j + k];
        }
        for (const uint64_t part : sum) sums[i * 8] += part;
      });
    }
    for (auto& worker : workers) worker.join();
    best = std::max(best, threads * kReadWords * 8.0 / (now() - start) / 1e9);
  }
  if (sums[0] == 0) stop("The memory was not read.");
  return best;
}

std::vector<int> numbers(const std::string& text) {
  std::vector<int> values;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) values.push_back(std::atoi(part.c_str()));
  return values;
}

bool contains(const std::vector<int>& values, int value) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

mobilemoe_config config_of(const std::string& shape) {
  //                 vocab   d     layers heads kv head  w    shared E  k
  if (shape == "S") return {128256, 768, 20, 12, 4, 64, 384, 1536, 60, 4, 1, 1, 1e-5f, 2.5f, nullptr};
  if (shape == "M") return {128256, 1024, 26, 16, 4, 64, 512, 2048, 60, 4, 1, 1, 1e-5f, 2.5f, nullptr};
  if (shape == "L") return {128256, 1280, 32, 20, 4, 64, 640, 2560, 60, 4, 1, 1, 1e-5f, 2.5f, nullptr};
  // MobileLLM-Pro, the paper's dense baseline.
  if (shape == "pro") return {202048, 1280, 30, 20, 4, 64, 0, 6144, 0, 0, 1, 0, 1e-5f, 1, nullptr};
  stop("There is no shape " + shape + ": S, M, L or pro.");
}

int index_of(const std::string& name, std::initializer_list<const char*> names) {
  int index = 0;
  for (const char* known : names) {
    if (name == known) return index;
    ++index;
  }
  stop(name + " is not known.");
}

}  // namespace

int main(int argc, char** argv) {
  std::map<std::string, std::string> options = {
      {"--shape", "S"},        {"--precision", "int16"}, {"--threads", "2"}, {"--rounds", "1"},
      {"--contexts", "0,1024"}, {"--prompts", "512,1024"}, {"--cpu-path", ""}, {"--cache", "float16"}};
  for (int i = 1; i < argc; i += 2) {
    if (options.count(argv[i]) == 0 || i + 1 == argc) stop(std::string("Not known: ") + argv[i]);
    options[argv[i]] = argv[i + 1];
  }
  const int threads = std::atoi(options["--threads"].c_str());
  mobilemoe_config config = config_of(options["--shape"]);
  mobilemoe_error error;
  std::vector<float> periods(config.head_dim / 2);
  check(mobilemoe_rope_periods(config.head_dim, 500000, 16, 1, 1, 8192, periods.data(), &error), error);
  config.rope_periods = periods.data();

  const RandomModel weights(config, options["--shape"] == "pro" ? 512 : 0, true);
  const std::string& path = options["--cpu-path"];
  const mobilemoe_runtime_options runtime_options{
      index_of(options["--precision"], {"exact", "int16", "int8"}), threads, path.empty() ? nullptr : path.c_str()};
  mobilemoe_runtime* runtime;
  check(mobilemoe_runtime_create(&runtime_options, &runtime, &error), error);
  mobilemoe_model* model;
  check(mobilemoe_model_create(runtime, &config, &weights.weights(), &model, &error), error);

  const std::vector<int> contexts = numbers(options["--contexts"]);
  const std::vector<int> prompts = numbers(options["--prompts"]);
  int longest = 0;
  for (const int context : contexts) longest = std::max(longest, context + kDecodeTokens + 1);
  for (const int prompt : prompts) longest = std::max(longest, prompt);
  const mobilemoe_session_options session_options{
      longest,
      index_of(options["--cache"], {"float32", "float16", "int8"}), 512};
  mobilemoe_session* session;
  check(mobilemoe_session_create(model, &session_options, &session, &error), error);
  std::vector<int32_t> tokens(longest);
  for (int i = 0; i < longest; ++i) tokens[i] = static_cast<int32_t>(i * 7919LL % config.vocab_size);
  std::vector<float> logits(config.vocab_size);
  const auto feed = [&](int first, int count) {
    check(mobilemoe_session_feed(session, tokens.data() + first, count, MOBILEMOE_LOGITS_LAST,
                                 logits.data(), &error),
          error);
  };

  const std::vector<std::vector<uint64_t>> memory(threads, std::vector<uint64_t>(kReadWords, 1));
  const int rounds = std::atoi(options["--rounds"].c_str());
  for (int round = 0; rounds == 0 ? std::getchar() != EOF : round < rounds; ++round) {
    std::printf("{\"engine\": \"mobilemoe\", \"shape\": \"%s\", \"precision\": \"%s\", "
                "\"threads\": %d, \"cpu_path\": \"%s\", \"weight_bytes\": %zu",
                options["--shape"].c_str(), options["--precision"].c_str(), threads,
                mobilemoe_runtime_cpu_path(runtime), weights.bytes());
    // A prompt that is a context too is fed once for both.
    std::set<int> lengths(prompts.begin(), prompts.end());
    lengths.insert(contexts.begin(), contexts.end());
    double largest_rate = 0;
    for (const int length : lengths) {
      check(mobilemoe_session_rewind(session, 0, &error), error);
      double start = now();
      if (length > 0) feed(0, length);
      if (contains(prompts, length)) std::printf(", \"prefill_%d\": %.1f", length, length / (now() - start));
      if (!contains(contexts, length)) continue;
      feed(length, 1);
      const double before = bandwidth(memory);
      start = now();
      for (int i = 1; i <= kDecodeTokens; ++i) feed(length + i, 1);
      const double seconds = now() - start;
      // What the cores of a virtual machine get changes from one second to the next.
      const double rate = std::max(before, bandwidth(memory));
      largest_rate = std::max(largest_rate, rate);
      std::printf(", \"decode_%d\": %.1f, \"bandwidth_%d\": %.1f", length,
                  kDecodeTokens / seconds, length, rate);
    }
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    std::printf(", \"bandwidth_gb_s\": %.1f, \"peak_rss_mb\": %ld}\n", largest_rate,
                usage.ru_maxrss / 1024 -
                    static_cast<long>(threads * kReadWords * sizeof(uint64_t) >> 20));
    std::fflush(stdout);
  }
  mobilemoe_session_destroy(session);
  mobilemoe_model_destroy(model);
  mobilemoe_runtime_destroy(runtime);
}
