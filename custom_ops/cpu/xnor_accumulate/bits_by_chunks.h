// Bits for the variants that have no way to them but through the accumulators.
#pragma once

#include "cpu/xnor_accumulate/xnor_accumulate.h"

namespace binarize {

// sign_bits(acc): bit o is set where acc[o] < 0, of 32.  A template of internal linkage: each variant has its own copy,
// compiled for its instruction set.
template <class SignBits>
static inline void bits_by_chunks(const XnorBitsArgs& args, void (*accumulate)(const XnorAccumulateArgs&),
                                  SignBits sign_bits) {
  constexpr int64_t kRows = 28;  // 3.5 KB of accumulators: they stay in the first-level cache
  alignas(64) int32_t acc[kRows * kWordBits];
  int32_t row_place[kRows];
  for (int32_t r = 0; r < kRows; ++r) row_place[r] = r;
  XnorAccumulateArgs chunk = args.in;
  chunk.acc = acc;
  chunk.acc_stride = kWordBits;
  chunk.row_place = row_place;
  for (int64_t row = 0; row < args.in.rows; row += kRows) {
    chunk.rows = args.in.rows - row < kRows ? args.in.rows - row : kRows;
    chunk.row_offset = args.in.row_offset + row;
    accumulate(chunk);
    for (int64_t r = 0; r < chunk.rows; ++r)
      args.q[args.in.row_place[row + r]] = (~sign_bits(acc + r * kWordBits) ^ args.flip) & args.valid;
  }
}

}  // namespace binarize
