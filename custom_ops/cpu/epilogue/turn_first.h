// The turned epilogue of the variants that turn all accumulators before they begin.
#pragma once

#include "cpu/epilogue/epilogue.h"

namespace binarize {

// turn(from, to, lanes, to_stride): to[row][lane] = from[lane][row] for 32 rows.  A template of internal linkage: each
// variant has its own copy, compiled for its instruction set.
template <class Turn>
static inline bool turn_first(const TurnedEpilogueArgs& args, Turn turn, void (*epilogue)(const EpilogueArgs&)) {
  EpilogueArgs rows = args.epilogue;
  for (int64_t term = 0; term < rows.terms; ++term)
    turn(rows.acc + term * rows.acc_term_stride, args.turned + term * kWordBits * args.turned_stride, rows.lanes,
         args.turned_stride);
  rows.acc = args.turned;
  rows.acc_term_stride = kWordBits * args.turned_stride;
  rows.acc_row_stride = args.turned_stride;
  epilogue(rows);
  return false;
}

}  // namespace binarize
