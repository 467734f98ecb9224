"""Which binary layers have an XNOR form: attributes, ranks and sizes, and the pads that they come to."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from binarize_onnx.checks import LARGEST
from binarize_onnx.passes.base import Array, Context
from binarize_onnx.passes.weights import layer_bias, output_axis
from binarize_onnx.reasons import Code, Reason

EXACT_LENGTH = 1 << 24  # float32 holds every integer up to here

CONVOLUTIONS = ("Conv", "ConvTranspose")


def unsupported(
    node: gs.Node, weights: Array, levels: int, scale: float, pads: list[int], context: Context
) -> Reason | None:
    """Why a binary layer with constant weights cannot be lowered; None if it can.

    Args:
        node: the layer.
        weights: as the source has them.
        levels: the largest value of its input, in units of `scale`.
        scale: what a set bit of its input stands for.
        pads: of a convolution.
        context: what is known of shapes.
    """
    bias = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
    if bias is not None and layer_bias(node) is None:
        return Reason(Code.BIAS_NOT_CONSTANT, f"its bias `{bias.name}` is computed at run time")
    found = (
        _unsupported_convolution(node, weights, pads)
        if node.op in CONVOLUTIONS
        else _unsupported_product(node, weights, bias, context)
    )
    if found is not None:
        return found
    length = dot_length(node, weights)
    mismatch = _mismatch(node, weights, length, context)
    if mismatch is not None:
        return Reason(Code.INVALID_ATTRIBUTE, mismatch)
    with np.errstate(over="ignore"):
        factor = np.abs(weights).max().astype(np.float32) * np.float32(scale)
        largest = factor * np.float32(length * levels)
    if not np.isfinite(largest) or (factor == 0 and np.any(weights)):
        words = "its weights are so large or small that its dot products overflow float32 or vanish in it"
        return Reason(Code.WEIGHTS_NOT_FINITE, words)
    return too_long(length * levels)


def too_long(length: int) -> Reason | None:
    """Why sums of this many terms are not exact; None if they are."""
    if length < EXACT_LENGTH:
        return None
    words = f"its dot products reach {length}; float32 counts exactly only below {EXACT_LENGTH}"
    return Reason(Code.SUM_TOO_LONG, words)


def dot_length(node: gs.Node, weights: Array) -> int:
    """Terms of one dot product at most."""
    return int(weights.size // weights.shape[output_axis(node)])


def _unsupported_convolution(node: gs.Node, weights: Array, pads: list[int]) -> Reason | None:
    if weights.ndim not in (3, 4):
        words = f"{weights.ndim - 2}-D convolutions stay float; 1-D and 2-D ones are lowered"
        return Reason(Code.UNSUPPORTED_RANK, words)
    group = int(node.attrs.get("group", 1))
    if min([group, *node.attrs.get("strides", []), *node.attrs.get("dilations", [])]) < 1:
        return Reason(Code.INVALID_ATTRIBUTE, "its group, strides or dilations are not all positive")
    if node.op == "ConvTranspose":
        if group != 1 or any(d != 1 for d in node.attrs.get("dilations", [])):
            words = "transposed convolutions with groups or dilations stay float"
            return Reason(Code.UNSUPPORTED_ATTRIBUTE, words)
        if node.attrs.get("output_shape") or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            words = "a transposed convolution with output_shape or auto_pad stays float; explicit pads are lowered"
            return Reason(Code.UNSUPPORTED_ATTRIBUTE, words)
    elif weights.shape[1] == 1 and group == weights.shape[0] > 1:
        words = f"depthwise: {weights[0].size} binary products a pixel are no faster than float ones"
        return Reason(Code.DEPTHWISE, words)
    if min(pads) < 0:
        return Reason(Code.UNSUPPORTED_ATTRIBUTE, f"negative pads {pads} stay float")
    return None


def _unsupported_product(node: gs.Node, weights: Array, bias: gs.Tensor | None, context: Context) -> Reason | None:
    shape = context.shape(node.inputs[0])
    if weights.ndim != 2:
        return Reason(Code.UNSUPPORTED_RANK, f"its weights have rank {weights.ndim}; only matrices are lowered")
    if shape is None:
        words = f"the rank of its input `{node.inputs[0].name}` is unknown; --input-shape may settle it"
        return Reason(Code.DYNAMIC_SHAPE, words)
    if len(shape) < 2:
        words = f"its input `{node.inputs[0].name}` has rank {len(shape)}; at least 2 is needed"
        return Reason(Code.UNSUPPORTED_RANK, words)
    if node.op == "Gemm" and node.attrs.get("transA", 0):
        return Reason(Code.UNSUPPORTED_ATTRIBUTE, "Gemm with transA stays float")
    if bias is not None:
        dims = context.shape(bias)
        if dims is None or int(np.prod(dims)) not in (1, *dims[-1:]):
            return Reason(Code.BIAS_PER_ROW, f"its bias `{bias.name}` differs from row to row")
    return None


def _mismatch(node: gs.Node, weights: Array, length: int, context: Context) -> str | None:
    """How input, weights, bias and output contradict each other, as far as their sizes are known."""
    data, convolution = node.inputs[0], node.op in CONVOLUTIONS
    given = context.known.get(data.name)
    reads = length
    if convolution:
        reads = weights.shape[0] if node.op == "ConvTranspose" else weights.shape[1] * int(node.attrs.get("group", 1))
    channels = given[1 if convolution else -1] if given is not None and len(given) >= 2 else None
    if channels is not None and channels != reads:
        return f"its weights read {reads} channels, and `{data.name}` has {channels}"
    if convolution and given is not None and len(given) != weights.ndim:
        return f"its weights have rank {weights.ndim}, and `{data.name}` has rank {len(given)}"
    bias, outputs = layer_bias(node), weights.shape[output_axis(node)]
    if bias is not None and bias.size not in ((outputs,) if convolution else (1, outputs)):
        return f"it has {outputs} outputs, and its bias has {bias.size} values"
    factors = [float(node.attrs.get(name, 1.0)) for name in ("alpha", "beta")]
    if not np.all(np.isfinite(factors)):
        return f"its alpha and beta are {factors[0]} and {factors[1]}"
    for tensor in (data, node.outputs[0]):
        sizes = [d for d in context.known.get(tensor.name, ()) if d is not None]
        if any(d < 1 for d in sizes) or prod(sizes) > LARGEST:
            return f"`{tensor.name}` would have the sizes {sizes}"
    return None


def explicit_pads(node: gs.Node, weights: Array, context: Context) -> Reason | list[int]:
    """Pads as ONNX lists them, all the beginnings and then all the ends; or why they are not known."""
    axes = weights.ndim - 2
    auto = node.attrs.get("auto_pad", "NOTSET")
    if auto == "NOTSET":
        return [int(p) for p in node.attrs.get("pads", [0] * 2 * axes)]
    if auto == "VALID" or node.op == "ConvTranspose":  # which declines the other kinds
        return [0] * 2 * axes
    strides, dilations = node.attrs.get("strides", [1] * axes), node.attrs.get("dilations", [1] * axes)
    begin, end = [], []
    for axis in range(axes):
        reach = int(dilations[axis]) * (weights.shape[2 + axis] - 1) + 1
        stride = int(strides[axis])
        if stride < 1:
            return Reason(Code.INVALID_ATTRIBUTE, "its strides are not all positive")
        if stride == 1:
            total = reach - 1
        else:
            size = context.known_dim(node.inputs[0], 2 + axis)
            if size is None:
                words = f"auto_pad {auto} with stride {stride} needs a fixed image size; give one with --input-shape"
                return Reason(Code.DYNAMIC_SHAPE, words)
            total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        small = total // 2
        begin.append(small if auto == "SAME_UPPER" else total - small)
        end.append(total - small if auto == "SAME_UPPER" else small)
    return begin + end
