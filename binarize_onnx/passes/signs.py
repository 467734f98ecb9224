"""What is binary: the signs and levels that staircases are, and how a layer's input is traced back to them.

    Sign     two values -s and s, or 0 and s          BinarySign, s behind the layer
    Level    0, s, 2s, ..., P s                       a multi-bit activation: Level, s behind the layer
    either, all values moved by an offset             the offset times the sum of the weights behind the layer as well

A three-valued `Sign` is a staircase whose middle step is one float wide: it counts as two-valued, and the report says
what becomes of 0 there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_graphsurgeon as gs

from binarize_onnx import opset
from binarize_onnx.checks import shown
from binarize_onnx.passes.base import Array, constant_value, producer, split_operands
from binarize_onnx.passes.staircase import Staircase, Staircases
from binarize_onnx.reasons import Code
from binarize_onnx.thresholds import after

# What a binary tensor may pass through on its way from the sign to the layer and stay binary.
CARRIERS = frozenset(
    {"Expand", "Flatten", "Gather", "MaxPool", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)

DEEPEST = 200  # Concat and Pad nodes between a sign and a layer
HIGHEST_RANK = 64
MOST_LEVELS = 63  # thresholds of a multi-bit activation: 6 bits

# Distance of values, relative to the largest, up to which they count as one: the rounding of a quotient.
SAME_VALUE = 2.0**-23


@dataclass(frozen=True)
class Sign:
    """A two-valued activation: bit = (x >= threshold) ^ flip; `offset` plus scale if set, x_low * scale if clear.

    `minus`, if there is one, is subtracted from x first. `zero_differs`, which broadcasts to the threshold, tells where
    the source is three-valued: its own output at x = threshold is not what the bit stands for. `rank` is the highest
    among the form's constants: one above that of x would give the output more axes than x has. `residue` is the bound
    of a straight-through residue that was taken off.
    """

    output: gs.Tensor
    x: gs.Tensor
    threshold: Array
    flip: Array
    x_low: int
    scale: float = 1.0
    offset: float = 0.0
    zero_differs: Array = field(default_factory=lambda: np.zeros((), np.bool_))
    rank: int = 0
    minus: gs.Tensor | None = None
    residue: float = 0.0


@dataclass(frozen=True)
class Level:
    """A multi-bit activation: `offset` and `scale` times the number of thresholds (leading axis) that x reaches."""

    output: gs.Tensor
    x: gs.Tensor
    threshold: Array
    scale: float = 1.0
    offset: float = 0.0
    rank: int = 0
    residue: float = 0.0
    minus: None = None
    x_low: int = 0


@dataclass(frozen=True)
class NotBinary:
    """Why a tensor is not binary: the code, and the end of a sentence about the layer that reads it."""

    code: Code
    words: str


@dataclass(frozen=True)
class Traced:
    """What a layer's input is made of.

    Attributes:
        found: the signs that every element comes from, or the one level; all share `x_low`.
        scale: what a set bit stands for here, less the offset: the scale of the signs times the factors behind them.
        offset: what every element has on top.
    """

    found: tuple[Sign | Level, ...]
    scale: float
    offset: float

    @property
    def x_low(self) -> int:
        """What a clear bit stands for, in units of the scale."""
        return self.found[0].x_low

    @property
    def levels(self) -> int:
        """The largest value, in units of the scale."""
        return max(len(f.threshold) if isinstance(f, Level) else 1 for f in self.found)


def match_sign(tensor: gs.Tensor) -> Sign | None:
    """The BinarySign of the ideal graph, with constant thresholds, whose output this tensor is."""
    node = producer(tensor)
    if node is None or node.domain != opset.IDEAL_DOMAIN or node.op != "BinarySign":
        return None
    threshold, flip = constant_value(node.inputs[1]), constant_value(node.inputs[2])
    if threshold is None or flip is None or threshold.dtype != np.float32 or flip.dtype != np.bool_:
        return None
    rank = max(threshold.ndim, flip.ndim)
    return Sign(tensor, node.inputs[0], threshold, flip, int(node.attrs["x_low"]), rank=rank)


def match_level(tensor: gs.Tensor) -> Level | None:
    """The Level of the ideal graph, with constant thresholds, whose output this tensor is."""
    node = producer(tensor)
    if node is None or node.domain != opset.IDEAL_DOMAIN or node.op != "Level":
        return None
    threshold = constant_value(node.inputs[1])
    return None if threshold is None else Level(tensor, node.inputs[0], threshold, rank=threshold.ndim - 1)


@dataclass
class Tracer:
    """Traces tensors back to their signs, through ops that keep them binary.

    Attributes:
        staircases: finds the signs.
        kept: names of three-valued signs that are to stay as they are.
    """

    staircases: Staircases
    kept: frozenset[str] = frozenset()
    _known: dict[int, Traced | NotBinary] = field(default_factory=dict)

    def trace(self, tensor: gs.Tensor) -> Traced | NotBinary:
        """The signs that a tensor's every element comes from; all share their values, and Pads fill with one of them.

        Every sign is found once, and every tensor traced once.
        """
        self._known.clear()  # the graph may have changed since
        return self._trace(tensor, 0)

    def _trace(self, tensor: gs.Tensor, depth: int) -> Traced | NotBinary:
        while (node := producer(tensor)) is not None and node.op in CARRIERS and not node.domain:
            tensor = node.inputs[0]
        if id(tensor) not in self._known:
            self._known[id(tensor)] = self._step(tensor, depth)
        return self._known[id(tensor)]

    def _step(self, tensor: gs.Tensor, depth: int) -> Traced | NotBinary:
        """`trace` for a tensor that no carrier writes."""
        node = producer(tensor)
        if node is None:
            return NotBinary(Code.INPUT_NOT_SIGN, f"its input `{tensor.name}` is real-valued: there is no sign on it")
        if not node.domain and node.op in ("Concat", "Pad"):
            if depth >= DEEPEST:
                words = f"`{tensor.name}` is behind more than {DEEPEST} Concat and Pad nodes"
                return NotBinary(Code.INPUT_NOT_SIGN, words)
            return self._joined(tensor, node, depth) if node.op == "Concat" else self._padded(tensor, node, depth)
        scaled = scaler(node)
        if scaled is not None and not isinstance(inner := self._trace(scaled[0], depth + 1), NotBinary):
            return replace(inner, scale=inner.scale * scaled[1], offset=inner.offset * scaled[1])
        found: Sign | Level | NotBinary | None = match_level(tensor)
        if found is None:
            stairs = self.staircases.find(tensor)
            words = f"its input comes from {shown(node)} (`{tensor.name}`), not from a sign"
            found = classify(stairs, tensor) if stairs is not None else NotBinary(Code.INPUT_NOT_SIGN, words)
        if isinstance(found, NotBinary):
            return found
        if tensor.name in self.kept:
            words = f"sign `{tensor.name}` is kept three-valued: 0 can reach it, and a bit has no zero"
            return NotBinary(Code.SIGN_ZERO, words)
        return Traced((found,), found.scale, found.offset)

    def _joined(self, tensor: gs.Tensor, node: gs.Node, depth: int) -> Traced | NotBinary:
        parts: list[Traced] = []
        for part in node.inputs:
            traced = self._trace(part, depth + 1)
            if isinstance(traced, NotBinary):
                return traced
            parts.append(traced)
        every = tuple({id(f.output): f for traced in parts for f in traced.found}.values())
        if any(isinstance(f, Level) for f in every):
            return NotBinary(Code.MIXED_SIGNS, f"`{tensor.name}` joins activations of several bits")
        if len({f.x_low for f in every}) != 1:
            return NotBinary(Code.MIXED_SIGNS, f"`{tensor.name}` joins {{-1, 1}} signs with {{0, 1}} ones")
        if not _one_value([t.scale for t in parts]) or not _one_value([t.offset for t in parts]):
            return NotBinary(Code.MIXED_SIGNS, f"`{tensor.name}` joins signs of different scales")
        return replace(parts[0], found=every)

    def _padded(self, tensor: gs.Tensor, node: gs.Node, depth: int) -> Traced | NotBinary:
        traced = self._trace(node.inputs[0], depth + 1)
        if isinstance(traced, NotBinary):
            return traced
        if node.attrs.get("mode", "constant") != "constant" and not isinstance(traced.found[0], Level):
            return traced  # copies of what is there
        filled = padding(node)
        low, high = (traced.offset + bit * traced.scale for bit in (traced.x_low, 1))
        if (
            filled is None
            or isinstance(traced.found[0], Level)
            or not any(_one_value([filled, v]) for v in (low, high))
        ):
            words = f"`{tensor.name}` is padded with a value that is neither {_number(high)} nor {_number(low)}"
            return NotBinary(Code.PAD_VALUE, words)
        return traced


def scaler(node: gs.Node) -> tuple[gs.Tensor, float] | None:
    """`(x, c)` of a node that is x times one positive number, x from a carrier: elsewhere it is part of a staircase."""
    if node.domain or node.op not in ("Mul", "Div") or len(node.inputs) != 2:
        return None
    operands = split_operands(node)
    if operands is None or operands[1].size != 1 or (node.op == "Div" and operands[0] is not node.inputs[0]):
        return None
    x, c = operands[0], float(operands[1].reshape(-1)[0])
    carrier = producer(x)
    if carrier is None or carrier.domain or not (carrier.op in CARRIERS or carrier.op in ("Concat", "Pad")):
        return None
    factor = c if node.op == "Mul" else 1 / c if c else 0.0
    return (x, float(np.float32(factor))) if 0 < factor < float("inf") and operands[1].ndim <= 1 else None


def classify(stairs: Staircase, output: gs.Tensor) -> Sign | Level | NotBinary:
    """What a staircase is for a layer that reads it."""
    values = stairs.values.astype(np.float64)
    if not np.all(np.isfinite(values)):
        return NotBinary(Code.ACTIVATION_VALUES, f"`{output.name}` has values that are no numbers")
    if len(stairs.threshold) > 1 and not _is_point(stairs):
        return _level(stairs, values, output)
    low, high = values[0], values[-1]
    top, bottom = float(max(low.max(), high.max())), float(min(low.min(), high.min()))
    spread = SAME_VALUE * max(abs(top), abs(bottom))
    ends = np.stack(np.broadcast_arrays(low, high))
    near_top, near_bottom = np.abs(ends - top) <= spread, np.abs(ends - bottom) <= spread
    if bottom == top == 0:
        return NotBinary(Code.ACTIVATION_VALUES, f"`{output.name}` is 0 everywhere")
    if bottom == top:  # x decides nothing: `Relu(x) >= 0`
        always, flip = np.full(low.shape, -np.inf, np.float32), np.full(low.shape, top < 0)
        scale = abs(float(np.float32(top)))
        return Sign(output, stairs.x, always, flip, x_low=-1, scale=scale, rank=_rank(stairs), minus=stairs.minus)
    if not np.all(near_top | near_bottom):
        return NotBinary(Code.ACTIVATION_VALUES, f"the values of `{output.name}` differ from channel to channel")
    if abs(bottom + top) <= spread:
        x_low, scale, offset = -1, top, 0.0
    else:
        x_low, scale, offset = 0, top - bottom, bottom if abs(bottom) > spread else 0.0
    low_is_top, high_is_top = near_top
    first = stairs.threshold[0] if len(stairs.threshold) else np.full((), -np.inf, np.float32)  # x decides nothing
    middle = values[min(1, len(values) - 1)]
    zero_differs = np.abs(middle - high) > spread
    if len(stairs.threshold) > 1:  # where the point in the middle has the lower value, the bit is set behind it
        is_low = zero_differs & (np.abs(middle - low) <= spread)
        first, zero_differs = np.where(is_low, stairs.threshold[1], first), zero_differs & ~is_low
    threshold = np.broadcast_to(first, np.broadcast_shapes(first.shape, low_is_top.shape))
    constant = low_is_top == high_is_top
    return Sign(
        output,
        stairs.x,
        _compact(np.where(constant, np.float32(-np.inf), threshold).astype(np.float32)),
        _compact(np.broadcast_to(~high_is_top, threshold.shape)),
        x_low=x_low,
        scale=float(np.float32(scale)),
        offset=float(np.float32(offset)),
        zero_differs=zero_differs,
        rank=_rank(stairs),
        minus=stairs.minus,
        residue=stairs.residue,
    )


def _compact(values: Array) -> Array:
    """The same numbers to broadcast, along no axis that they are constant along: `ones_like` has every axis of x."""
    for axis in range(values.ndim):
        first = values.take([0], axis)
        if values.shape[axis] > 1 and np.array_equal(values, np.broadcast_to(first, values.shape)):
            values = first
    return values


def _rank(stairs: Staircase) -> int:
    """The rank of the constants; as high as it gets where they may have larger axes than x."""
    larger = any(d != 1 for steps in (stairs.threshold, stairs.values) for d in steps.shape[1:])
    return HIGHEST_RANK if stairs.expanded or larger else stairs.rank


def _is_point(stairs: Staircase) -> bool:
    """Whether there are three steps of which the middle one is a single float wide, its value between the others."""
    if len(stairs.threshold) != 2 or not np.array_equal(stairs.threshold[1], after(stairs.threshold[0])):
        return False
    low, middle, high = stairs.values.astype(np.float64)
    return bool(np.all((np.minimum(low, high) <= middle) & (middle <= np.maximum(low, high))))


def _level(stairs: Staircase, values: Array, output: gs.Tensor) -> Level | NotBinary:
    """Steps of one height, or of several at once, up from a first value."""
    rise = values - values[:1]
    top = float(rise.max())
    unit = _common_measure(rise, SAME_VALUE * top)
    steps = np.rint(rise / (unit or 1.0))
    count = int(steps.max())
    even = top > 0 and np.all(np.abs(rise - unit * steps) <= SAME_VALUE * top) and np.all(steps[-1] == count)
    if not even or np.any(np.diff(steps, axis=0) < 0) or stairs.minus is not None or not _one_value(values[0].flat):
        words = f"`{output.name}` has {len(values)} values that are not equal steps up from one"
        return NotBinary(Code.ACTIVATION_VALUES, words)
    if count > MOST_LEVELS:
        words = f"`{output.name}` has {count + 1} values; {MOST_LEVELS + 1} are the most"
        return NotBinary(Code.ACTIVATION_VALUES, words)
    # The j-th threshold is where j steps are reached first; a step that no x is on shares its threshold.
    shape = np.broadcast_shapes(stairs.threshold.shape[1:], steps.shape[1:])
    reached, full = (np.broadcast_to(a, a.shape[:1] + shape) for a in (steps, stairs.threshold))
    first = [np.argmax(reached >= j, axis=0)[None] - 1 for j in range(1, count + 1)]
    threshold = np.concatenate([np.take_along_axis(full, index, axis=0) for index in first])
    offset = float(np.float32(values[0].flat[0]))
    return Level(output, stairs.x, threshold, float(np.float32(top / count)), offset, _rank(stairs), stairs.residue)


def _common_measure(values: Array, rounding: float) -> float:
    """The largest number of which all values are multiples, up to rounding: Euclid's algorithm; 0 if all are 0."""
    found = 0.0
    for value in np.unique(values):
        rest = float(value)
        while rest > rounding:
            found, rest = (rest, found % rest) if found else (rest, 0.0)
            rest = 0.0 if found - rest <= rounding else rest
    return found


def _one_value(values: Iterable[float]) -> bool:
    values = np.asarray(list(values))
    return bool(np.all(np.isfinite(values))) and float(np.ptp(values)) <= SAME_VALUE * float(np.abs(values).max())


def _number(value: float) -> str:
    return f"{value:.6g}"


def padding(node: gs.Node) -> float | None:
    """What a constant-mode Pad fills with, where the file fixes that and nothing is cropped."""
    if node.attrs.get("mode", "constant") != "constant":
        return None
    if len(node.inputs) > 3 and not node.inputs[3].is_empty():
        return None
    pads = constant_value(node.inputs[1])
    if pads is None or pads.dtype != np.int64 or np.any(pads < 0):
        return None
    if len(node.inputs) < 3 or node.inputs[2].is_empty():
        return 0.0
    value = constant_value(node.inputs[2])
    return None if value is None or value.size != 1 else float(value.reshape(-1)[0])


def pad_value(node: gs.Node) -> int | None:
    """`padding` where it is -1, 0 or 1."""
    value = padding(node)
    return int(value) if value in (-1.0, 0.0, 1.0) else None
