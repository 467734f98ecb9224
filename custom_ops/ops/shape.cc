#include "ops/shape.h"

namespace binarize {

std::string to_string(const Shape& shape) {
  if (!shape.known_rank()) return "[unknown]";
  std::string out = "[";
  for (int i = 0; i < shape.rank; ++i) {
    if (i) out += ", ";
    out += shape.dim[i] < 0 ? "?" : std::to_string(shape.dim[i]);
  }
  return out + "]";
}

int64_t checked_product(int64_t a, int64_t b, const char* what) {
  int64_t product;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &product) || product > kMaxElements)
    fail(what, " would have ", a, " x ", b, " elements, the limit is 2^31 - 1");
  return product;
}

int64_t element_count(const Shape& shape, const char* what) {
  int64_t count = 1;
  for (int i = 0; i < shape.rank; ++i)
    if (shape.dim[i] == 0) return 0;
  for (int i = 0; i < shape.rank; ++i) count = checked_product(count, shape.dim[i], what);
  return count;
}

bool broadcasts_to(const Shape& shape, const Shape& target) {
  if (!shape.known_rank() || !target.known_rank()) return true;
  if (shape.rank > target.rank) return false;
  for (int i = 0; i < shape.rank; ++i) {
    const int64_t d = shape.dim[shape.rank - 1 - i], t = target.dim[target.rank - 1 - i];
    if (d != 1 && d >= 0 && t >= 0 && d != t) return false;
  }
  return true;
}

Shape broadcast_dims(const Shape& a, int count_a, const Shape& b, int count_b, const char* what) {
  Shape out;
  out.rank = count_a > count_b ? count_a : count_b;
  for (int i = 0; i < out.rank; ++i) {
    const int64_t da = i < count_a ? a.dim[count_a - 1 - i] : 1, db = i < count_b ? b.dim[count_b - 1 - i] : 1;
    if (da >= 0 && db >= 0 && da != db && da != 1 && db != 1)
      fail(what, " ", to_string(a), " and ", to_string(b), " do not broadcast: ", da, " against ", db);
    int64_t d = da == 1 ? db : da;
    if (da == kUnknown && db > 1) d = db;
    out.dim[out.rank - 1 - i] = d;
  }
  return out;
}

BroadcastStrides broadcast_strides(const Shape& shape, const Shape& target) {
  BroadcastStrides out;
  out.rank = target.rank;
  int64_t stride = 1;
  for (int i = 0; i < shape.rank; ++i) {
    const int64_t d = shape.dim[shape.rank - 1 - i];
    out.stride[target.rank - 1 - i] = d == 1 ? 0 : stride;
    stride *= d;
  }
  return out;
}

}  // namespace binarize
