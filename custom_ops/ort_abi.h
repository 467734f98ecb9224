// The part of the ONNX Runtime C ABI that a custom-op library needs, declared here because no wheel ships the headers.
//
// OrtApi is a struct of function pointers that only ever grows at its end, so a function is known for good by its
// index. The newest one used here came with API version 18. OrtCustomOp is read by onnxruntime up to the version it
// states.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
struct OrtMemoryInfo;
struct OrtShapeInferContext;
struct OrtOpAttr;

struct OrtAllocator {
  uint32_t version;
  void* (*Alloc)(OrtAllocator*, size_t bytes);
  void (*Free)(OrtAllocator*, void*);
  const OrtMemoryInfo* (*Info)(const OrtAllocator*);
};

enum OrtErrorCode { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };
enum OrtElementType {
  ORT_UNDEFINED = 0,
  ORT_FLOAT = 1,
  ORT_BOOL = 9,
  ORT_FLOAT16 = 10,
  ORT_UINT32 = 12,
};
enum OrtOpAttrType { ORT_ATTRIBUTE_INT = 1, ORT_ATTRIBUTE_INTS = 2 };
enum OrtMemType { ORT_MEMORY_DEFAULT = 0 };
enum OrtCharacteristic { ORT_REQUIRED = 0, ORT_OPTIONAL = 1 };

struct OrtApi {
  void* function[1];  // as many as the runtime has
};
struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  OrtElementType (*GetInputType)(const OrtCustomOp*, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  OrtElementType (*GetOutputType)(const OrtCustomOp*, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void* kernel, OrtKernelContext*);
  void (*KernelDestroy)(void* kernel);
  OrtCharacteristic (*GetInputCharacteristic)(const OrtCustomOp*, size_t index);
  OrtCharacteristic (*GetOutputCharacteristic)(const OrtCustomOp*, size_t index);
  OrtMemType (*GetInputMemoryType)(const OrtCustomOp*, size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  size_t (*GetMayInplace)(int** input, int** output);
  void (*ReleaseMayInplace)(int* input, int* output);
  size_t (*GetAliasMap)(int** input, int** output);
  void (*ReleaseAliasMap)(int* input, int* output);
};

}  // extern "C"

namespace binarize::abi {

inline constexpr uint32_t kApiVersion = 18;

// One function of OrtApi: its index and its signature.
template <int index, class Signature>
struct Function;
template <int index, class Result, class... Arguments>
struct Function<index, Result(Arguments...)> {
  Result operator()(const OrtApi* api, Arguments... arguments) const {
    return reinterpret_cast<Result (*)(Arguments...)>(api->function[index])(arguments...);
  }
};

using Info = OrtTensorTypeAndShapeInfo;

inline constexpr Function<0, OrtStatus*(OrtErrorCode, const char*)> CreateStatus;
inline constexpr Function<26, OrtStatus*(const char*, OrtCustomOpDomain**)> CreateCustomOpDomain;
inline constexpr Function<27, OrtStatus*(OrtCustomOpDomain*, const OrtCustomOp*)> CustomOpDomain_Add;
inline constexpr Function<28, OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)> AddCustomOpDomain;
inline constexpr Function<51, OrtStatus*(OrtValue*, void**)> GetTensorMutableData;
inline constexpr Function<57, OrtStatus*(Info**)> CreateTensorTypeAndShapeInfo;
inline constexpr Function<58, OrtStatus*(Info*, OrtElementType)> SetTensorElementType;
inline constexpr Function<59, OrtStatus*(Info*, const int64_t*, size_t)> SetDimensions;
inline constexpr Function<60, OrtStatus*(const Info*, OrtElementType*)> GetTensorElementType;
inline constexpr Function<61, OrtStatus*(const Info*, size_t*)> GetDimensionsCount;
inline constexpr Function<62, OrtStatus*(const Info*, int64_t*, size_t)> GetDimensions;
inline constexpr Function<63, OrtStatus*(const Info*, const char**, size_t)> GetSymbolicDimensions;
inline constexpr Function<65, OrtStatus*(const OrtValue*, Info**)> GetTensorTypeAndShape;
inline constexpr Function<86, OrtStatus*(const OrtKernelInfo*, const char*, int64_t*)> KernelInfoGetAttribute_int64;
inline constexpr Function<90, OrtStatus*(const OrtKernelContext*, size_t, const OrtValue**)> KernelContext_GetInput;
inline constexpr Function<91, OrtStatus*(OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**)>
    KernelContext_GetOutput;
inline constexpr Function<93, void(OrtStatus*)> ReleaseStatus;
inline constexpr Function<99, void(Info*)> ReleaseTensorTypeAndShapeInfo;
inline constexpr Function<132, void(OrtAllocator*)> ReleaseAllocator;
inline constexpr Function<163, OrtStatus*(const OrtKernelInfo*, const char*, int64_t*, size_t*)>
    KernelInfoGetAttributeArray_int64;
inline constexpr Function<194, OrtStatus*(const OrtValue*, const OrtMemoryInfo**)> GetTensorMemoryInfo;
inline constexpr Function<230, OrtStatus*(const OrtKernelInfo*, size_t*)> KernelInfo_GetInputCount;
inline constexpr Function<244, OrtStatus*(const OrtKernelInfo*, char*, size_t*)> KernelInfo_GetNodeName;
inline constexpr Function<249, OrtStatus*(const OrtKernelInfo*, size_t, int*, const OrtValue**)>
    KernelInfoGetConstantInput_tensor;
inline constexpr Function<253, OrtStatus*(const OrtKernelContext*, const OrtMemoryInfo*, OrtAllocator**)>
    KernelContext_GetAllocator;
inline constexpr Function<268, OrtStatus*(const OrtShapeInferContext*, size_t, Info**)>
    ShapeInferContext_GetInputTypeShape;
inline constexpr Function<269, OrtStatus*(const OrtShapeInferContext*, const char*, const OrtOpAttr**)>
    ShapeInferContext_GetAttribute;
inline constexpr Function<270, OrtStatus*(const OrtShapeInferContext*, size_t, const Info*)>
    ShapeInferContext_SetOutputTypeShape;
inline constexpr Function<271, OrtStatus*(Info*, const char**, size_t)> SetSymbolicDimensions;
inline constexpr Function<272, OrtStatus*(const OrtOpAttr*, OrtOpAttrType, void*, size_t, size_t*)> ReadOpAttr;
inline constexpr Function<274, OrtStatus*(const OrtKernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>
    KernelContext_ParallelFor;

}  // namespace binarize::abi
