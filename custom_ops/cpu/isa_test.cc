// Names, masks and the choice of kernels.  With an argument: the best instruction set that must be found here.
#include "cpu/epilogue/epilogue.h"
#include "cpu/lookup_accumulate/lookup_accumulate.h"
#include "cpu/max_pool/max_pool.h"
#include "cpu/pack_bits/pack_bits.h"
#include "cpu/testing.h"
#include "cpu/xnor_accumulate/xnor_accumulate.h"

using namespace binarize;
using namespace binarize::testing;

namespace {

void expect(bool holds, const std::string& what) {
  if (holds) return;
  std::printf("FAILED %s\n", what.c_str());
  ++failures();
}

std::vector<std::string> split(const std::string& names) {
  std::vector<std::string> parts;
  for (size_t begin = 0, end; begin < names.size(); begin = end + 2) {
    end = names.find(", ", begin);
    if (end == std::string::npos) end = names.size();
    parts.push_back(names.substr(begin, end - begin));
  }
  return parts;
}

void force(const char* name) { name ? setenv("BINARIZE_ONNX_ISA", name, 1) : unsetenv("BINARIZE_ONNX_ISA"); }

// The chosen kernel's instruction set is in the mask, and none before it in the list is.
template <class Kernels, class Kernel>
void expect_best(const char* family, const Kernels& kernels, IsaMask mask, const Kernel& chosen) {
  expect(mask & isa_bit(chosen.isa), std::string(family) + ": " + chosen.name + " is outside of " + isa_names(mask));
  for (const auto& kernel : kernels) {
    if (&kernel == &chosen) break;
    expect(!(mask & isa_bit(kernel.isa)), std::string(family) + ": " + kernel.name + " comes before " + chosen.name);
  }
}

}  // namespace

int main(int argc, char** argv) {
  force(nullptr);
  expect(selected_isas() == runnable_isas(), "without a choice, kernels may use everything that runs");
  const std::vector<std::string> names = split(isa_names(runnable_isas()));
  expect(names.back() == "scalar", "scalar always runs and comes last");
  std::printf("runs here: %s\n", isa_names(runnable_isas()));
  if (argc > 1) expect(names.front() == argv[1], "the best is " + names.front() + ", expected " + argv[1]);

  std::string and_all_behind;
  for (size_t i = names.size(); i-- > 0;) {
    and_all_behind = names[i] + (and_all_behind.empty() ? "" : ", ") + and_all_behind;
    force(names[i].c_str());
    const IsaMask mask = selected_isas();
    expect(best_isa_name(mask) == names[i], "forcing " + names[i] + " selects it");
    expect(isa_names(mask) == and_all_behind, "forcing " + names[i] + " allows " + isa_names(mask));
    expect_best("xnor_accumulate", kXnorAccumulateKernels, mask, select_xnor_accumulate(mask));
    expect_best("pack_bits", kPackBitsKernels, mask, select_pack_bits(mask));
    expect_best("epilogue", kEpilogueKernels, mask, select_epilogue(mask));
    expect_best("max_pool", kMaxPoolKernels, mask, select_max_pool(mask));
  }
  for (const char* name : {"abacus", "avx", "avx5120", "scalar, avx2", " scalar"}) {
    force(name);
    expect(selected_isas() == 0, std::string("'") + name + "' names nothing");
  }
  force("");
  expect(selected_isas() == runnable_isas(), "an empty name is none");

  // By mask, for processors that this one is not.
  expect(isa_names(isa_bit(Isa::scalar)) == std::string("scalar"), "the name of a mask of one");
#if defined(__x86_64__)
  const IsaMask avx2 = isa_bit(Isa::avx2) | isa_bit(Isa::scalar), avx512 = avx2 | isa_bit(Isa::avx512);
  expect(isa_names(avx512) == std::string("avx512, avx2, scalar"), "the names of a mask");
  expect(select_xnor_accumulate(avx512).isa == Isa::avx512, "AVX-512 without VPOPCNTDQ has kernels of its own");
  expect(select_xnor_accumulate(avx2).isa == Isa::avx2, "so has AVX2");
  expect(find_lookup_accumulate(avx512)->isa == Isa::avx512, "AVX-512 without VBMI looks up too");
  expect(find_lookup_accumulate(avx2)->isa == Isa::avx2, "so does AVX2");
  expect(!find_lookup_accumulate(isa_bit(Isa::scalar)), "plain C++ does not");
  expect(select_epilogue(avx512 | isa_bit(Isa::avx512vpopcntdq)).isa == Isa::avx512, "the next best serves");
#endif
  return report("isa");
}
