// Multiply-accumulates a nanosecond of one block of 32 filters, data in the first-level cache.
#include "cpu/testing.h"
#include "cpu/xnor_accumulate/xnor_accumulate.h"

using namespace binarize;
using namespace binarize::testing;

int main() {
  Random random;
  for (int64_t k_words : {8, 18, 36, 72, 144})
    for (bool masked : {false, true}) {
      constexpr int64_t kRows = 112;
      const std::vector<uint32_t> x = random.words(kRows * 2 + k_words);
      const Aligned<uint32_t> w(random.words(k_words * kWordBits)), mask(random.words(k_words * kWordBits));
      std::vector<int32_t> row_offset, row_place;
      const Aligned<int32_t> base(std::vector<int32_t>(kWordBits, 0)), acc(std::vector<int32_t>(kRows * kWordBits, 0));
      std::vector<XnorWord> words;
      std::vector<XnorPair> pairs;
      std::vector<uint32_t> bits(kRows);
      for (int64_t r = 0; r < kRows; ++r) {
        row_offset.push_back(static_cast<int32_t>(r));
        row_place.push_back(static_cast<int32_t>(r));
      }
      for (int32_t k = 0; k < k_words; ++k) words.push_back({k, k * kWordBits});
      for (int32_t k = 0; k < k_words; k += 2) pairs.push_back({k, k + 1, k * kWordBits});
      for_each_runnable(kXnorAccumulateKernels, [&](const XnorAccumulateKernel& kernel, const std::string& name) {
        for (bool paired : {false, true}) {
          if (paired && (masked || !kernel.pairs)) continue;
          XnorAccumulateArgs args{};
          args.x = x.data();
          args.row_offset = row_offset.data();
          args.row_place = row_place.data();
          args.words = words.data();
          args.pairs = pairs.data();
          (paired ? args.pair_count : args.word_count) = static_cast<int32_t>(paired ? k_words / 2 : k_words);
          args.w = w.data;
          args.mask = masked ? mask.data : nullptr;
          args.base = base.data;
          args.acc = acc.data;
          args.acc_stride = kWordBits;
          args.rows = kRows;
          args.shift = 1;
          XnorAccumulateArgs unshifted = args;
          unshifted.shift = 0;
          const double work = static_cast<double>(kRows * k_words * kWordBits * kWordBits);
          const double ns = best_ns([&] { kernel.accumulate(args); });
          const double bits_ns = best_ns([&] { kernel.bits({unshifted, 0, ~0u, bits.data()}); });
          std::printf("%-16s %3ld words%-8s: %7.0f ns, %6.0f MAC/ns; to bits %6.0f MAC/ns\n", name.c_str(),
                      static_cast<long>(k_words),
                      masked   ? ", masked"
                      : paired ? ", paired"
                               : "",
                      ns, work / ns, work / bits_ns);
        }
      });
    }
}
