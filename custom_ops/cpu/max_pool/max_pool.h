// Max pooling of bits, 32 channels a word: OR over the window, AND where a channel is inverted.
//
//     out[y][x] = (OR over in-bounds taps of (in[y*sh - top + i*dh][x*sw - left + j*dw] ^ invert)) ^ invert
//
// since AND(b) = NOT OR(NOT b).  Taps out of bounds add nothing: the identity of OR, and through `invert` of AND.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace binarize {

struct MaxPoolArgs {
  const uint32_t* in;  // [height][width]
  uint32_t* out;       // [out_height][out_width]
  uint32_t invert;
  int64_t height, width, out_height, out_width;
  int64_t kernel[2], stride[2], pad_begin[2], dilation[2];
};

#define MAX_POOL_KERNEL(name, isa) void max_pool_##name(const MaxPoolArgs&);
#include "cpu/max_pool/kernels.inc"
#undef MAX_POOL_KERNEL

struct MaxPoolKernel {
  const char* name;
  Isa isa;
  void (*pool)(const MaxPoolArgs&);
};

inline constexpr MaxPoolKernel kMaxPoolKernels[] = {
#define MAX_POOL_KERNEL(name, isa) {#name, Isa::isa, max_pool_##name},
#include "cpu/max_pool/kernels.inc"
#undef MAX_POOL_KERNEL
};

inline const MaxPoolKernel& select_max_pool(IsaMask mask) {
  for (const MaxPoolKernel& kernel : kMaxPoolKernels)
    if (mask & isa_bit(kernel.isa)) return kernel;
  return kMaxPoolKernels[sizeof kMaxPoolKernels / sizeof kMaxPoolKernels[0] - 1];
}

}  // namespace binarize
