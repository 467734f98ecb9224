// Against one scalar expression a step, written from the formula in epilogue.h.
#include "cpu/epilogue/epilogue.h"

#include <algorithm>
#include <cmath>

#include "cpu/half.h"
#include "cpu/testing.h"

using namespace binarize;
using namespace binarize::testing;

namespace {

enum Step { kScale, kGate, kBias, kSlopePre, kResidual, kShift, kSlope, kOffset, kSteps };

// Which operands have a value for each lane, the others having one for each row.
constexpr unsigned kNone = 0, kAll = (1 << kSteps) - 1, kOfChannels = 1 << kResidual;

float read(const Operand<float>& operand, int64_t row, int64_t lane) {
  return operand.data[row * operand.row_stride + lane * operand.lane_stride];
}

// One output instead of two, and the bits of it.  `args` and `expected` are those of y, whose rows are lanes + 5 apart.
void run_with_bits(const EpilogueKernel& kernel, EpilogueArgs args, std::vector<int32_t>& turned, int64_t turned_stride,
                   const std::vector<float>& expected, const std::string& what, Random& random) {
  const int64_t stride = args.lanes + 5;
  std::vector<float> threshold = random.reals(args.rows);
  threshold[0] = expected[0];  // reached exactly
  std::vector<uint8_t> flip;
  for (int64_t row = 0; row < args.rows; ++row) flip.push_back(static_cast<uint8_t>(random.below(2)));
  std::vector<uint32_t> expected_q(static_cast<size_t>(stride), 7);
  for (int64_t lane = 0; lane < args.lanes; ++lane) {
    uint32_t word = 0;
    for (size_t row = 0; row < threshold.size(); ++row) {
      const bool reached = expected[row * static_cast<size_t>(stride) + static_cast<size_t>(lane)] >= threshold[row];
      word |= static_cast<uint32_t>(reached != (flip[row] != 0)) << row;
    }
    expected_q[static_cast<size_t>(lane)] = word;
  }
  PackBitsArgs pack{};
  pack.rows = args.rows;
  pack.lanes = args.lanes;
  pack.threshold = {threshold.data(), 1, 0};
  pack.thresholds = pack.planes = 1;
  pack.flip = {flip.data(), 1, 0};
  for (const bool to_y : {true, false}) {
    std::vector<float> values(expected.size(), 7.0f);
    std::vector<uint32_t> q(expected_q.size(), 7);
    EpilogueArgs own = args;
    own.y = to_y ? values.data() : nullptr;
    own.v = to_y ? nullptr : values.data();
    own.y_row_stride = own.v_row_stride = stride;
    pack.q = q.data();
    const bool packed = kernel.turned_epilogue({own, turned.data(), turned_stride, &pack});
    if (packed) expect_same(q, expected_q, what + ", packed");
    if (to_y || !packed) expect_same(values, expected, what + (to_y ? ", y alone" : ", v alone"));
    std::fill(values.begin(), values.end(), 7.0f);
    kernel.turned_epilogue({own, turned.data(), turned_stride, nullptr});
    expect_same(values, expected, what + (to_y ? ", y without bits" : ", v without bits"));
  }
}

void run(int64_t rows, int64_t lanes, int64_t terms, unsigned steps, bool half, unsigned per_lane, Random& random) {
  std::vector<int32_t> acc;
  for (int64_t i = 0; i < terms * rows * lanes; ++i)
    acc.push_back(i % 7 ? static_cast<int32_t>(random.below(1 << 25)) - (1 << 24) : 0);  // 0 times -1 is -0.0
  std::vector<float> data[kSteps];
  Operand<float> operand[kSteps];
  for (int i = 0; i < kSteps; ++i) {
    data[i] = random.reals(terms * rows * lanes + 3);
    data[i][0] = INFINITY;
    data[i][1] = -0.0f;
    data[i][2] = 1e-42f;  // denormals count
    const bool lane = per_lane >> i & 1;
    if (steps >> i & 1) operand[i] = {data[i].data(), lane ? lanes : 1, lane ? 1 : 0};
  }
  std::vector<uint16_t> residual_half;
  for (float v : data[kResidual]) residual_half.push_back(float_to_half(v));

  EpilogueArgs args{};
  args.rows = rows;
  args.lanes = lanes;
  args.terms = terms;
  args.acc = acc.data();
  args.acc_term_stride = rows * lanes;
  args.acc_row_stride = lanes;
  args.scale = operand[kScale];
  args.scale_term_stride = per_lane >> kScale & 1 ? rows * lanes : rows;
  args.gate = operand[kGate];
  args.bias = operand[kBias];
  args.slope_pre = operand[kSlopePre];
  args.residual = operand[kResidual];
  args.residual_first = 1;
  args.residual_rows = rows > 1 ? rows / 2 : 1;  // channels repeat
  if (half && args.residual.data) {
    args.residual_half = residual_half.data();
    args.residual.data = nullptr;
  }
  args.shift = operand[kShift];
  args.slope = operand[kSlope];
  args.offset = operand[kOffset];
  args.y_row_stride = args.v_row_stride = lanes + 5;
  args.round_to_half = half;

  std::vector<float> expected(static_cast<size_t>(rows * (lanes + 5)), 7.0f);
  std::vector<uint16_t> expected_half(expected.size(), 7);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t l = 0; l < lanes; ++l) {
      volatile float z = 0;  // volatile: one rounding a step
      for (int64_t t = 0; t < terms; ++t) {
        volatile float product = static_cast<float>(acc[static_cast<size_t>((t * rows + r) * lanes + l)]);
        Operand<float> scale = args.scale;
        if (scale.data) {
          scale.data += t * args.scale_term_stride;
          product = product * read(scale, r, l);
        }
        z = t ? z + product : product;
      }
      if (args.gate.data) z = z * read(args.gate, r, l);
      if (args.bias.data) z = z + read(args.bias, r, l);
      if (args.slope_pre.data && !(z > 0)) z = z * read(args.slope_pre, r, l);
      const int64_t from = (1 + r) % args.residual_rows;
      if (args.residual_half)
        z = z +
            half_to_float(
                residual_half[static_cast<size_t>(from * args.residual.row_stride + l * args.residual.lane_stride)]);
      if (args.residual.data) z = z + read(args.residual, from, l);
      if (args.shift.data) z = z + read(args.shift, r, l);
      if (args.slope.data && !(z > 0)) z = z * read(args.slope, r, l);
      if (args.offset.data) z = z + read(args.offset, r, l);
      const size_t at = static_cast<size_t>(r * (lanes + 5) + l);
      expected[at] = half ? half_to_float(float_to_half(z)) : static_cast<float>(z);
      expected_half[at] = float_to_half(z);
    }

  const std::string what = " rows " + std::to_string(rows) + " lanes " + std::to_string(lanes) + " terms " +
                           std::to_string(terms) + " steps " + std::to_string(steps) + (half ? " half" : "") +
                           " per lane " + std::to_string(per_lane);
  for_each_runnable(kEpilogueKernels, [&](const EpilogueKernel& kernel, const std::string& name) {
    std::vector<float> y(expected.size(), 7.0f), v(expected.size(), 7.0f);
    std::vector<uint16_t> y_half(expected.size(), 7);
    EpilogueArgs own = args;
    own.v = v.data();
    if (half)
      own.y_half = y_half.data();
    else
      own.y = y.data();
    kernel.epilogue(own);
    expect_same(v, expected, name + ": v" + what);
    if (half)
      expect_same(y_half, expected_half, name + ": y float16" + what);
    else
      expect_same(y, expected, name + ": y" + what);

    const int64_t stride = (lanes + 15) / 16 * 16, size = stride * kWordBits;
    std::vector<int32_t> by_lane(static_cast<size_t>(terms * size), 7), turned(by_lane);
    for (int64_t t = 0; t < terms; ++t)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t l = 0; l < lanes; ++l)
          by_lane[static_cast<size_t>(t * size + l * kWordBits + r)] =
              acc[static_cast<size_t>((t * rows + r) * lanes + l)];
    own.acc = by_lane.data();
    own.acc_term_stride = size;
    own.v = reinterpret_cast<float*>(turned.data());
    own.v_row_stride = stride;
    std::fill(y.begin(), y.end(), 7.0f);
    std::fill(y_half.begin(), y_half.end(), uint16_t{7});
    kernel.turned_epilogue({own, turned.data(), stride, nullptr});
    std::vector<float> v_of_rows(expected.size(), 7.0f);
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(&v_of_rows[static_cast<size_t>(r * (lanes + 5))], &turned[static_cast<size_t>(r * stride)],
                  static_cast<size_t>(lanes) * sizeof(float));
    expect_same(v_of_rows, expected, name + ": turned, v" + what);
    if (half)
      expect_same(y_half, expected_half, name + ": turned, y float16" + what);
    else
      expect_same(y, expected, name + ": turned, y" + what);

    if (!half) run_with_bits(kernel, own, turned, stride, expected, name + ": turned" + what, random);
  });
}

// Every float16 survives the way to float32 and back; halves round to even; the edges are where they should be.
void run_half() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const bool nan = (bits & 0x7fff) > 0x7c00;
    const uint16_t expected = nan ? static_cast<uint16_t>(bits | 0x200) : half;
    expect_same<uint16_t>({float_to_half(half_to_float(half))}, {expected}, "half " + std::to_string(bits));
  }
  const struct {
    float value;
    uint16_t half;
  } edges[] = {{65519.996f, 0x7bff},   {65520.0f, 0x7c00}, {0x1p-25f, 0x0000},    {0x1.000002p-25f, 0x0001},
               {2049.0f, 0x6800},      {2051.0f, 0x6802},  {-0x1.8p-24f, 0x8002}, {0x1.ff8p-15f, 0x03ff},
               {0x1.ffcp-15f, 0x0400}, {-1e-45f, 0x8000},  {-INFINITY, 0xfc00}};
  for (const auto& edge : edges)
    expect_same<uint16_t>({float_to_half(edge.value)}, {edge.half}, "float to half " + std::to_string(edge.value));
}

}  // namespace

int main() {
  Random random;
  run_half();
  for (int64_t lanes : {1, 15, 16, 17, 49, 64, 65, 112, 300})
    for (int64_t terms : {1, 2, 3})
      for (bool half : {false, true})
        for (unsigned per_lane : {kNone, kAll}) {
          run(5, lanes, terms, 0, half, per_lane, random);
          run(4, lanes, terms, kAll, half, per_lane, random);
          for (int step = 0; step < kSteps; ++step) run(3, lanes, terms, 1u << step, half, per_lane, random);
        }
  for (int64_t rows : {1, 15, 16, 17, 31, 32})  // of 32 that are turned: 16 at a time, and what is left
    for (int64_t lanes : {1, 16, 49, 112})
      for (int64_t terms : {1, 2})
        for (bool half : {false, true}) run(rows, lanes, terms, kAll, half, lanes == 49 ? kAll : kNone, random);
  // What a convolution has mostly, in every choice of steps; and what is not quite that.
  for (unsigned steps = 0; steps <= kAll; ++steps)
    for (int64_t lanes : {1, 16, 49})
      for (int64_t terms : {1, 2}) run(steps % 2 ? 32 : 8, lanes, terms, steps, false, kOfChannels, random);
  run(32, 49, 3, kAll, false, kOfChannels, random);
  for (int step = 0; step < kSteps; ++step) run(32, 49, 1, kAll, false, kOfChannels ^ 1u << step, random);
  return report("epilogue");
}
