"""What can be read off an ideal graph: its binary layers, their exact accumulators, the bits they read."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from binarize_onnx.passes.base import Context, constant_value, producer
from binarize_onnx.passes.signs import match_level, match_sign


def accumulator_length(tensor: gs.Tensor, context: Context) -> int | None:
    """Terms in the integer dot product that a tensor is the bare result of; None if it is not one."""
    node = producer(tensor)
    if node is None or node.name not in context.binary:
        return None
    weights = constant_value(node.inputs[1])
    assert weights is not None
    return int(weights[0].size) if node.op == "Conv" else int(weights.shape[0])


def low_value(tensor: gs.Tensor) -> int:
    """What a clear bit of a binary tensor means: -1 or 0. Levels count from 0."""
    while True:
        sign = match_sign(tensor)
        if sign is not None:
            return sign.x_low
        if match_level(tensor) is not None:
            return 0
        node = producer(tensor)
        assert node is not None, f"`{tensor.name}` is not binary"
        tensor = node.inputs[0]
