"""The forms in which an activation sign is written, and how a binary tensor is traced back to its signs.

Sign(x)                                        three-valued: Sign(0) = 0
Where(x >= c, 1, -1)                           and >, <, <=, Not, either operand order, {0, 1} for {-1, 1}
Cast(x >= c) * 2 - 1                           or the Cast alone: {0, 1}
BinarySign(x, threshold, flip)                 of the ideal graph
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from binarize_onnx import opset
from binarize_onnx.checks import shown
from binarize_onnx.passes.base import Array, constant_value, producer, split_operands
from binarize_onnx.reasons import Code
from binarize_onnx.thresholds import after

# What a binary tensor may pass through on its way from the sign to the layer and stay binary.
CARRIERS = frozenset({"MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze"})

DEEPEST = 200  # Concat and Pad nodes between a sign and a layer

NEVER_NEGATIVE = frozenset({"Relu", "Abs", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "Sqrt"})
# Never negative where no input is; windows and padding of the pools are not below 0 either.
KEEPS_NON_NEGATIVE = CARRIERS | {
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Concat",
    "Add",
    "Mul",
    "Identity",
}


@dataclass(frozen=True)
class Sign:
    """A two-valued activation: bit = (x >= threshold) ^ flip, worth +1 where set and x_low where clear.

    `zero_differs` tells that the source is three-valued: its own output at x = threshold is neither of the two. `rank`
    is the highest among the form's constants: one above that of x would give the output more axes than x has.
    """

    output: gs.Tensor
    x: gs.Tensor
    threshold: Array
    flip: Array
    x_low: int
    zero_differs: bool = False
    rank: int = 0


@dataclass(frozen=True)
class Level:
    """A multi-bit activation of the ideal graph: how many of the thresholds (leading axis) x reaches."""

    output: gs.Tensor
    x: gs.Tensor
    threshold: Array


@dataclass(frozen=True)
class NotBinary:
    """Why a tensor is not binary: the code, and the end of a sentence about the layer that reads it."""

    code: Code
    words: str


def match_sign(tensor: gs.Tensor) -> Sign | None:
    """The sign whose output this tensor is, if it is one."""
    node = producer(tensor)
    if node is None:
        return None
    if node.domain == opset.IDEAL_DOMAIN and node.op == "BinarySign":
        threshold, flip = constant_value(node.inputs[1]), constant_value(node.inputs[2])
        if threshold is None or flip is None or threshold.dtype != np.float32 or flip.dtype != np.bool_:
            return None
        rank = max(threshold.ndim, flip.ndim)
        return Sign(tensor, node.inputs[0], threshold, flip, int(node.attrs["x_low"]), rank=rank)
    if node.domain:
        return None
    if node.op == "Sign":
        return _match_onnx_sign(tensor, node)
    if node.op == "Where":
        return _match_where(tensor, node)
    if node.op == "Cast":
        return _match_cast(tensor, node)
    if node.op in ("Sub", "Add"):
        return _match_doubled_cast(tensor, node)
    return None


def match_level(tensor: gs.Tensor) -> Level | None:
    """The Level node whose output this tensor is, if its thresholds are constants."""
    node = producer(tensor)
    if node is None or node.domain != opset.IDEAL_DOMAIN or node.op != "Level":
        return None
    threshold = constant_value(node.inputs[1])
    return None if threshold is None else Level(tensor, node.inputs[0], threshold)


def trace(
    tensor: gs.Tensor, kept: frozenset[str], known: dict[int, list[Sign] | NotBinary] | None = None, depth: int = 0
) -> list[Sign] | NotBinary:
    """The signs that a tensor's every element comes from, through ops that keep it binary.

    All signs found share one x_low; a Pad must fill with one of the two values. `kept` names three-valued signs that
    are to stay as they are. Every sign is found once, and every tensor traced once (`known`, by id).
    """
    known = {} if known is None else known
    while (node := producer(tensor)) is not None and node.op in CARRIERS and not node.domain:
        tensor = node.inputs[0]
    if id(tensor) not in known:
        known[id(tensor)] = _trace_step(tensor, kept, known, depth)
    return known[id(tensor)]


def _trace_step(
    tensor: gs.Tensor, kept: frozenset[str], known: dict[int, list[Sign] | NotBinary], depth: int
) -> list[Sign] | NotBinary:
    """`trace` for a tensor that no carrier writes."""
    sign = match_sign(tensor)
    if sign is not None and tensor.name in kept:
        return NotBinary(
            Code.SIGN_ZERO, f"sign `{tensor.name}` is kept three-valued: 0 can reach it, and a bit has no zero"
        )
    if sign is not None:
        return [sign]
    node = producer(tensor)
    if node is None:
        return NotBinary(Code.INPUT_NOT_SIGN, f"its input `{tensor.name}` is real-valued: there is no sign on it")
    if depth >= DEEPEST and node.op in ("Concat", "Pad"):
        return NotBinary(Code.INPUT_NOT_SIGN, f"`{tensor.name}` is behind more than {DEEPEST} Concat and Pad nodes")
    if node.op == "Concat":
        found: dict[int, Sign] = {}
        for part in node.inputs:
            signs = trace(part, kept, known, depth + 1)
            if isinstance(signs, NotBinary):
                return signs
            found |= {id(s.output): s for s in signs}
        if len({s.x_low for s in found.values()}) != 1:
            return NotBinary(Code.MIXED_SIGNS, f"`{tensor.name}` joins {{-1, 1}} signs with {{0, 1}} ones")
        return list(found.values())
    if node.op == "Pad":
        signs = trace(node.inputs[0], kept, known, depth + 1)
        if isinstance(signs, NotBinary):
            return signs
        value = pad_value(node)
        if value is None or value not in (1, signs[0].x_low):
            words = f"`{tensor.name}` is padded with a value that is neither +1 nor {signs[0].x_low}"
            return NotBinary(Code.PAD_VALUE, words)
        return signs
    return NotBinary(Code.INPUT_NOT_SIGN, f"its input comes from {shown(node)} (`{tensor.name}`), not from a sign")


def never_negative(tensor: gs.Tensor) -> bool:
    """Whether the graph shows that no element can be below 0."""
    waiting, seen = [tensor], {id(tensor)}
    while waiting:
        tensor = waiting.pop()
        values, node = constant_value(tensor), producer(tensor)
        if values is not None:
            if not (np.issubdtype(values.dtype, np.floating) and np.all(values >= 0)):
                return False
        elif node is None or node.domain:
            return False
        elif node.op == "Clip":
            low = constant_value(node.inputs[1]) if len(node.inputs) > 1 else None
            if low is None or not np.all(low >= 0):
                return False
        elif node.op not in NEVER_NEGATIVE:
            if node.op not in KEEPS_NON_NEGATIVE:
                return False
            data = node.inputs if node.op in ("Concat", "Add", "Mul") else node.inputs[:1]
            waiting += [t for t in data if id(t) not in seen]
            seen.update(id(t) for t in data)
    return True


def pad_value(node: gs.Node) -> int | None:
    """What a constant-mode Pad fills with, where that is a known whole number and nothing is cropped."""
    if node.attrs.get("mode", "constant") != "constant":
        return None
    if len(node.inputs) > 3 and not node.inputs[3].is_empty():
        return None
    pads = constant_value(node.inputs[1])
    if pads is None or pads.dtype != np.int64 or np.any(pads < 0):
        return None
    if len(node.inputs) < 3 or node.inputs[2].is_empty():
        return 0
    value = constant_value(node.inputs[2])
    if value is None or value.size != 1 or float(value.reshape(-1)[0]) not in (-1.0, 0.0, 1.0):
        return None
    return int(value.reshape(-1)[0])


def _scalar(value: float) -> Array:
    return np.asarray(value, np.float32)


def _match_onnx_sign(tensor: gs.Tensor, node: gs.Node) -> Sign:
    x = node.inputs[0]
    if never_negative(x):
        # Sign of a tensor that is never negative is exactly {0, 1}: 1 where x > 0.
        return Sign(tensor, x, after(_scalar(0)), np.asarray(False), x_low=0)
    return Sign(tensor, x, _scalar(0), np.asarray(False), x_low=-1, zero_differs=True)


def _match_where(tensor: gs.Tensor, node: gs.Node) -> Sign | None:
    compared = _match_comparison(node.inputs[0])
    values = [constant_value(t) for t in node.inputs[1:3]]
    if compared is None or any(v is None or v.size != 1 for v in values):
        return None
    x, threshold, flip = compared
    high, low = (float(np.asarray(v).reshape(-1)[0]) for v in values)
    if {high, low} not in ({1.0, -1.0}, {1.0, 0.0}):
        return None
    rank = max(threshold.ndim, *(np.asarray(v).ndim for v in values))
    return Sign(tensor, x, threshold, flip ^ (high < low), x_low=int(min(high, low)), rank=rank)


def _match_cast(tensor: gs.Tensor, node: gs.Node) -> Sign | None:
    compared = _match_comparison(node.inputs[0])
    if compared is None or int(node.attrs.get("to", 0)) != onnx.TensorProto.FLOAT:
        return None
    x, threshold, flip = compared
    return Sign(tensor, x, threshold, flip, x_low=0, rank=threshold.ndim)


def _match_doubled_cast(tensor: gs.Tensor, node: gs.Node) -> Sign | None:
    """2*b - 1 or 2*b + (-1) of a {0, 1} cast b."""
    outer = split_operands(node)
    if outer is None or outer[1].size != 1 or (node.op == "Sub" and outer[0] is not node.inputs[0]):
        return None
    if float(outer[1].reshape(-1)[0]) != (1.0 if node.op == "Sub" else -1.0):
        return None
    doubled = producer(outer[0])
    if doubled is None or doubled.op != "Mul" or doubled.domain:
        return None
    inner = split_operands(doubled)
    if inner is None or inner[1].size != 1 or float(inner[1].reshape(-1)[0]) != 2.0:
        return None
    cast = producer(inner[0])
    bits = _match_cast(inner[0], cast) if cast is not None and cast.op == "Cast" and not cast.domain else None
    if bits is None:
        return None
    rank = max(bits.rank, inner[1].ndim, outer[1].ndim)
    return Sign(tensor, bits.x, bits.threshold, bits.flip, x_low=-1, rank=rank)


def _match_comparison(tensor: gs.Tensor) -> tuple[gs.Tensor, Array, Array] | None:
    """`(x, threshold, flip)` of a comparison of x with a float32 constant; x > c is x >= the next float after c."""
    node, inverted = producer(tensor), False
    while node is not None and node.op == "Not" and not node.domain:
        node, inverted = producer(node.inputs[0]), not inverted
    if node is None or node.domain:
        return None
    if node.op not in ("GreaterOrEqual", "Greater", "LessOrEqual", "Less"):
        return None
    operands = split_operands(node)
    if operands is None or operands[1].dtype != np.float32 or not np.all(np.isfinite(operands[1])):
        return None
    x, bound = operands
    greater = node.op.startswith("Greater") == (x is node.inputs[0])
    # x >= c and x < c share the threshold c; x > c and x <= c share the next float above.
    at_bound = node.op.endswith("OrEqual") == greater
    threshold = bound if at_bound else after(bound)
    return x, np.asarray(threshold), np.full(threshold.shape, greater == inverted)
