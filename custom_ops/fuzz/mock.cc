#include "fuzz/mock.h"

#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <thread>
#include <type_traits>

struct OrtStatus {
  OrtErrorCode code;
  std::string message;
};
struct OrtSessionOptions {
  std::vector<OrtCustomOpDomain*> domains;
};
struct OrtCustomOpDomain {
  std::string name;
  std::vector<const OrtCustomOp*> ops;
};
struct OrtTensorTypeAndShapeInfo {
  OrtElementType type = ORT_UNDEFINED;
  binarize::mock::Dims dims;
  std::vector<std::string> symbols;
};
struct OrtMemoryInfo {};
struct OrtOpAttr : binarize::mock::Attribute {};
struct OrtValue {
  const binarize::mock::Tensor* tensor;
};
struct OrtKernelInfo {
  const binarize::mock::Node* node;
  std::vector<OrtValue> values;
};
struct OrtShapeInferContext {
  const binarize::mock::Node* node;
  std::vector<OrtTensorTypeAndShapeInfo> inputs;
  std::vector<OrtOpAttr> attributes;
  std::vector<binarize::mock::Inferred>* outputs;
};
struct OrtKernelContext {
  const binarize::mock::Node* node;
  std::vector<OrtValue> inputs;
  std::vector<binarize::mock::Tensor>* outputs;
  std::vector<OrtValue> output_values;
  std::vector<bool> asked;
};

namespace binarize::mock {

void misuse(const std::string& what) {
  std::fprintf(stderr, "MISUSE: %s\n", what.c_str());
  std::abort();
}

std::string to_string(const Dims& dims) {
  std::string out = "[";
  for (int64_t d : dims) out += (out.size() > 1 ? ", " : "") + std::to_string(d);
  return out + "]";
}

size_t element_bytes(OrtElementType type) {
  switch (type) {
    case ORT_FLOAT:
    case ORT_UINT32:
      return 4;
    case ORT_FLOAT16:
      return 2;
    case ORT_BOOL:
      return 1;
    default:
      return 8;  // another type: as wide as they get
  }
}

// --- The library's memory ----------------------------------------------------------------------------------------

namespace {

// Whether this thread runs the library's code, whose allocations are counted, or this file's.
thread_local bool in_library = false;
struct Scope {
  explicit Scope(bool inside) : before(in_library) { in_library = inside; }
  ~Scope() { in_library = before; }
  bool before;
};

std::atomic<int64_t> held{0}, peak{0};
std::atomic<int64_t> calls_to_fault{-1}, allocations_to_fault{-1};
std::atomic<uint8_t> fill_byte{0xa5};

bool is_due(std::atomic<int64_t>& countdown) {
  return countdown.load(std::memory_order_relaxed) >= 0 && countdown.fetch_sub(1) == 0;
}

void count(void* block) {
  if (!block) return;
  const int64_t now = held += static_cast<int64_t>(malloc_usable_size(block));
  int64_t before = peak;
  while (before < now && !peak.compare_exchange_weak(before, now)) {
  }
}

// Null where it fails, whether by chance or for the budget's sake.
template <class Allocate>
void* allocate(size_t bytes, Allocate&& by) {
  if (!in_library) return by(bytes);
  if (is_due(allocations_to_fault) || static_cast<int64_t>(bytes) > kMemoryBudget - held) return nullptr;
  void* block = by(bytes);
  if (block) std::memset(block, fill_byte, bytes);
  count(block);
  return block;
}

}  // namespace
}  // namespace binarize::mock

void* operator new(size_t bytes) {
  void* block = binarize::mock::allocate(bytes, [](size_t n) { return std::malloc(n ? n : 1); });
  if (!block) throw std::bad_alloc();
  return block;
}
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return binarize::mock::allocate(bytes, [](size_t n) { return std::malloc(n ? n : 1); });
}
void* operator new[](size_t bytes) { return operator new(bytes); }
void operator delete(void* block) noexcept { std::free(block); }
void operator delete(void* block, const std::nothrow_t&) noexcept { std::free(block); }
void operator delete[](void* block) noexcept { std::free(block); }
void operator delete(void* block, size_t) noexcept { std::free(block); }
void operator delete[](void* block, size_t) noexcept { std::free(block); }

// The linker's --wrap leads here: ops/ort.h takes aligned memory from aligned_alloc, and free ends every block's life.
extern "C" {
void* __real_aligned_alloc(size_t alignment, size_t bytes);
void __real_free(void* block);
void* __wrap_aligned_alloc(size_t alignment, size_t bytes) {
  return binarize::mock::allocate(bytes, [alignment](size_t n) { return __real_aligned_alloc(alignment, n); });
}
void __wrap_free(void* block) {
  if (block && binarize::mock::in_library) binarize::mock::held -= static_cast<int64_t>(malloc_usable_size(block));
  __real_free(block);
}
}

// --- The table ---------------------------------------------------------------------------------------------------

namespace binarize::mock {
namespace {

// Objects that the library holds and must give back, by kind.
class Register {
 public:
  template <class T>
  T* add(T* object) {
    const std::lock_guard<std::mutex> lock(mutex_);
    objects_[object] = kind<T>();
    return object;
  }
  template <class T>
  void remove(const T* object) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = objects_.find(object);
    if (found == objects_.end() || found->second != kind<T>())
      misuse(std::string("released what is not held: ") + kind<T>());
    objects_.erase(found);
  }
  template <class T>
  void expect(const T* object) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = objects_.find(object);
    if (found == objects_.end() || found->second != kind<T>())
      misuse(std::string("used what is not held: ") + kind<T>());
  }
  void expect_empty() {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& object : objects_) misuse(std::string("never released: ") + object.second);
  }

 private:
  template <class T>
  static const char* kind() {
    if (std::is_same_v<T, OrtStatus>) return "a status";
    if (std::is_same_v<T, OrtTensorTypeAndShapeInfo>) return "a type and shape";
    if (std::is_same_v<T, OrtAllocator>) return "an allocator";
    return "memory of an allocator";
  }
  std::mutex mutex_;
  std::map<const void*, const char*> objects_;
};
Register& objects() {
  static Register objects;
  return objects;
}

OrtStatus* new_status(OrtErrorCode code, const std::string& message) {
  return objects().add(new OrtStatus{code, message});
}
OrtStatus* refuse(const std::string& message) { return new_status(ORT_INVALID_ARGUMENT, message); }

OrtStatus* create_status(OrtErrorCode code, const char* message) {
  if (!message || !*message) misuse("a status without a message");
  return new_status(code, message);
}
void release_status(OrtStatus* status) {
  objects().remove(status);
  delete status;
}

OrtStatus* create_domain(const char* name, OrtCustomOpDomain** out) {
  *out = new OrtCustomOpDomain{name, {}};  // the library keeps it for good
  return nullptr;
}
OrtStatus* domain_add(OrtCustomOpDomain* domain, const OrtCustomOp* op) {
  domain->ops.push_back(op);
  return nullptr;
}
OrtStatus* add_domain(OrtSessionOptions* options, OrtCustomOpDomain* domain) {
  options->domains.push_back(domain);
  return nullptr;
}

OrtStatus* get_data(OrtValue* value, void** out) {
  alignas(64) static uint8_t nothing[1];  // onnxruntime may give a pointer for an empty tensor, or none
  const std::vector<uint8_t>& bytes = value->tensor->bytes;
  *out = bytes.empty() ? nothing : const_cast<uint8_t*>(bytes.data());
  return nullptr;
}
OrtStatus* get_type_and_shape(const OrtValue* value, abi::Info** out) {
  *out = objects().add(new abi::Info{value->tensor->type, value->tensor->dims, {}});
  return nullptr;
}
OrtStatus* get_memory_info(const OrtValue* value, const OrtMemoryInfo** out) {
  static const OrtMemoryInfo cpu;
  if (!value) misuse("the memory of an absent value");
  *out = &cpu;
  return nullptr;
}

OrtStatus* create_info(abi::Info** out) {
  *out = objects().add(new abi::Info);
  return nullptr;
}
void release_info(abi::Info* info) {
  objects().remove(info);
  delete info;
}
OrtStatus* set_type(abi::Info* info, OrtElementType type) {
  info->type = type;
  return nullptr;
}
OrtStatus* set_dims(abi::Info* info, const int64_t* dims, size_t count) {
  if (count > 64) misuse("a rank of " + std::to_string(count));
  info->dims.assign(dims, dims + count);
  return nullptr;
}
OrtStatus* get_type(const abi::Info* info, OrtElementType* out) {
  *out = info->type;
  return nullptr;
}
OrtStatus* get_rank(const abi::Info* info, size_t* out) {
  *out = info->dims.size();
  return nullptr;
}
OrtStatus* get_dims(const abi::Info* info, int64_t* out, size_t count) {
  std::copy_n(info->dims.begin(), std::min(count, info->dims.size()), out);
  return nullptr;
}
OrtStatus* get_symbols(const abi::Info* info, const char** out, size_t count) {
  for (size_t i = 0; i < count && i < info->dims.size(); ++i)
    out[i] = i < info->symbols.size() ? info->symbols[i].c_str() : "";
  return nullptr;
}
OrtStatus* set_symbols(abi::Info* info, const char** names, size_t count) {
  info->symbols.assign(names, names + count);
  return nullptr;
}

const Attribute* find_attribute(const Node& node, const char* name) {
  for (const Attribute& attribute : node.attributes)
    if (attribute.name == name) return &attribute;
  return nullptr;
}
OrtStatus* get_integer(const OrtKernelInfo* info, const char* name, int64_t* out) {
  const Attribute* attribute = find_attribute(*info->node, name);
  if (!attribute || attribute->kind != Attribute::integer) return refuse("no such integer");
  *out = attribute->values.at(0);
  return nullptr;
}
OrtStatus* get_integers(const OrtKernelInfo* info, const char* name, int64_t* out, size_t* size) {
  const Attribute* attribute = find_attribute(*info->node, name);
  if (!attribute || attribute->kind != Attribute::integers) return refuse("no such integers");
  const size_t room = *size;
  *size = attribute->values.size();
  if (!out) return nullptr;
  if (room < *size) return refuse("the result buffer is not large enough");
  std::copy(attribute->values.begin(), attribute->values.end(), out);
  return nullptr;
}
OrtStatus* get_input_count(const OrtKernelInfo* info, size_t* out) {
  *out = info->node->inputs.size();
  return nullptr;
}
OrtStatus* get_node_name(const OrtKernelInfo* info, char* out, size_t* size) {
  const std::string& name = info->node->name;
  const size_t room = *size;
  *size = name.size() + 1;
  if (!out) return nullptr;
  if (room < *size) return refuse("the result buffer is not large enough");
  std::memcpy(out, name.c_str(), *size);
  return nullptr;
}
OrtStatus* get_constant(const OrtKernelInfo* info, size_t index, int* is_constant, const OrtValue** out) {
  if (index >= info->values.size()) return refuse("no such input");
  const Input& input = info->node->inputs[index];
  *is_constant = input.present && input.constant;
  *out = *is_constant ? &info->values[index] : nullptr;
  return nullptr;
}

OrtStatus* get_input(const OrtKernelContext* context, size_t index, const OrtValue** out) {
  if (index >= context->inputs.size()) return refuse("no such input");
  *out = context->node->inputs[index].present ? &context->inputs[index] : nullptr;
  return nullptr;
}
OrtStatus* get_output(OrtKernelContext* context, size_t index, const int64_t* dims, size_t rank, OrtValue** out) {
  if (index >= context->outputs->size()) return refuse("no such output");
  Tensor& tensor = (*context->outputs)[index];
  const Dims asked(dims, dims + rank);
  if (context->asked[index] && tensor.dims != asked)
    misuse("output " + std::to_string(index) + " asked for as " + to_string(tensor.dims) + " and " + to_string(asked));
  if (!context->asked[index]) {
    int64_t bytes = static_cast<int64_t>(element_bytes(tensor.type));
    for (int64_t d : asked) {
      if (d < 0) misuse("an output of shape " + to_string(asked));
      if (__builtin_mul_overflow(bytes, d, &bytes)) misuse("an output without bounds: " + to_string(asked));
    }
    tensor.dims = asked;
    context->asked[index] = true;
    if (!context->node->wanted[index]) {
      *out = nullptr;
      return nullptr;
    }
    if (bytes > kOutputBudget) return new_status(ORT_FAIL, "out of memory: an output of " + to_string(asked));
    tensor.bytes.assign(static_cast<size_t>(bytes), fill_byte);
  }
  *out = context->node->wanted[index] ? &context->output_values[index] : nullptr;
  return nullptr;
}

struct Allocator : OrtAllocator {};
void* allocator_alloc(OrtAllocator* allocator, size_t bytes) {
  objects().expect(allocator);
  void* block = allocate(bytes, [](size_t n) { return std::malloc(n); });
  const Scope outside(false);
  if (block) objects().add(static_cast<char*>(block));
  return block;
}
void allocator_free(OrtAllocator* allocator, void* block) {
  objects().expect(allocator);
  {
    const Scope outside(false);
    objects().remove(static_cast<char*>(block));
  }
  std::free(block);
}
OrtStatus* get_allocator(const OrtKernelContext*, const OrtMemoryInfo* memory, OrtAllocator** out) {
  if (!memory) misuse("an allocator for no memory");
  *out = objects().add(static_cast<OrtAllocator*>(new Allocator{}));
  **out = {abi::kApiVersion, allocator_alloc, allocator_free, nullptr};
  return nullptr;
}
void release_allocator(OrtAllocator* allocator) {
  objects().remove(allocator);
  delete static_cast<Allocator*>(allocator);
}

int threads = 1;
OrtStatus* parallel_for(const OrtKernelContext*, void (*task)(void*, size_t), size_t count, size_t, void* user) {
  std::atomic<size_t> next{0};
  const auto work = [&] {
    const Scope inside(true);
    for (size_t i; (i = next++) < count;) task(user, i);
  };
  std::vector<std::thread> others;
  for (size_t i = 1; i < static_cast<size_t>(threads) && i < count; ++i) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
  return nullptr;
}

OrtStatus* infer_input(const OrtShapeInferContext* context, size_t index, abi::Info** out) {
  if (index >= context->inputs.size()) return refuse("no such input");
  *out = const_cast<abi::Info*>(&context->inputs[index]);  // not for the library to release
  return nullptr;
}
OrtStatus* infer_attribute(const OrtShapeInferContext* context, const char* name, const OrtOpAttr** out) {
  for (const OrtOpAttr& attribute : context->attributes)
    if (attribute.name == name) {
      *out = &attribute;
      return nullptr;
    }
  return refuse("no such attribute");
}
OrtStatus* infer_output(const OrtShapeInferContext* context, size_t index, const abi::Info* info) {
  if (index >= context->outputs->size()) misuse("shape inference of an output that is not there");
  (*context->outputs)[index] = {info->type, info->dims, info->symbols};
  return nullptr;
}
OrtStatus* read_attribute(const OrtOpAttr* attribute, OrtOpAttrType type, void* out, size_t room, size_t* bytes) {
  const Attribute::Kind kind = type == ORT_ATTRIBUTE_INT ? Attribute::integer : Attribute::integers;
  if (attribute->kind != kind) return refuse("an attribute of another type");
  *bytes = attribute->values.size() * sizeof(int64_t);
  if (room < *bytes) return refuse("the result buffer is not large enough");
  if (*bytes) std::memcpy(out, attribute->values.data(), *bytes);
  return nullptr;
}

[[noreturn]] void unexpected() { misuse("a function that ort_abi.h does not name"); }

constexpr size_t kSlots = 320;
constexpr int kCreateStatus = 0;  // never fails
struct Table {
  void* slots[kSlots];
  const OrtApi* api() const { return reinterpret_cast<const OrtApi*>(slots); }
};

// Fills the slot of one function, checked against the signature in ort_abi.h.
template <auto implementation, int index, class Result, class... Arguments>
void provide(Table& table, const abi::Function<index, Result(Arguments...)>&) {
  static_assert(std::is_same_v<decltype(implementation), Result (*)(Arguments...)>);
  Result (*call)(Arguments...) = [](Arguments... arguments) -> Result {
    const Scope outside(false);
    if constexpr (std::is_same_v<Result, OrtStatus*> && index != kCreateStatus)
      if (is_due(calls_to_fault)) return refuse("a fault");
    return implementation(arguments...);
  };
  table.slots[index] = reinterpret_cast<void*>(call);
}

Table make_table() {
  Table table;
  std::fill_n(table.slots, kSlots, reinterpret_cast<void*>(unexpected));
  provide<&create_status>(table, abi::CreateStatus);
  provide<&create_domain>(table, abi::CreateCustomOpDomain);
  provide<&domain_add>(table, abi::CustomOpDomain_Add);
  provide<&add_domain>(table, abi::AddCustomOpDomain);
  provide<&get_data>(table, abi::GetTensorMutableData);
  provide<&create_info>(table, abi::CreateTensorTypeAndShapeInfo);
  provide<&set_type>(table, abi::SetTensorElementType);
  provide<&set_dims>(table, abi::SetDimensions);
  provide<&get_type>(table, abi::GetTensorElementType);
  provide<&get_rank>(table, abi::GetDimensionsCount);
  provide<&get_dims>(table, abi::GetDimensions);
  provide<&get_symbols>(table, abi::GetSymbolicDimensions);
  provide<&get_type_and_shape>(table, abi::GetTensorTypeAndShape);
  provide<&get_integer>(table, abi::KernelInfoGetAttribute_int64);
  provide<&get_input>(table, abi::KernelContext_GetInput);
  provide<&get_output>(table, abi::KernelContext_GetOutput);
  provide<&release_status>(table, abi::ReleaseStatus);
  provide<&release_info>(table, abi::ReleaseTensorTypeAndShapeInfo);
  provide<&release_allocator>(table, abi::ReleaseAllocator);
  provide<&get_integers>(table, abi::KernelInfoGetAttributeArray_int64);
  provide<&get_memory_info>(table, abi::GetTensorMemoryInfo);
  provide<&get_input_count>(table, abi::KernelInfo_GetInputCount);
  provide<&get_node_name>(table, abi::KernelInfo_GetNodeName);
  provide<&get_constant>(table, abi::KernelInfoGetConstantInput_tensor);
  provide<&get_allocator>(table, abi::KernelContext_GetAllocator);
  provide<&infer_input>(table, abi::ShapeInferContext_GetInputTypeShape);
  provide<&infer_attribute>(table, abi::ShapeInferContext_GetAttribute);
  provide<&infer_output>(table, abi::ShapeInferContext_SetOutputTypeShape);
  provide<&set_symbols>(table, abi::SetSymbolicDimensions);
  provide<&read_attribute>(table, abi::ReadOpAttr);
  provide<&parallel_for>(table, abi::KernelContext_ParallelFor);
  return table;
}
const OrtApi* api() {
  static const Table table = make_table();
  return table.api();
}

// Calls into the library; its status becomes an outcome.
template <class Body>
Outcome enter(const Faults& faults, Body&& body) {
  calls_to_fault = faults.api_call;
  allocations_to_fault = faults.allocation;
  const int64_t before = held;
  peak = before;
  OrtStatus* status = nullptr;
  try {
    const Scope inside(true);
    status = body();
  } catch (...) {
    misuse("an exception crossed the C boundary");
  }
  calls_to_fault = allocations_to_fault = -1;
  Outcome out;
  out.ok = !status;
  out.peak_bytes = peak - before;
  if (status) {
    out.error = status->message;
    release_status(status);
  }
  return out;
}

}  // namespace

void set_threads(int count) { threads = count; }

std::vector<const OrtCustomOp*> register_once(uint32_t newest, Outcome* outcome) {
  static thread_local uint32_t version;
  version = newest;
  const OrtApiBase base{[](uint32_t wanted) { return wanted <= version ? api() : nullptr; }, []() { return "0.0.0"; }};
  OrtSessionOptions options;
  OrtStatus* status = RegisterCustomOps(&options, &base);  // not counted: the domain is kept for good
  if (outcome) {
    outcome->ok = !status;
    outcome->error = status ? status->message : "";
  } else if (status) {
    misuse("registration failed: " + status->message);
  }
  if (status) release_status(status);
  return options.domains.empty() ? std::vector<const OrtCustomOp*>() : options.domains.front()->ops;
}

const std::vector<const OrtCustomOp*>& registered_ops() {
  static const std::vector<const OrtCustomOp*> ops = register_once();
  return ops;
}

Outcome infer(const OrtCustomOp& op, const Node& node, std::vector<Inferred>* shapes, const Faults& faults) {
  OrtShapeInferContext context{&node, {}, {}, shapes};
  for (const Input& input : node.inputs) {
    abi::Info info{input.tensor.type, {}, {}};
    if (input.hint.known_rank) {  // otherwise what onnxruntime says then: a scalar
      info.dims = input.hint.dims;
      info.symbols = input.hint.symbols;
    }
    context.inputs.push_back(info);
  }
  for (const Attribute& attribute : node.attributes) context.attributes.push_back(OrtOpAttr{attribute});
  shapes->assign(op.GetOutputTypeCount(&op), {});
  const int64_t before = held;
  const Outcome out = enter(faults, [&] { return op.InferOutputShapeFn(&op, &context); });
  if (held != before) misuse("shape inference keeps " + std::to_string(held - before) + " bytes");
  return out;
}

Kernel::Kernel(const OrtCustomOp& op, const Node& node, const Faults& faults) : op_(op), node_(node) {
  OrtKernelInfo info{&node, {}};
  for (const Input& input : node.inputs) info.values.push_back({&input.tensor});
  const int64_t before = held;
  created_ = enter(faults, [&] { return op.CreateKernelV2(&op, api(), &info, &kernel_); });
  if (created_.ok && !kernel_) misuse("no kernel and no status");
  if (!created_.ok && held != before) misuse("a kernel that failed keeps memory");
}

Kernel::~Kernel() {
  if (!created_.ok) return;
  const Scope inside(true);
  op_.KernelDestroy(kernel_);
}

Outcome Kernel::compute(std::vector<Tensor>* outputs, uint8_t fill, const Faults& faults) const {
  OrtKernelContext context{&node_, {}, outputs, {}, {}};
  const size_t count = op_.GetOutputTypeCount(&op_);
  for (const Input& input : node_.inputs) context.inputs.push_back({&input.tensor});
  outputs->assign(count, {});
  context.asked.assign(count, false);
  for (size_t i = 0; i < count; ++i) {
    (*outputs)[i].type = op_.GetOutputType(&op_, i);
    context.output_values.push_back({&(*outputs)[i]});
  }
  fill_byte = fill;
  return enter(faults, [&] { return op_.KernelComputeV2(kernel_, &context); });
}

void expect_nothing_held() {
  objects().expect_empty();
  if (held != 0) misuse("the library holds " + std::to_string(held) + " bytes without a kernel");
}

}  // namespace binarize::mock
