// Needs VBMI and VNNI besides: cpu/isa.cc probes for them, and every processor with VPOPCNTDQ and AVX512BW has them.
//
// One VPERMB looks up 64 bytes in a table of 64.  That is two groups of five channels for 32 filters: three or four
// lookups are summed in bytes, then VPMADDUBSW adds the two groups into 16 bits.  Or it is four groups of four channels
// for 16 filters, which VPDPBUSD adds into 32 bits.
#include <immintrin.h>

#include "cpu/lookup_accumulate/lookup_accumulate.h"

namespace binarize {
namespace {

constexpr int64_t kVector = 64;  // bytes
// Groups of five take more time to make tables of, and to begin and to end, than groups of four, but multiply and add
// faster: 826 instead of 766 MAC/ns of four planes.  1x1 256@14 in W2A4: 67 us of fives, 64 of fours; 512@14: 202, 199;
// 1024@7: 174, 200.  3x3 64@56 in W1A4: 251, 248; 128@28: 197, 195; 256@14: 174, 181.
constexpr int64_t kLongestOfFour = 576;      // channels x taps
constexpr int64_t kMostChannelsOfFour = 16;  // of which a fifth saves no shuffle, whatever the taps
constexpr int32_t kMostPlanesOfFive = 4;     // 5 x 15 fits in a byte

inline __attribute__((always_inline)) __m512i load(const uint8_t* data) { return _mm512_loadu_si512(data); }

// --- Tables ------------------------------------------------------------------------------------------------------

// Constants of the byte shuffles.
struct Shuffles {
  // Lane 4p + i: the sum of those of channels 2p and 2p + 1 that bits 0 and 1 of i name.
  alignas(64) uint8_t even[64], odd[64];
  // Lane 16g + i: the sum over two such pairs, of the groups g of the first 16 channels and of the second.
  alignas(64) uint8_t low[2][64], high[2][64];
  alignas(64) uint8_t fifth[64];  // lane 16g + i: channel g, where each 16 bytes hold the four channels
  constexpr Shuffles() : even(), odd(), low(), high(), fifth() {
    for (int lane = 0; lane < 64; ++lane) {
      const int g = lane / 16, i = lane % 16;
      even[lane] = static_cast<uint8_t>(lane / 4 * 2);
      odd[lane] = static_cast<uint8_t>(lane / 4 * 2 + 1);
      for (int half = 0; half < 2; ++half) {
        low[half][lane] = static_cast<uint8_t>((8 * half + 2 * g) * 4 + i % 4);
        high[half][lane] = static_cast<uint8_t>((8 * half + 2 * g + 1) * 4 + i / 4);
      }
      fifth[lane] = static_cast<uint8_t>(g);
    }
  }
};
constexpr Shuffles kShuffles;
constexpr __mmask64 kBit0 = 0xaaaaaaaaaaaaaaaa, kBit1 = 0xcccccccccccccccc;  // lanes whose number has it

// Where the bytes of 8 channels' planes go to be turned into the bytes of 8 channels: from 16 bytes an item,
// plane-major, to a quadword a byte.  Its byte 7 - p is plane p, as VGF2P8AFFINEQB numbers the rows of a matrix.
struct Gather {
  alignas(64) uint8_t of[2][64];     // the items in the first two lanes, in the last two
  alignas(64) uint8_t of_first[64];  // the first 16 channels of all four items
  constexpr Gather() : of(), of_first() {
    for (int lane = 0; lane < 64; ++lane) {
      const auto from = [lane](int item, int byte) {
        const int plane = 7 - lane % 8;
        return static_cast<uint8_t>((plane < 4 ? 0 : 64) + item * 16 + plane % 4 * 4 + byte);
      };
      for (int half = 0; half < 2; ++half) of[half][lane] = from(half * 2 + lane / 32, lane / 8 % 4);
      of_first[lane] = from(lane / 16, lane / 8 % 2);
    }
  }
};
constexpr Gather kGather;

// [4 planes][16 items] to [16 items][4 planes]: item 4i + j lies in lane i of vector j.
inline void transpose_words(const uint32_t* x, int64_t plane_stride, int planes, __mmask16 valid, __m512i (&out)[4]) {
  __m512i in[4];
  for (int p = 0; p < 4; ++p)
    in[p] = p < planes ? _mm512_maskz_loadu_epi32(valid, x + p * plane_stride) : _mm512_setzero_si512();
  const __m512i low01 = _mm512_unpacklo_epi32(in[0], in[1]), high01 = _mm512_unpackhi_epi32(in[0], in[1]);
  const __m512i low23 = _mm512_unpacklo_epi32(in[2], in[3]), high23 = _mm512_unpackhi_epi32(in[2], in[3]);
  out[0] = _mm512_unpacklo_epi64(low01, low23);
  out[1] = _mm512_unpackhi_epi64(low01, low23);
  out[2] = _mm512_unpacklo_epi64(high01, high23);
  out[3] = _mm512_unpackhi_epi64(high01, high23);
}

// levels[item][32] of up to 16 words that follow each other in memory: those of neighbouring pixels, or of one.  Where
// items are 16 bytes apart, their words have no more channels.
template <int planes>
inline void unpack_levels(const uint32_t* x, int64_t plane_stride, int64_t items, int64_t item_size, uint8_t* levels) {
  const __mmask16 valid = items >= 16 ? 0xffff : static_cast<__mmask16>((1u << items) - 1);
  __m512i low[4], high[4];
  transpose_words(x, plane_stride, planes, valid, low);
  if (planes > 4) transpose_words(x + 4 * plane_stride, plane_stride, planes - 4, valid, high);
  constexpr __mmask64 kPlanes = uint64_t{0x0101010101010101} * (0xff & 0xff << (8 - planes));
  const auto levels_of = [&](const uint8_t* gather, int j) {
    const __m512i from = load(gather);
    const __m512i rows = planes > 4 ? _mm512_maskz_permutex2var_epi8(kPlanes, low[j], from, high[j])
                                    : _mm512_maskz_permutexvar_epi8(kPlanes, from, low[j]);
    return _mm512_gf2p8affine_epi64_epi8(_mm512_set1_epi64(static_cast<int64_t>(0x8040201008040201)), rows, 0);
  };
  if (item_size == kWordBits / 2) {
    for (int j = 0; j < 4; ++j) {
      const __m512i v = levels_of(kGather.of_first, j);
      const __m128i of_item[4] = {_mm512_castsi512_si128(v), _mm512_extracti32x4_epi32(v, 1),
                                  _mm512_extracti32x4_epi32(v, 2), _mm512_extracti32x4_epi32(v, 3)};
      for (int i = 0; i < 4; ++i)
        if (4 * i + j < items)
          _mm_storeu_si128(reinterpret_cast<__m128i*>(levels + (4 * i + j) * item_size), of_item[i]);
    }
    return;
  }
  for (int half = 0; half < 2; ++half)
    for (int j = 0; j < 4; ++j) {
      const __m512i v = levels_of(kGather.of[half], j);
      const int64_t item = half * 8 + j;
      if (item >= items) continue;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(levels + item * item_size), _mm512_castsi512_si256(v));
      if (item + 4 >= items) continue;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(levels + (item + 4) * item_size), _mm512_extracti64x4_epi64(v, 1));
    }
}

// The sum of the activations of each pixel.
inline void sum_levels(const LookupTablesArgs& args, int64_t words) {
  int64_t i = 0;
  for (; args.pixel_stride == 1 && i < args.pixels; i += 16) {
    const __mmask16 valid = args.pixels - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (args.pixels - i)) - 1);
    __m512i sum = _mm512_setzero_si512();
    for (int32_t p = args.planes - 1; p >= 0; --p) {
      sum = _mm512_add_epi32(sum, sum);
      const uint32_t* x = args.x + p * args.plane_stride + i;
      for (int64_t word = 0; word < words; ++word, x += args.word_stride)
        sum = _mm512_add_epi32(sum, _mm512_popcnt_epi32(_mm512_maskz_loadu_epi32(valid, x)));
    }
    _mm512_mask_storeu_epi32(args.sums + i, valid, sum);
  }
  for (; i < args.pixels; ++i) {
    int32_t sum = 0;
    for (int32_t p = args.planes - 1; p >= 0; --p) {
      sum += sum;
      const uint32_t* x = args.x + p * args.plane_stride + i * args.pixel_stride;
      for (int64_t word = 0; word < words; ++word, x += args.word_stride) sum += __builtin_popcount(*x);
    }
    args.sums[i] = sum;
  }
}

// The first `count` of four tables of four channels; of five, what adds the fifth channel follows each.
template <bool five>
inline __attribute__((always_inline)) void store_tables(__m512i fours, const uint8_t* fifths, int64_t count,
                                                        uint8_t* out) {
  if (!five) return _mm512_mask_storeu_epi64(out, count >= 4 ? 0xff : (1 << 2 * count) - 1, fours);
  int32_t four_channels;
  __builtin_memcpy(&four_channels, fifths, sizeof four_channels);
  const __m512i with_fifth =
      _mm512_add_epi8(fours, _mm512_shuffle_epi8(_mm512_set1_epi32(four_channels), load(kShuffles.fifth)));
  const __m512i first_two = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
  const __m512i last_two = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  const auto store_two = [](uint8_t* to, int64_t tables, __m512i two) {
    if (tables >= 2)
      _mm512_storeu_si512(to, two);
    else
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_castsi512_si256(two));
  };
  store_two(out, count, _mm512_permutex2var_epi64(fours, first_two, with_fifth));
  if (count > 2) store_two(out + kVector, count - 2, _mm512_permutex2var_epi64(fours, last_two, with_fifth));
}

// The tables of one pixel, or of neighbours together.
template <bool five>
inline void build(const uint8_t* levels, int64_t tables, uint8_t* out) {
  constexpr int64_t kFour = five ? 2 * kVector : kVector;  // bytes of four tables
  const uint8_t* fifths = levels + 4 * tables;
  for (int64_t left = tables; left > 0; left -= 8, levels += 32, fifths += 8, out += 2 * kFour) {
    const __m512i v = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(levels)));
    const __m512i pairs = _mm512_add_epi8(_mm512_maskz_permutexvar_epi8(kBit0, load(kShuffles.even), v),
                                          _mm512_maskz_permutexvar_epi8(kBit1, load(kShuffles.odd), v));
    const auto fours = [&](int half) {
      return _mm512_add_epi8(_mm512_permutexvar_epi8(load(kShuffles.low[half]), pairs),
                             _mm512_permutexvar_epi8(load(kShuffles.high[half]), pairs));
    };
    if (!five && left >= 8) {
      _mm512_storeu_si512(out, fours(0));
      _mm512_storeu_si512(out + kVector, fours(1));
      continue;
    }
    store_tables<five>(fours(0), fifths, left, out);
    if (left > 4) store_tables<five>(fours(1), fifths + 4, left - 4, out + kFour);
  }
}

template <int planes, bool five>
void tables(const LookupTablesArgs& args) {
  const LookupFormat format{args.group, five ? LookupFormat::Order::pairs : LookupFormat::Order::quads};
  const int64_t of_pixel = format.tables(args.channels), pixel_bytes = format.pixel_bytes(args.channels);
  // Some pixels are unpacked before the first is used: a load that follows soon on two stores it overlaps would wait.
  constexpr int64_t kBytes = 16384;
  alignas(64) uint8_t levels[kBytes];
  const int64_t words = (args.channels + kWordBits - 1) / kWordBits;
  // Of whole tables of four the levels and tables of neighbouring pixels follow each other, and are made in one go.
  const bool together = !five && (args.channels % kWordBits == 0 || args.channels == kWordBits / 2);
  const int64_t size = together ? args.channels : (format.group * of_pixel + 32 + kVector - 1) / kVector * kVector;
  const int64_t most = kBytes / size;
  sum_levels(args, words);
  __m256i zeros = _mm256_setzero_si256();
  __asm__("" : "+v"(zeros));  // or GCC makes a call of memset of each few bytes
  for (int64_t first = 0; first < args.pixels; first += most) {
    const int64_t count = args.pixels - first < most ? args.pixels - first : most;
    if (first == 0)  // stays so: no pixel writes there
      for (int64_t i = 0; i < count; ++i)
        for (int64_t at = words * kWordBits; at < size; at += kWordBits)
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(levels + i * size + at), zeros);
    const uint32_t* x = args.x + first * args.pixel_stride;
    const bool pixels_follow = args.pixel_stride == 1;  // or else the words of a pixel
    for (int64_t outer = 0; outer < (pixels_follow ? words : count); ++outer)
      for (int64_t item = 0, items = pixels_follow ? count : words; item < items; item += 16)
        unpack_levels<planes>(
            x + outer * (pixels_follow ? args.word_stride : args.pixel_stride) + item, args.plane_stride, items - item,
            pixels_follow || words == 1 ? size : kWordBits,
            levels + (pixels_follow ? item * size + outer * kWordBits : outer * size + item * kWordBits));
    uint8_t* out = args.tables + first * pixel_bytes;
    if (together) build<five>(levels, count * of_pixel, out);
    for (int64_t i = 0; !together && i < count; ++i) build<five>(levels + i * size, of_pixel, out + i * pixel_bytes);
  }
}

// --- Lookups -----------------------------------------------------------------------------------------------------

// Seven rows share the indices: 14 sums, the indices of a chain and a table stay in the 32 registers, and 7 divides the
// image widths that networks use.
constexpr int kTileRows = 7;
constexpr int kLeast16 = -32768;  // sums in 16 bits begin with it: then they hold 65535

template <bool five>
inline __attribute__((always_inline)) __m512i add_groups(__m512i acc, __m512i bytes) {
  return five ? _mm512_add_epi16(acc, _mm512_maddubs_epi16(bytes, _mm512_set1_epi8(1)))
              : _mm512_dpbusd_epi32(acc, bytes, _mm512_set1_epi8(2));
}

// `chain` steps, whose lookups are summed in bytes.
template <bool five, int rows, int vectors, int chain>
inline __attribute__((always_inline)) void look_up(const uint8_t* const* x, const int32_t* k_offset, const uint8_t* w,
                                                   int64_t w_stride, __m512i (&acc)[rows][vectors]) {
  __m512i index[chain][vectors];
#pragma GCC unroll 4
  for (int j = 0; j < chain; ++j)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      index[j][v] = load(w + j * w_stride + v * kVector);
      __asm__("" : "+v"(index[j][v]));  // stays in its register: GCC 12 would read it again for each row
    }
#pragma GCC unroll 7
  for (int r = 0; r < rows; ++r) {
    __m512i table[chain], bytes[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < chain; ++j) {
      table[j] = load(x[r] + k_offset[j]);
      __asm__ volatile("" : "+v"(table[j]));
    }
#pragma GCC unroll 4
    for (int j = 0; j < chain; ++j)
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        const __m512i found = _mm512_permutexvar_epi8(index[j][v], table[j]);
        bytes[v] = j ? _mm512_add_epi8(bytes[v], found) : found;
      }
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      acc[r][v] = add_groups<five>(acc[r][v], bytes[v]);
      __asm__ volatile("" : "+v"(acc[r][v]));
    }
  }
}

// Some rows and steps.  Of five channels a vector is a block of 32 filters, summed in 16 bits; of four it is half of
// one, summed in 32.
template <bool five, int rows, int vectors, int chain>
inline __attribute__((always_inline)) void tile(const uint8_t* const* x, const int32_t* k_offset, int64_t steps,
                                                const uint8_t* w, int64_t w_stride, const int32_t* start, int32_t* out,
                                                int64_t row_stride, int64_t block_stride) {
  __m512i acc[rows][vectors];
#pragma GCC unroll 7
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) acc[r][v] = five ? _mm512_set1_epi16(kLeast16) : _mm512_set1_epi32(start[r]);
  const int32_t* const end = k_offset + steps;
  for (; end - k_offset >= chain; k_offset += chain, w += chain * w_stride)
    look_up<five, rows, vectors, chain>(x, k_offset, w, w_stride, acc);
  if (chain > 2 && end - k_offset >= 2) {
    look_up<five, rows, vectors, 2>(x, k_offset, w, w_stride, acc);
    k_offset += 2;
    w += 2 * w_stride;
  }
  for (; k_offset != end; ++k_offset, w += w_stride) look_up<five, rows, vectors, 1>(x, k_offset, w, w_stride, acc);
  // Twice the sums in the low halves of lanes, or in the high ones, in which kLeast16 stands for no sum.
  int32_t low = 2, high = 2 << 16;
  __asm__ volatile("" : "+r"(low), "+r"(high));  // made here: as constants they would take registers all along
  const __m512i twice_low = _mm512_set1_epi32(low), twice_high = _mm512_set1_epi32(high);
#pragma GCC unroll 7
  for (int r = 0; r < rows; ++r) {
    const __m512i begin = _mm512_set1_epi32(start[r] - 2 * kLeast16);
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      int32_t* to = out + r * row_stride + (five ? v * block_stride : v * 16);
      _mm512_storeu_si512(to, five ? _mm512_dpwssd_epi32(begin, acc[r][v], twice_low) : acc[r][v]);
      if (five) _mm512_storeu_si512(to + 16, _mm512_dpwssd_epi32(begin, acc[r][v], twice_high));
    }
  }
}

// Adds the steps behind those whose sums 16 bits can hold.
template <int rows, int vectors, int chain>
__attribute__((noinline)) void add_steps(const uint8_t* const* x, const int32_t* k_offset, int64_t steps, int64_t most,
                                         const uint8_t* w, int32_t* out, int64_t row_stride, int64_t block_stride) {
  while (steps > 0) {
    alignas(64) int32_t more[vectors][rows][kWordBits];
    const int32_t nothing[rows] = {};
    tile<true, rows, vectors, chain>(x, k_offset, steps < most ? steps : most, w, vectors * kVector, nothing,
                                     more[0][0], kWordBits, rows * kWordBits);
    for (int v = 0; v < vectors; ++v)
      for (int r = 0; r < rows; ++r)
        for (int o = 0; o < kWordBits; ++o) out[v * block_stride + r * row_stride + o] += more[v][r][o];
    steps -= most;
    k_offset += most;
    w += most * vectors * kVector;
  }
}

template <int rows, int vectors, int chain>
inline __attribute__((always_inline)) void all_steps(const LookupAccumulateArgs& args, const uint8_t* const* x,
                                                     const uint8_t* w, const int32_t* start, int32_t* out) {
  const int64_t most = 65535 / (10 * ((1 << args.planes) - 1)), steps = args.steps < most ? args.steps : most;
  tile<true, rows, vectors, chain>(x, args.k_offset, steps, w, vectors * kVector, start, out, args.acc_stride,
                                   args.acc_block_stride);
  if (args.steps > most)
    add_steps<rows, vectors, chain>(x, args.k_offset + most, args.steps - most, most, w + most * vectors * kVector, out,
                                    args.acc_stride, args.acc_block_stride);
}

// All blocks of some rows, whose tables stay in the first-level cache.
template <bool five, int rows, int chain>
void accumulate_rows(const LookupAccumulateArgs& args, int64_t row) {
  const uint8_t* x[rows];
  for (int r = 0; r < rows; ++r) x[r] = args.tables + args.row_offset[row + r];
  const int32_t* start = args.start + row;
  int32_t* out = args.acc + row * args.acc_stride;
  if (!five) {
    constexpr int64_t kStepWeights = 2 * kVector;
    for (int64_t block = 0; block < args.blocks; ++block, out += args.acc_block_stride)
      tile<five, rows, 2, chain>(x, args.k_offset, args.steps, args.w + args.weights_begin(block, kStepWeights),
                                 args.weights_stride(block, kStepWeights), start, out, args.acc_stride, 0);
    return;
  }
  const uint8_t* w = args.w;
  int64_t left = args.blocks;
  for (; left >= 2; left -= 2, w += 2 * args.steps * kVector, out += 2 * args.acc_block_stride)
    all_steps<rows, 2, chain>(args, x, w, start, out);
  if (left) all_steps<rows, 1, chain>(args, x, w, start, out);
}

template <bool five, int chain>
void accumulate(const LookupAccumulateArgs& args) {
  int64_t row = 0;
  for (; row + kTileRows <= args.rows; row += kTileRows) accumulate_rows<five, kTileRows, chain>(args, row);
  if (row + 3 <= args.rows) {
    accumulate_rows<five, 3, chain>(args, row);
    row += 3;
  }
  for (; row < args.rows; ++row) accumulate_rows<five, 1, chain>(args, row);
}

}  // namespace

LookupFormat lookup_format_avx512vpopcntdq(int32_t planes, int64_t channels, int64_t taps) {
  const bool five = planes <= kMostPlanesOfFive && channels > kMostChannelsOfFour && channels * taps > kLongestOfFour;
  return five ? LookupFormat{5, LookupFormat::Order::pairs} : LookupFormat{4, LookupFormat::Order::quads};
}

void lookup_tables_avx512vpopcntdq(const LookupTablesArgs& args) {
  const bool five = args.group == 5;
  switch (args.planes) {
    case 2:
      return five ? tables<2, true>(args) : tables<2, false>(args);
    case 3:
      return five ? tables<3, true>(args) : tables<3, false>(args);
    case 4:
      return five ? tables<4, true>(args) : tables<4, false>(args);
    case 5:
      return tables<5, false>(args);
    default:
      return tables<6, false>(args);
  }
}

// Lookups that fit in a byte: of five channels 7 x 35, 3 x 75; of four 4 x 60, 2 x 124, 1 x 252.  More than four take
// too many registers.
void lookup_accumulate_avx512vpopcntdq(const LookupAccumulateArgs& args) {
  if (args.group == 5) return args.planes == 4 ? accumulate<true, 3>(args) : accumulate<true, 4>(args);
  if (args.planes <= 4) return accumulate<false, 4>(args);
  args.planes == 5 ? accumulate<false, 2>(args) : accumulate<false, 1>(args);
}

}  // namespace binarize
