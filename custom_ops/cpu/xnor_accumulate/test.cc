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
  bool placed;   // rows go to places of their own
  bool extreme;  // every product the same: the largest counts
};

constexpr Case kCases[] = {
    {"one row, one word", 1, 1, false, -1, false, false},
    {"every remainder of the row tile", 13, 3, false, -1, false, false},
    {"a whole tile", 7, 9, false, -1, true, false},
    {"odd word count: the unrolled loop's tail", 8, 5, true, -1, true, false},
    {"{0, 1} activations", 9, 4, false, 0, false, false},
    {"{0, 1} activations, ternary weights", 10, 4, true, 0, true, false},
    {"rows of their own places", 12, 2, false, -1, true, false},
    {"counts past 15 bits", 5, 1023, false, -1, false, true},
    {"counts past 15 bits in pairs", 5, 2047, false, -1, true, true},
    {"counts past 16 bits", 2, 4096, false, -1, false, true},
};

void run(const Case& c, Random& random) {
  // Two words that no list has stand before, between and behind those of a row.
  const int64_t stride = c.k_words + 2, lanes = kWordBits, places = c.placed ? 2 * c.rows : c.rows;
  const std::vector<uint32_t> x =
      c.extreme ? std::vector<uint32_t>(static_cast<size_t>(c.rows * stride), ~0u) : random.words(c.rows * stride);
  const std::vector<uint32_t> w =
      c.extreme ? std::vector<uint32_t>(static_cast<size_t>(stride * lanes), 0u) : random.words(stride * lanes);
  const std::vector<uint32_t> mask = random.words(stride * lanes);
  std::vector<int32_t> row_offset, row_place, base, expected(static_cast<size_t>(places * lanes));
  std::vector<XnorWord> words;
  for (int64_t r = 0; r < c.rows; ++r) {
    row_offset.push_back(static_cast<int32_t>((r * 5 % c.rows) * stride));
    row_place.push_back(static_cast<int32_t>(c.placed ? 2 * (c.rows - 1 - r) : r));
  }
  for (int64_t k = 0; k < c.k_words; ++k)
    words.push_back(
        {static_cast<int32_t>(c.k_words - k), static_cast<int32_t>((k < c.k_words / 2 ? k : k + 2) * lanes)});

  for (int64_t o = 0; o < lanes; ++o) {
    int32_t all = 0, plus = 0;  // weights, and those of them that are +1
    for (const XnorWord& word : words)
      for (int bit = 0; bit < kWordBits; ++bit) {
        const size_t at = static_cast<size_t>(word.w + o);
        if (c.masked && !(mask[at] >> bit & 1)) continue;
        ++all;
        plus += w[at] >> bit & 1;
      }
    base.push_back((c.x_low == -1 ? all : plus));
  }
  for (int64_t r = 0; r < c.rows; ++r)
    for (int64_t o = 0; o < lanes; ++o) {
      int32_t sum = 0;
      for (const XnorWord& word : words)
        for (int bit = 0; bit < kWordBits; ++bit) {
          const size_t at = static_cast<size_t>(word.w + o);
          const int activation =
              x[static_cast<size_t>(row_offset[static_cast<size_t>(r)] + word.x)] >> bit & 1 ? 1 : c.x_low;
          const int weight = c.masked && !(mask[at] >> bit & 1) ? 0 : w[at] >> bit & 1 ? 1 : -1;
          sum += activation * weight;
        }
      expected[static_cast<size_t>(row_place[static_cast<size_t>(r)] * lanes + o)] = sum;
    }
  for (int32_t& value : base) {  // beyond what the words make it
    const size_t o = static_cast<size_t>(&value - base.data());
    const int32_t extra = static_cast<int32_t>(random.below(100));
    value += extra;
    for (int32_t place : row_place) expected[static_cast<size_t>(place * lanes) + o] += extra;
  }

  // The bits are taken of base - count: the accumulators themselves where nothing shifts the count.
  const uint32_t flip = random.word(), valid = random.word();
  std::vector<uint32_t> expected_bits(static_cast<size_t>(places));
  for (int32_t place : row_place) {
    uint32_t word = 0;
    for (int64_t o = 0; o < lanes; ++o) {
      const int32_t from = base[static_cast<size_t>(o)];
      const int32_t shifted = from - expected[static_cast<size_t>(place * lanes + o)];
      word |= static_cast<uint32_t>(from - (c.x_low == -1 ? shifted / 2 : shifted) >= 0) << o;
    }
    expected_bits[static_cast<size_t>(place)] = (word ^ flip) & valid;
  }

  const Aligned<uint32_t> aligned_mask(mask);
  for_each_runnable(kXnorAccumulateKernels, [&](const XnorAccumulateKernel& kernel, const std::string& name) {
    // Of each half of the words, whose weights follow one another.
    const int64_t most_pairs = kernel.pairs && !c.masked ? c.k_words / 2 / 2 * 2 : 0;
    for (int64_t count : {int64_t{0}, most_pairs / 2, most_pairs}) {
      std::vector<uint32_t> paired_x = x, paired_w = w;
      std::vector<XnorPair> pairs;
      std::vector<XnorWord> left;
      for (size_t k = 0; k < words.size(); ++k) {
        const bool starts =
            static_cast<int64_t>(pairs.size()) < count && k + 1 < words.size() && words[k + 1].w == words[k].w + lanes;
        if (!starts) {
          left.push_back(words[k]);
          continue;
        }
        const XnorWord first = words[k], second = words[++k];
        pairs.push_back({first.x, second.x, first.w});
        for (int64_t r = 0; r < c.rows; ++r)
          paired_x[static_cast<size_t>(r * stride + second.x)] ^= x[static_cast<size_t>(r * stride + first.x)];
        for (int64_t o = 0; o < lanes; ++o)
          paired_w[static_cast<size_t>(second.w + o)] ^= w[static_cast<size_t>(first.w + o)];
      }
      const Aligned<uint32_t> aligned_w(paired_w);
      std::vector<int32_t> acc(static_cast<size_t>(places * lanes));
      std::vector<uint32_t> bits(static_cast<size_t>(places));
      XnorAccumulateArgs args{};
      args.x = paired_x.data();
      args.row_offset = row_offset.data();
      args.row_place = row_place.data();
      args.pairs = pairs.data();
      args.words = left.data();
      args.pair_count = static_cast<int32_t>(pairs.size());
      args.word_count = static_cast<int32_t>(left.size());
      args.w = aligned_w.data;
      args.mask = c.masked ? aligned_mask.data : nullptr;
      args.base = base.data();
      args.acc = acc.data();
      args.acc_stride = lanes;
      args.rows = c.rows;
      args.shift = c.x_low == -1 ? 1 : 0;
      kernel.accumulate(args);
      args.shift = 0;
      kernel.bits({args, flip, valid, bits.data()});
      const std::string what = name + " with " + std::to_string(pairs.size()) + " pairs: " + c.why;
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
  for (int64_t rows = 1; rows <= 21; ++rows) run({"every row count", rows, 3, rows % 2 == 0, -1, true, false}, random);
  for (int64_t words = 0; words <= 40; ++words)
    for (int64_t rows : {1, 2, 3, 4, 9, 29, 60})  // variants may differ for few rows and many
      for (bool masked : {false, true})
        run({"every word count", rows, words, masked, -1, rows % 2 == 0, false}, random);
  // Variants without a popcount count in bytes: the largest counts, on both sides of where a byte may be full.
  for (int64_t full : {8, 16, 32, 64, 128, 256, 512})
    for (int64_t words = full - 7; words <= full + 8; ++words)
      for (int64_t rows : {1, 9}) run({"full bytes", rows, words, false, -1, false, true}, random);
  run_combine(1, 4, 1, random);
  run_combine(3, 2, 2, random);
  return report("xnor_accumulate");
}
