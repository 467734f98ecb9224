// Against one comparison a bit, written from the formula in pack_bits.h.
#include "cpu/pack_bits/pack_bits.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/half.h"
#include "cpu/testing.h"

using namespace binarize;
using namespace binarize::testing;

namespace {

struct Case {
  int64_t rows, lanes, thresholds, planes;
  bool encode, half, threshold_per_lane, flip, flip_per_lane;
  bool positional = false;  // instead of a random code
  bool ascending = false;   // the thresholds of a row, some of them equal
  bool shared = false;      // by all rows
};

void run(const Case& c, bool across, Random& random) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const int64_t stride = c.lanes + 3, size = c.rows * stride;
  std::vector<float> v = random.reals(size), threshold = random.reals(c.thresholds * c.rows * c.lanes);
  std::vector<uint16_t> v_half;
  v[0] = nan;
  if (size > 4) v[1] = INFINITY, v[2] = -INFINITY, v[3] = -0.0f;
  threshold[threshold.size() / 2] = nan;
  threshold[threshold.size() / 3] = -INFINITY;
  for (float& value : v) {
    v_half.push_back(float_to_half(value));
    if (c.half) value = half_to_float(v_half.back());
  }
  if (size > 4) threshold[0] = v[4 % c.lanes];  // equality counts as reached
  std::vector<uint8_t> encode, flip;
  for (int64_t i = 0; i < c.planes * c.thresholds; ++i)
    encode.push_back(
        static_cast<uint8_t>(c.positional ? (i % c.thresholds + 1) % (1 << i / c.thresholds) == 0 : random.below(2)));
  for (int64_t i = 0; i < c.planes * c.rows * c.lanes; ++i) flip.push_back(static_cast<uint8_t>(random.below(2)));

  PackBitsArgs args{};
  args.v = c.half ? nullptr : v.data();
  args.v_half = c.half ? v_half.data() : nullptr;
  args.v_row_stride = stride;
  args.rows = c.rows;
  args.lanes = c.lanes;
  args.threshold = {threshold.data(), c.threshold_per_lane ? c.lanes : 1, c.threshold_per_lane ? 1 : 0};
  args.threshold_plane_stride = c.threshold_per_lane ? c.rows * c.lanes : c.rows;
  if (c.shared) args.threshold.row_stride = 0;
  args.thresholds = c.thresholds;
  if (c.flip) args.flip = {flip.data(), c.flip_per_lane ? c.lanes : 1, c.flip_per_lane ? 1 : 0};
  args.flip_plane_stride = c.flip_per_lane ? c.rows * c.lanes : c.rows;
  args.encode = c.encode ? encode.data() : nullptr;
  args.planes = c.planes;
  args.positional = c.positional;
  for (int64_t i = 0; c.ascending && i < args.threshold_plane_stride; ++i) {
    std::vector<float> of_row;
    for (int64_t p = 0; p < c.thresholds; ++p) {
      const float t = threshold[static_cast<size_t>(p * args.threshold_plane_stride + i)];
      // Values that occur, so that equality does; one threshold is never reached, and one may be always.
      of_row.push_back(std::isnan(t) ? INFINITY : p % 3 == 0 ? v[static_cast<size_t>((i + p) % size)] : t);
      if (std::isnan(of_row.back())) of_row.back() = -INFINITY;
    }
    std::sort(of_row.begin(), of_row.end());
    for (int64_t p = 0; p < c.thresholds; ++p)
      threshold[static_cast<size_t>(p * args.threshold_plane_stride + i)] = of_row[static_cast<size_t>(p)];
  }
  const int64_t words = (c.lanes + 31) / 32;
  args.q_plane_stride = across ? c.lanes : words;
  args.q_row_stride = c.planes * words;

  std::vector<uint32_t> expected(static_cast<size_t>(across ? c.planes * c.lanes : c.rows * c.planes * words));
  for (int64_t b = 0; b < c.planes; ++b)
    for (int64_t r = 0; r < c.rows; ++r)
      for (int64_t l = 0; l < c.lanes; ++l) {
        int sum = 0;
        for (int64_t p = 0; p < c.thresholds; ++p) {
          const float t = threshold[static_cast<size_t>(
              p * args.threshold_plane_stride + r * args.threshold.row_stride + l * args.threshold.lane_stride)];
          const bool counts = c.encode ? encode[static_cast<size_t>(b * c.thresholds + p)] : b == p;
          sum += counts && v[static_cast<size_t>(r * stride + l)] >= t;
        }
        if (c.flip)
          sum += flip[static_cast<size_t>(b * args.flip_plane_stride + r * args.flip.row_stride +
                                          l * args.flip.lane_stride)];
        const size_t at = static_cast<size_t>(across ? b * c.lanes + l : (r * c.planes + b) * words + l / 32);
        expected[at] |= static_cast<uint32_t>(sum & 1) << (across ? r : l % 32);
      }
  const std::string what = std::string(across ? ": across" : ": along") + ", rows " + std::to_string(c.rows) +
                           ", lanes " + std::to_string(c.lanes) + ", thresholds " + std::to_string(c.thresholds);
  for_each_runnable(kPackBitsKernels, [&](const PackBitsKernel& kernel, const std::string& name) {
    std::vector<uint32_t> q(expected.size());
    PackBitsArgs own = args;
    own.q = q.data();
    across ? kernel.across(own) : kernel.along(own);
    expect_same(q, expected, name + what);
  });
}

void run_accumulators(int64_t rows, Random& random) {
  std::vector<int32_t> acc, threshold;
  for (int64_t i = 0; i < rows * kWordBits; ++i) acc.push_back(static_cast<int32_t>(random.below(5)) - 2);
  for (int i = 0; i < kWordBits; ++i) threshold.push_back(static_cast<int32_t>(random.below(5)) - 2);
  threshold[0] = std::numeric_limits<int32_t>::min();
  threshold[1] = std::numeric_limits<int32_t>::max();
  const uint32_t flip = random.word(), valid = 0x00ffffffu;
  std::vector<uint32_t> expected(static_cast<size_t>(rows));
  for (int64_t i = 0; i < rows * kWordBits; ++i) {
    const size_t lane = static_cast<size_t>(i % kWordBits);
    const bool bit = (acc[static_cast<size_t>(i)] >= threshold[lane]) != ((flip >> lane & 1) != 0);
    if (valid >> lane & 1) expected[static_cast<size_t>(i / kWordBits)] |= static_cast<uint32_t>(bit) << lane;
  }
  for_each_runnable(kPackBitsKernels, [&](const PackBitsKernel& kernel, const std::string& name) {
    std::vector<uint32_t> q(expected.size());
    kernel.accumulators({acc.data(), threshold.data(), flip, valid, q.data(), rows});
    expect_same(q, expected, name + ": accumulators");
  });
}

}  // namespace

int main() {
  Random random;
  for (bool across : {true, false})
    for (int64_t rows : {1, 5, 31, 32})
      for (int64_t lanes : {1, 16, 17, 32, 33, 49, 64, 100, 300})
        for (bool half : {false, true}) {
          run({rows, lanes, 1, 1, false, half, false, false, false}, across, random);
          run({rows, lanes, 1, 1, false, half, false, true, false}, across, random);
          run({rows, lanes, 3, 3, false, half, true, true, true}, across, random);
          run({rows, lanes, 7, 3, true, half, false, true, true}, across, random);
          run({rows, lanes, 2, 4, true, half, true, false, false}, across, random);
        }
  for (bool across : {true, false})
    for (int64_t planes = 2; planes <= 7; ++planes)
      for (int64_t rows : {1, planes == 7 ? 2 : 31})  // more than searches know
        for (int64_t lanes : {17, 48, 100})           // vectors side by side, and what is left of them
          for (bool half : {false, true})
            for (bool ascending : {false, true})
              for (bool per_lane : {false, true})
                for (bool shared : {false, true})
                  run({rows, lanes, (1 << planes) - 1, planes, true, half, per_lane, half, half, true, ascending,
                       shared},
                      across, random);
  for (int64_t rows : {1, 7, 50}) run_accumulators(rows, random);
  return report("pack_bits");
}
