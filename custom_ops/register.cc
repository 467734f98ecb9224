// The library's entry points: RegisterCustomOps for onnxruntime, and what Python asks through ctypes.
#include <map>
#include <mutex>

#include "ops/ops.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace binarize {
namespace {

struct Domain {
  std::vector<Op> ops;  // onnxruntime keeps pointers to them
  OrtCustomOpDomain* handle = nullptr;
};

void make_domain(const OrtApi* api, Domain& domain) {
  std::vector<Op>& ops = domain.ops;
  ops.clear();
  add_pack_sign(ops);
  add_unpack(ops);
  add_xnor_conv(ops);
  add_xnor_matmul(ops);
  add_packed_max_pool(ops);
  OrtCustomOpDomain* handle = nullptr;
  check(abi::CreateCustomOpDomain(api, "binarize_onnx", &handle));
  for (Op& op : ops) {
    op.api = api;
    check(abi::CustomOpDomain_Add(api, handle, &op));
  }
  domain.handle = handle;
}

// Sessions outlive the options they were made from, so a domain is made once and kept for good: one for each
// onnxruntime in the process, since none may see another's objects.
OrtCustomOpDomain* domain_of(const OrtApi* api) {
  static std::mutex mutex;
  static auto& domains = *new std::map<const OrtApi*, Domain>();
  const std::lock_guard<std::mutex> lock(mutex);
  Domain& domain = domains[api];
  if (!domain.handle) make_domain(api, domain);
  return domain.handle;
}

}  // namespace
}  // namespace binarize

EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace binarize;
  const OrtApi* api = base->GetApi(abi::kApiVersion);
  if (!api) {
    // Every onnxruntime has version 1, and with it a way to say so.
    const OrtApi* first = base->GetApi(1);
    return abi::CreateStatus(first, ORT_FAIL, "binarize_onnx needs onnxruntime >= 1.20");
  }
  return guard(api, Where{}, [&] {
    isas_or_throw();
    check(abi::AddCustomOpDomain(api, options, domain_of(api)));
  });
}

// The name of the instruction set that kernels would use now; null where BINARIZE_ONNX_ISA names none that runs here.
EXPORT const char* binarize_onnx_isa_selected() {
  const binarize::IsaMask isas = binarize::selected_isas();
  return isas ? binarize::best_isa_name(isas) : nullptr;
}

// The names of those that are built in and run here, best first, separated by ", ".
EXPORT const char* binarize_onnx_isa_available() { return binarize::isa_names(binarize::runnable_isas()); }
