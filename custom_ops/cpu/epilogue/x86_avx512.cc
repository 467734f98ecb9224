#include <immintrin.h>

#include "cpu/epilogue/epilogue.h"

namespace binarize {
namespace {

constexpr int64_t kVectorLanes = 16;

// Rows x vectors of lanes that are held in registers while all steps run; masked where fewer than all lanes exist.
template <int rows, int vectors, bool masked>
struct Tile {
  __m512 z[rows * vectors];  // vector v of row r is z[r * vectors + v]
  __mmask16 valid[vectors];
  int64_t row, lane;

  Tile(int64_t row, int64_t lane, int64_t lanes) : row(row), lane(lane) {
    for (int v = 0; v < vectors; ++v) {
      const int64_t left = lanes - lane - v * kVectorLanes;
      valid[v] = !masked || left >= kVectorLanes ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
    }
  }
  __m512 load(int v, const float* data) const {
    data += v * kVectorLanes;
    return masked ? _mm512_maskz_loadu_ps(valid[v], data) : _mm512_loadu_ps(data);
  }
  __m512 load(int v, const int32_t* data) const {
    data += v * kVectorLanes;
    return _mm512_cvtepi32_ps(masked ? _mm512_maskz_loadu_epi32(valid[v], data) : _mm512_loadu_si512(data));
  }
  __m512 load(int v, const uint16_t* data) const {
    data += v * kVectorLanes;
    return _mm512_cvtph_ps(masked ? _mm256_maskz_loadu_epi16(valid[v], data)
                                  : _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data)));
  }
  __attribute__((always_inline)) void store(float* data, int64_t row_stride) const {
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < vectors; ++v) {
        float* to = data + (row + r) * row_stride + lane + v * kVectorLanes;
        masked ? _mm512_mask_storeu_ps(to, valid[v], z[r * vectors + v]) : _mm512_storeu_ps(to, z[r * vectors + v]);
      }
  }

  // step(i, operand vector) for each vector z[i].  Row r of the tile reads the operand's row first_row + r, or, where
  // they repeat, (first_row + r) % repeat.
  template <class T, class Step>
  __attribute__((always_inline)) void each(const Operand<T>& operand, int64_t first_row, int64_t repeat, Step step) {
    const T* data = operand.data + first_row * operand.row_stride;
    const T* const end = operand.data + repeat * operand.row_stride;
    const auto next_row = [&] {
      data += operand.row_stride;
      if (repeat && data == end) data = operand.data;
    };
    if (operand.lane_stride == 0) {
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        const __m512 value = broadcast(*data);
        for (int v = 0; v < vectors; ++v) step(r * vectors + v, value);
        if (r + 1 < rows) next_row();
      }
    } else {
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        for (int v = 0; v < vectors; ++v) step(r * vectors + v, load(v, data + lane));
        if (r + 1 < rows) next_row();
      }
    }
  }
  static __m512 broadcast(float value) { return _mm512_set1_ps(value); }
  static __m512 broadcast(uint16_t value) { return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<int16_t>(value))); }

  __attribute__((always_inline)) void multiply(const Operand<float>& operand) {
    if (operand.data) each(operand, row, 0, [&](int i, __m512 by) { z[i] = _mm512_mul_ps(z[i], by); });
  }
  template <class T>
  __attribute__((always_inline)) void add(const Operand<T>& operand, int64_t first_row, int64_t repeat = 0) {
    if (operand.data) each(operand, first_row, repeat, [&](int i, __m512 by) { z[i] = _mm512_add_ps(z[i], by); });
  }
  __attribute__((always_inline)) void activate(const Operand<float>& operand) {
    if (operand.data)
      each(operand, row, 0, [&](int i, __m512 slope) {
        const __mmask16 not_positive = _mm512_cmp_ps_mask(z[i], _mm512_setzero_ps(), _CMP_NGT_UQ);
        z[i] = _mm512_mask_mul_ps(z[i], not_positive, z[i], slope);
      });
  }
};

// load_term(tile, term): the accumulators of a term as floats, into tile.z.
template <int rows, int vectors, bool masked, class LoadTerm>
__attribute__((always_inline)) inline void run_tile(const EpilogueArgs& args, int64_t row, int64_t lane,
                                                    LoadTerm load_term) {
  Tile<rows, vectors, masked> tile(row, lane, args.lanes);
  load_term(tile, int64_t{0});
  tile.multiply(args.scale);
  for (int64_t term = 1; term < args.terms; ++term) {
    Tile<rows, vectors, masked> product(row, lane, args.lanes);
    load_term(product, term);
    Operand<float> scale = args.scale;
    if (scale.data) scale.data += term * args.scale_term_stride;
    product.multiply(scale);
#pragma GCC unroll 16
    for (int i = 0; i < rows * vectors; ++i) tile.z[i] = _mm512_add_ps(tile.z[i], product.z[i]);
  }
  tile.multiply(args.gate);
  tile.add(args.bias, row);
  tile.activate(args.slope_pre);
  if (args.residual.data || args.residual_half) {
    const int64_t first = (args.residual_first + row) % args.residual_rows;
    tile.add(args.residual, first, args.residual_rows);
    tile.add(Operand<uint16_t>{args.residual_half, args.residual.row_stride, args.residual.lane_stride}, first,
             args.residual_rows);
  }
  tile.add(args.shift, row);
  tile.activate(args.slope);
  tile.add(args.offset, row);
  if (args.round_to_half)
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < vectors; ++v) {
        __m512& z = tile.z[r * vectors + v];
        const __m256i half = _mm512_cvtps_ph(z, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        if (args.y_half)
          _mm256_mask_storeu_epi16(args.y_half + (row + r) * args.y_row_stride + lane + v * kVectorLanes, tile.valid[v],
                                   half);
        z = _mm512_cvtph_ps(half);
      }
  if (args.y) tile.store(args.y, args.y_row_stride);
  if (args.v) tile.store(args.v, args.v_row_stride);
}

template <int vectors, bool masked>
__attribute__((always_inline)) inline void run_strip(const EpilogueArgs& args, int64_t row, int64_t lane) {
  run_tile<1, vectors, masked>(args, row, lane, [&](auto& tile, int64_t term) {
    const int32_t* acc = args.acc + term * args.acc_term_stride + row * args.acc_row_stride + lane;
    for (int v = 0; v < vectors; ++v) tile.z[v] = tile.load(v, acc);
  });
}

// to[row] = lanes 0..15 of row `row`, from 16 lanes of 16 rows, 32 apart.
__attribute__((always_inline)) inline void turn(const int32_t* from, __m512i (&to)[16]) {
  // Quarters of registers are put together as they are loaded, which takes no shuffle; then 4 x 4 in each quarter.
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {  // rows 4q..4q+3
    __m512i a[4];                // lanes i, 4 + i, 8 + i and 12 + i
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const int32_t* lane = from + i * kWordBits + 4 * q;
      const auto quarter = [lane](int n) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(lane + 4 * n * kWordBits));
      };
      const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(quarter(0)), quarter(1), 1);
      const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(quarter(2)), quarter(3), 1);
      a[i] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }
    const __m512i low01 = _mm512_unpacklo_epi32(a[0], a[1]), high01 = _mm512_unpackhi_epi32(a[0], a[1]);
    const __m512i low23 = _mm512_unpacklo_epi32(a[2], a[3]), high23 = _mm512_unpackhi_epi32(a[2], a[3]);
    to[4 * q] = _mm512_unpacklo_epi64(low01, low23);
    to[4 * q + 1] = _mm512_unpackhi_epi64(low01, low23);
    to[4 * q + 2] = _mm512_unpacklo_epi64(high01, high23);
    to[4 * q + 3] = _mm512_unpackhi_epi64(high01, high23);
  }
}

template <bool masked>
__attribute__((always_inline)) inline void run_turned(const EpilogueArgs& args, int64_t row, int64_t lane) {
  run_tile<16, 1, masked>(args, row, lane, [&](auto& tile, int64_t term) {
    __m512i rows[16];
    turn(args.acc + term * args.acc_term_stride + lane * kWordBits + row, rows);
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) tile.z[r] = _mm512_cvtepi32_ps(rows[r]);
  });
}

void run_rows(const EpilogueArgs& args, int64_t first_row) {
  constexpr int64_t kLong = 7 * kVectorLanes, kShort = 4 * kVectorLanes;
  for (int64_t row = first_row; row < args.rows; ++row) {
    int64_t lane = 0;
    for (; lane + kLong <= args.lanes; lane += kLong) run_strip<7, false>(args, row, lane);
    for (; lane + kShort <= args.lanes; lane += kShort) run_strip<4, false>(args, row, lane);
    for (; lane < args.lanes; lane += kShort) run_strip<4, true>(args, row, lane);
  }
}

}  // namespace

void epilogue_avx512(const EpilogueArgs& args) { run_rows(args, 0); }

// 16 rows at a time never leave the registers; what is left of the rows is turned in memory.
void turned_epilogue_avx512(const TurnedEpilogueArgs& args) {
  const EpilogueArgs& in = args.epilogue;
  int64_t row = 0;
  for (; row + 16 <= in.rows; row += 16) {
    int64_t lane = 0;
    for (; lane + kVectorLanes <= in.lanes; lane += kVectorLanes) run_turned<false>(in, row, lane);
    if (lane < in.lanes) run_turned<true>(in, row, lane);
  }
  if (row == in.rows) return;
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
}

}  // namespace binarize
