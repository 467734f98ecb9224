// Matrix products of low-bit activations by table lookup (cpu/lookup_accumulate), as lookup_conv.h: a row of A is a
// pixel.
#pragma once

#include "cpu/lookup_accumulate/lookup_accumulate.h"
#include "ops/ort.h"

namespace binarize {

class LookupMatMul {
 public:
  // Columns that are accumulated together.
  static constexpr int64_t kTileColumns = 128;

  static bool fits(int64_t k, int64_t planes) {
    return planes >= kMinLookupPlanes && planes <= kMaxLookupPlanes && k <= kMaxLookupChannels;
  }
  // `b`: [words of k][bases x columns].
  LookupMatMul(const LookupAccumulateKernel& kernel, int64_t k, int64_t planes, int64_t bases, int64_t columns,
               const uint32_t* b);

  // Rows whose tables are made and read together, a multiple of `tile`.
  int64_t wave_rows(int64_t tile) const;

  struct Rows {
    uint8_t* tables;
    int32_t* start;
  };
  // Scratch for the tables of so many rows.
  Rows allocate(Call& call, int64_t rows) const;
  // Of `count` rows from `first` on; row 0 begins at `a`, and rows are a_stride words apart.
  void make_tables(const uint32_t* a, int64_t a_stride, int64_t first, int64_t count, const Rows& rows) const;
  // Accumulators [bases][basis_stride], in each [count][acc_stride], of rows and of the tile of columns from `column`
  // on.
  void accumulate(const Rows& rows, int64_t first, int64_t count, int64_t column, int64_t acc_stride,
                  int64_t basis_stride, int32_t* acc) const;

 private:
  static constexpr int64_t kTileBlocks = kTileColumns / kWordBits;
  int64_t words() const { return ceil_div(k_, kWordBits); }
  int64_t blocks() const { return ceil_div(columns_, kWordBits); }
  int64_t row_bytes() const { return format_.pixel_bytes(k_); }
  // The weights of one basis for the tile of columns that block `first` begins.
  int64_t tile_begin(int64_t basis, int64_t first) const {
    return (basis * blocks() + first) * steps_ * format_.step_weights();
  }

  const LookupAccumulateKernel& kernel_;
  int64_t k_, planes_, bases_, columns_;
  LookupFormat format_;
  int64_t steps_;
  AlignedArray<uint8_t> weights_;   // [bases][tiles of columns][the tile's blocks] as the kernel reads them
  AlignedArray<int32_t> k_offset_;  // [steps]
};

}  // namespace binarize
