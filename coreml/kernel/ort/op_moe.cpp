// mobilemoe::MoE: y = x + routed experts + shared expert of norm(x), for graphs that keep the attention.
#include <algorithm>

#include "feed_forward.h"
#include "operators.h"

namespace mobilemoe::ort {
namespace {

class MoeKernel : public Kernel {
 public:
  MoeKernel(const NodeInfo& node, std::shared_ptr<Engine> engine)
      : engine_(std::move(engine)),
        runtime_(engine_->runtime(node.string("precision", "int16"))),
        feed_forward_(node, 1, "norm") {}

  void compute(const Call& call) override {
    const Tensor x = call.input(0);
    const int64_t d = feed_forward_.hidden_size();
    if (x.dimensions.empty() || x.dimensions.back() != d) {
      refuse("x has the shape %s; its last size must be %lld.", text_of(x.dimensions).c_str(),
             static_cast<long long>(d));
    }
    float* y = call.floats(0, x.dimensions);
    const int64_t count = x.elements() / d;
    if (count == 0) return;
    const int block = static_cast<int>(std::min<int64_t>(count, kBlockTokens));
    Arena counter;
    FeedForward::Scratch(counter, runtime_, feed_forward_.shape(), block);
    const std::lock_guard<std::mutex> turn(runtime_.pool.turn());
    Arena arena(engine_->room(counter.bytes()));
    FeedForward::Scratch scratch(arena, runtime_, feed_forward_.shape(), block);
    for (int64_t first = 0; first < count; first += block) {
      const int size = static_cast<int>(std::min<int64_t>(count - first, block));
      feed_forward_.compute(runtime_, x.floats() + first * d, nullptr, size, y + first * d, scratch,
                            nullptr);
    }
  }

 private:
  const std::shared_ptr<Engine> engine_;
  Runtime& runtime_;
  const FeedForward feed_forward_;
};

}  // namespace

const OperatorType kMoeOperator = {
    "MoE",
    {kFloat, kFloat, kFloat, kFloat, kUint8, kFloat16, kUint8, kFloat16, kUint8, kFloat16, kUint8,
     kFloat16, kUint8, kFloat16},
    {kFloat},
    [](const NodeInfo& node, std::shared_ptr<Engine> engine) -> std::unique_ptr<Kernel> {
      return std::make_unique<MoeKernel>(node, std::move(engine));
    }};

}  // namespace mobilemoe::ort
