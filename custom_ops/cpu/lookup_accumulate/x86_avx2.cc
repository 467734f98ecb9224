// One shuffle looks up 16 filters in the tables of two groups of four channels, one in each half of a vector.  Lookups
// are summed in bytes, then in 16 bits, where a byte is one filter's: the sum of the bytes as they are, less the upper
// bytes' own sum on its upper half, is that of the lower bytes.
#include <immintrin.h>

#include "cpu/lookup_accumulate/lookup_accumulate.h"

namespace binarize {
namespace {

constexpr int64_t kVector = 32;  // bytes

inline __attribute__((always_inline)) __m256i load(const uint8_t* data) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data));
}

// --- Tables ------------------------------------------------------------------------------------------------------

// Lane 16g + i, of the first two groups of 16 channels and the last two: channel j of the group if bit j of i is set,
// else nothing.
struct Subsets {
  alignas(32) uint8_t of[2][4][32];
  constexpr Subsets() : of() {
    for (int half = 0; half < 2; ++half)
      for (int j = 0; j < 4; ++j)
        for (int lane = 0; lane < 32; ++lane)
          of[half][j][lane] = static_cast<uint8_t>(lane % 16 >> j & 1 ? half * 8 + lane / 16 * 4 + j : 0x80);
  }
};
constexpr Subsets kSubsets;

// The levels of the 32 channels of a word, and their sum.
inline int32_t unpack_levels(const LookupTablesArgs& args, const uint32_t* x, uint8_t* levels) {
  const __m256i byte_of_lane = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,  //
                                                2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
  const __m256i bit_of_lane = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
  __m256i v = _mm256_setzero_si256();
  int32_t sum = 0;
  for (int32_t p = 0; p < args.planes; ++p, x += args.plane_stride) {
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(*x)), byte_of_lane);
    const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit_of_lane), bit_of_lane);
    v = _mm256_or_si256(v, _mm256_and_si256(set, _mm256_set1_epi8(static_cast<char>(1 << p))));
    sum += __builtin_popcount(*x) << p;
  }
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(levels), v);
  return sum;
}

inline __m256i subset_sums(__m256i channels, int half) {
  __m256i sums = _mm256_setzero_si256();
  for (int j = 0; j < 4; ++j) sums = _mm256_add_epi8(sums, _mm256_shuffle_epi8(channels, load(kSubsets.of[half][j])));
  return sums;
}

// --- Lookups -----------------------------------------------------------------------------------------------------

constexpr int kTileRows = 4;  // 8 sums, 4 of bytes, the index and a table stay in the 16 registers
constexpr int64_t kStepWeights = 4 * kWordBits;

template <int rows>
struct Sums {
  __m256i whole[rows], upper[rows];
};

template <int rows>
inline __attribute__((always_inline)) void widen(const __m256i* bytes, Sums<rows>& sums) {
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
    sums.whole[r] = _mm256_add_epi16(sums.whole[r], bytes[r]);
    sums.upper[r] = _mm256_add_epi16(sums.upper[r], _mm256_srli_epi16(bytes[r], 8));
  }
}

// `steps` steps; each looks up two vectors of tables, and bytes hold `chain` lookups.
template <int rows, int steps, int chain>
inline __attribute__((always_inline)) void look_up(const uint8_t* const* x, const int32_t* k_offset, const uint8_t* w,
                                                   int64_t w_stride, Sums<rows>& sums) {
  __m256i bytes[rows];
#pragma GCC unroll 4
  for (int i = 0; i < 2 * steps; ++i) {
    const __m256i index = load(w + i / 2 * w_stride + i % 2 * kVector);
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const __m256i found = _mm256_shuffle_epi8(load(x[r] + k_offset[i / 2] + i % 2 * kVector), index);
      bytes[r] = i % chain ? _mm256_add_epi8(bytes[r], found) : found;
    }
    if ((i + 1) % chain == 0 || i + 1 == 2 * steps) widen<rows>(bytes, sums);
  }
}

inline __attribute__((always_inline)) __m128i add_halves(__m256i v) {
  return _mm_add_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}

// 16 filters, whose weights of a step are 64 bytes.
template <int rows, int chain>
inline __attribute__((always_inline)) void tile(const LookupAccumulateArgs& args, int64_t row, const uint8_t* w,
                                                int64_t w_stride, int32_t* acc) {
  const uint8_t* x[rows];
  for (int r = 0; r < rows; ++r) x[r] = args.tables + args.row_offset[row + r];
  const int32_t most = 65535 / (16 * ((1 << args.planes) - 1));  // steps of 16 channels whose sums fit in 16 bits
  for (int32_t k = 0; k < args.steps;) {
    const bool begins = k == 0;
    const int32_t end = args.steps - k > most ? k + most : args.steps;
    Sums<rows> sums;
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) sums.whole[r] = sums.upper[r] = _mm256_setzero_si256();
    if (chain == 4)
      for (; k + 2 <= end; k += 2, w += 2 * w_stride) look_up<rows, 2, chain>(x, args.k_offset + k, w, w_stride, sums);
    for (; k < end; ++k, w += w_stride) look_up<rows, 1, chain>(x, args.k_offset + k, w, w_stride, sums);
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const __m128i upper = add_halves(sums.upper[r]);
      const __m128i lower = _mm_sub_epi16(add_halves(sums.whole[r]), _mm_slli_epi16(upper, 8));
      const __m128i eight[2] = {_mm_unpacklo_epi16(lower, upper), _mm_unpackhi_epi16(lower, upper)};
      __m256i* out = reinterpret_cast<__m256i*>(acc + (row + r) * args.acc_stride);
      for (int i = 0; i < 2; ++i) {
        const __m256i before = begins ? _mm256_set1_epi32(args.start[row + r]) : _mm256_loadu_si256(out + i);
        const __m256i twice = _mm256_slli_epi32(_mm256_cvtepu16_epi32(eight[i]), 1);
        _mm256_storeu_si256(out + i, _mm256_add_epi32(before, twice));
      }
    }
  }
}

template <int chain>
void accumulate(const LookupAccumulateArgs& args) {
  for (int64_t block = 0; block < args.blocks; ++block) {
    const int64_t w_stride = args.weights_stride(block, kStepWeights);
    const uint8_t* w = args.w + args.weights_begin(block, kStepWeights);
    for (int half = 0; half < 2; ++half) {
      int32_t* acc = args.acc + block * args.acc_block_stride + half * 16;
      const uint8_t* of_half = w + half * 2 * kVector;
      int64_t row = 0;
      for (; row + kTileRows <= args.rows; row += kTileRows) tile<kTileRows, chain>(args, row, of_half, w_stride, acc);
      for (; row < args.rows; ++row) tile<1, chain>(args, row, of_half, w_stride, acc);
    }
  }
}

}  // namespace

LookupFormat lookup_format_avx2(int32_t, int64_t, int64_t) { return {4, LookupFormat::Order::table_rows}; }

void lookup_tables_avx2(const LookupTablesArgs& args) {
  const int64_t words = (args.channels + kWordBits - 1) / kWordBits;
  const int64_t tables = LookupFormat{args.group, LookupFormat::Order::table_rows}.tables(args.channels);
  uint8_t* out = args.tables;
  for (int64_t i = 0; i < args.pixels; ++i) {
    const uint32_t* x = args.x + i * args.pixel_stride;
    int32_t sum = 0;
    int64_t left = tables;
    for (int64_t word = 0; word < words; ++word, x += args.word_stride) {
      alignas(32) uint8_t levels[kWordBits];
      sum += unpack_levels(args, x, levels);
      for (int part = 0; part < 4 && left > 0; ++part, left -= 2) {  // 8 channels, two tables
        const __m256i channels =
            _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(levels) + part / 2));
        const __m256i sums = subset_sums(channels, part % 2);
        if (left > 1)
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), sums);
        else
          _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_castsi256_si128(sums));
        out += left > 1 ? 32 : 16;
      }
    }
    args.sums[i] = sum;
  }
}

// Lookups of four channels that fit in a byte: 4 x 60, 2 x 124, 1 x 252.
void lookup_accumulate_avx2(const LookupAccumulateArgs& args) {
  if (args.planes <= 4) return accumulate<4>(args);
  args.planes == 5 ? accumulate<2>(args) : accumulate<1>(args);
}

}  // namespace binarize
