#include "cpu/xnor_accumulate/bits_by_chunks.h"

namespace binarize {
namespace {

// Counts in pairs, nibbles, bytes: plain shifts and adds, which a compiler vectorises for the baseline instruction set.
inline uint32_t popcount(uint32_t v) {
  v -= (v >> 1) & 0x55555555u;
  v = (v & 0x33333333u) + ((v >> 2) & 0x33333333u);
  v = (v + (v >> 4)) & 0x0f0f0f0fu;
  v += v >> 8;
  v += v >> 16;
  return v & 0x3fu;
}

}  // namespace

void xnor_accumulate_scalar(const XnorAccumulateArgs& args) {
  for (int64_t row = 0; row < args.rows; ++row) {
    const uint32_t* x = args.x + args.row_offset[row];
    uint32_t mismatches[kWordBits] = {};
    for (int32_t k = 0; k < args.word_count; ++k) {
      const uint32_t word = x[args.words[k].x];
      const uint32_t* w = args.w + args.words[k].w;
      if (args.mask) {
        const uint32_t* mask = args.mask + args.words[k].w;
        for (int lane = 0; lane < kWordBits; ++lane) mismatches[lane] += popcount((word ^ w[lane]) & mask[lane]);
      } else {
        for (int lane = 0; lane < kWordBits; ++lane) mismatches[lane] += popcount(word ^ w[lane]);
      }
    }
    int32_t* acc = args.acc + args.row_place[row] * args.acc_stride;
    for (int lane = 0; lane < kWordBits; ++lane)
      acc[lane] = args.base[lane] - static_cast<int32_t>(mismatches[lane] << args.shift);
  }
}

void xnor_bits_scalar(const XnorBitsArgs& args) {
  bits_by_chunks(args, xnor_accumulate_scalar, [](const int32_t* acc) {
    uint32_t word = 0;
    for (int lane = 0; lane < kWordBits; ++lane) word |= (static_cast<uint32_t>(acc[lane]) >> 31) << lane;
    return word;
  });
}

// Modulo 2^32, as the vector variants: rows and lanes past the last hold anything, and their sums are not used.
void combine_terms_scalar(const CombineArgs& args) {
  for (int64_t t = 0; t < args.outputs; ++t)
    for (int64_t m = 0; m < args.bases; ++m) {
      int32_t* out = args.combined + (t * args.bases + m) * args.count;
      for (int64_t i = 0; i < args.count; ++i) out[i] = 0;
      for (int64_t p = 0; p < args.planes; ++p) {
        const uint32_t factor = static_cast<uint32_t>(args.combine[t * args.planes + p]);
        const int32_t* in = args.acc + (p * args.bases + m) * args.count;
        for (int64_t i = 0; i < args.count; ++i)
          out[i] = static_cast<int32_t>(static_cast<uint32_t>(out[i]) + factor * static_cast<uint32_t>(in[i]));
      }
    }
}

}  // namespace binarize
