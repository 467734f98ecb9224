// The inner product of a run of rows (output pixels, or rows of a matrix) with 32 filters.
//
//     acc[r][o] = base[class(r)][o] - (sum_k popcount((x[row_offset[r] + k_offset[k]] ^ w[k][o]) & mask[k][o])) <<
//     shift
//
// With x and w of +-1 and K their length: shift = 1, base = K.  With x in {0, 1}: shift = 0, base = the number of +1
// weights.  What padding adds is in base, one vector a border class.  Lanes are filters, so nothing is summed across
// lanes and K needs no tail; one activation word is broadcast to all of them.
//
// Pairs: the words 2i and 2i + 1, i < pairs, are stored as (word, word ^ next word), in x and in w alike.  XOR of both
// sides then says where the first words differ and the parity of the differences of both, which is what a carry-save
// adder wants: two words cost five vector operations instead of six.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "cpu/lanes.h"

namespace binarize {

struct XnorAccumulateArgs {
  const uint32_t* x;
  const int32_t* row_offset;  // [rows], in words
  const int32_t* k_offset;    // [k_words], in words
  const uint32_t* w;          // [k_words][32]
  const uint32_t* mask;       // [k_words][32], or null: all ones
  const int32_t* base;        // [classes][32]
  const int32_t* row_class;   // [rows], or null: class 0
  int32_t* acc;               // [rows][acc_stride], 32 of them written
  int64_t acc_stride;
  int64_t rows;
  int32_t k_words;  // at least 1
  int32_t shift;
  int32_t pairs = 0;  // 0 with a mask, and for variants that do not take them
};

// Bits instead of accumulators: bit o of q[r] is acc[r][o] >= 0, XOR bit o of flip.
struct XnorBitsArgs {
  XnorAccumulateArgs in;  // shift is 0, acc not used
  uint32_t flip, valid;   // bit o of valid: filter o exists
  uint32_t* q;            // [rows]
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
