// The inner product of a run of rows (output pixels, or rows of a matrix) with 32 filters.
//
//     acc[r][o] = base[class(r)][o] - (sum_k popcount((x[row_offset[r] + k_offset[k]] ^ w[k][o]) & mask[k][o])) <<
//     shift
//
// With x and w of +-1 and K their length: shift = 1, base = K.  With x in {0, 1}: shift = 0, base = the number of +1
// weights.  What padding adds is in base, one vector a border class.  Lanes are filters, so nothing is summed across
// lanes and K needs no tail; one activation word is broadcast to all of them.
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
};

// acc'[t * bases + m] = sum_p combine[t][p] * acc[p * bases + m], element by element; both [.][count].
struct CombineArgs {
  const int32_t* acc;
  int32_t* combined;
  const int32_t* combine;  // [outputs][planes]
  int64_t outputs, planes, bases, count;
};

#define XNOR_ACCUMULATE_KERNEL(name, isa)                 \
  void xnor_accumulate_##name(const XnorAccumulateArgs&); \
  void combine_terms_##name(const CombineArgs&);
#include "cpu/xnor_accumulate/kernels.inc"
#undef XNOR_ACCUMULATE_KERNEL

struct XnorAccumulateKernel {
  const char* name;
  Isa isa;
  void (*accumulate)(const XnorAccumulateArgs&);
  void (*combine)(const CombineArgs&);
};

inline constexpr XnorAccumulateKernel kXnorAccumulateKernels[] = {
#define XNOR_ACCUMULATE_KERNEL(name, isa) {#name, Isa::isa, xnor_accumulate_##name, combine_terms_##name},
#include "cpu/xnor_accumulate/kernels.inc"
#undef XNOR_ACCUMULATE_KERNEL
};

inline const XnorAccumulateKernel& select_xnor_accumulate(IsaMask mask) {
  for (const XnorAccumulateKernel& kernel : kXnorAccumulateKernels)
    if (mask & isa_bit(kernel.isa)) return kernel;
  return kXnorAccumulateKernels[sizeof kXnorAccumulateKernels / sizeof kXnorAccumulateKernels[0] - 1];
}

}  // namespace binarize
