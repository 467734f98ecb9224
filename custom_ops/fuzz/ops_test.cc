// The library on a runtime of our own (mock.h): what a session does from several threads, what a hostile file does
// once, and what the fuzz target found.  Meant to run under sanitizers; says little without.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <thread>

#include "fuzz/check_node.h"
#include "fuzz/node_from_bytes.h"

namespace {

using namespace binarize::mock;

constexpr int64_t kMost = std::numeric_limits<int64_t>::max();

int failures = 0;
void expect(bool holds, const std::string& what) {
  if (holds) return;
  std::printf("FAILED %s\n", what.c_str());
  ++failures;
}

Tensor tensor(OrtElementType type, const Dims& dims, uint32_t value) {
  Tensor out{type, dims, {}};
  int64_t count = 1;
  for (int64_t d : dims) count *= d;
  const size_t size = element_bytes(type);
  out.bytes.resize(static_cast<size_t>(count) * size);
  for (size_t i = 0; i < out.bytes.size(); i += size) std::memcpy(&out.bytes[i], &value, size);
  return out;
}

Input input(const Tensor& value, bool constant) {
  Input out;
  out.constant = constant;
  out.tensor = value;
  out.hint.dims = value.dims;
  out.hint.symbols.assign(value.dims.size(), "");
  return out;
}

// An input that shape inference alone sees.
Input unfed(OrtElementType type, const Dims& dims) { return input(Tensor{type, dims, {}}, false); }

constexpr uint32_t kOne = 0x3f800000u, kMinusZero = 0x80000000u, kHalf = 0x3f000000u;

Attribute integer(const char* name, int64_t value) { return {name, Attribute::integer, {value}}; }
Attribute integers(const char* name, std::vector<int64_t> values) { return {name, Attribute::integers, values}; }

// The thirteen inputs of a layer with `outputs` channels, all neutral but the scale.
void add_epilogue(Node& node, bool conv, const Dims& mask, int64_t outputs) {
  const auto add = [&](OrtElementType type, const Dims& dims, uint32_t value) {
    node.inputs.push_back(input(tensor(type, dims, value), true));
  };
  const Dims vector = conv ? Dims{1, 1, 1} : Dims{1}, value = conv ? Dims{1, 1, 1, 1} : Dims{1, 1};
  add(ORT_UINT32, mask, ~0u);
  add(ORT_FLOAT, {1, 1}, kOne);                                                             // combine
  add(ORT_FLOAT, conv ? Dims{1, outputs, 1, 1} : Dims{1, 1, outputs}, kHalf);               // scale
  for (uint32_t neutral : {kOne, kMinusZero, kOne}) add(ORT_FLOAT, vector, neutral);        // gate, bias, slope_pre
  add(ORT_FLOAT, value, kMinusZero);                                                        // residual
  for (uint32_t neutral : {kMinusZero, kOne, kMinusZero}) add(ORT_FLOAT, vector, neutral);  // shift, slope, offset
  add(ORT_FLOAT, value, 0);                                                                 // threshold
  add(ORT_FLOAT, {1, 1}, kOne);                                                             // encode
  add(ORT_BOOL, value, 0);                                                                  // flip
  node.wanted = {true, true};
}

Node conv() {
  Node node{"XnorConv", "a convolution whose name needs an allocation", {}, {}, {}};
  node.attributes = {integer("channels", 64),       integer("group", 1),
                     integers("strides", {1, 1}),   integers("pads", {1, 1, 1, 1}),
                     integers("dilations", {1, 1}), integer("pad_value", 0),
                     integer("x_low", -1),          integer("dtype", 1)};
  node.inputs = {input(tensor(ORT_UINT32, {2, 2, 14, 14}, 0x12345678u), false),
                 input(tensor(ORT_UINT32, {48, 2, 3, 3}, 0x0ff0f00fu), true)};
  add_epilogue(node, true, {1, 2, 1, 1}, 48);
  return node;
}

Node matmul() {
  Node node{"XnorMatMul", "a product", {}, {}, {}};
  node.attributes = {integer("k", 64), integer("x_low", -1), integer("dtype", 1)};
  node.inputs = {input(tensor(ORT_UINT32, {3, 70, 2}, 0x12345678u), false),
                 input(tensor(ORT_UINT32, {2, 150}, 0x0ff0f00fu), true)};
  add_epilogue(node, false, {2, 1}, 150);
  return node;
}

Node pack_sign(const Dims& x, int64_t axis) {
  Node node{"PackSign", "signs", {integer("axis", axis)}, {}, {true}};
  node.inputs = {input(tensor(ORT_FLOAT, x, kHalf), false), input(tensor(ORT_FLOAT, {1}, 0), true),
                 input(tensor(ORT_FLOAT, {1, 1}, kOne), true), input(tensor(ORT_BOOL, {1}, 0), true)};
  return node;
}

Node unpack() {
  Node node{"Unpack", "", {integer("axis", 1), integer("channels", 40), integer("x_low", -1)}, {}, {true}};
  node.inputs = {input(tensor(ORT_UINT32, {2, 2, 9, 9}, 0x12u), false)};
  return node;
}

Node pool(int64_t kernel = 3, int64_t pad = 1, int64_t stride = 2) {
  Node node{"PackedMaxPool", "a pool", {}, {}, {true}};
  node.attributes = {integer("channels", 64),
                     integers("kernel_shape", {kernel, kernel}),
                     integers("strides", {stride, stride}),
                     integers("pads", {pad, pad, pad, pad}),
                     integers("dilations", {1, 1}),
                     integer("ceil_mode", 0)};
  node.inputs = {input(tensor(ORT_UINT32, {2, 2, 15, 15}, 0x12345678u), false),
                 input(tensor(ORT_BOOL, {64, 1, 1}, 1), true)};
  return node;
}

std::vector<Node> one_of_each() {
  return {conv(), matmul(), pack_sign({2, 70, 15, 15}, 1), pack_sign({40, 130}, 1), unpack(), pool()};
}

Attribute& attribute(Node& node, const std::string& name) {
  for (Attribute& a : node.attributes)
    if (a.name == name) return a;
  misuse("no attribute " + name);
}

// --- A session's threads -----------------------------------------------------------------------------------------

void in_threads(int count, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back(body, i);
  for (std::thread& thread : threads) thread.join();
}

void sessions_register_at_once() {
  std::vector<const OrtCustomOp*> found[8];
  in_threads(8, [&](int i) { found[i] = register_once(); });
  for (const auto& ops : found) expect(ops == found[0] && ops.size() == 8, "one domain for all sessions");
}

void an_old_onnxruntime_is_refused() {
  Outcome outcome;
  expect(register_once(17, &outcome).empty() && outcome.error.find("1.20") != std::string::npos,
         "an onnxruntime without version 18 of the API gets a status");
}

// One kernel, run by several sessions' threads at once, each of which splits its loops over several more.
void one_kernel_many_threads() {
  for (const Node& node : one_of_each()) {
    set_threads(1);
    const Checked alone = check_node(node);
    expect(alone.computed, node.op + " computes: " + alone.error);
    set_threads(3);
    {
      const Kernel kernel(op_for(node), node);
      in_threads(4, [&](int) {
        for (int run = 0; run < 3; ++run) {
          std::vector<Tensor> outputs;
          const Outcome outcome = kernel.compute(&outputs);
          if (!outcome.ok || !(outputs == alone.outputs)) misuse(node.op + " differs between threads");
        }
      });
    }
    set_threads(1);
    expect_nothing_held();
  }
}

// Kernels of several sessions are made at once.
void kernels_made_at_once() {
  for (const Node& node : one_of_each()) {
    in_threads(4, [&](int) {
      std::vector<Tensor> mine;
      const Kernel kernel(op_for(node), node);
      if (!kernel.compute(&mine).ok) misuse(node.op + " fails beside others");
    });
  }
  expect_nothing_held();
}

// --- A runtime that fails ----------------------------------------------------------------------------------------

// Each API call and each allocation fails once, in turn: a status comes back, and nothing stays behind.
void every_call_may_fail() {
  for (const Node& node : one_of_each())
    for (const bool allocation : {false, true}) {
      int64_t at = 0;
      for (;; ++at) {
        CheckOptions options;
        (allocation ? options.faults.allocation : options.faults.api_call) = at;
        if (check_node(node, options).computed && at > 150) break;
      }
    }
}

// --- Nodes that must be refused, whatever is in them -------------------------------------------------------------

void refused(const std::string& label, const Node& node, const std::string& why, bool computable = true) {
  CheckOptions options;
  options.computable = computable;
  options.true_hints = false;
  const Checked checked = check_node(node, options);
  expect(!checked.computed && checked.error.find(why) != std::string::npos,
         label + " is refused with '" + why + "', not '" + checked.error + "'");
}

void numbers_out_of_range() {
  const auto with = [](Node node, const std::string& name, std::vector<int64_t> values) {
    attribute(node, name).values = values;
    return node;
  };
  refused("group 0", with(conv(), "group", {0}), "'group' is 0");
  refused("a group that does not divide", with(conv(), "group", {3}), "multiple of attribute 'group'");
  refused("a negative pad", with(conv(), "pads", {0, -1, 0, 0}), "'pads'[1] is -1");
  refused("a pad beyond 32 bits", with(conv(), "pads", {0, 0, int64_t{1} << 31, 0}), "'pads'[2]");
  refused("three pads", with(conv(), "pads", {1, 1, 1}), "has 3 values");
  refused("seventeen pads", with(conv(), "pads", std::vector<int64_t>(17, 1)), "'pads'");
  refused("stride 0", with(conv(), "strides", {0, 1}), "'strides'[0] is 0");
  refused("dilation 0", with(conv(), "dilations", {1, 0}), "'dilations'[1] is 0");
  refused("a dilation of 2^31 - 1", with(conv(), "dilations", {1, (int64_t{1} << 31) - 1}), "the limit is 2^31 - 1");
  refused("pads that fill the memory", with(conv(), "pads", {30000, 30000, 30000, 30000}), "the limit is 2^31 - 1");
  refused("channels of other words", with(conv(), "channels", {65}), "multiple of 3");
  refused("2^63 - 1 channels", with(conv(), "channels", {kMost}), "'channels' is");
  refused("k = 2^24", with(matmul(), "k", {1 << 24}), "'k' is");
  refused("a negative axis", with(pack_sign({2, 3}, 1), "axis", {-1}), "'axis' is -1");
  refused("an axis past the rank", with(pack_sign({2, 3}, 1), "axis", {2}), "'axis' is 2");
  refused("a pool of pads alone", with(pool(), "kernel_shape", {40, 40}), "expected at least one output");
  refused("a kernel of 2^62", with(pool(), "kernel_shape", {int64_t{1} << 62, 1}), "'kernel_shape'[0]");
  refused("a missing list", with(conv(), "pads", {}), "has 0 values");
}

// An inner product of 2^24, where float32 stops being exact.
void long_inner_products() {
  Node node = conv();
  attribute(node, "channels").values = {1 << 20};
  node.inputs[0] = unfed(ORT_UINT32, {1, 1 << 15, 4, 4});
  node.inputs[1] = unfed(ORT_UINT32, {48, 1 << 15, 4, 4});
  node.inputs[2] = unfed(ORT_UINT32, {1, 1 << 15, 1, 1});
  refused("K = 2^24", node, "less than 2^24", false);
}

// A graph may declare any number as a dimension; shape inference sees it first.
void dimensions_without_end() {
  for (const int64_t huge : {kMost, kMost - 2, int64_t{1} << 62, int64_t{1} << 31}) {
    Node node = conv();
    node.inputs[0] = unfed(ORT_UINT32, {1, 2, huge, 14});
    refused("a height of " + std::to_string(huge), node, "dimension", false);
    node.inputs[0] = unfed(ORT_UINT32, {-1, 2, 14, huge});
    node.inputs[0].hint.symbols[0] = "batch";
    refused("a width of " + std::to_string(huge), node, "dimension", false);
    node = pool();
    node.inputs[0] = unfed(ORT_UINT32, {-1, 2, huge, 15});
    node.inputs[0].hint.symbols[0] = "batch";
    refused("a pooled height of " + std::to_string(huge), node, "dimension", false);
  }
}

// A tensor without elements may have dimensions whose product overflows.
void empty_tensors() {
  constexpr int64_t kLong = int64_t{1} << 30;
  for (const Dims& dims : {Dims{kLong, kLong, kLong, 0, 2, 150}, Dims{0, kLong, kLong, kLong, 2, 150}}) {
    Node node = matmul();
    node.inputs[1] = input(Tensor{ORT_UINT32, dims, {}}, true);
    refused("an empty B", node, "no empty dimension");
  }
  Node node = conv();
  node.inputs[1] = input(Tensor{ORT_UINT32, {0, 2, 3, 3}, {}}, true);
  refused("an empty W", node, "no empty dimension");
  node = conv();
  node.inputs[0] = input(Tensor{ORT_UINT32, {0, 2, 14, 14}, {}}, false);
  refused("an empty P", node, "no empty dimension");
  node = conv();
  node.inputs[3] = input(Tensor{ORT_FLOAT, {kLong, 0}, {}}, true);
  refused("2^30 terms of no plane", node, "input combine has shape");
  expect(check_node(pack_sign({0, 70, 15}, 1)).computed && check_node(pack_sign({3, 0}, 1)).computed,
         "PackSign passes empty tensors through");
}

// Most taps of a wide kernel lie in the border: the time is that of the others.
void kernels_wider_than_the_image() {
  const int64_t wide = 40000;
  Node node = pool(wide, wide - 1, 1 << 20);
  expect(check_node(node).computed, "a pool of 40,000 x 40,000");
  node = pool(3, 1, 2);
  attribute(node, "kernel_shape").values = {1, (1 << 30) + 1};
  attribute(node, "pads").values = {0, 1 << 30, 0, 0};
  expect(check_node(node).computed, "a pool of 1 x 2^30");
}

}  // namespace

int main() {
  sessions_register_at_once();
  an_old_onnxruntime_is_refused();
  one_kernel_many_threads();
  kernels_made_at_once();
  every_call_may_fail();
  numbers_out_of_range();
  long_inner_products();
  dimensions_without_end();
  empty_tensors();
  kernels_wider_than_the_image();
  std::printf("ops: %s\n", failures ? "FAILED" : "passed");
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
