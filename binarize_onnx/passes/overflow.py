"""Whether a tensor may hold an infinity that the file itself makes: a constant that is one, or factors too large.

    Relu(Mul(acc, -inf))      Relu(Mul(acc, -3e38))      Relu(Add(x, [-inf, 0]))

Magnitudes are multiplied and added along the way from run-time values. These are taken for numbers of ordinary size:
infinities that come in at run time are outside of what is promised.
"""

from __future__ import annotations

from math import inf, isnan

import numpy as np
import onnx_graphsurgeon as gs

from binarize_onnx import opset
from binarize_onnx.passes.base import Array, constant_value, producer
from binarize_onnx.passes.bounds import AVERAGES, MOVES, RANGES

ORDINARY = 2.0**40  # more than a sum of 2^24 levels of 6 bits, and its square and cube are float32 numbers

_LARGEST = float(np.finfo(np.float32).max)
_SAME_SIZE = MOVES | AVERAGES | {"Abs", "Gather", "Max", "Min", "Neg", "Pad", "Relu", "Slice", "Split", "Tile", "Where"}
_SMALL = frozenset({*RANGES, "Sign"})
_DEEPEST = 64


class Magnitudes:
    """How large the tensors of one graph can get; each is looked at once."""

    def __init__(self) -> None:
        self._known: dict[str, float] = {}

    def may_be_infinite(self, tensor: gs.Tensor) -> bool:
        """Whether constants make an element of the tensor infinite, or may, for run-time values of ordinary size."""
        return self._of(tensor, _DEEPEST) > _LARGEST

    def _of(self, tensor: gs.Tensor, depth: int) -> float:
        values = constant_value(tensor)
        if values is not None:
            return _largest(values)
        if tensor.name not in self._known:
            node = producer(tensor)
            size = self._step(node, depth - 1) if node is not None and depth else ORDINARY
            self._known[tensor.name] = inf if isnan(size) else size  # 0 / 0
        return self._known[tensor.name]

    def _step(self, node: gs.Node, depth: int) -> float:
        if node.domain == opset.IDEAL_DOMAIN:
            return ORDINARY  # whatever its threshold
        if node.op in _SMALL and not node.domain:
            return 1.0
        if node.op == "Clip" and not node.domain:
            limits = [constant_value(t) for t in node.inputs[1:]]
            ends = [inf if limit is None else _largest(limit) for limit in limits]
            return max(ends) if len(ends) == 2 and max(ends) <= ORDINARY else self._of(node.inputs[0], depth)
        given = [self._of(t, depth) for t in node.inputs if not t.is_empty()]
        largest = max(given, default=0.0)
        if largest > _LARGEST:
            return inf
        if not node.domain:
            match node.op:
                case "Add" | "Sub":
                    return sum(given)
                case "Mul":
                    return given[0] * given[1]
                case "Div":
                    divisor = constant_value(node.inputs[1])
                    return ORDINARY if divisor is None else given[0] * _largest_inverse(divisor)
                case "PRelu":
                    return given[0] * max(1.0, given[1])
                case "BatchNormalization":
                    return self._normalized(node, given[0])
                case op if op in _SAME_SIZE:
                    return largest
        # A layer, say. Its sums are of ordinary size as well, unless what it has for constants is not.
        constants = [constant_value(t) for t in node.inputs]
        return inf if any(c is not None and _largest(c) > ORDINARY for c in constants) else ORDINARY

    def _normalized(self, node: gs.Node, x: float) -> float:
        gamma, beta, mean, var = (constant_value(t) for t in node.inputs[1:5])
        if gamma is None or beta is None or mean is None or var is None:
            return ORDINARY
        with np.errstate(all="ignore"):
            deviation = np.sqrt(var.astype(np.float64) + float(node.attrs.get("epsilon", 1e-5)))
        scale = _largest(gamma) * _largest_inverse(deviation)
        return (x + _largest(mean)) * scale + _largest(beta)


def _largest(values: Array) -> float:
    """The largest magnitude, infinite if one is NaN; only float tensors have magnitudes."""
    if values.dtype.kind != "f" or not values.size:
        return 0.0
    largest = max(-float(values.min()), float(values.max()))
    return inf if isnan(largest) else largest


def _largest_inverse(values: Array) -> float:
    with np.errstate(all="ignore"):
        return _largest(1 / values.astype(np.float64))
