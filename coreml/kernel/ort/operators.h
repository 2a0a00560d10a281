// The operators, one class each, and what ONNX Runtime is told of their inputs.
#pragma once

#include <memory>
#include <vector>

#include "engine.h"
#include "node.h"

namespace mobilemoe::ort {

struct OperatorType {
  const char* name;
  std::vector<ElementType> inputs, outputs;
  std::unique_ptr<Kernel> (*create)(const NodeInfo& node, std::shared_ptr<Engine> engine);
};

// Each in the file of its name (op_*.cpp).
extern const OperatorType kMoeOperator, kEmbeddingOperator, kHeadOperator;
extern const OperatorType kDecoderLayerOperator, kDecoderLayerHalfOperator;  // by the cache's type

}  // namespace mobilemoe::ort
