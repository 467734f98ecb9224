// What one core can do at most: multiply-accumulates a cycle of the instructions that layers are made of, and the
// clock.
//
// Each ceiling is a block of ten independent multiply-accumulates of a vector, on registers alone: no loads, no tails,
// nothing to wait for.  The clock is a chain of additions, one a cycle.  Each figure is the best of many short runs, so
// that neither a change of the clock nor another process on the core lowers it.
//
// Prints `name  MAC/cycle  MAC/ns  instructions`, separated by tabs, and `clock  GHz`.
#include "cpu/testing.h"

using namespace binarize::testing;

namespace {

#if defined(__x86_64__)

// Instructions as text, so that no compiler reorders or drops them and the file itself needs no instruction set.  Code
// outside of them is of the baseline: it knows the xmm registers 0 to 15, and that a block overwrites them.
#define RUN(n, block)                                                                                               \
  for (long i = 0; i < n; ++i)                                                                                      \
    __asm__ volatile(block::                                                                                        \
                         : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
                           "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");                                            \
  __asm__ volatile("vzeroupper")

#define TEN(X) X("0") X("1") X("2") X("3") X("4") X("5") X("6") X("7") X("8") X("9")

// 512 bits of activations and weights: xor, count, add.
#define POPCOUNT(d)                   \
  "vpxord %%zmm30, %%zmm31, %%zmm2" d \
  "\n\t"                              \
  "vpopcntd %%zmm2" d ", %%zmm2" d    \
  "\n\t"                              \
  "vpaddd %%zmm2" d ", %%zmm" d ", %%zmm" d "\n\t"
void popcount(long n) { RUN(n, TEN(POPCOUNT)); }

// The same without VPOPCNTDQ: both halves of each byte looked up in a table.  Adding up the bytes is not counted.
#define SHUFFLE_AVX2(d)                   \
  "vpxor %%ymm14, %%ymm15, %%ymm10\n\t"   \
  "vpand %%ymm13, %%ymm10, %%ymm11\n\t"   \
  "vpsrlw $4, %%ymm10, %%ymm10\n\t"       \
  "vpand %%ymm13, %%ymm10, %%ymm10\n\t"   \
  "vpshufb %%ymm11, %%ymm12, %%ymm11\n\t" \
  "vpshufb %%ymm10, %%ymm12, %%ymm10\n\t" \
  "vpaddb %%ymm10, %%ymm11, %%ymm11\n\t"  \
  "vpaddb %%ymm11, %%ymm" d ", %%ymm" d "\n\t"
void shuffle_avx2(long n) { RUN(n, TEN(SHUFFLE_AVX2)); }

#define SHUFFLE_AVX512(d)                 \
  "vpxord %%zmm30, %%zmm31, %%zmm2" d     \
  "\n\t"                                  \
  "vpandd %%zmm13, %%zmm2" d              \
  ", %%zmm11\n\t"                         \
  "vpsrlw $4, %%zmm2" d                   \
  ", %%zmm10\n\t"                         \
  "vpandd %%zmm13, %%zmm10, %%zmm10\n\t"  \
  "vpshufb %%zmm11, %%zmm12, %%zmm11\n\t" \
  "vpshufb %%zmm10, %%zmm12, %%zmm10\n\t" \
  "vpaddb %%zmm10, %%zmm11, %%zmm11\n\t"  \
  "vpaddb %%zmm11, %%zmm" d ", %%zmm" d "\n\t"
void shuffle_avx512(long n) { RUN(n, TEN(SHUFFLE_AVX512)); }

// 64 sums of four activations each, looked up by four weight bits: 256 products with ±1.
#define LOOK_UP(d) "vpermb %%zmm30, %%zmm31, %%zmm2" d "\n\t"
#define ADD_BYTES(d) "vpaddb %%zmm2" d ", %%zmm" d ", %%zmm" d "\n\t"
void lookup(long n) { RUN(n, TEN(LOOK_UP) TEN(ADD_BYTES)); }

// 64 products of u8 and s8.
#define VNNI(d) "vpdpbusd %%zmm30, %%zmm31, %%zmm" d "\n\t"
void vnni(long n) { RUN(n, TEN(VNNI)); }

// Products of float32: 16 in 512 bits, 8 in 256.
#define FMA_AVX512(d) "vfmadd231ps %%zmm30, %%zmm31, %%zmm" d "\n\t"
void fma_avx512(long n) { RUN(n, TEN(FMA_AVX512)); }

#define FMA_AVX2(d) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" d "\n\t"
void fma_avx2(long n) { RUN(n, TEN(FMA_AVX2)); }

void additions(long n) {
  uint64_t sum = 0;
  for (long i = 0; i < n; ++i)
    __asm__ volatile(
        "add $1, %0\n\tadd $1, %0\n\tadd $1, %0\n\tadd $1, %0\n\tadd $1, %0\n\t"
        "add $1, %0\n\tadd $1, %0\n\tadd $1, %0\n\tadd $1, %0\n\tadd $1, %0"
        : "+r"(sum));
}

struct Ceiling {
  const char* name;
  const char* instructions;
  int macs;  // of one of the ten
  void (*run)(long);
  bool runs;
};

#endif

}  // namespace

int main() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2"), avx512 = __builtin_cpu_supports("avx512bw");
  const Ceiling ceilings[] = {
      {"popcount", "VPXORD, VPOPCNTD, VPADDD, 512 bits", 512, popcount,
       avx512 && __builtin_cpu_supports("avx512vpopcntdq")},
      {"shuffle-avx512", "VPSHUFB as popcount, 512 bits", 512, shuffle_avx512, avx512},
      {"shuffle-avx2", "VPSHUFB as popcount, 256 bits", 256, shuffle_avx2, avx2},
      {"lookup", "VPERMB, VPADDB, 512 bits", 256, lookup, avx512 && __builtin_cpu_supports("avx512vbmi")},
      {"int8", "VPDPBUSD, 512 bits", 64, vnni, avx512 && __builtin_cpu_supports("avx512vnni")},
      {"fma-avx512", "VFMADD231PS, 512 bits", 16, fma_avx512, avx512},
      {"fma-avx2", "VFMADD231PS, 256 bits", 8, fma_avx2, avx2 && __builtin_cpu_supports("fma")},
  };
  constexpr long kBlocks = 2000;
  constexpr double kOfTen = 10.0 * kBlocks;
  const double cycle_ns = best_ns([] { additions(kBlocks); }) / kOfTen;
  std::printf("clock\t%.3f\n", 1.0 / cycle_ns);
  for (const Ceiling& ceiling : ceilings) {
    if (!ceiling.runs) continue;
    const double ns = best_ns([&] { ceiling.run(kBlocks); });
    const double rate = ceiling.macs * kOfTen / ns;
    std::printf("%s\t%.1f\t%.1f\t%s\n", ceiling.name, rate * cycle_ns, rate, ceiling.instructions);
  }
#else
  std::printf("no ceilings are measured on this kind of processor\n");
#endif
}
