// XnorConv(P, W, epilogue...; channels, group, strides, pads, dilations, pad_value, x_low, dtype) -> Y, Q
//
// A call: copy the activations where there is padding (or where a group's channels do not start at a word); then, for
// each block of 32 output channels and run of output pixels, accumulate, turn the accumulators to channels x pixels,
// apply the epilogue and pack.
#include <algorithm>
#include <array>
#include <optional>

#include "cpu/xnor_accumulate/xnor_accumulate.h"
#include "ops/epilogue.h"
#include "ops/lookup_conv.h"
#include "ops/offsets.h"
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
  // Out-of-bounds taps read words of zeros or ones; what they should contribute beyond that is this, times their
  // weights.
  int64_t border_correction() const {
    if (x_low == -1 && pad_value == 0) return 1;
    if (x_low == 0 && pad_value == -1) return -1;
    return 0;
  }
  bool corrects_borders() const { return padded() && border_correction() != 0; }
};

struct ConvShapes {
  int64_t planes = kUnknown, bases = kUnknown, out_channels = kUnknown;
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

// The kernel taps in bounds for one output row or column: [begin, end).
struct TapRange {
  int32_t begin, end;
  bool operator==(const TapRange& other) const { return begin == other.begin && end == other.end; }
};

// The distinct ranges along one axis, and which of them each output position has.
struct BorderClasses {
  std::vector<TapRange> ranges;
  std::vector<int32_t> of_position;

  BorderClasses(const ConvAttributes& attributes, const ConvShapes& shapes, int axis, int64_t size) {
    const int64_t kernel = shapes.kernel[axis], dilation = attributes.dilations[axis];
    const auto taps_before = [&](int64_t distance) {  // taps whose offset is less than `distance`
      if (distance <= 0) return int32_t{0};
      return static_cast<int32_t>(distance > (kernel - 1) * dilation ? kernel : ceil_div(distance, dilation));
    };
    of_position.reserve(static_cast<size_t>(shapes.y.dim[2 + axis]));
    for (int64_t i = 0; i < shapes.y.dim[2 + axis]; ++i) {
      const int64_t pad_left = attributes.pads[axis] - i * attributes.strides[axis];
      const TapRange range{taps_before(pad_left), taps_before(pad_left + size)};
      if (ranges.empty() || !(ranges.back() == range)) ranges.push_back(range);  // both ends only fall: none returns
      of_position.push_back(static_cast<int32_t>(ranges.size()) - 1);
    }
  }
};

// acc >= integer_threshold(t) is float(acc) >= t, for every |acc| < 2^24.  The thresholds that are always or never
// reached are 2^26 away: differences of them and accumulators do not overflow.
int32_t integer_threshold(float t) {
  constexpr float kBeyond = 1 << 24;
  if (!(t <= kBeyond)) return 1 << 26;  // NaN too: never
  if (t < -kBeyond) return -(1 << 26);
  const int32_t toward_zero = static_cast<int32_t>(t);
  return toward_zero + (static_cast<float>(toward_zero) < t);
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
    Tensor in[kXnorInputs];
    Shape shapes[kXnorInputs];
    for (size_t i = 0; i < kXnorInputs; ++i) {
      in[i] = constants_[i].data ? constants_[i] : call.input(i, kInputNames[i]);
      shapes[i] = in[i].shape;
    }
    for (size_t i : {+kP, +kW, size_t{kMask}}) expect_type(in[i], kInputNames[i], ORT_UINT32);
    const ConvShapes s = check_conv(attributes_, shapes);
    void* y = call.output(0, s.y);
    uint32_t* q = static_cast<uint32_t*>(call.output(1, s.q));
    if (!y && !q) return;

    std::optional<Combine> run_time_combine;
    if (!combine_) run_time_combine = read_combine(in[kCombine], s.k);
    const Combine& combine = combine_ ? *combine_ : *run_time_combine;
    const EpilogueCall epilogue(call, *epilogue_, in, s.y);
    const Outputs outputs{s, combine, epilogue, y, q};
    const LookupConv::Images images{in[kP].as<uint32_t>(), s.y.dim[0], in[kP].shape.dim[2],
                                    in[kP].shape.dim[3],   s.y.dim[2], s.y.dim[3]};
    if (lookup_ && lookup_->fits(images)) return look_up(call, images, outputs);
    XnorWeights weights = weights_;
    XnorWeightsLayout layout;
    if (layout_) {
      layout = *layout_;
    } else {
      layout = weights_layout(s, in);
      weights = XnorWeights(layout, call.scratch<uint32_t>(layout.buffer_words()));
      call.parallel_for(layout.blocks, [&](int64_t block) { fill_weights(s, in, layout, weights, block); });
    }
    Job job{outputs, layout, weights};
    prepare(call, in[kP], job);
    run(call, job);
  }

 private:
  // What becomes of the accumulators.
  struct Outputs {
    const ConvShapes& s;
    const Combine& combine;
    const EpilogueCall& epilogue;
    void* y;
    uint32_t* q;

    int64_t pixels() const { return s.y.dim[2] * s.y.dim[3]; }
  };

  struct Job : Outputs {
    const XnorWeightsLayout& layout;
    const XnorWeights& weights;
    // Activations, padded: [N][planes][plane_words][height][width]
    const uint32_t* x = nullptr;
    int64_t plane_words = 0, group_stride = 0, height = 0, width = 0;
    const int32_t *row_offset = nullptr, *row_class = nullptr, *k_offset = nullptr;
    const int32_t* base = nullptr;  // [blocks][classes][32]
    int64_t classes = 1;
    // Bits straight from the counts: a set bit is base >= count, where base holds (base - threshold) / 2^shift.
    bool counts_to_bits = false;
    uint32_t* flips = nullptr;  // [blocks]
  };

  // Whether a group's channels do not start at a word of the densely packed input.
  bool moves_bits() const { return attributes_.group > 1 && attributes_.group_channels() % kWordBits != 0; }
  int64_t group_out(const ConvShapes& s) const { return s.out_channels / attributes_.group; }
  int64_t group_blocks(const ConvShapes& s) const { return ceil_div(group_out(s), kWordBits); }
  // The first output channel of a block, how many it has, and whether every block's channels are a word of Q.
  int64_t channel_of(const ConvShapes& s, int64_t block) const {
    return block / group_blocks(s) * group_out(s) + block % group_blocks(s) * kWordBits;
  }
  int64_t channels_of(const ConvShapes& s, int64_t block) const {
    return std::min<int64_t>(kWordBits, group_out(s) - block % group_blocks(s) * kWordBits);
  }
  bool words_aligned(const ConvShapes& s) const { return attributes_.group == 1 || group_out(s) % kWordBits == 0; }
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
    layout.group_outputs = group_out(s);
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

  void look_up(Call& call, const LookupConv::Images& images, const Outputs& outputs) const {
    float* whole_v = whole_values(call, outputs);
    lookup_->run(call, images, kWordBits * outputs.s.bases, [&](const LookupConv::Accumulators& of, int32_t* scratch) {
      finish_chunk(outputs, of.image, of.block, of.pixel, of.count, of.stride, of.acc, scratch, whole_v);
    });
    if (whole_v) pack_whole(call, outputs, whole_v);
  }

  XnorWeightsLayout weights_layout(const ConvShapes& s, const Tensor* in) const {
    XnorWeightsLayout layout;
    expect_type(in[kW], "W", ORT_UINT32);
    expect_type(in[kMask], "mask", ORT_UINT32);
    layout.blocks = s.bases * attributes_.group * group_blocks(s);
    layout.length = attributes_.group_channels();
    layout.kernel[0] = s.kernel[0];
    layout.kernel[1] = s.kernel[1];
    layout.x_low = attributes_.x_low;
    layout.masked = !mask_is_neutral(in[kMask], 1, layout.length);
    layout.tap_sums = attributes_.corrects_borders();
    layout.paired = xnor_.pairs && !layout.masked && layout.words() > 1;
    return layout;
  }

  // Blocks are ordered basis, group, block of the group; more than one basis only without groups.
  void fill_weights(const ConvShapes& s, const Tensor* in, const XnorWeightsLayout& layout, const XnorWeights& weights,
                    int64_t block) const {
    const int64_t per_group = group_blocks(s), first_in_group = block % per_group * kWordBits;
    const BroadcastStrides w = broadcast_strides(in[kW].shape, in[kW].shape);
    const BroadcastStrides mask = broadcast_strides(in[kMask].shape, in[kW].shape);
    WeightSource source{in[kW].as<uint32_t>(),
                        {in[kW].shape.dim[0] == 1 ? 0 : w.stride[0], w.stride[1], w.stride[2], w.stride[3]},
                        in[kMask].as<uint32_t>(),
                        {mask.stride[0], mask.stride[1], mask.stride[2], mask.stride[3]}};
    fill_block(layout, weights, block, source, block / per_group * group_out(s) + first_in_group,
               std::min<int64_t>(kWordBits, group_out(s) - first_in_group));
  }

  // Activations in the order the kernel reads them, and the tables of offsets and border classes.
  void prepare(Call& call, const Tensor& p, Job& job) const {
    const ConvShapes& s = job.s;
    const int64_t words = this->words(), group_words = job.layout.words();
    const int64_t in_height = p.shape.dim[2], in_width = p.shape.dim[3];
    job.height = in_height + attributes_.pads[0] + attributes_.pads[2];
    job.width = in_width + attributes_.pads[1] + attributes_.pads[3];
    job.plane_words = moves_bits() ? attributes_.group * group_words : words;
    job.group_stride = group_words;
    const int64_t planes = p.shape.dim[0] * s.planes * job.plane_words;
    const int64_t plane_size = checked_product(job.height, job.width, "the padded input");
    const bool copied = moves_bits() || attributes_.padded() || job.layout.paired;
    uint32_t* copy = copied ? call.scratch<uint32_t>(checked_product(planes, plane_size, "the padded input")) : nullptr;
    job.x = copied ? copy : p.as<uint32_t>();

    const int64_t rows = s.y.dim[2], columns = s.y.dim[3];
    int32_t* row_offset = call.scratch<int32_t>(job.pixels());
    int32_t* column_offset = call.scratch<int32_t>(columns);
    const int64_t stride = std::min(attributes_.strides[1], job.width);
    for (int64_t x = 0; x < columns; ++x) column_offset[x] = static_cast<int32_t>(x * stride);
    for (int64_t y = 0; y < rows; ++y)
      add_to_each(column_offset, columns, static_cast<int32_t>(y * attributes_.strides[0] * job.width),
                  row_offset + y * columns);
    job.row_offset = row_offset;
    int32_t* k_offset = call.scratch<int32_t>(job.layout.k_words());
    job.k_offset = k_offset;
    for (int64_t y = 0; y < s.kernel[0]; ++y)
      for (int64_t x = 0; x < s.kernel[1]; ++x)
        for (int64_t c = 0; c < group_words; ++c)
          k_offset[job.layout.position(y * s.kernel[1] + x, c)] = static_cast<int32_t>(
              c * plane_size + y * attributes_.dilations[0] * job.width + x * attributes_.dilations[1]);

    const int64_t pair = job.layout.paired ? 2 : 1;  // words of a group that are copied together
    const int64_t pairs_of_group = ceil_div(group_words, pair);
    const int64_t copies = copied ? planes / group_words * pairs_of_group : 0;
    const auto copy_words = [&](int64_t item) {
      const int64_t in_group = item % pairs_of_group * pair, first = item / pairs_of_group * group_words + in_group;
      uint32_t* out = copy + first * plane_size;
      copy_plane<false>(p.as<uint32_t>(), first, in_height, in_width, job, nullptr, out);
      if (pair == 2 && in_group + 1 < group_words)
        copy_plane<true>(p.as<uint32_t>(), first + 1, in_height, in_width, job, out, out + plane_size);
    };
    job.counts_to_bits = counts_suffice(job);
    std::optional<BorderClasses> vertical, horizontal;
    if (job.layout.tap_sums) {
      vertical.emplace(attributes_, s, 0, in_height);
      horizontal.emplace(attributes_, s, 1, in_width);
      const int64_t class_columns = static_cast<int64_t>(horizontal->ranges.size());
      job.classes = checked_product(static_cast<int64_t>(vertical->ranges.size()), class_columns, "the border classes");
      int32_t* row_class = call.scratch<int32_t>(job.pixels());
      for (int64_t y = 0; y < rows; ++y) {
        const int64_t first = vertical->of_position[static_cast<size_t>(y)] * class_columns;
        add_to_each(horizontal->of_position.data(), columns, static_cast<int32_t>(first), row_class + y * columns);
      }
      job.row_class = row_class;
    }
    if (!job.layout.tap_sums && !job.counts_to_bits) {
      job.base = job.weights.base;
      if (copies) call.parallel_for(copies, copy_words);
      return;
    }
    const int64_t block_bases = job.classes * kWordBits;
    int32_t* base = call.scratch<int32_t>(checked_product(job.layout.blocks, block_bases, "the border classes"));
    job.base = base;
    if (job.counts_to_bits) job.flips = call.scratch<uint32_t>(job.layout.blocks);
    call.parallel_for(copies + job.layout.blocks, [&](int64_t item) {
      if (item < copies) return copy_words(item);
      const int64_t block = item - copies;
      int32_t* block_base = base + block * block_bases;
      if (job.layout.tap_sums)
        border_bases(job, *vertical, *horizontal, block, block_base);
      else
        std::copy_n(job.weights.base + block * kWordBits, kWordBits, block_base);
      if (job.counts_to_bits) subtract_thresholds(job, block, block_base);
    });
  }

  // One plane of words with its border; for a group that does not start at a word, its bits moved to do so.  Of a pair
  // the second is copied as its XOR with the `first`.
  template <bool second>
  void copy_plane(const uint32_t* p, int64_t plane, int64_t in_height, int64_t in_width, const Job& job,
                  const uint32_t* first, uint32_t* out) const {
    const int64_t size = in_height * in_width, words = this->words();
    const int64_t image = plane / job.plane_words, word = plane % job.plane_words;
    const int64_t length = moves_bits() ? attributes_.group_channels() : attributes_.channels;
    const int64_t length_words = ceil_div(length, kWordBits);
    const int64_t bit = word / length_words * length + word % length_words * kWordBits;  // the first channel
    const uint32_t valid = valid_lanes(length, word % length_words);
    const uint32_t* low = p + (image * words + bit / kWordBits) * size;
    const int64_t shift = bit % kWordBits;
    const bool spills = shift != 0 && bit / kWordBits + 1 < words;
    // The word before the second of a pair is whole.
    const uint32_t border = attributes_.pad_value == 1 ? (second ? ~valid : valid) : 0;
    const auto copy_row = [&](auto word_at) {
      const uint32_t* __restrict with = first;
      uint32_t* __restrict to = out;
      for (int64_t x = 0; x < in_width; ++x) to[x] = (word_at(x) & valid) ^ (second ? with[x] : 0);
    };
    const auto skip = [&](int64_t count) {
      out += count;
      if (second) first += count;
    };
    const auto pad = [&](int64_t count) {
      std::fill_n(out, count, border);
      skip(count);
    };
    pad(attributes_.pads[0] * job.width);
    for (int64_t y = 0; y < in_height; ++y, low += in_width) {
      pad(attributes_.pads[1]);
      if (shift == 0)
        copy_row([low](int64_t x) { return low[x]; });
      else if (!spills)
        copy_row([=](int64_t x) { return low[x] >> shift; });
      else
        copy_row([=](int64_t x) { return low[x] >> shift | low[size + x] << (kWordBits - shift); });
      skip(in_width);
      pad(attributes_.pads[3]);
    }
    pad(attributes_.pads[2] * job.width);
  }

  void border_bases(const Job& job, const BorderClasses& vertical, const BorderClasses& horizontal, int64_t block,
                    int32_t* __restrict base) const {
    const int64_t row = (job.s.kernel[1] + 1) * kWordBits;
    const int32_t* corners = job.weights.corners + block * job.layout.corners() * kWordBits;
    const int32_t* inside = job.weights.base + block * kWordBits;
    const int32_t* all = corners + job.s.kernel[0] * row + job.s.kernel[1] * kWordBits;
    const int32_t sign = attributes_.border_correction() < 0 ? -1 : 0;  // (v ^ -1) - -1 is -v
    for (const TapRange& v : vertical.ranges)
      for (const TapRange& h : horizontal.ranges) {
        const int32_t* bottom_right = corners + v.end * row + h.end * kWordBits;
        const int32_t* top_right = corners + v.begin * row + h.end * kWordBits;
        const int32_t* bottom_left = corners + v.end * row + h.begin * kWordBits;
        const int32_t* top_left = corners + v.begin * row + h.begin * kWordBits;
        for (int lane = 0; lane < kWordBits; ++lane) {
          const int32_t outside = all[lane] - bottom_right[lane] + top_right[lane] + bottom_left[lane] - top_left[lane];
          base[lane] = inside[lane] + ((outside ^ sign) - sign);
        }
        base += kWordBits;
      }
  }

  // base -> (base - threshold) / 2^shift, rounded down: the largest count that still reaches the threshold.
  void subtract_thresholds(const Job& job, int64_t block, int32_t* base) const {
    const IntegerThresholds thresholds =
        integer_thresholds(job, 0, channel_of(job.s, block), channels_of(job.s, block));
    const int32_t shift = this->shift();
    job.flips[block] = thresholds.flip;
    for (int64_t i = 0; i < job.classes; ++i, base += kWordBits)
      for (int lane = 0; lane < kWordBits; ++lane) base[lane] = (base[lane] - thresholds.of[lane]) >> shift;
  }

  // Pixels done at a time.  112 = 7 x 16: whole tiles of the accumulation, whole vectors of the epilogue, and
  // accumulators that stay in the first-level cache beside a block of weights.
  static constexpr int64_t kChunkPixels = 112;
  static constexpr int64_t kStackWords = 16384;

  void run(Call& call, const Job& job) const {
    const ConvShapes& s = job.s;
    const int64_t in_terms = s.planes * s.bases, out_terms = job.combine.outputs * s.bases;
    const int64_t pixel_words = checked_product(kWordBits, in_terms + 2 * out_terms, "the accumulators of one pixel");
    const int64_t fitting = kStackWords / pixel_words / 16 * 16;
    const int64_t chunk = std::min(std::max<int64_t>(fitting, 16), std::min(kChunkPixels, round_up(job.pixels(), 16)));
    const int64_t chunks = ceil_div(job.pixels(), chunk);
    // Enough tasks to share out evenly; the channel block is outermost so that its weights stay in the cache.
    constexpr int64_t kTasks = 16;
    const int64_t block_tasks = s.y.dim[0] * attributes_.group * group_blocks(s);
    const int64_t splits = std::min(chunks, ceil_div(kTasks, block_tasks));

    float* whole_v = whole_values(call, job);
    call.parallel_for(block_tasks * splits, [&](int64_t item) {
      alignas(64) int32_t stack[kStackWords];
      AlignedArray<int32_t> heap;
      if (fitting < 16) heap = aligned_array<int32_t>(pixel_words * chunk);
      int32_t* scratch = heap ? heap.get() : stack;
      const int64_t split = item % splits, block = item / splits;
      for (int64_t c = chunks * split / splits; c < chunks * (split + 1) / splits; ++c)
        run_chunk(job, block, c * chunk, std::min(chunk, job.pixels() - c * chunk), chunk, scratch, whole_v);
    });
    if (whole_v) pack_whole(call, job, whole_v);
  }

  // Values for all channels where a block's channels are not a word of Q: packed at the end.  Else null.
  float* whole_values(Call& call, const Outputs& out) const {
    if (!out.q || words_aligned(out.s)) return nullptr;
    return out.y && epilogue_->dtype() == ORT_FLOAT ? static_cast<float*>(out.y)
                                                    : call.scratch<float>(element_count(out.s.y, "output Y"));
  }

  void run_chunk(const Job& job, int64_t block_of_batch, int64_t pixel, int64_t count, int64_t chunk, int32_t* scratch,
                 float* whole_v) const {
    const ConvShapes& s = job.s;
    const int64_t blocks = attributes_.group * group_blocks(s);
    const int64_t n = block_of_batch / blocks, block = block_of_batch % blocks;
    const int64_t size = chunk * kWordBits;
    if (job.counts_to_bits)
      return xnor_.bits({accumulation(job, n, 0, 0, block, pixel, count, nullptr), job.flips[block],
                         valid_lanes(channels_of(s, block), 0), words_of(job, n, block, pixel)});

    int32_t* acc = scratch;
    scratch += s.planes * s.bases * size;
    for (int64_t p = 0; p < s.planes; ++p)
      for (int64_t m = 0; m < s.bases; ++m)
        xnor_.accumulate(accumulation(job, n, p, m, block, pixel, count, acc + (p * s.bases + m) * size));
    if (!job.combine.identity) {
      xnor_.combine({acc, scratch, job.combine.matrix.data(), job.combine.outputs, s.planes, s.bases, size});
      acc = scratch;
      scratch += job.combine.outputs * s.bases * size;
    }
    finish_chunk(job, n, block, pixel, count, size, acc, scratch, whole_v);
  }

  // The words of Q of one image, a block's channels and a run of pixels.
  uint32_t* words_of(const Outputs& out, int64_t n, int64_t block, int64_t pixel) const {
    const int64_t words = ceil_div(out.s.out_channels, kWordBits), channel = channel_of(out.s, block);
    return out.q + (n * out.epilogue.encode().planes * words + channel / kWordBits) * out.pixels() + pixel;
  }

  // Accumulators [terms][size / 32][32], of which there are `count` pixels, to Y and Q; scratch: as large.
  void finish_chunk(const Outputs& job, int64_t n, int64_t block, int64_t pixel, int64_t count, int64_t size,
                    const int32_t* acc, int32_t* scratch, float* whole_v) const {
    const ConvShapes& s = job.s;
    const int64_t channel = channel_of(s, block), channels = channels_of(s, block);
    const int64_t pixels = job.pixels(), chunk = size / kWordBits;
    uint32_t* q = job.q && !whole_v ? words_of(job, n, block, pixel) : nullptr;
    if (!job.y && q && integers_suffice(job)) return pack_integers(job, n, channel, channels, acc, count, q);

    int32_t* turned = scratch;
    EpilogueArgs args{};
    job.epilogue.fill(args, n, channel, pixel);
    args.rows = channels;
    args.lanes = count;
    args.acc = acc;
    args.acc_term_stride = size;
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

  // Plane p of image n times weight basis m, for one block of filters and a run of pixels.
  XnorAccumulateArgs accumulation(const Job& job, int64_t n, int64_t p, int64_t m, int64_t block, int64_t pixel,
                                  int64_t count, int32_t* acc) const {
    const int64_t group = block / group_blocks(job.s);
    const int64_t filters = m * attributes_.group * group_blocks(job.s) + block;
    XnorAccumulateArgs args{};
    args.x = job.x + ((n * job.s.planes + p) * job.plane_words + group * job.group_stride) * job.height * job.width;
    args.row_offset = job.row_offset + pixel;
    args.k_offset = job.k_offset;
    args.w = job.weights.words + filters * job.layout.k_words() * kWordBits;
    if (job.layout.masked) args.mask = job.weights.mask + filters * job.layout.k_words() * kWordBits;
    args.base = job.base + filters * job.classes * kWordBits;
    if (job.row_class) args.row_class = job.row_class + pixel;
    args.acc = acc;
    args.acc_stride = kWordBits;
    args.rows = count;
    args.k_words = static_cast<int32_t>(job.layout.k_words());
    args.pairs = static_cast<int32_t>(job.layout.pairs());
    args.shift = job.counts_to_bits ? 0 : shift();
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
    for (int64_t i = 0; i < channels; ++i)
      out.of[i] = integer_threshold(threshold[i * thresholds.threshold.row_stride]);
    if (!thresholds.flip.data) return out;
    const uint8_t* flip = thresholds.flip.at(n, channel, 0) + plane * thresholds.flip.plane_stride;
    for (int64_t i = 0; i < channels; ++i)
      if (flip[i * thresholds.flip.row_stride]) out.flip |= uint32_t{1} << i;
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
  std::optional<LookupConv> lookup_;  // instead of these
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
