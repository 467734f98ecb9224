// The inner product of rows (output pixels, or rows of a matrix) with 32 filters.
//
//     acc[place(r)][o] = base[o] - (sum_k popcount((x[row_offset[r] + x_k] ^ w[w_k + o]) & mask[w_k + o]) << shift)
//
// With x and w of +-1 and K their length: shift = 1, base = K.  With x in {0, 1}: shift = 0, base = the number of +1
// weights.  Lanes are filters, so nothing is summed across lanes and K needs no tail; one activation word is broadcast
// to all of them.  The words of K are a list: pixels at a border, which see fewer taps of the kernel, have a shorter
// one, and what the padding adds is in their base.
//
// Pairs: two words that follow one another are stored as (word, word ^ next word), in x and in w alike.  XOR of both
// sides then says where the first words differ and the parity of the differences of both, which is what a carry-save
// adder wants: two words cost five vector operations instead of six.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "cpu/lanes.h"

namespace binarize {

// A word of K: where it stands in x, from its row on, and where in w its 32 filters begin.
struct XnorWord {
  int32_t x, w;
};

// Two words of K: the first, and its XOR with the second, which stands behind it in w.
struct XnorPair {
  int32_t first, parity, w;
};

struct XnorAccumulateArgs {
  const uint32_t* x;
  const int32_t* row_offset;  // [rows], in words
  const int32_t* row_place;   // [rows]: where in acc
  const XnorPair* pairs;      // [pair_count]: none with a mask, and for variants that do not take them
  const XnorWord* words;      // [word_count]
  int32_t pair_count, word_count;
  const uint32_t* w;
  const uint32_t* mask;  // as w, or null: all ones
  const int32_t* base;   // [32]
  int32_t* acc;          // [places][acc_stride], 32 of them written
  int64_t acc_stride;
  int64_t rows;
  int32_t shift;
};

// Bits instead of accumulators: bit o of q[place(r)] is acc[place(r)][o] >= 0, XOR bit o of flip.
struct XnorBitsArgs {
  XnorAccumulateArgs in;  // shift is 0, acc not used
  uint32_t flip, valid;   // bit o of valid: filter o exists
  uint32_t* q;            // [places]
};

// acc'[t * bases + m] = sum_p combine[t][p] * acc[p * bases + m], element by element; both [.][count].
struct CombineArgs {
  const int32_t* acc;
  int32_t* combined;
  const int32_t* combine;  // [outputs][planes]
  int64_t outputs, planes, bases, count;
};

#define XNOR_ACCUMULATE_KERNEL(name, isa, pairs)          \
  void xnor_accumulate_##name(const XnorAccumulateArgs&); \
  void xnor_bits_##name(const XnorBitsArgs&);             \
  void combine_terms_##name(const CombineArgs&);
#include "cpu/xnor_accumulate/kernels.inc"
#undef XNOR_ACCUMULATE_KERNEL

struct XnorAccumulateKernel {
  const char* name;
  Isa isa;
  bool pairs;  // takes pairs, and is faster with them
  void (*accumulate)(const XnorAccumulateArgs&);
  void (*bits)(const XnorBitsArgs&);
  void (*combine)(const CombineArgs&);
};

inline constexpr XnorAccumulateKernel kXnorAccumulateKernels[] = {
#define XNOR_ACCUMULATE_KERNEL(name, isa, pairs) \
  {#name, Isa::isa, pairs, xnor_accumulate_##name, xnor_bits_##name, combine_terms_##name},
#include "cpu/xnor_accumulate/kernels.inc"
#undef XNOR_ACCUMULATE_KERNEL
};

inline const XnorAccumulateKernel& select_xnor_accumulate(IsaMask mask) {
  for (const XnorAccumulateKernel& kernel : kXnorAccumulateKernels)
    if (mask & isa_bit(kernel.isa)) return kernel;
  return kXnorAccumulateKernels[sizeof kXnorAccumulateKernels / sizeof kXnorAccumulateKernels[0] - 1];
}

}  // namespace binarize
