// A value that many threads may read and the first to have one leaves behind: set once, never changed.
#pragma once

#include <atomic>
#include <memory>
#include <utility>

namespace binarize {

template <class T>
class KeptOnce {
 public:
  KeptOnce() = default;
  KeptOnce(const KeptOnce&) = delete;
  KeptOnce& operator=(const KeptOnce&) = delete;
  ~KeptOnce() { delete value_.load(std::memory_order_relaxed); }

  // Null until a value is kept, then always that one.
  const T* get() const { return value_.load(std::memory_order_acquire); }

  // Keeps `value` if it is the first.
  void keep(std::unique_ptr<T> value) const {
    const T* none = nullptr;
    if (value_.compare_exchange_strong(none, value.get(), std::memory_order_release, std::memory_order_relaxed))
      value.release();
  }

 private:
  mutable std::atomic<const T*> value_{nullptr};
};

}  // namespace binarize
