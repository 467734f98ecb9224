// Rows of a matrix times a matrix of packed columns, and what follows, without accumulators in memory:
//
//     acc[r][c] = base[c] - (sum_k popcount(x[r][k] ^ w[k][c])) << shift
//     y[r][c]   = epilogue(acc[r][c])                     as in cpu/epilogue/epilogue.h, with one term
//     q[r][c]   = the bits of y                           as in cpu/pack_bits/pack_bits.h, packed along c
//
// The same as xnor_accumulate, epilogue and pack_bits one after the other (x and base as there, no mask).  It exists
// for instruction sets that count so fast that carrying accumulators through memory would be seen: the op takes 332 us
// for 128 x 768 x 3072 on a Zen 4, one thread, in three steps, and 258 us in one.  Other sets have no variant.
#pragma once

#include "cpu/epilogue/epilogue.h"
#include "cpu/pack_bits/pack_bits.h"

namespace binarize {

struct XnorProductArgs {
  const uint32_t* x;  // [rows][k_words]
  int64_t x_row_stride;
  const uint32_t* w;    // [ceil(lanes / 32)][k_words][32], aligned to a cache line
  const int32_t* base;  // [ceil(lanes / 32)][32], aligned to a cache line
  int32_t k_words;      // at least 1
  int32_t shift;
  EpilogueArgs epilogue;  // rows, lanes (the columns), operands and outputs; no accumulators, one term
  PackBitsArgs bits;      // thresholds, flips and where bits go, without encode; q == nullptr: not wanted
};

#define XNOR_PRODUCT_KERNEL(name, isa) void xnor_product_##name(const XnorProductArgs&);
#include "cpu/xnor_product/kernels.inc"
#undef XNOR_PRODUCT_KERNEL

struct XnorProductKernel {
  const char* name;
  Isa isa;
  void (*product)(const XnorProductArgs&);  // null: not made for this instruction set
};

inline constexpr XnorProductKernel kXnorProductKernels[] = {
#define XNOR_PRODUCT_KERNEL(name, isa) {#name, Isa::isa, xnor_product_##name},
#include "cpu/xnor_product/kernels.inc"
#undef XNOR_PRODUCT_KERNEL
    {"none", Isa::scalar, nullptr},
};

inline const XnorProductKernel& select_xnor_product(IsaMask mask) {
  for (const XnorProductKernel& kernel : kXnorProductKernels)
    if (mask & isa_bit(kernel.isa)) return kernel;
  return kXnorProductKernels[sizeof kXnorProductKernels / sizeof kXnorProductKernels[0] - 1];
}

}  // namespace binarize
