// Values to bits:
//
//     g[p] = v >= threshold[p];    bit[b] = (sum_p encode[b][p] * g[p] mod 2) XOR flip[b]
//
// packed 32 to a word.  "Across" packs the rows: word lane l holds element (r, l) in bit r.  "Along" packs the lanes of
// each row: word j holds elements 32j .. 32j+31.  Bits past the last row or lane are 0.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "cpu/lanes.h"

namespace binarize {

struct PackBitsArgs {
  const float* v;  // one of v and v_half
  const uint16_t* v_half;
  int64_t v_row_stride;
  int64_t rows, lanes;  // across: rows <= 32
  Operand<float> threshold;
  int64_t threshold_plane_stride, thresholds;
  Operand<uint8_t> flip;  // data == nullptr: no flip
  int64_t flip_plane_stride;
  const uint8_t* encode;  // [planes][thresholds] of 0 and 1, or null: the identity (planes == thresholds)
  int64_t planes;
  bool positional;     // encode[b][p] is 1 where 2^b divides p + 1, for all p < 2^planes - 1
  const float* trees;  // what fill_search_trees writes for row 0 and those behind it, or null: not made yet
  uint32_t* q;
  int64_t q_plane_stride;
  int64_t q_row_stride;  // along only
};

// The special case that needs no float at all: acc >= threshold for 32 filters a row, one word a row.
struct PackAccumulatorsArgs {
  const int32_t* acc;        // [rows][32]
  const int32_t* threshold;  // [32]
  uint32_t flip;             // bit o: flip filter o
  uint32_t valid;            // bit o: filter o exists
  uint32_t* q;               // [rows]
  int64_t rows;
};

// A positional code of ascending thresholds is the number of those that are reached: it is searched for, a comparison a
// plane, from the highest plane down.  Of a row, tree[2^s + j] is what step s compares with where step i < s has found
// bit i of j.
constexpr int64_t kMaxSearchPlanes = 6;
constexpr int64_t kSearchTree = 80;  // floats a row: kernels read 16 from the beginning of a step
// Writes the trees of `rows` rows from `row` on, each search_tree_stride(args) behind the one before: rows of the same
// thresholds share a tree.  False where there is nothing to search: another code, thresholds that differ from lane to
// lane, or that do not ascend.
bool fill_search_trees(const PackBitsArgs& args, int64_t row, int64_t rows, float* trees);
static inline int64_t search_tree_stride(const PackBitsArgs& args) {
  return args.threshold.row_stride ? kSearchTree : 0;
}
// Those of `rows` rows from `row` on: the caller's, or made in `storage`.  Null where there is nothing to search.
static inline const float* search_trees(const PackBitsArgs& args, int64_t row, int64_t rows, float* storage) {
  if (args.trees) return args.trees + row * search_tree_stride(args);
  return fill_search_trees(args, row, rows, storage) ? storage : nullptr;
}

#define PACK_BITS_KERNEL(name, isa)             \
  void pack_across_##name(const PackBitsArgs&); \
  void pack_along_##name(const PackBitsArgs&);  \
  void pack_accumulators_##name(const PackAccumulatorsArgs&);
#include "cpu/pack_bits/kernels.inc"
#undef PACK_BITS_KERNEL

struct PackBitsKernel {
  const char* name;
  Isa isa;
  void (*across)(const PackBitsArgs&);
  void (*along)(const PackBitsArgs&);
  void (*accumulators)(const PackAccumulatorsArgs&);
};

inline constexpr PackBitsKernel kPackBitsKernels[] = {
#define PACK_BITS_KERNEL(name, isa) {#name, Isa::isa, pack_across_##name, pack_along_##name, pack_accumulators_##name},
#include "cpu/pack_bits/kernels.inc"
#undef PACK_BITS_KERNEL
};

inline const PackBitsKernel& select_pack_bits(IsaMask mask) {
  for (const PackBitsKernel& kernel : kPackBitsKernels)
    if (mask & isa_bit(kernel.isa)) return kernel;
  return kPackBitsKernels[sizeof kPackBitsKernels / sizeof kPackBitsKernels[0] - 1];
}

}  // namespace binarize
