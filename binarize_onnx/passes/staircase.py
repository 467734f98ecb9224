"""Which tensors take only a few values, and where between: the one form behind every spelling of a sign.

A staircase is a function of one float tensor x that is constant between thresholds:

    value = values[number of thresholds that x reaches]

`Sign(x)` is one with the thresholds 0 and the next float above it and the values -1, 0, 1; `x >= c` is one with the
values False, True. Whatever elementwise operators make of a staircase, of constants and of other staircases of the same
x is a staircase again: the operators are evaluated on its values. So `Sign -> Add(0.1) -> Sign`, `Sign -> Equal(0) ->
Where`, `Cast(x >= 0) * 2 - 1`, `Round(Clip(x, 0, 1))` and all the rest need no rule of their own.

Straight-through estimators leave a residue that is 0 but for rounding: `Add(Sub(S, R), R)`. It counts as S.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from binarize_onnx import opset
from binarize_onnx.passes import elementwise
from binarize_onnx.passes.base import Array, constant_value, producer
from binarize_onnx.passes.bounds import bounds
from binarize_onnx.passes.overflow import Magnitudes
from binarize_onnx.thresholds import after, fold

LARGEST_CONSTANT = 1 << 20  # elements of a constant beside a staircase: one a channel, or a place
MOST_NODES = 8  # between a rounding and the Clip that gives it bounds
MOST_STEPS = 64  # thresholds of a staircase: a 6-bit activation
_DEEPEST = 64
_SOURCES, _CONE = 4, 256  # how far an estimator's argument is from the sign's, and how many tensors it has

# The residue of a straight-through estimator rounds at the size of R: up to here the sum keeps 20 bits of a unit sign.
RESIDUE_BOUND = 16.0
INTEGERS = frozenset({TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8})
ROUNDINGS = frozenset({"Cast", "Ceil", "Floor", "QuantizeLinear", "Round"})
FIRST_STEPS = ROUNDINGS | elementwise.COMPARISONS | {"Clip", "Sign"}  # what makes few values from many
UNIFORM = frozenset({"ConstantOfShape", "Expand", "Reshape"})  # where a tensor of one value begins
_PROBES = np.concatenate([np.linspace(-4, 4, 161), np.logspace(-6, 9, 151), -np.logspace(-6, 9, 151)])


@dataclass(frozen=True)
class Staircase:
    """A tensor with finitely many values, by what x reaches.

    Attributes:
        x: the float tensor that decides; `minus`, if there is one, is subtracted from it first.
        threshold: float32 [P, ...], ascending; everything behind the first axis broadcasts against x.
        values: [P + 1, ...] of the tensor's own type.
        rank: the highest among the constants: one above that of x would give the tensor more axes than x has.
        residue: the bound of R, where a residue was taken off; 0 where none was.
        expanded: whether tensors took part that may have more axes than x, or larger ones: constants of a run-time
            shape, residues.
    """

    x: gs.Tensor
    threshold: Array
    values: Array
    rank: int
    minus: gs.Tensor | None = None
    residue: float = 0.0
    expanded: bool = False


class Staircases:
    """Finds staircases in one graph.

    Args:
        types: element types of the graph's tensors, as ONNX numbers them.
        any_residue: take straight-through residues off that have no bound.
    """

    def __init__(self, types: Mapping[str, int], *, any_residue: bool = False) -> None:
        self._types = types
        self._any_residue = any_residue
        self._magnitudes = Magnitudes()

    def find(self, tensor: gs.Tensor) -> Staircase | None:
        """The staircase that the tensor is; None if it is none, or none that the graph shows."""
        found = self._find(tensor, _DEEPEST, {})
        return None if found is None else _simplified(found)

    def without_residue(self, tensor: gs.Tensor) -> gs.Tensor | None:
        """S, if the tensor is S but for a straight-through residue that may be taken off; else None."""
        node = producer(tensor)
        if node is None or node.domain:
            return None
        found = (kept for kept, r, cancels in _residues(node) if self._residue_size(r, None, cancels) is not None)
        return next(found, None)

    def _find(self, tensor: gs.Tensor, depth: int, known: dict[int, Staircase | None]) -> Staircase | None:
        if id(tensor) not in known:
            node = producer(tensor)
            known[id(tensor)] = None
            if node is not None and depth and tensor is node.outputs[0]:
                known[id(tensor)] = self._step(node, depth - 1, known)
        return known[id(tensor)]

    def _step(self, node: gs.Node, depth: int, known: dict[int, Staircase | None]) -> Staircase | None:
        if node.domain == opset.IDEAL_DOMAIN:
            return _ideal_step(node)
        if not elementwise.is_elementwise(node):
            return None
        for kept, residue, cancels in _residues(node):
            found = self._find(kept, depth, known)
            size = None if found is None else self._residue_size(residue, found.x, cancels)
            if found is not None and size is not None:
                larger = not _fits_into(residue, found.x)
                return replace(found, residue=max(found.residue, size), expanded=found.expanded or larger)
        if node.op not in FIRST_STEPS and any(_is_no_staircase(t) for t in elementwise.data_inputs(node)):
            return None  # a residual sum, say: what else it adds, however deep, decides nothing
        uniform = {id(t): value for t in node.inputs if (value := uniform_value(t)) is not None}
        data = [t for t in elementwise.data_inputs(node) if id(t) not in uniform]
        stairs = [self._find(t, depth, known) for t in data]
        if not any(stairs):
            return None if uniform or not data else self._first_step(node, data)
        if any(s is None for s in stairs):
            return None
        return _evaluated(node, {id(t): s for t, s in zip(data, stairs, strict=True) if s is not None}, uniform)

    def _first_step(self, node: gs.Node, data: list[gs.Tensor]) -> Staircase | None:
        """A node that makes few values from many: a sign, a comparison, a rounding of a bounded tensor."""
        if node.op in elementwise.COMPARISONS:
            return _comparison(node, data)
        if len(data) != 1 or data[0] is not node.inputs[0]:
            return None
        x = data[0]
        half = self._types.get(x.name) == TensorProto.FLOAT16
        if node.op == "Sign":
            return _sign(x, np.asarray([-1, 0, 1], np.float16 if half else np.float32))
        if node.op == "Cast" and int(node.attrs.get("to", 0)) == TensorProto.BOOL:
            return _sign(x, np.asarray([True, False, True]))
        if node.op in ROUNDINGS:
            return _rounding([node], x, half)
        return self._clipped_rounding(node) if node.op == "Clip" else None

    def _clipped_rounding(self, node: gs.Node) -> Staircase | None:
        """Clip(f(Round(x))), f made of factors and summands: few values, though those of Round(x) alone are many."""
        nodes = [node]
        while len(nodes) < MOST_NODES and (inner := producer(nodes[0].inputs[0])) is not None:
            data = elementwise.data_inputs(inner) if elementwise.is_elementwise(inner) else []
            constants = [t for t in inner.inputs if isinstance(t, gs.Constant)]
            if len(data) != 1 or data[0] is not inner.inputs[0] or any(prod(t.shape) != 1 for t in constants):
                return None
            nodes.insert(0, inner)
            if inner.op in ROUNDINGS:
                if inner.op in ("Cast", "QuantizeLinear") and len(nodes) > 2:
                    return None  # arithmetic with integers wraps
                return _rounding(nodes, data[0], self._types.get(data[0].name) == TensorProto.FLOAT16)
            if inner.op not in ("Add", "Sub", "Mul", "Div"):
                return None
        return None

    def _residue_size(self, residue: gs.Tensor, x: gs.Tensor | None, cancels: bool) -> float | None:
        """How large R gets, if that is small enough to be taken off; R - R is 0 unless R is infinite."""
        if cancels and not self._magnitudes.may_be_infinite(residue):
            return 0.0
        low, high = bounds(residue)
        size = max(-low, high)
        if not size <= RESIDUE_BOUND and x is not None:
            size = _probe(residue, x)
        return size if size <= RESIDUE_BOUND or self._any_residue else None


def _residues(node: gs.Node) -> Iterator[tuple[gs.Tensor, gs.Tensor, bool]]:
    """Every `(S, R, False)` for which the node is `(S - R) + R` or `(S + R) - R`, in any order of summands.

    `(S, R, True)` for `S + (R - R)`, which rounds nothing.
    """
    if node.op not in ("Add", "Sub") or len(node.inputs) != 2:
        return
    left, right = node.inputs
    for outer, other in ((left, right), (right, left))[: 2 if node.op == "Add" else 1]:
        inner = producer(outer)
        if inner is None or inner.domain or len(inner.inputs) != 2:
            continue
        a, b = inner.inputs
        if node.op == "Add" and inner.op == "Sub":
            if _same(a, b):
                yield other, a, True
            elif _same(b, other):
                yield a, b, False
        elif node.op == "Sub" and inner.op == "Add":
            yield from ((s, r, False) for s, r in ((a, b), (b, a)) if _same(r, other))


def _fits_into(tensor: gs.Tensor, x: gs.Tensor) -> bool:
    """Whether an elementwise function of x, or of what x is made from, has no axis that x has not."""
    sources = [x]
    while len(sources) < _SOURCES:
        node = producer(sources[-1])
        data = elementwise.data_inputs(node) if node is not None and elementwise.is_elementwise(node) else []
        if len(data) != 1:
            break
        sources += data
    waiting, seen = [tensor], {id(source) for source in sources}
    while waiting:
        t = waiting.pop()
        node = producer(t)
        if id(t) in seen or t.is_empty() or (isinstance(t, gs.Constant) and prod(t.shape) == 1 and len(t.shape) < 2):
            continue
        if node is None or not elementwise.is_elementwise(node) or len(seen) > _CONE:
            return False
        seen.add(id(t))
        waiting += node.inputs
    return True


def _probe(tensor: gs.Tensor, x: gs.Tensor) -> float:
    """The largest magnitude of an elementwise function of x, or of what x is made from, over a wide range of it.

    Estimators are piecewise polynomials (Bi-Real's three stages) whose bound interval arithmetic cannot see.
    """
    for _ in range(_SOURCES):
        shape = (-1,) + (1,) * 6
        found = elementwise.sample(tensor, {id(x): _PROBES.astype(np.float32).reshape(shape)})
        if found is not None:
            return float(np.max(np.abs(found))) if found.size and np.all(np.isfinite(found)) else float("inf")
        node = producer(x)
        data = elementwise.data_inputs(node) if node is not None and elementwise.is_elementwise(node) else []
        if len(data) != 1:
            break
        x = data[0]
    return float("inf")


def _same(a: gs.Tensor, b: gs.Tensor, depth: int = 16) -> bool:
    """Whether two tensors are one, or are computed in the same way: exporters copy what the source names once."""
    if a is b:
        return True
    left, right = constant_value(a), constant_value(b)
    if left is not None or right is not None:
        return left is not None and right is not None and left.dtype == right.dtype and np.array_equal(left, right)
    one, two = producer(a), producer(b)
    if one is None or two is None or not depth or not elementwise.is_elementwise(one):
        return False
    alike = (one.op, one.domain, one.attrs, len(one.inputs)) == (two.op, two.domain, two.attrs, len(two.inputs))
    if not alike or a is not one.outputs[0] or b is not two.outputs[0]:
        return False
    return all(_same(i, j, depth - 1) for i, j in zip(one.inputs, two.inputs, strict=True))


def _ideal_step(node: gs.Node) -> Staircase | None:
    """The BinarySign of the ideal graph, with constant thresholds."""
    if node.op != "BinarySign":
        return None
    threshold, flip = constant_value(node.inputs[1]), constant_value(node.inputs[2])
    if threshold is None or threshold.dtype != np.float32 or flip is None or flip.dtype != np.bool_:
        return None
    rank = max(threshold.ndim, flip.ndim)
    steps = np.asarray([[int(node.attrs["x_low"]), 1], [1, int(node.attrs["x_low"])]], np.float32)
    values = np.moveaxis(steps[flip.astype(int)], -1, 0)
    return Staircase(node.inputs[0], threshold[None], values, rank)


def _sign(x: gs.Tensor, values: Array) -> Staircase:
    """Below 0, at 0, above 0."""
    zero = np.zeros((), np.float32)
    return _narrowed(Staircase(x, np.stack([zero, after(zero)]), values, 0))


def _reached(x: gs.Tensor, threshold: Array, if_reached: bool) -> Staircase:
    values = np.asarray([not if_reached, if_reached]).reshape(2, *(1,) * threshold.ndim)
    return _narrowed(Staircase(x, threshold[None], values, threshold.ndim))


def _comparison(node: gs.Node, data: list[gs.Tensor]) -> Staircase | None:
    """x compared with a finite constant, or with another tensor; x > c is x >= the next float after c."""
    left, right = node.inputs
    if len(data) == 2 and node.op != "Equal":
        zero = np.zeros((), np.float32)
        greater, bound = node.op.startswith("Greater"), zero if node.op in ("GreaterOrEqual", "Less") else after(zero)
        values = np.asarray([not greater, greater])
        return Staircase(left, np.asarray(bound)[None], values, 0, minus=right)
    if len(data) != 1:
        return None
    x, c = (left, constant_value(right)) if data[0] is left else (right, constant_value(left))
    if c is None or c.dtype not in (np.float32, np.float16) or not c.size or not np.all(np.isfinite(c)):
        return None
    c = c.astype(np.float32)
    if node.op == "Equal":
        values = np.asarray([False, True, False]).reshape(3, *(1,) * c.ndim)
        return Staircase(x, np.stack([c, after(c)]), values, c.ndim)
    greater = node.op.startswith("Greater") == (x is left)
    # x >= c and x < c share the threshold c; x > c and x <= c share the next float above.
    at_bound = node.op.endswith("OrEqual") == greater
    return _reached(x, c if at_bound else np.asarray(after(c)), greater)


def _rounding(nodes: list[gs.Node], x: gs.Tensor, half: bool) -> Staircase | None:
    """A monotone function of x with few results, each step found by bisection.

    Args:
        nodes: a rounding, and what is behind it up to a Clip if x itself has no bounds.
        x: what is rounded.
        half: whether x is float16.
    """
    largest = float(np.finfo(np.float16 if half else np.float32).max)
    low, high = (float(np.clip(end, -largest, largest)) for end in bounds(x))
    if nodes[0].op == "Cast" and int(nodes[0].attrs.get("to", 0)) not in INTEGERS:
        return None

    def value(v: float) -> Array | None:
        result: Array | None = np.asarray(np.clip(np.float32(v), np.float32(low), np.float32(high)))
        for node in nodes:
            constants = [None if t.is_empty() else constant_value(t) for t in node.inputs[1:]]
            result = None if result is None else elementwise.apply(node, [result, *constants])
        return None if result is None or result.size != 1 or not np.all(np.isfinite(result)) else result.reshape(())

    first, last = value(low), value(high)
    if first is None or last is None or first.dtype != last.dtype:
        return None
    rise = float(last) - float(first)
    if rise == 0 or (len(nodes) == 1 and abs(rise) > MOST_STEPS):  # of whole numbers, it has more steps than that
        return None
    values, thresholds = [first], list[float]()
    while values[-1] != last:

        def is_past(v: Array, reached: float = float(values[-1])) -> Array:
            results = [value(float(x)) for x in v]
            return np.asarray([r is not None and (float(r) - reached) * rise > 0 for r in results], np.float32)

        threshold, _ = fold(is_past, np.ones(1, np.float32), np.zeros(1, np.bool_))
        step = value(float(threshold[0]))
        if step is None or len(thresholds) == MOST_STEPS:
            return None
        thresholds.append(float(threshold[0]))
        values.append(step)
    kind = np.float16 if half and first.dtype == np.float32 else first.dtype
    rank = max((len(t.shape) for node in nodes for t in node.inputs if isinstance(t, gs.Constant)), default=0)
    steps = np.asarray(values).astype(kind).reshape(-1, *(1,) * rank)
    return Staircase(x, np.asarray(thresholds, np.float32).reshape(-1, *(1,) * rank), steps, rank)


def uniform_value(tensor: gs.Tensor, depth: int = 8) -> Array | None:
    """The one value of a tensor that is a constant but for its shape: `ones_like`, and what is computed from it."""
    node = producer(tensor)
    if node is None or node.domain or not depth:
        return None
    if node.op in ("Expand", "Reshape"):
        value = constant_value(node.inputs[0])
        if value is None:
            return uniform_value(node.inputs[0], depth - 1)
        return value.reshape(()) if value.size == 1 else None
    if node.op == "ConstantOfShape":
        given = node.attrs.get("value")
        value = np.zeros(1, np.float32) if given is None else np.asarray(getattr(given, "values", given))
        return value.reshape(()) if value.size == 1 else None
    if not elementwise.is_elementwise(node):
        return None
    operands: list[Array | None] = []
    for t in node.inputs:
        value = constant_value(t) if isinstance(t, gs.Constant) else uniform_value(t, depth - 1)
        if not t.is_empty() and (value is None or value.size != 1):
            return None
        operands.append(None if t.is_empty() else value)
    found = elementwise.apply(node, operands)
    return None if found is None else found.reshape(())


def _is_no_staircase(tensor: gs.Tensor) -> bool:
    """Whether one look at what makes the tensor shows that it is neither a staircase nor uniform."""
    node = producer(tensor)
    if node is None or node.domain:
        return node is None or node.domain != opset.IDEAL_DOMAIN
    return node.op not in UNIFORM and not elementwise.is_elementwise(node)


def _narrowed(stairs: Staircase) -> Staircase:
    """Without the thresholds that x always reaches: the Sign of a tensor that is never negative has no -1."""
    if stairs.threshold.size != len(stairs.threshold):
        return stairs
    low, _ = bounds(stairs.x)
    always = int(np.count_nonzero(stairs.threshold.reshape(-1) <= low))
    return replace(stairs, threshold=stairs.threshold[always:], values=stairs.values[always:])


def _evaluated(node: gs.Node, stairs: dict[int, Staircase], uniform: dict[int, Array]) -> Staircase | None:
    """The node computed on the values of its staircases, which must be of one x."""
    first = next(iter(stairs.values()))
    if any(s.x is not first.x or s.minus is not first.minus for s in stairs.values()):
        return None
    constants = [constant_value(t) for t in node.inputs if isinstance(t, gs.Constant)]
    rank = max([s.rank for s in stairs.values()] + [c.ndim for c in constants if c is not None])
    threshold = _merged([_widened(s.threshold, rank) for s in stairs.values()])
    if threshold is None or any(c is None or not 0 < c.size <= LARGEST_CONSTANT for c in constants):
        return None
    operands: list[Array | None] = []
    for t in node.inputs:
        if t.is_empty():
            operands.append(None)
        elif id(t) in uniform:
            operands.append(_widened(uniform[id(t)][None], rank))
        elif id(t) in stairs:
            s = stairs[id(t)]
            operands.append(_reindexed(_widened(s.threshold, rank), _widened(s.values, rank), threshold))
        else:
            c = constant_value(t)
            assert c is not None
            operands.append(_widened(c[None], rank))
    values = elementwise.apply(node, operands)
    if values is None or values.shape[:1] != (len(threshold) + 1,):
        return None
    residue = max(s.residue for s in stairs.values())
    expanded = bool(uniform) or any(s.expanded for s in stairs.values())
    return Staircase(first.x, threshold, values, rank, first.minus, residue, expanded)


def _widened(steps: Array, rank: int) -> Array:
    """[P, ...] with axes of 1 behind the first, so that `rank` axes follow it."""
    return steps.reshape(steps.shape[:1] + (1,) * (rank - steps.ndim + 1) + steps.shape[1:])


def _merged(thresholds: list[Array]) -> Array | None:
    """All thresholds in ascending order."""
    if all(t is thresholds[0] or np.array_equal(t, thresholds[0]) for t in thresholds):
        return thresholds[0]
    try:
        shape = np.broadcast_shapes(*(t.shape[1:] for t in thresholds))
    except ValueError:
        return None
    full = np.sort(np.concatenate([np.broadcast_to(t, t.shape[:1] + shape) for t in thresholds]), axis=0)
    if len(full) > 1 and full[0].size == 1:
        full = np.unique(full, axis=0)
    return full if len(full) < MOST_STEPS else None


def _reindexed(threshold: Array, values: Array, merged: Array) -> Array:
    """The values between the merged thresholds of a staircase with some of them."""
    if threshold is merged:
        return values
    edges = np.concatenate([np.full((1, *merged.shape[1:]), -np.inf, np.float32), merged])  # where each step begins
    reached = np.sum(threshold[:, None] <= edges[None], axis=0)
    reached, full = np.broadcast_arrays(reached, np.broadcast_to(values[:1], reached.shape[:1] + values.shape[1:]))
    every = np.broadcast_to(values, values.shape[:1] + full.shape[1:])
    return np.take_along_axis(every, reached, axis=0)


def _simplified(stairs: Staircase) -> Staircase:
    """Without steps that change no value, where the same ones do nothing for every element."""
    values = stairs.values
    kept = [i for i in range(len(stairs.threshold)) if np.any(values[i] != values[i + 1])]
    return replace(stairs, threshold=stairs.threshold[kept], values=stairs.values[[0, *(i + 1 for i in kept)]])
