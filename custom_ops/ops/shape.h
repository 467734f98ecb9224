// Shapes with unknown dimensions, broadcasting, and sizes that cannot overflow.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace binarize {

// What a user can cause; its text becomes the message of an onnxruntime status.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw Error(text(parts...));
}

constexpr int64_t kUnknown = -1;
constexpr int kMaxRank = 8;             // of a value
constexpr int kMaxAxes = kMaxRank + 2;  // a threshold has one axis more, and PackSign may put one in front
constexpr int64_t kMaxElements = (int64_t{1} << 31) - 1;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// A tensor's dimensions.  rank < 0: nothing is known; a dimension of kUnknown: that one is not.
struct Shape {
  int rank = -1;
  int64_t dim[kMaxAxes] = {};

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) : rank(0) {
    for (int64_t d : dims) dim[rank++] = d;
  }
  bool known_rank() const { return rank >= 0; }
  int64_t operator[](int axis) const { return rank < 0 ? kUnknown : dim[axis]; }
  int64_t back(int from_end = 1) const { return rank < 0 ? kUnknown : dim[rank - from_end]; }
  bool operator==(const Shape& other) const {
    if (rank != other.rank) return false;
    for (int i = 0; i < rank; ++i)
      if (dim[i] != other.dim[i]) return false;
    return true;
  }
  bool fully_known() const {
    for (int i = 0; i < rank; ++i)
      if (dim[i] < 0) return false;
    return rank >= 0;
  }
};

std::string to_string(const Shape& shape);

// a * b, refusing 2^31 and above: `what` says which tensor would be too large.
int64_t checked_product(int64_t a, int64_t b, const char* what);
// The number of elements of a fully known shape, refusing 2^31 and above.
int64_t element_count(const Shape& shape, const char* what);

// `shape` must broadcast to `target` (numpy's rule, aligned at the right); unknown dimensions pass.
bool broadcasts_to(const Shape& shape, const Shape& target);
// numpy's rule for the leading `count_a`/`count_b` dimensions of two shapes.
Shape broadcast_dims(const Shape& a, int count_a, const Shape& b, int count_b, const char* what);

// How an operand is read at an index of `target`: one element stride an axis, 0 where it is broadcast.
struct BroadcastStrides {
  int rank = 0;
  int64_t stride[kMaxAxes] = {};
};
BroadcastStrides broadcast_strides(const Shape& shape, const Shape& target);

}  // namespace binarize
