// Nanoseconds for one plane of words.
#include "cpu/max_pool/max_pool.h"

#include "cpu/testing.h"

using namespace binarize;
using namespace binarize::testing;

int main() {
  Random random;
  for (int64_t size : {14, 56, 112})
    for_each_runnable(kMaxPoolKernels, [&](const MaxPoolKernel& kernel, const std::string& name) {
      const std::vector<uint32_t> in = random.words(size * size);
      std::vector<uint32_t> out(in.size());
      for (int64_t stride : {1, 2}) {
        const double ns = best_ns([&] {
          kernel.pool({in.data(),
                       out.data(),
                       0,
                       size,
                       size,
                       size / stride,
                       size / stride,
                       {2 + stride % 2, 2 + stride % 2},
                       {stride, stride},
                       {stride % 2, stride % 2},
                       {1, 1}});
        });
        std::printf("%-16s %3ld x %3ld stride %ld: %7.0f ns\n", name.c_str(), static_cast<long>(size),
                    static_cast<long>(size), static_cast<long>(stride), ns);
      }
    });
}
