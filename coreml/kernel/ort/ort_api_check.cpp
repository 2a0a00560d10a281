// Compares our declarations with ONNX Runtime's header, where a build has it:
//     cmake -S coreml/kernel -B build -DMOBILEMOE_ORT_HEADER=.../onnxruntime_c_api.h
#include MOBILEMOE_ORT_HEADER

#include "ort_api.h"

namespace ours = mobilemoe::ort;

#define MOBILEMOE_SAME_PLACE(Type, member)                                                    \
  static_assert(offsetof(ours::Type, member) == offsetof(::Type, member),                     \
                #Type "::" #member " is at another position in ONNX Runtime's header");       \
  static_assert(sizeof(ours::Type::member) == sizeof(::Type::member), #Type "::" #member)

MOBILEMOE_SAME_PLACE(OrtApiBase, GetApi);
MOBILEMOE_SAME_PLACE(OrtApiBase, GetVersionString);
MOBILEMOE_SAME_PLACE(OrtApi, CreateStatus);
MOBILEMOE_SAME_PLACE(OrtApi, CreateCustomOpDomain);
MOBILEMOE_SAME_PLACE(OrtApi, CustomOpDomain_Add);
MOBILEMOE_SAME_PLACE(OrtApi, AddCustomOpDomain);
MOBILEMOE_SAME_PLACE(OrtApi, GetTensorMutableData);
MOBILEMOE_SAME_PLACE(OrtApi, GetDimensionsCount);
MOBILEMOE_SAME_PLACE(OrtApi, GetDimensions);
MOBILEMOE_SAME_PLACE(OrtApi, GetTensorTypeAndShape);
MOBILEMOE_SAME_PLACE(OrtApi, KernelInfoGetAttribute_float);
MOBILEMOE_SAME_PLACE(OrtApi, KernelInfoGetAttribute_int64);
MOBILEMOE_SAME_PLACE(OrtApi, KernelInfoGetAttribute_string);
MOBILEMOE_SAME_PLACE(OrtApi, KernelContext_GetInput);
MOBILEMOE_SAME_PLACE(OrtApi, KernelContext_GetOutput);
MOBILEMOE_SAME_PLACE(OrtApi, ReleaseStatus);
MOBILEMOE_SAME_PLACE(OrtApi, ReleaseTensorTypeAndShapeInfo);
MOBILEMOE_SAME_PLACE(OrtApi, HasSessionConfigEntry);
MOBILEMOE_SAME_PLACE(OrtApi, GetSessionConfigEntry);
MOBILEMOE_SAME_PLACE(OrtApi, KernelInfo_GetNodeName);
MOBILEMOE_SAME_PLACE(OrtApi, KernelInfoGetConstantInput_tensor);
MOBILEMOE_SAME_PLACE(OrtCustomOp, version);
MOBILEMOE_SAME_PLACE(OrtCustomOp, CreateKernel);
MOBILEMOE_SAME_PLACE(OrtCustomOp, GetName);
MOBILEMOE_SAME_PLACE(OrtCustomOp, GetExecutionProviderType);
MOBILEMOE_SAME_PLACE(OrtCustomOp, GetInputType);
MOBILEMOE_SAME_PLACE(OrtCustomOp, GetInputTypeCount);
MOBILEMOE_SAME_PLACE(OrtCustomOp, GetOutputType);
MOBILEMOE_SAME_PLACE(OrtCustomOp, GetOutputTypeCount);
MOBILEMOE_SAME_PLACE(OrtCustomOp, KernelCompute);
MOBILEMOE_SAME_PLACE(OrtCustomOp, KernelDestroy);
MOBILEMOE_SAME_PLACE(OrtCustomOp, GetInputCharacteristic);
MOBILEMOE_SAME_PLACE(OrtCustomOp, GetOutputCharacteristic);
MOBILEMOE_SAME_PLACE(OrtCustomOp, GetInputMemoryType);
MOBILEMOE_SAME_PLACE(OrtCustomOp, GetVariadicInputMinArity);
MOBILEMOE_SAME_PLACE(OrtCustomOp, GetVariadicInputHomogeneity);
MOBILEMOE_SAME_PLACE(OrtCustomOp, GetVariadicOutputMinArity);
MOBILEMOE_SAME_PLACE(OrtCustomOp, GetVariadicOutputHomogeneity);
MOBILEMOE_SAME_PLACE(OrtCustomOp, CreateKernelV2);
MOBILEMOE_SAME_PLACE(OrtCustomOp, KernelComputeV2);
MOBILEMOE_SAME_PLACE(OrtCustomOp, InferOutputShapeFn);
MOBILEMOE_SAME_PLACE(OrtCustomOp, GetStartVersion);
MOBILEMOE_SAME_PLACE(OrtCustomOp, GetEndVersion);
MOBILEMOE_SAME_PLACE(OrtCustomOp, GetMayInplace);
MOBILEMOE_SAME_PLACE(OrtCustomOp, ReleaseMayInplace);
MOBILEMOE_SAME_PLACE(OrtCustomOp, GetAliasMap);
MOBILEMOE_SAME_PLACE(OrtCustomOp, ReleaseAliasMap);

static_assert(int{ours::kFail} == int{::ORT_FAIL});
static_assert(int{ours::kInvalidArgument} == int{::ORT_INVALID_ARGUMENT});
static_assert(int{ours::kFloat} == int{::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT});
static_assert(int{ours::kUint8} == int{::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8});
static_assert(int{ours::kInt64} == int{::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64});
static_assert(int{ours::kFloat16} == int{::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16});
static_assert(ours::kApiVersion <= ORT_API_VERSION);
