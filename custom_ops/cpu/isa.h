// Instruction sets: which are built in, which run here, which one the user forces.
//
// A kernel family lists its variants in kernels.inc, best first, and picks the first whose instruction set is in a
// mask. The mask is an argument, so a test can ask for any variant by name.
#pragma once

#include <cstdint>

namespace binarize {

enum class Isa : uint32_t { scalar, avx512vpopcntdq };

using IsaMask = uint32_t;
constexpr IsaMask isa_bit(Isa isa) { return IsaMask{1} << static_cast<uint32_t>(isa); }

// The instruction sets that are built in and that this processor and operating system can run.
IsaMask runnable_isas();

// The names of `mask`, best first, separated by ", ".  A constant string for each of the few masks there are.
const char* isa_names(IsaMask mask);

// What kernels may use: everything runnable, or what the environment variable BINARIZE_ONNX_ISA forces (and scalar, for
// families without a variant of it).  Returns 0 where it names nothing that runs here.
IsaMask selected_isas();

// The best instruction set of a mask.
const char* best_isa_name(IsaMask mask);

// The value of BINARIZE_ONNX_ISA, or null.
const char* forced_isa_name();

}  // namespace binarize
