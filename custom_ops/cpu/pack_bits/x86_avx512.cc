#include <immintrin.h>

#include "cpu/pack_bits/pack_bits.h"

namespace binarize {
namespace {

constexpr int64_t kVectorLanes = 16;
constexpr int kVectors = 4;  // vectors of one row that pack_across takes at a time: a cache line of each of four

inline __mmask16 first_lanes(int64_t count) {
  return count >= kVectorLanes ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

inline __m512 load(const PackBitsArgs& args, int64_t row, int64_t lane, __mmask16 valid) {
  const int64_t at = row * args.v_row_stride + lane;
  return args.v_half ? _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(valid, args.v_half + at))
                     : _mm512_maskz_loadu_ps(valid, args.v + at);
}

inline __mmask16 reached(const PackBitsArgs& args, int64_t threshold, int64_t row, int64_t lane, __mmask16 valid,
                         __m512 v) {
  const float* data = args.threshold.data + threshold * args.threshold_plane_stride + row * args.threshold.row_stride;
  const __m512 t = args.threshold.lane_stride ? _mm512_maskz_loadu_ps(valid, data + lane) : _mm512_set1_ps(*data);
  return _mm512_mask_cmp_ps_mask(valid, v, t, _CMP_GE_OQ);
}

inline __mmask16 flipped(const PackBitsArgs& args, int64_t plane, int64_t row, int64_t lane, __mmask16 valid) {
  if (!args.flip.data) return 0;
  const uint8_t* data = args.flip.data + plane * args.flip_plane_stride + row * args.flip.row_stride;
  if (!args.flip.lane_stride) return *data ? valid : 0;
  const __m128i bytes = _mm_maskz_loadu_epi8(valid, data + lane);
  return _mm_test_epi8_mask(bytes, bytes);
}

inline __mmask16 bits(const PackBitsArgs& args, int64_t plane, int64_t row, int64_t lane, __mmask16 valid) {
  const __m512 v = load(args, row, lane, valid);
  __mmask16 bits = 0;
  if (args.encode) {
    const uint8_t* encode = args.encode + plane * args.thresholds;
    for (int64_t p = 0; p < args.thresholds; ++p)
      if (encode[p]) bits = static_cast<__mmask16>(bits ^ reached(args, p, row, lane, valid, v));
  } else {
    bits = reached(args, plane, row, lane, valid, v);
  }
  return static_cast<__mmask16>(bits ^ flipped(args, plane, row, lane, valid));
}

// --- Positional codes: all planes of 16 lanes at once ---------------------------------------------------------------

template <int planes>
struct Planes {
  __mmask16 of[planes];
};

// One comparison a plane.
template <int planes>
inline __attribute__((always_inline)) Planes<planes> search(const float* tree, __m512 v, __mmask16 valid) {
  Planes<planes> bits;
  __m512i found = _mm512_setzero_si512();
#pragma GCC unroll 6
  for (int step = 0; step < planes; ++step) {
    const float* of_step = tree + (1 << step);
    const __m512 threshold =
        step == 0  ? _mm512_set1_ps(*of_step)
        : step < 5 ? _mm512_permutexvar_ps(found, _mm512_loadu_ps(of_step))
                   : _mm512_permutex2var_ps(_mm512_loadu_ps(of_step), found, _mm512_loadu_ps(of_step + kVectorLanes));
    const __mmask16 reached = _mm512_mask_cmp_ps_mask(valid, v, threshold, _CMP_GE_OQ);
    found = _mm512_mask_or_epi32(found, reached, found, _mm512_set1_epi32(1 << step));
    bits.of[planes - 1 - step] = reached;
  }
  return bits;
}

// One comparison a threshold, whatever they are: threshold p counts for plane b where 2^b divides p + 1.
template <int planes>
inline __attribute__((always_inline)) Planes<planes> compare_all(const PackBitsArgs& args, int64_t row, int64_t lane,
                                                                 __m512 v, __mmask16 valid) {
  Planes<planes> bits{};
  for (int b = 0; b < planes; ++b)  // the thresholds of which 2^b is the largest such power
    for (int p = (1 << b) - 1; p < (1 << planes) - 1; p += 2 << b)
      bits.of[b] = static_cast<__mmask16>(bits.of[b] ^ reached(args, p, row, lane, valid, v));
  for (int b = planes - 1; b > 0; --b) bits.of[b - 1] = static_cast<__mmask16>(bits.of[b - 1] ^ bits.of[b]);
  return bits;
}

// tree: of this row, or null where there is none.
template <int planes>
inline __attribute__((always_inline)) Planes<planes> level_bits(const PackBitsArgs& args, const float* tree,
                                                                int64_t row, int64_t lane, __mmask16 valid) {
  const __m512 v = load(args, row, lane, valid);
  Planes<planes> bits = tree ? search<planes>(tree, v, valid) : compare_all<planes>(args, row, lane, v, valid);
  if (args.flip.data)
    for (int b = 0; b < planes; ++b)
      bits.of[b] = static_cast<__mmask16>(bits.of[b] ^ flipped(args, b, row, lane, valid));
  return bits;
}

// plain: float32, whole vectors, searched for, nothing flipped.
template <int planes, int vectors, bool plain>
inline void pack_levels_across(const PackBitsArgs& args, const float* trees, int64_t lane) {
  __m512i words[planes][vectors], bit = _mm512_set1_epi32(1);
  for (int b = 0; b < planes; ++b)
    for (int i = 0; i < vectors; ++i) words[b][i] = _mm512_setzero_si512();
  const int64_t tree_stride = search_tree_stride(args);
  for (int64_t row = 0; row < args.rows; ++row) {
    const float* tree = trees ? trees + row * tree_stride : nullptr;
    const float* v = args.v + row * args.v_row_stride + lane;
    if (plain)
      for (int i = 0; i < vectors; ++i)
        _mm_prefetch(reinterpret_cast<const char*>(v + (vectors + i) * kVectorLanes), _MM_HINT_T0);
#pragma GCC unroll 4
    for (int i = 0; i < vectors; ++i) {
      const int64_t at = lane + i * kVectorLanes;
      const Planes<planes> bits = plain ? search<planes>(tree, _mm512_loadu_ps(v + i * kVectorLanes), 0xffff)
                                        : level_bits<planes>(args, tree, row, at, first_lanes(args.lanes - at));
#pragma GCC unroll 6
      for (int b = 0; b < planes; ++b) words[b][i] = _mm512_mask_or_epi32(words[b][i], bits.of[b], words[b][i], bit);
    }
    bit = _mm512_slli_epi32(bit, 1);
  }
  for (int b = 0; b < planes; ++b)
    for (int i = 0; i < vectors; ++i) {
      const int64_t at = lane + i * kVectorLanes;
      _mm512_mask_storeu_epi32(args.q + b * args.q_plane_stride + at, first_lanes(args.lanes - at), words[b][i]);
    }
}

template <int planes>
void pack_levels_across(const PackBitsArgs& args) {
  alignas(64) float storage[kWordBits * kSearchTree];
  const float* trees = search_trees(args, 0, args.rows, storage);
  constexpr int kTogether = planes <= 4 ? 4 : 2;  // searches side by side: one waits for each of its comparisons
  int64_t lane = 0;
  if (trees && args.v && !args.flip.data) {
    for (; lane + kTogether * kVectorLanes <= args.lanes; lane += kTogether * kVectorLanes)
      pack_levels_across<planes, kTogether, true>(args, trees, lane);
    const int64_t left = (args.lanes - lane) / kVectorLanes;  // 112 lanes are 4 vectors and 3
    if (left == 3) pack_levels_across<planes, 3, true>(args, trees, lane);
    if (left == 2) pack_levels_across<planes, 2, true>(args, trees, lane);
    if (left == 1) pack_levels_across<planes, 1, true>(args, trees, lane);
    lane += left * kVectorLanes;
  }
  for (; lane < args.lanes; lane += kVectorLanes) pack_levels_across<planes, 1, false>(args, trees, lane);
}

template <int planes>
void pack_levels_along(const PackBitsArgs& args) {
  alignas(64) float storage[kSearchTree];
  const float* tree = nullptr;
  for (int64_t row = 0; row < args.rows; ++row) {
    if (row == 0 || search_tree_stride(args)) tree = search_trees(args, row, 1, storage);
    for (int64_t lane = 0; lane < args.lanes; lane += kWordBits) {
      const int64_t next = lane + kVectorLanes;
      const Planes<planes> low = level_bits<planes>(args, tree, row, lane, first_lanes(args.lanes - lane));
      Planes<planes> high{};
      if (next < args.lanes) high = level_bits<planes>(args, tree, row, next, first_lanes(args.lanes - next));
      uint32_t* q = args.q + row * args.q_row_stride + lane / kWordBits;
      for (int b = 0; b < planes; ++b)
        q[b * args.q_plane_stride] = static_cast<uint32_t>(low.of[b]) | static_cast<uint32_t>(high.of[b]) << 16;
    }
  }
}

// The common case: float32, one threshold a row, one plane.
template <bool masked>
inline void pack_across_plain(const PackBitsArgs& args, int64_t first) {
  __mmask16 valid[kVectors];
  __m512i words[kVectors];
  for (int i = 0; i < kVectors; ++i) {
    valid[i] = masked ? first_lanes(args.lanes - first - i * kVectorLanes) : 0xffff;
    words[i] = _mm512_setzero_si512();
  }
  __m512i bit = _mm512_set1_epi32(1);
  uint32_t flips = 0;
  for (int64_t row = 0; row < args.rows; ++row) {
    const __m512 threshold = _mm512_set1_ps(args.threshold.data[row * args.threshold.row_stride]);
    if (args.flip.data && args.flip.data[row * args.flip.row_stride]) flips |= uint32_t{1} << row;
    const float* v = args.v + row * args.v_row_stride + first;
    for (int i = 0; i < kVectors; ++i)  // rows are pages apart: the processor's own prefetch loses track of them
      _mm_prefetch(reinterpret_cast<const char*>(v + (kVectors + i) * kVectorLanes), _MM_HINT_T0);
    for (int i = 0; i < kVectors; ++i) {
      const __m512 values =
          masked ? _mm512_maskz_loadu_ps(valid[i], v + i * kVectorLanes) : _mm512_loadu_ps(v + i * kVectorLanes);
      words[i] = _mm512_mask_or_epi32(words[i], _mm512_cmp_ps_mask(values, threshold, _CMP_GE_OQ), words[i], bit);
    }
    bit = _mm512_slli_epi32(bit, 1);
  }
  const __m512i flip = _mm512_set1_epi32(static_cast<int>(flips));
  for (int i = 0; i < kVectors; ++i)
    _mm512_mask_storeu_epi32(args.q + first + i * kVectorLanes, valid[i], _mm512_xor_si512(words[i], flip));
}

// The same along a row, whole words only; thresholds may differ from lane to lane.
void pack_along_plain(const PackBitsArgs& args, int64_t row, int64_t words) {
  const float* v = args.v + row * args.v_row_stride;
  const float* threshold = args.threshold.data + row * args.threshold.row_stride;
  const uint32_t flip = args.flip.data && args.flip.data[row * args.flip.row_stride] ? ~uint32_t{0} : 0;
  uint32_t* q = args.q + row * args.q_row_stride;
  __m512 low = _mm512_set1_ps(*threshold), high = low;
  for (int64_t word = 0; word < words; ++word) {
    if (args.threshold.lane_stride) {
      low = _mm512_loadu_ps(threshold + word * kWordBits);
      high = _mm512_loadu_ps(threshold + word * kWordBits + kVectorLanes);
    }
    const uint32_t low_bits = _mm512_cmp_ps_mask(_mm512_loadu_ps(v + word * kWordBits), low, _CMP_GE_OQ);
    const uint32_t high_bits =
        _mm512_cmp_ps_mask(_mm512_loadu_ps(v + word * kWordBits + kVectorLanes), high, _CMP_GE_OQ);
    q[word] = (low_bits | high_bits << 16) ^ flip;
  }
}

}  // namespace

void pack_across_avx512(const PackBitsArgs& args) {
  if (args.v && args.planes == 1 && !args.encode && !args.threshold.lane_stride && !args.flip.lane_stride) {
    constexpr int64_t kLanes = kVectors * kVectorLanes;
    int64_t lane = 0;
    for (; lane + kLanes <= args.lanes; lane += kLanes) pack_across_plain<false>(args, lane);
    if (lane < args.lanes) pack_across_plain<true>(args, lane);
    return;
  }
  if (args.positional) {
    switch (args.planes) {
      case 2:
        return pack_levels_across<2>(args);
      case 3:
        return pack_levels_across<3>(args);
      case 4:
        return pack_levels_across<4>(args);
      case 5:
        return pack_levels_across<5>(args);
      case 6:
        return pack_levels_across<6>(args);
    }
  }
  for (int64_t plane = 0; plane < args.planes; ++plane)
    for (int64_t lane = 0; lane < args.lanes; lane += kVectorLanes) {
      const __mmask16 valid = first_lanes(args.lanes - lane);
      __m512i words = _mm512_setzero_si512(), bit = _mm512_set1_epi32(1);
      for (int64_t row = 0; row < args.rows; ++row) {
        words = _mm512_mask_or_epi32(words, bits(args, plane, row, lane, valid), words, bit);
        bit = _mm512_slli_epi32(bit, 1);
      }
      _mm512_mask_storeu_epi32(args.q + plane * args.q_plane_stride + lane, valid, words);
    }
}

void pack_along_avx512(const PackBitsArgs& args) {
  if (args.positional) {
    switch (args.planes) {
      case 2:
        return pack_levels_along<2>(args);
      case 3:
        return pack_levels_along<3>(args);
      case 4:
        return pack_levels_along<4>(args);
      case 5:
        return pack_levels_along<5>(args);
      case 6:
        return pack_levels_along<6>(args);
    }
  }
  const bool plain = args.v && args.planes == 1 && !args.encode && !args.flip.lane_stride;
  const int64_t whole_words = plain ? args.lanes / kWordBits : 0;
  for (int64_t row = 0; row < args.rows; ++row) {
    if (whole_words) pack_along_plain(args, row, whole_words);
    for (int64_t plane = 0; plane < args.planes; ++plane) {
      uint32_t* q = args.q + row * args.q_row_stride + plane * args.q_plane_stride;
      for (int64_t lane = whole_words * kWordBits; lane < args.lanes; lane += kWordBits) {
        const uint32_t low = bits(args, plane, row, lane, first_lanes(args.lanes - lane));
        const uint32_t high = lane + kVectorLanes < args.lanes ? bits(args, plane, row, lane + kVectorLanes,
                                                                      first_lanes(args.lanes - lane - kVectorLanes))
                                                               : 0u;
        q[lane / kWordBits] = low | high << 16;
      }
    }
  }
}

void pack_accumulators_avx512(const PackAccumulatorsArgs& args) {
  const __m512i low = _mm512_loadu_si512(args.threshold), high = _mm512_loadu_si512(args.threshold + 16);
  for (int64_t row = 0; row < args.rows; ++row) {
    const int32_t* acc = args.acc + row * kWordBits;
    const uint32_t word = static_cast<uint32_t>(_mm512_cmpge_epi32_mask(_mm512_loadu_si512(acc), low)) |
                          static_cast<uint32_t>(_mm512_cmpge_epi32_mask(_mm512_loadu_si512(acc + 16), high)) << 16;
    args.q[row] = (word ^ args.flip) & args.valid;
  }
}

}  // namespace binarize
