#include "ops/lookup_matmul.h"

#include <algorithm>

namespace binarize {
namespace {

constexpr int64_t kWaveBytes = int64_t{4} << 20;  // as in lookup_conv.cc

}  // namespace

LookupMatMul::LookupMatMul(const LookupAccumulateKernel& kernel, int64_t k, int64_t planes, int64_t bases,
                           int64_t columns, const uint32_t* b)
    : kernel_(kernel),
      k_(k),
      planes_(planes),
      bases_(bases),
      columns_(columns),
      format_(kernel.format(static_cast<int32_t>(planes), k, 1)),
      steps_(format_.steps(format_.tables(k))) {
  const int64_t block_bytes = steps_ * format_.step_weights();
  const int64_t bytes = checked_product(bases * blocks(), block_bytes, "the indices of the weights");
  weights_ = aligned_array<uint8_t>(bytes);
  std::fill_n(weights_.get(), bytes, uint8_t{0});  // of columns that do not exist
  for (int64_t basis = 0; basis < bases; ++basis)
    for (int64_t column = 0; column < columns; ++column) {
      const int64_t block = column / kWordBits, first = block / kTileBlocks * kTileBlocks;
      LookupAccumulateArgs tile{};
      tile.steps = static_cast<int32_t>(steps_);
      tile.blocks = std::min(kTileBlocks, blocks() - first);
      LookupWeightsArgs args{};
      args.words = b + basis * columns + column;
      args.word_stride = bases * columns;
      args.channels = k;
      args.filter = static_cast<int32_t>(column % kWordBits);
      args.w = weights_.get() + tile_begin(basis, first) + tile.weights_begin(block - first, format_.step_weights());
      args.w_stride = tile.weights_stride(block - first, format_.step_weights());
      fill_lookup_weights(format_, args);
    }
  k_offset_ = aligned_array<int32_t>(steps_);
  for (int64_t step = 0; step < steps_; ++step)
    k_offset_[static_cast<size_t>(step)] = static_cast<int32_t>(step * kLookupStep);
}

int64_t LookupMatMul::wave_rows(int64_t tile) const {
  return std::max<int64_t>(1, kWaveBytes / row_bytes() / tile) * tile;
}

LookupMatMul::Rows LookupMatMul::allocate(Call& call, int64_t rows) const {
  const int64_t bytes = checked_product(rows, row_bytes(), "the tables of rows");
  Rows out{call.scratch<uint8_t>(bytes + kLookupStep), call.scratch<int32_t>(rows)};
  std::fill_n(out.tables + bytes, kLookupStep, uint8_t{0});  // may be read, to no effect
  return out;
}

void LookupMatMul::make_tables(const uint32_t* a, int64_t a_stride, int64_t first, int64_t count,
                               const Rows& rows) const {
  kernel_.tables({a + first * a_stride, words(), 1, a_stride, k_, count, static_cast<int32_t>(planes_), format_.group,
                  rows.tables + first * row_bytes(), rows.start + first});
  for (int64_t i = first; i < first + count; ++i) rows.start[i] = -rows.start[i];
}

void LookupMatMul::accumulate(const Rows& rows, int64_t first, int64_t count, int64_t column, int64_t acc_stride,
                              int64_t basis_stride, int32_t* acc) const {
  constexpr int64_t kMostRows = 64;
  int32_t row_offset[kMostRows];
  const int64_t block = column / kWordBits;
  for (int64_t begin = 0; begin < count; begin += kMostRows) {
    LookupAccumulateArgs args{};
    args.rows = std::min(kMostRows, count - begin);
    for (int64_t i = 0; i < args.rows; ++i) row_offset[i] = static_cast<int32_t>(i * row_bytes());
    args.tables = rows.tables + (first + begin) * row_bytes();
    args.row_offset = row_offset;
    args.k_offset = k_offset_.get();
    args.start = rows.start + first + begin;
    args.acc_block_stride = kWordBits;
    args.acc_stride = acc_stride;
    args.blocks = std::min(kTileBlocks, blocks() - block);
    args.steps = static_cast<int32_t>(steps_);
    args.planes = static_cast<int32_t>(planes_);
    args.group = format_.group;
    for (int64_t basis = 0; basis < bases_; ++basis) {
      args.w = weights_.get() + tile_begin(basis, block);
      args.acc = acc + basis * basis_stride + begin * acc_stride;
      kernel_.accumulate(args);
    }
  }
}

}  // namespace binarize
