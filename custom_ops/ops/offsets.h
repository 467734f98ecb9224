// Tables of offsets, which kernels walk: a row is the one before, moved.
#pragma once

#include <cstdint>

namespace binarize {

// to[i] = from[i] + addend.
inline void add_to_each(const int32_t* __restrict from, int64_t count, int32_t addend, int32_t* __restrict to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i] + addend;
}

}  // namespace binarize
