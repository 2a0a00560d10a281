// RegisterCustomOps: what ONNX Runtime calls when a session's options name this library.
#include <cstdio>
#include <cstdlib>
#include <new>

#include "operators.h"

namespace mobilemoe::ort {
namespace {

constexpr const char* kDomain = "mobilemoe";

// What ONNX Runtime knows of an operator, and what its callbacks need of it.
struct Operator : OrtCustomOp {
  const OperatorType* type;
  std::shared_ptr<SharedEngine> engine;
};

const Operator& operator_of(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }

// A node, and what a mistake says of it.
struct Node {
  const OrtApi& api;
  std::string name;
  std::unique_ptr<Kernel> kernel;
};

// Runs `f`; what it throws becomes a status.
template <typename F>
OrtStatus* status_of(const OrtApi& api, const std::string& node, const F& f) {
  try {
    f();
    return nullptr;
  } catch (const OrtFailure& failure) {
    return failure.status;
  } catch (const Mistake& mistake) {
    return api.CreateStatus(mistake.code, (node + mistake.what()).c_str());
  } catch (const std::bad_alloc&) {
    return api.CreateStatus(kFail, (node + "there is no memory for it.").c_str());
  } catch (const std::exception& error) {
    return api.CreateStatus(kFail, (node + error.what()).c_str());
  }
}

OrtStatus* create_kernel(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info,
                         void** kernel) {
  const Operator& self = operator_of(op);
  std::string name = std::string(kDomain) + "::" + self.type->name + ": ";
  return status_of(*api, name, [&] {
    const NodeInfo node(*api, info);
    name = std::string(kDomain) + "::" + self.type->name + " \"" + node.name() + "\": ";
    *kernel = new Node{*api, name, self.type->create(node, self.engine->get())};
  });
}

OrtStatus* compute(void* kernel, OrtKernelContext* context) {
  Node& node = *static_cast<Node*>(kernel);
  return status_of(node.api, node.name, [&] { node.kernel->compute(Call(node.api, context)); });
}

int constant_zero(const OrtCustomOp*, size_t) { return 0; }  // a required tensor; the default memory

Operator operator_for(const OperatorType& type, const std::shared_ptr<SharedEngine>& engine) {
  Operator op{};
  op.type = &type;
  op.engine = engine;
  op.version = kApiVersion;
  op.GetName = [](const OrtCustomOp* self) { return operator_of(self).type->name; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };  // the CPU
  op.GetInputType = [](const OrtCustomOp* self, size_t index) -> int {
    return operator_of(self).type->inputs[index];
  };
  op.GetInputTypeCount = [](const OrtCustomOp* self) { return operator_of(self).type->inputs.size(); };
  op.GetOutputType = [](const OrtCustomOp* self, size_t index) -> int {
    return operator_of(self).type->outputs[index];
  };
  op.GetOutputTypeCount = [](const OrtCustomOp* self) {
    return operator_of(self).type->outputs.size();
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Node*>(kernel); };
  op.GetInputCharacteristic = constant_zero;
  op.GetOutputCharacteristic = constant_zero;
  op.GetInputMemoryType = constant_zero;
  op.CreateKernelV2 = create_kernel;
  op.KernelComputeV2 = compute;
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  return op;
}

// Options hold pointers to these, and sessions made with them; nobody says when the last is gone. Some hundred
// bytes a call of RegisterCustomOps; threads and room belong to the sessions (SharedEngine).
struct Registration {
  Operator operators[5];
};

std::string entry_of(const OrtApi& api, const OrtSessionOptions* options, const char* key) {
  int found = 0;
  check(api.HasSessionConfigEntry(options, key, &found));
  if (found == 0) return "";
  size_t size = 0;
  if (OrtStatus* status = api.GetSessionConfigEntry(options, key, nullptr, &size)) {
    api.ReleaseStatus(status);
  }
  std::string value(size, '\0');
  check(api.GetSessionConfigEntry(options, key, value.data(), &size));
  return value.c_str();
}

Settings settings_of(const OrtApi& api, const OrtSessionOptions* options) {
  const std::string threads = entry_of(api, options, "mobilemoe.threads");
  char* end = nullptr;
  const long count = std::strtol(threads.c_str(), &end, 10);
  if (*end != '\0' || (!threads.empty() && (count < 1 || count > 1000))) {
    refuse("the session's entry mobilemoe.threads is \"%.40s\": a number from 1 to 16 is expected.",
           threads.c_str());
  }
  return {threads.empty() ? default_threads() : static_cast<int>(count),
          entry_of(api, options, "mobilemoe.cpu_path"),
          entry_of(api, options, "mobilemoe.precision")};
}

void register_operators(const OrtApi& api, OrtSessionOptions* options) {
  const auto engine = std::make_shared<SharedEngine>(settings_of(api, options));
  auto* made = new Registration{{operator_for(kMoeOperator, engine),
                                 operator_for(kDecoderLayerOperator, engine),
                                 operator_for(kDecoderLayerHalfOperator, engine),
                                 operator_for(kEmbeddingOperator, engine),
                                 operator_for(kHeadOperator, engine)}};
  OrtCustomOpDomain* domain;
  check(api.CreateCustomOpDomain(kDomain, &domain));
  for (const Operator& op : made->operators) check(api.CustomOpDomain_Add(domain, &op));
  check(api.AddCustomOpDomain(options, domain));
}

}  // namespace
}  // namespace mobilemoe::ort

extern "C" MOBILEMOE_API mobilemoe::ort::OrtStatus* RegisterCustomOps(
    mobilemoe::ort::OrtSessionOptions* options, const mobilemoe::ort::OrtApiBase* base) {
  using namespace mobilemoe::ort;
  const OrtApi* api = base->GetApi(kApiVersion);
  if (api == nullptr) {
    char message[160];
    std::snprintf(message, sizeof message,
                  "mobilemoe's operators need ONNX Runtime 1.18 or later; this is %s.",
                  base->GetVersionString());
    return base->GetApi(1)->CreateStatus(kFail, message);  // creating a status is in every version
  }
  return status_of(*api, "mobilemoe: ", [&] { register_operators(*api, options); });
}
