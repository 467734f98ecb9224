#include "cpu/max_pool/max_pool.h"

namespace binarize {
namespace {

// The outputs [begin, end) whose tap at input position x * stride + shift lies in [0, size).
inline void tap_range(int64_t shift, int64_t stride, int64_t size, int64_t out_size, int64_t* begin, int64_t* end) {
  *begin = shift >= 0 ? 0 : (-shift + stride - 1) / stride;
  *end = shift >= size ? 0 : (size - 1 - shift) / stride + 1;
  if (*end > out_size) *end = out_size;
}

}  // namespace

void max_pool_scalar(const MaxPoolArgs& args) {
  for (int64_t y = 0; y < args.out_height; ++y) {
    uint32_t* out = args.out + y * args.out_width;
    for (int64_t x = 0; x < args.out_width; ++x) out[x] = 0;
    for (int64_t i = 0; i < args.kernel[0]; ++i) {
      const int64_t in_y = y * args.stride[0] - args.pad_begin[0] + i * args.dilation[0];
      if (in_y < 0 || in_y >= args.height) continue;
      const uint32_t* row = args.in + in_y * args.width;
      for (int64_t j = 0; j < args.kernel[1]; ++j) {
        const int64_t shift = j * args.dilation[1] - args.pad_begin[1];
        int64_t begin, end;
        tap_range(shift, args.stride[1], args.width, args.out_width, &begin, &end);
        for (int64_t x = begin; x < end; ++x) out[x] |= row[x * args.stride[1] + shift] ^ args.invert;
      }
    }
    for (int64_t x = 0; x < args.out_width; ++x) out[x] ^= args.invert;
  }
}

}  // namespace binarize
