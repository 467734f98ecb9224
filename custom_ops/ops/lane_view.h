// An operand seen as outer x (plane) x row x lane, the way kernels walk a tensor.
//
// The trailing axes of the target are its lanes.  A kernel reads an operand's lanes either as one value or
// contiguously, so an operand that is broadcast along only some of the lane axes is first expanded along all of them,
// in scratch.
#pragma once

#include "cpu/lanes.h"
#include "ops/ort.h"

namespace binarize {

template <class T>
struct LaneView {
  const T* data = nullptr;  // null: neutral, the step is skipped
  int64_t lane_stride = 0, row_stride = 0, plane_stride = 0;
  int outer_rank = 0;
  int64_t outer_stride[kMaxAxes] = {}, outer_dim[kMaxAxes] = {};

  const T* at(int64_t outer, int64_t row, int64_t lane) const {
    return data ? data + offset(outer, row, lane) : nullptr;
  }
  int64_t offset(int64_t outer, int64_t row, int64_t lane) const {
    int64_t offset = row * row_stride + lane * lane_stride;
    for (int i = outer_rank - 1; i >= 0 && outer != 0; --i) {  // mostly there is one image: divisions are slow
      offset += outer % outer_dim[i] * outer_stride[i];
      outer /= outer_dim[i];
    }
    return offset;
  }
  Operand<T> operand(int64_t outer, int64_t row, int64_t lane) const {
    return {at(outer, row, lane), row_stride, lane_stride};
  }
  // Makes the outer axes and the row axis, of `rows` rows, one long row axis; false where the strides do not allow it.
  bool collapse_rows(int64_t rows) {
    if (!data) return true;
    int64_t stride = row_stride, length = rows;
    for (int i = outer_rank - 1; i >= 0; --i) {
      if (outer_dim[i] == 1) continue;
      if (length == 1)
        stride = outer_stride[i];
      else if (outer_stride[i] != stride * length)
        return false;
      length *= outer_dim[i];
    }
    row_stride = stride;
    outer_rank = 0;
    return true;
  }
};

// Which axes of the target are what.  Axes before the row and plane axes are outer ones.
struct LaneAxes {
  int row;
  int first_lane;
  int plane = -1;
};

template <class T>
LaneView<T> lane_view(Call& call, const T* data, Shape shape, const Shape& target, const LaneAxes& axes) {
  int64_t lanes = 1;
  for (int i = axes.first_lane; i < target.rank; ++i) lanes *= target.dim[i];
  BroadcastStrides strides = broadcast_strides(shape, target);
  bool contiguous = true, single = true;
  int64_t expected = 1;
  for (int i = target.rank - 1; i >= axes.first_lane; --i) {
    if (target.dim[i] == 1) continue;
    contiguous = contiguous && strides.stride[i] == expected;
    single = single && strides.stride[i] == 0;
    expected *= target.dim[i];
  }
  if (!contiguous && !single) {
    Shape expanded;  // the operand's own outer dimensions, every lane
    expanded.rank = target.rank;
    int64_t outer = 1;
    for (int i = 0; i < axes.first_lane; ++i) {
      const int own = i - (target.rank - shape.rank);
      expanded.dim[i] = own >= 0 ? shape.dim[own] : 1;
      outer = checked_product(outer, expanded.dim[i], "an expanded operand");
    }
    for (int i = axes.first_lane; i < target.rank; ++i) expanded.dim[i] = target.dim[i];
    checked_product(outer, lanes, "an expanded operand");
    int64_t per_outer = 1;
    for (int i = axes.first_lane; i < target.rank; ++i) {
      const int own = i - (target.rank - shape.rank);
      if (own >= 0) per_outer *= shape.dim[own];
    }
    T* copy = call.scratch<T>(outer * lanes);
    for (int64_t o = 0; o < outer; ++o)
      for (int64_t lane = 0; lane < lanes; ++lane) {
        int64_t offset = 0, rest = lane;
        for (int i = target.rank - 1; i >= axes.first_lane; --i) {
          offset += rest % target.dim[i] * strides.stride[i];
          rest /= target.dim[i];
        }
        copy[o * lanes + lane] = data[o * per_outer + offset];
      }
    data = copy;
    strides = broadcast_strides(expanded, target);
    single = false;
  }
  LaneView<T> view;
  view.data = data;
  view.lane_stride = single ? 0 : 1;
  view.row_stride = strides.stride[axes.row];
  if (axes.plane >= 0) view.plane_stride = strides.stride[axes.plane];
  view.outer_rank = axes.plane >= 0 && axes.plane < axes.row ? axes.plane : axes.row;
  for (int i = 0; i < view.outer_rank; ++i) {
    view.outer_dim[i] = target.dim[i];
    view.outer_stride[i] = strides.stride[i];
  }
  return view;
}

}  // namespace binarize
