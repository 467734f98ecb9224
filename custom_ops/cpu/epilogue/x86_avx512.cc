#include "cpu/epilogue/x86_avx512_four_rows.h"

namespace binarize {
namespace {

// load_term(strip, term) puts the accumulators of a term, as floats, into the strip.
template <int rows, int vectors, bool masked, class LoadTerm>
BINARIZE_INLINE inline void run_strip(const EpilogueArgs& args, int64_t row, int64_t lane, const LoadTerm& load_term) {
  Strip<rows, vectors, masked> strip(row, lane, args.lanes);
  load_term(strip, int64_t{0});
  strip.multiply(args.scale);
  for (int64_t term = 1; term < args.terms; ++term) {
    Strip<rows, vectors, masked> product(row, lane, args.lanes);
    load_term(product, term);
    Operand<float> scale = args.scale;
    if (scale.data) scale.data += term * args.scale_term_stride;
    product.multiply(scale);
    strip.each([&](__m512& z, int r, int i) BINARIZE_INLINE { z = _mm512_add_ps(z, product.z[r][i]); });
  }
  strip.finish(args);
}

template <int vectors, bool masked>
BINARIZE_INLINE inline void run_row(const EpilogueArgs& args, int64_t row, int64_t lane) {
  run_strip<1, vectors, masked>(args, row, lane, [&](auto& strip, int64_t term) BINARIZE_INLINE {
    const int32_t* acc = args.acc + term * args.acc_term_stride + row * args.acc_row_stride + lane;
    strip.each([&](__m512& z, int, int i) BINARIZE_INLINE { z = strip.load(i, acc); });
  });
}

void run_rows(const EpilogueArgs& args, int64_t first_row) {
  constexpr int64_t kLong = 7 * kVectorLanes, kShort = 4 * kVectorLanes;
  for (int64_t row = first_row; row < args.rows; ++row) {
    int64_t lane = 0;
    // Seven vectors at a time, as far as that leaves whole strips of four: 112 pixels are 7, 128 columns 4 and 4.
    for (; lane + kLong <= args.lanes && (args.lanes - lane) % kShort != 0; lane += kLong)
      run_row<7, false>(args, row, lane);
    for (; lane + kShort <= args.lanes; lane += kShort) run_row<4, false>(args, row, lane);
    for (; lane < args.lanes; lane += kShort) run_row<4, true>(args, row, lane);
  }
}

// to[row] = lanes 0..15 of row `row`, from 16 lanes of 16 rows, 32 apart.
BINARIZE_INLINE inline void turn(const int32_t* from, __m512i (&to)[16]) {
  unrolled<4>([&](int q) BINARIZE_INLINE {
    __m512i four[4];
    turn_four(from + 4 * q, four);
    unrolled<4>([&](int r) BINARIZE_INLINE { to[4 * q + r] = four[r]; });
  });
}

template <bool masked>
BINARIZE_INLINE inline void run_turned(const EpilogueArgs& args, int64_t row, int64_t lane) {
  run_strip<16, 1, masked>(args, row, lane, [&](auto& strip, int64_t term) BINARIZE_INLINE {
    __m512i rows[16];
    turn(args.acc + term * args.acc_term_stride + lane * kWordBits + row, rows);
    strip.each([&](__m512& z, int r, int) BINARIZE_INLINE { z = _mm512_cvtepi32_ps(rows[r]); });
  });
}

}  // namespace

void epilogue_avx512(const EpilogueArgs& args) { run_rows(args, 0); }

// 16 rows at a time never leave the registers; what is left of the rows is turned in memory.
bool turned_epilogue_avx512(const TurnedEpilogueArgs& args) {
  const EpilogueArgs& in = args.epilogue;
  if (usual_steps(in)) {
    const bool packs = args.pack && one_plain_plane(*args.pack);
    run_usual(in, packs ? args.pack : nullptr);
    return packs;
  }
  int64_t row = 0;
  for (; row + 16 <= in.rows; row += 16) {
    int64_t lane = 0;
    for (; lane + kVectorLanes <= in.lanes; lane += kVectorLanes) run_turned<false>(in, row, lane);
    if (lane < in.lanes) run_turned<true>(in, row, lane);
  }
  if (row == in.rows) return false;
  EpilogueArgs rest = in;
  rest.acc = args.turned;
  rest.acc_term_stride = kWordBits * args.turned_stride;
  rest.acc_row_stride = args.turned_stride;
  for (int64_t term = 0; term < in.terms; ++term)
    for (int64_t lane = 0; lane < in.lanes; lane += kVectorLanes) {
      __m512i rows[16];
      turn(in.acc + term * in.acc_term_stride + lane * kWordBits + row, rows);
      for (int r = 0; r < 16; ++r)
        _mm512_storeu_si512(args.turned + term * rest.acc_term_stride + (row + r) * args.turned_stride + lane, rows[r]);
    }
  run_rows(rest, row);
  return false;
}

}  // namespace binarize
