// Nanoseconds for a chunk of 32 channels x 112 pixels: an epilogue of two to eight steps, from accumulators that stand
// row by row, and from such that are to be turned, with and without the bits of what comes out.  Eight have a gate.
#include "cpu/epilogue/epilogue.h"

#include "cpu/testing.h"

using namespace binarize;
using namespace binarize::testing;

int main() {
  Random random;
  constexpr int64_t kLanes = 112, kSize = kLanes * kWordBits;
  std::vector<int32_t> acc, turned(kSize);
  for (int64_t i = 0; i < kSize; ++i) acc.push_back(static_cast<int32_t>(random.below(1000)));
  const std::vector<float> channel = random.reals(kWordBits), plane = random.reals(kSize);
  std::vector<float> y(kSize);
  std::vector<uint32_t> q(kLanes);
  for_each_runnable(kEpilogueKernels, [&](const EpilogueKernel& kernel, const std::string& name) {
    for (int steps : {2, 3, 6, 8}) {
      const Operand<float> vector{channel.data(), 1, 0};
      EpilogueArgs args{};
      args.rows = kWordBits;
      args.lanes = kLanes;
      args.terms = 1;
      args.acc = acc.data();
      args.acc_row_stride = kLanes;
      args.scale = args.bias = vector;
      if (steps >= 3) args.residual = {plane.data(), kLanes, 1};
      if (steps >= 6) args.shift = args.slope = args.offset = vector;
      if (steps >= 8) args.gate = args.slope_pre = vector;
      args.residual_rows = kWordBits;
      args.y = y.data();
      args.y_row_stride = kLanes;
      PackBitsArgs pack{};
      pack.v = y.data();
      pack.v_row_stride = pack.lanes = kLanes;
      pack.rows = kWordBits;
      pack.threshold = vector;
      pack.thresholds = pack.planes = 1;
      pack.q = q.data();
      const auto packed = [&] {
        if (!kernel.turned_epilogue({args, turned.data(), kLanes, &pack}))
          select_pack_bits(isa_bit(kernel.isa)).across(pack);
      };
      std::printf("%-16s %d steps %6.0f ns, turned %6.0f ns, turned and packed %6.0f ns\n", name.c_str(), steps,
                  best_ns([&] { kernel.epilogue(args); }),
                  best_ns([&] { kernel.turned_epilogue({args, turned.data(), kLanes, nullptr}); }), best_ns(packed));
    }
  });
}
