// PackedMaxPool(P, invert; channels, kernel_shape, strides, pads, dilations, ceil_mode) -> Q: max pooling of bits.
#include "cpu/lanes.h"
#include "cpu/max_pool/max_pool.h"
#include "ops/ops.h"
#include "ops/threshold.h"

namespace binarize {
namespace {

struct PoolAttributes {
  int64_t channels, kernel[2], strides[2], pads[4], dilations[2], ceil_mode;

  explicit PoolAttributes(const Attributes& attributes) {
    channels = attributes.integer_in("channels", 1, kMaxElements);
    attributes.integers("kernel_shape", kernel, 2, 1);
    attributes.integers("strides", strides, 2, 1);
    attributes.integers("pads", pads, 4, 0);
    attributes.integers("dilations", dilations, 2, 1);
    ceil_mode = attributes.integer_in("ceil_mode", 0, 1);
    for (int i = 0; i < 2; ++i) checked_product(kernel[i], dilations[i], "the dilated kernel");
  }

  // As onnxruntime's MaxPool: with ceil_mode, a last window that would start past the input and its leading pad is
  // dropped.
  int64_t out_size(int64_t size, int spatial) const {
    if (size < 0) return kUnknown;
    const int64_t free = size + pads[spatial] + pads[spatial + 2] - dilations[spatial] * (kernel[spatial] - 1) - 1;
    if (free < 0)
      fail("the kernel spans ", dilations[spatial] * (kernel[spatial] - 1) + 1, " and the padded input only ",
           size + pads[spatial] + pads[spatial + 2], " on axis ", spatial + 2, ": expected at least one output");
    int64_t out = (ceil_mode ? ceil_div(free, strides[spatial]) : free / strides[spatial]) + 1;
    if (ceil_mode && (out - 1) * strides[spatial] >= size + pads[spatial]) --out;
    return out;
  }

  Shape pooled_shape(const Shape& p, const Shape& invert) const {
    if (!broadcasts_to(invert, Shape{channels, 1, 1}))
      fail("input invert has shape ", to_string(invert), ", expected [", channels, ", 1, 1] or [1, 1, 1]");
    if (!p.known_rank()) return Shape{kUnknown, kUnknown, kUnknown, kUnknown};
    if (p.rank != 4) fail("input P has shape ", to_string(p), ", expected rank 4: [N, words, H, W]");
    const int64_t words = ceil_div(channels, kWordBits);
    if (p.dim[1] >= 0 && (p.dim[1] == 0 || p.dim[1] % words))
      fail("input P has ", p.dim[1], " words on axis 1, expected a multiple of ", words, " for channels ", channels);
    Shape out{p.dim[0], p.dim[1], out_size(p.dim[2], 0), out_size(p.dim[3], 1)};
    if (p.fully_known()) element_count(p, "input P");
    if (out.fully_known()) element_count(out, "output Q");
    return out;
  }
};

class PackedMaxPool {
 public:
  static constexpr const char* kName = "PackedMaxPool";

  PackedMaxPool(const OrtApi* api, const OrtKernelInfo* info, IsaMask isas)
      : attributes_(Attributes(api, info)), pool_(select_max_pool(isas)) {
    if (input_count(api, info) != 2) fail("has ", input_count(api, info), " inputs, expected 2");
    invert_ = constant_input(api, info, 1, "invert");
    attributes_.pooled_shape(Shape(), invert_.shape);
  }

  static void infer(Inference& inference) {
    const PoolAttributes attributes(inference.attributes());
    const SymbolicShape p = inference.input(0);
    SymbolicShape out;
    out.shape = attributes.pooled_shape(p.shape, inference.input(1).shape);
    if (p.shape.known_rank()) out.symbol[0] = p.symbol[0], out.symbol[1] = p.symbol[1];
    inference.output(0, ORT_UINT32, out);
  }

  void compute(Call& call) const {
    const Tensor p = call.input(0, "P");
    const Tensor invert = invert_.data ? invert_ : call.input(1, "invert");
    expect_type(p, "P", ORT_UINT32);
    expect_type(invert, "invert", ORT_BOOL);
    const Shape shape = attributes_.pooled_shape(p.shape, invert.shape);
    uint32_t* q = static_cast<uint32_t*>(call.output(0, shape));
    if (!q || element_count(shape, "output Q") == 0) return;
    const int64_t words = ceil_div(attributes_.channels, kWordBits);
    const bool one_for_all = element_count(invert.shape, "input invert") == 1;
    call.parallel_for(shape.dim[0] * shape.dim[1], [&](int64_t item) {
      MaxPoolArgs args{};
      const int64_t first = item % words * kWordBits;
      for (int64_t i = 0; i < kWordBits && first + i < attributes_.channels; ++i)
        args.invert |= static_cast<uint32_t>(invert.as<uint8_t>()[one_for_all ? 0 : first + i] != 0) << i;
      args.height = p.shape.dim[2];
      args.width = p.shape.dim[3];
      args.out_height = shape.dim[2];
      args.out_width = shape.dim[3];
      args.in = p.as<uint32_t>() + item * args.height * args.width;
      args.out = q + item * args.out_height * args.out_width;
      for (int i = 0; i < 2; ++i) {
        args.kernel[i] = attributes_.kernel[i];
        args.stride[i] = attributes_.strides[i];
        args.pad_begin[i] = attributes_.pads[i];
        args.dilation[i] = attributes_.dilations[i];
      }
      pool_.pool(args);
    });
  }

 private:
  PoolAttributes attributes_;
  const MaxPoolKernel& pool_;
  Tensor invert_;
};

}  // namespace

void add_packed_max_pool(std::vector<Op>& ops) {
  ops.push_back(make_op<PackedMaxPool>({ORT_UINT32, ORT_BOOL}, {ORT_UINT32}, false));
}

}  // namespace binarize
