#include "ops/xnor_weights.h"

namespace binarize {

int64_t XnorWeightsLayout::buffer_words() const {
  const int64_t lanes = checked_product(blocks, kWordBits, "the packed weights");
  const int64_t words = checked_product(lanes, k_words(), "the packed weights");
  return words * (masked ? 2 : 1) + lanes + (padded ? checked_product(lanes, corners(), "the border sums") : 0);
}

XnorWeights::XnorWeights(const XnorWeightsLayout& layout, uint32_t* buffer) {
  const int64_t count = layout.blocks * layout.k_words() * kWordBits;
  words = buffer;
  buffer += count;
  if (layout.masked) {
    mask = buffer;
    buffer += count;
  }
  base = reinterpret_cast<int32_t*>(buffer);
  if (layout.padded) corners = base + layout.blocks * kWordBits;
}

void fill_block(const XnorWeightsLayout& layout, const XnorWeights& weights, int64_t block, const WeightSource& source,
                int64_t first_filter, int64_t count) {
  const int64_t words_of_tap = layout.words(), width = layout.kernel[1];
  uint32_t* words = weights.words + block * layout.k_words() * kWordBits;
  uint32_t* mask = weights.mask ? weights.mask + block * layout.k_words() * kWordBits : nullptr;
  int32_t* base = weights.base + block * kWordBits;
  int32_t* corners = weights.corners ? weights.corners + block * layout.corners() * kWordBits : nullptr;
  for (int lane = 0; lane < kWordBits; ++lane) base[lane] = 0;
  if (corners)
    for (int64_t i = 0; i < layout.corners() * kWordBits; ++i) corners[i] = 0;

  const WordStrides &ws = source.w_strides, &ms = source.mask_strides;
  for (int64_t y = 0; y < layout.kernel[0]; ++y)
    for (int64_t x = 0; x < width; ++x) {
      int32_t in_bounds[kWordBits] = {};  // what this tap adds there, less what it adds in the padding
      for (int64_t c = 0; c < words_of_tap; ++c) {
        const uint32_t valid = valid_lanes(layout.length, c);
        const int64_t at = ((y * width + x) * words_of_tap + c) * kWordBits;
        const bool second = layout.paired && c % 2 != 0;
        for (int lane = 0; lane < kWordBits; ++lane) {
          uint32_t w = 0, m = 0;
          if (lane < count) {
            const int64_t f = first_filter + lane;
            w = source.w[f * ws.filter + c * ws.word + y * ws.tap_y + x * ws.tap_x] & valid;
            m = valid;
            if (mask) m &= source.mask[f * ms.filter + c * ms.word + y * ms.tap_y + x * ms.tap_x];
          }
          words[at + lane] = second ? w ^ words[at + lane - kWordBits] : w;
          if (mask) mask[at + lane] = m;
          const int32_t plus = __builtin_popcount(w & m), all = __builtin_popcount(m);
          const int32_t added = layout.x_low == -1 ? all : plus;
          base[lane] += added;
          in_bounds[lane] += added - static_cast<int32_t>(layout.pad_value) * (2 * plus - all);
        }
      }
      if (!corners) continue;
      // corner (y+1, x+1) = its tap + corner (y, x+1) + corner (y+1, x) - corner (y, x)
      const int64_t row = (width + 1) * kWordBits;
      int32_t* corner = corners + (y + 1) * row + (x + 1) * kWordBits;
      for (int lane = 0; lane < kWordBits; ++lane)
        corner[lane] = in_bounds[lane] + corner[lane - row] + corner[lane - kWordBits] - corner[lane - row - kWordBits];
    }
}

bool mask_is_neutral(const Tensor& mask, int word_axis, int64_t length) {
  int64_t inner = 1;
  for (int i = word_axis + 1; i < mask.shape.rank; ++i) inner *= mask.shape.dim[i];
  const int64_t words = mask.shape.dim[word_axis], count = element_count(mask.shape, "input mask");
  for (int64_t i = 0; i < count; ++i)
    if (~mask.as<uint32_t>()[i] & valid_lanes(length, i / inner % words)) return false;
  return true;
}

}  // namespace binarize
