#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace binarize {
namespace {

struct IsaEntry {
  Isa isa;
  const char* name;
};

// Best first.
constexpr IsaEntry kIsas[] = {
    {Isa::avx512vpopcntdq, "avx512vpopcntdq"},
    {Isa::scalar, "scalar"},
};

#if defined(__x86_64__)
// CPUID says what the processor has; XCR0 says which registers the operating system saves on a context switch.
bool operating_system_saves_zmm() {
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_OSXSAVE)) return false;
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr uint32_t kXmmYmmOpmaskZmm = 0xe6;
  return (low & kXmmYmmOpmaskZmm) == kXmmYmmOpmaskZmm;
}

bool has_avx512vpopcntdq() {
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned kEbx = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL;
  return (ebx & kEbx) == kEbx && (ecx & bit_AVX512VPOPCNTDQ) && operating_system_saves_zmm();
}
#else
bool has_avx512vpopcntdq() { return false; }
#endif

}  // namespace

IsaMask runnable_isas() {
  static const IsaMask mask =
      isa_bit(Isa::scalar) | (has_avx512vpopcntdq() ? isa_bit(Isa::avx512vpopcntdq) : IsaMask{0});
  return mask;
}

const char* isa_names(IsaMask mask) {
  return (mask & isa_bit(Isa::avx512vpopcntdq)) ? "avx512vpopcntdq, scalar" : "scalar";
}

const char* forced_isa_name() {
  const char* name = std::getenv("BINARIZE_ONNX_ISA");
  return name && *name ? name : nullptr;
}

IsaMask selected_isas() {
  const char* forced = forced_isa_name();
  if (!forced) return runnable_isas();
  for (const IsaEntry& entry : kIsas)
    if (std::strcmp(entry.name, forced) == 0 && (runnable_isas() & isa_bit(entry.isa)))
      return isa_bit(entry.isa) | isa_bit(Isa::scalar);
  return 0;
}

const char* best_isa_name(IsaMask mask) {
  for (const IsaEntry& entry : kIsas)
    if (mask & isa_bit(entry.isa)) return entry.name;
  return "";
}

}  // namespace binarize
