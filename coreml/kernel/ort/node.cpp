#include "node.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <limits>

#include "bytes.h"

namespace mobilemoe::ort {
namespace {

mobilemoe_tensor bytes_of(const Tensor& tensor, size_t element) {
  return {tensor.data, static_cast<size_t>(tensor.elements()) * element};
}

}  // namespace

std::string text_of(const Dimensions& dimensions) {
  std::string text = "[";
  for (const int64_t size : dimensions) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(size);
  }
  return text + "]";
}

void refuse(const char* format, ...) {
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  throw Mistake(kInvalidArgument, message);
}

void check(mobilemoe_status status, const mobilemoe_error& error) {
  if (status == MOBILEMOE_OK) return;
  throw Mistake(status == MOBILEMOE_BAD_ARGUMENT ? kInvalidArgument : kFail, error.message);
}

int64_t Tensor::elements() const {
  int64_t count = 1;
  for (const int64_t size : dimensions) count *= size;
  return count;
}

Tensor tensor_of(const OrtApi& api, const OrtValue* value) {
  Tensor tensor;
  OrtTensorTypeAndShapeInfo* info;
  check(api.GetTensorTypeAndShape(value, &info));
  size_t count = 0;
  OrtStatus* status = api.GetDimensionsCount(info, &count);
  tensor.dimensions.resize(count);
  if (status == nullptr) status = api.GetDimensions(info, tensor.dimensions.data(), count);
  api.ReleaseTensorTypeAndShapeInfo(info);
  check(status);
  void* data;
  check(api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  tensor.data = data;
  return tensor;
}

void check_dimensions(const char* name, const Tensor& tensor, const Dimensions& wanted) {
  if (tensor.dimensions == wanted) return;
  refuse("%s has the shape %s; it must be %s.", name, text_of(tensor.dimensions).c_str(),
         text_of(wanted).c_str());
}

std::string NodeInfo::name() const {
  size_t size = 0;
  OrtStatus* status = api_.KernelInfo_GetNodeName(info_, nullptr, &size);
  if (status != nullptr) api_.ReleaseStatus(status);
  std::string name(size, '\0');
  check(api_.KernelInfo_GetNodeName(info_, name.data(), &size));
  return name.c_str();
}

int64_t NodeInfo::integer(const char* name) const {
  int64_t value;
  if (OrtStatus* status = api_.KernelInfoGetAttribute_int64(info_, name, &value)) {
    api_.ReleaseStatus(status);
    refuse("the attribute %s, an integer, is missing.", name);
  }
  if (value < 0 || value > std::numeric_limits<int32_t>::max()) {
    refuse("the attribute %s is %lld.", name, static_cast<long long>(value));
  }
  return value;
}

int64_t NodeInfo::integer(const char* name, int64_t otherwise) const {
  int64_t value;
  if (OrtStatus* status = api_.KernelInfoGetAttribute_int64(info_, name, &value)) {
    api_.ReleaseStatus(status);
    return otherwise;
  }
  return value;
}

float NodeInfo::number(const char* name) const {
  float value;
  if (OrtStatus* status = api_.KernelInfoGetAttribute_float(info_, name, &value)) {
    api_.ReleaseStatus(status);
    refuse("the attribute %s, a float, is missing.", name);
  }
  return value;
}

float NodeInfo::number(const char* name, float otherwise) const {
  float value;
  if (OrtStatus* status = api_.KernelInfoGetAttribute_float(info_, name, &value)) {
    api_.ReleaseStatus(status);
    return otherwise;
  }
  return value;
}

std::string NodeInfo::string(const char* name, const char* otherwise) const {
  char value[64];
  size_t size = sizeof value;
  if (OrtStatus* status = api_.KernelInfoGetAttribute_string(info_, name, value, &size)) {
    api_.ReleaseStatus(status);
    // Too long for any that is known, or missing.
    return size > sizeof value ? "?" : otherwise;
  }
  return value;
}

Tensor NodeInfo::weight(size_t index, const char* name) const {
  int constant = 0;
  const OrtValue* value = nullptr;
  check(api_.KernelInfoGetConstantInput_tensor(info_, index, &constant, &value));
  if (constant == 0 || value == nullptr) {
    refuse("%s (input %zu) must be an initializer of the graph.", name, index);
  }
  return tensor_of(api_, value);
}

Tensor NodeInfo::weight(size_t index, const char* name, const Dimensions& wanted) const {
  Tensor tensor = weight(index, name);
  check_dimensions(name, tensor, wanted);
  return tensor;
}

mobilemoe_int4 NodeInfo::int4(size_t index, const char* name, Dimensions rows,
                              int64_t columns) const {
  const std::string codes = std::string(name) + "_codes", scales = std::string(name) + "_scales";
  if (columns % kGroup != 0) {
    refuse("%s would have %lld columns: they must be a multiple of %d.", name,
           static_cast<long long>(columns), kGroup);
  }
  rows.push_back(columns / 2);
  const Tensor code_tensor = weight(index, codes.c_str(), rows);
  rows.back() = columns / kGroup;
  const Tensor scale_tensor = weight(index + 1, scales.c_str(), rows);
  return {bytes_of(code_tensor, 1), bytes_of(scale_tensor, 2)};
}

std::vector<float> NodeInfo::vector(size_t index, const char* name, int64_t size) const {
  const Tensor tensor = weight(index, name, {size});
  std::vector<float> values(size);
  std::memcpy(values.data(), tensor.data, size * sizeof(float));  // of any alignment
  return values;
}

Tensor Call::input(size_t index) const {
  const OrtValue* value;
  check(api_.KernelContext_GetInput(context_, index, &value));
  return tensor_of(api_, value);
}

void* Call::output(size_t index, const Dimensions& dimensions) const {
  OrtValue* value;
  check(api_.KernelContext_GetOutput(context_, index, dimensions.data(), dimensions.size(), &value));
  void* data;
  check(api_.GetTensorMutableData(value, &data));
  return data;
}

}  // namespace mobilemoe::ort
