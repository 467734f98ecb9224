#include "ops/threshold.h"

namespace binarize {

void expect_type(const Tensor& tensor, const char* name, OrtElementType type) {
  if (tensor.type != type) fail("input ", name, " is ", type_name(tensor.type), ", expected ", type_name(type));
}

Encode read_encode(const Tensor& encode) {
  expect_type(encode, "encode", ORT_FLOAT);
  if (encode.shape.rank != 2 || encode.shape.dim[0] < 1 || encode.shape.dim[1] < 1)
    fail("input encode has shape ", to_string(encode.shape), ", expected [planes, thresholds]");
  Encode out;
  out.planes = encode.shape.dim[0];
  out.thresholds = encode.shape.dim[1];
  const int64_t count = element_count(encode.shape, "input encode");
  out.matrix.resize(static_cast<size_t>(count));
  bool identity = out.planes == out.thresholds;
  out.positional = out.planes > 1 && out.planes < 31 && out.thresholds == (int64_t{1} << out.planes) - 1;
  for (int64_t i = 0; i < count; ++i) {
    const float value = encode.as<float>()[i];
    if (value != 0.0f && value != 1.0f) fail("input encode holds ", value, ", expected only 0 and 1");
    out.matrix[static_cast<size_t>(i)] = value != 0.0f;
    const int64_t plane = i / out.thresholds, threshold = i % out.thresholds;
    identity = identity && (value != 0.0f) == (plane == threshold);
    out.positional = out.positional && (value != 0.0f) == ((threshold + 1) % (int64_t{1} << plane) == 0);
  }
  if (identity) out.matrix.clear();
  return out;
}

Shape with_planes(const Shape& v, int axis, int64_t planes) {
  Shape out;
  if (!v.known_rank()) return out;
  out.rank = v.rank + 1;
  for (int i = 0; i < out.rank; ++i) out.dim[i] = i < axis ? v.dim[i] : i == axis ? planes : v.dim[i - 1];
  return out;
}

ThresholdShapes check_threshold(const Shape& threshold, const Shape& encode, const Shape& flip, const Shape& v,
                                int axis) {
  ThresholdShapes out{kUnknown, kUnknown};
  if (encode.known_rank()) {
    if (encode.rank != 2 || encode.dim[0] == 0 || encode.dim[1] == 0)
      fail("input encode has shape ", to_string(encode), ", expected [planes, thresholds]");
    out.planes = encode.dim[0];
    out.thresholds = encode.dim[1];
  }
  if (!v.known_rank()) return out;
  const Shape with_thresholds = with_planes(v, axis, out.thresholds);
  if (!broadcasts_to(threshold, with_thresholds))
    fail("input threshold has shape ", to_string(threshold), ", which does not broadcast to ",
         to_string(with_thresholds),
         ": the value's shape with its thresholds (dimension 1 of encode) before the packed axis");
  if (threshold.known_rank() && out.thresholds >= 0) {
    const int from_end = v.rank - axis;  // the plane axis, counted from the last
    const int64_t planes = threshold.rank > from_end ? threshold.dim[threshold.rank - 1 - from_end] : 1;
    if (planes >= 0 && planes != out.thresholds)
      fail("input threshold has shape ", to_string(threshold), " with ", planes, " thresholds, encode expects ",
           out.thresholds);
  }
  const Shape with_flips = with_planes(v, axis, out.planes);
  if (!broadcasts_to(flip, with_flips))
    fail("input flip has shape ", to_string(flip), ", which does not broadcast to ", to_string(with_flips),
         ": the value's shape with its planes (dimension 0 of encode) before the packed axis");
  return out;
}

Thresholds view_thresholds(Call& call, const Tensor& threshold, const Encode& encode, const Tensor& flip,
                           const Shape& v, int axis, const LaneAxes& axes) {
  LaneAxes moved = axes;
  moved.plane = axis;
  if (axes.row >= axis) ++moved.row;
  if (axes.first_lane >= axis) ++moved.first_lane;
  Thresholds out;
  out.encode = &encode;
  out.threshold =
      lane_view(call, threshold.as<float>(), threshold.shape, with_planes(v, axis, encode.thresholds), moved);
  const int64_t flips = element_count(flip.shape, "input flip");
  bool any = false;
  for (int64_t i = 0; i < flips && !any; ++i) any = flip.as<uint8_t>()[i] != 0;
  if (any) out.flip = lane_view(call, flip.as<uint8_t>(), flip.shape, with_planes(v, axis, encode.planes), moved);
  return out;
}

std::vector<float> channel_search_trees(const Tensor& threshold, const Encode& encode) {
  const Shape& shape = threshold.shape;  // [..., thresholds, channels, 1, 1]
  if (shape.rank < 4 || threshold.type != ORT_FLOAT) return {};
  const int64_t rows = shape.dim[shape.rank - 3];
  if (shape.dim[shape.rank - 4] != encode.thresholds ||
      element_count(shape, "input threshold") != checked_product(encode.thresholds, rows, "input threshold"))
    return {};
  PackBitsArgs args{};
  args.threshold = {threshold.as<float>(), rows == 1 ? 0 : 1, 0};
  args.threshold_plane_stride = rows;
  args.thresholds = encode.thresholds;
  args.planes = encode.planes;
  args.positional = encode.positional;
  std::vector<float> trees(static_cast<size_t>(checked_product(rows, kSearchTree, "the search trees")));
  if (!fill_search_trees(args, 0, rows, trees.data())) return {};
  return trees;
}

void Thresholds::fill(PackBitsArgs& args, int64_t outer, int64_t row, int64_t lane) const {
  args.threshold = threshold.operand(outer, row, lane);
  args.threshold_plane_stride = threshold.plane_stride;
  args.thresholds = encode->thresholds;
  args.flip = flip.operand(outer, row, lane);
  args.flip_plane_stride = flip.plane_stride;
  args.encode = encode->matrix.empty() ? nullptr : encode->matrix.data();
  args.planes = encode->planes;
  args.positional = encode->positional;
  args.trees = trees && threshold.row_stride ? trees + row * kSearchTree : trees;
}

}  // namespace binarize
