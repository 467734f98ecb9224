// Which taps of a convolution read the image, at which words, for every output pixel.
//
// Taps in the padding are not computed: what they add is the same for all pixels that miss the same taps, and is in
// the base of these pixels.  Along either axis the outputs that see the same taps are neighbours, a run.  So a class of
// pixels is a run of rows times a run of columns, and what its taps read is a list of words that starts at the first
// tap it sees: of all classes in a run of columns, one is the beginning of another.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/xnor_accumulate/xnor_accumulate.h"
#include "ops/ort.h"

namespace binarize {

struct ConvGeometry {
  int64_t kernel[2], strides[2], dilations[2];
  int64_t pads[2];  // top and left; the others follow from the sizes
  int64_t in[2], out[2];
  int64_t words;  // of a tap
  bool paired;

  int64_t pixels() const { return out[0] * out[1]; }
  int64_t plane() const { return in[0] * in[1]; }
};

// The outputs [first, end) of an axis, which see the taps [tap_begin, tap_end).
struct TapRun {
  int64_t first, end;
  int32_t tap_begin, tap_end;

  int32_t taps() const { return tap_end - tap_begin; }
};

class ConvTaps {
 public:
  // Pixels are done in chunks of `chunk`; the tables of each are there after fill().
  ConvTaps(const ConvGeometry& geometry, int64_t chunk);

  // A class is a run of rows times a run of columns, the columns running faster.
  const std::vector<TapRun>& row_runs() const { return row_runs_; }
  const std::vector<TapRun>& column_runs() const { return column_runs_; }
  int64_t classes() const { return static_cast<int64_t>(row_runs_.size() * column_runs_.size()); }

  int64_t chunks() const { return ceil_div(geometry_.pixels(), chunk_); }
  int64_t pixels_of(int64_t chunk) const { return std::min(chunk_, geometry_.pixels() - chunk * chunk_); }
  void fill(int64_t chunk) const;

  // run() for the pixels of each class in a chunk, which it finds in `args`.  They come with what all have in common:
  // x, the weights and masks of all taps, [classes][32] bases, and acc (or q) of the chunk's first pixel.
  template <class Run>
  void for_each_class(int64_t chunk, XnorAccumulateArgs& args, const Run& run) const {
    const uint32_t *w = args.w, *mask = args.mask;
    const int32_t* base = args.base;
    const Group* group = groups_ + chunk * most_groups_;
    for (const Group* end = group + group_count_[chunk]; group != end; ++group) {
      const Class& pixels = classes_[group->index];
      args.row_offset = row_offset_ + group->first;
      args.row_place = row_place_ + group->first;
      args.rows = group->count;
      args.pairs = pixels.pairs;
      args.words = pixels.words;
      args.pair_count = pixels.pair_count;
      args.word_count = pixels.word_count;
      args.w = w + pixels.w;
      if (mask) args.mask = mask + pixels.w;
      args.base = base + int64_t{group->index} * kWordBits;
      run();
    }
  }

 private:
  struct Class {
    const XnorPair* pairs;
    const XnorWord* words;
    int32_t pair_count, word_count;
    int64_t w;  // where the weights of its first tap begin
  };
  // Pixels of one class in one chunk: [first, first + count) of the tables of rows.
  struct Group {
    int32_t index, first, count;
  };

  ConvGeometry geometry_;
  int64_t chunk_, most_groups_;
  std::vector<TapRun> row_runs_, column_runs_;
  AlignedArray<char> memory_;  // of all tables
  int32_t *row_offset_, *row_place_;
  Class* classes_;
  Group* groups_;         // [chunks][most_groups]
  int32_t* group_count_;  // [chunks]
};

}  // namespace binarize
