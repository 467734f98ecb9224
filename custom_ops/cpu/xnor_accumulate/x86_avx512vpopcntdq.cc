#include <immintrin.h>

#include "cpu/xnor_accumulate/xnor_accumulate.h"

namespace binarize {
namespace {

constexpr int kVectorLanes = 16;

// Of one row: filters 0..15 and 16..31.
struct Halves {
  __m512i low, high;
};

// Differences of one row: `once`, and `twice` what is worth two.
struct Counts {
  Halves once, twice;
};

inline __attribute__((always_inline)) Halves popcount(const Halves& v) {
  return {_mm512_popcnt_epi32(v.low), _mm512_popcnt_epi32(v.high)};
}

// --- Pairs: a carry-save adder with the popcount behind it ----------------------------------------------------------
//
// `ones` holds the parity of all differences so far.  The two words of a pair change it from r to r ^ p, where p is
// the parity of their differences d and d'; what they carry, worth two, is the majority of r, d and d', and d' is
// d ^ p = d ^ r ^ (r ^ p).  So a pair costs an XOR (d), two ternary operations (the new parity, the carry), a popcount
// and an addition: 410 MAC a cycle if two of them issue, against 341 for XOR, popcount and addition of each word.
//
// 112 rows of 8 / 18 / 36 / 144 words on a Zen 4 at 3.69 GHz, MAC/ns: pairs 1145 / 1296 / 1361 / 1420, word by word
// 1007 / 1127 / 1188 / 1236.  Four rows a tile; three and five are up to 2 % slower, six run out of registers.
constexpr int kPairRows = 4;

struct PairWeights {
  __m512i first_low, first_high, parity_low, parity_high;
};

// One row and one pair.  Assembly, because the order decides: the two halves step by step beside each other reach 375
// MAC a cycle; as compilers order and copy it, with one half after the other, it is 300 to 350.
// Words of the activations are operands in memory: broadcast into registers first, they fill the queues sooner (2 %).
inline __attribute__((always_inline)) void add_pair(Halves& ones, Halves& twos, const PairWeights& w,
                                                    const uint32_t* first, const uint32_t* parity) {
  __m512i differ_low, differ_high, before_low, before_high;
  __asm__(
      "vmovdqa64 %[ones_low], %[before_low]\n\t"
      "vmovdqa64 %[ones_high], %[before_high]\n\t"
      "vpxord %[first]%{1to16%}, %[w_first_low], %[differ_low]\n\t"
      "vpxord %[first]%{1to16%}, %[w_first_high], %[differ_high]\n\t"
      "vpternlogd $0x96, %[parity]%{1to16%}, %[w_parity_low], %[ones_low]\n\t"  // a ^ b ^ c
      "vpternlogd $0x96, %[parity]%{1to16%}, %[w_parity_high], %[ones_high]\n\t"
      "vpternlogd $0xd4, %[ones_low], %[before_low], %[differ_low]\n\t"  // majority of b, a and a ^ b ^ c
      "vpternlogd $0xd4, %[ones_high], %[before_high], %[differ_high]\n\t"
      "vpopcntd %[differ_low], %[differ_low]\n\t"
      "vpopcntd %[differ_high], %[differ_high]\n\t"
      "vpaddd %[differ_low], %[twos_low], %[twos_low]\n\t"
      "vpaddd %[differ_high], %[twos_high], %[twos_high]"
      : [ones_low] "+v"(ones.low), [ones_high] "+v"(ones.high), [twos_low] "+v"(twos.low), [twos_high] "+v"(twos.high),
        [differ_low] "=&v"(differ_low), [differ_high] "=&v"(differ_high), [before_low] "=&v"(before_low),
        [before_high] "=&v"(before_high)
      : [w_first_low] "v"(w.first_low), [w_first_high] "v"(w.first_high), [w_parity_low] "v"(w.parity_low),
        [w_parity_high] "v"(w.parity_high), [first] "m"(*first), [parity] "m"(*parity));
}

// The first pair, before which there is nothing: what carries is where both words differ.
inline __attribute__((always_inline)) void first_pair(Halves& ones, Halves& twos, const PairWeights& w,
                                                      const uint32_t* first, const uint32_t* parity) {
  const __m512i x_first = _mm512_set1_epi32(static_cast<int>(*first));
  const __m512i x_parity = _mm512_set1_epi32(static_cast<int>(*parity));
  constexpr int kNotAndXor = 0x06;  // ~a & (b ^ c)
  ones = {_mm512_xor_si512(x_parity, w.parity_low), _mm512_xor_si512(x_parity, w.parity_high)};
  twos = popcount({_mm512_ternarylogic_epi32(ones.low, x_first, w.first_low, kNotAndXor),
                   _mm512_ternarylogic_epi32(ones.high, x_first, w.first_high, kNotAndXor)});
}

template <int rows>
inline __attribute__((always_inline)) void count_pairs(const XnorAccumulateArgs& args, const uint32_t* const (&x)[rows],
                                                       Counts (&counts)[rows]) {
  const auto weights_of = [&](const XnorPair& pair) {
    const uint32_t* w = args.w + pair.w;
    return PairWeights{_mm512_load_si512(w), _mm512_load_si512(w + kVectorLanes), _mm512_load_si512(w + kWordBits),
                       _mm512_load_si512(w + kWordBits + kVectorLanes)};
  };
  Halves ones[rows], twos[rows];
  const XnorPair* pairs = args.pairs;
  PairWeights weights = weights_of(pairs[0]);
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) first_pair(ones[r], twos[r], weights, x[r] + pairs[0].first, x[r] + pairs[0].parity);
  for (int32_t k = 1; k < args.pair_count; ++k) {
    const int64_t first = pairs[k].first, parity = pairs[k].parity;
    weights = weights_of(pairs[k]);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) add_pair(ones[r], twos[r], weights, x[r] + first, x[r] + parity);
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) counts[r] = {popcount(ones[r]), twos[r]};
}

// --- Word by word ---------------------------------------------------------------------------------------------------
//
// Seven rows share each pair of weight vectors: 14 accumulators and the weights stay in the 32 registers, and 7 divides
// the image widths that networks use (56, 28, 14, 7).
constexpr int kWordRows = 7;

template <int rows, bool masked>
inline __attribute__((always_inline)) void count_words(const XnorAccumulateArgs& args, const uint32_t* const (&x)[rows],
                                                       Counts (&counts)[rows]) {
  for (int32_t k = 0; k < args.word_count; ++k) {
    const int64_t offset = args.words[k].x, at = args.words[k].w;
    const uint32_t *w = args.w + at, *mask = args.mask + at;
    const __m512i w_low = _mm512_load_si512(w), w_high = _mm512_load_si512(w + kVectorLanes);
    __m512i mask_low{}, mask_high{};
    if (masked) {
      mask_low = _mm512_load_si512(mask);
      mask_high = _mm512_load_si512(mask + kVectorLanes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const __m512i word = _mm512_set1_epi32(static_cast<int>(x[r][offset]));
      Halves differ;
      if (masked) {
        constexpr int kXorThenAnd = 0x28;  // (a ^ b) & c
        differ = {_mm512_ternarylogic_epi32(word, w_low, mask_low, kXorThenAnd),
                  _mm512_ternarylogic_epi32(word, w_high, mask_high, kXorThenAnd)};
      } else {
        differ = {_mm512_xor_si512(word, w_low), _mm512_xor_si512(word, w_high)};
      }
      const Halves count = popcount(differ);
      counts[r].once = {_mm512_add_epi32(counts[r].once.low, count.low),
                        _mm512_add_epi32(counts[r].once.high, count.high)};
    }
  }
}

// --- What becomes of the counts -------------------------------------------------------------------------------------

// All differences.  Two additions, which any of the ports does, and not VPDPWSSD, which waits for the popcounts: a
// block of 56 x 56 pixels takes 43.1 us instead of 44.6.
template <bool paired>
inline __attribute__((always_inline)) __m512i total(__m512i once, __m512i twice) {
  return paired ? _mm512_add_epi32(_mm512_add_epi32(once, twice), twice) : once;
}

// sum + factor * count in one step, which multiplies 16 bits: larger counts need more.  Assembly, so that the factor
// stays in memory: the registers are full.
constexpr int64_t kMostCount = (1 << 15) - 1;

template <bool small>
inline __attribute__((always_inline)) __m512i add_times(__m512i sum, __m512i count, const int32_t& factor) {
  if (!small) return _mm512_add_epi32(sum, _mm512_mullo_epi32(count, _mm512_set1_epi32(factor)));
  // The upper half of a count is 0, whatever that of the factor is.
  __asm__("vpdpwssd %[factor]%{1to16%}, %[count], %[sum]" : [sum] "+v"(sum) : [count] "v"(count), [factor] "m"(factor));
  return sum;
}

struct Accumulators {
  const XnorAccumulateArgs& args;
  const int32_t worth;  // of a difference

  explicit Accumulators(const XnorAccumulateArgs& args) : args(args), worth(-(1 << args.shift)) {}

  template <bool paired, bool small>
  __attribute__((always_inline)) void store(int64_t row, const Counts& counts) const {
    int32_t* to = args.acc + args.row_place[row] * args.acc_stride;
    const __m512i low = total<paired>(counts.once.low, counts.twice.low);
    const __m512i high = total<paired>(counts.once.high, counts.twice.high);
    _mm512_storeu_si512(to, add_times<small>(_mm512_loadu_si512(args.base), low, worth));
    _mm512_storeu_si512(to + kVectorLanes, add_times<small>(_mm512_loadu_si512(args.base + kVectorLanes), high, worth));
  }
};

struct Bits {
  const XnorAccumulateArgs& args;
  const uint32_t flip, valid;
  uint32_t* const q;

  explicit Bits(const XnorBitsArgs& args) : args(args.in), flip(args.flip), valid(args.valid), q(args.q) {}

  template <bool paired, bool>
  __attribute__((always_inline)) void store(int64_t row, const Counts& counts) const {
    const __mmask16 low = reached(args.base, total<paired>(counts.once.low, counts.twice.low));
    const __mmask16 high = reached(args.base + kVectorLanes, total<paired>(counts.once.high, counts.twice.high));
    q[args.row_place[row]] = (_cvtmask32_u32(_mm512_kunpackw(high, low)) ^ flip) & valid;
  }
  static __attribute__((always_inline)) __mmask16 reached(const int32_t* most, __m512i count) {
    return _mm512_cmple_epi32_mask(count, _mm512_loadu_si512(most));
  }
};

template <int rows, bool paired, bool masked, class Out>
inline __attribute__((always_inline)) void run_tile(const Out& out, int64_t row) {
  const XnorAccumulateArgs& args = out.args;
  const uint32_t* x[rows];
  for (int r = 0; r < rows; ++r) x[r] = args.x + args.row_offset[row + r];
  Counts counts[rows];
  if (paired)
    count_pairs<rows>(args, x, counts);
  else
    for (int r = 0; r < rows; ++r) counts[r].once.low = counts[r].once.high = _mm512_setzero_si512();
  count_words<rows, masked>(args, x, counts);
  if (__builtin_expect((2 * int64_t{args.pair_count} + args.word_count) * kWordBits <= kMostCount, 1)) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) out.template store<paired, true>(row + r, counts[r]);
  } else {
    for (int r = 0; r < rows; ++r) out.template store<paired, false>(row + r, counts[r]);
  }
}

// What is left after the whole tiles: fewer than `rows + 1`.
template <int rows, bool paired, bool masked, class Out>
inline __attribute__((always_inline)) void run_rest(int64_t left, const Out& out, int64_t row) {
  if constexpr (rows > 0) {
    if (left == rows) return run_tile<rows, paired, masked>(out, row);
    run_rest<rows - 1, paired, masked>(left, out, row);
  }
}

// A single row at the end goes with the last tile: alone it would wait for its weights to be loaded.  7 x 7 pixels in
// classes of 1, 5 and 25: 4.42 us a block, and 4.48 with single rows.
template <int tile, bool paired, bool masked, class Out, class Args>
void run_rows(const Args& args) {
  const Out out(args);
  int64_t row = 0;
  for (; row + tile + 1 < out.args.rows; row += tile) run_tile<tile, paired, masked>(out, row);
  run_rest<tile + 1, paired, masked>(out.args.rows - row, out, row);
}

template <class Out, class Args>
void run(const XnorAccumulateArgs& in, const Args& args) {
  if (in.mask) return run_rows<kWordRows, false, true, Out>(args);
  in.pair_count ? run_rows<kPairRows, true, false, Out>(args) : run_rows<kWordRows, false, false, Out>(args);
}

}  // namespace

void xnor_accumulate_avx512vpopcntdq(const XnorAccumulateArgs& args) { run<Accumulators>(args, args); }

void xnor_bits_avx512vpopcntdq(const XnorBitsArgs& args) { run<Bits>(args.in, args); }

void combine_terms_avx512vpopcntdq(const CombineArgs& args) { combine_terms_avx512(args); }  // no popcount in it

}  // namespace binarize
