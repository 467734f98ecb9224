"""A binary ResNet converted to float16 after it was exported, its input and output still float32."""

from __future__ import annotations

import onnx
from onnxconverter_common import float16  # type: ignore[import-untyped]

from zoo.base import Feed, Network, images
from zoo.int8_edges import BinaryResNet


def to_float16(model: onnx.ModelProto, feed: Feed) -> onnx.ModelProto:
    converted: onnx.ModelProto = float16.convert_float_to_float16(model, keep_io_types=True)
    return converted


NETWORK = Network(
    "binary ResNet, float16 file",
    BinaryResNet,
    "Liu et al. 2018, arXiv:1808.00278",
    binary=4,
    inputs=images(3, 16),
    after=to_float16,
)
