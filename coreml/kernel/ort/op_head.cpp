// mobilemoe::Head: logits [..., vocabulary] = norm(x [..., d]) times an INT4 table [vocabulary, d],
// transposed.
#include <algorithm>

#include "checks.h"
#include "feed_forward.h"
#include "operators.h"

namespace mobilemoe::ort {
namespace {

struct Scratch {
  Scratch(Arena& arena, const Runtime& runtime, int count, int hidden)
      : normed(arena.take<float>(static_cast<size_t>(count) * hidden)) {
    prepared.stride = round_up(runtime.products.linear_bytes(hidden), Arena::kAlignment);
    prepared.data = arena.take<uint8_t>(prepared.stride * count);
    thread_stride =
        round_up(runtime.products.linear_scratch_bytes(hidden, count), Arena::kAlignment);
    threads = arena.take<uint8_t>(thread_stride * runtime.pool.threads());
  }

  float* normed;
  Prepared prepared;
  uint8_t* threads;
  size_t thread_stride;
};

class HeadKernel : public Kernel {
 public:
  HeadKernel(const NodeInfo& node, std::shared_ptr<Engine> engine)
      : engine_(std::move(engine)),
        runtime_(engine_->runtime(node.string("precision", "int16"))),
        eps_(node.number("norm_eps")) {
    if (!(eps_ > 0)) refuse("the attribute norm_eps is %g: it must be above 0.", eps_);
    const Tensor codes = node.weight(2, "table_codes");
    if (codes.dimensions.size() != 2) {
      refuse("table_codes has the shape %s; [vocabulary, hidden / 2] is expected.",
             text_of(codes.dimensions).c_str());
    }
    const int64_t vocabulary = codes.dimensions[0], d = codes.dimensions[1] * 2;
    mobilemoe_error error;
    check(check_size(static_cast<int32_t>(vocabulary), 1, "the vocabulary", &error), error);
    check(check_size(static_cast<int32_t>(d), kGroup, "the hidden size", &error), error);
    norm_ = node.vector(1, "norm", d);
    table_ = linear_of(node.int4(2, "table", {vocabulary}, d), static_cast<int>(vocabulary),
                       static_cast<int>(d));
  }

  void compute(const Call& call) override {
    const Tensor x = call.input(0);
    const auto d = static_cast<int64_t>(norm_.size());
    if (x.dimensions.empty() || x.dimensions.back() != d) {
      refuse("x has the shape %s; its last size must be %lld.", text_of(x.dimensions).c_str(),
             static_cast<long long>(d));
    }
    Dimensions dimensions = x.dimensions;
    dimensions.back() = table_.rows;
    float* logits = call.floats(0, dimensions);
    const int64_t count = x.elements() / d;
    if (count == 0) return;
    const int block = static_cast<int>(std::min<int64_t>(count, kBlockTokens));
    Arena counter;
    Scratch(counter, runtime_, block, static_cast<int>(d));
    const std::lock_guard<std::mutex> turn(runtime_.pool.turn());
    Arena arena(engine_->room(counter.bytes()));
    const Scratch s(arena, runtime_, block, static_cast<int>(d));
    for (int64_t first = 0; first < count; first += block) {
      const int size = static_cast<int>(std::min<int64_t>(count - first, block));
      const Cut cut = cut_tokens(size);
      runtime_.pool.run(cut.tasks(), [&](int task, int) {
        for (int t = cut.begin(task); t < cut.end(task); ++t) {
          runtime_.kernels.rms_norm(x.floats() + (first + t) * d, norm_.data(),
                                    static_cast<int>(d), eps_, s.normed + t * d);
        }
      });
      prepare_linear(runtime_, s.normed, size, static_cast<int>(d), s.prepared);
      linear(runtime_, table_, s.prepared, size, logits + first * table_.rows, s.threads,
             s.thread_stride);
    }
  }

 private:
  const std::shared_ptr<Engine> engine_;
  Runtime& runtime_;
  const float eps_;
  std::vector<float> norm_;
  Linear table_;
};

}  // namespace

const OperatorType kHeadOperator = {
    "Head",
    {kFloat, kFloat, kUint8, kFloat16},
    {kFloat},
    [](const NodeInfo& node, std::shared_ptr<Engine> engine) -> std::unique_ptr<Kernel> {
      return std::make_unique<HeadKernel>(node, std::move(engine));
    }};

}  // namespace mobilemoe::ort
