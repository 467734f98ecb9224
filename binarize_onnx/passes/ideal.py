"""What can be read off an ideal graph: its binary layers, their exact accumulators, the bits they read."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from binarize_onnx.passes.base import Context, constant_value, producer
from binarize_onnx.passes.signs import CARRIERS, match_level, match_sign


def accumulator_bound(tensor: gs.Tensor, context: Context) -> int | None:
    """Largest magnitude of the integer dot product that a tensor is the bare result of; None if it is not one."""
    node = producer(tensor)
    if node is None or node.name not in context.binary:
        return None
    weights = constant_value(node.inputs[1])
    if weights is None:  # a second activation
        length = context.known_dim(node.inputs[1], -2)
        return length
    outputs = weights.shape[0 if node.op == "Conv" else 1]
    return int(weights.size // outputs) * _high_value(node.inputs[0])


def _high_value(tensor: gs.Tensor) -> int:
    """The largest value of a binary tensor: 1, or how many thresholds a level counts."""
    while True:
        level = match_level(tensor)
        if level is not None:
            return int(level.threshold.shape[0])
        node = producer(tensor)
        if match_sign(tensor) is not None or node is None:
            return 1
        tensor = node.inputs[0]


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


def pool_size_is_settled(pool: gs.Node, context: Context) -> bool | None:
    """Whether every onnxruntime agrees on the output size of a MaxPool; None if open dimensions hide the answer.

    With ceil_mode, onnxruntime 1.20 adds a last window that starts behind the image; later versions do not, but
    some of their shape inference still does.
    """
    if not pool.attrs.get("ceil_mode", 0) or len(pool.attrs["kernel_shape"]) != 2:
        return True
    pads = pool.attrs.get("pads", [0, 0, 0, 0])
    for axis in range(2):
        size = context.known_dim(pool.inputs[0], 2 + axis)
        if size is None:
            return None
        stride = int(pool.attrs.get("strides", [1, 1])[axis])
        dilation = int(pool.attrs.get("dilations", [1, 1])[axis])
        reach = dilation * (int(pool.attrs["kernel_shape"][axis]) - 1) + 1
        last = -(-(size + pads[axis] + pads[axis + 2] - reach) // stride)
        if last * stride >= size + pads[axis]:
            return False
    return True


def unsettled_pool(tensor: gs.Tensor, context: Context) -> gs.Node | None:
    """A MaxPool on a binary tensor's way from its signs whose size is known to differ between runtimes."""
    waiting, seen = [tensor], {id(tensor)}
    while waiting:
        tensor = waiting.pop()
        node = producer(tensor)
        if node is None or node.domain or match_sign(tensor) is not None:
            continue
        if node.op == "MaxPool" and pool_size_is_settled(node, context) is False:
            return node
        if node.op in CARRIERS or node.op in ("Concat", "Pad"):
            sources = node.inputs if node.op == "Concat" else node.inputs[:1]
            waiting += [source for source in reversed(sources) if id(source) not in seen]
            seen.update(id(source) for source in sources)
    return None
