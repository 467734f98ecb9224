// Against a plain loop over unpacked values: +-1 or {0, 1} activations times +-1 or ternary weights.
#include "cpu/xnor_accumulate/xnor_accumulate.h"

#include "cpu/testing.h"

using namespace binarize;
using namespace binarize::testing;

namespace {

struct Case {
  const char* why;
  int64_t rows, k_words;
  bool masked;
  int x_low;
  int64_t classes;
  bool extreme;  // every product the same: the largest counts
};

constexpr Case kCases[] = {
    {"one row, one word", 1, 1, false, -1, 0, false},
    {"every remainder of the row tile", 13, 3, false, -1, 0, false},
    {"a whole tile", 7, 9, false, -1, 0, false},
    {"odd word count: the unrolled loop's tail", 8, 5, true, -1, 0, false},
    {"{0, 1} activations", 9, 4, false, 0, 0, false},
    {"{0, 1} activations, ternary weights", 10, 4, true, 0, 0, false},
    {"border classes", 12, 2, false, -1, 5, false},
    {"counts past 16 bits", 2, 4096, false, -1, 0, true},
};

void run(const Case& c, Random& random) {
  const int64_t stride = c.k_words + 3, lanes = kWordBits;
  const std::vector<uint32_t> x =
      c.extreme ? std::vector<uint32_t>(static_cast<size_t>(c.rows * stride), ~0u) : random.words(c.rows * stride);
  const std::vector<uint32_t> w =
      c.extreme ? std::vector<uint32_t>(static_cast<size_t>(c.k_words * lanes), 0u) : random.words(c.k_words * lanes);
  const std::vector<uint32_t> mask = random.words(c.k_words * lanes);
  std::vector<int32_t> row_offset, k_offset, row_class, extra, base, expected;
  for (int64_t r = 0; r < c.rows; ++r) row_offset.push_back(static_cast<int32_t>((r * 5 % c.rows) * stride));
  for (int64_t k = 0; k < c.k_words; ++k) k_offset.push_back(static_cast<int32_t>(c.k_words - 1 - k));
  const int64_t classes = c.classes ? c.classes : 1;
  for (int64_t r = 0; r < c.rows; ++r) row_class.push_back(static_cast<int32_t>(random.below(classes)));
  for (int64_t i = 0; i < classes * lanes; ++i) extra.push_back(static_cast<int32_t>(random.below(100)));

  for (int64_t i = 0; i < classes * lanes; ++i) {
    int32_t all = 0, plus = 0;  // weights, and those of them that are +1
    for (int64_t k = 0; k < c.k_words; ++k)
      for (int bit = 0; bit < kWordBits; ++bit) {
        const size_t at = static_cast<size_t>(k * lanes + i % lanes);
        if (c.masked && !(mask[at] >> bit & 1)) continue;
        ++all;
        plus += w[at] >> bit & 1;
      }
    base.push_back((c.x_low == -1 ? all : plus) + extra[static_cast<size_t>(i)]);
  }
  for (int64_t r = 0; r < c.rows; ++r)
    for (int64_t o = 0; o < lanes; ++o) {
      const int32_t row = c.classes ? row_class[static_cast<size_t>(r)] : 0;
      int32_t sum = extra[static_cast<size_t>(row * lanes + o)];
      for (int64_t k = 0; k < c.k_words; ++k)
        for (int bit = 0; bit < kWordBits; ++bit) {
          const size_t at = static_cast<size_t>(k * lanes + o);
          const uint32_t word =
              x[static_cast<size_t>(row_offset[static_cast<size_t>(r)] + k_offset[static_cast<size_t>(k)])];
          const int activation = word >> bit & 1 ? 1 : c.x_low;
          const int weight = c.masked && !(mask[at] >> bit & 1) ? 0 : w[at] >> bit & 1 ? 1 : -1;
          sum += activation * weight;
        }
      expected.push_back(sum);
    }

  // The bits are taken of base - count: the accumulators themselves where nothing shifts the count.
  const uint32_t flip = random.word(), valid = random.word();
  std::vector<uint32_t> expected_bits;
  for (int64_t r = 0; r < c.rows; ++r) {
    uint32_t word = 0;
    for (int64_t o = 0; o < lanes; ++o) {
      const int32_t from = base[static_cast<size_t>((c.classes ? row_class[static_cast<size_t>(r)] : 0) * lanes + o)];
      const int32_t shifted = from - expected[static_cast<size_t>(r * lanes + o)];
      word |= static_cast<uint32_t>(from - (c.x_low == -1 ? shifted / 2 : shifted) >= 0) << o;
    }
    expected_bits.push_back((word ^ flip) & valid);
  }

  const Aligned<uint32_t> aligned_mask(mask);
  for_each_runnable(kXnorAccumulateKernels, [&](const XnorAccumulateKernel& kernel, const std::string& name) {
    const int64_t most_pairs = kernel.pairs && !c.masked ? c.k_words / 2 : 0;
    for (int64_t pairs : {int64_t{0}, most_pairs / 2, most_pairs}) {
      std::vector<uint32_t> paired_x = x, paired_w = w;
      for (int64_t i = 0; i < pairs; ++i) {
        for (int64_t r = 0; r < c.rows; ++r)
          paired_x[static_cast<size_t>(r * stride + k_offset[static_cast<size_t>(2 * i + 1)])] ^=
              x[static_cast<size_t>(r * stride + k_offset[static_cast<size_t>(2 * i)])];
        for (int64_t o = 0; o < lanes; ++o)
          paired_w[static_cast<size_t>((2 * i + 1) * lanes + o)] ^= w[static_cast<size_t>(2 * i * lanes + o)];
      }
      const Aligned<uint32_t> aligned_w(paired_w);
      std::vector<int32_t> acc(static_cast<size_t>(c.rows * lanes));
      std::vector<uint32_t> bits(static_cast<size_t>(c.rows));
      const XnorAccumulateArgs args{paired_x.data(),
                                    row_offset.data(),
                                    k_offset.data(),
                                    aligned_w.data,
                                    c.masked ? aligned_mask.data : nullptr,
                                    base.data(),
                                    c.classes ? row_class.data() : nullptr,
                                    acc.data(),
                                    lanes,
                                    c.rows,
                                    static_cast<int32_t>(c.k_words),
                                    c.x_low == -1 ? 1 : 0,
                                    static_cast<int32_t>(pairs)};
      XnorAccumulateArgs unshifted = args;
      unshifted.shift = 0;
      kernel.accumulate(args);
      kernel.bits({unshifted, flip, valid, bits.data()});
      const std::string what = name + " with " + std::to_string(pairs) + " pairs: " + c.why;
      expect_same(acc, expected, what);
      expect_same(bits, expected_bits, what + ", bits");
    }
  });
}

void run_combine(int64_t outputs, int64_t planes, int64_t bases, Random& random) {
  constexpr int64_t kCount = 96;  // any values: past the last row and lane there is nothing but what memory held before
  std::vector<int32_t> acc, combine, expected;
  for (int64_t i = 0; i < planes * bases * kCount; ++i) acc.push_back(static_cast<int32_t>(random.word()));
  for (int64_t i = 0; i < outputs * planes; ++i) combine.push_back(static_cast<int32_t>(random.below(17) - 8));
  for (int64_t t = 0; t < outputs; ++t)
    for (int64_t m = 0; m < bases; ++m)
      for (int64_t i = 0; i < kCount; ++i) {
        uint32_t sum = 0;
        for (int64_t p = 0; p < planes; ++p)
          sum += static_cast<uint32_t>(combine[static_cast<size_t>(t * planes + p)]) *
                 static_cast<uint32_t>(acc[static_cast<size_t>((p * bases + m) * kCount + i)]);
        expected.push_back(static_cast<int32_t>(sum));
      }
  for_each_runnable(kXnorAccumulateKernels, [&](const XnorAccumulateKernel& kernel, const std::string& name) {
    std::vector<int32_t> combined(expected.size());
    kernel.combine({acc.data(), combined.data(), combine.data(), outputs, planes, bases, kCount});
    expect_same(combined, expected, name + ": combine");
  });
}

}  // namespace

int main() {
  Random random;
  for (const Case& c : kCases) run(c, random);
  for (int64_t rows = 1; rows <= 21; ++rows) run({"every row count", rows, 3, rows % 2 == 0, -1, 2, false}, random);
  for (int64_t words = 1; words <= 40; ++words)
    for (int64_t rows : {2, 9})  // variants may differ for few rows and many
      for (bool masked : {false, true}) run({"every word count", rows, words, masked, -1, 0, false}, random);
  // Variants without a popcount count in bytes: the largest counts, on both sides of where a byte may be full.
  for (int64_t full : {8, 16, 32, 64, 128, 256, 512})
    for (int64_t words = full - 7; words <= full + 8; ++words)
      for (int64_t rows : {1, 9}) run({"full bytes", rows, words, false, -1, 0, true}, random);
  run_combine(1, 4, 1, random);
  run_combine(3, 2, 2, random);
  return report("xnor_accumulate");
}
