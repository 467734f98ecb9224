// The small harness of the kernel tests and microbenchmarks.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu/isa.h"

namespace binarize::testing {

inline int& failures() {
  static int count = 0;
  return count;
}

// Bitwise: a kernel that is nearly right is wrong, and NaN equals itself.
template <class T>
void expect_same(const std::vector<T>& got, const std::vector<T>& expected, const std::string& what) {
  for (size_t i = 0; i < expected.size(); ++i)
    if (std::memcmp(&got[i], &expected[i], sizeof(T)) != 0) {
      std::printf("FAILED %s: element %zu of %zu is %.9g, expected %.9g\n", what.c_str(), i, expected.size(),
                  static_cast<double>(got[i]), static_cast<double>(expected[i]));
      ++failures();
      return;
    }
}

// Calls body(kernel, name) for each variant of a family that runs here; says which do not.
template <class Kernels, class Body>
void for_each_runnable(const Kernels& kernels, Body body) {
  for (const auto& kernel : kernels)
    if (runnable_isas() & isa_bit(kernel.isa))
      body(kernel, std::string(kernel.name));
    else
      std::printf("skipped %s: it does not run on this processor\n", kernel.name);
}

inline int report(const char* family) {
  std::printf("%s: %s\n", family, failures() ? "FAILED" : "passed");
  return failures() ? EXIT_FAILURE : EXIT_SUCCESS;
}

class Random {
 public:
  uint32_t word() { return static_cast<uint32_t>(engine_()); }
  int64_t below(int64_t n) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(n)); }
  float real() { return std::normal_distribution<float>(0.0f, 3.0f)(engine_); }
  std::vector<uint32_t> words(int64_t n) {
    std::vector<uint32_t> out(static_cast<size_t>(n));
    for (uint32_t& w : out) w = word();
    return out;
  }
  std::vector<float> reals(int64_t n) {
    std::vector<float> out(static_cast<size_t>(n));
    for (float& v : out) v = real();
    return out;
  }

 private:
  std::mt19937_64 engine_{1};
};

// Aligned storage: kernels read weights with aligned loads.
template <class T>
struct Aligned {
  explicit Aligned(const std::vector<T>& values)
      : data(static_cast<T*>(std::aligned_alloc(64, (values.size() * sizeof(T) + 127) / 64 * 64))) {
    std::memcpy(data, values.data(), values.size() * sizeof(T));
  }
  ~Aligned() { std::free(data); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  T* data;
};

// The fastest of many runs, in nanoseconds: what the kernel needs when nothing disturbs it.
template <class Body>
double best_ns(Body body) {
  using Clock = std::chrono::steady_clock;
  double best = 1e30;
  for (int repeat = 0; repeat < 300; ++repeat) {
    const auto start = Clock::now();
    body();
    const double ns = std::chrono::duration<double, std::nano>(Clock::now() - start).count();
    if (ns < best) best = ns;
  }
  return best;
}

}  // namespace binarize::testing
