// Multiply-accumulates a nanosecond from packed rows to floats, weights where they are in a network: in the cache that
// they fit in.
#include "cpu/xnor_product/xnor_product.h"

#include "cpu/testing.h"

using namespace binarize;
using namespace binarize::testing;

int main() {
  struct Shape {
    int64_t rows, k, columns;
  };
  Random random;
  for (const Shape& shape : {Shape{1, 4096, 4096}, Shape{2, 4096, 4096}, Shape{3, 4096, 4096}, Shape{5, 4096, 4096},
                             Shape{8, 4096, 4096}, Shape{128, 768, 768}, Shape{128, 768, 3072}, Shape{512, 1024, 1024},
                             Shape{128, 64, 128}, Shape{128, 128, 64}}) {
    const int64_t k_words = shape.k / kWordBits;
    const std::vector<uint32_t> x = random.words(shape.rows * k_words);
    const Aligned<uint32_t> w(random.words(k_words * shape.columns));
    const Aligned<int32_t> base(
        std::vector<int32_t>(static_cast<size_t>(shape.columns), static_cast<int32_t>(shape.k)));
    const Aligned<float> y(std::vector<float>(static_cast<size_t>(shape.rows * shape.columns)));
    for_each_runnable(kXnorProductKernels, [&](const XnorProductKernel& kernel, const std::string& name) {
      if (!kernel.product) return;
      XnorProductArgs args{};
      args.x = x.data();
      args.x_row_stride = k_words;
      args.w = w.data;
      args.base = base.data;
      args.k_words = static_cast<int32_t>(k_words);
      args.shift = 1;
      args.epilogue.terms = 1;
      args.epilogue.rows = shape.rows;
      args.epilogue.lanes = shape.columns;
      args.epilogue.y = y.data;
      args.epilogue.y_row_stride = shape.columns;
      const double ns = best_ns([&] { kernel.product(args); });
      std::printf("%-16s %4ld x %4ld x %4ld: %9.0f ns, %6.0f MAC/ns\n", name.c_str(), static_cast<long>(shape.rows),
                  static_cast<long>(shape.k), static_cast<long>(shape.columns), ns,
                  static_cast<double>(shape.rows * shape.k * shape.columns) / ns);
    });
  }
}
