// The usual epilogue of accumulators that are to be turned: one term, or two without gate and first slope, steps that
// have one value a row, a residual in float32, one output.  Four rows at a time keep what their steps multiply by and
// add in registers, from the first lane to the last, and their bits are packed before they leave.  `epilogue_bench`,
// six steps and bits: 721 ns; sixteen rows at a time, which must read the operands again for each vector, and packing
// what was written: 961 ns.
#pragma once

#include "cpu/epilogue/x86_avx512_strip.h"

namespace binarize {
namespace {

constexpr int kTogether = 4;  // rows

// From here on 32 rows are larger than a second-level cache, and the processor's own prefetch, which sees runs of lanes
// that begin pages apart, does not know where the next run is written.  So the lines of the next run are asked for: the
// 1x1 layer of ReActNet-A at 112 x 112 takes 317 us instead of 390.  On smaller images that only costs.
constexpr int64_t kFarRows = 8192;  // floats

template <bool flag>
struct Constant {
  static constexpr bool value = flag;
};

// to[row] = lanes 0..15 of row `row`, from 16 lanes of four rows, 32 apart.
BINARIZE_INLINE inline void turn_four(const int32_t* from, __m512i (&to)[kTogether]) {
  // Quarters of registers are put together as they are loaded, which takes one shuffle for four; then 4 x 4 in each.
  __m512i a[4];  // lanes i, 4 + i, 8 + i and 12 + i
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const int32_t* lane = from + i * kWordBits;
    const auto quarter = [lane](int n) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(lane + 4 * n * kWordBits));
    };
    const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(quarter(0)), quarter(1), 1);
    const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(quarter(2)), quarter(3), 1);
    a[i] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }
  const __m512i low01 = _mm512_unpacklo_epi32(a[0], a[1]), high01 = _mm512_unpackhi_epi32(a[0], a[1]);
  const __m512i low23 = _mm512_unpacklo_epi32(a[2], a[3]), high23 = _mm512_unpackhi_epi32(a[2], a[3]);
  to[0] = _mm512_unpacklo_epi64(low01, low23);
  to[1] = _mm512_unpackhi_epi64(low01, low23);
  to[2] = _mm512_unpacklo_epi64(high01, high23);
  to[3] = _mm512_unpackhi_epi64(high01, high23);
}

inline bool one_value_a_row(const Operand<float>& operand) { return !operand.data || operand.lane_stride == 0; }

inline bool usual_steps(const EpilogueArgs& args) {
  const bool usual_terms = args.terms == 1 || (args.terms == 2 && !args.gate.data && !args.slope_pre.data);
  return args.rows % kTogether == 0 && usual_terms && !args.residual_half && !args.round_to_half &&
         (!args.y || !args.v) && (!args.residual.data || args.residual.lane_stride == 1) &&
         one_value_a_row(args.scale) && one_value_a_row(args.gate) && one_value_a_row(args.bias) &&
         one_value_a_row(args.slope_pre) && one_value_a_row(args.shift) && one_value_a_row(args.slope) &&
         one_value_a_row(args.offset);
}

inline bool one_plain_plane(const PackBitsArgs& pack) {
  return pack.planes == 1 && !pack.encode && pack.threshold.lane_stride == 0 &&
         (!pack.flip.data || pack.flip.lane_stride == 0);
}

// What four rows have for one step.
struct FourValues {
  __m512 of[kTogether];

  BINARIZE_INLINE FourValues(const Operand<float>& operand, int64_t row) {
    for (int r = 0; r < kTogether; ++r) of[r] = _mm512_set1_ps(operand.data[(row + r) * operand.row_stride]);
  }
};

// Four rows, all lanes.  Steps that usually come together are carried out together: scale and bias; shift, slope and
// offset.  One of them that is not wanted multiplies by 1 or adds -0.0, which changes nothing.
template <bool two_terms, bool gates, bool activates_first, bool has_residual, bool activates, bool packs>
BINARIZE_INLINE inline void run_four_rows(const EpilogueArgs& args, const PackBitsArgs* pack, int64_t row) {
  Operand<float> second_scale = args.scale;
  second_scale.data += two_terms ? args.scale_term_stride : 0;
  const FourValues scale(args.scale, row), scale_2(second_scale, row), gate(args.gate, row), bias(args.bias, row),
      slope_pre(args.slope_pre, row);
  const FourValues shift(args.shift, row), slope(args.slope, row), offset(args.offset, row);

  const float* residual[kTogether] = {};
  if (has_residual) {
    int64_t next = (args.residual_first + row) % args.residual_rows;
    for (int r = 0; r < kTogether; ++r) {
      residual[r] = args.residual.data + next * args.residual.row_stride;
      if (++next == args.residual_rows) next = 0;
    }
  }
  float* to[kTogether] = {};
  float* const out = args.y ? args.y : packs ? nullptr : args.v;
  const int64_t stride = args.y ? args.y_row_stride : args.v_row_stride;
  if (out)
    for (int r = 0; r < kTogether; ++r) to[r] = out + (row + r) * stride;

  __m512 threshold[kTogether] = {};
  __m512i bit[kTogether] = {}, flips = _mm512_setzero_si512();
  if (packs)
    for (int r = 0; r < kTogether; ++r) {
      threshold[r] = _mm512_set1_ps(pack->threshold.data[(row + r) * pack->threshold.row_stride]);
      bit[r] = _mm512_set1_epi32(static_cast<int>(uint32_t{1} << (row + r)));
      if (pack->flip.data && pack->flip.data[(row + r) * pack->flip.row_stride]) flips = _mm512_or_si512(flips, bit[r]);
    }

  const bool fetches = out && stride >= kFarRows;
  const auto run = [&](int64_t lane, auto all_lanes) BINARIZE_INLINE {
    constexpr bool masked = !decltype(all_lanes)::value;
    __m512i acc[kTogether];
    for (int r = 0; r < kTogether && fetches; ++r) __builtin_prefetch(to[r] + lane + args.lanes, 1);
    turn_four(args.acc + lane * kWordBits + row, acc);
    Strip<kTogether, 1, masked> strip(row, lane, args.lanes);
    const auto each = [&](auto step) BINARIZE_INLINE {
      strip.each([&](__m512& z, int r, int) BINARIZE_INLINE { z = step(z, r); });
    };
    const auto activate = [&](const FourValues& slope) BINARIZE_INLINE {
      __mmask16 not_positive[kTogether];
      strip.each([&](__m512& z, int r, int)
                     BINARIZE_INLINE { not_positive[r] = _mm512_cmp_ps_mask(z, _mm512_setzero_ps(), _CMP_NGT_UQ); });
      each([&](__m512 z, int r) BINARIZE_INLINE { return _mm512_mask_mul_ps(z, not_positive[r], z, slope.of[r]); });
    };
    const auto multiply = [&](const FourValues& by) BINARIZE_INLINE {
      each([&](__m512 z, int r) BINARIZE_INLINE { return _mm512_mul_ps(z, by.of[r]); });
    };
    const auto add = [&](const FourValues& by) BINARIZE_INLINE {
      each([&](__m512 z, int r) BINARIZE_INLINE { return _mm512_add_ps(z, by.of[r]); });
    };
    each([&](__m512, int r) BINARIZE_INLINE { return _mm512_cvtepi32_ps(acc[r]); });
    multiply(scale);
    if (two_terms) {
      turn_four(args.acc + args.acc_term_stride + lane * kWordBits + row, acc);
      each([&](__m512 z, int r)
               BINARIZE_INLINE { return _mm512_add_ps(z, _mm512_mul_ps(_mm512_cvtepi32_ps(acc[r]), scale_2.of[r])); });
    }
    if (gates) multiply(gate);
    add(bias);
    if (activates_first) activate(slope_pre);
    if (has_residual)
      each([&](__m512 z, int r) BINARIZE_INLINE { return _mm512_add_ps(z, strip.load(0, residual[r] + lane)); });
    if (activates) {
      add(shift);
      activate(slope);
      add(offset);
    }
    if (out)
      strip.each([&](__m512& z, int r, int) BINARIZE_INLINE {
        masked ? _mm512_mask_storeu_ps(to[r] + lane, strip.valid[0], z) : _mm512_storeu_ps(to[r] + lane, z);
      });
    if (packs) {
      uint32_t* q = pack->q + lane;
      __m512i words = row == 0 ? _mm512_setzero_si512() : _mm512_maskz_loadu_epi32(strip.valid[0], q);
      words = _mm512_xor_si512(words, flips);
      __mmask16 reached[kTogether];
      strip.each([&](__m512& z, int r, int)
                     BINARIZE_INLINE { reached[r] = _mm512_cmp_ps_mask(z, threshold[r], _CMP_GE_OQ); });
      unrolled<kTogether>([&](int r)
                              BINARIZE_INLINE { words = _mm512_mask_xor_epi32(words, reached[r], words, bit[r]); });
      _mm512_mask_storeu_epi32(q, strip.valid[0], words);
    }
  };
  int64_t lane = 0;
  for (; lane + kVectorLanes <= args.lanes; lane += kVectorLanes) run(lane, Constant<true>());
  if (lane < args.lanes) run(lane, Constant<false>());
}

// choose(body, a, b, ...) calls body with each of the flags as a type.
template <class Body>
inline void choose(const Body& body) {
  body();
}
template <class Body, class... Flags>
inline void choose(const Body& body, bool flag, Flags... rest) {
  if (flag)
    choose([&](auto... chosen) { body(Constant<true>(), chosen...); }, rest...);
  else
    choose([&](auto... chosen) { body(Constant<false>(), chosen...); }, rest...);
}

inline void run_usual(const EpilogueArgs& wanted, const PackBitsArgs* pack) {
  const float one = 1.0f, minus_zero = -0.0f;
  const auto or_neutral = [](const Operand<float>& operand, const float& neutral) {
    return operand.data ? operand : Operand<float>{&neutral, 0, 0};
  };
  EpilogueArgs args = wanted;
  args.scale = or_neutral(wanted.scale, one);
  if (!wanted.scale.data) args.scale_term_stride = 0;
  args.gate = or_neutral(wanted.gate, one);
  args.bias = or_neutral(wanted.bias, minus_zero);
  args.slope_pre = or_neutral(wanted.slope_pre, one);
  args.shift = or_neutral(wanted.shift, minus_zero);
  args.slope = or_neutral(wanted.slope, one);
  args.offset = or_neutral(wanted.offset, minus_zero);
  choose(
      [&](auto two_terms, auto gates, auto activates_first, auto has_residual, auto activates, auto packs) {
        constexpr bool two = decltype(two_terms)::value, gate = decltype(gates)::value;
        constexpr bool first = decltype(activates_first)::value;
        if constexpr (!two || (!gate && !first))
          for (int64_t row = 0; row < args.rows; row += kTogether)
            run_four_rows<two, gate, first, decltype(has_residual)::value, decltype(activates)::value,
                          decltype(packs)::value>(args, pack, row);
      },
      wanted.terms == 2, wanted.gate.data != nullptr, wanted.slope_pre.data != nullptr, wanted.residual.data != nullptr,
      wanted.shift.data || wanted.slope.data || wanted.offset.data, pack != nullptr);
}

}  // namespace
}  // namespace binarize
