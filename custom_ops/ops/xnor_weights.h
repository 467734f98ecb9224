// Weights in the order the kernels read them: blocks of 32 filters, and what goes with each block.
#pragma once

#include "cpu/lanes.h"
#include "ops/ort.h"

namespace binarize {

// Where word `c` of tap (y, x) of filter `f` lies: data[f * filter + c * word + y * tap_y + x * tap_x].
struct WordStrides {
  int64_t filter, word, tap_y, tap_x;
};

struct XnorWeightsLayout {
  int64_t blocks = 0;
  int64_t length = 0;  // weights of one tap: input channels of a group, or k
  int64_t kernel[2] = {1, 1};
  int64_t x_low = -1;
  bool masked = false;
  bool paired = false;  // words of a tap in pairs, as cpu/xnor_accumulate has them; an odd last one has no partner
  bool padded = false;  // taps may be outside the image, where they read pad_value
  int64_t pad_value = 0;

  int64_t words() const { return ceil_div(length, kWordBits); }  // of one tap
  int64_t k_words() const { return words() * kernel[0] * kernel[1]; }
  int64_t corners() const { return (kernel[0] + 1) * (kernel[1] + 1); }
  int64_t buffer_words() const;
};

// Pointers into one buffer of layout.buffer_words() words, aligned to a cache line.
struct XnorWeights {
  uint32_t* words = nullptr;  // [blocks][k_words][32], tap by tap
  uint32_t* mask = nullptr;   // the same, or null
  int32_t* base = nullptr;    // [blocks][32]: the kernel's `base` where every tap is in bounds
  // [blocks][kernel_h + 1][kernel_w + 1][32], or null: what all taps above and left add to the base in bounds, less
  // what they add in the padding
  int32_t* corners = nullptr;

  XnorWeights() = default;
  XnorWeights(const XnorWeightsLayout& layout, uint32_t* buffer);
};

struct WeightSource {
  const uint32_t* w;
  WordStrides w_strides;
  const uint32_t* mask;
  WordStrides mask_strides;
};

// Fills one block with `count` <= 32 filters from `first_filter` on; the other lanes hold zeros.
void fill_block(const XnorWeightsLayout& layout, const XnorWeights& weights, int64_t block, const WeightSource& source,
                int64_t first_filter, int64_t count);

// Whether every word of `mask`, whose axis `word_axis` holds the words of `length` lanes, is all ones in its valid
// lanes.
bool mask_is_neutral(const Tensor& mask, int word_axis, int64_t length);

// The lanes of word `word` that a tensor of `length` lanes has.
inline uint32_t valid_lanes(int64_t length, int64_t word) {
  const int64_t lanes = length - word * kWordBits;
  return lanes >= kWordBits ? ~uint32_t{0} : (uint32_t{1} << lanes) - 1;
}

}  // namespace binarize
