// As x86_avx2.cc, whose tables it takes: one shuffle looks up 16 filters in the tables of four groups.
#include <immintrin.h>

#include "cpu/lookup_accumulate/lookup_accumulate.h"

namespace binarize {
namespace {

constexpr int64_t kVector = 64;  // bytes
constexpr int kTileRows = 4;     // 16 sums, 8 of bytes, two indices and a table stay in the 32 registers
constexpr int64_t kStepWeights = 4 * kWordBits;

inline __attribute__((always_inline)) __m512i load(const uint8_t* data) { return _mm512_loadu_si512(data); }

template <int rows>
struct Sums {
  __m512i whole[rows][2], upper[rows][2];  // of filters 0 to 15 and 16 to 31
};

// `chain` steps, whose lookups fit in bytes.
template <int rows, int chain>
inline __attribute__((always_inline)) void look_up(const uint8_t* const* x, const int32_t* k_offset, const uint8_t* w,
                                                   int64_t w_stride, Sums<rows>& sums) {
  __m512i bytes[rows][2];
#pragma GCC unroll 4
  for (int i = 0; i < chain; ++i) {
    const __m512i index[2] = {load(w + i * w_stride), load(w + i * w_stride + kVector)};
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const __m512i table = load(x[r] + k_offset[i]);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const __m512i found = _mm512_shuffle_epi8(table, index[half]);
        bytes[r][half] = i ? _mm512_add_epi8(bytes[r][half], found) : found;
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      sums.whole[r][half] = _mm512_add_epi16(sums.whole[r][half], bytes[r][half]);
      sums.upper[r][half] = _mm512_add_epi16(sums.upper[r][half], _mm512_srli_epi16(bytes[r][half], 8));
    }
}

inline __attribute__((always_inline)) __m128i add_quarters(__m512i v) {
  const __m256i half = _mm256_add_epi16(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
  return _mm_add_epi16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

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
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) sums.whole[r][half] = sums.upper[r][half] = _mm512_setzero_si512();
    for (; k + chain <= end; k += chain, w += chain * w_stride)
      look_up<rows, chain>(x, args.k_offset + k, w, w_stride, sums);
    for (; k < end; ++k, w += w_stride) look_up<rows, 1>(x, args.k_offset + k, w, w_stride, sums);
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const __m128i upper = add_quarters(sums.upper[r][half]);
        const __m128i lower = _mm_sub_epi16(add_quarters(sums.whole[r][half]), _mm_slli_epi16(upper, 8));
        const __m256i sixteen = _mm256_set_m128i(_mm_unpackhi_epi16(lower, upper), _mm_unpacklo_epi16(lower, upper));
        int32_t* out = acc + (row + r) * args.acc_stride + half * 16;
        const __m512i before = begins ? _mm512_set1_epi32(args.start[row + r]) : _mm512_loadu_si512(out);
        _mm512_storeu_si512(out, _mm512_add_epi32(before, _mm512_slli_epi32(_mm512_cvtepu16_epi32(sixteen), 1)));
      }
  }
}

template <int chain>
void accumulate(const LookupAccumulateArgs& args) {
  for (int64_t block = 0; block < args.blocks; ++block) {
    const int64_t w_stride = args.weights_stride(block, kStepWeights);
    const uint8_t* w = args.w + args.weights_begin(block, kStepWeights);
    int32_t* acc = args.acc + block * args.acc_block_stride;
    int64_t row = 0;
    for (; row + kTileRows <= args.rows; row += kTileRows) tile<kTileRows, chain>(args, row, w, w_stride, acc);
    for (; row < args.rows; ++row) tile<1, chain>(args, row, w, w_stride, acc);
  }
}

}  // namespace

LookupFormat lookup_format_avx512(int32_t planes, int64_t channels, int64_t taps) {
  return lookup_format_avx2(planes, channels, taps);
}

void lookup_tables_avx512(const LookupTablesArgs& args) { lookup_tables_avx2(args); }

// Lookups of four channels that fit in a byte: 4 x 60, 2 x 124, 1 x 252.
void lookup_accumulate_avx512(const LookupAccumulateArgs& args) {
  if (args.planes <= 4) return accumulate<4>(args);
  args.planes == 5 ? accumulate<2>(args) : accumulate<1>(args);
}

}  // namespace binarize
