// Thresholds, the only way bits are made: shared by PackSign and the epilogues.
#pragma once

#include <vector>

#include "cpu/pack_bits/pack_bits.h"
#include "ops/lane_view.h"

namespace binarize {

// The 0/1 matrix [planes][thresholds] as bytes; empty where it is the identity.
struct Encode {
  int64_t planes = 0, thresholds = 0;
  bool positional = false;  // ascending thresholds give the bits of their number that is reached
  std::vector<uint8_t> matrix;
};
Encode read_encode(const Tensor& encode);

struct ThresholdShapes {
  int64_t thresholds, planes;  // kUnknown where not known
};
// Checks threshold, encode and flip against the value `v` whose axis `axis` is packed; unknown dimensions pass.
ThresholdShapes check_threshold(const Shape& threshold, const Shape& encode, const Shape& flip, const Shape& v,
                                int axis);

// `v` with a plane axis of length `planes` inserted before `axis`.
Shape with_planes(const Shape& v, int axis, int64_t planes);

// What one call packs with.
struct Thresholds {
  LaneView<float> threshold;
  LaneView<uint8_t> flip;
  const Encode* encode = nullptr;
  const float* trees = nullptr;  // of all rows (cpu/pack_bits), where they were made before

  // Everything but the values and the words.
  void fill(PackBitsArgs& args, int64_t outer, int64_t row, int64_t lane) const;
};

// `axes` names the row and first lane axis of v itself; they move behind the plane axis as needed.
Thresholds view_thresholds(Call& call, const Tensor& threshold, const Encode& encode, const Tensor& flip,
                           const Shape& v, int axis, const LaneAxes& axes);

// The search trees of thresholds that are the same for all of v but its axis of `rows`, the third from the end as
// channels are; empty where they are not, or there is nothing to search.
std::vector<float> channel_search_trees(const Tensor& threshold, const Encode& encode);

// Inputs have the element type the contract states.
void expect_type(const Tensor& tensor, const char* name, OrtElementType type);

}  // namespace binarize
