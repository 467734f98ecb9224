#include "cpu/max_pool/max_pool.h"

namespace binarize {
namespace {

// The i in [begin, end), of [0, count), whose position i * step + shift lies in [0, size).
inline void positions_inside(int64_t shift, int64_t step, int64_t size, int64_t count, int64_t* begin, int64_t* end) {
  *begin = shift >= 0 ? 0 : (-shift + step - 1) / step;
  *end = shift >= size ? 0 : (size - 1 - shift) / step + 1;
  if (*end > count) *end = count;
}

// Neighbours read neighbours where the stride is 1: a loop of its own, which a compiler vectorises (56 x 56 words, 3 x
// 3 taps, GCC 12: 5.5 us instead of 14.6).
inline void or_row(const uint32_t* __restrict in, int64_t stride, uint32_t invert, int64_t count,
                   uint32_t* __restrict out) {
  if (stride == 1)
    for (int64_t x = 0; x < count; ++x) out[x] |= in[x] ^ invert;
  else
    for (int64_t x = 0; x < count; ++x) out[x] |= in[x * stride] ^ invert;
}

}  // namespace

// The time is that of the taps in bounds, whatever the size of the kernel.
void max_pool_scalar(const MaxPoolArgs& args) {
  for (int64_t y = 0; y < args.out_height; ++y) {
    uint32_t* out = args.out + y * args.out_width;
    for (int64_t x = 0; x < args.out_width; ++x) out[x] = 0;
    const int64_t top = y * args.stride[0] - args.pad_begin[0];
    int64_t first, last, begin, end;
    positions_inside(top, args.dilation[0], args.height, args.kernel[0], &first, &last);
    for (int64_t i = first; i < last; ++i) {
      const uint32_t* row = args.in + (top + i * args.dilation[0]) * args.width;
      if (args.kernel[1] <= args.width) {
        for (int64_t j = 0; j < args.kernel[1]; ++j) {
          const int64_t shift = j * args.dilation[1] - args.pad_begin[1];
          positions_inside(shift, args.stride[1], args.width, args.out_width, &begin, &end);
          if (begin < end)
            or_row(row + begin * args.stride[1] + shift, args.stride[1], args.invert, end - begin, out + begin);
        }
      } else {  // most taps lie in the border: only the others are visited
        for (int64_t x = 0; x < args.out_width; ++x) {
          const int64_t left = x * args.stride[1] - args.pad_begin[1];
          positions_inside(left, args.dilation[1], args.width, args.kernel[1], &begin, &end);
          for (int64_t j = begin; j < end; ++j) out[x] |= row[left + j * args.dilation[1]] ^ args.invert;
        }
      }
    }
    for (int64_t x = 0; x < args.out_width; ++x) out[x] ^= args.invert;
  }
}

}  // namespace binarize
