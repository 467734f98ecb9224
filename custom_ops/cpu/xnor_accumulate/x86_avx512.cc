#include <immintrin.h>

#include "cpu/xnor_accumulate/bits_by_chunks.h"

namespace binarize {
namespace {

constexpr int kVectorLanes = 16;
constexpr int kVectors = kWordBits / kVectorLanes;
// 18 / 36 / 144 words on a Zen 5, GCC 12: 1010 / 1148 / 1435 MAC/ns in blocks of 8, 805 / 891 / 948 word by word.
constexpr int kBlockWords = 8;
// A byte counts at most 8 for each block, so 31 blocks fit.
constexpr int32_t kByteWords = 31 * kBlockWords;

// Bits set in each byte.
inline __attribute__((always_inline)) __m512i count_bytes(__m512i v) {
  const __m512i counts = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const __m512i nibble = _mm512_set1_epi8(0xf);
  return _mm512_add_epi8(_mm512_shuffle_epi8(counts, _mm512_and_si512(v, nibble)),
                         _mm512_shuffle_epi8(counts, _mm512_and_si512(_mm512_srli_epi32(v, 4), nibble)));
}

// `factor` times the sum of the four bytes of each lane.
inline __attribute__((always_inline)) __m512i sum_bytes(__m512i bytes, int16_t factor) {
  return _mm512_madd_epi16(_mm512_maddubs_epi16(bytes, _mm512_set1_epi8(1)), _mm512_set1_epi16(factor));
}

// sum + a + b, bit by bit: the sum keeps the low bit, the high bit is returned.
inline __attribute__((always_inline)) __m512i carry_save(__m512i& sum, __m512i a, __m512i b) {
  constexpr int kMajority = 0xe8, kParity = 0x96;
  const __m512i carry = _mm512_ternarylogic_epi32(sum, a, b, kMajority);
  sum = _mm512_ternarylogic_epi32(sum, a, b, kParity);
  return carry;
}

// Where a word of the row and 16 filters from `lane` on differ.
template <bool masked>
inline __attribute__((always_inline)) __m512i mismatches(const XnorAccumulateArgs& args, const uint32_t* row,
                                                         XnorWord word, int lane) {
  constexpr int kXorThenAnd = 0x28;  // (a ^ b) & c
  const __m512i x = _mm512_set1_epi32(static_cast<int>(row[word.x])), w = _mm512_load_si512(args.w + word.w + lane);
  return masked ? _mm512_ternarylogic_epi32(x, w, _mm512_load_si512(args.mask + word.w + lane), kXorThenAnd)
                : _mm512_xor_si512(x, w);
}

// One row.  The bits of eight words that differ are first added bit by bit with carries (Harley and Seal): `ones`,
// `twos` and `fours` stay, and only the carry out of them, worth eight, is counted.
template <bool masked>
inline __attribute__((always_inline)) void accumulate_row(const XnorAccumulateArgs& args, int64_t row) {
  const uint32_t* x = args.x + args.row_offset[row];
  __m512i ones[kVectors] = {}, twos[kVectors] = {}, fours[kVectors] = {}, total[kVectors] = {};
  int32_t k = 0;
  while (k + kBlockWords <= args.word_count) {
    const int32_t end = args.word_count - k > kByteWords ? k + kByteWords : args.word_count - kBlockWords + 1;
    __m512i eights[kVectors] = {};
    for (; k < end; k += kBlockWords) {
      const XnorWord* at = args.words + k;
      for (int i = 0; i < kVectors; ++i) {
        const auto differ = [&](int j) { return mismatches<masked>(args, x, at[j], i * kVectorLanes); };
        const __m512i carry01 = carry_save(ones[i], differ(0), differ(1));
        const __m512i carry23 = carry_save(ones[i], differ(2), differ(3));
        const __m512i carry0123 = carry_save(twos[i], carry01, carry23);
        const __m512i carry45 = carry_save(ones[i], differ(4), differ(5));
        const __m512i carry67 = carry_save(ones[i], differ(6), differ(7));
        const __m512i carry4567 = carry_save(twos[i], carry45, carry67);
        eights[i] = _mm512_add_epi8(eights[i], count_bytes(carry_save(fours[i], carry0123, carry4567)));
      }
    }
    for (int i = 0; i < kVectors; ++i) total[i] = _mm512_add_epi32(total[i], sum_bytes(eights[i], 8));
  }
  __m512i rest[kVectors];  // a byte counts at most (1 + 2 + 4) * 8 here, and 7 * 8 in the words that fill no block
  for (int i = 0; i < kVectors; ++i) {
    const __m512i count2 = count_bytes(twos[i]), count4 = count_bytes(fours[i]);
    const __m512i twice = _mm512_add_epi8(count2, _mm512_add_epi8(count4, count4));
    rest[i] = _mm512_add_epi8(count_bytes(ones[i]), _mm512_add_epi8(twice, twice));
  }
  for (; k < args.word_count; ++k)
    for (int i = 0; i < kVectors; ++i)
      rest[i] = _mm512_add_epi8(rest[i], count_bytes(mismatches<masked>(args, x, args.words[k], i * kVectorLanes)));
  int32_t* acc = args.acc + args.row_place[row] * args.acc_stride;
  const __m128i shift = _mm_cvtsi32_si128(args.shift);
  for (int i = 0; i < kVectors; ++i) {
    const __m512i sum = _mm512_sll_epi32(_mm512_add_epi32(total[i], sum_bytes(rest[i], 1)), shift);
    _mm512_storeu_si512(acc + i * kVectorLanes,
                        _mm512_sub_epi32(_mm512_loadu_si512(args.base + i * kVectorLanes), sum));
  }
}

}  // namespace

void xnor_accumulate_avx512(const XnorAccumulateArgs& args) {
  if (args.mask)
    for (int64_t row = 0; row < args.rows; ++row) accumulate_row<true>(args, row);
  else
    for (int64_t row = 0; row < args.rows; ++row) accumulate_row<false>(args, row);
}

void xnor_bits_avx512(const XnorBitsArgs& args) {
  bits_by_chunks(args, xnor_accumulate_avx512, [](const int32_t* acc) {
    return static_cast<uint32_t>(_mm512_movepi32_mask(_mm512_load_si512(acc))) |
           static_cast<uint32_t>(_mm512_movepi32_mask(_mm512_load_si512(acc + kVectorLanes))) << kVectorLanes;
  });
}

void combine_terms_avx512(const CombineArgs& args) {
  for (int64_t t = 0; t < args.outputs; ++t)
    for (int64_t m = 0; m < args.bases; ++m)
      for (int64_t i = 0; i < args.count; i += kVectorLanes) {  // count is a multiple of 32
        __m512i sum = _mm512_setzero_si512();
        for (int64_t p = 0; p < args.planes; ++p)
          sum = _mm512_add_epi32(
              sum, _mm512_mullo_epi32(_mm512_set1_epi32(args.combine[t * args.planes + p]),
                                      _mm512_loadu_si512(args.acc + (p * args.bases + m) * args.count + i)));
        _mm512_storeu_si512(args.combined + (t * args.bases + m) * args.count + i, sum);
      }
}

}  // namespace binarize
