#include "cpu/isa.h"

#include <array>
#include <cstdlib>
#include <cstring>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace binarize {
namespace {

#if defined(__x86_64__)
// CPUID says what the processor has; XCR0 says which registers the operating system saves on a context switch.
bool has_and_saves(unsigned leaf1_ecx, unsigned leaf7_ebx, unsigned leaf7_ecx, uint32_t registers) {
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_OSXSAVE) || (ecx & leaf1_ecx) != leaf1_ecx) return false;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  if ((ebx & leaf7_ebx) != leaf7_ebx || (ecx & leaf7_ecx) != leaf7_ecx) return false;
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & registers) == registers;
}

constexpr uint32_t kXmmYmm = 0x06, kXmmYmmOpmaskZmm = 0xe6;

// All that the files named after an instruction set are compiled with, and what compilers take that to imply: POPCNT by
// -mavx2, FMA by -mavx512f.
constexpr unsigned kAvx2Leaf1 = bit_AVX | bit_F16C | bit_POPCNT, kAvx2Leaf7 = bit_AVX2;
constexpr unsigned kAvx512Leaf1 = kAvx2Leaf1 | bit_FMA;
// The processors that have VPOPCNTDQ beside the sets above (from Ice Lake and Zen 4 on) have these too.
constexpr unsigned kAvx512vpopcntdqLeaf7Ecx = bit_AVX512VPOPCNTDQ | bit_AVX512VBMI | bit_AVX512VNNI | bit_GFNI;
constexpr unsigned kAvx512Leaf7 = kAvx2Leaf7 | bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL;

bool has_avx2() { return has_and_saves(kAvx2Leaf1, kAvx2Leaf7, 0, kXmmYmm); }
bool has_avx512() { return has_and_saves(kAvx512Leaf1, kAvx512Leaf7, 0, kXmmYmmOpmaskZmm); }
bool has_avx512vpopcntdq() {
  return has_and_saves(kAvx512Leaf1, kAvx512Leaf7, kAvx512vpopcntdqLeaf7Ecx, kXmmYmmOpmaskZmm);
}
#endif

bool always() { return true; }

struct IsaEntry {
  Isa isa;
  const char* name;
  bool (*runs)();
};

// Best first; each contains those that follow.
constexpr IsaEntry kIsas[] = {
#if defined(__x86_64__)
    {Isa::avx512vpopcntdq, "avx512vpopcntdq", has_avx512vpopcntdq},
    {Isa::avx512, "avx512", has_avx512},
    {Isa::avx2, "avx2", has_avx2},
#endif
    {Isa::scalar, "scalar", always},
};

// The mask of an instruction set and all that it contains.
IsaMask up_to(const IsaEntry& best) {
  IsaMask mask = 0;
  for (const IsaEntry* entry = &best; entry != kIsas + sizeof kIsas / sizeof kIsas[0]; ++entry)
    mask |= isa_bit(entry->isa);
  return mask;
}

}  // namespace

IsaMask runnable_isas() {
  static const IsaMask mask = [] {
    const IsaEntry* entry = kIsas;
    while (!entry->runs()) ++entry;
    return up_to(*entry);
  }();
  return mask;
}

const char* isa_names(IsaMask mask) {
  static const auto names = [] {
    std::array<std::string, IsaMask{1} << sizeof kIsas / sizeof kIsas[0]> names;
    for (IsaMask m = 0; m < names.size(); ++m)
      for (const IsaEntry& entry : kIsas)
        if (m & isa_bit(entry.isa)) names[m] += (names[m].empty() ? "" : ", ") + std::string(entry.name);
    return names;
  }();
  return names[mask].c_str();
}

const char* forced_isa_name() {
  const char* name = std::getenv("BINARIZE_ONNX_ISA");
  return name && *name ? name : nullptr;
}

IsaMask selected_isas() {
  const char* forced = forced_isa_name();
  if (!forced) return runnable_isas();
  for (const IsaEntry& entry : kIsas)
    if (std::strcmp(entry.name, forced) == 0 && (runnable_isas() & isa_bit(entry.isa))) return up_to(entry);
  return 0;
}

const char* best_isa_name(IsaMask mask) {
  for (const IsaEntry& entry : kIsas)
    if (mask & isa_bit(entry.isa)) return entry.name;
  return "";
}

}  // namespace binarize
