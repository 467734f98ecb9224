// The fuzz target: bytes become a node (node_from_bytes.h), and whatever it is, check_node.h must hold.
//
// With clang and sanitizers this is a libFuzzer target.  With any compiler `fuzz_ops --runs N --seed S` makes N inputs
// of its own, and `fuzz_ops FILE...` runs the inputs that libFuzzer left.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <iterator>
#include <random>

#include "fuzz/node_from_bytes.h"

namespace {

using binarize::mock::Checked;
using binarize::mock::Sample;

struct Stats {
  int64_t inputs = 0, computable = 0, inferred = 0, created = 0, computed = 0;
  void print() const {
    const double all = inputs ? static_cast<double>(inputs) / 100 : 1;
    std::fprintf(stderr, "%lld inputs: %.1f %% inferred a shape, %.1f %% made a kernel, %.1f %% computed\n",
                 static_cast<long long>(inputs), static_cast<double>(inferred) / all,
                 static_cast<double>(created) / all, static_cast<double>(computed) / all);
  }
} stats;

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const Sample sample = binarize::mock::node_from_bytes(data, size);
  static const bool verbose = std::getenv("FUZZ_VERBOSE") != nullptr;
  if (verbose) std::fprintf(stderr, "%s", to_string(sample).c_str());
  const Checked checked = check_node(sample.node, sample.options);
  if (verbose) std::fprintf(stderr, "%s\n", checked.error.empty() ? "computed" : checked.error.c_str());
  ++stats.inputs;
  stats.inferred += checked.inferred;
  stats.created += checked.created;
  stats.computed += checked.computed;
  return 0;
}

#ifdef BINARIZE_ONNX_LIBFUZZER

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  binarize::mock::registered_ops();
  std::atexit([] { stats.print(); });
  return 0;
}

#else

extern "C" void __sanitizer_set_death_callback(void (*)()) __attribute__((weak));

namespace {

int run_file(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    std::fprintf(stderr, "fuzz_ops: cannot read %s\n", path);
    return EXIT_FAILURE;
  }
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  return EXIT_SUCCESS;
}

int64_t running = -1;
void name_input() { std::fprintf(stderr, "fuzz_ops: this was --first %lld\n", static_cast<long long>(running)); }

// Input i of a seed does not depend on how many there are.
void run_random(uint64_t seed, int64_t first, int64_t runs, double limit) {
  double slowest = 0;
  for (int64_t i = first; i < first + runs; ++i) {
    std::mt19937_64 engine(seed * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(i));
    std::vector<uint8_t> bytes(engine() % 8 == 0 ? engine() % 32 : 160);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(engine());
    running = i;
    const std::clock_t start = std::clock();  // processor time: other load must not fail an input
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    slowest = seconds > slowest ? seconds : slowest;
    if (seconds > limit) {
      std::fprintf(stderr, "fuzz_ops: input %lld of seed %llu took %.1f s, the limit is %.0f s\n",
                   static_cast<long long>(i), static_cast<unsigned long long>(seed), seconds, limit);
      std::exit(EXIT_FAILURE);
    }
  }
  std::fprintf(stderr, "the slowest took %.3f s\n", slowest);
}

}  // namespace

int main(int argc, char** argv) {
  uint64_t seed = 0;
  int64_t first = 0, runs = 0;
  double limit = 10;
  int status = EXIT_SUCCESS;
  for (int i = 1; i < argc; ++i) {
    const auto number = [&](const char* name) -> const char* {
      return std::strcmp(argv[i], name) == 0 && i + 1 < argc ? argv[++i] : nullptr;
    };
    if (const char* value = number("--runs"))
      runs = std::atoll(value);
    else if (const char* value = number("--seed"))
      seed = std::strtoull(value, nullptr, 10);
    else if (const char* value = number("--first"))
      first = std::atoll(value);
    else if (const char* value = number("--threads"))
      binarize::mock::set_threads(std::atoi(value));
    else
      status |= run_file(argv[i]);
  }
  std::signal(SIGABRT, [](int) { name_input(); });
  if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(name_input);
  run_random(seed, first, runs, limit);
  stats.print();
  return status;
}

#endif
