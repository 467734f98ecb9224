#include "cpu/epilogue/turn_first.h"
#include "cpu/half.h"

namespace binarize {
namespace {

constexpr int64_t kStrip = 256;  // lanes kept in the local buffer

// A pointer to the operand's first element of this strip of lanes, with its stride.
struct Row {
  const float* data;
  int64_t stride;
  float operator[](int64_t lane) const { return data[lane * stride]; }
};

inline Row row_of(const Operand<float>& operand, int64_t row, int64_t lane) {
  return {operand.data + row * operand.row_stride + lane * operand.lane_stride, operand.lane_stride};
}

inline void multiply(const Operand<float>& operand, int64_t row, int64_t lane, int64_t count, float* z) {
  if (!operand.data) return;
  const Row by = row_of(operand, row, lane);
  for (int64_t i = 0; i < count; ++i) z[i] *= by[i];
}

inline void add(const Operand<float>& operand, int64_t row, int64_t lane, int64_t count, float* z) {
  if (!operand.data) return;
  const Row by = row_of(operand, row, lane);
  for (int64_t i = 0; i < count; ++i) z[i] += by[i];
}

inline void activate(const Operand<float>& operand, int64_t row, int64_t lane, int64_t count, float* z) {
  if (!operand.data) return;
  const Row slope = row_of(operand, row, lane);
  for (int64_t i = 0; i < count; ++i) z[i] = z[i] > 0.0f ? z[i] : z[i] * slope[i];
}

}  // namespace

void epilogue_scalar(const EpilogueArgs& args) {
  float z[kStrip];
  for (int64_t row = 0; row < args.rows; ++row)
    for (int64_t lane = 0; lane < args.lanes; lane += kStrip) {
      const int64_t count = args.lanes - lane < kStrip ? args.lanes - lane : kStrip;
      for (int64_t term = 0; term < args.terms; ++term) {
        const int32_t* acc = args.acc + term * args.acc_term_stride + row * args.acc_row_stride + lane;
        Operand<float> scale = args.scale;
        if (scale.data) scale.data += term * args.scale_term_stride;
        for (int64_t i = 0; i < count; ++i) {
          float product = static_cast<float>(acc[i]);
          if (scale.data) product *= row_of(scale, row, lane)[i];
          z[i] = term ? z[i] + product : product;
        }
      }
      multiply(args.gate, row, lane, count, z);
      add(args.bias, row, lane, count, z);
      activate(args.slope_pre, row, lane, count, z);
      const int64_t residual_row = args.residual_rows ? (args.residual_first + row) % args.residual_rows : 0;
      if (args.residual_half) {
        const uint16_t* residual =
            args.residual_half + residual_row * args.residual.row_stride + lane * args.residual.lane_stride;
        for (int64_t i = 0; i < count; ++i) z[i] += half_to_float(residual[i * args.residual.lane_stride]);
      } else {
        add(args.residual, residual_row, lane, count, z);
      }
      add(args.shift, row, lane, count, z);
      activate(args.slope, row, lane, count, z);
      add(args.offset, row, lane, count, z);
      if (args.round_to_half)
        for (int64_t i = 0; i < count; ++i) {
          const uint16_t half = float_to_half(z[i]);
          if (args.y_half) args.y_half[row * args.y_row_stride + lane + i] = half;
          z[i] = half_to_float(half);
        }
      if (args.y)
        for (int64_t i = 0; i < count; ++i) args.y[row * args.y_row_stride + lane + i] = z[i];
      if (args.v)
        for (int64_t i = 0; i < count; ++i) args.v[row * args.v_row_stride + lane + i] = z[i];
    }
}

bool turned_epilogue_scalar(const TurnedEpilogueArgs& args) {
  const auto turn = [](const int32_t* from, int32_t* to, int64_t lanes, int64_t to_stride) {
    for (int64_t row = 0; row < kWordBits; ++row)
      for (int64_t lane = 0; lane < lanes; ++lane) to[row * to_stride + lane] = from[lane * kWordBits + row];
  };
  return turn_first(args, turn, epilogue_scalar);
}

}  // namespace binarize
