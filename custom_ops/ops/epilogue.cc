#include "ops/epilogue.h"

#include <cmath>

namespace binarize {
namespace {

struct Vector {
  size_t input;
  const char* name;
};
constexpr Vector kChannelVectors[] = {
    {kBias, "bias"}, {kSlopePre, "slope_pre"}, {kShift, "shift"}, {kSlope, "slope"}, {kOffset, "offset"}};

// Bitwise: -0.0 is neutral to addition, +0.0 is not (it turns -0.0 into +0.0).
bool all_bits_are(const Tensor& tensor, uint32_t float_bits, uint16_t half_bits) {
  const int64_t count = element_count(tensor.shape, "an input");
  if (tensor.type == ORT_FLOAT) {
    for (int64_t i = 0; i < count; ++i)
      if (tensor.as<uint32_t>()[i] != float_bits) return false;
    return true;
  }
  if (tensor.type == ORT_FLOAT16) {
    for (int64_t i = 0; i < count; ++i)
      if (tensor.as<uint16_t>()[i] != half_bits) return false;
    return true;
  }
  return false;
}

void expect_broadcast(const Shape& shape, const char* name, const Shape& target, const char* meaning) {
  if (!broadcasts_to(shape, target))
    fail("input ", name, " has shape ", to_string(shape), ", which does not broadcast to ", to_string(target), ", ",
         meaning);
}

// Repeats the last axis: out[..., o] = in[..., o mod R].
template <class T>
const T* repeat_last(Call& call, const T* data, const Shape& shape, int64_t repeated) {
  const int64_t own = shape.back(), rows = element_count(shape, "input residual") / own;
  T* out = call.scratch<T>(checked_product(rows, repeated, "the repeated residual"));
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t o = 0; o < repeated; ++o) out[row * repeated + o] = data[row * own + o % own];
  return out;
}

}  // namespace

Combine read_combine(const Tensor& combine, int64_t k) {
  expect_type(combine, "combine", ORT_FLOAT);
  if (combine.shape.rank != 2) fail("input combine has shape ", to_string(combine.shape), ", expected [terms, planes]");
  Combine out;
  out.outputs = combine.shape.dim[0];
  out.planes = combine.shape.dim[1];
  const int64_t count = element_count(combine.shape, "input combine");
  out.identity = out.outputs == out.planes;
  out.positional = out.outputs == 1;
  out.matrix.resize(static_cast<size_t>(count));
  constexpr double kExact = 1 << 24;
  for (int64_t t = 0; t < out.outputs; ++t) {
    double sum = 0;
    for (int64_t p = 0; p < out.planes; ++p) {
      const float value = combine.as<float>()[t * out.planes + p];
      if (!(std::fabs(value) < kExact) || value != std::trunc(value))
        fail("input combine holds ", value, ", expected integers below 2^24 in magnitude");
      sum += std::fabs(value);
      out.matrix[static_cast<size_t>(t * out.planes + p)] = static_cast<int32_t>(value);
      out.identity = out.identity && value == (t == p ? 1.0f : 0.0f);
      out.positional = out.positional && value == std::ldexp(1.0f, static_cast<int>(p));
    }
    if (sum * static_cast<double>(k) >= kExact)
      fail("row ", t, " of input combine sums to ", sum, " in magnitude over inner products of length ", k,
           ", expected a product below 2^24");
  }
  return out;
}

EpilogueShapes check_epilogue(const Shape* shapes, const Shape& out, int64_t channels, Layout layout, int64_t planes,
                              int64_t bases) {
  const bool first = layout == Layout::channels_first;
  EpilogueShapes found{kUnknown, kUnknown};

  const Shape& combine = shapes[kCombine];
  int64_t terms = kUnknown;
  if (combine.known_rank()) {
    if (combine.rank != 2 || combine.dim[0] == 0 || combine.dim[1] == 0 ||
        (planes >= 0 && combine.dim[1] >= 0 && combine.dim[1] != planes))
      fail("input combine has shape ", to_string(combine), ", expected [terms, ",
           planes < 0 ? "planes" : std::to_string(planes), "]: a column for each plane of the input");
    terms = combine.dim[0];
  }
  if (terms >= 0 && bases >= 0) found.terms = checked_product(terms, bases, "scale's terms");

  const Shape& scale = shapes[kScale];
  if (scale.known_rank()) {
    const Shape expected = first ? Shape{found.terms, channels, 1, 1} : Shape{found.terms, 1, channels};
    bool ok = scale.rank == expected.rank;
    for (int i = 0; ok && i < scale.rank; ++i)
      ok = scale.dim[i] < 0 || expected.dim[i] < 0 || scale.dim[i] == expected.dim[i];
    if (!ok)
      fail("input scale has shape ", to_string(scale), ", expected ", to_string(expected),
           first ? ": [terms x weight bases, output channels, 1, 1]" : ": [terms x weight bases, 1, output columns]");
    if (found.terms < 0) found.terms = scale.dim[0];
  }

  expect_broadcast(shapes[kGate], "gate", out, "the output's shape");
  const Shape vector = first ? Shape{channels, 1, 1} : Shape{channels};
  for (const Vector& v : kChannelVectors)
    expect_broadcast(shapes[v.input], v.name, vector, "one value a channel or one for all");

  const Shape& residual = shapes[kResidual];
  if (residual.known_rank()) {
    Shape target = out;
    const int axis = first ? 1 : out.rank - 1;
    bool ok = first ? residual.rank == 4 : (!out.known_rank() || (residual.rank >= 1 && residual.rank <= out.rank));
    if (ok && out.known_rank()) {
      const int64_t repeats = residual.dim[residual.rank - out.rank + axis];
      ok = repeats != 0 && (repeats < 0 || channels < 0 || channels % repeats == 0);
      target.dim[axis] = repeats;
      ok = ok && broadcasts_to(residual, target);
    }
    if (!ok)
      fail("input residual has shape ", to_string(residual), ", which does not broadcast to ", to_string(out),
           ", the output's shape with channels that may repeat");
  }

  if (out.known_rank())
    found.planes_out =
        check_threshold(shapes[kThreshold], shapes[kEncode], shapes[kFlip], out, first ? 1 : out.rank - 1).planes;
  return found;
}

Epilogue::Epilogue(const Tensor* constants, Layout layout, int64_t dtype)
    : layout_(layout), dtype_(static_cast<OrtElementType>(dtype)) {
  constexpr uint32_t kOne = 0x3f800000u, kMinusZero = 0x80000000u;
  constexpr uint16_t kHalfMinusZero = 0x8000u;
  for (size_t input : {kScale, kGate, kSlopePre, kSlope})
    neutral_[input] = constants[input].data && all_bits_are(constants[input], kOne, 0x3c00u);
  for (size_t input : {kBias, kResidual, kShift, kOffset})
    neutral_[input] = constants[input].data && all_bits_are(constants[input], kMinusZero, kHalfMinusZero);
  if (constants[kEncode].data) encode_ = read_encode(constants[kEncode]);
  if (encode_ && constants[kThreshold].data && layout == Layout::channels_first)
    trees_ = channel_search_trees(constants[kThreshold], *encode_);
}

EpilogueCall::EpilogueCall(Call& call, const Epilogue& epilogue, const Tensor* inputs, const Shape& out)
    : dtype_(epilogue.dtype_) {
  const bool first = epilogue.layout_ == Layout::channels_first;
  const int row_axis = first ? 1 : out.rank - 2;
  const LaneAxes axes{row_axis, row_axis + 1};

  expect_type(inputs[kScale], "scale", ORT_FLOAT);
  terms_ = inputs[kScale].shape.dim[0];
  if (!epilogue.neutral_[kScale]) {
    Shape one_term = inputs[kScale].shape;  // [1, O, 1, 1] or [1, 1, N]; the terms are walked by the kernel
    one_term.dim[0] = 1;
    if (!first && out.rank == 2) one_term = Shape{1, one_term.dim[2]};
    scale_ = lane_view(call, inputs[kScale].as<float>(), one_term, out, axes);
    scale_term_stride_ = element_count(one_term, "input scale");
  }
  const struct {
    size_t input;
    const char* name;
    LaneView<float>* view;
  } operands[] = {{kGate, "gate", &gate_},    {kBias, "bias", &bias_},    {kSlopePre, "slope_pre", &slope_pre_},
                  {kShift, "shift", &shift_}, {kSlope, "slope", &slope_}, {kOffset, "offset", &offset_}};
  for (const auto& operand : operands) {
    const Tensor& tensor = inputs[operand.input];
    expect_type(tensor, operand.name, ORT_FLOAT);
    if (!epilogue.neutral_[operand.input]) *operand.view = lane_view(call, tensor.as<float>(), tensor.shape, out, axes);
  }

  const Tensor& residual = inputs[kResidual];
  expect_type(residual, "residual", dtype_);
  residual_rows_ = kMaxElements;  // rows do not repeat
  if (!epilogue.neutral_[kResidual]) {
    Tensor tensor = residual;
    Shape target = out;
    if (first) {
      residual_rows_ = target.dim[1] = tensor.shape.dim[1];
    } else if (tensor.shape.back() != 1 && tensor.shape.back() != out.back()) {
      const int64_t channels = out.back();
      tensor.data = dtype_ == ORT_FLOAT
                        ? static_cast<const void*>(repeat_last(call, tensor.as<float>(), tensor.shape, channels))
                        : static_cast<const void*>(repeat_last(call, tensor.as<uint16_t>(), tensor.shape, channels));
      tensor.shape.dim[tensor.shape.rank - 1] = channels;
    }
    if (dtype_ == ORT_FLOAT)
      residual_ = lane_view(call, tensor.as<float>(), tensor.shape, target, axes);
    else
      residual_half_ = lane_view(call, tensor.as<uint16_t>(), tensor.shape, target, axes);
  }

  expect_type(inputs[kThreshold], "threshold", ORT_FLOAT);
  expect_type(inputs[kFlip], "flip", ORT_BOOL);
  if (!epilogue.encode_) run_time_encode_ = read_encode(inputs[kEncode]);
  thresholds_ = view_thresholds(call, inputs[kThreshold], epilogue.encode_ ? *epilogue.encode_ : *run_time_encode_,
                                inputs[kFlip], out, first ? 1 : out.rank - 1, axes);
  if (!epilogue.trees_.empty()) thresholds_.trees = epilogue.trees_.data();
}

bool EpilogueCall::collapse_rows(int64_t rows) {
  const auto possible = [rows](auto view) { return view.collapse_rows(rows); };  // on a copy
  LaneView<float>* const views[] = {&scale_, &gate_,  &bias_,   &slope_pre_,           &residual_,
                                    &shift_, &slope_, &offset_, &thresholds_.threshold};
  for (const LaneView<float>* view : views)
    if (!possible(*view)) return false;
  if (!possible(residual_half_) || !possible(thresholds_.flip)) return false;
  for (LaneView<float>* view : views) view->collapse_rows(rows);
  residual_half_.collapse_rows(rows);
  thresholds_.flip.collapse_rows(rows);
  return true;
}

void EpilogueCall::fill(EpilogueArgs& args, int64_t outer, int64_t row, int64_t lane, const void* residual) const {
  args.terms = terms_;
  args.scale = scale_.operand(outer, row, lane);
  args.scale_term_stride = scale_term_stride_;
  args.gate = gate_.operand(outer, row, lane);
  args.bias = bias_.operand(outer, row, lane);
  args.slope_pre = slope_pre_.operand(outer, row, lane);
  if (residual_.data)
    args.residual = {static_cast<const float*>(residual) + residual_.offset(outer, 0, lane), residual_.row_stride,
                     residual_.lane_stride};
  if (residual_half_.data) {
    args.residual_half = static_cast<const uint16_t*>(residual) + residual_half_.offset(outer, 0, lane);
    args.residual = {nullptr, residual_half_.row_stride, residual_half_.lane_stride};
  }
  args.residual_first = row;
  args.residual_rows = residual_rows_;
  args.shift = shift_.operand(outer, row, lane);
  args.slope = slope_.operand(outer, row, lane);
  args.offset = offset_.operand(outer, row, lane);
  args.round_to_half = dtype_ == ORT_FLOAT16;
}

bool EpilogueCall::only_threshold() const {
  return terms_ == 1 && dtype_ == ORT_FLOAT && !scale_.data && !gate_.data && !bias_.data && !slope_pre_.data &&
         !residual_.data && !residual_half_.data && !shift_.data && !slope_.data && !offset_.data;
}

}  // namespace binarize
