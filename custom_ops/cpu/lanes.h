// How kernels read an operand that is broadcast over a block of rows x lanes.
#pragma once

#include <cstdint>

namespace binarize {

// Element (row, lane) is data[row * row_stride + lane * lane_stride]; lane_stride is 0 (one value a row) or 1
// (contiguous). data == nullptr means the neutral element: the step is skipped.
template <class T>
struct Operand {
  const T* data = nullptr;
  int64_t row_stride = 0;
  int64_t lane_stride = 0;
};

// Bits a word holds, and the lanes (output channels or columns) a block of weights has.
constexpr int kWordBits = 32;

}  // namespace binarize
