// The ops of domain binarize_onnx, version 1.  Each is defined in the file of its name.
#pragma once

#include <vector>

#include "ops/ort.h"

namespace binarize {

void add_pack_sign(std::vector<Op>& ops);
void add_unpack(std::vector<Op>& ops);
void add_xnor_conv(std::vector<Op>& ops);
void add_xnor_matmul(std::vector<Op>& ops);
void add_packed_max_pool(std::vector<Op>& ops);

}  // namespace binarize
