// XnorConv(P, W, epilogue...; channels, group, strides, pads, dilations, pad_value, x_low, dtype) -> Y, Q
//
// A call: copy the activations where their words are paired (or where a group's channels do not start at a word); then,
// for each block of 32 output channels and run of output pixels, accumulate, turn the accumulators to channels x
// pixels, apply the epilogue and pack.
#include <algorithm>
#include <array>
#include <optional>

#include "cpu/xnor_accumulate/xnor_accumulate.h"
#include "ops/conv_taps.h"
#include "ops/epilogue.h"
#include "ops/kept_once.h"
#include "ops/lookup_conv.h"
#include "ops/ops.h"
#include "ops/xnor_weights.h"

namespace binarize {
namespace {

enum Input : size_t { kP, kW };
constexpr const char* const* kInputNames = kConvInputNames;

struct ConvAttributes {
  int64_t channels, group, strides[2], pads[4], dilations[2], pad_value, x_low, dtype;

  explicit ConvAttributes(const Attributes& attributes) {
    channels = attributes.integer_in("channels", 1, kMaxElements);
    group = attributes.integer_in("group", 1, kMaxElements);
    attributes.integers("strides", strides, 2, 1);
    attributes.integers("pads", pads, 4, 0);
    attributes.integers("dilations", dilations, 2, 1);
    pad_value = attributes.integer_in("pad_value", -1, 1);
    x_low = attributes.integer_in("x_low", -1, 0);
    dtype = attributes.integer("dtype");
    if (dtype != ORT_FLOAT && dtype != ORT_FLOAT16)
      fail("attribute 'dtype' is ", dtype, ", expected 1 (float32) or 10 (float16)");
    if (channels % group)
      fail("attribute 'channels' is ", channels, ", expected a multiple of attribute 'group', ", group);
  }

  int64_t group_channels() const { return channels / group; }
  bool padded() const { return pads[0] || pads[1] || pads[2] || pads[3]; }
};

struct ConvShapes {
  int64_t planes = kUnknown, bases = kUnknown, out_channels = kUnknown;
  int64_t group_out = kUnknown, group_blocks = kUnknown;  // output channels of a group, and blocks of 32 of them
  int64_t kernel[2] = {kUnknown, kUnknown};
  int64_t k = kUnknown;
  Shape y{kUnknown, kUnknown, kUnknown, kUnknown}, q{kUnknown, kUnknown, kUnknown, kUnknown};
};

// Every check of section "limits" that the known shapes allow.
ConvShapes check_conv(const ConvAttributes& attributes, const Shape* shapes) {
  ConvShapes out;
  const Shape &p = shapes[kP], &w = shapes[kW], &mask = shapes[kMask], &scale = shapes[kScale];
  const int64_t words = ceil_div(attributes.channels, kWordBits);
  const int64_t group_words = ceil_div(attributes.group_channels(), kWordBits);

  if (p.known_rank()) {
    if (p.rank != 4) fail("input P has shape ", to_string(p), ", expected rank 4: [N, words, H, W]");
    if (p.dim[1] >= 0 && (p.dim[1] == 0 || p.dim[1] % words))
      fail("input P has ", p.dim[1], " words on axis 1, expected a multiple of ", words, " for channels ",
           attributes.channels);
    if (p.dim[1] >= 0) out.planes = p.dim[1] / words;
    if (p.fully_known()) element_count(p, "input P");
    out.y.dim[0] = p.dim[0];
  }
  if (scale.known_rank()) {
    if (scale.rank != 4) fail("input scale has shape ", to_string(scale), ", expected rank 4: [S, O, 1, 1]");
    out.out_channels = out.y.dim[1] = scale.dim[1];
    if (out.out_channels == 0)
      fail("input scale has shape ", to_string(scale), ", expected at least one output channel");
    if (out.out_channels > 0 && out.out_channels % attributes.group)
      fail("input scale has ", out.out_channels, " output channels, expected a multiple of attribute 'group', ",
           attributes.group);
    if (out.out_channels > 0) {
      out.group_out = out.out_channels / attributes.group;
      out.group_blocks = ceil_div(out.group_out, kWordBits);
    }
  }
  if (w.known_rank()) {
    if (w.rank != 4)
      fail("input W has shape ", to_string(w), ", expected rank 4: [filters, words, kernel_h, kernel_w]");
    if (w.dim[1] >= 0 && w.dim[1] != group_words)
      fail("input W has ", w.dim[1], " words on axis 1, expected ", group_words,
           " for channels / group = ", attributes.group_channels());
    for (int i : {0, 2, 3})
      if (w.dim[i] == 0) fail("input W has shape ", to_string(w), ", expected no empty dimension");
    if (w.fully_known()) {
      element_count(w, "input W");
      out.k = checked_product(attributes.group_channels(), checked_product(w.dim[2], w.dim[3], "the kernel"),
                              "the inner product");
      if (out.k >= 1 << 24)
        fail("the inner product is ", out.k, " long (channels / group x kernel), expected less than 2^24");
    }
    if (w.dim[0] > 0 && out.out_channels > 0) {
      if (w.dim[0] % out.out_channels)
        fail("input W has ", w.dim[0], " filters, expected a multiple of the ", out.out_channels,
             " output channels of input scale");
      out.bases = w.dim[0] / out.out_channels;
      if (out.bases > 1 && attributes.group != 1)
        fail("input W has ", out.bases, " weight bases and attribute 'group' is ", attributes.group,
             ", expected group 1 with more than one basis");
    }
    for (int i = 0; i < 2; ++i) {
      out.kernel[i] = w.dim[2 + i];
      if (out.kernel[i] < 0 || !p.known_rank() || p.dim[2 + i] < 0) continue;
      const int64_t span = checked_product(attributes.dilations[i], out.kernel[i] - 1, "the dilated kernel") + 1;
      const int64_t size = p.dim[2 + i] + attributes.pads[i] + attributes.pads[i + 2];
      if (p.dim[2 + i] == 0 || size < span)
        fail("the kernel spans ", span, " and the padded input ", size, " on axis ", 2 + i,
             ": expected at least one output");
      out.y.dim[2 + i] = (size - span) / attributes.strides[i] + 1;
    }
    if (mask.known_rank()) {
      if (mask.rank != 4 || !broadcasts_to(mask, w) || (mask.dim[1] >= 0 && mask.dim[1] != group_words))
        fail("input mask has shape ", to_string(mask), ", expected W's ", to_string(w), " or the neutral [1, ",
             group_words, ", 1, 1]");
    }
  }
  if (out.y.dim[0] == 0) fail("input P has shape ", to_string(p), ", expected no empty dimension");
  const EpilogueShapes epilogue =
      check_epilogue(shapes, out.y, out.out_channels, Layout::channels_first, out.planes, out.bases);
  out.q = out.y;
  out.q.dim[1] = epilogue.planes_out >= 0 && out.out_channels > 0
                     ? checked_product(epilogue.planes_out, ceil_div(out.out_channels, kWordBits), "output Q")
                     : kUnknown;
  if (out.y.fully_known()) element_count(out.y, "output Y");
  if (out.q.fully_known()) element_count(out.q, "output Q");
  return out;
}

// acc >= integer_threshold(t) is float(acc) >= t, for every |acc| < 2^24.  The thresholds that are always or never
// reached are 2^26 away: differences of them and accumulators do not overflow.  Without a branch: done to vectors.
inline int32_t integer_threshold(float t) {
  constexpr float kBeyond = 1 << 24;
  const bool never = !(t <= kBeyond), always = t < -kBeyond;  // NaN too: never
  const float inside = never || always ? 0.0f : t;
  const int32_t toward_zero = static_cast<int32_t>(inside);
  const int32_t up = toward_zero + (static_cast<float>(toward_zero) < inside);
  return never ? 1 << 26 : always ? -(1 << 26) : up;
}

class XnorConv {
 public:
  static constexpr const char* kName = "XnorConv";

  XnorConv(const OrtApi* api, const OrtKernelInfo* info, IsaMask isas)
      : attributes_(Attributes(api, info)),
        xnor_(select_xnor_accumulate(isas)),
        epilogue_kernel_(select_epilogue(isas)),
        pack_(select_pack_bits(isas)) {
    if (input_count(api, info) != kXnorInputs) fail("has ", input_count(api, info), " inputs, expected ", +kXnorInputs);
    Shape shapes[kXnorInputs];
    for (size_t i = 0; i < kXnorInputs; ++i) {
      constants_[i] = constant_input(api, info, i, kInputNames[i]);
      shapes[i] = constants_[i].shape;
    }
    const ConvShapes known = check_conv(attributes_, shapes);
    epilogue_.emplace(constants_.data(), Layout::channels_first, attributes_.dtype);
    only_activations_vary_ = true;
    for (size_t i = 0; i < kXnorInputs; ++i)
      only_activations_vary_ = only_activations_vary_ && (i == kP || i == kResidual || constants_[i].data);
    if (constants_[kW].data && constants_[kMask].data && known.bases > 0) {
      if (constants_[kCombine].data) combine_ = read_combine(constants_[kCombine], known.k);
      if (make_lookup(known, isas)) return;
      layout_ = weights_layout(known, constants_.data());
      buffer_ = aligned_array<uint32_t>(layout_->buffer_words());
      weights_ = XnorWeights(*layout_, buffer_.get());
      for (int64_t block = 0; block < layout_->blocks; ++block)
        fill_weights(known, constants_.data(), *layout_, weights_, block);
    }
  }

  static void infer(Inference& inference) {
    const ConvAttributes attributes(inference.attributes());
    Shape shapes[kXnorInputs];
    for (size_t i = 0; i < kXnorInputs; ++i) shapes[i] = inference.input(i).shape;
    const ConvShapes found = check_conv(attributes, shapes);
    SymbolicShape y;
    const SymbolicShape p = inference.input(kP);
    y.shape = found.y;
    if (p.shape.known_rank()) {
      y.symbol[0] = p.symbol[0];
      for (int i = 0; i < 2; ++i) {  // a convolution that keeps the size keeps its name
        const bool same =
            found.kernel[i] > 0 && attributes.strides[i] == 1 &&
            attributes.pads[i] + attributes.pads[i + 2] == attributes.dilations[i] * (found.kernel[i] - 1);
        if (same) y.symbol[2 + i] = p.symbol[2 + i];
      }
    }
    SymbolicShape q = y;
    q.shape = found.q;
    inference.output(0, static_cast<OrtElementType>(attributes.dtype), y);
    inference.output(1, ORT_UINT32, q);
  }

  void compute(Call& call) const {
    if (const Plan* plan = kept_.get()) {
      const Tensor p = call.input(kP, "P");
      const Tensor residual = constants_[kResidual].data ? constants_[kResidual] : call.input(kResidual, "residual");
      if (plan->fits(p, residual)) {
        const Outputs outputs = outputs_of(call, *plan, residual.data);
        return plan->taps ? count(call, p, Job(outputs, *layout_, weights_, *plan)) : look_up(call, p, outputs);
      }
    }
    compute_anew(call);
  }

 private:
  // How a call is cut up: for each image and block of 32 output channels, runs of chunks of pixels.
  struct Tiling {
    int64_t chunk = 0, splits = 0;
    int64_t block_tasks = 0;
    int64_t heap_words = 0;  // accumulators that the stack does not hold
  };

  // What follows from the shapes and from what is constant.  The first plan of a kernel is kept for later calls where
  // it depends on nothing else: a node of a network always has the same shapes, and its work may be a few microseconds.
  struct Plan {
    Plan(Call& call, const XnorConv& conv, const Tensor* in)
        : p(in[kP]),
          residual(in[kResidual]),
          s(conv.check(in)),
          run_time_combine(conv.combine_ ? Combine{} : read_combine(in[kCombine], s.k)),
          combine(conv.combine_ ? *conv.combine_ : run_time_combine),
          epilogue(call, *conv.epilogue_, in, s.y) {}

    bool fits(const Tensor& other_p, const Tensor& other_residual) const {
      const auto same = [](const Tensor& a, const Tensor& b) { return a.type == b.type && a.shape == b.shape; };
      return same(p, other_p) && same(residual, other_residual);
    }

    const Tensor p, residual;  // of the call it was made for: their data is gone
    const ConvShapes s;
    const Combine run_time_combine;
    const Combine& combine;
    const EpilogueCall epilogue;

    // Where nothing is looked up:
    Tiling tiling;
    std::optional<ConvTaps> taps;
    AlignedArray<int32_t> base;  // [blocks][classes][32]; null: what counting starts from is with the weights
    // Bits straight from the counts: a set bit is base >= count, where base holds (base - threshold) / 2^shift.
    bool counts_to_bits = false;
    AlignedArray<uint32_t> flips;  // [blocks]
  };

  // What becomes of the accumulators.
  struct Outputs {
    const ConvShapes& s;
    const Combine& combine;
    const EpilogueCall& epilogue;
    const void* residual;
    void* y;
    uint32_t* q;

    int64_t pixels() const { return s.y.dim[2] * s.y.dim[3]; }
  };

  struct Job : Outputs {
    const XnorWeightsLayout& layout;
    const XnorWeights& weights;
    const Plan& plan;
    const uint32_t* x = nullptr;  // activations, [N][planes][plane_words][plane]
    int64_t plane_words = 0, group_stride = 0, plane = 0;

    Job(const Outputs& outputs, const XnorWeightsLayout& layout, const XnorWeights& weights, const Plan& plan)
        : Outputs(outputs), layout(layout), weights(weights), plan(plan) {}
  };

  ConvShapes check(const Tensor* in) const {
    Shape shapes[kXnorInputs];
    for (size_t i = 0; i < kXnorInputs; ++i) shapes[i] = in[i].shape;
    for (size_t i : {+kP, +kW, size_t{kMask}}) expect_type(in[i], kInputNames[i], ORT_UINT32);
    return check_conv(attributes_, shapes);
  }

  Outputs outputs_of(Call& call, const Plan& plan, const void* residual) const {
    void* y = call.output(0, plan.s.y);
    return {plan.s, plan.combine, plan.epilogue, residual, y, static_cast<uint32_t*>(call.output(1, plan.s.q))};
  }

  void compute_anew(Call& call) const {
    Tensor in[kXnorInputs];
    for (size_t i = 0; i < kXnorInputs; ++i) in[i] = constants_[i].data ? constants_[i] : call.input(i, kInputNames[i]);
    std::unique_ptr<Plan> plan = std::make_unique<Plan>(call, *this, in);
    // Operands that had to be expanded are in the memory of this call.
    const bool keeps = only_activations_vary_ && !call.has_scratch();
    const Outputs outputs = outputs_of(call, *plan, plan->epilogue.residual());
    if (!outputs.y && !outputs.q) return;
    if (lookup_ && lookup_->fits(images(in[kP], outputs.s))) {
      look_up(call, in[kP], outputs);
    } else {
      XnorWeights weights = weights_;
      XnorWeightsLayout layout;
      if (layout_) {
        layout = *layout_;
      } else {
        layout = weights_layout(outputs.s, in);
        weights = XnorWeights(layout, call.scratch<uint32_t>(layout.buffer_words()));
        call.parallel_for(layout.blocks, [&](int64_t block) { fill_weights(outputs.s, in, layout, weights, block); });
      }
      const Job job(outputs, layout, weights, *plan);
      make_tables(call, in[kP], job, *plan);
      count(call, in[kP], job);
    }
    if (keeps) kept_.keep(std::move(plan));
  }

  // Whether a group's channels do not start at a word of the densely packed input.
  bool moves_bits() const { return attributes_.group > 1 && attributes_.group_channels() % kWordBits != 0; }
  // The first output channel of a block, how many it has, and whether every block's channels are a word of Q.
  int64_t channel_of(const ConvShapes& s, int64_t block) const {
    return block / s.group_blocks * s.group_out + block % s.group_blocks * kWordBits;
  }
  int64_t channels_of(const ConvShapes& s, int64_t block) const {
    return std::min<int64_t>(kWordBits, s.group_out - block % s.group_blocks * kWordBits);
  }
  bool words_aligned(const ConvShapes& s) const { return attributes_.group == 1 || s.group_out % kWordBits == 0; }
  int64_t words() const { return ceil_div(attributes_.channels, kWordBits); }
  int32_t shift() const { return attributes_.x_low == -1 ? 1 : 0; }

  // Planes that are the bits of one unsigned activation, times +-1 weights that are constant: looked up where a kernel
  // does that, and groups and padding allow it.
  bool make_lookup(const ConvShapes& s, IsaMask isas) {
    const LookupAccumulateKernel* kernel = find_lookup_accumulate(isas);
    const bool low_pad = attributes_.padded() && attributes_.pad_value == -1;
    if (!kernel || attributes_.x_low != 0 || low_pad || !combine_ || !combine_->positional) return false;
    LookupConvLayout layout;
    layout.group = attributes_.group;
    layout.channels = attributes_.group_channels();
    layout.group_outputs = s.group_out;
    layout.bases = s.bases;
    std::copy_n(s.kernel, 2, layout.kernel);
    std::copy_n(attributes_.strides, 2, layout.strides);
    std::copy_n(attributes_.dilations, 2, layout.dilations);
    std::copy_n(attributes_.pads, 4, layout.pads);
    layout.planes = static_cast<int32_t>(std::min<int64_t>(combine_->planes, kMaxLookupPlanes + 1));
    layout.pads_high = attributes_.pad_value == 1;
    if (!LookupConv::fits(layout) || !mask_is_neutral(constants_[kMask], 1, layout.channels)) return false;
    expect_type(constants_[kW], "W", ORT_UINT32);
    const BroadcastStrides w = broadcast_strides(constants_[kW].shape, constants_[kW].shape);
    lookup_.emplace(*kernel, layout, constants_[kW].as<uint32_t>(),
                    WordStrides{w.stride[0], w.stride[1], w.stride[2], w.stride[3]});
    return true;
  }

  static LookupConv::Images images(const Tensor& p, const ConvShapes& s) {
    return {p.as<uint32_t>(), s.y.dim[0], p.shape.dim[2], p.shape.dim[3], s.y.dim[2], s.y.dim[3]};
  }

  void look_up(Call& call, const Tensor& p, const Outputs& outputs) const {
    float* whole_v = whole_values(call, outputs);
    lookup_->run(call, images(p, outputs.s), kWordBits * outputs.s.bases,
                 [&](const LookupConv::Accumulators& of, int32_t* scratch) {
                   finish_chunk(outputs, of.image, of.block, of.pixel, of.count, of.chunk, of.acc, of.basis_stride,
                                scratch, whole_v);
                 });
    if (whole_v) pack_whole(call, outputs, whole_v);
  }

  XnorWeightsLayout weights_layout(const ConvShapes& s, const Tensor* in) const {
    XnorWeightsLayout layout;
    expect_type(in[kW], "W", ORT_UINT32);
    expect_type(in[kMask], "mask", ORT_UINT32);
    layout.blocks = s.bases * attributes_.group * s.group_blocks;
    layout.length = attributes_.group_channels();
    layout.kernel[0] = s.kernel[0];
    layout.kernel[1] = s.kernel[1];
    layout.x_low = attributes_.x_low;
    layout.masked = !mask_is_neutral(in[kMask], 1, layout.length);
    layout.padded = attributes_.padded();
    layout.pad_value = attributes_.pad_value;
    layout.paired = xnor_.pairs && !layout.masked && layout.words() > 1;
    return layout;
  }

  // Blocks are ordered basis, group, block of the group; more than one basis only without groups.
  void fill_weights(const ConvShapes& s, const Tensor* in, const XnorWeightsLayout& layout, const XnorWeights& weights,
                    int64_t block) const {
    const int64_t per_group = s.group_blocks, first_in_group = block % per_group * kWordBits;
    const BroadcastStrides w = broadcast_strides(in[kW].shape, in[kW].shape);
    const BroadcastStrides mask = broadcast_strides(in[kMask].shape, in[kW].shape);
    WeightSource source{in[kW].as<uint32_t>(),
                        {in[kW].shape.dim[0] == 1 ? 0 : w.stride[0], w.stride[1], w.stride[2], w.stride[3]},
                        in[kMask].as<uint32_t>(),
                        {mask.stride[0], mask.stride[1], mask.stride[2], mask.stride[3]}};
    fill_block(layout, weights, block, source, block / per_group * s.group_out + first_in_group,
               std::min<int64_t>(kWordBits, s.group_out - first_in_group));
  }

  ConvGeometry geometry(const Shape& p, const Job& job) const {
    ConvGeometry out{};
    for (int i = 0; i < 2; ++i) {
      out.kernel[i] = job.s.kernel[i];
      out.strides[i] = attributes_.strides[i];
      out.dilations[i] = attributes_.dilations[i];
      out.pads[i] = attributes_.pads[i];
      out.in[i] = p.dim[2 + i];
      out.out[i] = job.s.y.dim[2 + i];
    }
    out.words = job.layout.words();
    out.paired = job.layout.paired;
    return out;
  }

  // How the work is cut up, the tables of pixels, and what counting starts from.
  void make_tables(Call& call, const Tensor& p, const Job& job, Plan& plan) const {
    plan.counts_to_bits = counts_suffice(job);
    plan.tiling = tiling(job);
    plan.taps.emplace(geometry(p.shape, job), plan.tiling.chunk);
    const bool own_bases = job.layout.padded || plan.counts_to_bits;
    const int64_t block_bases = checked_product(plan.taps->classes(), kWordBits, "the border classes");
    const int64_t blocks = own_bases ? job.layout.blocks : 0;
    if (own_bases) plan.base = aligned_array<int32_t>(checked_product(blocks, block_bases, "the border classes"));
    if (plan.counts_to_bits) plan.flips = aligned_array<uint32_t>(blocks);
    const int64_t chunks = plan.taps->chunks();
    share_out(call, chunks + blocks, 2 * job.pixels() + blocks * block_bases, [&](int64_t item) {
      if (item < chunks)
        plan.taps->fill(item);
      else
        class_bases(job, item - chunks, plan.base.get() + (item - chunks) * block_bases);
    });
  }

  // Many small pieces of work that write `words` words in all, as tasks that are worth it.
  template <class Body>
  static void share_out(Call& call, int64_t items, int64_t words, const Body& body) {
    constexpr int64_t kTaskWords = 1 << 12;  // about a microsecond
    const int64_t tasks = std::min(items, words / kTaskWords + 1);
    call.parallel_for(tasks, [&](int64_t task) {
      for (int64_t item = items * task / tasks; item < items * (task + 1) / tasks; ++item) body(item);
    });
  }

  // The activations in the order the kernel reads them; then everything that is counted.
  void count(Call& call, const Tensor& p, Job job) const {
    // A small layer notices each time that onnxruntime is asked for memory.
    alignas(64) uint32_t small_copy[kSmallCopy];
    const int64_t words = this->words(), group_words = job.layout.words();
    job.plane = p.shape.dim[2] * p.shape.dim[3];
    job.plane_words = moves_bits() ? attributes_.group * group_words : words;
    job.group_stride = group_words;
    job.x = p.as<uint32_t>();
    // A copy clears the lanes past the last channel too: should a file set them, all instruction sets still agree.
    if (moves_bits() || job.layout.paired || attributes_.channels % kWordBits != 0) {
      const int64_t planes = p.shape.dim[0] * job.s.planes * job.plane_words;
      const int64_t size = checked_product(planes, job.plane, "the copied activations");
      uint32_t* copy = size <= kSmallCopy ? small_copy : call.scratch<uint32_t>(size);
      job.x = copy;
      const int64_t pair = job.layout.paired ? 2 : 1;  // words of a group that are copied together
      const int64_t pairs_of_group = ceil_div(group_words, pair);
      share_out(call, planes / group_words * pairs_of_group, size, [&](int64_t item) {
        const int64_t in_group = item % pairs_of_group * pair, first = item / pairs_of_group * group_words + in_group;
        uint32_t* out = copy + first * job.plane;
        copy_plane(p.as<uint32_t>(), first, job, nullptr, out);
        if (pair == 2 && in_group + 1 < group_words) copy_plane(p.as<uint32_t>(), first + 1, job, out, out + job.plane);
      });
    }
    run(call, job);
  }

  // One plane of words; for a group that does not start at a word, its bits moved to do so.  Of a pair the second is
  // copied as its XOR with the `first`.
  void copy_plane(const uint32_t* p, int64_t plane, const Job& job, const uint32_t* first, uint32_t* out) const {
    const int64_t size = job.plane, words = this->words();
    const int64_t image = plane / job.plane_words, word = plane % job.plane_words;
    const int64_t length = moves_bits() ? attributes_.group_channels() : attributes_.channels;
    const int64_t length_words = ceil_div(length, kWordBits);
    const int64_t bit = word / length_words * length + word % length_words * kWordBits;  // the first channel
    const uint32_t valid = valid_lanes(length, word % length_words);
    const uint32_t* low = p + (image * words + bit / kWordBits) * size;
    const int64_t shift = bit % kWordBits;
    const bool spills = shift != 0 && bit / kWordBits + 1 < words;
    const auto copy = [&](auto word_at) {
      uint32_t* __restrict to = out;
      const uint32_t* __restrict with = first;
      if (with)
        for (int64_t i = 0; i < size; ++i) to[i] = (word_at(i) & valid) ^ with[i];
      else
        for (int64_t i = 0; i < size; ++i) to[i] = word_at(i) & valid;
    };
    if (shift == 0)
      copy([low](int64_t i) { return low[i]; });
    else if (!spills)
      copy([=](int64_t i) { return low[i] >> shift; });
    else
      copy([=](int64_t i) { return low[i] >> shift | low[size + i] << (kWordBits - shift); });
  }

  // What counting starts from, for every class of pixels: the base of all taps, plus what those that are not in the
  // padding add to it there, less what all would.  For bits, (base - threshold) / 2^shift, rounded down: the largest
  // count that still reaches the threshold.
  void class_bases(const Job& job, int64_t block, int32_t* __restrict base) const {
    int32_t from[kWordBits];
    std::copy_n(job.weights.base + block * kWordBits, kWordBits, from);
    if (job.plan.counts_to_bits) {
      const IntegerThresholds thresholds =
          integer_thresholds(job, 0, channel_of(job.s, block), channels_of(job.s, block));
      job.plan.flips[block] = thresholds.flip;
      for (int lane = 0; lane < kWordBits; ++lane) from[lane] -= thresholds.of[lane];
    }
    const int32_t shift = job.plan.counts_to_bits ? this->shift() : 0;
    if (!job.layout.padded) {
      for (int lane = 0; lane < kWordBits; ++lane) base[lane] = from[lane] >> shift;
      return;
    }
    const int64_t row = (job.s.kernel[1] + 1) * kWordBits;
    const int32_t* corners = job.weights.corners + block * job.layout.corners() * kWordBits;
    const int32_t* all = corners + job.s.kernel[0] * row + job.s.kernel[1] * kWordBits;
    for (int lane = 0; lane < kWordBits; ++lane) from[lane] -= all[lane];
    for (const TapRun& v : job.plan.taps->row_runs())
      for (const TapRun& h : job.plan.taps->column_runs()) {
        const int32_t* bottom_right = corners + v.tap_end * row + h.tap_end * kWordBits;
        const int32_t* top_right = corners + v.tap_begin * row + h.tap_end * kWordBits;
        const int32_t* bottom_left = corners + v.tap_end * row + h.tap_begin * kWordBits;
        const int32_t* top_left = corners + v.tap_begin * row + h.tap_begin * kWordBits;
        for (int lane = 0; lane < kWordBits; ++lane)
          base[lane] =
              (from[lane] + bottom_right[lane] - top_right[lane] - bottom_left[lane] + top_left[lane]) >> shift;
        base += kWordBits;
      }
  }

  // Pixels done at a time.  112 = 7 x 16: whole tiles of the accumulation, whole vectors of the epilogue, and
  // accumulators that stay in the first-level cache beside a block of weights.
  static constexpr int64_t kChunkPixels = 112;
  static constexpr int64_t kStackWords = 16384;

  static constexpr int64_t kSmallCopy = 8192;

  Tiling tiling(const Job& job) const {
    const ConvShapes& s = job.s;
    Tiling out;
    const int64_t pixels = job.pixels();
    const int64_t in_terms = s.planes * s.bases, out_terms = job.combine.outputs * s.bases;
    const int64_t pixel_words = checked_product(kWordBits, in_terms + 2 * out_terms, "the accumulators of one pixel");
    const int64_t fitting = kStackWords / pixel_words / 16 * 16;
    out.chunk = std::min(std::max<int64_t>(fitting, 16), std::min(kChunkPixels, round_up(pixels, 16)));
    // Enough tasks to share out evenly; the channel block is outermost so that its weights stay in the cache.
    constexpr int64_t kTasks = 16;
    out.block_tasks = s.y.dim[0] * attributes_.group * s.group_blocks;
    out.splits = std::min(ceil_div(pixels, out.chunk), ceil_div(kTasks, out.block_tasks));
    if (job.plan.counts_to_bits) {  // no accumulators
      out.chunk = ceil_div(pixels, out.splits);
      out.splits = ceil_div(pixels, out.chunk);
    } else if (fitting < 16) {
      out.heap_words = pixel_words * out.chunk;
    }
    return out;
  }

  void run(Call& call, const Job& job) const {
    const Tiling& tiling = job.plan.tiling;
    float* whole_v = whole_values(call, job);
    const int64_t chunks = job.plan.taps->chunks(), splits = tiling.splits;
    call.parallel_for(tiling.block_tasks * splits, [&](int64_t item) {
      alignas(64) int32_t stack[kStackWords];
      AlignedArray<int32_t> heap;
      if (tiling.heap_words) heap = aligned_array<int32_t>(tiling.heap_words);
      int32_t* scratch = heap ? heap.get() : stack;
      const int64_t split = item % splits, block = item / splits;
      for (int64_t c = chunks * split / splits; c < chunks * (split + 1) / splits; ++c)
        run_chunk(job, block, c, scratch, whole_v);
    });
    if (whole_v) pack_whole(call, job, whole_v);
  }

  // Values for all channels where a block's channels are not a word of Q: packed at the end.  Else null.
  float* whole_values(Call& call, const Outputs& out) const {
    if (!out.q || words_aligned(out.s)) return nullptr;
    return out.y && epilogue_->dtype() == ORT_FLOAT ? static_cast<float*>(out.y)
                                                    : call.scratch<float>(element_count(out.s.y, "output Y"));
  }

  void run_chunk(const Job& job, int64_t block_of_batch, int64_t index, int32_t* scratch, float* whole_v) const {
    const ConvShapes& s = job.s;
    const ConvTaps& taps = *job.plan.taps;
    const int64_t blocks = attributes_.group * s.group_blocks;
    const int64_t n = block_of_batch / blocks, block = block_of_batch % blocks;
    const int64_t chunk = job.plan.tiling.chunk, pixel = index * chunk, count = taps.pixels_of(index);
    if (job.plan.counts_to_bits) {
      XnorBitsArgs args{accumulation(job, n, 0, 0, block), job.plan.flips[block], valid_lanes(channels_of(s, block), 0),
                        words_of(job, n, block, pixel)};
      return taps.for_each_class(index, args.in, [&] { xnor_.bits(args); });
    }

    const int64_t size = chunk * kWordBits;
    int32_t* acc = scratch;
    scratch += s.planes * s.bases * size;
    for (int64_t p = 0; p < s.planes; ++p)
      for (int64_t m = 0; m < s.bases; ++m) {
        XnorAccumulateArgs args = accumulation(job, n, p, m, block);
        args.acc = acc + (p * s.bases + m) * size;
        args.acc_stride = kWordBits;
        taps.for_each_class(index, args, [&] { xnor_.accumulate(args); });
      }
    if (!job.combine.identity) {
      xnor_.combine({acc, scratch, job.combine.matrix.data(), job.combine.outputs, s.planes, s.bases, size});
      acc = scratch;
      scratch += job.combine.outputs * s.bases * size;
    }
    finish_chunk(job, n, block, pixel, count, chunk, acc, size, scratch, whole_v);
  }

  // The words of Q of one image, a block's channels and a run of pixels.
  uint32_t* words_of(const Outputs& out, int64_t n, int64_t block, int64_t pixel) const {
    const int64_t words = ceil_div(out.s.out_channels, kWordBits), channel = channel_of(out.s, block);
    return out.q + (n * out.epilogue.encode().planes * words + channel / kWordBits) * out.pixels() + pixel;
  }

  // Accumulators [pixels][32] of each term, of which there are `count` pixels, to Y and Q; scratch: [terms][chunk][32].
  void finish_chunk(const Outputs& job, int64_t n, int64_t block, int64_t pixel, int64_t count, int64_t chunk,
                    const int32_t* acc, int64_t term_stride, int32_t* scratch, float* whole_v) const {
    const ConvShapes& s = job.s;
    const int64_t channel = channel_of(s, block), channels = channels_of(s, block);
    const int64_t pixels = job.pixels();
    uint32_t* q = job.q && !whole_v ? words_of(job, n, block, pixel) : nullptr;
    if (!job.y && q && integers_suffice(job)) return pack_integers(job, n, channel, channels, acc, count, q);

    int32_t* turned = scratch;
    EpilogueArgs args{};
    job.epilogue.fill(args, n, channel, pixel, job.residual);
    args.rows = channels;
    args.lanes = count;
    args.acc = acc;
    args.acc_term_stride = term_stride;
    const int64_t at = (n * s.out_channels + channel) * pixels + pixel;
    const bool half = epilogue_->dtype() == ORT_FLOAT16;
    if (job.y && !half) args.y = static_cast<float*>(job.y) + at;
    if (job.y && half) args.y_half = static_cast<uint16_t*>(job.y) + at;
    args.y_row_stride = pixels;
    const float* v = args.y;
    int64_t v_stride = pixels;
    if (whole_v && !args.y) {
      args.v = whole_v + at;
      args.v_row_stride = pixels;
    } else if (q && !args.y) {
      v = args.v = reinterpret_cast<float*>(turned);
      v_stride = args.v_row_stride = chunk;
    }
    const PackBitsArgs pack = packing(job, n, channel, channels, pixel, count, v, v_stride, q);
    if (!epilogue_kernel_.turned_epilogue({args, turned, chunk, q ? &pack : nullptr}) && q) pack_.across(pack);
  }

  // Plane p of image n times weight basis m, for one block of filters.
  XnorAccumulateArgs accumulation(const Job& job, int64_t n, int64_t p, int64_t m, int64_t block) const {
    const int64_t group = block / job.s.group_blocks;
    const int64_t filters = m * attributes_.group * job.s.group_blocks + block;
    XnorAccumulateArgs args{};
    args.x = job.x + ((n * job.s.planes + p) * job.plane_words + group * job.group_stride) * job.plane;
    args.w = job.weights.words + filters * job.layout.k_words() * kWordBits;
    if (job.layout.masked) args.mask = job.weights.mask + filters * job.layout.k_words() * kWordBits;
    args.base = job.plan.base ? job.plan.base.get() + filters * job.plan.taps->classes() * kWordBits
                              : job.weights.base + filters * kWordBits;
    args.shift = job.plan.counts_to_bits ? 0 : shift();
    return args;
  }

  PackBitsArgs packing(const Outputs& job, int64_t n, int64_t channel, int64_t channels, int64_t pixel, int64_t count,
                       const float* v, int64_t v_stride, uint32_t* q) const {
    PackBitsArgs args{};
    args.v = v;
    args.v_row_stride = v_stride;
    args.rows = channels;
    args.lanes = count;
    job.epilogue.fill(args, n, channel, pixel);
    args.q = q;
    args.q_plane_stride = ceil_div(job.s.out_channels, kWordBits) * job.pixels();
    return args;
  }

  bool integers_suffice(const Outputs& job) const {
    const Thresholds& thresholds = job.epilogue.thresholds();
    return job.epilogue.only_threshold() && thresholds.threshold.lane_stride == 0 && thresholds.flip.lane_stride == 0 &&
           thresholds.encode->matrix.empty();
  }

  // Besides: one plane of one basis, one threshold a channel for all images, whole words.
  bool counts_suffice(const Job& job) const {
    const Thresholds& thresholds = job.epilogue.thresholds();
    const auto same_for_all_images = [&](const auto& view) {
      return job.s.y.dim[0] == 1 || view.at(0, 0, 0) == view.at(1, 0, 0);
    };
    return !job.y && words_aligned(job.s) && integers_suffice(job) && job.s.planes * job.s.bases == 1 &&
           job.combine.identity && job.epilogue.encode().planes == 1 && same_for_all_images(thresholds.threshold) &&
           same_for_all_images(thresholds.flip);
  }

  struct IntegerThresholds {
    alignas(64) int32_t of[kWordBits] = {};
    uint32_t flip = 0;
  };
  IntegerThresholds integer_thresholds(const Outputs& job, int64_t n, int64_t channel, int64_t channels,
                                       int64_t plane = 0) const {
    const Thresholds& thresholds = job.epilogue.thresholds();
    const float* threshold = thresholds.threshold.at(n, channel, 0) + plane * thresholds.threshold.plane_stride;
    IntegerThresholds out;
    float values[kWordBits] = {};
    if (thresholds.threshold.row_stride == 1)
      std::copy_n(threshold, channels, values);
    else
      for (int64_t i = 0; i < channels; ++i) values[i] = threshold[i * thresholds.threshold.row_stride];
    for (int i = 0; i < kWordBits; ++i) out.of[i] = integer_threshold(values[i]);
    if (!thresholds.flip.data) return out;
    const uint8_t* flip = thresholds.flip.at(n, channel, 0) + plane * thresholds.flip.plane_stride;
    if (thresholds.flip.row_stride == 0 && !*flip) return out;
    for (int64_t i = 0; i < channels; ++i) out.flip |= uint32_t{flip[i * thresholds.flip.row_stride] != 0} << i;
    return out;
  }

  void pack_integers(const Outputs& job, int64_t n, int64_t channel, int64_t channels, const int32_t* acc,
                     int64_t count, uint32_t* q) const {
    for (int64_t plane = 0; plane < job.epilogue.encode().planes; ++plane) {
      const IntegerThresholds thresholds = integer_thresholds(job, n, channel, channels, plane);
      pack_.accumulators({acc, thresholds.of, thresholds.flip, valid_lanes(channels, 0),
                          q + plane * ceil_div(job.s.out_channels, kWordBits) * job.pixels(), count});
    }
  }

  void pack_whole(Call& call, const Outputs& job, const float* v) const {
    const int64_t pixels = job.pixels(), channels = job.s.out_channels, words = ceil_div(channels, kWordBits);
    call.parallel_for(job.s.y.dim[0] * words, [&](int64_t item) {
      const int64_t n = item / words, channel = item % words * kWordBits;
      pack_.across(packing(job, n, channel, std::min<int64_t>(kWordBits, channels - channel), 0, pixels,
                           v + (n * channels + channel) * pixels, pixels,
                           job.q + (n * job.epilogue.encode().planes * words + channel / kWordBits) * pixels));
    });
  }

  ConvAttributes attributes_;
  const XnorAccumulateKernel& xnor_;
  const EpilogueKernel& epilogue_kernel_;
  const PackBitsKernel& pack_;
  std::array<Tensor, kXnorInputs> constants_;
  std::optional<Epilogue> epilogue_;
  std::optional<Combine> combine_;
  std::optional<XnorWeightsLayout> layout_;  // where W and mask are constant
  AlignedArray<uint32_t> buffer_;
  XnorWeights weights_;
  std::optional<LookupConv> lookup_;    // instead of these
  bool only_activations_vary_ = false;  // from call to call: P and residual
  KeptOnce<Plan> kept_;
};

}  // namespace

void add_xnor_conv(std::vector<Op>& ops) {
  for (OrtElementType y : {ORT_FLOAT, ORT_FLOAT16}) {
    std::vector<OrtElementType> inputs(kXnorInputs, ORT_FLOAT);
    inputs[kP] = inputs[kW] = inputs[kMask] = ORT_UINT32;
    inputs[kResidual] = y;
    inputs[kFlip] = ORT_BOOL;
    ops.push_back(make_op<XnorConv>(inputs, {y, ORT_UINT32}, true));
  }
}

}  // namespace binarize
