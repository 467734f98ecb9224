// What must hold for any node whatever, right or wrong.
#pragma once

#include "fuzz/mock.h"

namespace binarize::mock {

struct Checked {
  bool inferred = false, created = false, computed = false;
  std::vector<Tensor> outputs;  // where computed
  std::string error;            // the first status
};

struct CheckOptions {
  bool computable = true;  // the inputs have data: otherwise no kernel is called
  bool true_hints = true;  // the hints say nothing false
  Faults faults;           // of every call; the answers are not compared then
};

// Runs shape inference, kernel creation and the kernel, and aborts unless
//   - the runtime sees no misuse, and everything is given back;
//   - the inputs are as they were;
//   - the memory held at once stays below memory_bound();
//   - where the kernel computes, shape inference did not refuse, and said nothing else about any output;
//   - a second kernel, scalar and with every input at run time, accepts the same and gives the same bits.
Checked check_node(const Node& node, const CheckOptions& options = {});

// The bytes that one call may hold beside its inputs and outputs: see README.md.
int64_t memory_bound(const Node& node, const std::vector<Tensor>& outputs);

// The entry of the domain that onnxruntime would take: that of the node's name and types.
const OrtCustomOp& op_for(const Node& node);

}  // namespace binarize::mock
