// What the ops see of onnxruntime: attributes, tensors, scratch memory, its thread pool, and errors as statuses.
#pragma once

#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "ops/shape.h"
#include "ort_abi.h"

namespace binarize {

// A status that onnxruntime gave us, on its way back to onnxruntime.
struct StatusException {
  OrtStatus* status;
};

inline void check(OrtStatus* status) {
  if (status) throw StatusException{status};
}

// What an error message begins with.  Made from a literal it allocates nothing, so it can be made outside of guard.
struct Where {
  const char* op = nullptr;
  std::string node;

  std::string text() const {
    std::string out = "binarize_onnx";
    if (op) out += std::string(".") + op;
    if (!node.empty()) out += " (node '" + node + "')";
    return out;
  }
};

// Runs `body`; whatever it throws becomes a status: no exception crosses the C boundary.
template <class Body>
OrtStatus* guard(const OrtApi* api, const Where& where, Body&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const StatusException& error) {
    return error.status;
  } catch (const std::bad_alloc&) {
    return abi::CreateStatus(api, ORT_FAIL, "binarize_onnx: out of memory");
  } catch (const std::exception& error) {
    try {
      return abi::CreateStatus(api, ORT_INVALID_ARGUMENT, (where.text() + ": " + error.what()).c_str());
    } catch (...) {
      return abi::CreateStatus(api, ORT_FAIL, "binarize_onnx: out of memory");
    }
  } catch (...) {
    return abi::CreateStatus(api, ORT_FAIL, "binarize_onnx: unknown error");
  }
}

const char* type_name(OrtElementType type);

struct Tensor {
  Shape shape;
  OrtElementType type = ORT_UNDEFINED;
  const void* data = nullptr;
  bool constant = false;

  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
};

// Reads attributes from a node, at shape inference or at kernel creation.  All are required: a file states every one.
class Attributes {
 public:
  Attributes(const OrtApi* api, const OrtKernelInfo* info) : api_(api), info_(info) {}
  Attributes(const OrtApi* api, const OrtShapeInferContext* context) : api_(api), context_(context) {}

  int64_t integer(const char* name) const;
  // Exactly `count` integers, each in [least, 2^31).
  void integers(const char* name, int64_t* values, size_t count, int64_t least) const;
  // An integer in [least, most].
  int64_t integer_in(const char* name, int64_t least, int64_t most) const;

 private:
  const OrtApi* api_;
  const OrtKernelInfo* info_ = nullptr;
  const OrtShapeInferContext* context_ = nullptr;
};

// Memory aligned to a cache line.
struct AlignedDelete {
  void operator()(void* p) const { std::free(p); }
};
template <class T>
using AlignedArray = std::unique_ptr<T[], AlignedDelete>;
template <class T>
AlignedArray<T> aligned_array(int64_t count) {
  const size_t bytes = static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(T)) + 64, 64));
  T* data = static_cast<T*>(std::aligned_alloc(64, bytes));
  if (!data) throw std::bad_alloc();
  return AlignedArray<T>(data);
}

// The inputs of a node as kernel creation sees them: constants have data, which onnxruntime keeps as long as the
// kernel.
std::string node_name(const OrtApi* api, const OrtKernelInfo* info);
size_t input_count(const OrtApi* api, const OrtKernelInfo* info);
Tensor constant_input(const OrtApi* api, const OrtKernelInfo* info, size_t index, const char* name);
Tensor tensor_of(const OrtApi* api, const OrtValue* value, const char* name);

// One call of a kernel.
class Call {
 public:
  Call(const OrtApi* api, OrtKernelContext* context) : api_(api), context_(context) {}
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  Tensor input(size_t index, const char* name) const;
  // Null where the node names no such output.
  void* output(size_t index, const Shape& shape);

  // Scratch of this call, aligned to a cache line, freed with the Call.  Not for use inside parallel_for.
  template <class T>
  T* scratch(int64_t count) {
    return static_cast<T*>(scratch_bytes(static_cast<size_t>(count) * sizeof(T)));
  }

  bool has_scratch() const { return !blocks_.empty(); }

  // body(i) for i in [0, count) on onnxruntime's own pool.  Exceptions are carried over.
  template <class Body>
  void parallel_for(int64_t count, const Body& body);

 private:
  void* scratch_bytes(size_t bytes);

  const OrtApi* api_;
  OrtKernelContext* context_;
  OrtAllocator* allocator_ = nullptr;
  std::vector<void*> blocks_;
};

template <class Body>
void Call::parallel_for(int64_t count, const Body& body) {
  if (count == 1) return body(0);
  struct Shared {
    const Body* body;
    std::atomic<bool> failed{false};
  } shared{&body};
  auto task = [](void* pointer, size_t index) noexcept {
    Shared& shared = *static_cast<Shared*>(pointer);
    try {
      (*shared.body)(static_cast<int64_t>(index));
    } catch (...) {
      shared.failed = true;  // a task can only run out of memory: everything else is checked before
    }
  };
  check(abi::KernelContext_ParallelFor(api_, context_, task, static_cast<size_t>(count), 0, &shared));
  if (shared.failed) throw std::bad_alloc();
}

// Shape inference: what is known of the inputs, and the outputs to state.
struct SymbolicShape {
  Shape shape;
  std::string symbol[kMaxAxes];  // a name for a dimension of kUnknown, or empty
};

class Inference {
 public:
  Inference(const OrtApi* api, OrtShapeInferContext* context) : api_(api), context_(context) {}
  SymbolicShape input(size_t index) const;
  void output(size_t index, OrtElementType type, const SymbolicShape& shape);
  Attributes attributes() const { return Attributes(api_, context_); }

 private:
  const OrtApi* api_;
  OrtShapeInferContext* context_;
};

// One entry of the domain.  onnxruntime calls through the function pointers of OrtCustomOp, which come first.
struct Op : OrtCustomOp {
  const OrtApi* api;  // of the onnxruntime it is registered with: OrtShapeInferContext comes without
  const char* name;
  std::vector<OrtElementType> inputs, outputs;
  bool optional_outputs;
};

// A kernel of type Kernel: Kernel(const OrtApi*, const OrtKernelInfo*, IsaMask); void compute(Call&) const;
// static void infer(Inference&); static constexpr const char* kName.
template <class Kernel>
struct KernelInstance {
  KernelInstance(const OrtApi* api, const OrtKernelInfo* info, IsaMask isas, const Where& where)
      : api(api), where(where), kernel(api, info, isas) {}
  const OrtApi* api;
  Where where;
  Kernel kernel;
};

// The instruction sets kernels may use now; throws where BINARIZE_ONNX_ISA asks for what cannot run.
IsaMask isas_or_throw();

void set_common_callbacks(Op& op);

template <class Kernel>
Op make_op(std::vector<OrtElementType> inputs, std::vector<OrtElementType> outputs, bool optional_outputs) {
  Op op{};
  op.name = Kernel::kName;
  op.inputs = std::move(inputs);
  op.outputs = std::move(outputs);
  op.optional_outputs = optional_outputs;
  set_common_callbacks(op);
  op.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    Where where{Kernel::kName, {}};
    return guard(api, where, [&] {
      where.node = node_name(api, info);
      *kernel = new KernelInstance<Kernel>(api, info, isas_or_throw(), where);
    });
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    const auto& instance = *static_cast<const KernelInstance<Kernel>*>(kernel);
    return guard(instance.api, instance.where, [&] {
      Call call(instance.api, context);
      instance.kernel.compute(call);
    });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<KernelInstance<Kernel>*>(kernel); };
  op.InferOutputShapeFn = [](const OrtCustomOp* op, OrtShapeInferContext* context) {
    const OrtApi* api = static_cast<const Op*>(op)->api;
    return guard(api, Where{Kernel::kName, {}}, [&] {
      Inference inference(api, context);
      Kernel::infer(inference);
    });
  };
  return op;
}

}  // namespace binarize
