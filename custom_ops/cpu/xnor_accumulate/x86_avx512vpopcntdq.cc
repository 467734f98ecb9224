#include <immintrin.h>

#include "cpu/xnor_accumulate/xnor_accumulate.h"

namespace binarize {
namespace {

// Seven rows share each pair of weight vectors: 14 accumulators and the weights stay in the 32 registers, and 7 divides
// the image widths that networks use (56, 28, 14, 7).
constexpr int kTileRows = 7;

template <int rows, bool masked>
inline __attribute__((always_inline)) void accumulate_tile(const XnorAccumulateArgs& args, int64_t first) {
  const uint32_t* x[rows];
  for (int r = 0; r < rows; ++r) x[r] = args.x + args.row_offset[first + r];
  __m512i low[rows], high[rows];  // filters 0..15 and 16..31
  for (int r = 0; r < rows; ++r) low[r] = high[r] = _mm512_setzero_si512();
  const uint32_t* w = args.w;
  const uint32_t* mask = args.mask;
#pragma GCC unroll 2
  for (int32_t k = 0; k < args.k_words; ++k) {
    const int64_t offset = args.k_offset[k];
    const __m512i w_low = _mm512_load_si512(w), w_high = _mm512_load_si512(w + 16);
    w += kWordBits;
    __m512i mask_low{}, mask_high{};
    if (masked) {
      mask_low = _mm512_load_si512(mask);
      mask_high = _mm512_load_si512(mask + 16);
      mask += kWordBits;
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const __m512i word = _mm512_set1_epi32(static_cast<int>(x[r][offset]));
      __m512i differ_low, differ_high;
      if (masked) {
        constexpr int kXorThenAnd = 0x28;  // (a ^ b) & c
        differ_low = _mm512_ternarylogic_epi32(word, w_low, mask_low, kXorThenAnd);
        differ_high = _mm512_ternarylogic_epi32(word, w_high, mask_high, kXorThenAnd);
      } else {
        differ_low = _mm512_xor_si512(word, w_low);
        differ_high = _mm512_xor_si512(word, w_high);
      }
      low[r] = _mm512_add_epi32(low[r], _mm512_popcnt_epi32(differ_low));
      high[r] = _mm512_add_epi32(high[r], _mm512_popcnt_epi32(differ_high));
    }
  }
  const __m128i shift = _mm_cvtsi32_si128(args.shift);
  for (int r = 0; r < rows; ++r) {
    const int32_t* base = args.base + (args.row_class ? int64_t{args.row_class[first + r]} * kWordBits : 0);
    int32_t* acc = args.acc + (first + r) * args.acc_stride;
    _mm512_storeu_si512(acc, _mm512_sub_epi32(_mm512_loadu_si512(base), _mm512_sll_epi32(low[r], shift)));
    _mm512_storeu_si512(acc + 16, _mm512_sub_epi32(_mm512_loadu_si512(base + 16), _mm512_sll_epi32(high[r], shift)));
  }
}

template <bool masked>
void accumulate(const XnorAccumulateArgs& args) {
  int64_t row = 0;
  for (; row + kTileRows <= args.rows; row += kTileRows) accumulate_tile<kTileRows, masked>(args, row);
  switch (args.rows - row) {
    case 6:
      return accumulate_tile<6, masked>(args, row);
    case 5:
      return accumulate_tile<5, masked>(args, row);
    case 4:
      return accumulate_tile<4, masked>(args, row);
    case 3:
      return accumulate_tile<3, masked>(args, row);
    case 2:
      return accumulate_tile<2, masked>(args, row);
    case 1:
      return accumulate_tile<1, masked>(args, row);
    default:
      return;
  }
}

}  // namespace

void xnor_accumulate_avx512vpopcntdq(const XnorAccumulateArgs& args) {
  args.mask ? accumulate<true>(args) : accumulate<false>(args);
}

void combine_terms_avx512vpopcntdq(const CombineArgs& args) { combine_terms_avx512(args); }  // no popcount in it

}  // namespace binarize
