#include "cpu/epilogue/x86_avx512_strip.h"

namespace binarize {
namespace {

template <int vectors, bool masked>
__attribute__((always_inline)) inline void run_strip(const EpilogueArgs& args, int64_t row, int64_t lane) {
  Strip<1, vectors, masked> strip(row, lane, args.lanes);
  const int32_t* acc = args.acc + row * args.acc_row_stride + lane;
  strip.each([&](__m512& z, int, int i) BINARIZE_INLINE { z = strip.load(i, acc); });
  strip.multiply(args.scale);
  for (int64_t term = 1; term < args.terms; ++term) {
    Strip<1, vectors, masked> product(row, lane, args.lanes);
    const int32_t* sums = acc + term * args.acc_term_stride;
    product.each([&](__m512& z, int, int i) BINARIZE_INLINE { z = product.load(i, sums); });
    Operand<float> scale = args.scale;
    if (scale.data) scale.data += term * args.scale_term_stride;
    product.multiply(scale);
    strip.each([&](__m512& z, int, int i) BINARIZE_INLINE { z = _mm512_add_ps(z, product.z[0][i]); });
  }
  strip.finish(args);
}

}  // namespace

void epilogue_avx512(const EpilogueArgs& args) {
  constexpr int64_t kLong = 7 * kVectorLanes, kShort = 4 * kVectorLanes;
  for (int64_t row = 0; row < args.rows; ++row) {
    int64_t lane = 0;
    // Seven vectors at a time, as far as that leaves whole strips of four: 112 pixels are 7, 128 columns 4 and 4.
    for (; lane + kLong <= args.lanes && (args.lanes - lane) % kShort != 0; lane += kLong)
      run_strip<7, false>(args, row, lane);
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
