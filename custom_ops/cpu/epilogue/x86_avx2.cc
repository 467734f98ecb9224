#include <immintrin.h>

#include "cpu/epilogue/turn_first.h"

namespace binarize {
namespace {

constexpr int64_t kVectorLanes = 8;

// The lanes of one row that are held in registers while all steps run.  `masked`: one vector, of which only the first
// `count` lanes exist.
template <int vectors, bool masked>
struct Strip {
  static_assert(vectors == 1 || !masked);
  __m256 z[vectors];
  __m256i valid;
  int64_t row, lane, count;

  Strip(int64_t row, int64_t lane, int64_t lanes) : row(row), lane(lane), count(lanes - lane) {
    valid = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  __m256 load(int i, const float* data) const {
    data += i * kVectorLanes;
    return masked ? _mm256_maskload_ps(data, valid) : _mm256_loadu_ps(data);
  }
  __m256 load(int i, const int32_t* data) const {
    data += i * kVectorLanes;
    return _mm256_cvtepi32_ps(masked ? _mm256_maskload_epi32(data, valid)
                                     : _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data)));
  }
  __m256 load(int i, const uint16_t* data) const {
    data += i * kVectorLanes;
    if (!masked) return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data)));
    uint16_t buffer[kVectorLanes] = {};
    for (int64_t l = 0; l < count; ++l) buffer[l] = data[l];
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(buffer)));
  }
  void store(float* data) const {
    for (int i = 0; i < vectors; ++i)
      masked ? _mm256_maskstore_ps(data, valid, z[i]) : _mm256_storeu_ps(data + i * kVectorLanes, z[i]);
  }
  void store(int i, uint16_t* data, __m128i half) const {
    data += i * kVectorLanes;
    if (!masked) return _mm_storeu_si128(reinterpret_cast<__m128i*>(data), half);
    uint16_t buffer[kVectorLanes];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(buffer), half);
    for (int64_t l = 0; l < count; ++l) data[l] = buffer[l];
  }

  // step(i, operand vector) for each vector of the strip.
  template <class T, class Step>
  __attribute__((always_inline)) void each(const Operand<T>& operand, int64_t operand_row, Step step) {
    const T* data = operand.data + operand_row * operand.row_stride;
    if (operand.lane_stride == 0) {
      const __m256 value = broadcast(*data);
      for (int i = 0; i < vectors; ++i) step(i, value);
    } else {
      for (int i = 0; i < vectors; ++i) step(i, load(i, data + lane));
    }
  }
  static __m256 broadcast(float value) { return _mm256_set1_ps(value); }
  static __m256 broadcast(uint16_t value) { return _mm256_cvtph_ps(_mm_set1_epi16(static_cast<int16_t>(value))); }

  __attribute__((always_inline)) void multiply(const Operand<float>& operand) {
    if (operand.data) each(operand, row, [&](int i, __m256 by) { z[i] = _mm256_mul_ps(z[i], by); });
  }
  template <class T>
  __attribute__((always_inline)) void add(const Operand<T>& operand, int64_t operand_row) {
    if (operand.data) each(operand, operand_row, [&](int i, __m256 by) { z[i] = _mm256_add_ps(z[i], by); });
  }
  __attribute__((always_inline)) void activate(const Operand<float>& operand) {
    if (operand.data)
      each(operand, row, [&](int i, __m256 slope) {
        const __m256 positive = _mm256_cmp_ps(z[i], _mm256_setzero_ps(), _CMP_GT_OQ);
        z[i] = _mm256_blendv_ps(_mm256_mul_ps(z[i], slope), z[i], positive);
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
    for (int i = 0; i < vectors; ++i) strip.z[i] = _mm256_add_ps(strip.z[i], product.z[i]);
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
      const __m128i half = _mm256_cvtps_ph(strip.z[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      if (args.y_half) strip.store(i, args.y_half + row * args.y_row_stride + lane, half);
      strip.z[i] = _mm256_cvtph_ps(half);
    }
  if (args.y) strip.store(args.y + row * args.y_row_stride + lane);
  if (args.v) strip.store(args.v + row * args.v_row_stride + lane);
}

inline void turn(const int32_t* from, int32_t* to, int64_t lanes, int64_t to_stride) {
  for (int64_t lane = 0; lane < lanes; lane += kVectorLanes)
    for (int64_t row = 0; row < kWordBits; row += kVectorLanes) {
      const int32_t* in = from + lane * kWordBits + row;
      int32_t* out = to + row * to_stride + lane;
      // 8 x 8 in three rounds: pairs of lanes, pairs of pairs, then halves of registers.
      __m256i a[8], b[8];
      for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i * kWordBits));
      for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
      }
      for (int i = 0; i < 8; i += 4) {  // a[i + j]: lanes i..i+3 of rows j and 4 + j
        a[i] = _mm256_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm256_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm256_unpackhi_epi64(b[i + 1], b[i + 3]);
      }
      for (int j = 0; j < 4; ++j) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + j * to_stride),
                            _mm256_permute2x128_si256(a[j], a[4 + j], 0x20));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + (4 + j) * to_stride),
                            _mm256_permute2x128_si256(a[j], a[4 + j], 0x31));
      }
    }
}

}  // namespace

void epilogue_avx2(const EpilogueArgs& args) {
  constexpr int kVectors = 7;
  for (int64_t row = 0; row < args.rows; ++row) {
    int64_t lane = 0;
    for (; lane + kVectors * kVectorLanes <= args.lanes; lane += kVectors * kVectorLanes)
      run_strip<kVectors, false>(args, row, lane);
    for (; lane + kVectorLanes <= args.lanes; lane += kVectorLanes) run_strip<1, false>(args, row, lane);
    if (lane < args.lanes) run_strip<1, true>(args, row, lane);
  }
}

bool turned_epilogue_avx2(const TurnedEpilogueArgs& args) { return turn_first(args, turn, epilogue_avx2); }

}  // namespace binarize
