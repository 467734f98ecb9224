// The steps of the epilogue on values that are in registers, for the files of AVX-512 kernels: whoever has sums there
// can finish them there.
#pragma once

#include <immintrin.h>

#include "cpu/epilogue/epilogue.h"

namespace binarize {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define BINARIZE_INLINE  // with every check inlined too, a file takes minutes to compile
#else
#define BINARIZE_INLINE __attribute__((always_inline))
#endif

constexpr int64_t kVectorLanes = 16;

// body(0) ... body(n - 1), each with its constant.  A loop that is unrolled later leaves arrays in memory.
template <int n, class Body>
BINARIZE_INLINE inline void unrolled(const Body& body) {
  if constexpr (n > 1) unrolled<n - 1>(body);
  body(n - 1);
}

// Some rows of some vectors of lanes, held in registers while all steps run; masked where fewer lanes exist.
template <int rows, int vectors, bool masked>
struct Strip {
  __m512 z[rows][vectors];
  __mmask16 valid[vectors];
  int64_t row, lane;

  BINARIZE_INLINE Strip(int64_t row, int64_t lane, int64_t lanes) : row(row), lane(lane) {
    unrolled<vectors>([&](int i) BINARIZE_INLINE {
      const int64_t left = lanes - lane - i * kVectorLanes;
      valid[i] = !masked || left >= kVectorLanes ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
    });
  }

  // body(z, r, i) for every vector.
  template <class Body>
  BINARIZE_INLINE void each(const Body& body) {
    unrolled<rows>([&](int r)
                       BINARIZE_INLINE { unrolled<vectors>([&](int i) BINARIZE_INLINE { body(z[r][i], r, i); }); });
  }
  // The same with what an operand has there; operand_row(r) is its row for row r, asked for once a row, in order.
  template <class T, class OperandRow, class Step>
  BINARIZE_INLINE void each(const Operand<T>& operand, const OperandRow& operand_row, const Step& step) {
    if (rows > 1 && operand.row_stride == 0 && operand.lane_stride != 0) {  // the same in every row: loaded once
      unrolled<vectors>([&](int i) BINARIZE_INLINE {
        const __m512 value = load(i, operand.data + lane);
        unrolled<rows>([&](int r) BINARIZE_INLINE { step(z[r][i], value); });
      });
      return;
    }
    unrolled<rows>([&](int r) BINARIZE_INLINE {
      const T* data = operand.data + operand_row(r) * operand.row_stride;
      if (operand.lane_stride == 0) {
        const __m512 value = broadcast(*data);
        unrolled<vectors>([&](int i) BINARIZE_INLINE { step(z[r][i], value); });
      } else {
        unrolled<vectors>([&](int i) BINARIZE_INLINE { step(z[r][i], load(i, data + lane)); });
      }
    });
  }

  BINARIZE_INLINE __m512 load(int i, const float* data) const {
    data += i * kVectorLanes;
    return masked ? _mm512_maskz_loadu_ps(valid[i], data) : _mm512_loadu_ps(data);
  }
  BINARIZE_INLINE __m512 load(int i, const int32_t* data) const {
    data += i * kVectorLanes;
    return _mm512_cvtepi32_ps(masked ? _mm512_maskz_loadu_epi32(valid[i], data) : _mm512_loadu_si512(data));
  }
  BINARIZE_INLINE __m512 load(int i, const uint16_t* data) const {
    data += i * kVectorLanes;
    return _mm512_cvtph_ps(masked ? _mm256_maskz_loadu_epi16(valid[i], data)
                                  : _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data)));
  }
  static BINARIZE_INLINE __m512 broadcast(float value) { return _mm512_set1_ps(value); }
  static BINARIZE_INLINE __m512 broadcast(uint16_t value) {
    return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<int16_t>(value)));
  }

  BINARIZE_INLINE void multiply(const Operand<float>& operand) {
    if (operand.data)
      each(
          operand, [&](int r) BINARIZE_INLINE { return row + r; },
          [](__m512& z, __m512 by) BINARIZE_INLINE { z = _mm512_mul_ps(z, by); });
  }
  BINARIZE_INLINE void add(const Operand<float>& operand) {
    if (operand.data)
      each(
          operand, [&](int r) BINARIZE_INLINE { return row + r; },
          [](__m512& z, __m512 by) BINARIZE_INLINE { z = _mm512_add_ps(z, by); });
  }
  template <class T>
  BINARIZE_INLINE void add_residual(const EpilogueArgs& args, const T* data) {
    if (!data) return;
    int64_t next = (args.residual_first + row) % args.residual_rows;  // stepped: a division takes longer than a row
    each(
        Operand<T>{data, args.residual.row_stride, args.residual.lane_stride},
        [&](int) BINARIZE_INLINE {
          const int64_t now = next++;
          if (next == args.residual_rows) next = 0;
          return now;
        },
        [](__m512& z, __m512 by) BINARIZE_INLINE { z = _mm512_add_ps(z, by); });
  }
  BINARIZE_INLINE void activate(const Operand<float>& operand) {
    if (operand.data)
      each(
          operand, [&](int r) BINARIZE_INLINE { return row + r; },
          [](__m512& z, __m512 slope) BINARIZE_INLINE {
            const __mmask16 not_positive = _mm512_cmp_ps_mask(z, _mm512_setzero_ps(), _CMP_NGT_UQ);
            z = _mm512_mask_mul_ps(z, not_positive, z, slope);
          });
  }
  BINARIZE_INLINE void round_to_half(uint16_t* y, int64_t row_stride) {
    each([&](__m512& z, int r, int i) BINARIZE_INLINE {
      const __m256i half = _mm512_cvtps_ph(z, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      if (y) _mm256_mask_storeu_epi16(y + (row + r) * row_stride + lane + i * kVectorLanes, valid[i], half);
      z = _mm512_cvtph_ps(half);
    });
  }
  // To `data`, which is that of row 0 and lane 0.
  BINARIZE_INLINE void store(float* data, int64_t row_stride) {
    each([&](__m512& z, int r, int i) BINARIZE_INLINE {
      float* to = data + (row + r) * row_stride + lane + i * kVectorLanes;
      masked ? _mm512_mask_storeu_ps(to, valid[i], z) : _mm512_storeu_ps(to, z);
    });
  }

  // Every step after the terms, and the outputs.
  BINARIZE_INLINE void finish(const EpilogueArgs& args) {
    multiply(args.gate);
    add(args.bias);
    activate(args.slope_pre);
    add_residual(args, args.residual.data);
    add_residual(args, args.residual_half);
    add(args.shift);
    activate(args.slope);
    add(args.offset);
    if (args.round_to_half) round_to_half(args.y_half, args.y_row_stride);
    if (args.y) store(args.y, args.y_row_stride);
    if (args.v) store(args.v, args.v_row_stride);
  }
};

}  // namespace
}  // namespace binarize
