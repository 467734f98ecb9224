#include "fuzz/node_from_bytes.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>

namespace binarize::mock {
namespace {

constexpr int64_t kMostElements = 1 << 17;  // a tensor with more has no data, and the kernel is not called

// Reads choices; once the bytes are used up every choice is the first, which is the simplest.
class Choices {
 public:
  Choices(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}

  uint8_t byte() { return at_ < end_ ? *at_++ : 0; }
  int64_t below(int64_t n) { return byte() % n; }
  bool one_in(int n) { return below(n) == n - 1; }
  template <class T, size_t n>
  T of(const T (&values)[n]) {
    return values[below(n)];
  }
  int64_t any_integer() {
    constexpr int64_t kOdd[] = {-1,
                                0,
                                1,
                                2,
                                3,
                                7,
                                31,
                                32,
                                33,
                                64,
                                255,
                                65535,
                                46341,
                                100000,
                                -2,
                                -1000000,
                                int64_t{1} << 24,
                                (int64_t{1} << 24) - 1,
                                (int64_t{1} << 31) - 1,
                                int64_t{1} << 31,
                                int64_t{1} << 32,
                                (int64_t{1} << 31) - 32,
                                int64_t{1} << 30,
                                int64_t{1} << 40,
                                int64_t{1} << 62,
                                std::numeric_limits<int64_t>::max(),
                                std::numeric_limits<int64_t>::min()};
    return kOdd[below(std::size(kOdd))];
  }

 private:
  const uint8_t *at_, *end_;
};

// Values of tensors: many, so they come from a seed.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  uint32_t word() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<uint32_t>(state_ >> 16);
  }

 private:
  uint64_t state_;
};

// What the values of an input are.
enum class Role { words, real, flags, integers, zero_one, positive_one, minus_zero, identity, powers, positions };

struct Slot {
  Role role = Role::real;
  int word_axis = 0;   // words: where they lie,
  int64_t lanes = 0;   // and how many lanes each plane has
  bool dirty = false;  // words: lanes past the last are set
};

struct Draft {
  Sample sample;
  std::vector<Slot> slots;

  void attribute(const char* name, int64_t value) {
    sample.node.attributes.push_back({name, Attribute::integer, {value}});
  }
  void attribute(const char* name, std::vector<int64_t> values) {
    sample.node.attributes.push_back({name, Attribute::integers, std::move(values)});
  }
  void input(OrtElementType type, Dims dims, Slot slot, bool constant) {
    Input input;
    input.constant = constant;
    input.tensor.type = type;
    input.tensor.dims = std::move(dims);
    sample.node.inputs.push_back(input);
    slots.push_back(slot);
  }
};

int64_t words_of(int64_t lanes) { return (lanes + 31) / 32; }

// A shape that broadcasts to `target`: some axes 1, leading ones sometimes dropped.
Dims broadcast_to(Choices& from, const Dims& target) {
  const int64_t how = from.below(6);
  Dims dims = target;
  if (how == 0) dims.assign(target.size(), 1);
  if (how >= 2)
    for (int64_t& d : dims) d = from.one_in(2) ? 1 : d;
  if (how >= 4)
    while (!dims.empty() && dims.front() == 1) dims.erase(dims.begin());
  return dims;
}

constexpr int64_t kLanes[] = {1, 32, 33, 31, 64, 2, 7, 40, 63, 65, 96, 16};
constexpr int64_t kFew[] = {1, 2, 3, 4, 5};

// Inputs threshold, encode and flip of a value of shape `v` packed on `axis`.
void add_thresholds(Choices& from, Draft& draft, const Dims& v, int64_t axis, bool constant) {
  int64_t thresholds = from.of({1, 1, 1, 2, 3}), planes = from.one_in(3) ? from.of(kFew) : thresholds;
  const bool positional = from.one_in(4);
  if (positional) {
    planes = from.of({2, 3, 4, 5, 6, 7});
    thresholds = (int64_t{1} << planes) - 1;
  }
  Dims with_thresholds = v, with_flips = v;
  with_thresholds.insert(with_thresholds.begin() + axis, thresholds);
  with_flips.insert(with_flips.begin() + axis, planes);
  Dims threshold = broadcast_to(from, with_thresholds);
  if (thresholds > 1) {  // its plane axis must be written out
    const size_t from_end = v.size() - static_cast<size_t>(axis) + 1;
    while (threshold.size() < from_end) threshold.insert(threshold.begin(), 1);
    threshold[threshold.size() - from_end] = thresholds;
  }
  draft.input(ORT_FLOAT, threshold, {Role::real, 0, 0, false}, constant && !from.one_in(6));
  const bool identity = planes == thresholds && !from.one_in(3);
  const Role code = positional ? Role::positions : identity ? Role::identity : Role::zero_one;
  draft.input(ORT_FLOAT, {planes, thresholds}, {code, 0, 0, false}, constant && !from.one_in(6));
  draft.input(ORT_BOOL, broadcast_to(from, with_flips), {Role::flags, 0, 0, false}, constant && !from.one_in(6));
}

struct EpilogueChoice {
  Dims mask, neutral_mask;
  int mask_axis;
  int64_t lanes, planes, bases, channels, channel_axis;
  Dims out, vector, scale;  // scale without its terms
};

void add_epilogue(Choices& from, Draft& draft, const EpilogueChoice& e, OrtElementType type) {
  const bool bare = from.one_in(4);  // a layer that makes bits and nothing else: integers suffice
  const bool constant = bare || !from.one_in(5), plain = bare || from.one_in(3);
  const auto neutral = [&] { return plain || from.one_in(2); };
  const auto held = [&] { return bare || (constant && !from.one_in(8)); };
  const bool masked = !neutral();
  draft.input(ORT_UINT32, masked ? e.mask : e.neutral_mask, {Role::words, e.mask_axis, e.lanes, !masked}, held());
  const bool merged = !bare && from.one_in(3);
  const bool numbers = !bare && from.one_in(3);
  const int64_t terms = numbers ? 1 : merged ? from.of(kFew) : e.planes;
  const Role combine = numbers ? Role::powers : merged ? Role::integers : Role::identity;
  draft.input(ORT_FLOAT, {terms, e.planes}, {combine, 0, 0, false}, held());
  Dims scale = e.scale;
  scale.insert(scale.begin(), terms * e.bases);
  draft.input(ORT_FLOAT, scale, {neutral() ? Role::positive_one : Role::real, 0, 0, false}, held());
  const auto operand = [&](const Dims& target, Role idle, OrtElementType of) {
    const bool idles = neutral();
    Dims dims = idles ? Dims(target.size(), 1) : broadcast_to(from, target);
    draft.input(of, dims, {idles ? idle : Role::real, 0, 0, false}, held());
  };
  operand(e.out, Role::positive_one, ORT_FLOAT);     // gate
  operand(e.vector, Role::minus_zero, ORT_FLOAT);    // bias
  operand(e.vector, Role::positive_one, ORT_FLOAT);  // slope_pre
  Dims residual = e.out;                             // its channels may repeat
  int64_t& channels = residual[static_cast<size_t>(e.channel_axis)];
  const int64_t fraction = from.of({1, 1, 2, 3});
  if (channels % fraction == 0) channels /= fraction;
  const bool idles = neutral();
  if (idles) residual.assign(residual.size(), 1);
  for (size_t i = 0; !idles && i < residual.size(); ++i)
    if (from.one_in(4)) residual[i] = 1;
  draft.input(type, residual, {idles ? Role::minus_zero : Role::real, 0, 0, false},
              bare || (held() && !from.one_in(2)));
  operand(e.vector, Role::minus_zero, ORT_FLOAT);    // shift
  operand(e.vector, Role::positive_one, ORT_FLOAT);  // slope
  operand(e.vector, Role::minus_zero, ORT_FLOAT);    // offset
  Dims thresholds = e.out;
  for (size_t i = 0; bare && i < thresholds.size(); ++i)
    if (static_cast<int64_t>(i) != e.channel_axis) thresholds[i] = 1;
  add_thresholds(from, draft, thresholds, e.channel_axis, constant);
  const int64_t wanted = bare ? 1 + from.below(2) * from.below(2) : from.below(8);
  draft.sample.node.wanted = {wanted != 1 && wanted != 7, wanted != 2 && wanted != 7};
}

// Sizes, pads, strides, dilations of a window that gives `out` >= 1 positions.
struct Window {
  int64_t kernel[2], strides[2], dilations[2], pads[4], size[2], out[2];
  explicit Window(Choices& from) {
    for (int i = 0; i < 2; ++i) {
      kernel[i] = from.of({1, 3, 2, 5});
      strides[i] = from.of({1, 1, 2, 3});
      dilations[i] = from.of({1, 1, 2, 4});
      const bool wide = from.one_in(12);
      for (int side : {i, i + 2}) pads[side] = wide ? from.below(20) : from.of({0, 1, 1, 2});
      const int64_t span = dilations[i] * (kernel[i] - 1) + 1;
      const int64_t extra = from.one_in(10) ? from.below(60) : from.below(7);
      size[i] = std::max<int64_t>(1, span - pads[i] - pads[i + 2]) + extra;
      out[i] = (size[i] + pads[i] + pads[i + 2] - span) / strides[i] + 1;
    }
  }
  std::vector<int64_t> two(const int64_t (&values)[2]) const { return {values[0], values[1]}; }
};

void xnor_conv(Choices& from, Draft& draft) {
  const bool grouped = from.one_in(4);
  const int64_t group = grouped ? from.of({2, 3, 4, 33}) : 1;
  const int64_t in = grouped ? from.of({1, 2, 8, 32, 33}) : from.of(kLanes);
  const int64_t filters = grouped ? from.of({1, 2, 3, 32, 33}) : from.of(kLanes);
  const int64_t planes = from.of({1, 1, 1, 2, 3, 4, 6}), bases = grouped ? 1 : from.of({1, 1, 1, 2, 3});
  const int64_t batch = from.of({1, 1, 2}), type = from.one_in(3) ? ORT_FLOAT16 : ORT_FLOAT;
  const Window window(from);
  const int64_t channels = group * in, outputs = group * filters;
  draft.attribute("channels", channels);
  draft.attribute("group", group);
  draft.attribute("strides", window.two(window.strides));
  draft.attribute("pads", {std::begin(window.pads), std::end(window.pads)});
  draft.attribute("dilations", window.two(window.dilations));
  draft.attribute("pad_value", from.below(3) - 1);
  draft.attribute("x_low", from.below(2) - 1);
  draft.attribute("dtype", type);
  draft.input(ORT_UINT32, {batch, planes * words_of(channels), window.size[0], window.size[1]},
              {Role::words, 1, channels, false}, from.one_in(16));
  const Dims w{bases * outputs, words_of(in), window.kernel[0], window.kernel[1]};
  draft.input(ORT_UINT32, w, {Role::words, 1, in, false}, !from.one_in(4));
  add_epilogue(from, draft,
               {w,
                {1, words_of(in), 1, 1},
                1,
                in,
                planes,
                bases,
                outputs,
                1,
                {batch, outputs, window.out[0], window.out[1]},
                {outputs, 1, 1},
                {outputs, 1, 1}},
               static_cast<OrtElementType>(type));
}

void xnor_matmul(Choices& from, Draft& draft) {
  const int64_t k = from.of(kLanes), columns = from.one_in(8) ? 130 + from.below(150) : from.of(kLanes);
  const int64_t rows = from.one_in(8) ? 28 + from.below(60) : from.of(kFew);
  const int64_t planes = from.of({1, 1, 1, 2, 3, 4, 6}), bases = from.of({1, 1, 1, 2, 3});
  const int64_t type = from.one_in(3) ? ORT_FLOAT16 : ORT_FLOAT;
  Dims batch;
  for (int64_t i = from.of({0, 0, 1, 1, 2, 3}); i > 0; --i) batch.push_back(from.of(kFew));
  Dims a = batch, b = batch, out = batch, flat(batch.size(), 1);
  const bool one_b = from.one_in(2);
  for (size_t i = 0; i < batch.size(); ++i) {
    if (one_b) b[i] = 1;
    if (from.one_in(5)) b[i] = 1;
    if (from.one_in(5)) a[i] = 1;
    out[i] = std::max(a[i], b[i]);
  }
  if (one_b && from.one_in(2)) b.clear();
  a.insert(a.end(), {rows, planes * words_of(k)});
  b.insert(b.end(), {words_of(k), bases * columns});
  out.insert(out.end(), {rows, columns});
  draft.attribute("k", k);
  draft.attribute("x_low", from.below(2) - 1);
  draft.attribute("dtype", type);
  draft.input(ORT_UINT32, a, {Role::words, static_cast<int>(a.size()) - 1, k, false}, from.one_in(16));
  draft.input(ORT_UINT32, b, {Role::words, static_cast<int>(b.size()) - 2, k, false}, !from.one_in(4));
  Dims mask = b;
  for (size_t i = 0; i + 2 < mask.size(); ++i)
    if (from.one_in(3)) mask[i] = 1;
  add_epilogue(from, draft,
               {mask,
                {words_of(k), 1},
                static_cast<int>(b.size()) - 2,
                k,
                planes,
                bases,
                columns,
                static_cast<int64_t>(out.size()) - 1,
                out,
                {columns},
                {1, columns}},
               static_cast<OrtElementType>(type));
}

Dims any_dims(Choices& from, int64_t* axis) {
  const int64_t rank = 1 + from.of({0, 1, 2, 3, 3, 4, 7});
  *axis = from.below(rank);
  Dims dims;
  for (int64_t i = 0; i < rank; ++i)
    dims.push_back(i == *axis ? from.of(kLanes) : rank > 5 ? from.below(2) + 1 : from.of(kFew));
  if (from.one_in(12)) dims[static_cast<size_t>(from.below(rank))] = 0;
  if (from.one_in(12)) dims[static_cast<size_t>(from.below(rank))] = 300 + 8 * from.byte();
  return dims;
}

void pack_sign(Choices& from, Draft& draft) {
  int64_t axis;
  const Dims x = any_dims(from, &axis);
  draft.attribute("axis", axis);
  draft.input(from.one_in(3) ? ORT_FLOAT16 : ORT_FLOAT, x, {Role::real, 0, 0, false}, from.one_in(16));
  add_thresholds(from, draft, x, axis, !from.one_in(3));
  draft.sample.node.wanted = {true};
}

void unpack(Choices& from, Draft& draft) {
  int64_t axis;
  Dims p = any_dims(from, &axis);
  int64_t& n = p[static_cast<size_t>(axis)];
  draft.attribute("axis", axis);
  draft.attribute("channels", std::max<int64_t>(n, 1));
  draft.attribute("x_low", from.below(2) - 1);
  const Slot slot{Role::words, static_cast<int>(axis), n, false};
  n = words_of(std::max<int64_t>(n, 1));
  draft.input(ORT_UINT32, p, slot, false);
  draft.sample.node.wanted = {true};
}

void packed_max_pool(Choices& from, Draft& draft) {
  const int64_t channels = from.of(kLanes), planes = from.of({1, 1, 2});
  const Window window(from);
  draft.attribute("channels", channels);
  draft.attribute("kernel_shape", window.two(window.kernel));
  draft.attribute("strides", window.two(window.strides));
  draft.attribute("pads", {std::begin(window.pads), std::end(window.pads)});
  draft.attribute("dilations", window.two(window.dilations));
  draft.attribute("ceil_mode", from.below(2));
  const int64_t batch = from.one_in(16) ? 0 : from.of(kFew);
  draft.input(ORT_UINT32, {batch, planes * words_of(channels), window.size[0], window.size[1]},
              {Role::words, 1, channels, false}, false);
  const bool flat = from.one_in(2);
  draft.input(ORT_BOOL, {flat ? 1 : channels, 1, 1}, {Role::flags, 0, 0, false}, !from.one_in(4));
  draft.sample.node.wanted = {true};
}

constexpr struct {
  const char* name;
  void (*make)(Choices&, Draft&);
} kOps[] = {{"XnorConv", xnor_conv},
            {"XnorMatMul", xnor_matmul},
            {"PackSign", pack_sign},
            {"PackedMaxPool", packed_max_pool},
            {"Unpack", unpack}};

int64_t changed(Choices& from, int64_t value) {
  const uint64_t bits = static_cast<uint64_t>(value);  // modulo 2^64
  const uint64_t near[] = {bits + 1, bits - 1, bits * 2, 0, 0};
  const int64_t how = from.below(5);
  return how < 3 ? static_cast<int64_t>(near[how]) : from.any_integer();
}

// One thing that a file, or a converter, may get wrong.
void spoil(Choices& from, Draft& draft) {
  Node& node = draft.sample.node;
  const int64_t how = from.below(16);
  if (how < 6 && !node.attributes.empty()) {
    Attribute& attribute = node.attributes[static_cast<size_t>(from.byte()) % node.attributes.size()];
    std::vector<int64_t>& values = attribute.values;
    if (how < 3 && !values.empty()) {
      int64_t& value = values[static_cast<size_t>(from.byte()) % values.size()];
      value = changed(from, value);
    } else if (how == 3) {
      attribute.kind = static_cast<Attribute::Kind>(from.below(3));
      if (values.empty()) values.push_back(0);
    } else if (how == 4 && attribute.kind == Attribute::integers) {
      values.resize(static_cast<size_t>(from.below(20)), from.any_integer());
    } else {
      node.attributes.erase(node.attributes.begin() + (&attribute - node.attributes.data()));
    }
    return;
  }
  if (node.inputs.empty()) return;
  const size_t at = static_cast<size_t>(from.byte()) % node.inputs.size();
  Input& input = node.inputs[at];
  Dims& dims = input.tensor.dims;
  constexpr OrtElementType kTypes[] = {ORT_FLOAT, ORT_UINT32, ORT_BOOL, ORT_FLOAT16, static_cast<OrtElementType>(11)};
  switch (how) {
    case 6:
    case 7:
    case 8:
      if (!dims.empty()) {
        int64_t& d = dims[static_cast<size_t>(from.byte()) % dims.size()];
        d = changed(from, d);
      }
      break;
    case 9:
      dims.insert(dims.begin(), from.one_in(2) ? from.any_integer() : 1);
      break;
    case 10:
      if (!dims.empty()) dims.erase(dims.begin());
      break;
    case 11:
      input.tensor.type = from.of(kTypes);
      break;
    case 12:
      if (from.one_in(3)) input.present = false;
      input.constant = !input.constant;
      break;
    case 13:
      if (from.one_in(2)) {
        node.inputs.pop_back();
        draft.slots.pop_back();
      } else {
        draft.slots[at].role = Role::words;  // values that are not what they should be
        draft.slots[at].dirty = true;
      }
      break;
    case 14:
      draft.sample.options.faults.api_call = from.below(120);
      break;
    default:
      draft.sample.options.faults.allocation = from.below(40);
  }
}

// The number of elements; negative where there cannot be data.
int64_t element_count(const Dims& dims) {
  int64_t count = 1;
  for (int64_t d : dims)
    if (d < 0 || d > kMostElements) return -1;
  for (int64_t d : dims) {
    if (d == 0) return 0;
    count = std::min(count * d, kMostElements + 1);
  }
  return count <= kMostElements ? count : -1;
}

uint32_t real_bits(Random& random) {
  constexpr uint32_t kOdd[] = {0,  0x80000000u, 0x3f800000u, 0xbf800000u, 0x7f800000u, 0xff800000u, 0x7fc00000u,
                               1u, 0x4b800000u, 0xcb800000u, 0x7f7fffffu, 0x33000001u, 0x47800000u};
  const uint32_t word = random.word();
  if (word % 8 == 0) return kOdd[word / 8 % std::size(kOdd)];
  if (word % 8 == 1) return random.word();
  const float value =
      static_cast<float>(static_cast<int32_t>(random.word() % 129) - 64) * (word % 8 == 2 ? 0.25f : 1.0f);
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

void fill(Random& random, const Slot& slot, Tensor& tensor, int64_t count) {
  const size_t size = element_bytes(tensor.type);
  tensor.bytes.resize(static_cast<size_t>(count) * size);
  int64_t inner = 1, words = 1;
  for (size_t i = 0; i < tensor.dims.size(); ++i) {
    if (static_cast<int>(i) > slot.word_axis) inner *= std::max<int64_t>(1, tensor.dims[i]);
    if (static_cast<int>(i) == slot.word_axis) words = std::max<int64_t>(1, tensor.dims[i]);
  }
  const int64_t columns = tensor.dims.size() == 2 ? std::max<int64_t>(1, tensor.dims[1]) : 1;
  const float floats[] = {0.0f, 1.0f, -1.0f, 2.0f, 4.0f, -3.0f};
  for (int64_t i = 0; i < count; ++i) {
    uint64_t value = 0;
    float real = 0;
    bool is_float = true;
    switch (slot.role) {
      case Role::words: {
        value = random.word();
        is_float = false;
        const int64_t per_plane = std::max<int64_t>(1, words_of(slot.lanes));
        const int64_t left = slot.lanes - i / inner % words % per_plane * 32;
        if (slot.dirty)
          value = random.word() % 4 ? ~uint64_t{0} : value;
        else if (left < 32)
          value &= left <= 0 ? 0 : (uint64_t{1} << left) - 1;
        break;
      }
      case Role::real: {
        const uint32_t bits = real_bits(random);
        if (tensor.type != ORT_FLOAT) {
          value = bits >> 13;
          is_float = false;
        } else {
          std::memcpy(&real, &bits, 4);
        }
        break;
      }
      case Role::flags:
        value = random.word() % 2;
        is_float = false;
        break;
      case Role::integers:
        real = floats[random.word() % std::size(floats)];
        break;
      case Role::zero_one:
        real = floats[random.word() % 2];
        break;
      case Role::positive_one:
        real = 1;
        break;
      case Role::minus_zero:
        real = -0.0f;
        break;
      case Role::identity:
        real = i / columns == i % columns ? 1.0f : 0.0f;
        break;
      case Role::powers:  // of two: planes are the bits of a number
        real = std::ldexp(1.0f, static_cast<int>(i % columns));
        break;
      case Role::positions:  // thresholds to the bits of how many are reached
        real = std::fmod(static_cast<float>(i % columns + 1), std::ldexp(1.0f, static_cast<int>(i / columns))) == 0;
    }
    if (is_float) {
      uint32_t bits;
      std::memcpy(&bits, &real, 4);
      value = tensor.type == ORT_FLOAT16 ? (real == 1 ? 0x3c00 : bits >> 16) : bits;
    }
    std::memcpy(&tensor.bytes[static_cast<size_t>(i) * size], &value, size);
  }
}

// What a session would know before it runs: all, only some of it, or something false.
void add_hints(Choices& from, Sample& sample) {
  const int64_t how = from.below(8);
  for (Input& input : sample.node.inputs) {
    Hint& hint = input.hint;
    hint.dims = input.tensor.dims;
    hint.symbols.assign(hint.dims.size(), "");
    if (how >= 3 && how < 6) hint.known_rank = !from.one_in(4);
    if (how >= 1 && how < 6)
      for (size_t i = 0; i < hint.dims.size(); ++i)
        if (from.one_in(3)) {
          hint.symbols[i] = "d" + std::to_string(hint.dims[i]);  // equal names only for equal sizes
          hint.dims[i] = -1;
        }
    if (how == 7 && !hint.dims.empty() && from.one_in(3)) {
      hint.dims[static_cast<size_t>(from.byte()) % hint.dims.size()] = from.any_integer();
      sample.options.true_hints = false;
    }
    if (!input.present) sample.options.true_hints = false;
  }
}

}  // namespace

Sample node_from_bytes(const uint8_t* data, size_t size) {
  Choices from(data, size);
  Draft draft;
  const uint64_t seed = from.byte() * 256u + from.byte();
  const auto& op = kOps[from.below(std::size(kOps))];
  const int64_t faults = from.of({0, 0, 1, 0, 2, 1, 3});
  draft.sample.node.op = op.name;
  if (!from.one_in(4)) draft.sample.node.name = "a name that needs an allocation";
  // The faults are chosen first, and so do not move when the rest grows.
  std::vector<uint8_t> spoiling;
  for (int64_t i = 0; i < 6 * faults; ++i) spoiling.push_back(from.byte());
  op.make(from, draft);
  add_hints(from, draft.sample);
  Choices spoilers(spoiling.data(), spoiling.size());
  for (int64_t i = 0; i < faults; ++i) spoil(spoilers, draft);

  Sample& sample = draft.sample;
  Random random(seed);
  for (size_t i = 0; i < sample.node.inputs.size(); ++i) {
    Input& input = sample.node.inputs[i];
    if (faults) {  // hints are of the right shape, or this one's
      input.hint.symbols.resize(input.tensor.dims.size());
      input.hint.dims.resize(input.tensor.dims.size());
      for (size_t d = 0; d < input.hint.dims.size(); ++d)
        if (input.hint.symbols[d].empty()) input.hint.dims[d] = input.tensor.dims[d];
      sample.options.true_hints = false;
    }
    const int64_t count = element_count(input.tensor.dims);
    if (count < 0) {
      input.constant = false;
      sample.options.computable = false;
    } else if (sample.options.computable) {
      fill(random, draft.slots[i], input.tensor, count);
    }
  }
  if (!sample.options.computable)
    for (Input& input : sample.node.inputs)
      if (element_count(input.tensor.dims) != 0 && input.tensor.bytes.empty()) input.constant = false;
  return sample;
}

std::string to_string(const Sample& sample) {
  std::string out = sample.node.op + "\n";
  for (const Attribute& attribute : sample.node.attributes)
    out += "  " + attribute.name + " = " + to_string(attribute.values) + "\n";
  for (const Input& input : sample.node.inputs)
    out += "  input of type " + std::to_string(input.tensor.type) + " " + to_string(input.tensor.dims) +
           (input.constant ? " constant" : "") + (input.present ? "" : " absent") + ", known as " +
           (input.hint.known_rank ? to_string(input.hint.dims) : "nothing") + "\n";
  for (size_t i = 0; i < sample.node.wanted.size(); ++i)
    out += std::string("  output ") + (sample.node.wanted[i] ? "wanted\n" : "not wanted\n");
  return out + "  faults: API call " + std::to_string(sample.options.faults.api_call) + ", allocation " +
         std::to_string(sample.options.faults.allocation) + (sample.options.computable ? "\n" : ", without data\n");
}

}  // namespace binarize::mock
