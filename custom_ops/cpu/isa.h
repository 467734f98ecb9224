// Instruction sets: which are built in, which run here, which one the user forces.
//
// A kernel family lists its variants in kernels.inc, best first, and picks the first whose instruction set is in a
// mask. The mask is an argument, so a test can ask for any variant by name.
//
// A processor that has one of the sets of its architecture has those before it as well: the probes see to it.  So a
// mask holds one set and all before it, and a family without a variant of the best one takes the next best.
#pragma once

#include <cstdint>

namespace binarize {

enum class Isa : uint32_t { scalar, avx2, avx512, avx512vpopcntdq };

using IsaMask = uint32_t;
constexpr IsaMask isa_bit(Isa isa) { return IsaMask{1} << static_cast<uint32_t>(isa); }

// The instruction sets that are built in and that this processor and operating system can run.
IsaMask runnable_isas();

// The names of `mask`, best first, separated by ", ".  A constant string for each mask.
const char* isa_names(IsaMask mask);

// What kernels may use: everything runnable, or what the environment variable BINARIZE_ONNX_ISA forces and all that it
// contains.  Returns 0 where it names nothing that runs here.
IsaMask selected_isas();

// The best instruction set of a mask.
const char* best_isa_name(IsaMask mask);

// The value of BINARIZE_ONNX_ISA, or null.
const char* forced_isa_name();

}  // namespace binarize
