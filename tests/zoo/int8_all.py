"""The same binary ResNet with every convolution quantised to int8, the binary ones among them.

What onnxruntime's static quantization makes of a whole binary network: the sign, its weights and the product behind
QuantizeLinear and DequantizeLinear. Symmetric scales keep signs two-valued, {-s, s}, and weights of one magnitude a
channel.
"""

from __future__ import annotations

import onnx

from zoo.base import Feed, Network, images
from zoo.int8_edges import BinaryResNet, named, quantised


def quantise(model: onnx.ModelProto, feed: Feed) -> onnx.ModelProto:
    return quantised(model, feed, [node.name for node in named(model).graph.node if node.op_type in ("Conv", "Gemm")])


NETWORK = Network(
    "binary ResNet, int8 everywhere",
    BinaryResNet,
    "Liu et al. 2018, arXiv:1808.00278",
    binary=4,
    inputs=images(3, 16),
    after=quantise,
)
