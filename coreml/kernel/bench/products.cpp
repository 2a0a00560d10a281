// Times the products of each code path and precision on one core: many tokens in multiplications a
// second (out of near caches), one token in bytes a second (out of memory), beside what the core
// reads in the same run. Best of many repetitions: what else the machine does only makes them slower.
//
//   c++ -std=c++17 -O3 -Isrc src/*.cpp bench/products.cpp -o bench_products -pthread
//   bench_products [CODE PATH]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "kernels.h"

using namespace mobilemoe;

namespace {

constexpr size_t kWindow = size_t{4} << 20;   // bytes that one measurement reads
constexpr size_t kMemory = size_t{128} << 20;  // more than any cache holds
constexpr int kColumns = 768, kRows = 1536, kTokens = 512, kExpertTokens = 34;  // as S has them

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

uint8_t* aligned(std::vector<uint8_t>& memory) {
  return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
}

struct Weights {
  Weights() : codes(kMemory), scales(kMemory / 8) {
    std::mt19937 random(1);
    for (auto& byte : codes) byte = static_cast<uint8_t>(random());
    for (size_t i = 0; i < scales.size(); i += 2) scales[i + 1] = 0x24;  // float16 near 2^-6
  }
  std::vector<uint8_t> codes, scales;
};

// Gigabytes a second of plain reading.
double read_rate(const Weights& weights) {
  double best = 0;
  volatile uint64_t sink = 0;
  for (size_t at = 0; at + kWindow <= kMemory; at += kWindow) {
    const double start = now();
    uint64_t sums[8] = {};
    for (size_t i = 0; i < kWindow; i += 64) {
      uint64_t words[8];
      std::memcpy(words, weights.codes.data() + at + i, 64);
      for (int j = 0; j < 8; ++j) sums[j] += words[j];
    }
    for (const uint64_t sum : sums) sink = sink + sum;
    best = std::max(best, kWindow / (now() - start) / 1e9);
  }
  return best;
}

// Billions of multiplications a second, or of bytes for one token.
double rate(const Products& products, const Weights& weights, bool expert, int count) {
  const bool single = count == 1;
  const int inputs = kColumns, outputs = expert ? kColumns : kRows;
  const size_t codes = static_cast<size_t>(inputs) * outputs / 2, scales = codes / 8;
  const size_t stride =
      ((expert ? products.expert_bytes(inputs) : products.linear_bytes(inputs)) + 63) / 64 * 64;
  std::vector<uint8_t> prepared(stride * count + 64);
  std::vector<uint8_t> scratch(
      (expert ? products.expert_scratch_bytes(inputs, outputs, count)
              : products.linear_scratch_bytes(inputs, count)) + 64);
  std::vector<float> x(inputs), y(static_cast<size_t>(count) * outputs);
  std::vector<int32_t> rows(count);
  std::mt19937 random(2);
  for (int t = 0; t < count; ++t) {
    for (auto& value : x) value = static_cast<float>(random() % 2001) / 1000 - 1;
    rows[t] = t;
    (expert ? products.prepare_expert : products.prepare_linear)(x.data(), inputs, single,
                                                                 aligned(prepared) + t * stride);
  }
  const auto multiply = [&](size_t index) {
    const uint8_t* c = weights.codes.data() + index * codes;
    const uint8_t* s = weights.scales.data() + index * scales;
    if (expert) {
      products.expert({aligned(prepared), stride, rows.data(), count, single, inputs, outputs, c, s,
                       0, outputs, y.data(), static_cast<size_t>(outputs), aligned(scratch),
                       c + codes, s + scales});
    } else {
      products.linear({aligned(prepared), stride, count, single, inputs, c, s, 0, outputs, y.data(),
                       static_cast<size_t>(outputs), aligned(scratch), c + codes, s + scales});
    }
  };
  double best = 0;
  const size_t matrices = single ? kMemory / codes - 1 : 1, together = single ? kWindow / codes : 1;
  const double work = single ? static_cast<double>(together * (codes + scales))
                             : static_cast<double>(inputs) * outputs * count;
  for (const double begin = now(); now() - begin < 1.0;) {
    for (size_t first = 0; first + together <= matrices; first += together) {
      const double start = now();
      for (size_t index = first; index < first + together; ++index) multiply(index);
      best = std::max(best, work / (now() - start) / 1e9);
    }
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  const Weights weights;
  std::printf("| code path | precision | linear, %d tokens: GMAC/s | expert, %d tokens | linear, one "
              "token: GB/s | expert, one token | plain reading |\n|---|---|---|---|---|---|---|\n",
              kTokens, kExpertTokens);
  int count;
  const Kernels* const* all = all_kernels(&count);
  for (int i = 0; i < count; ++i) {
    if (!all[i]->runs_here() || (argc > 1 && std::strcmp(argv[1], all[i]->name) != 0)) continue;
    for (int precision = 2; precision >= 0; --precision) {
      const Products& products = *all[i]->products[precision];
      const char* const names[] = {"exact", "int16", "int8"};
      std::printf("| %s | %s | %.0f | %.0f | %.1f | %.1f | %.1f |\n", all[i]->name,
                  names[precision], rate(products, weights, false, kTokens),
                  rate(products, weights, true, kExpertTokens), rate(products, weights, false, 1),
                  rate(products, weights, true, 1), read_rate(weights));
      std::fflush(stdout);
    }
  }
}
