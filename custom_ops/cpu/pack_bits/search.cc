#include "cpu/pack_bits/pack_bits.h"

namespace binarize {

bool fill_search_trees(const PackBitsArgs& args, int64_t row, int64_t rows, float* trees) {
  if (!args.positional || args.planes > kMaxSearchPlanes || args.threshold.lane_stride) return false;
  const float* const first = args.threshold.data + row * args.threshold.row_stride;
  const int64_t row_stride = args.threshold.row_stride, plane_stride = args.threshold_plane_stride;
  const int64_t tree_stride = search_tree_stride(args);
  if (tree_stride == 0 && rows > 1) rows = 1;
  for (int64_t p = 1; p < args.thresholds; ++p)
    for (int64_t r = 0; r < rows; ++r) {
      const float* t = first + p * plane_stride + r * row_stride;
      if (!(*(t - plane_stride) <= *t)) return false;  // NaN does not ascend either
    }
  for (int64_t step = 0; step < args.planes; ++step)
    for (int64_t j = 0; j < int64_t{1} << step; ++j) {
      int64_t number = int64_t{1} << (args.planes - 1 - step);
      for (int64_t i = 0; i < step; ++i) number += (j >> i & 1) << (args.planes - 1 - i);
      const float* t = first + (number - 1) * plane_stride;
      for (int64_t r = 0; r < rows; ++r) trees[r * tree_stride + (int64_t{1} << step) + j] = t[r * row_stride];
    }
  return true;
}

}  // namespace binarize
