// A node of a graph as its operator sees it: attributes and weights when it is created, tensors when it
// runs. What does not fit becomes a Mistake, which names the node.
#pragma once

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "mobilemoe.h"
#include "ort_api.h"

namespace mobilemoe::ort {

using Dimensions = std::vector<int64_t>;

std::string text_of(const Dimensions& dimensions);

// Becomes the status that ONNX Runtime hands to its user.
struct Mistake : std::runtime_error {
  Mistake(ErrorCode code, const std::string& message) : std::runtime_error(message), code(code) {}
  const ErrorCode code;
};

#if defined(__GNUC__)
__attribute__((format(printf, 1, 2)))
#endif
[[noreturn]] void refuse(const char* format, ...);

// A status of ONNX Runtime's own, handed on as it is.
struct OrtFailure {
  OrtStatus* status;
};

inline void check(OrtStatus* status) {
  if (status != nullptr) throw OrtFailure{status};
}

// Throws the kernel's sentence.
void check(mobilemoe_status status, const mobilemoe_error& error);

struct Tensor {
  const void* data = nullptr;
  Dimensions dimensions;

  int64_t elements() const;
  const float* floats() const { return static_cast<const float*>(data); }
  const int64_t* integers() const { return static_cast<const int64_t*>(data); }
};

Tensor tensor_of(const OrtApi& api, const OrtValue* value);

// `name` has these dimensions, or it is refused.
void check_dimensions(const char* name, const Tensor& tensor, const Dimensions& wanted);

// At creation.
class NodeInfo {
 public:
  NodeInfo(const OrtApi& api, const OrtKernelInfo* info) : api_(api), info_(info) {}

  std::string name() const;
  int64_t integer(const char* name) const;  // refused where it is missing
  int64_t integer(const char* name, int64_t otherwise) const;
  float number(const char* name) const;
  float number(const char* name, float otherwise) const;
  std::string string(const char* name, const char* otherwise) const;

  // An input that is an initializer: it stays where it is as long as the session lives.
  Tensor weight(size_t index, const char* name) const;
  // Of these dimensions.
  Tensor weight(size_t index, const char* name, const Dimensions& wanted) const;
  // Codes at `index` and scales behind it: `rows` are all dimensions but the last.
  mobilemoe_int4 int4(size_t index, const char* name, Dimensions rows, int64_t columns) const;
  std::vector<float> vector(size_t index, const char* name, int64_t size) const;

 private:
  const OrtApi& api_;
  const OrtKernelInfo* info_;
};

// While the node runs.
class Call {
 public:
  Call(const OrtApi& api, OrtKernelContext* context) : api_(api), context_(context) {}

  Tensor input(size_t index) const;
  void* output(size_t index, const Dimensions& dimensions) const;
  float* floats(size_t index, const Dimensions& dimensions) const {
    return static_cast<float*>(output(index, dimensions));
  }

 private:
  const OrtApi& api_;
  OrtKernelContext* context_;
};

// An operator's node, for as long as its session lives.
class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual void compute(const Call& call) = 0;
};

}  // namespace mobilemoe::ort
