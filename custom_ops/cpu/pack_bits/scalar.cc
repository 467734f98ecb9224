#include "cpu/half.h"
#include "cpu/pack_bits/pack_bits.h"

namespace binarize {
namespace {

constexpr int64_t kStrip = 256;  // words kept in the local buffer by pack_across

inline float value(const PackBitsArgs& args, int64_t row, int64_t lane) {
  const int64_t at = row * args.v_row_stride + lane;
  return args.v_half ? half_to_float(args.v_half[at]) : args.v[at];
}

inline bool reached(const PackBitsArgs& args, int64_t threshold, int64_t row, int64_t lane, float v) {
  return v >= args.threshold.data[threshold * args.threshold_plane_stride + row * args.threshold.row_stride +
                                  lane * args.threshold.lane_stride];
}

inline uint32_t bit(const PackBitsArgs& args, int64_t plane, int64_t row, int64_t lane) {
  const float v = value(args, row, lane);
  bool bit = false;
  if (args.encode) {
    const uint8_t* encode = args.encode + plane * args.thresholds;
    for (int64_t p = 0; p < args.thresholds; ++p) bit ^= encode[p] && reached(args, p, row, lane, v);
  } else {
    bit = reached(args, plane, row, lane, v);
  }
  if (args.flip.data)
    bit ^=
        args.flip.data[plane * args.flip_plane_stride + row * args.flip.row_stride + lane * args.flip.lane_stride] != 0;
  return bit;
}

}  // namespace

void pack_across_scalar(const PackBitsArgs& args) {
  for (int64_t plane = 0; plane < args.planes; ++plane)
    for (int64_t first = 0; first < args.lanes; first += kStrip) {
      const int64_t count = args.lanes - first < kStrip ? args.lanes - first : kStrip;
      uint32_t words[kStrip] = {};
      for (int64_t row = 0; row < args.rows; ++row)
        for (int64_t i = 0; i < count; ++i) words[i] |= bit(args, plane, row, first + i) << row;
      for (int64_t i = 0; i < count; ++i) args.q[plane * args.q_plane_stride + first + i] = words[i];
    }
}

void pack_along_scalar(const PackBitsArgs& args) {
  for (int64_t row = 0; row < args.rows; ++row)
    for (int64_t plane = 0; plane < args.planes; ++plane)
      for (int64_t first = 0; first < args.lanes; first += kWordBits) {
        uint32_t word = 0;
        for (int64_t i = 0; i < kWordBits && first + i < args.lanes; ++i) word |= bit(args, plane, row, first + i) << i;
        args.q[row * args.q_row_stride + plane * args.q_plane_stride + first / kWordBits] = word;
      }
}

void pack_accumulators_scalar(const PackAccumulatorsArgs& args) {
  for (int64_t row = 0; row < args.rows; ++row) {
    uint32_t word = 0;
    for (int lane = 0; lane < kWordBits; ++lane)
      word |= static_cast<uint32_t>(args.acc[row * kWordBits + lane] >= args.threshold[lane]) << lane;
    args.q[row] = (word ^ args.flip) & args.valid;
  }
}

}  // namespace binarize
