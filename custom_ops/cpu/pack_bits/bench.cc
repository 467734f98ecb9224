// Gigabytes of float32 a second into bits, 32 channels across images and 32 columns along rows.
#include "cpu/pack_bits/pack_bits.h"

#include "cpu/testing.h"

using namespace binarize;
using namespace binarize::testing;

int main() {
  Random random;
  for (int64_t lanes : {49, 196, 784, 3136})
    for_each_runnable(kPackBitsKernels, [&](const PackBitsKernel& kernel, const std::string& name) {
      const std::vector<float> v = random.reals(lanes * kWordBits), threshold(kWordBits);
      std::vector<uint32_t> q(static_cast<size_t>(lanes));
      PackBitsArgs args{};
      args.v = v.data();
      args.v_row_stride = args.lanes = lanes;
      args.rows = kWordBits;
      args.threshold = {threshold.data(), 1, 0};
      args.thresholds = args.planes = 1;
      args.q = q.data();
      args.q_row_stride = lanes / 32 + 1;
      const double bytes = static_cast<double>(v.size() * sizeof(float));
      const double across = bytes / best_ns([&] { kernel.across(args); });
      args.rows = 1;
      const double along = bytes / kWordBits / best_ns([&] { kernel.along(args); });
      std::printf("%-16s %4ld lanes: across %5.1f GB/s, along %5.1f GB/s\n", name.c_str(), static_cast<long>(lanes),
                  across, along);
    });
}
