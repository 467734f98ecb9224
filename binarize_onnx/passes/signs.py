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
from binarize_onnx.passes.base import Array, constant_value, producer, split_operands
from binarize_onnx.thresholds import after

# What a binary tensor may pass through on its way from the sign to the layer and stay binary.
CARRIERS = frozenset({"MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze"})

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
    """Why a tensor is not binary, as the end of a sentence about the layer that reads it."""

    reason: str


def match_sign(tensor: gs.Tensor) -> Sign | None:
    """The sign whose output this tensor is, if it is one."""
    node = producer(tensor)
    if node is None:
        return None
    if node.domain == opset.IDEAL_DOMAIN and node.op == "BinarySign":
        threshold, flip = constant_value(node.inputs[1]), constant_value(node.inputs[2])
        if threshold is None or flip is None:
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


def trace(tensor: gs.Tensor, kept: frozenset[str]) -> list[Sign] | NotBinary:
    """The signs that a tensor's every element comes from, through ops that keep it binary.

    All signs found share one x_low; a Pad must fill with one of the two values. `kept` names three-valued signs that
    are to stay as they are.
    """
    sign = match_sign(tensor)
    if sign is not None and tensor.name in kept:
        return NotBinary(f"sign `{tensor.name}` is kept three-valued: 0 can reach it, and a bit has no zero")
    if sign is not None:
        return [sign]
    node = producer(tensor)
    if node is None:
        return NotBinary(f"its input `{tensor.name}` is real-valued: there is no sign on it")
    if node.domain:
        return NotBinary(f"its input comes from {node.domain}.{node.op} (`{tensor.name}`), not from a sign")
    if node.op in CARRIERS:
        return trace(node.inputs[0], kept)
    if node.op == "Concat":
        found: list[Sign] = []
        for part in node.inputs:
            signs = trace(part, kept)
            if isinstance(signs, NotBinary):
                return signs
            found += signs
        if len({s.x_low for s in found}) != 1:
            return NotBinary(f"`{tensor.name}` joins {{-1, 1}} signs with {{0, 1}} ones")
        return found
    if node.op == "Pad":
        signs = trace(node.inputs[0], kept)
        if isinstance(signs, NotBinary):
            return signs
        value = pad_value(node)
        if value is None or value not in (1, signs[0].x_low):
            return NotBinary(f"`{tensor.name}` is padded with a value that is neither +1 nor {signs[0].x_low}")
        return signs
    return NotBinary(f"its input comes from {node.op} (`{tensor.name}`), not from a sign")


def never_negative(tensor: gs.Tensor) -> bool:
    """Whether the graph shows that no element can be below 0."""
    values = constant_value(tensor)
    if values is not None:
        return bool(np.issubdtype(values.dtype, np.floating) and np.all(values >= 0))
    node = producer(tensor)
    if node is None or node.domain:
        return False
    if node.op in NEVER_NEGATIVE:
        return True
    if node.op == "Clip":
        low = constant_value(node.inputs[1]) if len(node.inputs) > 1 else None
        return low is not None and bool(np.all(low >= 0))
    data = node.inputs if node.op in ("Concat", "Add", "Mul") else node.inputs[:1]
    return node.op in KEEPS_NON_NEGATIVE and all(never_negative(t) for t in data)


def pad_value(node: gs.Node) -> int | None:
    """What a constant-mode Pad fills with, where that is a known whole number and nothing is cropped."""
    if node.attrs.get("mode", "constant") != "constant":
        return None
    if len(node.inputs) > 3 and not node.inputs[3].is_empty():
        return None
    pads = constant_value(node.inputs[1])
    if pads is None or np.any(pads < 0):
        return None
    if len(node.inputs) < 3 or node.inputs[2].is_empty():
        return 0
    value = constant_value(node.inputs[2])
    if value is None or float(value.reshape(-1)[0]) not in (-1.0, 0.0, 1.0):
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
    node = producer(tensor)
    if node is None or node.domain:
        return None
    if node.op == "Not":
        inner = _match_comparison(node.inputs[0])
        return None if inner is None else (inner[0], inner[1], ~inner[2])
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
    return x, np.asarray(threshold), np.full(threshold.shape, not greater)
