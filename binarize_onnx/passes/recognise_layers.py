"""Find the layers that are binary already, and bring them to their ideal form.

    before   Conv(Sign(x), alpha * B, bias)
    after    Add(Mul(Conv(BinarySign(x), B), alpha), bias)               B in {-1, +1}, or {-1, 0, +1}

    before   Gemm(Sign(x), alpha * B, bias, transB) | MatMul(Sign(x), alpha * B)
    after    Add(Mul(MatMul(BinarySign(x), B'), alpha), bias)

A layer is binary if every element of its input comes from a sign and its weights have one magnitude in each output
channel. Convolution of ±1 is exact in float32 in any order of summation while its length stays below 2^24; a scale
inside the weights would round every partial sum, so scales move behind it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from binarize_onnx import opset
from binarize_onnx.checks import LARGEST
from binarize_onnx.passes.base import Array, Context, Pass, Skip, constant_value, producer
from binarize_onnx.passes.ideal import unsettled_pool
from binarize_onnx.passes.signs import Level, NotBinary, Sign, match_level, pad_value, trace
from binarize_onnx.reasons import Code, Reason
from binarize_onnx.report import SignSite

LAYER_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

EXACT_LENGTH = 1 << 24  # float32 holds every integer up to here

# Spread of |w| within a channel that still counts as one magnitude: the rounding of one float32 product.
SAME_MAGNITUDE = 2.0**-22


@dataclass(frozen=True)
class Filter:
    """Which layers the caller wants converted: regexes for names (whole match), and op types left out."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    exclude_ops: tuple[str, ...] = ()

    def refuses(self, node: gs.Node) -> Reason | None:
        """Why the caller's own options leave the layer out; None if they do not."""
        if node.op in self.exclude_ops:
            return Reason(Code.EXCLUDED, f"operator type {node.op} is excluded")
        if any(re.fullmatch(pattern, node.name) for pattern in self.exclude):
            return Reason(Code.EXCLUDED, "excluded by name")
        if self.include and not any(re.fullmatch(pattern, node.name) for pattern in self.include):
            return Reason(Code.EXCLUDED, "not among the nodes asked for")
        return None


@dataclass(frozen=True)
class Weights:
    """alpha * signs: ±1 (0 where masked) of the layer's own layout, one scale an output channel."""

    signs: Array
    scale: Array


@dataclass(frozen=True)
class BinaryLayer:
    """A layer that is binary in the source."""

    node: gs.Node
    data: gs.Tensor
    pads: list[int]
    signs: list[Sign]
    weights: Weights


class RecogniseLayers(Pass[BinaryLayer]):
    """Rewrite every binary Conv, Gemm and MatMul to ±1 weights behind BinarySign, scales after."""

    def __init__(self, context: Context, wanted: Filter, kept_signs: frozenset[str] = frozenset()) -> None:
        super().__init__(context)
        self.wanted, self.kept_signs = wanted, kept_signs
        self.sites: dict[str, tuple[SignSite, bool]] = {}
        self._seen: set[str] = set()

    def match(self, node: gs.Node) -> BinaryLayer | Skip | None:
        """A layer with a sign on its input and binary weights."""
        if node.op not in LAYER_OPS or node.domain or node.name in self._seen:
            return None
        self._seen.add(node.name)
        excluded = self.wanted.refuses(node)
        if excluded is not None:
            return Skip(node, excluded)
        if node.op == "ConvTranspose":
            return Skip(node, Reason(Code.UNSUPPORTED_OP, "transposed convolutions stay float"))
        weights_tensor = node.inputs[1]
        values = constant_value(weights_tensor)
        if values is None:
            if node.op != "Conv" and constant_value(node.inputs[0]) is not None:
                return Skip(node, Reason(Code.WEIGHTS_ON_LEFT, "its weights are on the left"))
            words = f"its weights `{weights_tensor.name}` are computed at run time"
            return Skip(node, Reason(Code.WEIGHTS_NOT_CONSTANT, words))
        unsuitable = _unsuitable(values)
        if unsuitable is not None:
            return Skip(node, unsuitable)
        weights = split_scale(values, output_axis(node))
        data, pads = without_zero_pad(node)
        level = match_level(data)
        signs: list[Sign] | NotBinary | Level = level or trace(data, self.kept_signs)
        if weights is None:
            real = "real-valued weights (more than one magnitude in an output channel)"
            if isinstance(signs, NotBinary):
                return Skip(node, Reason(Code.FLOAT_LAYER, f"{real}, and {signs.words}"))
            return Skip(node, Reason(Code.FLOAT_WEIGHTS, f"its input is binary, but it has {real}"))
        if isinstance(signs, NotBinary):
            return Skip(node, Reason(signs.code, f"binary weights, but {signs.words}"))
        for source in [signs] if isinstance(signs, Level) else signs:
            if self.context.types.get(source.x.name, TensorProto.FLOAT) != TensorProto.FLOAT:
                words = f"`{source.output.name}` reads `{source.x.name}`, which is not float32"
                return Skip(node, Reason(Code.NOT_FLOAT32, words))
            if isinstance(source, Sign) and not self._threshold_fits(source):
                words = f"the threshold of its sign `{source.output.name}` has axes that the input has not"
                return Skip(node, Reason(Code.THRESHOLD_SHAPE, words))
        pool = unsettled_pool(data, self.context)
        if pool is not None:
            words = f"the size of `{pool.outputs[0].name}` depends on the runtime (MaxPool with ceil_mode)"
            return Skip(node, Reason(Code.CEIL_MODE, words))
        if pads is None:
            found = _explicit_pads(node, values, self.context) if node.op == "Conv" and values.ndim == 4 else [0]
            if isinstance(found, Reason):
                return Skip(node, found)
            pads = found
        levels = level.threshold.shape[0] if level is not None else 1
        unsupported = _unsupported(node, values, levels, pads, self.context)
        if unsupported is not None:
            return Skip(node, unsupported)
        return BinaryLayer(node, data, pads, [] if isinstance(signs, Level) else signs, weights)

    def rewrite(self, site: BinaryLayer) -> None:
        """Signs to BinarySign, scales and bias behind the layer."""
        for sign in site.signs:
            self._rewrite_sign(sign)
        node, output = site.node, site.node.outputs[0]
        self.context.binary.add(node.name)
        convolution = node.op == "Conv"
        channel_shape = (-1, 1, 1) if convolution else (-1,)
        signs = site.weights.signs
        if node.op == "Gemm" and node.attrs.get("transB", 0):
            signs = np.ascontiguousarray(signs.T)
        steps: list[tuple[str, Array]] = []
        scale, bias = site.weights.scale, layer_bias(node)
        if node.op == "Gemm":
            scale = (scale * np.float32(node.attrs.get("alpha", 1.0))).astype(np.float32)
            if bias is not None:
                bias = (bias * np.float32(node.attrs.get("beta", 1.0))).astype(np.float32)
        if np.any(scale != 1):
            steps.append(("Mul", scale.reshape(channel_shape)))
        if bias is not None and np.any(bias != 0):
            steps.append(
                ("Add", bias.reshape(channel_shape) if bias.size > 1 else bias.reshape((1,) * len(channel_shape)))
            )
        attrs: dict[str, Any] = {}
        if convolution:
            rank = signs.ndim - 2
            attrs = {
                "kernel_shape": list(signs.shape[2:]),
                "strides": list(node.attrs.get("strides", [1] * rank)),
                "dilations": list(node.attrs.get("dilations", [1] * rank)),
                "group": int(node.attrs.get("group", 1)),
                "pads": site.pads,
            }
        node.outputs.clear()
        current = output if not steps else self.context.variable(f"{output.name}.acc", like=output)
        self.context.insert(
            "Conv" if convolution else "MatMul",
            [site.data, self.context.constant(f"{node.inputs[1].name}.signs", signs)],
            [current],
            name=node.name,
            attrs=attrs,
        )
        node.inputs.clear()
        for index, (op, values) in enumerate(steps):
            last = index == len(steps) - 1
            result = output if last else self.context.variable(f"{output.name}.scaled", like=output)
            hint = f"{output.name}.{'scale' if op == 'Mul' else 'bias'}"
            self.context.insert(op, [current, self.context.constant(hint, values)], [result])
            current = result

    def _threshold_fits(self, sign: Sign) -> bool:
        """Whether the comparison keeps the shape of x; broadcasting x to a larger threshold would not."""
        if sign.threshold.size == 1 and sign.rank <= 1:
            return True
        shape = self.context.shape(sign.x)
        return shape is not None and shape == self.context.shape(sign.output)

    def _rewrite_sign(self, sign: Sign) -> None:
        maker = producer(sign.output)
        assert maker is not None
        if sign.output.name not in self.sites:
            reason = "the source gives 0 for 0" if sign.zero_differs else "the source's sign has two values"
            site = SignSite(sign.output.name, "assumed" if sign.zero_differs else "proved", reason)
            self.sites[sign.output.name] = (site, sign.zero_differs)
        if maker.op == "BinarySign":
            return
        maker.outputs.clear()
        flip = np.broadcast_to(sign.flip, sign.threshold.shape)
        self.context.insert(
            "BinarySign",
            [
                sign.x,
                self.context.constant(f"{sign.output.name}.threshold", sign.threshold),
                self.context.constant(f"{sign.output.name}.flip", np.ascontiguousarray(flip).reshape(flip.shape)),
            ],
            [sign.output],
            name=maker.name,
            domain=opset.IDEAL_DOMAIN,
            attrs={"x_low": sign.x_low},
        )


def without_zero_pad(node: gs.Node) -> tuple[gs.Tensor, list[int] | None]:
    """The layer's data input and, of a convolution behind a Pad of zeros, the pads that make up for leaving it out.

    Zeros around a binary tensor are a third value in it; as the convolution's own pads they are not in it.
    """
    data, maker = node.inputs[0], producer(node.inputs[0])
    if node.op != "Conv" or maker is None or maker.op != "Pad" or pad_value(maker) != 0:
        return data, None
    amounts = constant_value(maker.inputs[1])
    if amounts is None or amounts.size != 8 or np.any(amounts[[0, 1, 4, 5]]):
        return data, None
    if node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return data, None
    own = node.attrs.get("pads", [0, 0, 0, 0])
    return maker.inputs[0], [int(a) + int(b) for a, b in zip(own, amounts[[2, 3, 6, 7]], strict=True)]


def output_axis(node: gs.Node) -> int:
    """The axis of the weights that counts output channels."""
    return 0 if node.op == "Conv" or node.attrs.get("transB", 0) else -1


def layer_bias(node: gs.Node) -> Array | None:
    """The layer's constant bias as a vector, None if it has none."""
    if len(node.inputs) < 3 or node.inputs[2].is_empty():
        return None
    bias = constant_value(node.inputs[2])
    return None if bias is None else bias.reshape(-1)


def split_scale(weights: Array, axis: int) -> Weights | None:
    """Finite weights as alpha * signs with one alpha an output channel; None if a channel has several magnitudes.

    Zeros beside ±alpha are ternary weights and stay zeros; a channel of nothing but zeros has alpha 0.
    """
    if weights.size == 0:
        return None
    rows = np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)
    magnitude = np.abs(rows)
    scale = magnitude.max(axis=1)
    uneven = (magnitude > 0) & (scale[:, None] - magnitude > SAME_MAGNITUDE * scale[:, None])
    if np.any(uneven):
        return None
    signs = np.sign(weights)
    dead = np.expand_dims(scale == 0, [a for a in range(weights.ndim) if a != axis % weights.ndim])
    return Weights(np.where(dead, np.float32(1), signs).astype(np.float32), scale.astype(np.float32))


def _unsuitable(weights: Array) -> Reason | None:
    """What keeps weights from being read as ±alpha before their values matter; None if nothing does."""
    if weights.dtype != np.float32:
        return Reason(Code.NOT_FLOAT32, f"its weights are {weights.dtype}; only float32 ones are lowered")
    if weights.ndim < 2:
        return Reason(Code.UNSUPPORTED_RANK, f"its weights have rank {weights.ndim}; at least 2 is needed")
    if not np.all(np.isfinite(weights)):
        return Reason(Code.WEIGHTS_NOT_FINITE, "its weights hold NaN or infinity")
    return None


def _unsupported(node: gs.Node, weights: Array, levels: int, pads: list[int], context: Context) -> Reason | None:
    """Why a binary layer cannot be lowered; None if it can."""
    bias = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
    if bias is not None and constant_value(bias) is None:
        return Reason(Code.BIAS_NOT_CONSTANT, f"its bias `{bias.name}` is computed at run time")
    if node.op == "Conv":
        if weights.ndim != 4:
            words = f"{weights.ndim - 2}-D convolutions stay float; only 2-D ones are lowered"
            return Reason(Code.UNSUPPORTED_RANK, words)
        group = int(node.attrs.get("group", 1))
        if weights.shape[1] == 1 and group == weights.shape[0] > 1:
            words = f"depthwise: {weights[0].size} binary products a pixel are no faster than float ones"
            return Reason(Code.DEPTHWISE, words)
        if min(pads) < 0:
            return Reason(Code.UNSUPPORTED_ATTRIBUTE, f"negative pads {pads} stay float")
        if min([group, *node.attrs.get("strides", []), *node.attrs.get("dilations", [])]) < 1:
            return Reason(Code.INVALID_ATTRIBUTE, "its group, strides or dilations are not all positive")
        length = weights[0].size
    else:
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
        if bias is not None and int(np.prod(bias.shape)) not in (1, *bias.shape[-1:]):
            return Reason(Code.BIAS_PER_ROW, f"its bias `{bias.name}` differs from row to row")
        length = weights.shape[1] if node.attrs.get("transB", 0) else weights.shape[0]
    mismatch = _mismatch(node, weights, length, context)
    if mismatch is not None:
        return Reason(Code.INVALID_ATTRIBUTE, mismatch)
    with np.errstate(over="ignore"):
        largest = np.abs(weights).max() * np.float32(length * levels)
    if not np.isfinite(largest):
        return Reason(Code.WEIGHTS_NOT_FINITE, "its weights are so large that its dot products overflow float32")
    if length * levels >= EXACT_LENGTH:
        words = f"its dot products reach {length * levels}; float32 counts exactly only below {EXACT_LENGTH}"
        return Reason(Code.SUM_TOO_LONG, words)
    return None


def _mismatch(node: gs.Node, weights: Array, length: int, context: Context) -> str | None:
    """How input, weights, bias and output contradict each other, as far as their sizes are known."""
    data, convolution = node.inputs[0], node.op == "Conv"
    given = context.known.get(data.name)
    reads = weights.shape[1] * int(node.attrs.get("group", 1)) if convolution else length
    channels = given[1 if convolution else -1] if given is not None and len(given) >= 2 else None
    if channels is not None and channels != reads:
        return f"its weights read {reads} channels, and `{data.name}` has {channels}"
    if convolution and given is not None and len(given) != 4:
        return f"its weights have rank 4, and `{data.name}` has rank {len(given)}"
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


def _explicit_pads(node: gs.Node, weights: Array, context: Context) -> Reason | list[int]:
    """Pads as (top, left, bottom, right), or why they are not known."""
    auto = node.attrs.get("auto_pad", "NOTSET")
    if auto == "NOTSET":
        return [int(p) for p in node.attrs.get("pads", [0, 0, 0, 0])]
    if auto == "VALID":
        return [0, 0, 0, 0]
    strides, dilations = node.attrs.get("strides", [1, 1]), node.attrs.get("dilations", [1, 1])
    begin, end = [], []
    for axis in range(2):
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
