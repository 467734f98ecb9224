// Multiply-accumulates a nanosecond of two blocks of 32 filters over 3 x 3 taps of an image, and what its tables take.
#include "cpu/lookup_accumulate/lookup_accumulate.h"

#include "cpu/testing.h"

using namespace binarize;
using namespace binarize::testing;

int main() {
  Random random;
  for (int32_t planes : {2, 4, 6})
    for (int64_t channels : {64, 128, 256})
      for_each_runnable(kLookupAccumulateKernels, [&](const LookupAccumulateKernel& kernel, const std::string& name) {
        constexpr int64_t kWidth = 16, kHeight = 10, kRows = 112, kBlocks = 2, kTaps = 9;
        constexpr int64_t kPixels = kWidth * kHeight;
        const LookupFormat format = kernel.format(planes, channels, kTaps);
        const int64_t pixel_bytes = format.pixel_bytes(channels), run = format.steps(3 * format.tables(channels));
        const int64_t steps = 3 * run;
        const std::vector<uint32_t> x = random.words((channels + 31) / 32 * planes * kPixels);
        const Aligned<uint8_t> tables(std::vector<uint8_t>(static_cast<size_t>(kPixels * pixel_bytes + kLookupStep)));
        const Aligned<uint8_t> w(std::vector<uint8_t>(static_cast<size_t>(kBlocks * steps * format.step_weights()), 3));
        std::vector<int32_t> row_offset, k_offset, sums(kPixels), start(kRows), acc(kBlocks * kRows * kWordBits);
        for (int64_t r = 0; r < kRows; ++r)
          row_offset.push_back(static_cast<int32_t>((r / 14 * kWidth + r % 14) * pixel_bytes));
        for (int64_t step = 0; step < steps; ++step)
          k_offset.push_back(static_cast<int32_t>(step / run * kWidth * pixel_bytes + step % run * kLookupStep));
        const double tables_ns = best_ns([&] {
          kernel.tables({x.data(), (channels + 31) / 32 * kPixels, kPixels, 1, channels, kPixels, planes, format.group,
                         tables.data, sums.data()});
        });
        const double ns = best_ns([&] {
          kernel.accumulate({tables.data, row_offset.data(), k_offset.data(), w.data, start.data(), acc.data(),
                             kRows * kWordBits, kWordBits, kRows, kBlocks, static_cast<int32_t>(steps), planes,
                             format.group});
        });
        std::printf("%-16s %d planes, %3ld channels: %6.0f MAC/ns, tables %5.1f ns a pixel\n", name.c_str(), planes,
                    static_cast<long>(channels), static_cast<double>(kRows * kBlocks * 32 * channels * kTaps) / ns,
                    tables_ns / kPixels);
      });
}
