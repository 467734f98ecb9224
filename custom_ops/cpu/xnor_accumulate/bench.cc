// Multiply-accumulates a nanosecond of one block of 32 filters, data in the first-level cache; then what the classes of
// a 3x3 layer's pixels gain over computing every tap for every pixel.
#include "cpu/testing.h"
#include "cpu/xnor_accumulate/xnor_accumulate.h"

using namespace binarize;
using namespace binarize::testing;

namespace {

// One block: `rows` pixels of `k_words` words.
struct Block {
  std::vector<uint32_t> x, bits;
  Aligned<uint32_t> w, mask;
  Aligned<int32_t> base, acc;
  std::vector<int32_t> row;
  std::vector<XnorWord> words;
  std::vector<XnorPair> pairs;

  Block(int64_t rows, int64_t k_words, Random& random)
      : x(random.words(rows + k_words)),
        bits(static_cast<size_t>(rows)),
        w(random.words(k_words * kWordBits)),
        mask(random.words(k_words * kWordBits)),
        base(std::vector<int32_t>(kWordBits, 0)),
        acc(std::vector<int32_t>(static_cast<size_t>(rows * kWordBits), 0)) {
    for (int64_t r = 0; r < rows; ++r) row.push_back(static_cast<int32_t>(r));
    for (int32_t k = 0; k < k_words; ++k) words.push_back({k, k * kWordBits});
    for (int32_t k = 0; k < k_words; k += 2) pairs.push_back({k, k + 1, k * kWordBits});
  }

  // The first `k_words` words of the rows [first, first + rows).
  XnorAccumulateArgs args(int64_t first, int64_t rows, int64_t k_words, bool paired) const {
    XnorAccumulateArgs args{};
    args.x = x.data();
    args.row_offset = args.row_place = row.data() + first;
    args.words = words.data();
    args.pairs = pairs.data();
    (paired ? args.pair_count : args.word_count) = static_cast<int32_t>(paired ? k_words / 2 : k_words);
    args.w = w.data;
    args.base = base.data;
    args.acc = acc.data;
    args.acc_stride = kWordBits;
    args.rows = rows;
    return args;
  }
};

void bench_words(const XnorAccumulateKernel& kernel, const std::string& name, int64_t k_words, bool masked,
                 bool paired) {
  constexpr int64_t kRows = 112;
  Random random;
  Block block(kRows, k_words, random);
  XnorAccumulateArgs args = block.args(0, kRows, k_words, paired);
  if (masked) args.mask = block.mask.data;
  const double work = static_cast<double>(kRows * k_words * kWordBits * kWordBits);
  const double bits_ns = best_ns([&] { kernel.bits({args, 0, ~0u, block.bits.data()}); });
  args.shift = 1;
  const double ns = best_ns([&] { kernel.accumulate(args); });
  std::printf("%-16s %3ld words%-8s: %7.0f ns, %6.0f MAC/ns; to bits %6.0f MAC/ns\n", name.c_str(),
              static_cast<long>(k_words),
              masked   ? ", masked"
              : paired ? ", paired"
                       : "",
              ns, work / ns, work / bits_ns);
}

// size x size pixels; their rows and columns see two or three taps.
void bench_classes(const XnorAccumulateKernel& kernel, const std::string& name, int64_t size, int64_t words_of_tap) {
  struct Run {
    int64_t pixels, taps;
  };
  const Run runs[] = {{1, 2}, {size - 2, 3}, {1, 2}};
  Random random;
  Block block(size * size, 9 * words_of_tap, random);
  const auto bits = [&](int64_t first, int64_t rows, int64_t taps) {
    kernel.bits({block.args(first, rows, taps * words_of_tap, kernel.pairs), 0, ~0u, block.bits.data()});
  };
  const double whole_ns = best_ns([&] { bits(0, size * size, 9); });
  const double ns = best_ns([&] {
    int64_t first = 0;
    for (const Run& v : runs)
      for (const Run& h : runs) {
        bits(first, v.pixels * h.pixels, v.taps * h.taps);
        first += v.pixels * h.pixels;
      }
  });
  std::printf("%-16s 3x3, %2ld x %2ld pixels, %2ld words a tap: %7.0f ns, in classes %7.0f ns\n", name.c_str(),
              static_cast<long>(size), static_cast<long>(size), static_cast<long>(words_of_tap), whole_ns, ns);
}

}  // namespace

int main() {
  for (int64_t k_words : {8, 18, 36, 72, 144})
    for (bool masked : {false, true})
      for_each_runnable(kXnorAccumulateKernels, [&](const XnorAccumulateKernel& kernel, const std::string& name) {
        for (bool paired : {false, true})
          if (!paired || (kernel.pairs && !masked)) bench_words(kernel, name, k_words, masked, paired);
      });
  for (int64_t size : {56, 28, 14, 7})
    for_each_runnable(kXnorAccumulateKernels, [&](const XnorAccumulateKernel& kernel, const std::string& name) {
      bench_classes(kernel, name, size, 112 / size);
    });
}
