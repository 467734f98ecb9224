"""Changes to a small network that keep its meaning: other ways to write the same function.

A rewrite changes the net in place and returns True, or finds no place for itself and returns False. All keep every
value exactly as long as numbers are multiples of small powers of two (`small_nets`); only the sign of a zero may
differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper
from small_nets import BATCH, FLOAT, Array, Net, Random, along_channels, attribute, pick

Rewrite = Callable[[Net, Random], bool]

COMPARISONS = {"Greater": "Less", "Less": "Greater", "GreaterOrEqual": "LessOrEqual", "LessOrEqual": "GreaterOrEqual"}
NEGATED = {"Greater": "LessOrEqual", "Less": "GreaterOrEqual", "GreaterOrEqual": "Less", "LessOrEqual": "Greater"}


def some_node(
    net: Net, random: Random, *ops: str, where: Callable[[NodeProto], bool] | None = None
) -> NodeProto | None:
    """A node of one of the ops, for which `where` holds."""
    found = [n for n in net.nodes if n.op_type in ops and not n.domain and (where is None or where(n))]
    return pick(random, found) if found else None


def some_tensor(net: Net, random: Random, rank: Iterable[int] = range(1, 9)) -> tuple[str, tuple[int, ...]] | None:
    """A float tensor that some node reads, and its shape."""
    ranks = set(rank)
    read = {name for node in net.nodes for name in node.input}
    found = [(n, s) for n, s in net.floats().items() if n in read and len(s) in ranks and s[0] == BATCH]
    return pick(random, found) if found else None


def constant_of(net: Net, name: str) -> Array | None:
    """The values of an initializer that is nothing else."""
    return None if name in net.listed else net.constants.get(name)


def _replace(net: Net, node: NodeProto, op: str, *inputs: str, **attributes: Any) -> None:
    """Another node in the place of one that has a single output."""
    net.nodes.remove(node)
    net.add(op, *inputs, result=node.output[0], **attributes)


def _on_edge(net: Net, random: Random, name: str, make: Callable[[str], str]) -> bool:
    """Put steps between a tensor and all of its readers, or one of them."""
    readers = net.readers(name)
    if not readers:
        return False
    chosen = readers if random.random() < 0.5 else [pick(random, readers)]
    made = make(name)
    for node, index in chosen:
        node.input[index] = made
    return True


# --- On an edge ------------------------------------------------------------------------------------------------------


def _edge(
    name: str, make: Callable[[Net, Random, str, tuple[int, ...]], str], rank: Iterable[int] = range(1, 9)
) -> Rewrite:
    def rewrite(net: Net, random: Random) -> bool:
        found = some_tensor(net, random, rank)
        return found is not None and _on_edge(net, random, found[0], lambda x: make(net, random, x, found[1]))

    rewrite.__name__ = name
    return rewrite


def _by_one(net: Net, random: Random, x: str, shape: tuple[int, ...]) -> str:
    one = net.constant(np.ones(pick(random, ((), (1,), along_channels(np.ones(shape[1]), len(shape)).shape))))
    return net.add(*pick(random, (("Mul", x, one), ("Mul", one, x), ("Div", x, one))))


def _plus_zero(net: Net, random: Random, x: str, shape: tuple[int, ...]) -> str:
    zero = net.constant(0)
    return net.add(*pick(random, (("Add", x, zero), ("Add", zero, x), ("Sub", x, zero))))


def _same_shape(net: Net, random: Random, x: str, shape: tuple[int, ...]) -> str:
    if random.random() < 0.4:
        return net.add("Reshape", x, net.add("Shape", x))
    return net.add("Reshape", x, net.constant([pick(random, (0, -1)), *shape[1:]], np.int64))


def _there_and_back(net: Net, random: Random, x: str, shape: tuple[int, ...]) -> str:
    flat = net.add("Reshape", x, net.constant([0, -1], np.int64))
    return net.add("Reshape", flat, net.constant([-1, *shape[1:]], np.int64))


def _squeezed(net: Net, random: Random, x: str, shape: tuple[int, ...]) -> str:
    axes = net.constant([int(random.integers(0, len(shape) + 1))], np.int64)
    return net.add("Squeeze", net.add("Unsqueeze", x, axes), axes)


def _transposed(net: Net, random: Random, x: str, shape: tuple[int, ...]) -> str:
    order = [int(i) for i in random.permutation(len(shape))]
    there = net.add("Transpose", x, perm=order)
    return net.add("Transpose", there, perm=[int(i) for i in np.argsort(order)])


def _dropped(net: Net, random: Random, x: str, shape: tuple[int, ...]) -> str:
    more = [net.constant(0.5), net.constant(False, np.bool_)] if random.random() < 0.5 else []
    return net.add("Dropout", x, *more)


def _wide_clip(net: Net, random: Random, x: str, shape: tuple[int, ...]) -> str:
    bounds = [net.constant(-1e6), net.constant(1e6)]
    return net.add("Clip", x, *pick(random, (bounds, bounds[:1], ["", bounds[1]])))


def _split_and_joined(net: Net, random: Random, x: str, shape: tuple[int, ...]) -> str:
    if shape[1] < 2:
        return net.add("Identity", x)
    first = int(random.integers(1, shape[1]))
    left, right = net.fresh(), net.fresh()
    parts = net.constant([first, shape[1] - first], np.int64)
    net.nodes.append(helper.make_node("Split", [x, parts], [left, right], name=net.fresh("Split"), axis=1))
    return net.add("Concat", left, right, axis=1)


EDGES: tuple[Rewrite, ...] = (
    _edge("identity", lambda net, random, x, shape: net.add("Identity", x)),
    _edge("cast to float", lambda net, random, x, shape: net.add("Cast", x, to=FLOAT)),
    _edge(
        "cast to double and back",
        lambda net, random, x, shape: net.add("Cast", net.add("Cast", x, to=TensorProto.DOUBLE), to=FLOAT),
    ),
    _edge("dropout", _dropped),
    _edge("reshape to the same", _same_shape),
    _edge("reshape there and back", _there_and_back, (3, 4)),
    _edge("unsqueeze and squeeze", _squeezed),
    _edge("transpose pair", _transposed),
    _edge("times one", _by_one, (2, 3, 4)),
    _edge("plus zero", _plus_zero),
    _edge("negated twice", lambda net, random, x, shape: net.add("Neg", net.add("Neg", x))),
    _edge("wide clip", _wide_clip),
    _edge("split and concat", _split_and_joined, (2, 3, 4)),
    _edge(
        "doubled and halved",
        lambda net, random, x, shape: net.add("Mul", net.add("Mul", x, net.constant(2)), net.constant(0.5)),
    ),
    _edge("maximum with itself", lambda net, random, x, shape: net.add("Max", x, x)),
)


# --- Constants -------------------------------------------------------------------------------------------------------


def _some_constant(net: Net, random: Random, dtype: Any = np.float32) -> str | None:
    read = {name for node in net.nodes for name in node.input}
    found = [n for n, v in net.constants.items() if v.dtype == dtype and n in read and n not in net.listed]
    return pick(random, found) if found else None


def constant_node(net: Net, random: Random) -> bool:
    """Initializer -> Constant node."""
    name = _some_constant(net, random, pick(random, (np.float32, np.float32, np.int64)))
    if name is None:
        return False
    values = net.constants.pop(name)
    tensor = numpy_helper.from_array(values)
    if values.ndim == 0 and values.dtype == np.float32 and random.random() < 0.5:
        net.add("Constant", result=name, value_float=float(values))
    elif values.ndim == 1 and values.dtype == np.float32 and random.random() < 0.5:
        net.add("Constant", result=name, value_floats=[float(v) for v in values])
    else:
        net.add("Constant", result=name, value=tensor)
    return True


def constant_cone(net: Net, random: Random) -> bool:
    """c -> c1 * c2, c1 + c2, transposed, reshaped, cast, negated, concatenated: a cone that computes it."""
    name = _some_constant(net, random)
    if name is None:
        return False
    c = net.constants.pop(name)
    forms = [
        "factors",
        "terms",
        "transpose",
        "reshape",
        "double",
        "negative",
        "identity",
        "square",
        "quotient",
        "where",
    ]
    forms += ["concat", "slice"] if c.ndim else ["gather"]
    match pick(random, forms):
        case "factors":
            factor = random.choice(np.asarray([0.5, 2, 4, -1], np.float32), c.shape)
            net.add("Mul", net.constant(c / factor), net.constant(factor), result=name)
        case "terms":
            net.add("Sub", net.constant(c + 1), net.constant(np.ones_like(c)), result=name)
        case "quotient":
            net.add("Div", net.constant(c * 4), net.constant(4), result=name)
        case "transpose":
            net.add("Transpose", net.constant(c.T), result=name)
        case "reshape":
            net.add("Reshape", net.constant(c.reshape(-1)), net.constant(c.shape, np.int64), result=name)
        case "double":
            exact = np.array_equal(c.astype(np.float16), c)
            net.add(
                "Cast",
                net.constant(c, pick(random, (np.float64, np.float16 if exact else np.float64))),
                result=name,
                to=FLOAT,
            )
        case "negative":
            net.add("Neg", net.constant(-c), result=name)
        case "identity":
            net.add("Identity", net.constant(c), result=name)
        case "square":
            net.add("Mul", net.add("Sign", net.constant(c)), net.add("Abs", net.constant(c)), result=name)
        case "where":
            taken = random.random(c.shape) < 0.5
            net.add("Where", net.constant(taken, np.bool_), net.constant(c), net.constant(c), result=name)
        case "concat":
            half = c.shape[0] // 2
            net.add("Concat", net.constant(c[:half]), net.constant(c[half:]), result=name, axis=0)
        case "slice":
            longer = net.constant(np.concatenate([c[:1], c]))
            first, last = net.constant([1], np.int64), net.constant([2**62], np.int64)
            net.add("Slice", longer, first, last, result=name)
        case "gather":
            net.add("Gather", net.constant([c + 1, c]), net.constant(1, np.int64), result=name)
    return True


def listed_initializer(net: Net, random: Random) -> bool:
    """Every initializer is a graph input as well, as opset 8 and older had it."""
    if net.listed:
        return False
    net.listed = set(net.constants)
    return True


def ranked_constant(net: Net, random: Random) -> bool:
    """A number of rank 0 gets rank 1, and back."""
    name = _some_constant(net, random)
    readers = [] if name is None else net.readers(name)
    if name is None or net.constants[name].size != 1 or net.constants[name].ndim > 1:
        return False
    if any(node.op_type not in ("Add", "Sub", "Mul", "Div", "Where", *COMPARISONS) for node, _ in readers):
        return False
    c = net.constants[name]
    net.constants[name] = c.reshape(()) if c.ndim else c.reshape(1)
    return True


# --- Comparisons, choices and casts ----------------------------------------------------------------------------------


def swapped_comparison(net: Net, random: Random) -> bool:
    """x >= c -> c <= x."""
    node = some_node(net, random, *COMPARISONS)
    if node is None:
        return False
    node.op_type = COMPARISONS[node.op_type]
    node.input[0], node.input[1] = node.input[1], node.input[0]
    return True


def negated_comparison(net: Net, random: Random) -> bool:
    """x >= c -> Not(x < c)."""
    node = some_node(net, random, *NEGATED)
    if node is None:
        return False
    output, node.output[0] = node.output[0], net.fresh()
    node.op_type = NEGATED[node.op_type]
    net.add("Not", node.output[0], result=output)
    return True


def compared_difference(net: Net, random: Random) -> bool:
    """x >= c -> x - c >= 0."""
    node = some_node(net, random, *COMPARISONS)
    if node is None:
        return False
    node.input[0] = net.add("Sub", node.input[0], node.input[1])
    node.input[1] = net.constant(0)
    return True


def swapped_branches(net: Net, random: Random) -> bool:
    """Where(b, p, q) -> Where(Not(b), q, p)."""
    node = some_node(net, random, "Where")
    if node is None:
        return False
    node.input[0] = net.add("Not", node.input[0])
    node.input[1], node.input[2] = node.input[2], node.input[1]
    return True


def where_as_cast(net: Net, random: Random) -> bool:
    """Where(b, p, q) of numbers -> (p - q) * Cast(b) + q."""
    node = some_node(net, random, "Where", where=lambda n: all(_is_number(net, i) for i in n.input[1:]))
    if node is None:
        return False
    p, q = (float(net.constants[i].reshape(-1)[0]) for i in node.input[1:])
    bits = net.add("Cast", node.input[0], to=FLOAT)
    _replace(net, node, "Add", net.add("Mul", bits, net.constant(p - q)), net.constant(q))
    return True


def cast_as_where(net: Net, random: Random) -> bool:
    """Cast(b) -> Where(b, 1, 0)."""
    types = {o for n in net.nodes if n.op_type in (*COMPARISONS, "Not", "Equal") for o in n.output}
    node = some_node(net, random, "Cast", where=lambda n: n.input[0] in types and attribute(n, "to") == FLOAT)
    if node is None:
        return False
    _replace(net, node, "Where", node.input[0], net.constant(1), net.constant(0))
    return True


def cast_by_integer(net: Net, random: Random) -> bool:
    """Cast(b -> float) -> Cast(Cast(b -> integer) -> float)."""
    types = {o for n in net.nodes if n.op_type in (*COMPARISONS, "Not", "Equal") for o in n.output}
    node = some_node(net, random, "Cast", where=lambda n: n.input[0] in types)
    if node is None:
        return False
    node.input[0] = net.add(
        "Cast", node.input[0], to=pick(random, (TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8))
    )
    return True


def scaled_branches(net: Net, random: Random) -> bool:
    """Where(b, p, q) of numbers -> Where(b, p / s, q / s) * s."""
    node = some_node(net, random, "Where", where=lambda n: all(_is_number(net, i) for i in n.input[1:]))
    if node is None:
        return False
    s = pick(random, (2.0, 0.5, -1.0, -4.0))
    p, q = (net.constant(net.constants[i] / s) for i in node.input[1:])
    _replace(net, node, "Mul", net.add("Where", node.input[0], p, q), net.constant(s))
    return True


def sign_as_casts(net: Net, random: Random) -> bool:
    """Sign(x) -> Cast(x > 0) - Cast(x < 0), or nested Where."""
    node = some_node(net, random, "Sign", where=lambda n: _runs(net, n))
    if node is None:
        return False
    zero = net.constant(0)
    above, below = net.add("Greater", node.input[0], zero), net.add("Less", node.input[0], zero)
    if random.random() < 0.5:
        _replace(net, node, "Sub", net.add("Cast", above, to=FLOAT), net.add("Cast", below, to=FLOAT))
    else:
        negative = net.add("Where", below, net.constant(-1), net.constant(0))
        _replace(net, node, "Where", above, net.constant(1), negative)
    return True


def sign_of_scaled(net: Net, random: Random) -> bool:
    """Sign(x) -> Sign(s x) with s > 0, or -Sign(-s x)."""
    node = some_node(net, random, "Sign", where=lambda n: _runs(net, n))
    if node is None:
        return False
    s = pick(random, (2.0, 0.5, -1.0, -2.0))
    inner = net.add("Sign", net.add("Mul", node.input[0], net.constant(s)))
    _replace(net, node, "Neg" if s < 0 else "Identity", inner)
    return True


def sign_twice(net: Net, random: Random) -> bool:
    """Sign(x) -> Sign(Sign(x))."""
    node = some_node(net, random, "Sign")
    if node is None:
        return False
    node.input[0] = net.add("Sign", node.input[0])
    return True


def _is_number(net: Net, name: str) -> bool:
    c = constant_of(net, name)
    return c is not None and c.size == 1


def _runs(net: Net, node: NodeProto) -> bool:
    """Whether the node reads something other than a constant (an initializer)."""
    return node.input[0] not in net.constants


# --- Arithmetic ------------------------------------------------------------------------------------------------------


def subtracted(net: Net, random: Random) -> bool:
    """Add(x, c) <-> Sub(x, -c)."""
    node = some_node(net, random, "Add", "Sub", where=lambda n: constant_of(net, n.input[1]) is not None)
    if node is None:
        return False
    node.op_type = {"Add": "Sub", "Sub": "Add"}[node.op_type]
    node.input[1] = net.constant(-net.constants[node.input[1]])
    return True


def divided(net: Net, random: Random) -> bool:
    """Mul(x, 2^k) <-> Div(x, 2^-k)."""

    def fits(node: NodeProto) -> bool:
        c = constant_of(net, node.input[1])
        return c is not None and bool(np.all(np.abs(np.frexp(c)[0]) == 0.5))

    node = some_node(net, random, "Mul", "Div", where=fits)
    if node is None:
        return False
    node.op_type = {"Mul": "Div", "Div": "Mul"}[node.op_type]
    node.input[1] = net.constant(1 / net.constants[node.input[1]])
    return True


def commuted(net: Net, random: Random) -> bool:
    """Add(a, b) -> Add(b, a)."""
    node = some_node(net, random, "Add", "Mul", "Max", where=lambda n: len(n.input) == 2)
    if node is None:
        return False
    node.input[0], node.input[1] = node.input[1], node.input[0]
    return True


def added_negative(net: Net, random: Random) -> bool:
    """Sub(a, b) -> Add(a, Neg(b))."""
    node = some_node(net, random, "Sub")
    if node is None:
        return False
    node.op_type, node.input[1] = "Add", net.add("Neg", node.input[1])
    return True


def split_normalization(net: Net, random: Random) -> bool:
    """BatchNormalization -> Mul, Add; or Sub, Mul, Add; or Sub, Div, Mul, Add."""
    node = some_node(net, random, "BatchNormalization", where=lambda n: all(i in net.constants for i in n.input[1:]))
    shape = None if node is None else net.floats().get(node.input[0])
    if node is None or shape is None:
        return False
    gamma, beta, mean, variance = (along_channels(net.constants[i], len(shape)) for i in node.input[1:])
    root = np.sqrt(variance + np.float32(attribute(node, "epsilon")))
    x = node.input[0]
    if random.random() < 0.5:
        scale = gamma / root
        _replace(net, node, "Add", net.add("Mul", x, net.constant(scale)), net.constant(beta - mean * scale))
        return True
    x = net.add("Sub", x, net.constant(mean))
    if random.random() < 0.5:
        x = net.add("Mul", net.add("Div", x, net.constant(root)), net.constant(gamma))
    else:
        x = net.add("Mul", x, net.constant(gamma / root))
    _replace(net, node, "Add", x, net.constant(beta))
    return True


def relu_as_max(net: Net, random: Random) -> bool:
    """Relu(x) -> Max(x, 0), Clip(x, 0), PRelu with slope 0."""
    node = some_node(net, random, "Relu")
    if node is None:
        return False
    x, zero = node.input[0], net.constant(0)
    op, inputs = pick(random, (("Max", (x, zero)), ("Clip", (x, zero)), ("Max", (zero, x))))
    _replace(net, node, op, *inputs)
    return True


def clip_as_min_max(net: Net, random: Random) -> bool:
    """Clip(x, a, b) -> Min(Max(x, a), b)."""
    node = some_node(net, random, "Clip", where=lambda n: len(n.input) == 3 and all(n.input))
    if node is None:
        return False
    _replace(net, node, "Min", net.add("Max", node.input[0], node.input[1]), node.input[2])
    return True


# --- Layers ----------------------------------------------------------------------------------------------------------


def bias_behind(net: Net, random: Random) -> bool:
    """Conv(x, W, b) -> Add(Conv(x, W), b)."""
    node = some_node(
        net, random, "Conv", "ConvTranspose", where=lambda n: len(n.input) == 3 and n.input[2] in net.constants
    )
    shape = None if node is None else net.floats().get(node.output[0])
    if node is None or shape is None:
        return False
    bias = along_channels(net.constants[node.input[2]], len(shape))
    output, node.output[0] = node.output[0], net.fresh()
    del node.input[2]
    net.add("Add", node.output[0], net.constant(bias), result=output)
    return True


def bias_inside(net: Net, random: Random) -> bool:
    """A Conv without bias gets one of zeros."""
    node = some_node(net, random, "Conv", where=lambda n: len(n.input) == 2)
    shape = None if node is None else net.floats().get(node.output[0])
    if node is None or shape is None:
        return False
    node.input.append(net.constant(np.zeros(shape[1])))
    return True


def gemm_as_matmul(net: Net, random: Random) -> bool:
    """Gemm(x, W, b, transB) -> Add(MatMul(x, Transpose(W)), b)."""
    node = some_node(net, random, "Gemm")
    if node is None:
        return False
    matrix = node.input[1]
    if attribute(node, "transB", 0):
        matrix = net.add("Transpose", matrix, perm=[1, 0])
    if len(node.input) == 3:
        _replace(net, node, "Add", net.add("MatMul", node.input[0], matrix), node.input[2])
    else:
        _replace(net, node, "MatMul", node.input[0], matrix)
    return True


def matmul_as_gemm(net: Net, random: Random) -> bool:
    """MatMul(x, W) of matrices -> Gemm(x, W), or Gemm(x, Transpose(W), transB)."""
    shapes = net.floats()
    node = some_node(net, random, "MatMul", where=lambda n: all(len(shapes.get(i, (0, 0))) == 2 for i in n.input))
    if node is None:
        return False
    if random.random() < 0.5:
        _replace(net, node, "Gemm", node.input[0], node.input[1])
    else:
        _replace(net, node, "Gemm", node.input[0], net.add("Transpose", node.input[1], perm=[1, 0]), transB=1)
    return True


def pads_as_node(net: Net, random: Random) -> bool:
    """Conv with pads -> Conv(Pad(x, 0))."""
    node = some_node(net, random, "Conv", where=lambda n: any(attribute(n, "pads", [])))
    if node is None:
        return False
    pads = attribute(node, "pads")
    rank = len(pads) // 2
    amounts = net.constant([0, 0, *pads[:rank], 0, 0, *pads[rank:]], np.int64)
    node.input[0] = net.add("Pad", node.input[0], amounts, *pick(random, ([], [net.constant(0)])))
    next(a for a in node.attribute if a.name == "pads").ints[:] = [0] * len(pads)
    return True


def split_pad(net: Net, random: Random) -> bool:
    """Pad(x, p) -> Pad(Pad(x, q), p - q), one side after the other."""
    node = some_node(net, random, "Pad", where=lambda n: n.input[1] in net.constants)
    if node is None:
        return False
    amounts = net.constants[node.input[1]]
    some = np.where(random.random(amounts.shape) < 0.5, amounts, 0)
    first = net.add("Pad", node.input[0], net.constant(some, np.int64), *node.input[2:])
    node.input[0], node.input[1] = first, net.constant(amounts - some, np.int64)
    return True


def automatic_pads(net: Net, random: Random) -> bool:
    """pads of zeros -> auto_pad VALID; pads of one with a 3x3 kernel and stride 1 -> auto_pad SAME_UPPER."""

    def mode(node: NodeProto) -> str:
        pads, kernel = attribute(node, "pads", []), attribute(node, "kernel_shape", [])
        if not any(pads):
            return "VALID"
        same = (
            len(kernel) > 0
            and all(k == 3 for k in kernel)
            and all(p == 1 for p in pads)
            and all(s == 1 for s in attribute(node, "strides", []))
        )
        return "SAME" if same else ""

    node = some_node(net, random, "Conv", where=lambda n: bool(mode(n)) and attribute(n, "auto_pad") is None)
    if node is None:
        return False
    value = mode(node)
    kept = [a for a in node.attribute if a.name != "pads"]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.append(
        helper.make_attribute("auto_pad", value if value == "VALID" else pick(random, ("SAME_UPPER", "SAME_LOWER")))
    )
    return True


def implied_attributes(net: Net, random: Random) -> bool:
    """kernel_shape, strides and pads that are the defaults are left out."""
    node = some_node(net, random, "Conv")
    if node is None:
        return False

    def implied(a: Any) -> bool:
        default = {"kernel_shape": None, "strides": 1, "dilations": 1, "pads": 0}
        if a.name == "group":
            return bool(a.i == 1)
        return a.name in default and (a.name == "kernel_shape" or all(v == default[a.name] for v in a.ints))

    kept = [a for a in node.attribute if not implied(a)]
    if len(kept) == len(node.attribute):
        return False
    del node.attribute[:]
    node.attribute.extend(kept)
    return True


def nested_concat(net: Net, random: Random) -> bool:
    """Concat(a, b) -> Concat(Concat(a), Concat(b)), Concat(a, b, c) -> Concat(Concat(a, b), c)."""
    node = some_node(net, random, "Concat", where=lambda n: len(n.input) > 1)
    if node is None:
        return False
    inputs, axis = list(node.input), attribute(node, "axis")
    first = net.add("Concat", *inputs[: max(1, len(inputs) // 2)], axis=axis)
    _replace(net, node, "Concat", first, *inputs[max(1, len(inputs) // 2) :], axis=axis)
    return True


# --- The graph as a whole ---------------------------------------------------------------------------------------------


def duplicated(net: Net, random: Random) -> bool:
    """A node with several readers is computed once more for one of them."""
    node = some_node(net, random, *{n.op_type for n in net.nodes}, where=lambda n: len(net.readers(n.output[0])) > 1)
    if node is None or len(node.output) > 1:
        return False
    again = NodeProto()
    again.CopyFrom(node)
    again.name, again.output[0] = net.fresh(node.op_type), net.fresh()
    net.nodes.append(again)
    reader, index = pick(random, net.readers(node.output[0]))
    reader.input[index] = again.output[0]
    return True


def merged(net: Net, random: Random) -> bool:
    """Two nodes that compute the same from the same become one."""
    for node in net.nodes:
        for other in net.nodes:
            alike = node.op_type == other.op_type and node.domain == other.domain and node.input == other.input
            if node is other or not alike or list(node.attribute) != list(other.attribute):
                continue
            if len(node.output) == 1 and other.output[0] not in net.outputs and node.op_type != "Constant":
                net.redirect(other.output[0], node.output[0])
                net.nodes.remove(other)
                return True
    return False


def unused(net: Net, random: Random) -> bool:
    """A node that nobody reads."""
    found = some_tensor(net, random)
    if found is None:
        return False
    net.add(pick(random, ("Sign", "Relu", "Shape", "Identity", "Neg")), found[0])
    return True


def also_output(net: Net, random: Random) -> bool:
    """An inner tensor read elsewhere, too: by a step whose value does not matter."""
    found = some_tensor(net, random)
    if found is None or net.outputs[-1] not in net.floats():
        return False
    name, _ = found
    if name in net.inputs:
        return False
    every = net.constant(list(range(len(found[1]))), np.int64)
    nothing = net.add("Mul", net.add("ReduceSum", name, every, keepdims=0), net.constant(0))
    last = net.outputs[-1]
    net.outputs[-1] = net.add("Add", last, nothing)
    return True


def function(net: Net, random: Random) -> bool:
    """A node, and perhaps the one before it, becomes a call of a model-local function."""
    node = some_node(net, random, *{n.op_type for n in net.nodes} - {"Constant"}, where=lambda n: len(n.output) == 1)
    if node is None:
        return False
    body = [node]
    before = [p for name in node.input if name and (p := net.producer(name)) is not None]
    before = [p for p in before if len(p.output) == 1 and len(net.readers(p.output[0])) == 1 and not p.domain]
    before = [p for p in before if p.output[0] not in net.outputs]
    if before and random.random() < 0.6:
        body.insert(0, pick(random, before))
    if any(n.domain for n in body):
        return False
    made = {o for n in body for o in n.output}
    inputs = list(dict.fromkeys(i for n in body for i in n.input if i and i not in made))
    name = net.fresh("F")
    imports = [helper.make_opsetid("", 17)]
    net.functions.append(helper.make_function("local", name, inputs, [node.output[0]], body, imports))
    for n in body:
        net.nodes.remove(n)
    net.add(name, *inputs, result=node.output[0], domain="local")
    return True


def renamed(net: Net, random: Random) -> bool:
    """Every tensor and node but inputs and outputs of the graph gets another name, some nodes none."""
    fixed = {*net.inputs, *net.outputs, ""}
    names = {name for node in net.nodes for name in [*node.input, *node.output]} | set(net.constants)
    style = pick(random, ("/m/{}/out", "{}", "model.{}.weight", "Sign_{}", "t{}.signs"))
    ordered = sorted(names - fixed)
    new = dict(zip(ordered, (style.format(int(i) + 7000) for i in random.permutation(len(ordered))), strict=True))
    new |= {name: name for name in fixed}
    for node in net.nodes:
        node.input[:] = [new[i] for i in node.input]
        node.output[:] = [new[o] for o in node.output]
        node.name = "" if random.random() < 0.3 else net.fresh("node/")
    net.constants = {new[n]: v for n, v in net.constants.items()}
    net.listed = {new[n] for n in net.listed}
    return True


def _named(rewrite: Rewrite) -> str:
    return rewrite.__name__.replace("_", " ")


ALL: dict[str, Rewrite] = {
    _named(rewrite): rewrite
    for rewrite in (
        *EDGES,
        *(constant_node, constant_cone, constant_cone, listed_initializer, ranked_constant),
        *(swapped_comparison, negated_comparison, compared_difference, swapped_branches, where_as_cast),
        *(cast_as_where, cast_by_integer, scaled_branches, sign_as_casts, sign_of_scaled, sign_twice),
        *(subtracted, divided, commuted, added_negative, split_normalization, relu_as_max, clip_as_min_max),
        *(bias_behind, bias_inside, gemm_as_matmul, matmul_as_gemm, pads_as_node, split_pad, automatic_pads),
        *(implied_attributes, nested_concat, duplicated, merged, unused, also_output, function, renamed),
    )
}
