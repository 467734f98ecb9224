#include <immintrin.h>

#include "cpu/xnor_accumulate/bits_by_chunks.h"

namespace binarize {
namespace {

constexpr int kVectorLanes = 8;
constexpr int kVectors = 2;  // 16 filters at a time: three accumulators each and the temporaries fill the 16 registers
// 18 / 36 / 144 words on a Zen 5, GCC 12: 429 / 483 / 525 MAC/ns in blocks of 4, 429 / 461 / 460 word by word.
constexpr int kBlockWords = 4;
// A byte counts at most 8 for each block, so 31 blocks fit.
constexpr int32_t kByteWords = 31 * kBlockWords;

// Bits set in each byte.
inline __attribute__((always_inline)) __m256i count_bytes(__m256i v) {
  const __m256i counts = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                          0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i nibble = _mm256_set1_epi8(0xf);
  return _mm256_add_epi8(_mm256_shuffle_epi8(counts, _mm256_and_si256(v, nibble)),
                         _mm256_shuffle_epi8(counts, _mm256_and_si256(_mm256_srli_epi32(v, 4), nibble)));
}

// `factor` times the sum of the four bytes of each lane.
inline __attribute__((always_inline)) __m256i sum_bytes(__m256i bytes, int16_t factor) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1)), _mm256_set1_epi16(factor));
}

// sum + a + b, bit by bit: the sum keeps the low bit, the high bit is returned.
inline __attribute__((always_inline)) __m256i carry_save(__m256i& sum, __m256i a, __m256i b) {
  const __m256i differ = _mm256_xor_si256(sum, a);
  const __m256i carry = _mm256_or_si256(_mm256_and_si256(sum, a), _mm256_and_si256(differ, b));
  sum = _mm256_xor_si256(differ, b);
  return carry;
}

inline const __m256i* vector_at(const void* data) { return static_cast<const __m256i*>(data); }

inline __attribute__((always_inline)) __m256i broadcast(uint32_t word) {
  return _mm256_set1_epi32(static_cast<int>(word));
}

// Where a word, in all lanes, and the eight filters at `w` differ.
template <bool masked>
inline __attribute__((always_inline)) __m256i mismatches(const XnorAccumulateArgs& args, __m256i word, int64_t w) {
  const __m256i differ = _mm256_xor_si256(word, _mm256_load_si256(vector_at(args.w + w)));
  return masked ? _mm256_and_si256(differ, _mm256_load_si256(vector_at(args.mask + w))) : differ;
}

// --- Few rows, or a mask: count -------------------------------------------------------------------------------------

// One row and the filters [lane, lane + 16).  The bits of four words that differ are first added bit by bit with
// carries (Harley and Seal): `ones` and `twos` stay, and only the carry out of them, worth four, is counted.
template <bool masked>
inline __attribute__((always_inline)) void accumulate_row(const XnorAccumulateArgs& args, int64_t row, int lane) {
  const uint32_t* x = args.x + args.row_offset[row];
  __m256i ones[kVectors] = {}, twos[kVectors] = {}, total[kVectors] = {};
  int32_t k = 0;
  while (k + kBlockWords <= args.word_count) {
    const int32_t end = args.word_count - k > kByteWords ? k + kByteWords : args.word_count - kBlockWords + 1;
    __m256i fours[kVectors] = {};
    for (; k < end; k += kBlockWords) {
      const XnorWord* at = args.words + k;
      const __m256i word0 = broadcast(x[at[0].x]), word1 = broadcast(x[at[1].x]);
      const __m256i word2 = broadcast(x[at[2].x]), word3 = broadcast(x[at[3].x]);
      for (int i = 0; i < kVectors; ++i) {
        const int first = lane + i * kVectorLanes;
        const __m256i carry01 = carry_save(ones[i], mismatches<masked>(args, word0, at[0].w + first),
                                           mismatches<masked>(args, word1, at[1].w + first));
        const __m256i carry23 = carry_save(ones[i], mismatches<masked>(args, word2, at[2].w + first),
                                           mismatches<masked>(args, word3, at[3].w + first));
        fours[i] = _mm256_add_epi8(fours[i], count_bytes(carry_save(twos[i], carry01, carry23)));
      }
    }
    for (int i = 0; i < kVectors; ++i) total[i] = _mm256_add_epi32(total[i], sum_bytes(fours[i], 4));
  }
  __m256i rest[kVectors];
  for (int i = 0; i < kVectors; ++i) {
    const __m256i twice = count_bytes(twos[i]);
    rest[i] = _mm256_add_epi8(count_bytes(ones[i]), _mm256_add_epi8(twice, twice));
  }
  for (; k < args.word_count; ++k) {
    const __m256i word = broadcast(x[args.words[k].x]);
    for (int i = 0; i < kVectors; ++i)
      rest[i] = _mm256_add_epi8(rest[i],
                                count_bytes(mismatches<masked>(args, word, args.words[k].w + lane + i * kVectorLanes)));
  }
  const int32_t* base = args.base + lane;
  int32_t* acc = args.acc + args.row_place[row] * args.acc_stride + lane;
  const __m128i shift = _mm_cvtsi32_si128(args.shift);
  for (int i = 0; i < kVectors; ++i) {
    const __m256i sum = _mm256_sll_epi32(_mm256_add_epi32(total[i], sum_bytes(rest[i], 1)), shift);
    const __m256i start = _mm256_loadu_si256(vector_at(base + i * kVectorLanes));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(acc + i * kVectorLanes), _mm256_sub_epi32(start, sum));
  }
}

template <bool masked>
void accumulate(const XnorAccumulateArgs& args) {
  for (int64_t row = 0; row < args.rows; ++row)
    for (int lane = 0; lane < kWordBits; lane += kVectors * kVectorLanes) accumulate_row<masked>(args, row, lane);
}

// --- Many rows, no mask: look up instead of count -----------------------------------------------------------------
//
// Lanes are bytes here, one a filter, and the weights are the indices: four bits of a filter choose one of 16 bytes,
// and which 16 bytes those are, four bits of the activations say.  So one shuffle compares and counts four bits of 32
// lanes. 112 rows of 8 / 18 / 144 words on a Zen 5, GCC 12: looking up gives 654 / 678 / 714 MAC/ns, counting 348 / 429
// / 525. The rows share the work of rearranging the weights: of 8 / 18 / 128 words looking up is faster from 4 / 6 / 8
// rows on. With a mask it would take twice the shuffles, and lose.
constexpr int64_t kLookUpRows = 8;
constexpr int kTileRows = 4;            // eight accumulators, two vectors of weights, and the tables
constexpr int32_t kLookUpWords = 15;    // a byte counts at most 16 for each word
constexpr int kBytes = 4, kHalves = 2;  // of a word; of the 32 filters

// bytes[x][i] is the number of bits in which the low nibble of x differs from i, then for the high nibble the same.
struct Tables {
  alignas(32) uint8_t bytes[256][32];
  constexpr Tables() : bytes() {
    for (int x = 0; x < 256; ++x)
      for (int i = 0; i < 32; ++i)
        for (int bit = 0; bit < 4; ++bit) bytes[x][i] += ((i < 16 ? x : x >> 4) ^ i) >> bit & 1;
  }
};
constexpr Tables kTables;

// For each byte of a word and each half of the filters: their 16 low nibbles, then their 16 high nibbles.
struct alignas(32) Nibbles {
  uint8_t of[kLookUpWords][kBytes][kHalves][32];
};

// w: one word of 32 filters.
inline void split_nibbles(const uint32_t* w, uint8_t (*to)[kHalves][32]) {
  const __m128i by_byte = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m128i nibble = _mm_set1_epi8(0xf);
  for (int half = 0; half < kHalves; ++half) {
    __m128i four[4];  // four filters each: their bytes 0, their bytes 1, ...
    for (int i = 0; i < 4; ++i)
      four[i] = _mm_shuffle_epi8(_mm_load_si128(reinterpret_cast<const __m128i*>(w + half * 16 + i * 4)), by_byte);
    const __m128i bytes01[2] = {_mm_unpacklo_epi32(four[0], four[1]), _mm_unpacklo_epi32(four[2], four[3])};
    const __m128i bytes23[2] = {_mm_unpackhi_epi32(four[0], four[1]), _mm_unpackhi_epi32(four[2], four[3])};
    const __m128i bytes[kBytes] = {
        _mm_unpacklo_epi64(bytes01[0], bytes01[1]), _mm_unpackhi_epi64(bytes01[0], bytes01[1]),
        _mm_unpacklo_epi64(bytes23[0], bytes23[1]), _mm_unpackhi_epi64(bytes23[0], bytes23[1])};
    for (int b = 0; b < kBytes; ++b) {
      __m128i* out = reinterpret_cast<__m128i*>(to[b][half]);
      _mm_store_si128(out, _mm_and_si128(bytes[b], nibble));
      _mm_store_si128(out + 1, _mm_and_si128(_mm_srli_epi32(bytes[b], 4), nibble));
    }
  }
}

// acc = from - (counts << shift) for 16 filters; counts: what their low nibbles gave, then what their high ones gave.
inline void subtract_counts(__m256i counts, const int32_t* from, int32_t* acc, __m128i shift) {
  const __m256i sums = _mm256_add_epi16(_mm256_cvtepu8_epi16(_mm256_castsi256_si128(counts)),
                                        _mm256_cvtepu8_epi16(_mm256_extracti128_si256(counts, 1)));
  const __m128i eight[2] = {_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1)};
  for (int i = 0; i < 2; ++i) {
    const __m256i sum = _mm256_sll_epi32(_mm256_cvtepu16_epi32(eight[i]), shift);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(acc + i * kVectorLanes),
                        _mm256_sub_epi32(_mm256_loadu_si256(vector_at(from + i * kVectorLanes)), sum));
  }
}

// The words [first, first + words), whose weights are in `nibbles`, of some rows.
template <int rows>
inline __attribute__((always_inline)) void look_up_rows(const XnorAccumulateArgs& args, const Nibbles& nibbles,
                                                        int32_t first, int32_t words, int64_t row) {
  __m256i counts[rows][kHalves] = {};
  const uint32_t* x[rows];
  for (int r = 0; r < rows; ++r) x[r] = args.x + args.row_offset[row + r];
  for (int32_t k = 0; k < words; ++k) {
    const int32_t offset = args.words[first + k].x;
#pragma GCC unroll 4
    for (int b = 0; b < kBytes; ++b) {
      const __m256i w0 = _mm256_load_si256(vector_at(nibbles.of[k][b][0]));
      const __m256i w1 = _mm256_load_si256(vector_at(nibbles.of[k][b][1]));
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) {
        const uint8_t byte = reinterpret_cast<const uint8_t*>(x[r] + offset)[b];
        const __m256i table = _mm256_load_si256(vector_at(kTables.bytes[byte]));
        counts[r][0] = _mm256_add_epi8(counts[r][0], _mm256_shuffle_epi8(table, w0));
        counts[r][1] = _mm256_add_epi8(counts[r][1], _mm256_shuffle_epi8(table, w1));
        // Keeps the sums in this order.  GCC 12 adds the terms of all bytes first, runs out of registers, and is 1.5
        // times slower.
        __asm__("" : "+x"(counts[r][0]), "+x"(counts[r][1]));
      }
    }
  }
  const __m128i shift = _mm_cvtsi32_si128(args.shift);
  for (int r = 0; r < rows; ++r) {
    int32_t* acc = args.acc + args.row_place[row + r] * args.acc_stride;
    const int32_t* from = first ? acc : args.base;
    for (int half = 0; half < kHalves; ++half)
      subtract_counts(counts[r][half], from + half * 16, acc + half * 16, shift);
  }
}

void look_up(const XnorAccumulateArgs& args) {
  Nibbles nibbles;
  const int32_t chunks = (args.word_count + kLookUpWords - 1) / kLookUpWords;
  const int32_t chunk = (args.word_count + chunks - 1) / chunks;  // of about equal size
  for (int32_t first = 0; first < args.word_count; first += chunk) {
    const int32_t words = args.word_count - first < chunk ? args.word_count - first : chunk;
    for (int32_t k = 0; k < words; ++k) split_nibbles(args.w + args.words[first + k].w, nibbles.of[k]);
    int64_t row = 0;
    for (; row + kTileRows <= args.rows; row += kTileRows) look_up_rows<kTileRows>(args, nibbles, first, words, row);
    for (; row < args.rows; ++row) look_up_rows<1>(args, nibbles, first, words, row);
  }
}

}  // namespace

void xnor_accumulate_avx2(const XnorAccumulateArgs& args) {
  if (args.mask) return accumulate<true>(args);
  args.rows < kLookUpRows || !args.word_count ? accumulate<false>(args) : look_up(args);
}

void xnor_bits_avx2(const XnorBitsArgs& args) {
  bits_by_chunks(args, xnor_accumulate_avx2, [](const int32_t* acc) {
    uint32_t word = 0;
    for (int i = 0; i < kWordBits; i += kVectorLanes) {
      const __m256 lanes = _mm256_castsi256_ps(_mm256_load_si256(vector_at(acc + i)));
      word |= static_cast<uint32_t>(_mm256_movemask_ps(lanes)) << i;
    }
    return word;
  });
}

void combine_terms_avx2(const CombineArgs& args) {
  for (int64_t t = 0; t < args.outputs; ++t)
    for (int64_t m = 0; m < args.bases; ++m)
      for (int64_t i = 0; i < args.count; i += kVectorLanes) {  // count is a multiple of 32
        __m256i sum = _mm256_setzero_si256();
        for (int64_t p = 0; p < args.planes; ++p) {
          const int32_t* acc = args.acc + (p * args.bases + m) * args.count + i;
          sum = _mm256_add_epi32(sum, _mm256_mullo_epi32(_mm256_set1_epi32(args.combine[t * args.planes + p]),
                                                         _mm256_loadu_si256(reinterpret_cast<const __m256i*>(acc))));
        }
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(args.combined + (t * args.bases + m) * args.count + i), sum);
      }
}

}  // namespace binarize
