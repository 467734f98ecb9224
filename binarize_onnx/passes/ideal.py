"""What can be read off an ideal graph: its binary layers, their exact accumulators, the bits they read."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from binarize_onnx import opset
from binarize_onnx.passes.base import Context, constant_value, producer
from binarize_onnx.passes.layer_limits import too_long
from binarize_onnx.passes.signs import CARRIERS, Level, match_level, match_sign
from binarize_onnx.reasons import Code, Reason


def accumulator_bound(tensor: gs.Tensor, context: Context) -> int | None:
    """Largest magnitude of the integer dot product that a tensor is the bare result of; None if it is not one."""
    node = producer(tensor)
    if node is None or node.name not in context.binary:
        return None
    length = dot_length(node, context)
    level = level_behind(node.inputs[0])
    return None if length is None else length * (1 if level is None else level.threshold.shape[0])


def dot_length(node: gs.Node, context: Context) -> int | None:
    """Products, at most, in one output of a layer of the ideal graph; None if only run time knows."""
    weights = constant_value(node.inputs[1])
    if weights is None:
        lengths = [context.known_dim(node.inputs[0], -1), context.known_dim(node.inputs[1], -2)]
        return next((d for d in lengths if d is not None), None)
    if node.op == "MatMul":
        return int(weights.shape[0])
    if node.op == "ConvTranspose":
        return int(weights[:, 0].size) // int(node.attrs.get("group", 1))
    return int(weights[0].size)


def unfit_product(node: gs.Node, context: Context) -> Reason | None:
    """Why the product of two binary activations cannot run on bits; None if it can.

    An XnorMatMul states the length of its dot products, which is therefore fixed in the file.
    """
    a, b = node.inputs
    ranks = [len(context.shape(t) or ()) for t in (a, b)]
    if min(ranks) < 2:
        words = "the rank of its inputs is unknown, or below 2; --input-shape may settle it"
        return Reason(Code.DYNAMIC_SHAPE, words)
    length = dot_length(node, context)
    if length is None:
        words = "the length of its dot products is only known at run time; --input-shape fixes it"
        return Reason(Code.DYNAMIC_SHAPE, words)
    if level_behind(b) is not None or low_value(b) != -1:
        return Reason(Code.MIXED_SIGNS, f"its right operand `{b.name}` is not of signs -1 and 1")
    level = level_behind(a)
    reach = length * (1 if level is None else level.threshold.shape[0])
    return too_long(reach)


def level_behind(tensor: gs.Tensor) -> Level | None:
    """The Level that a tensor comes from through carriers, if it comes from one."""
    while (level := match_level(tensor)) is None:
        node = producer(tensor)
        if node is None or node.domain or node.op not in CARRIERS:
            return None
        tensor = node.inputs[0]
    return level


def low_value(tensor: gs.Tensor) -> int:
    """What a clear bit of a binary tensor means: -1 or 0. Levels count from 0."""
    while True:
        node = producer(tensor)
        assert node is not None, f"`{tensor.name}` is not binary"
        if node.domain == opset.IDEAL_DOMAIN:
            return int(node.attrs["x_low"]) if node.op == "BinarySign" else 0
        sign = match_sign(tensor)
        if sign is not None:
            return sign.x_low
        tensor = node.inputs[0]


def pool_size_is_settled(pool: gs.Node, context: Context) -> bool | None:
    """Whether every onnxruntime agrees on the output size of a MaxPool; None if open dimensions hide the answer.

    With ceil_mode, onnxruntime 1.20 adds a last window that starts behind the image; later versions do not, but
    some of their shape inference still does.
    """
    kernel = pool.attrs["kernel_shape"]
    if not pool.attrs.get("ceil_mode", 0):
        return True
    pads = pool.attrs.get("pads", [0] * 2 * len(kernel))
    for axis in range(len(kernel)):
        size = context.known_dim(pool.inputs[0], 2 + axis)
        if size is None:
            return None
        stride = int(pool.attrs.get("strides", [1] * len(kernel))[axis])
        dilation = int(pool.attrs.get("dilations", [1] * len(kernel))[axis])
        reach = dilation * (int(kernel[axis]) - 1) + 1
        last = -(-(size + pads[axis] + pads[axis + len(kernel)] - reach) // stride)
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
