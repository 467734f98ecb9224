// What follows the accumulator, on a block of rows x lanes; every step rounds once, in float32, in this order:
//
//     z = scale[0] * acc[0];  for s = 1 ... terms-1: z = z + scale[s] * acc[s]
//     z = z * gate
//     z = z + bias
//     z = z > 0 ? z : z * slope_pre
//     z = z + residual
//     z = z + shift;  z = z > 0 ? z : z * slope;  z = z + offset
//     y = z in y's type;  v = y in float32
//
// Products and sums are separate operations (no FMA), so every instruction set gives the same bits.
// Lanes are output pixels in a convolution, output columns in a matrix product.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "cpu/lanes.h"
#include "cpu/pack_bits/pack_bits.h"

namespace binarize {

struct EpilogueArgs {
  int64_t rows, lanes;
  int64_t terms;
  const int32_t* acc;  // [terms][rows][lanes] by these strides
  int64_t acc_term_stride, acc_row_stride;
  Operand<float> scale;
  int64_t scale_term_stride;
  Operand<float> gate, bias, slope_pre;
  // Row r of the residual is row (residual_first + r) % residual_rows: channels may repeat.  float32 or float16.
  Operand<float> residual;
  const uint16_t* residual_half;  // instead of residual.data
  int64_t residual_first, residual_rows;
  Operand<float> shift, slope, offset;
  float* y;          // null: not wanted
  uint16_t* y_half;  // null: not wanted.  At most one of the two.
  int64_t y_row_stride;
  float* v;  // null: not wanted
  int64_t v_row_stride;
  bool round_to_half;  // v is rounded to float16 even where y_half is null
};

// The same from accumulators that stand lane by lane, as a convolution makes them: acc is [terms][lanes][32], of whose
// 32 the first `rows` exist; lanes are readable up to the next multiple of 16.  `turned` is scratch for
// [terms][32][turned_stride], turned_stride the lanes rounded up to a multiple of 16 or more; v may be its first term.
//
// `pack` asks for the bits of the values too: packed across, as they are made.  A kernel returns whether it did; it has
// then not written v.  If it did not, y or v is there to be packed.
struct TurnedEpilogueArgs {
  EpilogueArgs epilogue;  // acc_row_stride is not used
  int32_t* turned;
  int64_t turned_stride;
  const PackBitsArgs* pack;  // null: not wanted.  Its v is not read
};

#define EPILOGUE_KERNEL(name, isa)           \
  void epilogue_##name(const EpilogueArgs&); \
  bool turned_epilogue_##name(const TurnedEpilogueArgs&);
#include "cpu/epilogue/kernels.inc"
#undef EPILOGUE_KERNEL

struct EpilogueKernel {
  const char* name;
  Isa isa;
  void (*epilogue)(const EpilogueArgs&);
  bool (*turned_epilogue)(const TurnedEpilogueArgs&);
};

inline constexpr EpilogueKernel kEpilogueKernels[] = {
#define EPILOGUE_KERNEL(name, isa) {#name, Isa::isa, epilogue_##name, turned_epilogue_##name},
#include "cpu/epilogue/kernels.inc"
#undef EPILOGUE_KERNEL
};

inline const EpilogueKernel& select_epilogue(IsaMask mask) {
  for (const EpilogueKernel& kernel : kEpilogueKernels)
    if (mask & isa_bit(kernel.isa)) return kernel;
  return kEpilogueKernels[sizeof kEpilogueKernels / sizeof kEpilogueKernels[0] - 1];
}

}  // namespace binarize
