// Convolutions of low-bit activations by table lookup (cpu/lookup_accumulate): planes of bits that `combine` merges
// into unsigned integers, times one or more bases of +-1 weights.
//
// A call goes over bands of output rows: the tables of the input rows that a band needs are made, then all filters look
// up in them.  Threads share the bands; where there are too few rows, they share the work on one.
#pragma once

#include <algorithm>

#include "cpu/lookup_accumulate/lookup_accumulate.h"
#include "ops/xnor_weights.h"

namespace binarize {

struct LookupConvLayout {
  int64_t group = 1, channels = 0;  // channels of a group: whole words where there are several
  int64_t group_outputs = 0;        // outputs of a group
  int64_t bases = 1;
  int64_t kernel[2] = {1, 1}, strides[2] = {1, 1}, dilations[2] = {1, 1};
  int64_t pads[4] = {};  // top, left, bottom, right
  int32_t planes = 0;
  bool pads_high = false;  // by the largest activation, else by zero

  int64_t group_blocks() const { return ceil_div(group_outputs, kWordBits); }
  // Two bases of few filters share a block: its lanes 0..15 are the first basis, 16..31 the second.
  bool bases_share_blocks() const { return bases == 2 && group_outputs <= kWordBits / 2; }
  int64_t block_bases() const { return bases_share_blocks() ? 1 : bases; }  // blocks of 32 outputs and all their bases
  int64_t taps() const { return kernel[0] * kernel[1]; }
};

class LookupConv {
 public:
  // `w`: [bases][group][group_outputs] filters.
  LookupConv(const LookupAccumulateKernel& kernel, const LookupConvLayout& layout, const uint32_t* w,
             const WordStrides& strides);

  struct Images {
    const uint32_t* x;  // [count][planes x words][height][width]
    int64_t count, height, width, out_height, out_width;
  };
  // Whether it takes these filters; whether offsets into the tables of these images stay within 32 bits.
  static bool fits(const LookupConvLayout& layout);
  bool fits(const Images& images) const;

  // Of one block of 32 outputs and a run of `count` pixels: those of basis m and output o of pixel i are
  // acc[m * basis_stride + 32 * i + o].
  struct Accumulators {
    const int32_t* acc;
    int64_t basis_stride, chunk, image, block, pixel, count;  // chunk: pixels that there is scratch for
  };
  // finish(accumulators, scratch) for all of them, from several threads; `scratch_words` for each pixel of up to
  // kChunkPixels, rounded up to 16.
  template <class Finish>
  void run(Call& call, const Images& images, int64_t scratch_words, const Finish& finish) const;

 private:
  static constexpr int64_t kStackWords = 24576;
  // Whole tiles of the lookups and whole vectors of the epilogue, as kChunkPixels of XnorConv.
  static constexpr int64_t kChunkPixels = 112;

  // What the bands of a call have in common.
  struct Plan {
    const Images& images;
    int64_t wave_rows, bands;  // rows of outputs done together; bands that they are cut in
    int64_t columns;           // of the padded input
    int64_t band_input_rows;   // of the largest band
    int64_t group_bytes;       // of the tables of a band and group
    uint8_t* tables;           // [bands]
    int32_t *sums, *windows;   // [bands]
    int32_t* row_offset;       // [outputs of the largest band]
    int32_t* k_offset;         // [steps]

    int64_t band_bytes(int64_t group) const { return round_up(group * group_bytes + kLookupStep, 64); }
  };
  // Some rows of outputs of an image.  Nobody else makes or reads its tables where there are several bands: a table
  // that another core has made is slow to read.
  struct Band {
    int64_t image, first_row, rows;  // of outputs
    uint8_t* tables;                 // [group][input_rows(rows)][columns][pixel_bytes]
    int32_t* sums;                   // [input_rows(rows)][group][columns]
    int32_t* windows;                // [input_rows(rows)][group][out_width]: sums under a row of the kernel
  };
  Plan prepare(Call& call, const Images& images) const;
  Band band_of(const Plan& plan, int64_t slot, int64_t image, int64_t first_row, int64_t rows) const;
  void make_tables(const Plan& plan, const Band& band, int64_t row) const;
  // The accumulators of `blocks` blocks from `block` on, which begin a unit: [blocks][block_bases()][stride].
  void accumulate(const Plan& plan, const Band& band, int64_t block, int64_t blocks, int64_t pixel, int64_t count,
                  int64_t stride, int32_t* acc) const;

  int64_t columns(const Images& images) const { return images.width + layout_.pads[1] + layout_.pads[3]; }
  int64_t pixel_bytes() const { return format_.pixel_bytes(layout_.channels); }  // of one group
  // Taps whose tables follow each other, and are looked up in one run of steps.
  int64_t run_taps() const { return layout_.dilations[1] == 1 ? layout_.kernel[1] : 1; }
  int64_t run_steps() const { return format_.steps(run_taps() * format_.tables(layout_.channels)); }
  int64_t input_rows(int64_t rows) const {
    return (rows - 1) * layout_.strides[0] + (layout_.kernel[0] - 1) * layout_.dilations[0] + 1;
  }
  int64_t units_of_group() const { return ceil_div(layout_.group_blocks(), unit_); }

  const LookupAccumulateKernel& kernel_;
  LookupConvLayout layout_;
  LookupFormat format_;
  int64_t steps_;                  // of all taps
  int64_t unit_;                   // blocks done together, whose bases are an even number
  AlignedArray<uint8_t> weights_;  // [group][units][the unit's blocks][block_bases()] as the kernel reads them
  // Of one pixel of padding of a group; null: all zeros.
  AlignedArray<uint8_t> border_tables_;
  int32_t border_sum_ = 0;
};

template <class Finish>
void LookupConv::run(Call& call, const Images& images, int64_t scratch_words, const Finish& finish) const {
  const Plan plan = prepare(call, images);
  const int64_t units = layout_.group * units_of_group();
  const int64_t unit_bases = std::min(unit_, layout_.group_blocks()) * layout_.block_bases();
  const int64_t pixel_words = checked_product(kWordBits, unit_bases, "the accumulators of one pixel") + scratch_words;
  const int64_t fitting = std::min(kChunkPixels, kStackWords / pixel_words / 16 * 16);
  const int64_t most = std::max<int64_t>(fitting, 16);
  const auto for_each = [&call](bool shared, int64_t count, const auto& body) {
    if (shared) return call.parallel_for(count, body);
    for (int64_t i = 0; i < count; ++i) body(i);
  };

  const auto do_band = [&](const Band& band, bool shared) {
    for_each(shared, input_rows(band.rows), [&](int64_t row) { make_tables(plan, band, row); });
    // Enough tasks to share out, of whole vectors of the epilogue.
    const int64_t tasks = shared ? 8 : 1, pixels = band.rows * images.out_width;
    const int64_t chunk = std::min(most, round_up(ceil_div(pixels, ceil_div(tasks, units)), 16));
    const int64_t chunks = ceil_div(pixels, chunk), stride = chunk * kWordBits;
    for_each(shared, units * chunks, [&](int64_t item) {
      alignas(64) int32_t stack[kStackWords];
      AlignedArray<int32_t> heap;
      if (fitting < 16) heap = aligned_array<int32_t>(pixel_words * most);
      int32_t* acc = heap ? heap.get() : stack;
      const int64_t unit = item / chunks, pixel = item % chunks * chunk, count = std::min(chunk, pixels - pixel);
      const int64_t first = unit % units_of_group() * unit_, group = unit / units_of_group();
      const int64_t block = group * layout_.group_blocks() + first;
      const int64_t blocks = std::min(unit_, layout_.group_blocks() - first);
      accumulate(plan, band, block, blocks, pixel, count, stride, acc);
      for (int64_t i = 0; i < blocks; ++i)
        finish(Accumulators{acc + i * layout_.block_bases() * stride,
                            layout_.bases_share_blocks() ? kWordBits / 2 : stride, chunk, band.image, block + i,
                            band.first_row * images.out_width + pixel, count},
               acc + unit_bases * stride);
    });
  };
  for (int64_t image = 0; image < images.count; ++image)
    for (int64_t first = 0; first < images.out_height; first += plan.wave_rows) {
      const int64_t rows = std::min(plan.wave_rows, images.out_height - first), bands = std::min(plan.bands, rows);
      for_each(bands > 1, bands, [&](int64_t i) {
        const int64_t begin = rows * i / bands, end = rows * (i + 1) / bands;
        do_band(band_of(plan, i, image, first + begin, end - begin), bands == 1);
      });
    }
}

}  // namespace binarize
