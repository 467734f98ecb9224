"""Did the samples show both values of every sign? A channel that was constant was hardly tested.

Counted for every sign of the ideal graph and every channel of it. A channel that never changed may not be able to: a
binary layer of n terms gives -n to n, and where the steps behind it map all of that to one side of the threshold, the
bit is constant on any data. Such a channel is reported as proved.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto

from binarize_onnx.verify.arrays import Array
from binarize_onnx.verify.graphs import (
    are_binary,
    constants,
    is_layer,
    is_sign,
    is_standard,
    layer_weights,
    reads,
    writers,
)
from binarize_onnx.verify.results import SignCoverage

Bool = npt.NDArray[np.bool_]

# Ops behind a sign that keep its channels where they are, and those that do not.
_CARRIERS = frozenset({"MaxPool", "Pad", "Concat", "Identity", "Cast", "Mul"})
_RESHAPERS = frozenset({"Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze"})


class Coverage:
    """Which values occurred at every channel of every sign.

    Attributes:
        signs: the outputs that `count` needs, in topological order.
    """

    def __init__(self, ideal: onnx.ModelProto) -> None:
        self._nodes = writers(ideal)
        self._constants = constants(ideal)
        self.signs = [name for name, node in self._nodes.items() if is_sign(node)]
        self._axes = {name: _channel_axis(name, ideal) for name in self.signs}
        self._low: dict[str, Bool] = {}
        self._high: dict[str, Bool] = {}

    def count(self, values: Mapping[str, Array]) -> None:
        """One batch of the signs' values."""
        for name in self.signs:
            low, high = self.seen(name, values[name])
            self._low[name] = self._low[name] | low if name in self._low else low
            self._high[name] = self._high[name] | high if name in self._high else high

    def seen(self, name: str, values: Array) -> tuple[Bool, Bool]:
        """Channels at which the lowest, and at which the highest value of a sign occurs; a Level has more than two."""
        lowest, highest = self._ends(self._nodes[name])
        channels = self.by_channel(name, values)
        return (channels == lowest).any(axis=1), (channels == highest).any(axis=1)

    def by_channel(self, name: str, values: Array) -> Array:
        """Values of a sign, or of what it reads, as [channels, rest]."""
        if values.ndim == 0:
            return values.reshape(1, 1)
        axis = self._axes[name] if values.ndim > 1 else 0
        return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)

    def rows(self) -> list[SignCoverage]:
        """What was found, a row a sign."""
        found = []
        for name in self.signs:
            if name not in self._low:
                continue
            low, high = self._low[name], self._high[name]
            never = np.flatnonzero(~(low & high))
            constant = self.proved(name, low.size) if never.size else np.zeros(low.size, np.bool_)
            found.append(
                SignCoverage(
                    name,
                    channels=int(low.size),
                    both=int(low.size - never.size),
                    never=[int(c) for c in never if not constant[c]],
                    proved=[int(c) for c in never if constant[c]],
                )
            )
        return found

    def proved(self, name: str, channels: int) -> Bool:
        """Channels that are constant on any data."""
        node = self._nodes[name]
        threshold = self._constants.get(node.input[1])
        nothing = np.zeros(channels, np.bool_)
        if node.op_type != "BinarySign" or threshold is None:
            return nothing
        low, high = self._range(node.input[0])
        with np.errstate(invalid="ignore"):
            constant = np.asarray((low >= threshold) | (high < threshold))
        while constant.ndim and constant.shape[0] == 1 and constant.size != 1:
            constant = constant[0]
        if constant.size == 1:
            return nothing | constant.reshape(())
        return constant.reshape(-1) if constant.size == channels == max(constant.shape) else nothing

    def _ends(self, sign: NodeProto) -> tuple[int, int]:
        """The lowest and the highest value of a sign."""
        if sign.op_type == "Level":
            return 0, len(self._constants.get(sign.input[1], np.zeros(1)))
        return next((int(a.i) for a in sign.attribute if a.name == "x_low"), 0), 1

    def _range(self, name: str) -> tuple[Array, Array]:
        """The smallest and the largest value that a tensor can have, for each channel; infinite if nothing is known.

        Behind a binary layer every step is rounded, as it is in the graph, and rounding keeps the order.
        """
        unknown = np.asarray(-np.inf, np.float32), np.asarray(np.inf, np.float32)
        steps: list[NodeProto] = []
        node = self._nodes.get(name)
        while node is not None and not is_layer(node):
            data = [i for i in node.input if i and i not in self._constants]
            if (
                not is_standard(node)
                or node.op_type not in ("Mul", "Add", "PRelu", "Relu", "MaxPool")
                or len(data) != 1
            ):
                return unknown
            steps.append(node)
            node = self._nodes.get(data[0])
        found = self._dot_range(node)
        if found is None:
            return unknown
        low, high = found
        for step in reversed(steps):
            low, high = self._step_range(step, low, high)
        return low, high

    def _dot_range(self, layer: NodeProto | None) -> tuple[Array, Array] | None:
        """The range of a binary layer's dot products, [channels, 1, ...]; None if it is no binary layer."""
        weights = None if layer is None else layer_weights(layer, self._constants)
        if layer is None or weights is None or not are_binary(weights) or len(layer.input) > 2:
            return None
        data = layer.input[0]
        while data in self._nodes and self._nodes[data].op_type in _RESHAPERS | {"MaxPool"}:
            data = self._nodes[data].input[0]
        sign = self._nodes.get(data)
        if sign is None or not is_sign(sign) or layer.op_type == "Gemm":
            return None
        lowest, highest = self._ends(sign)
        plus, minus = (weights > 0).sum(axis=1), (weights < 0).sum(axis=1)
        pads = min(lowest, 0)  # zeros around the image are no lower than 0
        low, high = plus * pads - minus * highest, plus * highest - minus * pads
        rank = 1 if layer.op_type == "MatMul" else self._constants[layer.input[1]].ndim - 1
        shape = (-1, *(1,) * (rank - 1))
        return low.astype(np.float32).reshape(shape), high.astype(np.float32).reshape(shape)

    def _step_range(self, step: NodeProto, low: Array, high: Array) -> tuple[Array, Array]:
        if step.op_type == "MaxPool":
            return low, high
        if step.op_type == "Relu":
            return np.maximum(low, 0), np.maximum(high, 0)
        (other,) = (self._constants[i] for i in step.input if i in self._constants)
        if step.op_type == "Add":
            return low + other, high + other
        if step.op_type == "Mul":
            ends = low * other, high * other
            return np.minimum(*ends), np.maximum(*ends)
        left, right = (np.where(x < 0, x * other, x) for x in (low, high))
        inside = np.where((low < 0) & (high > 0), np.float32(0), left)  # a negative slope turns at 0
        return np.minimum(np.minimum(left, right), inside), np.maximum(np.maximum(left, right), inside)


def _channel_axis(sign: str, ideal: onnx.ModelProto) -> int:
    """The axis of a sign that holds channels: the last if a matrix product reads it as it is, otherwise 1."""
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in ideal.graph.node:
        for name in reads(node):
            readers[name].append(node)
    waiting, seen = [sign], {sign}
    while waiting:
        for node in readers[waiting.pop()]:
            if is_layer(node):
                return -1 if node.op_type in ("MatMul", "Gemm") else 1
            if node.op_type in _CARRIERS:
                waiting += [name for name in node.output if name not in seen]
                seen.update(node.output)
    return 1
