// Gigabytes of float32 a second into bits, and into the four planes of 15 ascending thresholds: 32 channels across
// images and 32 columns along rows.
#include "cpu/pack_bits/pack_bits.h"

#include "cpu/testing.h"

using namespace binarize;
using namespace binarize::testing;

int main() {
  Random random;
  for (int64_t lanes : {49, 196, 784, 3136})
    for (int64_t planes : {1, 4})
      for_each_runnable(kPackBitsKernels, [&](const PackBitsKernel& kernel, const std::string& name) {
        const int64_t thresholds = (int64_t{1} << planes) - 1, words = lanes / 32 + 1;
        const std::vector<float> v = random.reals(lanes * kWordBits);
        std::vector<float> threshold;
        std::vector<uint8_t> encode;
        for (int64_t i = 0; i < thresholds * kWordBits; ++i)
          threshold.push_back(static_cast<float>(i / kWordBits - thresholds / 2) * 0.5f);
        for (int64_t i = 0; i < planes * thresholds; ++i)
          encode.push_back((i % thresholds + 1) % (int64_t{1} << i / thresholds) == 0);
        std::vector<uint32_t> q(static_cast<size_t>(planes * (lanes + words)));
        PackBitsArgs args{};
        args.v = v.data();
        args.v_row_stride = args.lanes = lanes;
        args.rows = kWordBits;
        args.threshold = {threshold.data(), planes == 1, 0};  // activations of several bits share theirs
        args.threshold_plane_stride = kWordBits;
        args.thresholds = thresholds;
        args.planes = planes;
        args.positional = planes > 1;
        if (planes > 1) args.encode = encode.data();
        args.q = q.data();
        args.q_plane_stride = lanes;
        args.q_row_stride = planes * words;
        const double bytes = static_cast<double>(v.size() * sizeof(float));
        const double across = bytes / best_ns([&] { kernel.across(args); });
        args.rows = 1;
        args.q_plane_stride = words;
        const double along = bytes / kWordBits / best_ns([&] { kernel.along(args); });
        std::printf("%-16s %4ld lanes, %ld plane(s): across %5.1f GB/s, along %5.1f GB/s\n", name.c_str(),
                    static_cast<long>(lanes), static_cast<long>(planes), across, along);
      });
}
