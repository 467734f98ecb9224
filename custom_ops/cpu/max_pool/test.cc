// Against a loop over unpacked channels and the taps of each window.
#include "cpu/max_pool/max_pool.h"

#include "cpu/testing.h"

using namespace binarize;
using namespace binarize::testing;

namespace {

void run(int64_t height, int64_t width, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation, Random& random) {
  const int64_t span = dilation * (kernel - 1) + 1;
  const int64_t out_height = (height + 2 * pad - span) / stride + 1, out_width = (width + 2 * pad - span) / stride + 1;
  if (height + 2 * pad < span || width + 2 * pad < span) return;
  const std::vector<uint32_t> in = random.words(height * width);
  const uint32_t invert = random.word();
  std::vector<uint32_t> expected;
  for (int64_t y = 0; y < out_height; ++y)
    for (int64_t x = 0; x < out_width; ++x) {
      uint32_t word = 0;
      for (int bit = 0; bit < 32; ++bit) {
        const bool all = invert >> bit & 1;
        bool result = all;
        for (int64_t i = 0; i < kernel; ++i)
          for (int64_t j = 0; j < kernel; ++j) {
            const int64_t row = y * stride - pad + i * dilation, column = x * stride - pad + j * dilation;
            if (row < 0 || row >= height || column < 0 || column >= width) continue;
            const bool tap = in[static_cast<size_t>(row * width + column)] >> bit & 1;
            result = all ? result && tap : result || tap;
          }
        word |= static_cast<uint32_t>(result) << bit;
      }
      expected.push_back(word);
    }
  for_each_runnable(kMaxPoolKernels, [&](const MaxPoolKernel& pool, const std::string& name) {
    std::vector<uint32_t> out(expected.size());
    pool.pool({in.data(),
               out.data(),
               invert,
               height,
               width,
               out_height,
               out_width,
               {kernel, kernel},
               {stride, stride},
               {pad, pad},
               {dilation, dilation}});
    expect_same(out, expected, name + ": max pool of " + std::to_string(height) + " x " + std::to_string(width));
  });
}

}  // namespace

int main() {
  Random random;
  for (int64_t size : {1, 2, 5, 8, 13})
    for (int64_t kernel : {1, 2, 3, 6})  // 6: wider than the image
      for (int64_t stride : {1, 2, 3})
        for (int64_t pad : {0, 1, 4})  // 4: windows that lie in the border alone
          for (int64_t dilation : {1, 2}) run(size, size + 2, kernel, stride, pad, dilation, random);
  return report("max_pool");
}
