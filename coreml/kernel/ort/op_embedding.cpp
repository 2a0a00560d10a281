// mobilemoe::Embedding: y [..., d] = the rows of an INT4 table [vocabulary, d] that tokens [...] name.
#include <limits>

#include "checks.h"
#include "model.h"
#include "operators.h"

namespace mobilemoe::ort {
namespace {

class EmbeddingKernel : public Kernel {
 public:
  explicit EmbeddingKernel(const NodeInfo& node) {
    const Tensor codes = node.weight(1, "table_codes");
    if (codes.dimensions.size() != 2) {
      refuse("table_codes has the shape %s; [vocabulary, hidden / 2] is expected.",
             text_of(codes.dimensions).c_str());
    }
    const int64_t vocabulary = codes.dimensions[0], d = codes.dimensions[1] * 2;
    if (vocabulary < 1 || vocabulary > std::numeric_limits<int32_t>::max()) {
      refuse("table_codes has %lld rows.", static_cast<long long>(vocabulary));
    }
    table_ = linear_of(node.int4(1, "table", {vocabulary}, d), static_cast<int>(vocabulary),
                       static_cast<int>(d));
  }

  void compute(const Call& call) override {
    const Tensor tokens = call.input(0);
    Dimensions dimensions = tokens.dimensions;
    dimensions.push_back(table_.columns);
    float* y = call.floats(0, dimensions);
    const int64_t count = tokens.elements();
    for (int64_t i = 0; i < count; ++i) {
      const int64_t token = tokens.integers()[i];
      if (token < 0 || token >= table_.rows) {
        refuse("token %lld is %lld: the vocabulary has ids 0 to %d.", static_cast<long long>(i),
               static_cast<long long>(token), table_.rows - 1);
      }
      const auto row = static_cast<int32_t>(token);
      embed(table_, &row, 1, y + i * table_.columns);
    }
  }

 private:
  Linear table_;
};

}  // namespace

const OperatorType kEmbeddingOperator = {
    "Embedding",
    {kInt64, kUint8, kFloat16},
    {kFloat},
    [](const NodeInfo& node, std::shared_ptr<Engine>) -> std::unique_ptr<Kernel> {
      return std::make_unique<EmbeddingKernel>(node);
    }};

}  // namespace mobilemoe::ort
