// The thirteen inputs that follow the operands of XnorConv and XnorMatMul: checked, recognised where neutral, and seen
// as rows of lanes.  The formula they state is in cpu/epilogue/epilogue.h.
#pragma once

#include <optional>
#include <vector>

#include "cpu/epilogue/epilogue.h"
#include "ops/threshold.h"

namespace binarize {

enum EpilogueInput : size_t {
  kMask = 2,
  kCombine,
  kScale,
  kGate,
  kBias,
  kSlopePre,
  kResidual,
  kShift,
  kSlope,
  kOffset,
  kThreshold,
  kEncode,
  kFlip,
  kXnorInputs,
};

#define BINARIZE_EPILOGUE_NAMES                                                                                 \
  "mask", "combine", "scale", "gate", "bias", "slope_pre", "residual", "shift", "slope", "offset", "threshold", \
      "encode", "flip"
inline constexpr const char* kConvInputNames[] = {"P", "W", BINARIZE_EPILOGUE_NAMES};
inline constexpr const char* kMatMulInputNames[] = {"A", "B", BINARIZE_EPILOGUE_NAMES};
#undef BINARIZE_EPILOGUE_NAMES

// The integer matrix [outputs][planes].
struct Combine {
  int64_t outputs = 0, planes = 0;
  bool identity = false;
  bool positional = false;  // one output, 1, 2, 4, ...: the planes are the bits of one number
  std::vector<int32_t> matrix;
};
// `k`: the longest inner product, for the exactness bound sum |combine| * k < 2^24.
Combine read_combine(const Tensor& combine, int64_t k);

// What the shapes say; kUnknown where not known.
struct EpilogueShapes {
  int64_t terms, planes_out;
};

// Which output axis holds the channels, and so how the epilogue's inputs are shaped.
enum class Layout { channels_first, channels_last };  // XnorConv [N, O, H, W];  XnorMatMul [..., M, N]

// Checks every shape from combine to flip against the output, whose rank and sizes may be unknown while its channels
// are known.
EpilogueShapes check_epilogue(const Shape* shapes, const Shape& out, int64_t channels, Layout layout, int64_t planes,
                              int64_t bases);

// Made at kernel creation.
class Epilogue {
 public:
  // `constants`: the node's constant inputs, data == nullptr for the others.
  Epilogue(const Tensor* constants, Layout layout, int64_t dtype);

  OrtElementType dtype() const { return dtype_; }

 private:
  friend class EpilogueCall;
  Layout layout_;
  OrtElementType dtype_;
  bool neutral_[kXnorInputs] = {};
  std::optional<Encode> encode_;
  std::vector<float> trees_;  // of constant thresholds
};

// Made for each call, from inputs whose shapes are checked.
class EpilogueCall {
 public:
  EpilogueCall(Call& call, const Epilogue& epilogue, const Tensor* inputs, const Shape& out);
  EpilogueCall(const EpilogueCall&) = delete;
  EpilogueCall& operator=(const EpilogueCall&) = delete;

  // Makes outer axes and rows one long row axis where every operand allows it.
  bool collapse_rows(int64_t rows);

  // Operands at (outer, row, lane); the accumulators, outputs and counts are the caller's.  `residual` is that of the
  // call, or another tensor of the same shape where no operand of the call had to be expanded.
  void fill(EpilogueArgs& args, int64_t outer, int64_t row, int64_t lane, const void* residual) const;
  void fill(EpilogueArgs& args, int64_t outer, int64_t row, int64_t lane) const {
    fill(args, outer, row, lane, residual());
  }
  // As it is read; null where it has no effect.
  const void* residual() const {
    return residual_.data ? static_cast<const void*>(residual_.data) : static_cast<const void*>(residual_half_.data);
  }
  void fill(PackBitsArgs& args, int64_t outer, int64_t row, int64_t lane) const {
    thresholds_.fill(args, outer, row, lane);
  }

  bool only_threshold() const;  // one term, and nothing between it and the threshold
  const Thresholds& thresholds() const { return thresholds_; }
  const Encode& encode() const { return *thresholds_.encode; }

 private:
  OrtElementType dtype_;
  int64_t terms_;
  LaneView<float> scale_, gate_, bias_, slope_pre_, residual_, shift_, slope_, offset_;
  LaneView<uint16_t> residual_half_;
  int64_t scale_term_stride_ = 0, residual_rows_ = 0;
  std::optional<Encode> run_time_encode_;
  Thresholds thresholds_;
};

}  // namespace binarize
