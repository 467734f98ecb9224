#include "cpu/lookup_accumulate/lookup_accumulate.h"

namespace binarize {
namespace {

int64_t index_at(LookupFormat::Order order, int32_t filter, int64_t table) {
  switch (order) {
    case LookupFormat::Order::pairs:
      return filter % 16 * 4 + filter / 16 * 2 + table;
    case LookupFormat::Order::quads:
      return filter * 4 + table;
    default:
      return filter / 16 * 64 + table * 16 + filter % 16;
  }
}

}  // namespace

// Table g of a pixel has channels 4g to 4g + 3, and of five the fifth from those behind: channel 4 * tables + g, whose
// sums are the second half of the table.
void fill_lookup_weights(const LookupFormat& format, const LookupWeightsArgs& args) {
  const int64_t tables = format.tables(args.channels), step_tables = format.step_tables();
  const auto bits = [&](int64_t channel, uint32_t wanted) {  // from a multiple of their number on
    if (channel >= args.channels) return uint32_t{0};
    const int64_t left = args.channels - channel;
    const uint32_t exists = left >= kWordBits ? ~uint32_t{0} : (uint32_t{1} << left) - 1;
    return args.words[channel / kWordBits * args.word_stride] >> channel % kWordBits & wanted & exists;
  };
  // Where shuffles see all tables of a step, the index says which.
  const int64_t table_begin = format.order == LookupFormat::Order::table_rows ? 0 : format.table_bytes();
  for (int64_t g = 0; g < tables; ++g) {
    const int64_t step = (args.first_table + g) / step_tables, table = (args.first_table + g) % step_tables;
    uint32_t index = static_cast<uint32_t>(table * table_begin) + bits(4 * g, 0xf);
    if (format.group == 5) index += bits(4 * tables + g, 1) * 16;
    args.w[step * args.w_stride + index_at(format.order, args.filter, table)] = static_cast<uint8_t>(index);
  }
}

}  // namespace binarize
