// PackSign(X, threshold, encode, flip; axis) -> P: the bits of X >= threshold, packed along one axis.
#include <algorithm>
#include <optional>

#include "cpu/pack_bits/pack_bits.h"
#include "ops/ops.h"
#include "ops/threshold.h"

namespace binarize {
namespace {

enum Input : size_t { kX, kThreshold, kEncode, kFlip, kInputs };
constexpr const char* kInputNames[] = {"X", "threshold", "encode", "flip"};

int64_t read_axis(const Attributes& attributes) { return attributes.integer_in("axis", 0, kMaxRank - 1); }

Shape packed_shape(const Shape* shapes, int64_t axis) {
  const Shape& x = shapes[kX];
  if (x.known_rank() && (axis >= x.rank || x.rank > kMaxRank))
    fail("attribute 'axis' is ", axis, " and input X has rank ", x.rank, ", expected a rank from ", axis + 1, " to ",
         kMaxRank);
  const ThresholdShapes found =
      check_threshold(shapes[kThreshold], shapes[kEncode], shapes[kFlip], x, static_cast<int>(axis));
  Shape out = x;
  if (!x.known_rank()) return out;
  const int64_t n = x.dim[axis];
  out.dim[axis] =
      n < 0 || found.planes < 0 ? kUnknown : checked_product(found.planes, ceil_div(n, kWordBits), "output P");
  if (x.fully_known()) element_count(x, "input X");
  if (out.fully_known()) element_count(out, "output P");
  return out;
}

class PackSign {
 public:
  static constexpr const char* kName = "PackSign";

  PackSign(const OrtApi* api, const OrtKernelInfo* info, IsaMask isas)
      : axis_(read_axis(Attributes(api, info))), pack_(select_pack_bits(isas)) {
    if (input_count(api, info) != kInputs) fail("has ", input_count(api, info), " inputs, expected ", +kInputs);
    for (size_t i = kThreshold; i < kInputs; ++i) constants_[i] = constant_input(api, info, i, kInputNames[i]);
    Shape shapes[kInputs];
    for (size_t i = 0; i < kInputs; ++i) shapes[i] = constants_[i].shape;
    packed_shape(shapes, axis_);
    if (constants_[kEncode].data) encode_ = read_encode(constants_[kEncode]);
  }

  static void infer(Inference& inference) {
    const int64_t axis = read_axis(inference.attributes());
    SymbolicShape out = inference.input(kX);
    if (!out.shape.known_rank()) return;
    Shape shapes[kInputs] = {out.shape};
    for (size_t i = kThreshold; i < kInputs; ++i) shapes[i] = inference.input(i).shape;
    out.shape = packed_shape(shapes, axis);
    out.symbol[axis] = "";
    inference.output(0, ORT_UINT32, out);
  }

  void compute(Call& call) const {
    Tensor in[kInputs];
    Shape shapes[kInputs];
    for (size_t i = 0; i < kInputs; ++i) {
      in[i] = constants_[i].data ? constants_[i] : call.input(i, kInputNames[i]);
      shapes[i] = in[i].shape;
    }
    if (in[kX].type != ORT_FLOAT16) expect_type(in[kX], "X", ORT_FLOAT);
    expect_type(in[kThreshold], "threshold", ORT_FLOAT);
    expect_type(in[kFlip], "flip", ORT_BOOL);
    const Shape out = packed_shape(shapes, axis_);
    uint32_t* q = static_cast<uint32_t*>(call.output(0, out));
    if (!q || element_count(out, "output P") == 0) return;
    std::optional<Encode> run_time_encode;
    if (!encode_) run_time_encode = read_encode(in[kEncode]);
    const Encode& encode = encode_ ? *encode_ : *run_time_encode;

    int64_t outer = 1, inner = 1;
    for (int i = 0; i < out.rank; ++i) (i < axis_ ? outer : inner) *= i == axis_ ? 1 : out.dim[i];
    const Job job{in[kX], q, in[kX].shape.dim[axis_], outer, inner, encode.planes};
    inner > 1 ? pack_across(call, in, encode, job) : pack_along(call, in, encode, job);
  }

 private:
  // X is [outer][n][inner], P is [outer][planes][words][inner].
  struct Job {
    const Tensor& x;
    uint32_t* q;
    int64_t n, outer, inner, planes;
  };

  // What a task packs at least: less would cost more to hand out than to pack.
  static constexpr int64_t kTaskValues = 1 << 15;

  static void set_values(PackBitsArgs& args, const Tensor& x, int64_t at) {
    args.v = x.type == ORT_FLOAT ? x.as<float>() + at : nullptr;
    args.v_half = x.type == ORT_FLOAT16 ? x.as<uint16_t>() + at : nullptr;
  }

  void pack_across(Call& call, const Tensor* in, const Encode& encode, const Job& job) const {
    const int axis = static_cast<int>(axis_);
    const Thresholds thresholds =
        view_thresholds(call, in[kThreshold], encode, in[kFlip], in[kX].shape, axis, {axis, axis + 1});
    const int64_t words = ceil_div(job.n, kWordBits);
    const int64_t items = job.outer * words;
    const int64_t tasks = std::min(items, ceil_div(items * kWordBits * job.inner, kTaskValues));
    call.parallel_for(tasks, [&](int64_t task) {
      for (int64_t item = items * task / tasks; item < items * (task + 1) / tasks; ++item) {
        const int64_t outer = item / words, word = item % words, row = word * kWordBits;
        PackBitsArgs args{};
        set_values(args, job.x, (outer * job.n + row) * job.inner);
        args.v_row_stride = args.lanes = job.inner;
        args.rows = job.n - row < kWordBits ? job.n - row : kWordBits;
        thresholds.fill(args, outer, row, 0);
        args.q = job.q + (outer * job.planes * words + word) * job.inner;
        args.q_plane_stride = words * job.inner;
        pack_.across(args);
      }
    });
  }

  void pack_along(Call& call, const Tensor* in, const Encode& encode, const Job& job) const {
    // The axis before the packed one gives the rows; where there is none, one of length 1 does.
    Shape v = in[kX].shape;
    int axis = static_cast<int>(axis_);
    if (axis == 0) v = with_planes(v, axis++, 1);
    Tensor threshold = in[kThreshold], flip = in[kFlip];
    // One threshold for all, and rows of whole words: they are one long row.
    if (job.n % kWordBits == 0 && element_count(threshold.shape, "input threshold") == 1 &&
        element_count(flip.shape, "input flip") == 1 && encode.planes == 1) {
      v = Shape{1, job.outer * job.n};
      axis = 1;
      threshold.shape = flip.shape = Shape{1};
    }
    const int64_t n = v.dim[axis], rows = v.dim[axis - 1], groups = rows ? job.outer * job.n / n / rows : 0;
    const Thresholds thresholds = view_thresholds(call, threshold, encode, flip, v, axis, {axis - 1, axis});
    const int64_t words = ceil_div(n, kWordBits);
    // A run of rows a task, or a piece of a long one.
    const int64_t run = n >= kTaskValues ? 1 : ceil_div(kTaskValues, n), runs = ceil_div(rows, run);
    const int64_t pieces = ceil_div(n, kTaskValues);
    call.parallel_for(groups * runs * pieces, [&](int64_t item) {
      const int64_t lane = item % pieces * kTaskValues;
      const int64_t group = item / pieces / runs, row = item / pieces % runs * run;
      PackBitsArgs args{};
      set_values(args, job.x, (group * rows + row) * n + lane);
      args.v_row_stride = n;
      args.lanes = n - lane < kTaskValues ? n - lane : kTaskValues;
      args.rows = rows - row < run ? rows - row : run;
      thresholds.fill(args, group, row, lane);
      args.q = job.q + (group * rows + row) * job.planes * words + lane / kWordBits;
      args.q_plane_stride = words;
      args.q_row_stride = job.planes * words;
      pack_.along(args);
    });
  }

  int64_t axis_;
  const PackBitsKernel& pack_;
  Tensor constants_[kInputs];
  std::optional<Encode> encode_;
};

}  // namespace

void add_pack_sign(std::vector<Op>& ops) {
  for (OrtElementType type : {ORT_FLOAT, ORT_FLOAT16})
    ops.push_back(make_op<PackSign>({type, ORT_FLOAT, ORT_FLOAT, ORT_BOOL}, {ORT_UINT32}, false));
}

}  // namespace binarize
