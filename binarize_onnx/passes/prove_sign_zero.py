"""Find out where a three-valued Sign can never see 0, so that two values lose nothing.

    BinarySign(f(acc))      acc an integer dot product, f a chain of monotone steps with constants
    BinarySign(f(x))        x a tensor whose values are bounded (bounds.py), f the same

Every step is monotone in float32 for each element (Mul, Add, PRelu with slopes of at least 0, Clip, ...), so the
integers that f maps to exactly 0 are a range; bisection finds its ends. If none of them is a value that the accumulator
can take (its magnitude is bounded, its parity fixed unless zeros are padded, weights masked or inputs more than
two-valued), the source's Sign never saw a zero there. Of a bounded tensor, f of both bounds must lie on one side of 0.

What only moves values (MaxPool, Reshape, Transpose, ...) moves the constants behind it the other way; a Concat is
proved if all its parts are. Wherever "0" is said, the sign's own threshold is meant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from binarize_onnx.passes import elementwise
from binarize_onnx.passes.base import Array, Context, align, constant_value, producer
from binarize_onnx.passes.bounds import bounds
from binarize_onnx.passes.ideal import accumulator_bound, low_value
from binarize_onnx.passes.signs import match_sign

MOST_ELEMENTS = 1 << 22  # of the constants of a chain, taken together
_DEEPEST = 64  # tensors looked at for one sign: in a network that grows, every sign reads all parts before it
_LARGEST = float(np.finfo(np.float32).max)

# Rising, falling or constant in float32 whatever the constants are, as long as these are finite.
_MONOTONE = frozenset(
    {"Add", "Clip", "Div", "Identity", "LeakyRelu", "Max", "Min", "Mul", "Neg", "PRelu", "Relu", "Sub"}
)
_RESHAPES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class _Step:
    """One elementwise node: its constants in the places of its inputs, and the place of what it is computed on."""

    node: gs.Node
    operands: tuple[Array | None, ...]
    place: int


@dataclass(frozen=True)
class _Chain:
    """What becomes of a tensor on its way to the sign; the constants broadcast against the tensor.

    Attributes:
        steps: in the order of computation.
        target: the result at which the sign's source is neither of two values.
    """

    steps: tuple[_Step, ...]
    target: Array

    def __call__(self, x: Array) -> Array | None:
        """The sign's input for values of the tensor; None where a step is not settled."""
        value: Array | None = x
        for step in self.steps:
            operands = [*step.operands[: step.place], value, *step.operands[step.place + 1 :]]
            value = elementwise.apply(step.node, operands)
            if value is None or value.dtype != np.float32:
                return None
        return value

    def shape(self) -> tuple[int, ...] | None:
        """What all constants broadcast to; None if that is too much, or nothing."""
        arrays = [self.target, *(c for step in self.steps for c in step.operands if c is not None)]
        try:
            shape = np.broadcast_shapes(*(a.shape for a in arrays))
        except ValueError:
            return None
        return shape if prod(shape) <= MOST_ELEMENTS else None

    def moved(self, move: Callable[[Array], Array | None]) -> _Chain | None:
        """The chain on the other side of a node that moves values; single numbers fit on either side."""

        def apply(values: Array) -> Array:
            result = values.reshape(()) if values.size == 1 else move(values)
            if result is None:
                raise _Unknown
            return result

        try:
            steps = tuple(
                replace(s, operands=tuple(None if c is None else apply(c) for c in s.operands)) for s in self.steps
            )
            return _Chain(steps, apply(self.target))
        except _Unknown:
            return None


class _Unknown(Exception):
    """Constants that cannot be followed to the other side of a node."""


def zero_cannot_occur(sign: gs.Tensor, context: Context) -> bool:
    """Whether no sample can bring the input of this BinarySign exactly to its threshold."""
    match = match_sign(sign)
    if match is None:
        return False
    waiting = [(match.x, _Chain((), match.threshold))]
    for _ in range(_DEEPEST):
        if not waiting:
            return True
        tensor, chain = waiting.pop()
        above = _above(tensor, chain, context)
        if above is None and not _end_avoids(tensor, chain, context):
            return False
        waiting += (above or [])[::-1]  # the first part of a Concat first: where a float began it, that ends the search
    return False


def _above(tensor: gs.Tensor, chain: _Chain, context: Context) -> list[tuple[gs.Tensor, _Chain]] | None:
    """What must never reach the target for the tensor not to; None where the way ends."""
    node = producer(tensor)
    if node is None or node.domain or tensor is not node.outputs[0] or accumulator_bound(tensor, context) is not None:
        return None
    if node.op in _MONOTONE:
        step = _step(node)
        return None if step is None else [(node.inputs[step.place], replace(chain, steps=(step, *chain.steps)))]
    if node.op == "Abs" and not chain.steps and not np.any(chain.target):
        return [(node.inputs[0], chain)]
    if node.op == "Concat":
        return _parts(node, chain, context)
    move = _move(node, context)
    moved = None if move is None else chain.moved(move)
    return None if moved is None else [(node.inputs[0], moved)]


def _step(node: gs.Node) -> _Step | None:
    """The node as a monotone function of its one input that is no constant."""
    constants = [None if t.is_empty() else constant_value(t) for t in node.inputs]
    places = [i for i, t in enumerate(node.inputs) if not t.is_empty() and constants[i] is None]
    given = [c for c in constants if c is not None]
    if len(places) != 1 or any(c.dtype != np.float32 or np.any(np.isnan(c)) for c in given):
        return None
    if node.op != "Clip" and not all(np.all(np.isfinite(c)) for c in given):  # 0 * infinity lies between numbers
        return None
    slope = given[0] if node.op == "PRelu" and given else np.asarray(node.attrs.get("alpha", 0.01))
    first = places == [0]
    match node.op:
        case "Clip" if not first or any(c.size != 1 for c in given):
            return None
        case "Div" if not first or np.any(given[0] == 0):
            return None
        case "PRelu" | "LeakyRelu" if not first or not np.all(slope >= 0) or not np.all(np.isfinite(slope)):
            return None
    return _Step(node, tuple(constants), places[0])


def _parts(node: gs.Node, chain: _Chain, context: Context) -> list[tuple[gs.Tensor, _Chain]] | None:
    """Every part of a Concat with its own share of the constants."""
    shape = context.shape(node.outputs[0])
    if shape is None:
        return None
    axis = int(node.attrs["axis"]) % len(shape)
    sizes = [int(t.shape[axis]) if isinstance(t, gs.Constant) else context.known_dim(t, axis) for t in node.inputs]
    found, begin = [], 0
    for part, size in zip(node.inputs, sizes, strict=True):
        if size is None and _varies(chain, axis, len(shape)):
            return None
        end = begin + (size or 0)

        def share(values: Array, begin: int = begin, end: int = end) -> Array | None:
            if values.ndim > len(shape):
                return None
            aligned = align(values, len(shape))
            if aligned.shape[axis] == 1:
                return aligned
            return aligned.take(range(begin, end), axis) if aligned.shape[axis] == shape[axis] else None

        moved = chain.moved(share)
        if moved is None:
            return None
        found.append((part, moved))
        begin = end
    return found


def _varies(chain: _Chain, axis: int, rank: int) -> bool:
    """Whether the chain's constants differ along an axis of a tensor."""
    shape = chain.shape()
    return shape is None or len(shape) > rank or ((1,) * (rank - len(shape)) + shape)[axis] != 1


def _move(node: gs.Node, context: Context) -> Callable[[Array], Array | None] | None:
    """How constants behind a node that moves values look in front of it; None if it does anything else."""
    after, before = context.shape(node.outputs[0]), context.shape(node.inputs[0])

    def pooled(values: Array) -> Array | None:
        """A window picks one of its own channel's values, and makes none (MaxPool pads with the lowest)."""
        spatial = () if after is None or values.ndim > len(after) else align(values, len(after)).shape[2:]
        return values if spatial and all(d == 1 for d in spatial) else None

    def transposed(values: Array) -> Array | None:
        if after is None or values.ndim > len(after):
            return None
        order = node.attrs.get("perm", range(len(after))[::-1])
        return np.transpose(align(values, len(after)), np.argsort(order))

    def reshaped(values: Array) -> Array | None:
        """Constants that are the same for all samples, spread over a sample and cut anew."""
        fixed = all(None not in context.known.get(t.name, (None, None))[1:] for t in (node.outputs[0], node.inputs[0]))
        if after is None or before is None or not after or not before or not fixed or values.ndim > len(after):
            return None
        aligned, sample = align(values, len(after)), (1, *before[1:])
        fits = after[0] == before[0] and prod(after) == prod(before) and prod(sample) <= MOST_ELEMENTS
        if not fits or any(d not in (1, n) for d, n in zip(aligned.shape, (1, *after[1:]), strict=True)):
            return None
        return np.broadcast_to(aligned, (1, *after[1:])).reshape(sample)

    if node.op in ("MaxPool", "GlobalMaxPool"):
        return pooled
    if node.op == "Transpose":
        return transposed
    return reshaped if node.op in _RESHAPES else None


def _end_avoids(tensor: gs.Tensor, chain: _Chain, context: Context) -> bool:
    """Whether none of the tensor's own values becomes the target."""
    shape, node = chain.shape(), producer(tensor)
    bound = accumulator_bound(tensor, context)
    if shape is None or chain.target.dtype != np.float32:
        return False
    if bound is not None and node is not None:
        return _integers_avoid(chain, bound, _parity(node, context), shape)
    values = constant_value(tensor)
    if values is not None:
        results = chain(values)
        return results is not None and not np.any(results == chain.target)
    low, high = (np.float32(np.clip(end, -_LARGEST, _LARGEST)) for end in bounds(tensor))
    ends = [chain(np.full(shape, end)) for end in (low, high)]
    if ends[0] is None or ends[1] is None:
        return False
    above = (ends[0] > chain.target) & (ends[1] > chain.target)
    below = (ends[0] < chain.target) & (ends[1] < chain.target)
    return bool(np.all(above | below))


def _integers_avoid(chain: _Chain, bound: int, parity: int | None, shape: tuple[int, ...]) -> bool:
    """Whether no integer in [-bound, bound] of that parity (None: of either) becomes the target."""
    at_low, at_high = (chain(np.full(shape, end, np.float32)) for end in (-bound, bound))
    if (
        at_low is None or at_high is None or np.any(np.isnan(at_low) | np.isnan(at_high))
    ):  # NaN in between is NaN at an end
        return False
    sign = np.where(at_high >= at_low, 1, -1)  # run a falling chain backwards: then every element rises

    def least(above: bool) -> Array:
        """The first integer whose result is the target or more, or more than the target; bound + 1 if there is none."""
        low, high = np.full(shape, -bound - 1), np.full(shape, bound + 1)
        while np.any(high - low > 1):
            middle = (low + high) // 2
            result = chain((sign * middle).astype(np.float32))
            assert result is not None, "what is settled at the ends is settled between them"
            hit = result > chain.target if above else result >= chain.target
            low, high = np.where(hit, low, middle), np.where(hit, middle, high)
        return high

    first, last = least(above=False), least(above=True) - 1
    if parity is not None:
        first = first + (first % 2 != parity)
    return bool(np.all(first > last))


def _parity(layer: gs.Node, context: Context) -> int | None:
    """Whether the dot products are odd or even, if every one of them has as many ±1 terms as every other."""
    weights = constant_value(layer.inputs[1])
    if any(layer.attrs.get("pads", ())) or (weights is not None and np.any(weights == 0)):
        return None
    if any(low_value(t) != -1 for t in layer.inputs[: 1 if weights is not None else 2]):
        return None
    if layer.op == "ConvTranspose":  # each pixel of the output has one of the input behind it, or it is not so simple
        assert weights is not None
        apart = list(layer.attrs["strides"]) == list(weights.shape[2:]) and not any(layer.attrs["output_padding"])
        return int(weights.shape[0]) % 2 if apart else None
    length = accumulator_bound(layer.outputs[0], context)
    return None if length is None else length % 2
