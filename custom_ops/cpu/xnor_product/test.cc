// Against a plain loop over unpacked values, with every step behind it done one element at a time.
#include "cpu/xnor_product/xnor_product.h"

#include "cpu/half.h"
#include "cpu/testing.h"

using namespace binarize;
using namespace binarize::testing;

namespace {

// What follows the accumulators, by bit: each operand may be there or not.
enum Use : uint32_t {
  kScale = 1,
  kGate = 2,
  kBias = 4,
  kSlopePre = 8,
  kResidual = 16,
  kShift = 32,
  kSlope = 64,
  kOffset = 128,
  kAll = 255,
  kHalf = 256,      // y and the residual are float16
  kBits = 512,      // bits are wanted
  kNoFloats = 1024  // y is not
};

// An operand of [rows][lanes], or of less.
struct Values {
  enum class Shape { one, lanes, rows, all };
  std::vector<float> data;
  Operand<float> operand;

  Values(Shape shape, int64_t rows, int64_t lanes, Random& random) {
    const bool by_row = shape == Shape::rows || shape == Shape::all,
               by_lane = shape == Shape::lanes || shape == Shape::all;
    data = random.reals((by_row ? rows : 1) * (by_lane ? lanes : 1));
    operand = {data.data(), by_row ? (by_lane ? lanes : 1) : 0, by_lane ? 1 : 0};
  }
  float at(int64_t r, int64_t o) const { return operand.data[r * operand.row_stride + o * operand.lane_stride]; }
};

void run(int64_t rows, int64_t k, int64_t lanes, int x_low, uint32_t use, int64_t planes, Values::Shape shape,
         Random& random) {
  const int64_t k_words = (k + kWordBits - 1) / kWordBits, blocks = (lanes + kWordBits - 1) / kWordBits;
  const int64_t x_stride = k_words + 2, y_stride = lanes + 3, q_words = blocks + 1;
  const auto valid = [&](int64_t word) {
    return word + 1 < k_words || k % kWordBits == 0 ? ~0u : (1u << k % kWordBits) - 1;
  };
  std::vector<uint32_t> x = random.words(rows * x_stride), w(static_cast<size_t>(blocks * k_words * kWordBits));
  for (int64_t r = 0; r < rows; ++r) x[static_cast<size_t>(r * x_stride + k_words - 1)] &= valid(k_words - 1);
  std::vector<int32_t> base(static_cast<size_t>(blocks * kWordBits));
  const auto weight_word = [&](int64_t c, int64_t lane) -> uint32_t& {
    return w[static_cast<size_t>((lane / kWordBits * k_words + c) * kWordBits + lane % kWordBits)];
  };
  for (int64_t lane = 0; lane < lanes; ++lane)
    for (int64_t c = 0; c < k_words; ++c) {
      weight_word(c, lane) = random.word() & valid(c);
      const int set = __builtin_popcount(weight_word(c, lane)), all = __builtin_popcount(valid(c));
      base[static_cast<size_t>(lane)] += x_low == -1 ? all : set;
    }

  const Values scale(Values::Shape::lanes, rows, lanes, random), gate(shape, rows, lanes, random);
  const Values bias(shape, rows, lanes, random), slope_pre(shape, rows, lanes, random);
  const Values residual(shape, rows + 1, lanes, random), shift(shape, rows, lanes, random);
  const Values slope(shape, rows, lanes, random), offset(shape, rows, lanes, random);
  std::vector<uint16_t> residual_half;
  for (float v : residual.data) residual_half.push_back(float_to_half(v));
  // Thresholds and flips: planes of what `shape` says.
  const int64_t flips = shape == Values::Shape::one ? 1 : lanes;
  std::vector<float> threshold = random.reals(planes * flips);
  std::vector<uint8_t> flip;
  for (int64_t i = 0; i < planes * flips; ++i) flip.push_back(random.word() % 2);

  std::vector<float> y(static_cast<size_t>(rows * y_stride), -7.0f);
  std::vector<uint16_t> y_half(static_cast<size_t>(rows * y_stride), 7);
  std::vector<uint32_t> q(static_cast<size_t>(rows * planes * q_words), 0xabcdu);
  const std::vector<float> y_before = y;
  const std::vector<uint16_t> y_half_before = y_half;
  const std::vector<uint32_t> q_before = q;
  std::vector<float> expected_y = y;
  std::vector<uint16_t> expected_half = y_half;
  std::vector<uint32_t> expected_q = q;
  const bool floats = !(use & kNoFloats), half = use & kHalf;
  for (int64_t r = 0; r < rows; ++r) {
    if (use & kBits)
      for (int64_t p = 0; p < planes; ++p)
        for (int64_t word = 0; word < blocks; ++word)
          expected_q[static_cast<size_t>((r * planes + p) * q_words + word)] = 0;
    for (int64_t o = 0; o < lanes; ++o) {
      int32_t acc = 0;
      for (int64_t i = 0; i < k; ++i) {
        const int64_t c = i / kWordBits;
        const bool set = x[static_cast<size_t>(r * x_stride + c)] >> i % kWordBits & 1;
        acc += (set ? 1 : x_low) * (weight_word(c, o) >> i % kWordBits & 1 ? 1 : -1);
      }
      float z = static_cast<float>(acc);
      if (use & kScale) z = z * scale.at(r, o);
      if (use & kGate) z = z * gate.at(r, o);
      if (use & kBias) z = z + bias.at(r, o);
      if (use & kSlopePre) z = z > 0 ? z : z * slope_pre.at(r, o);
      if (use & kResidual) {
        const int64_t row = (r + 2) % (rows + 1);  // residual_first is 2, and rows repeat
        const float v = residual.at(row, o);
        z = z + (half ? half_to_float(float_to_half(v)) : v);
      }
      if (use & kShift) z = z + shift.at(r, o);
      if (use & kSlope) z = z > 0 ? z : z * slope.at(r, o);
      if (use & kOffset) z = z + offset.at(r, o);
      const size_t at = static_cast<size_t>(r * y_stride + o);
      if (half) z = half_to_float(float_to_half(z));
      if (floats && half) expected_half[at] = float_to_half(z);
      if (floats && !half) expected_y[at] = z;
      if (use & kBits)
        for (int64_t p = 0; p < planes; ++p) {
          const size_t t = static_cast<size_t>(p * flips + (flips == 1 ? 0 : o));
          const uint32_t bit = (z >= threshold[t]) != (flip[t] != 0);
          expected_q[static_cast<size_t>((r * planes + p) * q_words + o / kWordBits)] |= bit << o % kWordBits;
        }
    }
  }

  const Aligned<uint32_t> aligned_w(w);
  const Aligned<int32_t> aligned_base(base);
  for_each_runnable(kXnorProductKernels, [&](const XnorProductKernel& kernel, const std::string& name) {
    if (!kernel.product) return;
    y = y_before;
    y_half = y_half_before;
    q = q_before;
    XnorProductArgs args{};
    args.x = x.data();
    args.x_row_stride = x_stride;
    args.w = aligned_w.data;
    args.base = aligned_base.data;
    args.k_words = static_cast<int32_t>(k_words);
    args.shift = x_low == -1 ? 1 : 0;
    EpilogueArgs& e = args.epilogue;
    e.rows = rows;
    e.lanes = lanes;
    e.terms = 1;
    if (use & kScale) e.scale = scale.operand;
    if (use & kGate) e.gate = gate.operand;
    if (use & kBias) e.bias = bias.operand;
    if (use & kSlopePre) e.slope_pre = slope_pre.operand;
    if (use & kResidual) {
      e.residual = residual.operand;
      if (half) {
        e.residual.data = nullptr;
        e.residual_half = residual_half.data();
      }
    }
    e.residual_first = 2;
    e.residual_rows = rows + 1;
    if (use & kShift) e.shift = shift.operand;
    if (use & kSlope) e.slope = slope.operand;
    if (use & kOffset) e.offset = offset.operand;
    e.round_to_half = half;
    if (floats && half) e.y_half = y_half.data();
    if (floats && !half) e.y = y.data();
    e.y_row_stride = y_stride;
    if (use & kBits) {
      args.bits.threshold = {threshold.data(), 0, flips == 1 ? 0 : 1};
      args.bits.threshold_plane_stride = flips;
      args.bits.thresholds = args.bits.planes = planes;
      args.bits.flip = {flip.data(), 0, flips == 1 ? 0 : 1};
      args.bits.flip_plane_stride = flips;
      args.bits.q = q.data();
      args.bits.q_row_stride = planes * q_words;
      args.bits.q_plane_stride = q_words;
    }
    kernel.product(args);
    const std::string what = name + ": " + std::to_string(rows) + " x " + std::to_string(k) + " x " +
                             std::to_string(lanes) + ", x_low " + std::to_string(x_low) + ", use " +
                             std::to_string(use);
    expect_same(y, expected_y, what + ", y");
    expect_same(y_half, expected_half, what + ", y in float16");
    expect_same(q, expected_q, what + ", bits");
  });
}

}  // namespace

int main() {
  using Shape = Values::Shape;
  Random random;
  // Every row count of every tile, ragged columns on both sides of a word and of a tile, ragged inner lengths.
  for (int64_t rows = 1; rows <= 9; ++rows)
    for (int64_t lanes : {1, 31, 32, 33, 63, 64, 65, 96, 100, 128, 161})
      for (int64_t k : {1, 32, 33, 70, 160}) run(rows, k, lanes, -1, kScale | kBias | kBits, 1, Shape::lanes, random);
  // Every step alone and all together, as one value, a value a lane, a value a row, and one for each element.
  for (Shape shape : {Shape::one, Shape::lanes, Shape::rows, Shape::all})
    for (uint32_t use : {0u, 1u, 2u, 4u, 8u, 16u, 32u, 64u, 128u, +kAll})
      for (uint32_t outputs : {0u, kHalf | 0u, kBits | 0u, kBits | kNoFloats, kHalf | kBits, kHalf | kBits | kNoFloats})
        for (int x_low : {-1, 0})
          for (int64_t rows : {1, 3, 6}) run(rows, 75, 101, x_low, use | outputs, 2, shape, random);
  run(2, 1 << 20, 3, -1, 0, 1, Shape::one, random);  // counts past 16 bits
  return report("xnor_product");
}
