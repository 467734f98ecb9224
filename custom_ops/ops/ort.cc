#include "ops/ort.h"

#include <cstring>

namespace binarize {

const char* type_name(OrtElementType type) {
  switch (type) {
    case ORT_FLOAT:
      return "float32";
    case ORT_FLOAT16:
      return "float16";
    case ORT_BOOL:
      return "bool";
    case ORT_UINT32:
      return "uint32";
    default:
      return "another type";
  }
}

namespace {

Shape shape_of(const OrtApi* api, const OrtTensorTypeAndShapeInfo* info, const char* name) {
  size_t rank = 0;
  check(abi::GetDimensionsCount(api, info, &rank));
  if (rank > kMaxRank + 1) fail("input ", name, " has rank ", rank, ", at most ", kMaxRank + 1, " is supported");
  Shape shape;
  shape.rank = static_cast<int>(rank);
  check(abi::GetDimensions(api, info, shape.dim, rank));
  for (int i = 0; i < shape.rank; ++i)  // a graph may state anything, and sums of sizes must not overflow
    if (shape.dim[i] > kMaxElements)
      fail("input ", name, " has shape ", to_string(shape), ", at most 2^31 - 1 is supported as a dimension");
  return shape;
}

// True where the call succeeded; a failure's status is released.
bool succeeded(const OrtApi* api, OrtStatus* status) {
  if (status) abi::ReleaseStatus(api, status);
  return !status;
}

}  // namespace

int64_t Attributes::integer(const char* name) const {
  int64_t value = 0;
  bool found;
  if (info_) {
    found = succeeded(api_, abi::KernelInfoGetAttribute_int64(api_, info_, name, &value));
  } else {
    const OrtOpAttr* attribute = nullptr;
    size_t bytes = 0;
    found = succeeded(api_, abi::ShapeInferContext_GetAttribute(api_, context_, name, &attribute)) && attribute &&
            succeeded(api_, abi::ReadOpAttr(api_, attribute, ORT_ATTRIBUTE_INT, &value, sizeof value, &bytes));
  }
  if (!found) fail("attribute '", name, "' is missing or not an integer");
  return value;
}

int64_t Attributes::integer_in(const char* name, int64_t least, int64_t most) const {
  const int64_t value = integer(name);
  if (value < least || value > most) fail("attribute '", name, "' is ", value, ", expected ", least, " to ", most);
  return value;
}

void Attributes::integers(const char* name, int64_t* values, size_t count, int64_t least) const {
  constexpr size_t kMost = 16;
  int64_t read[kMost] = {};
  size_t found_count = 0;
  bool found = false;
  if (info_) {
    size_t size = 0;
    if (succeeded(api_, abi::KernelInfoGetAttributeArray_int64(api_, info_, name, nullptr, &size)) && size <= kMost) {
      found = size == 0 || succeeded(api_, abi::KernelInfoGetAttributeArray_int64(api_, info_, name, read, &size));
      found_count = size;
    }
  } else {
    const OrtOpAttr* attribute = nullptr;
    size_t bytes = 0;
    found = succeeded(api_, abi::ShapeInferContext_GetAttribute(api_, context_, name, &attribute)) && attribute &&
            succeeded(api_, abi::ReadOpAttr(api_, attribute, ORT_ATTRIBUTE_INTS, read, sizeof read, &bytes));
    found_count = bytes / sizeof(int64_t);
  }
  if (!found) fail("attribute '", name, "' is missing or not a list of ", count, " integers");
  if (found_count != count) fail("attribute '", name, "' has ", found_count, " values, expected ", count);
  for (size_t i = 0; i < count; ++i) {
    if (read[i] < least || read[i] > kMaxElements)
      fail("attribute '", name, "'[", i, "] is ", read[i], ", expected ", least, " to 2^31 - 1");
    values[i] = read[i];
  }
}

std::string node_name(const OrtApi* api, const OrtKernelInfo* info) {
  size_t size = 0;
  if (!succeeded(api, abi::KernelInfo_GetNodeName(api, info, nullptr, &size)) || size < 2) return "";
  std::string name(size, '\0');
  if (!succeeded(api, abi::KernelInfo_GetNodeName(api, info, &name[0], &size))) return "";
  name.resize(size - 1);
  return name;
}

size_t input_count(const OrtApi* api, const OrtKernelInfo* info) {
  size_t count = 0;
  check(abi::KernelInfo_GetInputCount(api, info, &count));
  return count;
}

Tensor tensor_of(const OrtApi* api, const OrtValue* value, const char* name) {
  if (!value) fail("input ", name, " is absent: every input must be given, a neutral element where it has no effect");
  struct Release {
    const OrtApi* api;
    OrtTensorTypeAndShapeInfo* info = nullptr;
    ~Release() {
      if (info) abi::ReleaseTensorTypeAndShapeInfo(api, info);
    }
  } owner{api};
  check(abi::GetTensorTypeAndShape(api, value, &owner.info));
  Tensor tensor;
  tensor.shape = shape_of(api, owner.info, name);
  check(abi::GetTensorElementType(api, owner.info, &tensor.type));
  void* data = nullptr;
  check(abi::GetTensorMutableData(api, const_cast<OrtValue*>(value), &data));
  tensor.data = data;
  return tensor;
}

Tensor constant_input(const OrtApi* api, const OrtKernelInfo* info, size_t index, const char* name) {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  check(abi::KernelInfoGetConstantInput_tensor(api, info, index, &is_constant, &value));
  if (!is_constant || !value) return Tensor{};
  Tensor tensor = tensor_of(api, value, name);
  tensor.constant = true;
  return tensor;
}

Call::~Call() {
  for (void* block : blocks_) allocator_->Free(allocator_, block);
  if (allocator_) abi::ReleaseAllocator(api_, allocator_);
}

Tensor Call::input(size_t index, const char* name) const {
  const OrtValue* value = nullptr;
  check(abi::KernelContext_GetInput(api_, context_, index, &value));
  return tensor_of(api_, value, name);
}

void* Call::output(size_t index, const Shape& shape) {
  OrtValue* value = nullptr;
  check(abi::KernelContext_GetOutput(api_, context_, index, shape.dim, static_cast<size_t>(shape.rank), &value));
  if (!value) return nullptr;
  void* data = nullptr;
  check(abi::GetTensorMutableData(api_, value, &data));
  return data;
}

void* Call::scratch_bytes(size_t bytes) {
  if (!allocator_) {
    const OrtValue* value = nullptr;
    check(abi::KernelContext_GetInput(api_, context_, 0, &value));
    const OrtMemoryInfo* memory = nullptr;
    check(abi::GetTensorMemoryInfo(api_, value, &memory));
    check(abi::KernelContext_GetAllocator(api_, context_, memory, &allocator_));
  }
  constexpr uintptr_t kAlignment = 64;
  if (blocks_.size() == blocks_.capacity()) blocks_.reserve(2 * blocks_.size() + 8);
  void* block = allocator_->Alloc(allocator_, bytes + kAlignment);
  if (!block) throw std::bad_alloc();
  blocks_.push_back(block);
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(block) + kAlignment - 1) / kAlignment * kAlignment);
}

SymbolicShape Inference::input(size_t index) const {
  SymbolicShape out;
  OrtTensorTypeAndShapeInfo* info = nullptr;  // belongs to the context
  if (!succeeded(api_, abi::ShapeInferContext_GetInputTypeShape(api_, context_, index, &info)) || !info) return out;
  out.shape = shape_of(api_, info, std::to_string(index).c_str());
  if (out.shape.rank == 0) {  // onnxruntime says "scalar" where it knows no shape; no input of ours need be one
    out.shape.rank = -1;
    return out;
  }
  const char* symbols[kMaxAxes] = {};
  if (succeeded(api_, abi::GetSymbolicDimensions(api_, info, symbols, static_cast<size_t>(out.shape.rank))))
    for (int i = 0; i < out.shape.rank; ++i) {
      if (symbols[i] && *symbols[i]) {
        out.symbol[i] = symbols[i];
        out.shape.dim[i] = kUnknown;
      } else if (out.shape.dim[i] < 0) {
        out.shape.dim[i] = kUnknown;
      }
    }
  return out;
}

void Inference::output(size_t index, OrtElementType type, const SymbolicShape& shape) {
  // A dimension that is neither known nor named gets a fresh name: onnxruntime would read -1 as a size, and takes equal
  // names for equal sizes.
  static std::atomic<unsigned> fresh{0};
  struct Release {
    const OrtApi* api;
    OrtTensorTypeAndShapeInfo* info = nullptr;
    ~Release() {
      if (info) abi::ReleaseTensorTypeAndShapeInfo(api, info);
    }
  } owner{api_};
  check(abi::CreateTensorTypeAndShapeInfo(api_, &owner.info));
  check(abi::SetTensorElementType(api_, owner.info, type));
  const size_t rank = static_cast<size_t>(shape.shape.rank);
  check(abi::SetDimensions(api_, owner.info, shape.shape.dim, rank));
  std::string names[kMaxAxes];
  const char* symbols[kMaxAxes] = {};
  for (size_t i = 0; i < rank; ++i) {
    if (shape.shape.dim[i] < 0)
      names[i] = shape.symbol[i].empty() ? "binarize_onnx_dim_" + std::to_string(fresh++) : shape.symbol[i];
    symbols[i] = names[i].c_str();
  }
  check(abi::SetSymbolicDimensions(api_, owner.info, symbols, rank));
  check(abi::ShapeInferContext_SetOutputTypeShape(api_, context_, index, owner.info));
}

IsaMask isas_or_throw() {
  const IsaMask isas = selected_isas();
  if (!isas)
    fail("BINARIZE_ONNX_ISA='", forced_isa_name(),
         "' names no instruction set that this library can run here; these can: ", isa_names(runnable_isas()));
  return isas;
}

void set_common_callbacks(Op& op) {
  op.version = abi::kApiVersion;
  op.GetName = [](const OrtCustomOp* op) { return static_cast<const Op*>(op)->name; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  op.GetInputTypeCount = [](const OrtCustomOp* op) { return static_cast<const Op*>(op)->inputs.size(); };
  op.GetInputType = [](const OrtCustomOp* op, size_t i) { return static_cast<const Op*>(op)->inputs[i]; };
  op.GetOutputTypeCount = [](const OrtCustomOp* op) { return static_cast<const Op*>(op)->outputs.size(); };
  op.GetOutputType = [](const OrtCustomOp* op, size_t i) { return static_cast<const Op*>(op)->outputs[i]; };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return ORT_REQUIRED; };
  op.GetOutputCharacteristic = [](const OrtCustomOp* op, size_t) {
    return static_cast<const Op*>(op)->optional_outputs ? ORT_OPTIONAL : ORT_REQUIRED;
  };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return ORT_MEMORY_DEFAULT; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 2147483647; };
}

}  // namespace binarize
