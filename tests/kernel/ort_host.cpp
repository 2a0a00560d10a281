// A small stand-in for ONNX Runtime, where it is not there (an emulated arm64 CPU): it has the entries of
// the interface that the operators use, creates a node, runs it once, and says what came out.
//
// Standard input has requests (ort_nodes.py): strings as int32 bytes and the bytes; numbers as int64.
//   the API version that this host has; entries of the session's configuration (count; key, value);
//   the operator's name; attributes (count; name, 'i', 'f' or 's', value); inputs (count; 1 for an
//   initializer, the element type, dimensions (count; sizes), bytes); the number of outputs, and for each
//   the input whose memory it shares, or -1.
// The answer: a string, empty or an error's sentence; then each output's dimensions and bytes.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "../../coreml/kernel/ort/ort_api.h"

namespace mobilemoe::ort {

struct OrtStatus {
  int code;
  std::string message;
};
struct OrtValue {
  int64_t constant, type;
  std::vector<int64_t> dimensions;
  std::string bytes;
};
struct OrtTensorTypeAndShapeInfo {
  std::vector<int64_t> dimensions;
};
struct OrtCustomOpDomain {
  std::vector<const OrtCustomOp*> operators;
};
struct OrtSessionOptions {
  std::map<std::string, std::string> entries;
  OrtCustomOpDomain* domain = nullptr;
};
struct OrtKernelInfo {
  std::map<std::string, std::string> attributes;  // the value behind its type's letter
  std::vector<OrtValue>* inputs;
};
struct OrtKernelContext {
  std::vector<OrtValue>* inputs;
  std::vector<OrtValue*> outputs;  // null: to be made
  std::vector<OrtValue> made;
};

}  // namespace mobilemoe::ort

using namespace mobilemoe::ort;
extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);

namespace {

int64_t version_here;

void read(void* to, size_t bytes) {
  if (bytes > 0 && std::fread(to, bytes, 1, stdin) != 1) std::exit(0);  // no more requests
}
int64_t read_number() {
  int64_t value;
  read(&value, sizeof value);
  return value;
}
std::string read_string() {
  int32_t size;
  read(&size, sizeof size);
  std::string value(size, '\0');
  read(&value[0], size);
  return value;
}
void write_number(int64_t value) { std::fwrite(&value, sizeof value, 1, stdout); }
void write_string(const std::string& value) {
  const auto size = static_cast<int32_t>(value.size());
  std::fwrite(&size, sizeof size, 1, stdout);
  std::fwrite(value.data(), 1, value.size(), stdout);
}

OrtStatus* create_status(int code, const char* message) { return new OrtStatus{code, message}; }

// As ONNX Runtime hands out strings: too little room is an error that says how much is needed.
OrtStatus* copy_string(const std::string& from, char* to, size_t* size) {
  const size_t room = to == nullptr ? 0 : *size;
  *size = from.size() + 1;
  if (to == nullptr) return nullptr;
  if (room < *size) return create_status(kInvalidArgument, "too little room");
  std::memcpy(to, from.c_str(), *size);
  return nullptr;
}

OrtStatus* attribute(const OrtKernelInfo* info, const char* name, char type, std::string* value) {
  const auto found = info->attributes.find(name);
  if (found == info->attributes.end() || found->second[0] != type) {
    return create_status(kFail, "no such attribute");
  }
  *value = found->second.substr(1);
  return nullptr;
}

template <typename T>
OrtStatus* number_attribute(const OrtKernelInfo* info, const char* name, char type, T* to) {
  std::string value;
  if (OrtStatus* status = attribute(info, name, type, &value)) return status;
  std::memcpy(to, value.data(), sizeof *to);
  return nullptr;
}

OrtApi make_api() {
  OrtApi api{};
  api.CreateStatus = create_status;
  api.ReleaseStatus = [](OrtStatus* status) { delete status; };
  api.CreateCustomOpDomain = [](const char* name, OrtCustomOpDomain** domain) -> OrtStatus* {
    if (std::string(name) != "mobilemoe") return create_status(kFail, "another domain");
    *domain = new OrtCustomOpDomain;
    return nullptr;
  };
  api.CustomOpDomain_Add = [](OrtCustomOpDomain* domain, const OrtCustomOp* op) -> OrtStatus* {
    domain->operators.push_back(op);
    return nullptr;
  };
  api.AddCustomOpDomain = [](OrtSessionOptions* options, OrtCustomOpDomain* domain) -> OrtStatus* {
    options->domain = domain;
    return nullptr;
  };
  api.GetTensorMutableData = [](OrtValue* value, void** data) -> OrtStatus* {
    *data = &value->bytes[0];
    return nullptr;
  };
  api.GetTensorTypeAndShape = [](const OrtValue* value, OrtTensorTypeAndShapeInfo** info) -> OrtStatus* {
    *info = new OrtTensorTypeAndShapeInfo{value->dimensions};
    return nullptr;
  };
  api.GetDimensionsCount = [](const OrtTensorTypeAndShapeInfo* info, size_t* count) -> OrtStatus* {
    *count = info->dimensions.size();
    return nullptr;
  };
  api.GetDimensions = [](const OrtTensorTypeAndShapeInfo* info, int64_t* to, size_t count) -> OrtStatus* {
    std::copy_n(info->dimensions.begin(), count, to);
    return nullptr;
  };
  api.ReleaseTensorTypeAndShapeInfo = [](OrtTensorTypeAndShapeInfo* info) { delete info; };
  api.KernelInfoGetAttribute_float = [](const OrtKernelInfo* info, const char* name, float* to) {
    return number_attribute(info, name, 'f', to);
  };
  api.KernelInfoGetAttribute_int64 = [](const OrtKernelInfo* info, const char* name, int64_t* to) {
    return number_attribute(info, name, 'i', to);
  };
  api.KernelInfoGetAttribute_string = [](const OrtKernelInfo* info, const char* name, char* to,
                                         size_t* size) -> OrtStatus* {
    std::string value;
    if (OrtStatus* status = attribute(info, name, 's', &value)) return status;
    return copy_string(value, to, size);
  };
  api.KernelInfo_GetNodeName = [](const OrtKernelInfo*, char* to, size_t* size) {
    return copy_string("node", to, size);
  };
  api.KernelInfoGetConstantInput_tensor = [](const OrtKernelInfo* info, size_t index, int* constant,
                                             const OrtValue** value) -> OrtStatus* {
    const OrtValue& input = info->inputs->at(index);
    *constant = input.constant != 0;
    *value = input.constant != 0 ? &input : nullptr;
    return nullptr;
  };
  api.KernelContext_GetInput = [](const OrtKernelContext* context, size_t index,
                                  const OrtValue** value) -> OrtStatus* {
    *value = &context->inputs->at(index);
    return nullptr;
  };
  api.KernelContext_GetOutput = [](OrtKernelContext* context, size_t index, const int64_t* dimensions,
                                   size_t count, OrtValue** value) -> OrtStatus* {
    OrtValue*& output = context->outputs.at(index);
    const std::vector<int64_t> wanted(dimensions, dimensions + count);
    if (output == nullptr) {
      output = &context->made[index];
      size_t elements = 1;
      for (const int64_t size : wanted) elements *= size;
      output->dimensions = wanted;
      output->bytes.assign(elements * (output->type == kFloat16 ? 2 : 4), '\xff');
    } else if (output->dimensions != wanted) {
      return create_status(kInvalidArgument, "the output that is bound has another shape");
    }
    *value = output;
    return nullptr;
  };
  api.HasSessionConfigEntry = [](const OrtSessionOptions* options, const char* key,
                                 int* found) -> OrtStatus* {
    *found = options->entries.count(key) > 0;
    return nullptr;
  };
  api.GetSessionConfigEntry = [](const OrtSessionOptions* options, const char* key, char* to,
                                 size_t* size) {
    return copy_string(options->entries.at(key), to, size);
  };
  return api;
}

const OrtApi* get_api(uint32_t version) {
  static const OrtApi api = make_api();
  return version <= version_here ? &api : nullptr;
}
const OrtApiBase kBase{get_api, [] { return "a test's"; }};

// A node of this request, made and run; -> an error's sentence, or "".
std::string run(OrtSessionOptions& options, const std::string& name, OrtKernelInfo& info,
                OrtKernelContext& context) {
  const auto sentence = [](OrtStatus* status) {
    const std::string message = status == nullptr ? "" : status->message;
    delete status;
    return message;
  };
  std::string error = sentence(RegisterCustomOps(&options, &kBase));
  if (!error.empty()) return error;
  std::vector<OrtValue>& inputs = *info.inputs;
  for (const OrtCustomOp* op : options.domain->operators) {
    bool same = name == op->GetName(op) && op->GetInputTypeCount(op) == inputs.size();
    for (size_t i = 0; same && i < inputs.size(); ++i) {
      same = op->GetInputType(op, i) == inputs[i].type;
    }
    if (!same) continue;
    context.made.resize(op->GetOutputTypeCount(op));
    for (size_t i = 0; i < context.made.size(); ++i) context.made[i].type = op->GetOutputType(op, i);
    void* kernel = nullptr;
    error = sentence(op->CreateKernelV2(op, get_api(kApiVersion), &info, &kernel));
    if (!error.empty()) return error;
    error = sentence(op->KernelComputeV2(kernel, &context));
    op->KernelDestroy(kernel);
    return error;
  }
  return "no operator of this name takes these inputs";
}

}  // namespace

int main() {
  for (;;) {
    version_here = read_number();
    OrtSessionOptions options;
    for (int64_t i = read_number(); i > 0; --i) {
      const std::string key = read_string();
      options.entries[key] = read_string();
    }
    const std::string name = read_string();
    OrtKernelInfo info;
    for (int64_t i = read_number(); i > 0; --i) {
      const std::string key = read_string();
      info.attributes[key] = read_string();
    }
    std::vector<OrtValue> inputs(read_number());
    for (OrtValue& input : inputs) {
      input.constant = read_number();
      input.type = read_number();
      input.dimensions.resize(read_number());
      for (int64_t& size : input.dimensions) size = read_number();
      input.bytes = read_string();
    }
    info.inputs = &inputs;
    OrtKernelContext context{&inputs, {}, {}};
    context.outputs.resize(read_number());
    for (OrtValue*& output : context.outputs) {
      const int64_t shared = read_number();
      output = shared < 0 ? nullptr : &inputs.at(shared);
    }
    const std::string error = run(options, name, info, context);
    delete options.domain;
    write_string(error);
    for (const OrtValue* output : context.outputs) {
      if (!error.empty()) break;
      write_number(output->dimensions.size());
      for (const int64_t size : output->dimensions) write_number(size);
      write_string(output->bytes);
    }
    std::fflush(stdout);
  }
}
