// A node made from bytes: mostly right, so that the kernels run, and sometimes wrong in a few places.
#pragma once

#include <cstddef>

#include "fuzz/check_node.h"

namespace binarize::mock {

struct Sample {
  Node node;
  CheckOptions options;
};
Sample node_from_bytes(const uint8_t* data, size_t size);

// For a person who looks at a finding.
std::string to_string(const Sample& sample);

}  // namespace binarize::mock
