#include "fuzz/check_node.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>

namespace binarize::mock {
namespace {

[[noreturn]] void fail(const Node& node, const std::string& what) { misuse("node '" + node.op + "': " + what); }

double elements(const Dims& dims) {
  double count = 1;
  for (int64_t d : dims) count *= std::max(0.0, static_cast<double>(d));
  return count;
}

int64_t attribute_or(const Node& node, const char* name, size_t at, int64_t otherwise) {
  for (const Attribute& attribute : node.attributes)
    if (attribute.name == name && at < attribute.values.size()) return attribute.values[at];
  return otherwise;
}

bool is_nan(const Tensor& tensor, size_t i) {
  if (tensor.type == ORT_FLOAT) {
    float value;
    std::memcpy(&value, &tensor.bytes[i * 4], 4);
    return std::isnan(value);
  }
  if (tensor.type == ORT_FLOAT16) {
    uint16_t value;
    std::memcpy(&value, &tensor.bytes[i * 2], 2);
    return (value & 0x7fff) > 0x7c00;
  }
  return false;
}

// Bit for bit, except that a NaN is a NaN.
bool same_values(const Tensor& a, const Tensor& b) {
  if (a.type != b.type || a.dims != b.dims || a.bytes.size() != b.bytes.size()) return false;
  const size_t size = element_bytes(a.type);
  for (size_t i = 0; i * size < a.bytes.size(); ++i)
    if (std::memcmp(&a.bytes[i * size], &b.bytes[i * size], size) != 0 && !(is_nan(a, i) && is_nan(b, i))) return false;
  return true;
}

// Names of dimensions stand for one size each, and an output may use those of the inputs.
void expect_compatible(const Node& node, const std::vector<Inferred>& inferred, const std::vector<Tensor>& outputs) {
  std::map<std::string, int64_t> sizes;
  for (const Input& input : node.inputs)
    if (input.hint.known_rank)
      for (size_t i = 0; i < input.hint.dims.size(); ++i)
        if (!input.hint.symbols[i].empty()) sizes[input.hint.symbols[i]] = input.tensor.dims[i];
  for (size_t o = 0; o < outputs.size(); ++o) {
    if (inferred[o].type == ORT_UNDEFINED) continue;  // nothing was said
    const Dims &said = inferred[o].dims, &is = outputs[o].dims;
    const std::string what = "output " + std::to_string(o) + " is " + to_string(is);
    if (said.size() != is.size()) fail(node, what + ", inferred as " + to_string(said));
    if (inferred[o].type != outputs[o].type) fail(node, what + " of another type than inferred");
    for (size_t i = 0; i < is.size(); ++i) {
      const std::string& symbol = inferred[o].symbols[i];
      if (symbol.empty() && said[i] != is[i]) fail(node, what + ", inferred as " + to_string(said));
      if (!symbol.empty() && sizes.emplace(symbol, is[i]).first->second != is[i])
        fail(node, what + ", and axis " + std::to_string(i) + " is inferred to be " + symbol);
    }
  }
}

bool out_of_memory(const Outcome& outcome) { return outcome.error.find("out of memory") != std::string::npos; }

}  // namespace

const OrtCustomOp& op_for(const Node& node) {
  const OrtCustomOp* of_name = nullptr;
  for (const OrtCustomOp* op : registered_ops()) {
    if (node.op != op->GetName(op)) continue;
    of_name = op;
    bool fits = node.inputs.size() == op->GetInputTypeCount(op);
    for (size_t i = 0; fits && i < node.inputs.size(); ++i)
      fits = node.inputs[i].tensor.type == op->GetInputType(op, i);
    if (fits) return *op;
  }
  return *of_name;  // onnxruntime would refuse the model: the op must refuse it too
}

int64_t memory_bound(const Node& node, const std::vector<Tensor>& outputs) {
  double inputs = 0, outs = 1, seen = 0, planes = 1, thresholds = 1, terms = 1;
  for (const Input& input : node.inputs)
    inputs += 64 + elements(input.tensor.dims) * static_cast<double>(element_bytes(input.tensor.type));
  for (const Tensor& output : outputs) outs = std::max(outs, elements(output.dims));
  const bool conv = node.op == "XnorConv", product = node.op == "XnorMatMul";
  constexpr size_t kScale = 4;
  const size_t encode = conv || product ? 13 : 2;
  if (encode < node.inputs.size() && node.inputs[encode].tensor.dims.size() == 2)
    thresholds = std::max(1.0, static_cast<double>(node.inputs[encode].tensor.dims[1]));
  if ((conv || product) && node.inputs.size() > kScale) {
    const Dims &x = node.inputs[0].tensor.dims, &w = node.inputs[1].tensor.dims, &s = node.inputs[kScale].tensor.dims;
    const int64_t length = attribute_or(node, conv ? "channels" : "k", 0, 1);
    const int64_t packed = conv ? (x.size() == 4 ? x[1] : 1) : (x.empty() ? 1 : x.back());
    planes = std::max(1.0, static_cast<double>(packed) / std::max(1.0, std::ceil(static_cast<double>(length) / 32)));
    const double columns = s.empty() ? 1 : static_cast<double>(conv && s.size() == 4 ? s[1] : s.back());
    const double filters = w.empty() ? 1 : static_cast<double>(conv ? w[0] : w.back());
    terms =
        planes * std::max(1.0, filters / std::max(1.0, columns)) + 2 * (s.empty() ? 1.0 : static_cast<double>(s[0]));
    const auto size = [&](size_t axis) { return std::max(0.0, static_cast<double>(w[axis])); };
    if (conv && w.size() == 4) seen = size(1) * size(2) * size(3) * (2 * size(3) + 1);
  }
  terms = std::max(1.0, terms);
  constexpr double kMost = int64_t{1} << 60;
  return static_cast<int64_t>(
      std::min(kMost, 65536 + 1024 * inputs + 16 * (1 + thresholds) * outs + 12 * seen + 4096 * terms));
}

Checked check_node(const Node& node, const CheckOptions& options) {
  const OrtCustomOp& op = op_for(node);
  const bool faulty = options.faults.api_call >= 0 || options.faults.allocation >= 0;
  Checked out;
  std::vector<Inferred> inferred;
  const Outcome inference = infer(op, node, &inferred, options.faults);
  out.inferred = inference.ok;
  out.error = inference.error;
  const std::vector<Input> before = node.inputs;

  unsetenv("BINARIZE_ONNX_ISA");
  Outcome computed;
  std::vector<Tensor> outputs;
  {
    const Kernel kernel(op, node, options.faults);
    out.created = kernel.created().ok;
    if (out.error.empty()) out.error = kernel.created().error;
    computed = kernel.created();
    if (options.computable && kernel.created().ok) {
      computed = kernel.compute(&outputs, 0xa5, options.faults);
      out.computed = computed.ok;
      if (out.error.empty()) out.error = computed.error;
    }
    if (out.computed && !faulty) {  // from what the first call left behind
      std::vector<Tensor> repeated;
      const Outcome again = kernel.compute(&repeated, 0x5a);
      if (!again.ok && !out_of_memory(again)) fail(node, "a second call fails: '" + again.error + "'");
      for (size_t o = 0; again.ok && o < outputs.size(); ++o)
        if (node.wanted[o] && !same_values(outputs[o], repeated[o]))
          fail(node, "output " + std::to_string(o) + " of a second call differs from that of the first");
    }
    const int64_t bound = memory_bound(node, outputs);
    for (const int64_t peak : {inference.peak_bytes, kernel.created().peak_bytes, computed.peak_bytes})
      if (peak > bound) fail(node, "it held " + std::to_string(peak) + " bytes, the bound is " + std::to_string(bound));
  }
  expect_nothing_held();
  for (size_t i = 0; i < before.size(); ++i)
    if (!(before[i].tensor == node.inputs[i].tensor)) fail(node, "it wrote to input " + std::to_string(i));
  if (faulty || !options.computable) return out;

  if (out.computed && options.true_hints) {
    if (!inference.ok) fail(node, "it computes what shape inference refused: " + inference.error);
    expect_compatible(node, inferred, outputs);
  }

  Node other = node;
  for (Input& input : other.inputs) input.constant = false;
  other.wanted.assign(other.wanted.size(), true);
  setenv("BINARIZE_ONNX_ISA", "scalar", 1);
  std::vector<Tensor> expected;
  {
    const Kernel kernel(op, other);
    Outcome second = kernel.created();
    if (second.ok) second = kernel.compute(&expected, 0x3c);
    const bool empty = std::all_of(outputs.begin(), outputs.end(), [](const Tensor& t) { return t.bytes.empty(); });
    if (second.ok != computed.ok && !empty && !out_of_memory(second) && !out_of_memory(computed))
      fail(node, "constants or the instruction set decide about an error: '" + computed.error + second.error + "'");
    for (size_t o = 0; out.computed && second.ok && o < outputs.size(); ++o)
      if (node.wanted[o] && !same_values(outputs[o], expected[o]))
        fail(node, "output " + std::to_string(o) + " " + to_string(outputs[o].dims) +
                       " differs from that of the scalar kernel with every input at run time");
  }
  unsetenv("BINARIZE_ONNX_ISA");
  expect_nothing_held();
  out.outputs = std::move(outputs);
  return out;
}

}  // namespace binarize::mock
