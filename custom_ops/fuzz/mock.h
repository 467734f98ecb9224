// The part of onnxruntime that the library meets, played by the strictest partner there can be.
//
// Every function that ort_abi.h names is here; any other slot of the table aborts.  A misuse aborts too: an object
// released twice or never, an output asked for with two shapes, an exception across the C boundary, a byte not given
// back.  Memory is fresh, exactly as long as asked for (so that AddressSanitizer sees the next byte) and never zero.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ort_abi.h"

// The library itself, linked in.
extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);

namespace binarize::mock {

[[noreturn]] void misuse(const std::string& what);

using Dims = std::vector<int64_t>;
std::string to_string(const Dims& dims);
size_t element_bytes(OrtElementType type);

struct Tensor {
  OrtElementType type = ORT_UNDEFINED;
  Dims dims;
  std::vector<uint8_t> bytes;
  bool operator==(const Tensor& other) const {
    return type == other.type && dims == other.dims && bytes == other.bytes;
  }
};

struct Attribute {
  enum Kind { integer, integers, other };  // other: a string, say
  std::string name;
  Kind kind = integer;
  std::vector<int64_t> values;
};

// What shape inference is told of an input.  A dimension with a symbol is unknown.
struct Hint {
  bool known_rank = true;
  Dims dims;
  std::vector<std::string> symbols;
};

struct Input {
  bool present = true, constant = false;
  Tensor tensor;
  Hint hint;
};

struct Node {
  std::string op, name;
  std::vector<Attribute> attributes;
  std::vector<Input> inputs;
  std::vector<bool> wanted;  // outputs: the others are ""
};

// What may go wrong during one call, counted from 0; negative: nothing.
struct Faults {
  int64_t api_call = -1;    // this call of an API function fails
  int64_t allocation = -1;  // and this allocation
};

// What the machine has.  Beyond it allocations fail, as they do.
constexpr int64_t kOutputBudget = int64_t{1} << 20, kMemoryBudget = int64_t{16} << 20;

struct Outcome {
  bool ok = false;
  std::string error;       // of the status
  int64_t peak_bytes = 0;  // that the library held at once, without outputs
};

// All entries of the domain, registered once for the process.
const std::vector<const OrtCustomOp*>& registered_ops();

// A session's options, to register with by hand.  `newest`: the API version of this onnxruntime.
std::vector<const OrtCustomOp*> register_once(uint32_t newest = abi::kApiVersion, Outcome* outcome = nullptr);

// Runs the parallel loops of every call on so many threads.  1: in order, on the caller's.
void set_threads(int count);

// `shapes`: what the library said of each output; type ORT_UNDEFINED where it said nothing.
struct Inferred {
  OrtElementType type = ORT_UNDEFINED;
  Dims dims;
  std::vector<std::string> symbols;
};
Outcome infer(const OrtCustomOp& op, const Node& node, std::vector<Inferred>* shapes, const Faults& faults = {});

// One kernel.  The node must outlive it, as onnxruntime's constants do.
class Kernel {
 public:
  Kernel(const OrtCustomOp& op, const Node& node, const Faults& faults = {});
  ~Kernel();
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;

  const Outcome& created() const { return created_; }
  // `outputs`: one for each output of the op.  One that is not wanted has dims (where it was asked for) and no bytes.
  // `fill`: what fresh memory holds, so that two calls tell whether a value depends on it.
  Outcome compute(std::vector<Tensor>* outputs, uint8_t fill = 0xa5, const Faults& faults = {}) const;

 private:
  const OrtCustomOp& op_;
  const Node& node_;
  void* kernel_ = nullptr;
  Outcome created_;
};

// Aborts where a status, an allocator or memory of the library is still held.
void expect_nothing_held();

}  // namespace binarize::mock
