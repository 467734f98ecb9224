"""What the elementwise operators of ONNX compute, in NumPy and in the type they are given.

The recogniser evaluates them on the few values that a tensor can take. Only operators whose result is settled to the
last bit are here: whole numbers, comparisons, and float arithmetic that rounds once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import helper

from binarize_onnx.passes.base import Array, constant_value

_FLOATS = (np.dtype(np.float32), np.dtype(np.float16))

# By operator, for operands of one type.
_BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
}
_UNARY: dict[str, Callable[[Array], Array]] = {
    "Abs": np.abs,
    "Ceil": np.ceil,
    "Floor": np.floor,
    "Identity": np.asarray,
    "Neg": np.negative,
    "Not": np.logical_not,
    "Relu": lambda x: np.maximum(x, x.dtype.type(0)),
    "Round": np.rint,
    "Sign": np.sign,
}
_VARIADIC: dict[str, Callable[[Array, Array], Array]] = {"Max": np.maximum, "Min": np.minimum}
OPS = frozenset(
    {*_BINARY, *_UNARY, *_VARIADIC, "Cast", "Clip", "Div", "Dropout", "LeakyRelu", "PRelu", "Where"}
    | {"DequantizeLinear", "QuantizeLinear"}
)
COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})


def is_elementwise(node: gs.Node) -> bool:
    """Whether `apply` knows the operator."""
    return node.op in OPS and not node.domain and len(node.outputs) >= 1


def data_inputs(node: gs.Node) -> list[gs.Tensor]:
    """The inputs of an elementwise node that are not constants, each once."""
    found = {id(t): t for t in node.inputs if not t.is_empty() and not isinstance(t, gs.Constant)}
    return list(found.values())


def apply(node: gs.Node, operands: Sequence[Array | None]) -> Array | None:
    """The node's result on arrays that broadcast with each other; None where it is not settled.

    Args:
        node: a node for which `is_elementwise` holds.
        operands: its inputs, None for one that is left out.
    """
    given = [x for x in operands if x is not None]
    if not given:
        return None
    try:
        with np.errstate(all="ignore"):
            return _apply(node, operands, given)
    except (IndexError, KeyError, TypeError, ValueError):  # too few inputs, types or shapes that do not go together
        return None


def _apply(node: gs.Node, operands: Sequence[Array | None], given: list[Array]) -> Array | None:
    op, x = node.op, given[0]
    one_type = all(a.dtype == x.dtype for a in given)
    if op in _UNARY:
        return np.asarray(_UNARY[op](x))
    if op == "Dropout":
        return x if len(given) < 3 or not given[2].any() else None
    if op == "Cast":
        return _cast(x, int(node.attrs.get("to", 0)))
    if op == "Where":
        condition, chosen, other = given
        return np.where(condition, chosen, other) if chosen.dtype == other.dtype else None
    if op in ("QuantizeLinear", "DequantizeLinear"):
        return _quantize(node, given) if op == "QuantizeLinear" else _dequantize(node, given)
    if not one_type:
        return None
    if op in _BINARY:
        left, right = given
        return _BINARY[op](left, right)
    if op in (*_VARIADIC, "Clip") and any(a.dtype.kind == "f" and np.isnan(a).any() for a in given):
        return None  # runtimes disagree
    if op in _VARIADIC:
        return reduce(_VARIADIC[op], given)
    if op == "Clip":
        low, high = [*operands[1:], None, None][:2]
        x = x if low is None else np.maximum(x, low)
        return x if high is None else np.minimum(x, high)
    if x.dtype not in _FLOATS:
        return None
    if op == "Div":
        left, right = given
        return np.divide(left, right)
    slope = given[1] if op == "PRelu" else x.dtype.type(node.attrs.get("alpha", 0.01))
    return np.where(x < 0, x * slope, x)


def _cast(x: Array, to: int) -> Array | None:
    kind = np.dtype(helper.tensor_dtype_to_np_dtype(to))
    if kind.kind not in "fiub":
        return None
    if kind.kind in "iu" and x.dtype.kind != "b":  # what does not fit wraps, or is anything
        limits = np.iinfo(kind)
        if not np.all(np.isfinite(x)) or np.any(np.trunc(x) < limits.min) or np.any(np.trunc(x) > limits.max):
            return None
    return x.astype(kind)


def _parameters(node: gs.Node, given: list[Array]) -> tuple[Array, Array] | None:
    """`(scale, zero point)` of one number each."""
    scale = given[1]
    zero = given[2] if len(given) > 2 else np.zeros((), np.uint8)
    others = node.attrs.keys() - {"axis", "saturate"}  # output types and block sizes of newer opsets
    if scale.size != 1 or zero.size != 1 or others:
        return None
    return scale.reshape(()), zero.reshape(())


def _quantize(node: gs.Node, given: list[Array]) -> Array | None:
    found = _parameters(node, given)
    if found is None or given[0].dtype != np.float32 or found[1].dtype not in (np.int8, np.uint8):
        return None
    scale, zero = found
    limits = np.iinfo(zero.dtype)
    return np.clip(np.rint(given[0] / scale) + float(zero), limits.min, limits.max).astype(zero.dtype)


def _dequantize(node: gs.Node, given: list[Array]) -> Array | None:
    found = _parameters(node, given)
    if found is None or found[0].dtype != np.float32:
        return None
    scale, zero = found
    return (given[0].astype(np.int32) - np.int32(zero)).astype(np.float32) * scale


def sample(tensor: gs.Tensor, free: dict[int, Array], depth: int = 64) -> Array | None:
    """The tensor's values where the tensors in `free` (by id) have those given; None if it depends on others too."""
    known: dict[int, Array | None] = dict(free)

    def value(t: gs.Tensor, left: int) -> Array | None:
        if id(t) not in known:
            known[id(t)] = constant_value(t)
            node = t.inputs[0] if t.inputs else None
            if known[id(t)] is None and node is not None and is_elementwise(node) and t is node.outputs[0] and left:
                inputs: list[Any] = [None if i.is_empty() else value(i, left - 1) for i in node.inputs]
                if all(i.is_empty() or v is not None for i, v in zip(node.inputs, inputs, strict=True)):
                    known[id(t)] = apply(node, inputs)
        return known[id(t)]

    return value(tensor, depth)
