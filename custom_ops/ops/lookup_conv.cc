#include "ops/lookup_conv.h"

#include "ops/offsets.h"

namespace binarize {
namespace {

// Tables of a wave.  3x3 64@56 on a Zen 4 with 1 MiB of second-level cache, tables of 2 MiB in one wave: 240 us; in
// waves of 768, 512, 256 KiB: 246, 255, 268 us: making the rows that two waves share twice costs more than the cache.
constexpr int64_t kWaveBytes = int64_t{4000} << 10;

// An even number of bases, as the kernel takes two at a time, and about four: their weights stay in the first-level
// cache beside the tables of a tile of pixels.  1x1 512@14 in W2A4: two bases at a time 194 us, four 189, eight 186
// with twice the accumulators.
int64_t blocks_together(int64_t block_bases) {
  if (block_bases == 1) return 4;
  return block_bases == 2 || block_bases % 2 ? 2 : 1;
}

// to[i] = sum over t of from[i * stride + t * dilation].
void sum_windows(const int32_t* __restrict from, int64_t count, int64_t stride, int64_t taps, int64_t dilation,
                 int32_t* __restrict to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i * stride];
  for (int64_t t = 1; t < taps; ++t) {
    const int32_t* __restrict tap = from + t * dilation;
    if (stride == 1)
      for (int64_t i = 0; i < count; ++i) to[i] += tap[i];
    else
      for (int64_t i = 0; i < count; ++i) to[i] += tap[i * stride];
  }
}

}  // namespace

bool LookupConv::fits(const LookupConvLayout& layout) {
  return layout.planes >= kMinLookupPlanes && layout.planes <= kMaxLookupPlanes &&
         layout.channels <= kMaxLookupChannels && (layout.group == 1 || layout.channels % kWordBits == 0);
}

bool LookupConv::fits(const Images& images) const {
  // In floating point: no product overflows.
  const double row = static_cast<double>(columns(images)) * static_cast<double>(layout_.group * pixel_bytes());
  const double rows = static_cast<double>(layout_.kernel[0] - 1) * static_cast<double>(layout_.dilations[0]) + 1;
  return rows * row < static_cast<double>(kMaxElements);
}

LookupConv::LookupConv(const LookupAccumulateKernel& kernel, const LookupConvLayout& layout, const uint32_t* w,
                       const WordStrides& strides)
    : kernel_(kernel),
      layout_(layout),
      format_(kernel.format(layout.planes, layout.channels, layout.taps())),
      steps_(checked_product(layout.taps() / run_taps(), run_steps(), "the indices of the weights")),
      unit_(blocks_together(layout.block_bases())) {
  const int64_t block_bytes = checked_product(steps_, format_.step_weights(), "the indices of the weights");
  const int64_t block_bases = layout.block_bases();
  const int64_t blocks = checked_product(layout.group * layout.group_blocks(), block_bases, "the blocks of weights");
  weights_ = aligned_array<uint8_t>(checked_product(blocks, block_bytes, "the indices of the weights"));
  std::fill_n(weights_.get(), blocks * block_bytes, uint8_t{0});  // of filters that do not exist
  for (int64_t group = 0; group < layout.group; ++group)
    for (int64_t output = 0; output < layout.group_outputs; ++output)
      for (int64_t basis = 0; basis < layout.bases; ++basis) {
        const int64_t block = output / kWordBits, first = block / unit_ * unit_;
        LookupAccumulateArgs unit{};
        unit.steps = static_cast<int32_t>(steps_);
        unit.blocks = std::min(unit_, layout.group_blocks() - first) * block_bases;
        const int64_t in_unit = (block - first) * block_bases + basis % block_bases;
        LookupWeightsArgs args{};
        args.word_stride = strides.word;
        args.channels = layout.channels;
        args.filter = static_cast<int32_t>(output % kWordBits + basis / block_bases * (kWordBits / 2));
        args.w_stride = unit.weights_stride(in_unit, format_.step_weights());
        uint8_t* of_block = weights_.get() + (group * layout.group_blocks() + first) * block_bases * block_bytes +
                            unit.weights_begin(in_unit, format_.step_weights());
        const uint32_t* filter = w + ((basis * layout.group + group) * layout.group_outputs + output) * strides.filter;
        for (int64_t tap = 0; tap < layout.taps(); ++tap) {
          args.words = filter + tap / layout.kernel[1] * strides.tap_y + tap % layout.kernel[1] * strides.tap_x;
          args.first_table = tap % run_taps() * format_.tables(layout.channels);
          args.w = of_block + tap / run_taps() * run_steps() * args.w_stride;
          fill_lookup_weights(format_, args);
        }
      }
  if (!layout.pads_high) return;
  const int64_t words = ceil_div(layout.channels, kWordBits);
  const AlignedArray<uint32_t> border = aligned_array<uint32_t>(words);
  for (int64_t word = 0; word < words; ++word) border[static_cast<size_t>(word)] = valid_lanes(layout.channels, word);
  border_tables_ = aligned_array<uint8_t>(pixel_bytes());
  kernel.tables(
      {border.get(), 0, 1, 0, layout.channels, 1, layout.planes, format_.group, border_tables_.get(), &border_sum_});
}

LookupConv::Plan LookupConv::prepare(Call& call, const Images& images) const {
  Plan plan{images, 1, 1, columns(images), 1, 0, nullptr, nullptr, nullptr, nullptr, nullptr};
  const int64_t row_bytes = plan.columns * pixel_bytes();
  const int64_t spare = kWaveBytes / (layout_.group * row_bytes) - input_rows(1);  // beside the rows of one output
  const int64_t most = spare > 0 ? 1 + spare / layout_.strides[0] : 1;
  plan.wave_rows = ceil_div(images.out_height, ceil_div(images.out_height, most));
  // Few: bands make the rows twice that they share.
  plan.bands = plan.wave_rows >= 28 ? 4 : plan.wave_rows >= 4 ? 2 : 1;
  const int64_t band_rows = ceil_div(plan.wave_rows, plan.bands), in_rows = input_rows(band_rows);
  plan.band_input_rows = in_rows;
  plan.group_bytes = in_rows * row_bytes;

  // All in one piece: a small layer notices each time that onnxruntime is asked for memory.
  const int64_t band_lines = plan.bands * layout_.group * in_rows, width = images.out_width;
  const int64_t sums = checked_product(band_lines, plan.columns, "the sums of pixels");
  const int64_t windows = checked_product(band_lines, width, "the sums of windows");
  const int64_t pixels = checked_product(band_rows, width, "the pixels");
  const int64_t table_words = plan.bands * plan.band_bytes(layout_.group) / static_cast<int64_t>(sizeof(int32_t));
  int32_t* scratch = call.scratch<int32_t>(table_words + sums + windows + pixels + steps_);
  plan.tables = reinterpret_cast<uint8_t*>(scratch);
  plan.sums = scratch + table_words;
  plan.windows = plan.sums + sums;
  plan.row_offset = plan.windows + windows;
  plan.k_offset = plan.row_offset + pixels;

  int32_t* row_offset = plan.row_offset;
  for (int64_t x = 0; x < width; ++x) row_offset[x] = static_cast<int32_t>(x * layout_.strides[1] * pixel_bytes());
  for (int64_t y = 1; y < band_rows; ++y)
    add_to_each(row_offset, width, static_cast<int32_t>(y * layout_.strides[0] * row_bytes), row_offset + y * width);
  int32_t* k_offset = plan.k_offset;
  for (int64_t y = 0; y < layout_.kernel[0]; ++y)
    for (int64_t x = 0; x < layout_.kernel[1]; x += run_taps())
      for (int64_t step = 0; step < run_steps(); ++step)
        *k_offset++ = static_cast<int32_t>(
            (y * layout_.dilations[0] * plan.columns + x * layout_.dilations[1]) * pixel_bytes() + step * kLookupStep);
  return plan;
}

LookupConv::Band LookupConv::band_of(const Plan& plan, int64_t slot, int64_t image, int64_t first_row,
                                     int64_t rows) const {
  const int64_t lines = slot * layout_.group * plan.band_input_rows;
  Band band{image,
            first_row,
            rows,
            plan.tables + slot * plan.band_bytes(layout_.group),
            plan.sums + lines * plan.columns,
            plan.windows + lines * plan.images.out_width};
  // What lookups may read past the last row, to no effect.
  const int64_t end = input_rows(rows) * plan.columns * pixel_bytes();
  for (int64_t group = 0; group < layout_.group; ++group)
    std::fill_n(band.tables + group * plan.group_bytes + end, std::min<int64_t>(plan.group_bytes - end, kLookupStep),
                uint8_t{0});
  std::fill_n(band.tables + layout_.group * plan.group_bytes, kLookupStep, uint8_t{0});
  return band;
}

void LookupConv::make_tables(const Plan& plan, const Band& band, int64_t row) const {
  // Between the taps of one output row and the next there may be rows of which nothing reads more than the beginning.
  const int64_t row_bytes = plan.columns * pixel_bytes(), span = (layout_.kernel[0] - 1) * layout_.dilations[0] + 1;
  if (row % layout_.strides[0] >= span) {
    for (int64_t group = 0; group < layout_.group; ++group)
      std::fill_n(band.tables + group * plan.group_bytes + row * row_bytes, std::min<int64_t>(row_bytes, kLookupStep),
                  uint8_t{0});
    return;
  }
  const Images& images = plan.images;
  const int64_t y = band.first_row * layout_.strides[0] + row - layout_.pads[0], left = layout_.pads[1];
  const bool inside = y >= 0 && y < images.height;
  const int64_t size = images.height * images.width, words = ceil_div(layout_.channels, kWordBits);
  const int64_t plane = layout_.group * words * size;
  for (int64_t group = 0; group < layout_.group; ++group) {
    uint8_t* tables = band.tables + group * plan.group_bytes + row * row_bytes;
    int32_t* sums = band.sums + (row * layout_.group + group) * plan.columns;
    const auto pad = [&](int64_t first, int64_t count) {
      if (!border_tables_) std::fill_n(tables + first * pixel_bytes(), count * pixel_bytes(), uint8_t{0});
      for (int64_t x = first; border_tables_ && x < first + count; ++x)
        std::copy_n(border_tables_.get(), pixel_bytes(), tables + x * pixel_bytes());
      std::fill_n(sums + first, count, border_sum_);
    };
    if (inside) {
      pad(0, left);
      const uint32_t* x = images.x + band.image * layout_.planes * plane + group * words * size + y * images.width;
      kernel_.tables({x, plane, size, 1, layout_.channels, images.width, layout_.planes, format_.group,
                      tables + left * pixel_bytes(), sums + left});
      pad(left + images.width, layout_.pads[3]);
    } else {
      pad(0, plan.columns);
    }
    sum_windows(sums, images.out_width, layout_.strides[1], layout_.kernel[1], layout_.dilations[1],
                band.windows + (row * layout_.group + group) * images.out_width);
  }
}

void LookupConv::accumulate(const Plan& plan, const Band& band, int64_t block, int64_t blocks, int64_t pixel,
                            int64_t count, int64_t stride, int32_t* acc) const {
  const int64_t width = plan.images.out_width, group = block / layout_.group_blocks();
  int32_t start[kChunkPixels];
  for (int64_t i = 0; i < count;) {
    const int64_t y = (pixel + i) / width, x = (pixel + i) % width, run = std::min(count - i, width - x);
    for (int64_t j = 0; j < run; ++j) start[i + j] = 0;
    for (int64_t tap = 0; tap < layout_.kernel[0]; ++tap) {
      const int64_t row = y * layout_.strides[0] + tap * layout_.dilations[0];
      const int32_t* windows = band.windows + (row * layout_.group + group) * width + x;
      for (int64_t j = 0; j < run; ++j) start[i + j] -= windows[j];
    }
    i += run;
  }
  LookupAccumulateArgs args{};
  args.tables = band.tables + group * plan.group_bytes;
  args.row_offset = plan.row_offset + pixel;
  args.k_offset = plan.k_offset;
  args.steps = static_cast<int32_t>(steps_);
  args.w = weights_.get() + block * layout_.block_bases() * args.steps * format_.step_weights();
  args.start = start;
  args.acc = acc;
  args.acc_block_stride = stride;
  args.acc_stride = kWordBits;
  args.rows = count;
  args.blocks = blocks * layout_.block_bases();
  args.planes = layout_.planes;
  args.group = format_.group;
  kernel_.accumulate(args);
}

}  // namespace binarize
