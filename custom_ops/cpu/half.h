// float32 <-> float16, round to nearest even, overflow to infinity: bit for bit what VCVTPS2PH and VCVTPH2PS give.
#pragma once

#include <cstdint>

namespace binarize {

static inline uint32_t float_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float bits_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint16_t float_to_half(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));  // NaN, quiet
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above round to infinity
  if (magnitude < 0x33000001u) return static_cast<uint16_t>(sign);             // 2^-25 and below round to zero
  uint32_t mantissa, shift;
  if (magnitude >= 0x38800000u) {  // normal: rebias the exponent, drop 13 bits
    mantissa = magnitude - 0x38000000u;
    shift = 13;
  } else {  // subnormal: the implicit bit becomes explicit, more bits are dropped
    mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    shift = 126 - (magnitude >> 23);
  }
  const uint32_t kept = mantissa >> shift;
  const uint32_t dropped = mantissa & ((1u << shift) - 1), half = 1u << (shift - 1);
  const uint32_t up = dropped > half || (dropped == half && (kept & 1));
  return static_cast<uint16_t>(sign | (kept + up));  // a carry out of the mantissa lands in the exponent, as it should
}

static inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = half >> 10 & 0x1fu, mantissa = half & 0x3ffu;
  if (exponent == 31) return bits_float(sign | 0x7f800000u | mantissa << 13 | (mantissa ? 0x400000u : 0u));
  if (exponent) return bits_float(sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // exact
  return bits_float(sign | float_bits(magnitude));
}

}  // namespace binarize
