// XnorMatMul(A, B, epilogue...; k, x_low, dtype) -> Y, Q
//
// A is [..., M, planes * words], B is [..., words, bases * N]; batch dimensions broadcast as numpy's do.  Lanes are
// columns.  One plane times one basis goes to the outputs directly, where there is a kernel for it; else a call goes
// over tiles of rows x columns: accumulate, apply the epilogue, pack.
#include <algorithm>
#include <array>
#include <optional>

#include "cpu/xnor_accumulate/xnor_accumulate.h"
#include "cpu/xnor_product/xnor_product.h"
#include "ops/epilogue.h"
#include "ops/lookup_matmul.h"
#include "ops/ops.h"
#include "ops/xnor_weights.h"

namespace binarize {
namespace {

enum Input : size_t { kA, kB };
constexpr const char* const* kInputNames = kMatMulInputNames;

struct MatMulAttributes {
  int64_t k, x_low, dtype;

  explicit MatMulAttributes(const Attributes& attributes) {
    k = attributes.integer_in("k", 1, (1 << 24) - 1);
    x_low = attributes.integer_in("x_low", -1, 0);
    dtype = attributes.integer("dtype");
    if (dtype != ORT_FLOAT && dtype != ORT_FLOAT16)
      fail("attribute 'dtype' is ", dtype, ", expected 1 (float32) or 10 (float16)");
  }
  int64_t words() const { return ceil_div(k, kWordBits); }
};

// What fill_block does where nothing is masked: the words of 32 columns lie side by side in B, `stride` from one k to
// the next.  A run-time B is rearranged in every call, so this counts.
void fill_columns(const XnorWeightsLayout& layout, const XnorWeights& weights, int64_t block, const uint32_t* source,
                  int64_t stride, int64_t count) {
  uint32_t* words = weights.words + block * layout.k_words() * kWordBits;
  int32_t* base = weights.base + block * kWordBits;
  for (int lane = 0; lane < kWordBits; ++lane)
    base[lane] = layout.x_low == -1 && lane < count ? static_cast<int32_t>(layout.length) : 0;
  for (int64_t k = 0; k < layout.k_words(); ++k, source += stride, words += kWordBits) {
    const uint32_t valid = valid_lanes(layout.length, k);
    if (count < kWordBits) std::fill_n(words, kWordBits, 0u);
    for (int64_t lane = 0; lane < count; ++lane) words[lane] = source[lane] & valid;
    if (layout.x_low == 0)
      for (int lane = 0; lane < kWordBits; ++lane) base[lane] += __builtin_popcount(words[lane]);
  }
}

struct MatMulShapes {
  int64_t planes = kUnknown, bases = kUnknown, columns = kUnknown;
  Shape y, q;  // rank unknown where A's or B's is
};

MatMulShapes check_matmul(const MatMulAttributes& attributes, const Shape* shapes) {
  MatMulShapes out;
  const Shape &a = shapes[kA], &b = shapes[kB], &mask = shapes[kMask], &scale = shapes[kScale];
  const int64_t words = attributes.words();
  for (size_t i : {kA, kB})
    if (shapes[i].known_rank() && (shapes[i].rank < 2 || shapes[i].rank > kMaxRank))
      fail("input ", kInputNames[i], " has shape ", to_string(shapes[i]), ", expected a rank from 2 to ", kMaxRank);
  for (size_t i : {kA, kB})
    for (int d = 0; d < shapes[i].rank; ++d)
      if (shapes[i].dim[d] == 0)
        fail("input ", kInputNames[i], " has shape ", to_string(shapes[i]), ", expected no empty dimension");
  if (a.known_rank()) {
    if (a.back() >= 0 && a.back() % words)
      fail("input A has ", a.back(), " words on its last axis, expected a multiple of ", words, " for k ",
           attributes.k);
    if (a.back() >= 0) out.planes = a.back() / words;
    if (a.fully_known()) element_count(a, "input A");
  }
  if (scale.known_rank()) {
    if (scale.rank != 3) fail("input scale has shape ", to_string(scale), ", expected rank 3: [S, 1, N]");
    out.columns = scale.dim[2];
    if (out.columns == 0) fail("input scale has shape ", to_string(scale), ", expected at least one output column");
  }
  if (b.known_rank()) {
    if (b.back(2) >= 0 && b.back(2) != words)
      fail("input B has ", b.back(2), " words on its last axis but one, expected ", words, " for k ", attributes.k);
    if (b.back() >= 0 && out.columns > 0) {
      if (b.back() % out.columns)
        fail("input B has ", b.back(), " columns, expected a multiple of the ", out.columns, " columns of input scale");
      out.bases = b.back() / out.columns;
    }
    if (b.fully_known()) element_count(b, "input B");
    if (mask.known_rank()) {
      const int64_t mask_words = mask.rank >= 2 ? mask.back(2) : 1;
      if (mask.rank < 2 || !broadcasts_to(mask, b) || (mask_words >= 0 && mask_words != words))
        fail("input mask has shape ", to_string(mask), ", expected B's ", to_string(b), " or the neutral [", words,
             ", 1]");
    }
  }
  if (a.known_rank() && b.known_rank()) {
    out.y = broadcast_dims(a, a.rank - 2, b, b.rank - 2, "the batch dimensions of inputs A and B,");
    out.y.dim[out.y.rank++] = a.back(2);
    out.y.dim[out.y.rank++] = out.columns;
  }
  const EpilogueShapes epilogue =
      check_epilogue(shapes, out.y, out.columns, Layout::channels_last, out.planes, out.bases);
  out.q = out.y;
  if (out.q.known_rank())
    out.q.dim[out.q.rank - 1] = epilogue.planes_out >= 0 && out.columns > 0
                                    ? checked_product(epilogue.planes_out, ceil_div(out.columns, kWordBits), "output Q")
                                    : kUnknown;
  if (out.y.fully_known()) element_count(out.y, "output Y");
  if (out.q.fully_known()) element_count(out.q, "output Q");
  return out;
}

class XnorMatMul {
 public:
  static constexpr const char* kName = "XnorMatMul";

  XnorMatMul(const OrtApi* api, const OrtKernelInfo* info, IsaMask isas)
      : attributes_(Attributes(api, info)),
        xnor_(select_xnor_accumulate(isas)),
        product_(select_xnor_product(isas)),
        epilogue_kernel_(select_epilogue(isas)),
        pack_(select_pack_bits(isas)) {
    if (input_count(api, info) != kXnorInputs) fail("has ", input_count(api, info), " inputs, expected ", +kXnorInputs);
    Shape shapes[kXnorInputs];
    for (size_t i = 0; i < kXnorInputs; ++i) {
      constants_[i] = constant_input(api, info, i, kInputNames[i]);
      shapes[i] = constants_[i].shape;
    }
    const MatMulShapes known = check_matmul(attributes_, shapes);
    epilogue_.emplace(constants_.data(), Layout::channels_last, attributes_.dtype);
    if (constants_[kCombine].data) combine_ = read_combine(constants_[kCombine], attributes_.k);
    if (constants_[kB].data && constants_[kMask].data && known.bases > 0) {
      if (make_lookup(known, isas)) return;
      layout_ = weights_layout(known, constants_.data());
      buffer_ = aligned_array<uint32_t>(layout_->buffer_words());
      weights_ = XnorWeights(*layout_, buffer_.get());
      for (int64_t block = 0; block < layout_->blocks; ++block)
        fill_weights(known, constants_.data(), *layout_, weights_, block);
    }
  }

  static void infer(Inference& inference) {
    const MatMulAttributes attributes(inference.attributes());
    Shape shapes[kXnorInputs];
    for (size_t i = 0; i < kXnorInputs; ++i) shapes[i] = inference.input(i).shape;
    const MatMulShapes found = check_matmul(attributes, shapes);
    if (!found.y.known_rank()) return;
    const SymbolicShape a = inference.input(kA), b = inference.input(kB);
    SymbolicShape y;
    y.shape = found.y;
    const int rank = found.y.rank;
    for (int i = 0; i < rank - 1; ++i) {
      if (y.shape.dim[i] >= 0) continue;
      const int in_a = i - (rank - a.shape.rank), in_b = i - (rank - b.shape.rank);
      const bool row = i == rank - 2;  // rows come from A alone
      const bool b_is_one = row || in_b < 0 || b.shape.dim[in_b] == 1, a_is_one = in_a < 0 || a.shape.dim[in_a] == 1;
      if (b_is_one && in_a >= 0)
        y.symbol[i] = a.symbol[in_a];
      else if (a_is_one && in_b >= 0)
        y.symbol[i] = b.symbol[in_b];
      else if (in_a >= 0 && in_b >= 0 && a.symbol[in_a] == b.symbol[in_b])
        y.symbol[i] = a.symbol[in_a];
    }
    SymbolicShape q = y;
    q.shape = found.q;
    inference.output(0, static_cast<OrtElementType>(attributes.dtype), y);
    inference.output(1, ORT_UINT32, q);
  }

  void compute(Call& call) const {
    Tensor in[kXnorInputs];
    Shape shapes[kXnorInputs];
    for (size_t i = 0; i < kXnorInputs; ++i) {
      in[i] = constants_[i].data ? constants_[i] : call.input(i, kInputNames[i]);
      shapes[i] = in[i].shape;
    }
    for (size_t i : {+kA, +kB, size_t{kMask}}) expect_type(in[i], kInputNames[i], ORT_UINT32);
    const MatMulShapes s = check_matmul(attributes_, shapes);
    void* y = call.output(0, s.y);
    uint32_t* q = static_cast<uint32_t*>(call.output(1, s.q));
    if (!y && !q) return;

    std::optional<Combine> run_time_combine;
    if (!combine_) run_time_combine = read_combine(in[kCombine], attributes_.k);
    const Combine& combine = combine_ ? *combine_ : *run_time_combine;
    XnorWeights weights = weights_;
    XnorWeightsLayout layout;
    if (layout_) {
      layout = *layout_;
    } else if (!lookup_) {
      layout = weights_layout(s, in);
      weights = XnorWeights(layout, call.scratch<uint32_t>(layout.buffer_words()));
      constexpr int64_t kTaskWords = 1 << 15;  // a few microseconds
      const int64_t tasks = std::min(layout.blocks, layout.blocks * layout.k_words() * kWordBits / kTaskWords + 1);
      call.parallel_for(tasks, [&](int64_t task) {
        const Piece mine(layout.blocks, task, tasks);
        for (int64_t block = mine.begin; block < mine.end; ++block) fill_weights(s, in, layout, weights, block);
      });
    }
    EpilogueCall epilogue(call, *epilogue_, in, s.y);
    Job job{s, in, layout, weights, combine, epilogue, y, q};
    job.rows = s.y.back(2);
    for (int i = 0; i < s.y.rank - 2; ++i) job.batches *= s.y.dim[i];
    // One matrix B for a batch of matrices A: their rows are one long list, and tiles need not end with each matrix.
    const Shape &a = in[kA].shape, &b = in[kB].shape;
    const bool one_b = element_count(b, "input B") == b.back() * b.back(2);
    const bool whole_a = element_count(a, "input A") == job.batches * job.rows * a.back();
    if (job.batches > 1 && one_b && whole_a && epilogue.collapse_rows(job.rows)) {
      job.rows *= job.batches;
      job.batches = 1;
    }
    product_suffices(job) ? run_product(call, job) : run(call, job);
  }

 private:
  struct Job {
    const MatMulShapes& s;
    const Tensor* in;
    const XnorWeightsLayout& layout;
    const XnorWeights& weights;
    const Combine& combine;
    const EpilogueCall& epilogue;
    void* y;
    uint32_t* q;
    int64_t batches = 1, rows = 1;
    const int32_t *row_offset = nullptr, *row_place = nullptr;
    const XnorWord* k_words = nullptr;
    // Where activations are looked up: the tables of the rows from first_row on.
    LookupMatMul::Rows tables{};
    int64_t first_row = 0;
    // A work item: this many rows and columns
    int64_t tile_rows = 0, tile_columns = 0;
  };

  // The part of a list of `count` that falls to piece `piece` of `pieces`.
  struct Piece {
    int64_t begin, end;
    Piece(int64_t count, int64_t piece, int64_t pieces)
        : begin(count * piece / pieces), end(count * (piece + 1) / pieces) {}
  };

  static int64_t matrices(const Shape& shape) {
    int64_t count = 1;
    for (int i = 0; i < shape.rank - 2; ++i) count *= shape.dim[i];
    return count;
  }
  static int64_t column_blocks(const MatMulShapes& s) { return ceil_div(s.columns, kWordBits); }

  // Planes that are the bits of one unsigned activation, times one constant matrix of +-1: looked up where a kernel
  // does that.
  bool make_lookup(const MatMulShapes& s, IsaMask isas) {
    const LookupAccumulateKernel* kernel = find_lookup_accumulate(isas);
    const Tensor &b = constants_[kB], &mask = constants_[kMask];
    const int64_t most_bases = kStackWords / (LookupMatMul::kTileColumns * kTileRows);
    if (!kernel || attributes_.x_low != 0 || !combine_ || !combine_->positional || matrices(b.shape) != 1 ||
        s.bases > most_bases || !LookupMatMul::fits(attributes_.k, combine_->planes))
      return false;
    expect_type(b, "B", ORT_UINT32);
    expect_type(mask, "mask", ORT_UINT32);
    if (!mask_is_neutral(mask, mask.shape.rank - 2, attributes_.k)) return false;
    lookup_.emplace(*kernel, attributes_.k, combine_->planes, s.bases, s.columns, b.as<uint32_t>());
    return true;
  }

  XnorWeightsLayout weights_layout(const MatMulShapes& s, const Tensor* in) const {
    XnorWeightsLayout layout;
    expect_type(in[kB], "B", ORT_UINT32);
    expect_type(in[kMask], "mask", ORT_UINT32);
    layout.blocks = checked_product(matrices(in[kB].shape), s.bases * column_blocks(s), "the packed weights");
    layout.length = attributes_.k;
    layout.x_low = attributes_.x_low;
    layout.masked = !mask_is_neutral(in[kMask], in[kMask].shape.rank - 2, attributes_.k);
    return layout;
  }

  // Blocks are ordered matrix of B, basis, block of columns.
  void fill_weights(const MatMulShapes& s, const Tensor* in, const XnorWeightsLayout& layout,
                    const XnorWeights& weights, int64_t block) const {
    const int64_t per_basis = column_blocks(s), per_matrix = per_basis * s.bases;
    const int64_t matrix = block / per_matrix, basis = block % per_matrix / per_basis;
    const int64_t column = block % per_basis * kWordBits, count = std::min<int64_t>(kWordBits, s.columns - column);
    const Shape &b = in[kB].shape, &mask_shape = in[kMask].shape;
    const uint32_t* words = in[kB].as<uint32_t>() + matrix * b.back(2) * b.back();
    if (!layout.masked)
      return fill_columns(layout, weights, block, words + basis * s.columns + column, b.back(), count);
    const BroadcastStrides mask = broadcast_strides(mask_shape, b);
    int64_t mask_offset = 0, rest = matrix;
    for (int i = b.rank - 3; i >= 0; --i) {
      mask_offset += rest % b.dim[i] * mask.stride[i];
      rest /= b.dim[i];
    }
    const WeightSource source{words,
                              {1, b.back(), 0, 0},
                              in[kMask].as<uint32_t>() + mask_offset,
                              {mask.stride[b.rank - 1], mask.stride[b.rank - 2], 0, 0}};
    fill_block(layout, weights, block, source, basis * s.columns + column, count);
  }

  bool product_suffices(const Job& job) const {
    return product_.product && !job.layout.masked && job.s.planes == 1 && job.s.bases == 1 && job.combine.identity &&
           (!job.q || job.epilogue.encode().matrix.empty());
  }

  // Splits the columns first, so that threads read different weights, and rows only where there are few columns.
  void run_product(Call& call, const Job& job) const {
    constexpr int64_t kPieceColumns = 2 * kWordBits, kPieceRows = 4;  // what the kernel does at a time
    constexpr double kTaskProducts = 4e6;                             // about 4 us
    constexpr int64_t kTasks = 32;
    const double products = static_cast<double>(job.batches) * static_cast<double>(job.rows) *
                            static_cast<double>(job.s.columns) * static_cast<double>(attributes_.k);
    int64_t wanted = 1;  // a power of two: two threads, or four, get equal shares
    while (wanted < kTasks && static_cast<double>(wanted) * kTaskProducts < products) wanted *= 2;
    const int64_t of_matrix = ceil_div(wanted, job.batches);
    const int64_t column_pieces = ceil_div(job.s.columns, kPieceColumns), row_pieces = ceil_div(job.rows, kPieceRows);
    const int64_t column_splits = column_pieces < 2 * of_matrix ? column_pieces : of_matrix;
    const int64_t row_splits = std::min(row_pieces, std::max<int64_t>(of_matrix / column_splits, 1));
    const int64_t parts = checked_product(job.batches, column_splits * row_splits, "the tiles");
    const int64_t tasks = parts < 2 * wanted ? parts : wanted;
    call.parallel_for(tasks, [&](int64_t task) {
      const Piece mine(parts, task, tasks);
      for (int64_t part = mine.begin; part < mine.end; ++part) {
        const Piece rows(row_pieces, part % row_splits, row_splits);
        const Piece columns(column_pieces, part / row_splits % column_splits, column_splits);
        const int64_t row = rows.begin * kPieceRows, column = columns.begin * kPieceColumns;
        product(job, part / row_splits / column_splits, row, std::min(rows.end * kPieceRows, job.rows) - row, column,
                std::min(columns.end * kPieceColumns, job.s.columns) - column);
      }
    });
  }

  void product(const Job& job, int64_t batch, int64_t row, int64_t rows, int64_t column, int64_t columns) const {
    const MatMulShapes& s = job.s;
    const int64_t block = matrix_of(job, kB, batch) * column_blocks(s) + column / kWordBits;
    XnorProductArgs args{};
    args.x = job.in[kA].as<uint32_t>() + (matrix_of(job, kA, batch) * job.rows + row) * attributes_.words();
    args.x_row_stride = attributes_.words();
    args.w = job.weights.words + block * job.layout.k_words() * kWordBits;
    args.base = job.weights.base + block * kWordBits;
    args.k_words = static_cast<int32_t>(job.layout.k_words());
    args.shift = attributes_.x_low == -1 ? 1 : 0;
    job.epilogue.fill(args.epilogue, batch, row, column);
    args.epilogue.rows = rows;
    args.epilogue.lanes = columns;
    set_y(args.epilogue, job, batch, row, column);
    if (job.q) {
      job.epilogue.fill(args.bits, batch, row, column);
      set_q(args.bits, job, batch, row, column);
    }
    product_.product(args);
  }

  void set_y(EpilogueArgs& args, const Job& job, int64_t batch, int64_t row, int64_t column) const {
    const int64_t at = (batch * job.rows + row) * job.s.columns + column;
    const bool half = epilogue_->dtype() == ORT_FLOAT16;
    if (job.y && !half) args.y = static_cast<float*>(job.y) + at;
    if (job.y && half) args.y_half = static_cast<uint16_t*>(job.y) + at;
    args.y_row_stride = job.s.columns;
  }

  void set_q(PackBitsArgs& args, const Job& job, int64_t batch, int64_t row, int64_t column) const {
    args.q_plane_stride = column_blocks(job.s);
    args.q_row_stride = args.planes * column_blocks(job.s);
    args.q = job.q + (batch * job.rows + row) * args.q_row_stride + column / kWordBits;
  }

  // 28 = 4 x 7 rows are whole tiles of the accumulation; 128 columns give the epilogue eight whole vectors a row.  A
  // few rows take more columns: 1 x 4096 x 4096 with AVX-512 alone takes 34.8 us in tiles of 512, 36.9 us in tiles of
  // 128.
  static constexpr int64_t kTileRows = 28;
  static constexpr int64_t kTileColumns = 128, kFewRowsColumns = 512;
  static constexpr int64_t kStackWords = 16384;

  // Waves of rows: their tables are made, then all columns look up in them.
  void look_up(Call& call, Job& job) const {
    const MatMulShapes& s = job.s;
    const int64_t a_stride = job.in[kA].shape.back();
    job.tile_rows = std::min(job.rows, kTileRows);
    job.tile_columns = LookupMatMul::kTileColumns;
    const int64_t wave = std::min(job.rows, lookup_->wave_rows(job.tile_rows));
    const int64_t column_tiles = ceil_div(s.columns, job.tile_columns);
    job.tables = lookup_->allocate(call, wave);
    for (int64_t batch = 0; batch < job.batches; ++batch) {
      for (job.first_row = 0; job.first_row < job.rows; job.first_row += wave) {
        const int64_t rows = std::min(wave, job.rows - job.first_row);
        const int64_t a_row = matrix_of(job, kA, batch) * job.rows + job.first_row;
        const uint32_t* x = job.in[kA].as<uint32_t>() + a_row * a_stride;
        constexpr int64_t kTogether = 4;  // rows
        call.parallel_for(ceil_div(rows, kTogether), [&](int64_t item) {
          const int64_t first = item * kTogether;
          lookup_->make_tables(x, a_stride, first, std::min(kTogether, rows - first), job.tables);
        });
        const int64_t row_tiles = ceil_div(rows, job.tile_rows);
        call.parallel_for(row_tiles * column_tiles, [&](int64_t item) {
          alignas(64) int32_t stack[kStackWords];
          run_tile(job, batch, job.first_row + item % row_tiles * job.tile_rows, item / row_tiles * job.tile_columns,
                   stack);
        });
      }
    }
  }

  void run(Call& call, Job& job) const {
    if (lookup_) return look_up(call, job);
    const MatMulShapes& s = job.s;
    const int64_t a_words = job.in[kA].shape.back();
    const int64_t rows = std::min(job.rows, kTileRows);
    int32_t* row_offset = call.scratch<int32_t>(2 * rows);
    int32_t* row_place = row_offset + rows;
    for (int64_t i = 0; i < rows; ++i) {
      row_offset[i] = static_cast<int32_t>(i * a_words);
      row_place[i] = static_cast<int32_t>(i);
    }
    XnorWord* k_words = call.scratch<XnorWord>(attributes_.words());
    for (int32_t i = 0; i < attributes_.words(); ++i) k_words[i] = {i, i * kWordBits};
    job.row_offset = row_offset;
    job.row_place = row_place;
    job.k_words = k_words;

    const int64_t out_terms = job.combine.outputs * s.bases;
    const int64_t terms =
        checked_product(1, s.planes * s.bases + (job.combine.identity ? 0 : out_terms), "the accumulators");
    const int64_t most_columns =
        job.rows * kFewRowsColumns <= kTileRows * kTileColumns ? kFewRowsColumns : kTileColumns;
    job.tile_columns = std::min(round_up(s.columns, kWordBits), most_columns);
    if (terms * job.tile_columns * 7 > kStackWords) job.tile_columns = kWordBits;
    const int64_t row_words = checked_product(terms, job.tile_columns, "the accumulators of one row");
    const int64_t fitting = kStackWords / row_words;
    job.tile_rows = std::min(std::max<int64_t>(fitting, 1), std::min(job.rows, kTileRows));
    const int64_t row_tiles = ceil_div(job.rows, job.tile_rows), column_tiles = ceil_div(s.columns, job.tile_columns);
    // Rows are innermost: the weights of a tile's columns stay in the cache.
    const int64_t tiles =
        checked_product(checked_product(job.batches, row_tiles, "the tiles"), column_tiles, "the tiles");
    call.parallel_for(tiles, [&](int64_t item) {
      alignas(64) int32_t stack[kStackWords];
      AlignedArray<int32_t> heap;
      if (fitting < 1) heap = aligned_array<int32_t>(row_words);
      const int64_t row_tile = item % row_tiles, column_tile = item / row_tiles % column_tiles;
      run_tile(job, item / row_tiles / column_tiles, row_tile * job.tile_rows, column_tile * job.tile_columns,
               heap ? heap.get() : stack);
    });
  }

  // The matrix of A or B that matrix `batch` of the output is made from.
  static int64_t matrix_of(const Job& job, size_t input, int64_t batch) {
    return job.batches > 1 ? source_matrix(job.in[input].shape, job.s.y, batch) : 0;
  }

  // The matrix of `shape` that matrix `batch` of the output is made from.
  static int64_t source_matrix(const Shape& shape, const Shape& out, int64_t batch) {
    int64_t matrix = 0, stride = 1;
    for (int i = 1; i <= shape.rank - 2; ++i) {
      const int64_t own = shape.dim[shape.rank - 2 - i], dim = out.dim[out.rank - 2 - i];
      matrix += own == 1 ? 0 : batch % dim * stride;
      stride *= own;
      batch /= dim;
    }
    return matrix;
  }

  void run_tile(const Job& job, int64_t batch, int64_t row, int64_t column, int32_t* scratch) const {
    const MatMulShapes& s = job.s;
    const int64_t rows = std::min(job.tile_rows, job.rows - row);
    const int64_t columns = std::min(job.tile_columns, s.columns - column);
    const int64_t size = job.tile_rows * job.tile_columns;
    const uint32_t* x =
        job.in[kA].as<uint32_t>() + (matrix_of(job, kA, batch) * job.rows + row) * job.in[kA].shape.back();
    const int64_t first_block = matrix_of(job, kB, batch) * s.bases * column_blocks(s) + column / kWordBits;
    int32_t* acc = scratch;

    if (lookup_) {
      lookup_->accumulate(job.tables, row - job.first_row, rows, column, job.tile_columns, size, acc);
    } else {
      for (int64_t p = 0; p < s.planes; ++p)
        for (int64_t m = 0; m < s.bases; ++m)
          for (int64_t c = 0; c * kWordBits < columns; ++c) {
            const int64_t block = first_block + m * column_blocks(s) + c;
            XnorAccumulateArgs args{};
            args.x = x + p * attributes_.words();
            args.row_offset = job.row_offset;
            args.row_place = job.row_place;
            args.words = job.k_words;
            args.w = job.weights.words + block * job.layout.k_words() * kWordBits;
            if (job.layout.masked) args.mask = job.weights.mask + block * job.layout.k_words() * kWordBits;
            args.base = job.weights.base + block * kWordBits;
            args.acc = acc + (p * s.bases + m) * size + c * kWordBits;
            args.acc_stride = job.tile_columns;
            args.rows = rows;
            args.word_count = static_cast<int32_t>(job.layout.k_words());
            args.shift = attributes_.x_low == -1 ? 1 : 0;
            xnor_.accumulate(args);
          }
      if (!job.combine.identity) {
        scratch += s.planes * s.bases * size;
        xnor_.combine({acc, scratch, job.combine.matrix.data(), job.combine.outputs, s.planes, s.bases, size});
        acc = scratch;
      }
    }

    EpilogueArgs args{};
    job.epilogue.fill(args, batch, row, column);
    args.rows = rows;
    args.lanes = columns;
    args.acc = acc;
    args.acc_term_stride = size;
    args.acc_row_stride = job.tile_columns;
    set_y(args, job, batch, row, column);
    const float* v = args.y;
    int64_t v_stride = s.columns;
    if (job.q && !args.y) {
      v = args.v = reinterpret_cast<float*>(acc);  // in place: each element is read before it is written
      v_stride = args.v_row_stride = job.tile_columns;
    }
    epilogue_kernel_.epilogue(args);
    if (!job.q) return;
    PackBitsArgs pack{};
    pack.v = v;
    pack.v_row_stride = v_stride;
    pack.rows = rows;
    pack.lanes = columns;
    job.epilogue.fill(pack, batch, row, column);
    set_q(pack, job, batch, row, column);
    pack_.along(pack);
  }

  MatMulAttributes attributes_;
  const XnorAccumulateKernel& xnor_;
  const XnorProductKernel& product_;
  const EpilogueKernel& epilogue_kernel_;
  const PackBitsKernel& pack_;
  std::array<Tensor, kXnorInputs> constants_;
  std::optional<Epilogue> epilogue_;
  std::optional<Combine> combine_;
  std::optional<XnorWeightsLayout> layout_;  // where B and mask are constant
  AlignedArray<uint32_t> buffer_;
  XnorWeights weights_;
  std::optional<LookupMatMul> lookup_;  // instead of these
};

}  // namespace

void add_xnor_matmul(std::vector<Op>& ops) {
  for (OrtElementType y : {ORT_FLOAT, ORT_FLOAT16}) {
    std::vector<OrtElementType> inputs(kXnorInputs, ORT_FLOAT);
    inputs[kA] = inputs[kB] = inputs[kMask] = ORT_UINT32;
    inputs[kResidual] = y;
    inputs[kFlip] = ORT_BOOL;
    ops.push_back(make_op<XnorMatMul>(inputs, {y, ORT_UINT32}, true));
  }
}

}  // namespace binarize
