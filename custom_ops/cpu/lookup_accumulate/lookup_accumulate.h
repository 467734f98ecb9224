// The inner product of a run of rows (output pixels, or rows of a matrix) with blocks of 32 filters, where activations
// are unsigned integers of 2 to 6 bits, kept as planes of bits, and weights are +-1:
//
//     acc[block][r][o] = start[r] + 2 * sum_g table[r, g][index[block][g][o]]
//     table[r, g][i] = the sum of the activations of group g whose bits in i are set
//
// A table is the sums of all subsets of a group of four or five channels, and a filter's weights, a bit each, choose
// the one over its +1 weights.  As sum w x = 2 * (sum of x where w is +1) - (sum of x), `start` is minus the sum of the
// row's activations.  So one shuffle multiplies and adds what 64 groups of channels and filters have in common, and a
// table, made once an input pixel, serves all filters, bases and taps.  Padding by zero is a table of zeros.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "cpu/lanes.h"

namespace binarize {

constexpr int kMinLookupPlanes = 2, kMaxLookupPlanes = 6;
constexpr int64_t kMaxLookupChannels = 8192;

// Tables are read in steps of 64 bytes: two tables of groups of five channels, or four of groups of four.  Those of
// neighbouring pixels follow each other, so steps may run over several; the last may read past the tables, to no
// effect.
constexpr int kLookupStep = 64;

struct LookupTablesArgs {
  const uint32_t* x;  // x[plane * plane_stride + word * word_stride + pixel * pixel_stride]
  int64_t plane_stride, word_stride, pixel_stride;  // one of the last two is 1
  int64_t channels;                                 // at most kMaxLookupChannels; bits past them are clear
  int64_t pixels;
  int32_t planes;
  int32_t group;    // LookupFormat::group of the tables
  uint8_t* tables;  // [pixels][LookupFormat::pixel_bytes]
  int32_t* sums;    // [pixels]: of the activations
};

struct LookupAccumulateArgs {
  const uint8_t* tables;
  const int32_t* row_offset;  // [rows], in bytes
  const int32_t* k_offset;    // [steps], in bytes
  const uint8_t* w;           // indices, two blocks together: [blocks / 2][steps][2], then [steps] of a last odd block
  const int32_t* start;       // [rows]
  int32_t* acc;               // acc[block * acc_block_stride + row * acc_stride + filter of the block]
  int64_t acc_block_stride, acc_stride;
  int64_t rows, blocks;
  int32_t steps;
  int32_t planes;
  int32_t group;  // LookupFormat::group of the tables

  // Where a block's weights begin and how far apart those of its steps are, where `step` bytes are the weights of one.
  inline __attribute__((always_inline)) int64_t weights_begin(int64_t block, int64_t step) const {
    return (block / 2 * 2 * steps + block % 2) * step;
  }
  inline __attribute__((always_inline)) int64_t weights_stride(int64_t block, int64_t step) const {
    return block % 2 == 0 && block + 1 == blocks ? step : 2 * step;
  }
};

// How a variant lays out tables and indices.
struct LookupFormat {
  int32_t group;  // channels of a table: 4 or 5
  // The index bytes of a step and a block.
  enum class Order {
    pairs,      // [filter % 16][filter / 16][2 tables]
    quads,      // [filter][4 tables]
    table_rows  // [filter / 16][4 tables][filter % 16]
  } order;

  inline __attribute__((always_inline)) int32_t table_bytes() const { return group == 5 ? 32 : 16; }
  inline __attribute__((always_inline)) int32_t step_tables() const { return kLookupStep / table_bytes(); }
  inline __attribute__((always_inline)) int64_t step_weights() const { return step_tables() * kWordBits; }
  // Of a pixel of so many channels.
  inline __attribute__((always_inline)) int64_t tables(int64_t channels) const {
    return (channels + group - 1) / group;
  }
  inline __attribute__((always_inline)) int64_t pixel_bytes(int64_t channels) const {
    return tables(channels) * table_bytes();
  }
  // For a number of tables that follow each other.
  inline __attribute__((always_inline)) int64_t steps(int64_t tables) const {
    return (tables + step_tables() - 1) / step_tables();
  }
};

// Writes the indices of one filter for the channels of one pixel, whose tables begin at table `first_table` of a step.
// Indices that nothing writes are to be 0: that is the sum of no channel.
struct LookupWeightsArgs {
  const uint32_t* words;  // word j is words[j * word_stride]
  int64_t word_stride;
  int64_t channels, first_table;
  int32_t filter;  // of the block
  uint8_t* w;      // the step's
  int64_t w_stride;
};
void fill_lookup_weights(const LookupFormat& format, const LookupWeightsArgs& args);

struct LookupAccumulateKernel {
  const char* name;
  Isa isa;
  // For products over `taps` pixels of so many channels.
  LookupFormat (*format)(int32_t planes, int64_t channels, int64_t taps);
  void (*tables)(const LookupTablesArgs&);
  void (*accumulate)(const LookupAccumulateArgs&);
};

#if defined(__x86_64__)
#define LOOKUP_ACCUMULATE_KERNEL(name, isa)                                          \
  LookupFormat lookup_format_##name(int32_t planes, int64_t channels, int64_t taps); \
  void lookup_tables_##name(const LookupTablesArgs&);                                \
  void lookup_accumulate_##name(const LookupAccumulateArgs&);
#include "cpu/lookup_accumulate/kernels.inc"
#undef LOOKUP_ACCUMULATE_KERNEL

inline constexpr LookupAccumulateKernel kLookupAccumulateKernels[] = {
#define LOOKUP_ACCUMULATE_KERNEL(name, isa) \
  {#name, Isa::isa, lookup_format_##name, lookup_tables_##name, lookup_accumulate_##name},
#include "cpu/lookup_accumulate/kernels.inc"
#undef LOOKUP_ACCUMULATE_KERNEL
};
#endif

// Null where no variant runs.
inline const LookupAccumulateKernel* find_lookup_accumulate([[maybe_unused]] IsaMask mask) {
#if defined(__x86_64__)
  for (const LookupAccumulateKernel& kernel : kLookupAccumulateKernels)
    if (mask & isa_bit(kernel.isa)) return &kernel;
#endif
  return nullptr;
}

}  // namespace binarize
