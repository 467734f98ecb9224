#include "cpu/lookup_accumulate/lookup_accumulate.h"

namespace binarize {
namespace {

int64_t index_at(LookupFormat::Order order, int32_t filter, int32_t group) {
  switch (order) {
    case LookupFormat::Order::pairs:
      return filter % 16 * 4 + filter / 16 * 2 + group;
    case LookupFormat::Order::quads:
      return filter * 4 + group;
    default:
      return filter / 16 * 64 + group * 16 + filter % 16;
  }
}

}  // namespace

// Group g has channels 4g to 4g + 3, and, where it has five, the one of number g behind those of all groups.
void fill_lookup_weights(const LookupFormat& format, const LookupWeightsArgs& args) {
  const int64_t steps = format.steps(args.channels), groups = format.groups();
  const auto bits = [&](int64_t channel, uint32_t wanted) {  // from a multiple of their number on
    if (channel >= args.channels) return uint32_t{0};
    const int64_t left = args.channels - channel;
    const uint32_t exists = left >= 32 ? ~uint32_t{0} : (uint32_t{1} << left) - 1;
    return args.words[channel / kWordBits * args.word_stride] >> channel % kWordBits & wanted & exists;
  };
  // A vector of tables begins with those of four channels; where there are five, the same with the fifth follow.
  const uint32_t table = format.order == LookupFormat::Order::group_rows ? 0 : 16, fifth = 32;
  for (int64_t step = 0; step < steps; ++step)
    for (int32_t g = 0; g < groups; ++g) {
      const int64_t group = step * groups + g;
      uint32_t index = static_cast<uint32_t>(g) * table + bits(4 * group, 0xf);
      if (format.group == 5) index += bits(4 * groups * steps + group, 1) * fifth;
      args.w[step * args.w_stride + index_at(format.order, args.filter, g)] = static_cast<uint8_t>(index);
    }
}

}  // namespace binarize
