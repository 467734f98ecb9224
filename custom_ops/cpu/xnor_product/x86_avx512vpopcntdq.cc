#include "cpu/epilogue/x86_avx512_strip.h"
#include "cpu/xnor_product/xnor_product.h"

namespace binarize {
namespace {

// The values of a strip, as bits.
template <int rows, int vectors, bool masked>
BINARIZE_INLINE inline void store_bits(const PackBitsArgs& bits, const Strip<rows, vectors, masked>& strip) {
  for (int64_t plane = 0; plane < bits.planes; ++plane)
    unrolled<rows>([&](int r) BINARIZE_INLINE {
      const int64_t row = strip.row + r;
      const float* threshold =
          bits.threshold.data + plane * bits.threshold_plane_stride + row * bits.threshold.row_stride;
      const uint8_t* flip = bits.flip.data;
      if (flip) flip += plane * bits.flip_plane_stride + row * bits.flip.row_stride;
      const auto reached = [&](int i) BINARIZE_INLINE -> uint32_t {
        const int64_t at = strip.lane + i * kVectorLanes;
        const __mmask16 valid = strip.valid[i];
        const __m512 t =
            bits.threshold.lane_stride ? _mm512_maskz_loadu_ps(valid, threshold + at) : _mm512_set1_ps(*threshold);
        const uint32_t reached = _mm512_mask_cmp_ps_mask(valid, strip.z[r][i], t, _CMP_GE_OQ);
        if (!flip) return reached;
        if (!bits.flip.lane_stride) return *flip ? reached ^ valid : reached;
        const __m128i bytes = _mm_maskz_loadu_epi8(valid, flip + at);
        return reached ^ _mm_test_epi8_mask(bytes, bytes);
      };
      uint32_t* q = bits.q + row * bits.q_row_stride + plane * bits.q_plane_stride + strip.lane / kWordBits;
      unrolled<vectors / 2>(
          [&](int word) BINARIZE_INLINE { q[word] = reached(2 * word) | reached(2 * word + 1) << kVectorLanes; });
    });
}

// Some rows of one or two blocks of columns: a vector of accumulators for each row and 16 columns.
template <int rows, int vectors, bool masked>
BINARIZE_INLINE inline void tile(const XnorProductArgs& args, int64_t row, int64_t lane) {
  const int64_t block_words = int64_t{args.k_words} * kWordBits;
  const uint32_t* w = args.w + lane / kWordBits * block_words;
  const uint32_t* x = args.x + row * args.x_row_stride;
  __m512i acc[rows][vectors];
  const auto count = [&](int32_t k, auto add) {
    __m512i columns[vectors];
#pragma GCC unroll 4
    for (int i = 0; i < vectors; ++i)
      columns[i] = _mm512_load_si512(w + k * kWordBits + i / 2 * block_words + i % 2 * kVectorLanes);
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const __m512i word = _mm512_set1_epi32(static_cast<int>(x[r * args.x_row_stride + k]));
#pragma GCC unroll 4
      for (int i = 0; i < vectors; ++i) add(acc[r][i], _mm512_popcnt_epi32(_mm512_xor_si512(word, columns[i])));
    }
  };
  count(0, [](__m512i& sum, __m512i bits) { sum = bits; });
#pragma GCC unroll 2
  for (int32_t k = 1; k < args.k_words; ++k)
    count(k, [](__m512i& sum, __m512i bits) { sum = _mm512_add_epi32(sum, bits); });

  Strip<rows, vectors, masked> strip(row, lane, args.epilogue.lanes);
  const __m128i shift = _mm_cvtsi32_si128(args.shift);
  strip.each([&](__m512& z, int r, int i) BINARIZE_INLINE {
    const __m512i base = _mm512_load_si512(args.base + lane + i * kVectorLanes);
    z = _mm512_cvtepi32_ps(_mm512_sub_epi32(base, _mm512_sll_epi32(acc[r][i], shift)));
  });
  strip.multiply(args.epilogue.scale);
  strip.finish(args.epilogue);
  if (args.bits.q) store_bits(args.bits, strip);
}

// From `row` on: tiles of `rows` rows, then one row at a time.
template <int rows, int vectors, bool masked>
void all_rows(const XnorProductArgs& args, int64_t lane, int64_t row = 0) {
  for (; row + rows <= args.epilogue.rows; row += rows) tile<rows, vectors, masked>(args, row, lane);
  if constexpr (rows > 1)
    if (row < args.epilogue.rows) all_rows<1, vectors, masked>(args, lane, row);
}

template <int rows, int vectors>
void all_columns(const XnorProductArgs& args) {
  constexpr int64_t kLanes = vectors * kVectorLanes;
  const int64_t lanes = args.epilogue.lanes;
  int64_t lane = 0;
  for (; lane + kLanes <= lanes; lane += kLanes) all_rows<rows, vectors, false>(args, lane);
  if constexpr (kLanes > kWordBits)
    if (lane + kWordBits < lanes) return all_rows<rows, vectors, true>(args, lane);
  if (lane < lanes) all_rows<1, 2, true>(args, lane);
}

}  // namespace

// Few rows read the weights at the speed of the cache that holds them, which is best in one stream: a block at a time,
// 1 and 2 rows of 4096 x 4096 take 22.2 and 28.2 us, two blocks at a time 23.7 and 29.2 us (2 MB of weights cannot come
// in less than 21.0 us from a Zen 4's third level).  More rows share what they read: 12 rows take 168 us in tiles of 4
// x 64 and 186 us in tiles of 1 x 32.
void xnor_product_avx512vpopcntdq(const XnorProductArgs& args) {
  switch (args.epilogue.rows) {
    case 1:
      return all_columns<1, 2>(args);
    case 2:
      return all_columns<2, 2>(args);
    case 3:
      return all_columns<3, 2>(args);
    default:
      return all_columns<4, 4>(args);
  }
}

}  // namespace binarize
