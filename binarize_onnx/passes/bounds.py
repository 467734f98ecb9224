"""Between which two numbers a tensor's elements lie, as far as the graph shows: interval arithmetic in float32.

Every operator here is monotone and rounds correctly, so the ends of an interval are rounded as the elements are.
"""

from __future__ import annotations

from math import inf

import numpy as np
import onnx_graphsurgeon as gs

from binarize_onnx.passes.base import constant_value, producer

# What picks values, or moves them, and makes none.
MOVES = frozenset(
    {"Concat", "Expand", "Flatten", "GlobalMaxPool", "Identity", "MaxPool", "Reshape", "Squeeze", "Transpose"}
    | {"Unsqueeze"}
)
RANGES = {"Sigmoid": (0.0, 1.0), "HardSigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Tanh": (-1.0, 1.0)}
NEVER_NEGATIVE = frozenset({"Abs", "Exp", "Sqrt"})
AVERAGES = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean"})
ARITHMETIC = frozenset({"Add", "Div", "Mul", "Sub"})
BOUNDED = (
    MOVES | NEVER_NEGATIVE | AVERAGES | ARITHMETIC | {*RANGES, "Clip", "Max", "Min", "Neg", "Relu", "Sign", "Where"}
)
UNBOUNDED_BY_ONE = frozenset({"Add", "Concat", "Sub"})  # one operand without bounds, and the result has none

_DEEPEST = 64
_LOOK = 8  # steps: a normalization is two

Interval = tuple[float, float]
ANYTHING: Interval = (-inf, inf)


def bounds(tensor: gs.Tensor) -> Interval:
    """`(lowest, highest)` that any element can be; infinite where the graph does not tell."""
    return _bounds(tensor, _DEEPEST, {})


def _bounds(tensor: gs.Tensor, depth: int, known: dict[int, Interval]) -> Interval:
    if id(tensor) not in known:
        known[id(tensor)] = _step(tensor, depth, known) if depth else ANYTHING
    return known[id(tensor)]


def _step(tensor: gs.Tensor, depth: int, known: dict[int, Interval]) -> Interval:
    values, node = constant_value(tensor), producer(tensor)
    if values is not None:
        if values.dtype.kind not in "fiu" or not values.size or not np.all(np.isfinite(values)):
            return ANYTHING
        return float(values.min()), float(values.max())
    if node is None or node.domain or tensor is not node.outputs[0]:
        return ANYTHING
    if node.op in RANGES:
        return RANGES[node.op]
    if node.op in NEVER_NEGATIVE:
        return 0.0, inf
    if node.op not in BOUNDED or (node.op in UNBOUNDED_BY_ONE and any(_has_no_bounds(t) for t in node.inputs)):
        return ANYTHING  # what else a residual sum adds, however deep, changes nothing
    given = [_bounds(t, depth - 1, known) for t in node.inputs if not t.is_empty()]
    if not given:
        return ANYTHING
    low, high = given[0]
    match node.op:
        case "Relu":
            return max(low, 0.0), max(high, 0.0)
        case "Clip":
            least, most = (
                _bounds(t, depth - 1, known) if t is not None and not t.is_empty() else absent
                for t, absent in zip([*node.inputs[1:3], None, None], ((-inf, -inf), (inf, inf)), strict=False)
            )
            return min(max(low, least[0]), most[0]), min(max(high, least[1]), most[1])
        case "Concat":
            return min(g[0] for g in given), max(g[1] for g in given)
        case "Max":
            return max(g[0] for g in given), max(g[1] for g in given)
        case "Min":
            return min(g[0] for g in given), min(g[1] for g in given)
        case "Where":
            return min(g[0] for g in given[1:]), max(g[1] for g in given[1:])
        case "Neg":
            return -high, -low
        case "Sign":
            return float(np.sign(low)), float(np.sign(high))
        case op if op in ARITHMETIC and len(given) == 2:
            return _arithmetic(node.op, given[0], given[1])
        case op if op in MOVES or op in AVERAGES:
            # Averages round; what is not negative stays so, and so does what is not positive.
            return given[0] if op in MOVES else (0.0 if low >= 0 else -inf, 0.0 if high <= 0 else inf)
    return ANYTHING


def _has_no_bounds(tensor: gs.Tensor) -> bool:
    """Whether a look at what makes the tensor, less factors and summands, shows that it can be anything."""
    for _ in range(_LOOK):
        node = producer(tensor)
        if node is None:
            return not isinstance(tensor, gs.Constant) and not tensor.is_empty()
        if node.domain or node.op not in BOUNDED:
            return True
        data = [t for t in node.inputs if not isinstance(t, gs.Constant)]
        if node.op not in ARITHMETIC or len(data) != 1:
            return False
        tensor = data[0]
    return False


def _arithmetic(op: str, left: Interval, right: Interval) -> Interval:
    """The ends of x + y, x - y, x * y or x / y, rounded as float32 rounds; nothing is known where one is no number."""
    if op == "Div" and right[0] <= 0 <= right[1]:
        return ANYTHING
    pairs = [(np.float32(a), np.float32(b)) for a in left for b in right]
    with np.errstate(all="ignore"):
        match op:
            case "Add":
                ends = [a + b for a, b in pairs]
            case "Sub":
                ends = [a - b for a, b in pairs]
            case "Div":
                ends = [a / b for a, b in pairs]
            case _:  # 0 times infinity is 0 here: an element that is 0 stays 0
                ends = [np.float32(0) if a == 0 or b == 0 else a * b for a, b in pairs]
    if any(np.isnan(e) for e in ends):
        return ANYTHING
    return float(min(ends)), float(max(ends))
