// Unpack(P; axis, channels, x_low) -> X float32 in {x_low, +1}: the way back from bits to a tensor.
#include "cpu/lanes.h"
#include "ops/ops.h"
#include "ops/threshold.h"

namespace binarize {
namespace {

struct UnpackAttributes {
  int64_t axis, channels, x_low;

  explicit UnpackAttributes(const Attributes& attributes)
      : axis(attributes.integer_in("axis", 0, kMaxRank - 1)),
        channels(attributes.integer_in("channels", 1, kMaxElements)),
        x_low(attributes.integer_in("x_low", -1, 0)) {}

  Shape unpacked_shape(const Shape& p) const {
    if (!p.known_rank()) return p;
    if (axis >= p.rank || p.rank > kMaxRank)
      fail("attribute 'axis' is ", axis, " and input P has rank ", p.rank, ", expected a rank from ", axis + 1, " to ",
           kMaxRank);
    const int64_t words = ceil_div(channels, kWordBits);
    if (p.dim[axis] >= 0 && p.dim[axis] != words)
      fail("input P has ", p.dim[axis], " words on axis ", axis, ", expected ", words, " for channels ", channels);
    Shape out = p;
    out.dim[axis] = channels;
    if (out.fully_known()) element_count(out, "output X");
    return out;
  }
};

class Unpack {
 public:
  static constexpr const char* kName = "Unpack";

  Unpack(const OrtApi* api, const OrtKernelInfo* info, IsaMask) : attributes_(Attributes(api, info)) {}

  static void infer(Inference& inference) {
    SymbolicShape out = inference.input(0);
    if (!out.shape.known_rank()) return;
    out.shape = UnpackAttributes(inference.attributes()).unpacked_shape(out.shape);
    inference.output(0, ORT_FLOAT, out);
  }

  void compute(Call& call) const {
    const Tensor p = call.input(0, "P");
    expect_type(p, "P", ORT_UINT32);
    const Shape shape = attributes_.unpacked_shape(p.shape);
    float* x = static_cast<float*>(call.output(0, shape));
    if (!x || element_count(shape, "output X") == 0) return;
    const int64_t n = attributes_.channels, words = ceil_div(n, kWordBits);
    int64_t outer = 1, inner = 1;
    for (int i = 0; i < shape.rank; ++i)
      if (i != attributes_.axis) (i < attributes_.axis ? outer : inner) *= shape.dim[i];
    const float values[2] = {static_cast<float>(attributes_.x_low), 1.0f};
    call.parallel_for(outer * words, [&](int64_t item) {
      const int64_t word = item % words, first = word * kWordBits;
      const uint32_t* in = p.as<uint32_t>() + item * inner;
      float* out = x + (item / words * n + first) * inner;
      const int64_t rows = n - first < kWordBits ? n - first : kWordBits;
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t lane = 0; lane < inner; ++lane) out[row * inner + lane] = values[in[lane] >> row & 1];
    });
  }

 private:
  UnpackAttributes attributes_;
};

}  // namespace

void add_unpack(std::vector<Op>& ops) { ops.push_back(make_op<Unpack>({ORT_UINT32}, {ORT_FLOAT}, false)); }

}  // namespace binarize
