#include <immintrin.h>

#include "cpu/pack_bits/pack_bits.h"

namespace binarize {
namespace {

constexpr int64_t kVectorLanes = 8;
constexpr int kVectors = 8;  // vectors of one row that pack_across takes at a time: a cache line of each of four

// All ones in the first `count` lanes.
inline __m256i first_lanes(int64_t count) {
  const int wanted = count < kVectorLanes ? static_cast<int>(count) : static_cast<int>(kVectorLanes);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(wanted), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// The first min(count, 8) elements of `data`, and zeros: for the types that have no masked load.
template <class T>
inline __m128i load_first(const T* data, int64_t count) {
  T buffer[16 / sizeof(T)] = {};
  __builtin_memcpy(buffer, data, static_cast<size_t>(count < kVectorLanes ? count : kVectorLanes) * sizeof(T));
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(buffer));
}

inline __m256 load(const float* data, int64_t count) {
  return count >= kVectorLanes ? _mm256_loadu_ps(data) : _mm256_maskload_ps(data, first_lanes(count));
}

inline __m256 load(const uint16_t* data, int64_t count) {
  return _mm256_cvtph_ps(count >= kVectorLanes ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(data))
                                               : load_first(data, count));
}

inline __m256i ge(__m256 v, __m256 threshold) { return _mm256_castps_si256(_mm256_cmp_ps(v, threshold, _CMP_GE_OQ)); }

inline int bit_of_each(__m256i lanes) { return _mm256_movemask_ps(_mm256_castsi256_ps(lanes)); }

inline __m256i reached(const PackBitsArgs& args, int64_t threshold, int64_t row, int64_t lane, int64_t count,
                       __m256 v) {
  const float* data = args.threshold.data + threshold * args.threshold_plane_stride + row * args.threshold.row_stride;
  return ge(v, args.threshold.lane_stride ? load(data + lane, count) : _mm256_set1_ps(*data));
}

inline __m256i flipped(const PackBitsArgs& args, int64_t plane, int64_t row, int64_t lane, int64_t count) {
  if (!args.flip.data) return _mm256_setzero_si256();
  const uint8_t* data = args.flip.data + plane * args.flip_plane_stride + row * args.flip.row_stride;
  if (!args.flip.lane_stride) return _mm256_set1_epi32(*data ? -1 : 0);
  return _mm256_cmpgt_epi32(_mm256_cvtepu8_epi32(load_first(data + lane, count)), _mm256_setzero_si256());
}

// All ones in each of `count` lanes whose bit is set; anything in the lanes behind them.
inline __m256i bits(const PackBitsArgs& args, int64_t plane, int64_t row, int64_t lane, int64_t count) {
  const int64_t at = row * args.v_row_stride + lane;
  const __m256 v = args.v_half ? load(args.v_half + at, count) : load(args.v + at, count);
  __m256i bits = flipped(args, plane, row, lane, count);
  if (!args.encode) return _mm256_xor_si256(bits, reached(args, plane, row, lane, count, v));
  const uint8_t* encode = args.encode + plane * args.thresholds;
  for (int64_t p = 0; p < args.thresholds; ++p)
    if (encode[p]) bits = _mm256_xor_si256(bits, reached(args, p, row, lane, count, v));
  return bits;
}

inline void store_words(uint32_t* q, int64_t count, __m256i words) {
  if (count >= kVectorLanes)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), words);
  else
    _mm256_maskstore_epi32(reinterpret_cast<int*>(q), first_lanes(count), words);
}

// --- Positional codes: all planes of 8 lanes at once, up to four, whose thresholds fit in vectors of eight -----------

// All ones in each lane whose bit is set.
template <int planes>
struct Planes {
  __m256i of[planes];
};

// One comparison a plane.
template <int planes>
inline __attribute__((always_inline)) Planes<planes> search(const float* tree, __m256 v) {
  Planes<planes> bits;
  __m256i found = _mm256_setzero_si256();
#pragma GCC unroll 4
  for (int step = 0; step < planes; ++step) {
    const float* of_step = tree + (1 << step);
    const __m256 threshold =
        step ? _mm256_permutevar8x32_ps(_mm256_loadu_ps(of_step), found) : _mm256_set1_ps(*of_step);
    const __m256i reached = ge(v, threshold);
    found = _mm256_or_si256(found, _mm256_and_si256(reached, _mm256_set1_epi32(1 << step)));
    bits.of[planes - 1 - step] = reached;
  }
  return bits;
}

// One comparison a threshold, whatever they are: threshold p counts for plane b where 2^b divides p + 1.
template <int planes>
inline __attribute__((always_inline)) Planes<planes> compare_all(const PackBitsArgs& args, int64_t row, int64_t lane,
                                                                 int64_t count, __m256 v) {
  Planes<planes> bits;
  for (int b = 0; b < planes; ++b) {  // the thresholds of which 2^b is the largest such power
    bits.of[b] = _mm256_setzero_si256();
    for (int p = (1 << b) - 1; p < (1 << planes) - 1; p += 2 << b)
      bits.of[b] = _mm256_xor_si256(bits.of[b], reached(args, p, row, lane, count, v));
  }
  for (int b = planes - 1; b > 0; --b) bits.of[b - 1] = _mm256_xor_si256(bits.of[b - 1], bits.of[b]);
  return bits;
}

// tree: of this row, or null where there is none.
template <int planes>
inline __attribute__((always_inline)) Planes<planes> level_bits(const PackBitsArgs& args, const float* tree,
                                                                int64_t row, int64_t lane, int64_t count) {
  const int64_t at = row * args.v_row_stride + lane;
  const __m256 v = args.v_half ? load(args.v_half + at, count) : load(args.v + at, count);
  Planes<planes> bits = tree ? search<planes>(tree, v) : compare_all<planes>(args, row, lane, count, v);
  if (args.flip.data)
    for (int b = 0; b < planes; ++b) bits.of[b] = _mm256_xor_si256(bits.of[b], flipped(args, b, row, lane, count));
  return bits;
}

template <int planes>
void pack_levels_across(const PackBitsArgs& args) {
  alignas(32) float storage[kWordBits * kSearchTree];
  const float* trees = search_trees(args, 0, args.rows, storage);
  for (int64_t lane = 0; lane < args.lanes; lane += kVectorLanes) {
    const int64_t count = args.lanes - lane;
    __m256i words[planes], bit = _mm256_set1_epi32(1);
    for (int b = 0; b < planes; ++b) words[b] = _mm256_setzero_si256();
    for (int64_t row = 0; row < args.rows; ++row) {
      const Planes<planes> bits =
          level_bits<planes>(args, trees ? trees + row * search_tree_stride(args) : nullptr, row, lane, count);
      for (int b = 0; b < planes; ++b) words[b] = _mm256_or_si256(words[b], _mm256_and_si256(bits.of[b], bit));
      bit = _mm256_slli_epi32(bit, 1);
    }
    for (int b = 0; b < planes; ++b) store_words(args.q + b * args.q_plane_stride + lane, count, words[b]);
  }
}

template <int planes>
void pack_levels_along(const PackBitsArgs& args) {
  alignas(32) float storage[kSearchTree];
  const float* tree = nullptr;
  for (int64_t row = 0; row < args.rows; ++row) {
    if (row == 0 || search_tree_stride(args)) tree = search_trees(args, row, 1, storage);
    for (int64_t first = 0; first < args.lanes; first += kWordBits) {
      const int64_t count = args.lanes - first;
      uint32_t words[planes] = {};
      for (int64_t i = 0; i < kWordBits && i < count; i += kVectorLanes) {
        const Planes<planes> bits = level_bits<planes>(args, tree, row, first + i, count - i);
        for (int b = 0; b < planes; ++b) words[b] |= static_cast<uint32_t>(bit_of_each(bits.of[b])) << i;
      }
      const uint32_t valid = count < kWordBits ? (uint32_t{1} << count) - 1 : ~uint32_t{0};
      for (int b = 0; b < planes; ++b)
        args.q[row * args.q_row_stride + b * args.q_plane_stride + first / kWordBits] = words[b] & valid;
    }
  }
}

// The common case: float32, one threshold a row, one plane.  `count` lanes; all of them where there are several
// vectors.
template <int vectors>
inline void pack_across_plain(const PackBitsArgs& args, int64_t lane, int64_t count) {
  __m256i words[vectors];
  for (int i = 0; i < vectors; ++i) words[i] = _mm256_setzero_si256();
  __m256i bit = _mm256_set1_epi32(1);
  uint32_t flips = 0;
  for (int64_t row = 0; row < args.rows; ++row) {
    const __m256 threshold = _mm256_set1_ps(args.threshold.data[row * args.threshold.row_stride]);
    if (args.flip.data && args.flip.data[row * args.flip.row_stride]) flips |= uint32_t{1} << row;
    const float* v = args.v + row * args.v_row_stride + lane;
    if (vectors > 1)  // rows are pages apart: the processor's own prefetch loses track of them
      for (int i = 0; i < vectors; i += 2)
        _mm_prefetch(reinterpret_cast<const char*>(v + (vectors + i) * kVectorLanes), _MM_HINT_T0);
    for (int i = 0; i < vectors; ++i) {
      const __m256 values = vectors > 1 ? _mm256_loadu_ps(v + i * kVectorLanes) : load(v, count);
      words[i] = _mm256_or_si256(words[i], _mm256_and_si256(ge(values, threshold), bit));
    }
    bit = _mm256_slli_epi32(bit, 1);
  }
  const __m256i flip = _mm256_set1_epi32(static_cast<int>(flips));
  for (int i = 0; i < vectors; ++i)
    store_words(args.q + lane + i * kVectorLanes, count - i * kVectorLanes, _mm256_xor_si256(words[i], flip));
}

// The same along a row, whole words only; thresholds may differ from lane to lane.
void pack_along_plain(const PackBitsArgs& args, int64_t row, int64_t words) {
  const float* v = args.v + row * args.v_row_stride;
  const float* threshold = args.threshold.data + row * args.threshold.row_stride;
  const uint32_t flip = args.flip.data && args.flip.data[row * args.flip.row_stride] ? ~uint32_t{0} : 0;
  uint32_t* q = args.q + row * args.q_row_stride;
  __m256 t = _mm256_set1_ps(*threshold);
  for (int64_t word = 0; word < words; ++word) {
    uint32_t bits = 0;
    for (int64_t i = 0; i < kWordBits; i += kVectorLanes) {
      if (args.threshold.lane_stride) t = _mm256_loadu_ps(threshold + word * kWordBits + i);
      bits |= static_cast<uint32_t>(bit_of_each(ge(_mm256_loadu_ps(v + word * kWordBits + i), t))) << i;
    }
    q[word] = bits ^ flip;
  }
}

}  // namespace

void pack_across_avx2(const PackBitsArgs& args) {
  if (args.v && args.planes == 1 && !args.encode && !args.threshold.lane_stride && !args.flip.lane_stride) {
    int64_t lane = 0;
    for (; lane + kVectors * kVectorLanes <= args.lanes; lane += kVectors * kVectorLanes)
      pack_across_plain<kVectors>(args, lane, kVectors * kVectorLanes);
    for (; lane < args.lanes; lane += kVectorLanes) pack_across_plain<1>(args, lane, args.lanes - lane);
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
    }
  }
  for (int64_t plane = 0; plane < args.planes; ++plane)
    for (int64_t lane = 0; lane < args.lanes; lane += kVectorLanes) {
      const int64_t count = args.lanes - lane;
      __m256i words = _mm256_setzero_si256(), bit = _mm256_set1_epi32(1);
      for (int64_t row = 0; row < args.rows; ++row) {
        words = _mm256_or_si256(words, _mm256_and_si256(bits(args, plane, row, lane, count), bit));
        bit = _mm256_slli_epi32(bit, 1);
      }
      store_words(args.q + plane * args.q_plane_stride + lane, count, words);
    }
}

void pack_along_avx2(const PackBitsArgs& args) {
  if (args.positional) {
    switch (args.planes) {
      case 2:
        return pack_levels_along<2>(args);
      case 3:
        return pack_levels_along<3>(args);
      case 4:
        return pack_levels_along<4>(args);
    }
  }
  const bool plain = args.v && args.planes == 1 && !args.encode && !args.flip.lane_stride;
  const int64_t whole_words = plain ? args.lanes / kWordBits : 0;
  for (int64_t row = 0; row < args.rows; ++row) {
    if (whole_words) pack_along_plain(args, row, whole_words);
    for (int64_t plane = 0; plane < args.planes; ++plane) {
      uint32_t* q = args.q + row * args.q_row_stride + plane * args.q_plane_stride;
      for (int64_t first = whole_words * kWordBits; first < args.lanes; first += kWordBits) {
        const int64_t count = args.lanes - first;
        uint32_t word = 0;
        for (int64_t i = 0; i < kWordBits && i < count; i += kVectorLanes)
          word |= static_cast<uint32_t>(bit_of_each(bits(args, plane, row, first + i, count - i))) << i;
        q[first / kWordBits] = count < kWordBits ? word & ((uint32_t{1} << count) - 1) : word;
      }
    }
  }
}

void pack_accumulators_avx2(const PackAccumulatorsArgs& args) {
  const auto vector = [](const int32_t* data) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data)); };
  for (int64_t row = 0; row < args.rows; ++row) {
    uint32_t below = 0;
    for (int i = 0; i < kWordBits; i += static_cast<int>(kVectorLanes))
      below |= static_cast<uint32_t>(
                   bit_of_each(_mm256_cmpgt_epi32(vector(args.threshold + i), vector(args.acc + row * kWordBits + i))))
               << i;
    args.q[row] = (~below ^ args.flip) & args.valid;
  }
}

}  // namespace binarize
