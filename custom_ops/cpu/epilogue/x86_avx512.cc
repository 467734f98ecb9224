#include <immintrin.h>

#include "cpu/epilogue/epilogue.h"

namespace binarize {
namespace {

constexpr int64_t kVectorLanes = 16;

// The lanes of one row that are held in registers while all steps run; masked where fewer than all of them exist.
template <int vectors, bool masked>
struct Strip {
  __m512 z[vectors];
  __mmask16 valid[vectors];
  int64_t row, lane;

  Strip(int64_t row, int64_t lane, int64_t lanes) : row(row), lane(lane) {
    for (int i = 0; i < vectors; ++i) {
      const int64_t left = lanes - lane - i * kVectorLanes;
      valid[i] = !masked || left >= kVectorLanes ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
    }
  }
  __m512 load(int i, const float* data) const {
    data += i * kVectorLanes;
    return masked ? _mm512_maskz_loadu_ps(valid[i], data) : _mm512_loadu_ps(data);
  }
  __m512 load(int i, const int32_t* data) const {
    data += i * kVectorLanes;
    return _mm512_cvtepi32_ps(masked ? _mm512_maskz_loadu_epi32(valid[i], data) : _mm512_loadu_si512(data));
  }
  __m512 load(int i, const uint16_t* data) const {
    data += i * kVectorLanes;
    return _mm512_cvtph_ps(masked ? _mm256_maskz_loadu_epi16(valid[i], data)
                                  : _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data)));
  }
  void store(float* data) const {
    for (int i = 0; i < vectors; ++i)
      masked ? _mm512_mask_storeu_ps(data + i * kVectorLanes, valid[i], z[i])
             : _mm512_storeu_ps(data + i * kVectorLanes, z[i]);
  }

  // step(i, operand vector) for each vector of the strip.
  template <class T, class Step>
  __attribute__((always_inline)) void each(const Operand<T>& operand, int64_t operand_row, Step step) {
    const T* data = operand.data + operand_row * operand.row_stride;
    if (operand.lane_stride == 0) {
      const __m512 value = broadcast(*data);
      for (int i = 0; i < vectors; ++i) step(i, value);
    } else {
      for (int i = 0; i < vectors; ++i) step(i, load(i, data + lane));
    }
  }
  static __m512 broadcast(float value) { return _mm512_set1_ps(value); }
  static __m512 broadcast(uint16_t value) { return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<int16_t>(value))); }

  __attribute__((always_inline)) void multiply(const Operand<float>& operand) {
    if (operand.data) each(operand, row, [&](int i, __m512 by) { z[i] = _mm512_mul_ps(z[i], by); });
  }
  template <class T>
  __attribute__((always_inline)) void add(const Operand<T>& operand, int64_t operand_row) {
    if (operand.data) each(operand, operand_row, [&](int i, __m512 by) { z[i] = _mm512_add_ps(z[i], by); });
  }
  __attribute__((always_inline)) void activate(const Operand<float>& operand) {
    if (operand.data)
      each(operand, row, [&](int i, __m512 slope) {
        const __mmask16 not_positive = _mm512_cmp_ps_mask(z[i], _mm512_setzero_ps(), _CMP_NGT_UQ);
        z[i] = _mm512_mask_mul_ps(z[i], not_positive, z[i], slope);
      });
  }
};

template <int vectors, bool masked>
__attribute__((always_inline)) inline void run_strip(const EpilogueArgs& args, int64_t row, int64_t lane) {
  Strip<vectors, masked> strip(row, lane, args.lanes);
  const int32_t* acc = args.acc + row * args.acc_row_stride + lane;
  for (int i = 0; i < vectors; ++i) strip.z[i] = strip.load(i, acc);
  strip.multiply(args.scale);
  for (int64_t term = 1; term < args.terms; ++term) {
    Strip<vectors, masked> product(row, lane, args.lanes);
    for (int i = 0; i < vectors; ++i) product.z[i] = product.load(i, acc + term * args.acc_term_stride);
    Operand<float> scale = args.scale;
    if (scale.data) scale.data += term * args.scale_term_stride;
    product.multiply(scale);
    for (int i = 0; i < vectors; ++i) strip.z[i] = _mm512_add_ps(strip.z[i], product.z[i]);
  }
  strip.multiply(args.gate);
  strip.add(args.bias, row);
  strip.activate(args.slope_pre);
  if (args.residual.data || args.residual_half) {
    const int64_t residual_row = (args.residual_first + row) % args.residual_rows;
    strip.add(args.residual, residual_row);
    strip.add(Operand<uint16_t>{args.residual_half, args.residual.row_stride, args.residual.lane_stride}, residual_row);
  }
  strip.add(args.shift, row);
  strip.activate(args.slope);
  strip.add(args.offset, row);
  if (args.round_to_half)
    for (int i = 0; i < vectors; ++i) {
      const __m256i half = _mm512_cvtps_ph(strip.z[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      if (args.y_half)
        _mm256_mask_storeu_epi16(args.y_half + row * args.y_row_stride + lane + i * kVectorLanes, strip.valid[i], half);
      strip.z[i] = _mm512_cvtph_ps(half);
    }
  if (args.y) strip.store(args.y + row * args.y_row_stride + lane);
  if (args.v) strip.store(args.v + row * args.v_row_stride + lane);
}

}  // namespace

void epilogue_avx512(const EpilogueArgs& args) {
  constexpr int64_t kLong = 7 * kVectorLanes, kShort = 4 * kVectorLanes;
  for (int64_t row = 0; row < args.rows; ++row) {
    int64_t lane = 0;
    for (; lane + kLong <= args.lanes; lane += kLong) run_strip<7, false>(args, row, lane);
    for (; lane + kShort <= args.lanes; lane += kShort) run_strip<4, false>(args, row, lane);
    for (; lane < args.lanes; lane += kShort) run_strip<4, true>(args, row, lane);
  }
}

void transpose_avx512(const TransposeArgs& args) {
  for (int64_t row = 0; row < args.rows; row += 16)
    for (int64_t lane = 0; lane < kWordBits; lane += 16) {
      const int32_t* from = args.from + row * kWordBits + lane;
      int32_t* to = args.to + lane * args.to_stride + row;
      // 16 x 16 in four rounds: pairs of rows, pairs of pairs, then quarters of registers twice.
      __m512i a[16], b[16];
      for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(from + i * kWordBits);
      for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
      }
      for (int i = 0; i < 16; i += 4) {  // a[i + j]: rows i..i+3 of columns 4q + j, q the quarter of the register
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
      }
      for (int j = 0; j < 4; ++j) {
        const __m512i even_top = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x88);
        const __m512i odd_top = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xdd);
        const __m512i even_bottom = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x88);
        const __m512i odd_bottom = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xdd);
        _mm512_storeu_si512(to + j * args.to_stride, _mm512_shuffle_i32x4(even_top, even_bottom, 0x88));
        _mm512_storeu_si512(to + (8 + j) * args.to_stride, _mm512_shuffle_i32x4(even_top, even_bottom, 0xdd));
        _mm512_storeu_si512(to + (4 + j) * args.to_stride, _mm512_shuffle_i32x4(odd_top, odd_bottom, 0x88));
        _mm512_storeu_si512(to + (12 + j) * args.to_stride, _mm512_shuffle_i32x4(odd_top, odd_bottom, 0xdd));
      }
    }
}

}  // namespace binarize
