#include <immintrin.h>

#include "cpu/xnor_accumulate/xnor_accumulate.h"

namespace binarize {
namespace {

constexpr int kVectorLanes = 16;

// Counts of one row: filters 0..15 and 16..31.
struct Counts {
  __m512i low, high;
};

// --- Pairs: a carry-save adder with the popcount behind it ----------------------------------------------------------
//
// `ones` holds the parity of all differences so far.  The two words of a pair change it from r to r ^ p, where p is
// the parity of their differences d and d'; what they carry, worth two, is the majority of r, d and d', and d' is
// d ^ p = d ^ r ^ (r ^ p).  So a pair costs an XOR (d), two ternary operations (the new parity, the carry), a popcount
// and an addition: 410 MAC a cycle if two of them issue, against 341 for XOR, popcount and addition of each word.
//
// 112 rows of 8 / 18 / 36 / 144 words on a Zen 4 at 3.69 GHz, MAC/ns: pairs 1026 / 1206 / 1297 / 1385, word by word
// 1030 / 1152 / 1181 / 1244.  Four rows a tile; three and five are up to 2 % slower, six run out of registers.
constexpr int kPairRows = 4;

struct PairWeights {
  __m512i first_low, first_high, parity_low, parity_high;
};

// One row and one pair.  Assembly, because the order decides: the two halves step by step beside each other reach 375
// MAC a cycle; as compilers order and copy it, with one half after the other, it is 300 to 350.
inline __attribute__((always_inline)) void add_pair(Counts& ones, Counts& twos, const PairWeights& w,
                                                    const uint32_t* first, const uint32_t* parity) {
  __m512i x_first, x_parity, differ_low, differ_high, before_low, before_high;
  __asm__(
      "vpbroadcastd %[parity], %[x_parity]\n\t"
      "vpbroadcastd %[first], %[x_first]\n\t"
      "vmovdqa64 %[ones_low], %[before_low]\n\t"
      "vmovdqa64 %[ones_high], %[before_high]\n\t"
      "vpxord %[x_first], %[w_first_low], %[differ_low]\n\t"
      "vpxord %[x_first], %[w_first_high], %[differ_high]\n\t"
      "vpternlogd $0x96, %[x_parity], %[w_parity_low], %[ones_low]\n\t"  // a ^ b ^ c
      "vpternlogd $0x96, %[x_parity], %[w_parity_high], %[ones_high]\n\t"
      "vpternlogd $0xd4, %[ones_low], %[before_low], %[differ_low]\n\t"  // majority of b, a and a ^ b ^ c
      "vpternlogd $0xd4, %[ones_high], %[before_high], %[differ_high]\n\t"
      "vpopcntd %[differ_low], %[differ_low]\n\t"
      "vpopcntd %[differ_high], %[differ_high]\n\t"
      "vpaddd %[differ_low], %[twos_low], %[twos_low]\n\t"
      "vpaddd %[differ_high], %[twos_high], %[twos_high]"
      : [ones_low] "+v"(ones.low), [ones_high] "+v"(ones.high), [twos_low] "+v"(twos.low), [twos_high] "+v"(twos.high),
        [x_first] "=&v"(x_first), [x_parity] "=&v"(x_parity), [differ_low] "=&v"(differ_low),
        [differ_high] "=&v"(differ_high), [before_low] "=&v"(before_low), [before_high] "=&v"(before_high)
      : [w_first_low] "v"(w.first_low), [w_first_high] "v"(w.first_high), [w_parity_low] "v"(w.parity_low),
        [w_parity_high] "v"(w.parity_high), [first] "m"(*first), [parity] "m"(*parity));
}

// Counts of the pairs, to which the words that follow them are still to be added.
template <int rows>
inline __attribute__((always_inline)) const uint32_t* count_pairs(const XnorAccumulateArgs& args,
                                                                  const uint32_t* const (&x)[rows],
                                                                  Counts (&counts)[rows]) {
  Counts ones[rows], twos[rows];
  for (int r = 0; r < rows; ++r) ones[r].low = ones[r].high = twos[r].low = twos[r].high = _mm512_setzero_si512();
  const uint32_t* w = args.w;
  for (int32_t k = 0; k < 2 * args.pairs; k += 2) {
    const int64_t first = args.k_offset[k], parity = args.k_offset[k + 1];
    const PairWeights weights{_mm512_load_si512(w), _mm512_load_si512(w + kVectorLanes),
                              _mm512_load_si512(w + kWordBits), _mm512_load_si512(w + kWordBits + kVectorLanes)};
    w += 2 * kWordBits;
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) add_pair(ones[r], twos[r], weights, x[r] + first, x[r] + parity);
  }
  const auto total = [](__m512i one, __m512i two) {
    return _mm512_add_epi32(_mm512_popcnt_epi32(one), _mm512_add_epi32(two, two));
  };
  for (int r = 0; r < rows; ++r) counts[r] = {total(ones[r].low, twos[r].low), total(ones[r].high, twos[r].high)};
  return w;
}

// --- Word by word ---------------------------------------------------------------------------------------------------
//
// Seven rows share each pair of weight vectors: 14 accumulators and the weights stay in the 32 registers, and 7 divides
// the image widths that networks use (56, 28, 14, 7).
constexpr int kWordRows = 7;

template <int rows, bool masked>
inline __attribute__((always_inline)) void count_words(const XnorAccumulateArgs& args, const uint32_t* const (&x)[rows],
                                                       const uint32_t* w, Counts (&counts)[rows]) {
  const uint32_t* mask = args.mask;
#pragma GCC unroll 2
  for (int32_t k = 2 * args.pairs; k < args.k_words; ++k) {
    const int64_t offset = args.k_offset[k];
    const __m512i w_low = _mm512_load_si512(w), w_high = _mm512_load_si512(w + kVectorLanes);
    w += kWordBits;
    __m512i mask_low{}, mask_high{};
    if (masked) {
      mask_low = _mm512_load_si512(mask);
      mask_high = _mm512_load_si512(mask + kVectorLanes);
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
      counts[r].low = _mm512_add_epi32(counts[r].low, _mm512_popcnt_epi32(differ_low));
      counts[r].high = _mm512_add_epi32(counts[r].high, _mm512_popcnt_epi32(differ_high));
    }
  }
}

// --- What becomes of the counts -------------------------------------------------------------------------------------

// The first row of a tile: pointers that move from tile to tile, so that within one every offset is a constant.
struct Accumulators {
  const XnorAccumulateArgs& args;
  const int32_t *row_offset, *row_class;
  int32_t* acc;

  explicit Accumulators(const XnorAccumulateArgs& args)
      : args(args), row_offset(args.row_offset), row_class(args.row_class), acc(args.acc) {}

  __attribute__((always_inline)) void advance(int rows) {
    row_offset += rows;
    if (row_class) row_class += rows;
    acc += rows * args.acc_stride;
  }
  __attribute__((always_inline)) const int32_t* base(int row) const {
    return args.base + (row_class ? int64_t{row_class[row]} * kWordBits : 0);
  }
  __attribute__((always_inline)) void store(int row, Counts counts) const {
    const int32_t* from = base(row);
    int32_t* to = acc + row * args.acc_stride;
    const __m128i shift = _mm_cvtsi32_si128(args.shift);
    _mm512_storeu_si512(to, _mm512_sub_epi32(_mm512_loadu_si512(from), _mm512_sll_epi32(counts.low, shift)));
    _mm512_storeu_si512(to + kVectorLanes, _mm512_sub_epi32(_mm512_loadu_si512(from + kVectorLanes),
                                                            _mm512_sll_epi32(counts.high, shift)));
  }
};

struct Bits : Accumulators {
  uint32_t flip, valid;
  uint32_t* q;

  explicit Bits(const XnorBitsArgs& args) : Accumulators(args.in), flip(args.flip), valid(args.valid), q(args.q) {}

  __attribute__((always_inline)) void advance(int rows) {
    row_offset += rows;
    if (row_class) row_class += rows;
    q += rows;
  }
  __attribute__((always_inline)) void store(int row, Counts counts) const {
    const int32_t* most = base(row);
    const __mmask16 low = _mm512_cmple_epi32_mask(counts.low, _mm512_loadu_si512(most));
    const __mmask16 high = _mm512_cmple_epi32_mask(counts.high, _mm512_loadu_si512(most + kVectorLanes));
    q[row] = (_cvtmask32_u32(_mm512_kunpackw(high, low)) ^ flip) & valid;
  }
};

template <int rows, bool paired, bool masked, class Out>
inline __attribute__((always_inline)) void run_tile(const Out& out) {
  const uint32_t* x[rows];
  for (int r = 0; r < rows; ++r) x[r] = out.args.x + out.row_offset[r];
  Counts counts[rows];
  const uint32_t* w = out.args.w;
  if (paired)
    w = count_pairs<rows>(out.args, x, counts);
  else
    for (int r = 0; r < rows; ++r) counts[r].low = counts[r].high = _mm512_setzero_si512();
  count_words<rows, masked>(out.args, x, w, counts);
  for (int r = 0; r < rows; ++r) out.store(r, counts[r]);
}

// What is left after the whole tiles: fewer than `rows + 1`.
template <int rows, bool paired, bool masked, class Out>
inline __attribute__((always_inline)) void run_rest(int64_t left, const Out& out) {
  if constexpr (rows > 0) {
    if (left == rows) return run_tile<rows, paired, masked>(out);
    run_rest<rows - 1, paired, masked>(left, out);
  }
}

template <int tile, bool paired, bool masked, class Out>
void run_rows(Out out) {
  int64_t left = out.args.rows;
  for (; left >= tile; left -= tile) {
    run_tile<tile, paired, masked>(out);
    out.advance(tile);
  }
  run_rest<tile - 1, paired, masked>(left, out);
}

template <class Out>
void run(const Out& out) {
  if (out.args.mask) return run_rows<kWordRows, false, true>(out);
  out.args.pairs ? run_rows<kPairRows, true, false>(out) : run_rows<kWordRows, false, false>(out);
}

}  // namespace

void xnor_accumulate_avx512vpopcntdq(const XnorAccumulateArgs& args) { run(Accumulators(args)); }

void xnor_bits_avx512vpopcntdq(const XnorBitsArgs& args) { run(Bits(args)); }

void combine_terms_avx512vpopcntdq(const CombineArgs& args) { combine_terms_avx512(args); }  // no popcount in it

}  // namespace binarize
