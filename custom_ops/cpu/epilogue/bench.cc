// Nanoseconds for a chunk of 32 channels x 112 pixels: an epilogue of two, five and nine steps, from accumulators that
// stand row by row, and from such that are to be turned.
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
  for_each_runnable(kEpilogueKernels, [&](const EpilogueKernel& kernel, const std::string& name) {
    for (int steps : {2, 5, 9}) {
      const Operand<float> vector{channel.data(), 1, 0};
      EpilogueArgs args{};
      args.rows = kWordBits;
      args.lanes = kLanes;
      args.terms = 1;
      args.acc = acc.data();
      args.acc_row_stride = kLanes;
      args.scale = args.bias = vector;
      if (steps >= 5) {
        args.residual = {plane.data(), kLanes, 1};
        args.shift = args.slope = vector;
      }
      if (steps >= 9) args.gate = args.slope_pre = args.offset = vector;
      args.residual_rows = kWordBits;
      args.y = y.data();
      args.y_row_stride = kLanes;
      std::printf("%-16s %d steps %6.0f ns, turned %6.0f ns\n", name.c_str(), steps,
                  best_ns([&] { kernel.epilogue(args); }),
                  best_ns([&] { kernel.turned_epilogue({args, turned.data(), kLanes}); }));
    }
  });
}
