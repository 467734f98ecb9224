"""Operators of other projects in standard ones of opset 13, so that every pass sees what they compute.

    before   BipolarQuant(x, s)                        of QONNX, FINN and Brevitas
    after    Mul(Where(x >= 0, 1, -1), s)

    before   Quant(x, s, z, bits; signed, narrow, rounding_mode), also called IntQuant
    after    Mul(Sub(Round(Clip(Add(Div(x, s), z), low, high)), z), s)                   of one signed bit, in place of
             Mul(Sub(Where(Add(Div(x, s), z) >= 0, 1, -1), z), s)                        Round and Clip, the sign

    before   MultiThreshold(x, T [C|1, P]; out_scale, out_bias, data_layout)
    after    Add(Mul(Cast(x >= T[:, 0]) + … + Cast(x >= T[:, P - 1]), out_scale), out_bias)

    before   XnorPopcountMatMul(a, B)                  how many bits are equal, a and B in {0, 1}
    after    Add(MatMul(a, 2 B - 1), sum over k of (1 - B))

    before   your.domain::Op(x, …)                     with `--map-op your.domain::Op=sign`
    after    Where(x >= 0, 1, -1)                      in x's type

The definitions are those of QONNX (Pappalardo et al., "QONNX: Representing Arbitrary-Precision Quantized Neural
Networks", 2022), executed in float32: what follows is the same function, rounding for rounding. Steps with neutral
constants (scale 1, zero point 0) are left out. A node outside of these definitions stays as it is, and a note says why.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from binarize_onnx import checks, opset, scopes, shapes
from binarize_onnx.errors import UsageError

Array = npt.NDArray[Any]

DOMAINS = ("qonnx.custom_op.general", "finn.custom_op.general", "onnx.brevitas")
TARGETS = ("sign",)  # what the caller may map an operator to

MOST_BITS = 32
# Up to here a threshold is a comparison of its own, which passes can follow; beyond, all of them are one, on an axis
# of their own: 4-bit activations have 15.
MOST_COMPARISONS = 15

_OUT_OF_REACH = "those in subgraphs, and those that the file defines, stay as they are"

# Types whose Where and GreaterOrEqual every onnxruntime has.
SIGNED_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64)


def require_mappable(map_ops: Mapping[str, str]) -> None:
    """Refuse what `translate` could not follow.

    Raises:
        UsageError: a key is not `domain::Op`, or the domain is ONNX's or ours, or the value is no target.
    """
    for operator, target in map_ops.items():
        form = f"give domain::Op=TARGET, where TARGET is {' or '.join(TARGETS)}."
        found = re.fullmatch(r"([^\s:=]+)::([^\s:=]+)", operator)
        if found is None:
            raise UsageError(f"{operator!r} names no operator of another domain;", fix=form)
        if found[1] in (*checks.STANDARD, opset.DOMAIN, opset.IDEAL_DOMAIN):
            raise UsageError(f"{operator} is defined already, and cannot be mapped;", fix=form)
        if target not in TARGETS:
            raise UsageError(f"{operator} cannot be mapped to {target!r};", fix=form)


def held(model: onnx.ModelProto, map_ops: Mapping[str, str] | None = None) -> list[str]:
    """The operators in the graph that are mapped or of `DOMAINS`, and have no definition in the file, sorted."""
    mapped = map_ops or {}
    found = {_operator(node) for node in model.graph.node if _operator(node) in mapped or node.domain in DOMAINS}
    return sorted(found - _defined(model))


def translate(model: onnx.ModelProto, map_ops: Mapping[str, str] | None = None) -> list[str]:
    """Rewrite foreign nodes of the main graph in place.

    Args:
        model: a prepared model, opset 13 or newer.
        map_ops: what the caller's own operators are, `domain::Op` to one of `TARGETS`. They come first.

    Returns:
        Notes: each kind of node that stays as it is, and why; what `map_ops` names in vain.
    """
    graph, rules = model.graph, {name: _rule(name, map_ops or {}) for name in held(model, map_ops)}
    idle = [f"--map-op {name} matches no node ({_OUT_OF_REACH})" for name in map_ops or {} if name not in rules]
    if not rules:
        return idle
    translation = _Translation(model, rules)
    left: dict[str, list[NodeProto]] = {}
    for node in list(graph.node):
        try:
            rules.get(_operator(node), _keep)(translation, node)
        except _Stays as reason:
            left.setdefault(f"{_operator(node)} stays as it is: {reason}", []).append(node)
            translation.nodes.append(node)
    del graph.node[:]
    graph.node.extend(translation.nodes)
    graph.initializer.extend(translation.added)
    model.ir_version = max(model.ir_version, 4)  # before, every initializer had to be an input
    _drop_imports(model)
    return [*(f"{words} ({_counted(nodes)})" for words, nodes in left.items()), *idle]


class _Stays(Exception):
    """A node is none of the definitions; its text says why, as the end of a sentence."""


Rule = Callable[["_Translation", NodeProto], None]


def _rule(operator: str, map_ops: Mapping[str, str]) -> Rule:
    """How an operator is translated. A rule raises `_Stays` before it adds anything."""
    return _map_sign if operator in map_ops else _RULES.get(operator.rpartition("::")[2], _not_known)


def _operator(node: NodeProto) -> str:
    return f"{node.domain}::{node.op_type}"


def _counted(nodes: list[NodeProto]) -> str:
    first = nodes[0].name or next(iter(nodes[0].output), "?")
    return f"`{first}`" if len(nodes) == 1 else f"`{first}` and {len(nodes) - 1} more"


def _everywhere(model: onnx.ModelProto) -> Iterator[NodeProto]:
    """The nodes of the graph, of its subgraphs and of the functions."""
    for root in (model.graph, *model.functions):
        yield from checks.nodes(root)


def _defined(model: onnx.ModelProto) -> set[str]:
    return {f"{function.domain}::{function.name}" for function in model.functions}


def _drop_imports(model: onnx.ModelProto) -> None:
    """Of domains that nothing is left of."""
    used = {node.domain for node in _everywhere(model)}
    kept = [entry for entry in model.opset_import if entry.domain in used or entry.domain in checks.STANDARD]
    del model.opset_import[:]
    model.opset_import.extend(kept)


class _Translation:
    """The nodes and initializers in the making, and what is known of the tensors that they read.

    Attributes:
        nodes: of the translated graph so far.
        added: initializers that are new.
    """

    def __init__(self, model: onnx.ModelProto, rules: Mapping[str, Rule]) -> None:
        graph = model.graph
        self.nodes: list[NodeProto] = []
        self.added: list[TensorProto] = []
        self._constants: dict[str, TensorProto] = {t.name: t for t in graph.initializer}
        for node in graph.node:
            tensor = _constant(node, self._constants)
            if tensor is not None:
                self._constants[node.output[0]] = tensor
        self._names = scopes.Names(scopes.all_names(graph))
        self._shared: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._shapes = _infer(model, rules)

    def type(self, name: str) -> int:
        """A tensor's element type; where nothing tells, float32, which these definitions are written for."""
        if name in self._constants:
            return int(self._constants[name].data_type)
        return self._shapes.types.get(name, TensorProto.FLOAT)

    def rank(self, name: str) -> int | None:
        """How many axes a tensor has, None if that is unknown."""
        if name in self._constants:
            return len(self._constants[name].dims)
        shape = self._shapes.known.get(name)
        return None if shape is None else len(shape)

    def value(self, name: str) -> Array | None:
        """The values of a constant; None for anything computed."""
        tensor = self._constants.get(name)
        return None if tensor is None else np.asarray(numpy_helper.to_array(tensor))

    def constant(self, hint: str, values: Any, dtype: Any = np.float32) -> str:
        """An initializer; equal values share one."""
        array = np.asarray(values, dtype)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._shared:
            self._shared[key] = self._names.unused(hint)
            self.added.append(numpy_helper.from_array(array, self._shared[key]))
        return self._shared[key]

    def add(self, op: str, *inputs: str, hint: str, name: str = "", **attributes: Any) -> str:
        """A node and its one output, which is named after the hint."""
        output = self._names.unused(hint)
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def close(self, node: NodeProto) -> None:
        """The last of the nodes that stand for `node` writes what that wrote."""
        last = self.nodes[-1]
        last.output[0] = node.output[0]
        last.name = last.name or node.name


_NUMBERS: dict[int, Any] = {
    AttributeProto.FLOAT: np.float32,
    AttributeProto.FLOATS: np.float32,
    AttributeProto.INT: np.int64,
    AttributeProto.INTS: np.int64,
}


def _constant(node: NodeProto, known: Mapping[str, TensorProto]) -> TensorProto | None:
    """What a Constant node holds, or what an Identity hands on of a constant; None for anything else."""
    if node.domain not in checks.STANDARD or len(node.output) != 1:
        return None
    if node.op_type == "Identity" and len(node.input) == 1:
        return known.get(node.input[0])
    if node.op_type != "Constant" or len(node.attribute) != 1:
        return None
    attribute: AttributeProto = node.attribute[0]
    if attribute.type == AttributeProto.TENSOR:
        tensor: TensorProto = attribute.t
        return tensor
    dtype = _NUMBERS.get(attribute.type)
    return None if dtype is None else numpy_helper.from_array(np.asarray(helper.get_attribute_value(attribute), dtype))


def _infer(model: onnx.ModelProto, rules: Mapping[str, Rule]) -> shapes.Shapes:
    """Shapes and types with an Identity in place of every foreign node: all but the matrix product keep the shape."""
    original = list(model.graph.node)
    del model.graph.node[:]
    for node in original:
        rule = rules.get(_operator(node), _not_known)
        if rule is not _not_known and node.input and node.output:
            product = rule is _xnor_popcount_matmul
            op, inputs = ("MatMul", node.input[:2]) if product else ("Identity", node.input[:1])
            node = helper.make_node(op, inputs, node.output[:1])
        model.graph.node.append(node)
    try:
        return shapes.infer(model)
    finally:
        del model.graph.node[:]
        model.graph.node.extend(original)


def _require_form(node: NodeProto, inputs: int, types: Mapping[str, int]) -> dict[str, Any]:
    """The attributes of a node that has so many inputs, one output, and no attribute but those of `types`."""
    if len(node.input) != inputs or len(node.output) != 1 or not all([*node.input, *node.output]):
        words = f"it has {len(node.input)} inputs and {len(node.output)} outputs"
        raise _Stays(f"{words}, where the definition has {inputs} and 1")
    for attribute in node.attribute:
        if types.get(attribute.name) != attribute.type:
            raise _Stays(f"its attribute `{attribute.name}` is unknown, or of an unknown type")
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {name: v.decode() if isinstance(v, bytes) else v for name, v in values.items()}


def _require_float32(t: _Translation, names: Iterable[str]) -> None:
    for name in names:
        if t.type(name) != TensorProto.FLOAT:
            raise _Stays(f"`{name}` is not float32")


def _keep(t: _Translation, node: NodeProto) -> None:
    """A node that is none of ours."""
    t.nodes.append(node)


def _not_known(t: _Translation, node: NodeProto) -> None:
    raise _Stays("there is no translation of this operator")


def _sign(t: _Translation, x: str, output: str) -> str:
    """Where(x >= 0, 1, -1) in x's type."""
    dtype = helper.tensor_dtype_to_np_dtype(t.type(x))
    zero, one, minus_one = (t.constant(name, n, dtype) for name, n in (("zero", 0), ("one", 1), ("minus_one", -1)))
    return t.add("Where", t.add("GreaterOrEqual", x, zero, hint=f"{output}.reached"), one, minus_one, hint=output)


def _unless_neutral(t: _Translation, op: str, x: str, parameter: str, neutral: float, hint: str) -> str:
    """`op(x, parameter)`; x itself if the parameter is one number, constant, and changes nothing."""
    value = t.value(parameter)
    if value is not None and value.size == 1 and value.ndim <= 1 and value.reshape(-1)[0] == neutral:
        return x
    return t.add(op, x, parameter, hint=hint)


def _map_sign(t: _Translation, node: NodeProto) -> None:
    if not node.input or not node.input[0] or len(node.output) != 1 or not node.output[0]:
        raise _Stays(f"it has {len(node.input)} inputs and {len(node.output)} outputs; a sign reads one and writes one")
    if t.type(node.input[0]) not in SIGNED_TYPES:
        raise _Stays(f"`{node.input[0]}` is of a type that has no sign")
    _sign(t, node.input[0], node.output[0])
    t.close(node)


def _bipolar_quant(t: _Translation, node: NodeProto) -> None:
    _require_form(node, 2, {})
    _require_float32(t, node.input)
    (x, scale), output = node.input, node.output[0]
    _unless_neutral(t, "Mul", _sign(t, x, output), scale, 1, output)
    t.close(node)


def _quant(t: _Translation, node: NodeProto) -> None:
    whole, text = AttributeProto.INT, AttributeProto.STRING
    attributes = _require_form(node, 4, {"signed": whole, "narrow": whole, "rounding_mode": text})
    _require_float32(t, node.input[:3])
    if not {attributes.get("signed"), attributes.get("narrow")} <= {0, 1}:
        raise _Stays("its attributes `signed` and `narrow` are not both there and 0 or 1")
    mode = attributes.get("rounding_mode", "ROUND").upper()
    if mode not in _ROUNDING:
        raise _Stays(f"its rounding mode {mode!r} is none of {', '.join(_ROUNDING)}")
    (x, scale, zero, width), output = node.input, node.output[0]
    given = t.value(width)
    if given is None:
        raise _Stays(f"its bit width `{width}` is computed at run time")
    if given.dtype.kind not in "fiu" or given.size != 1 or given.reshape(-1)[0] not in range(1, MOST_BITS + 1):
        raise _Stays(f"its bit width is not a whole number from 1 to {MOST_BITS}")
    bits, signed = int(given.reshape(-1)[0]), bool(attributes["signed"])
    y = _unless_neutral(t, "Div", x, scale, 1, f"{output}.scaled")
    y = _unless_neutral(t, "Add", y, zero, 0, f"{output}.shifted")
    if bits == 1 and signed:
        y = _sign(t, y, f"{output}.sign")
    else:
        low, high = _range(bits, signed, bool(attributes["narrow"]))
        ends = t.constant(f"{output}.low", low), t.constant(f"{output}.high", high)
        y = _ROUNDING[mode](t, t.add("Clip", y, *ends, hint=f"{output}.clipped"), output)
    y = _unless_neutral(t, "Sub", y, zero, 0, f"{output}.centred")
    _unless_neutral(t, "Mul", y, scale, 1, output)
    t.close(node)


def _range(bits: int, signed: bool, narrow: bool) -> tuple[np.float32, np.float32]:
    """The least and the greatest integer of so many bits, in float32."""
    half = np.float32(2.0 ** (bits - 1))
    if signed:
        return np.float32(narrow) - half, half - np.float32(1)
    return np.float32(0), half * np.float32(2) - np.float32(1 + narrow)


Rounding = Callable[[_Translation, str, str], str]


def _rounded_by(op: str) -> Rounding:
    return lambda t, y, output: t.add(op, y, hint=f"{output}.rounded")


def _rounded_by_size(op: str, shift: float) -> Rounding:
    """sign(y) * op(|y| + shift): the modes that treat both sides of 0 alike."""

    def rounded(t: _Translation, y: str, output: str) -> str:
        size = t.add("Abs", y, hint=f"{output}.size")
        if shift:
            size = t.add("Add", size, t.constant("half", shift), hint=f"{output}.size")
        whole = t.add(op, size, hint=f"{output}.whole")
        return t.add("Mul", t.add("Sign", y, hint=f"{output}.side"), whole, hint=f"{output}.rounded")

    return rounded


_ROUNDING: dict[str, Rounding] = {
    "ROUND": _rounded_by("Round"),
    "HALF_EVEN": _rounded_by("Round"),
    "CEIL": _rounded_by("Ceil"),
    "FLOOR": _rounded_by("Floor"),
    "UP": _rounded_by_size("Ceil", 0),
    "DOWN": _rounded_by_size("Floor", 0),
    "ROUND_TO_ZERO": _rounded_by_size("Floor", 0),
    "HALF_UP": _rounded_by_size("Floor", 0.5),
    "HALF_DOWN": _rounded_by_size("Ceil", -0.5),
}


def _multi_threshold(t: _Translation, node: NodeProto) -> None:
    number, text = AttributeProto.FLOAT, AttributeProto.STRING
    types = {"out_scale": number, "out_bias": number, "out_dtype": text, "data_layout": text}
    attributes = _require_form(node, 2, types)
    _require_float32(t, node.input)
    (x, thresholds), output = node.input, node.output[0]
    values = t.value(thresholds)
    if values is None:
        raise _Stays(f"its thresholds `{thresholds}` are computed at run time")
    if values.ndim != 2 or not values.size:
        raise _Stays(f"its thresholds have the shape {list(values.shape)}, where channels and steps belong")
    if values.shape[0] > 1:
        trailing = _axes_behind_channels(attributes.get("data_layout", ""), t.rank(x))
        values = values.reshape(values.shape[0], *(1,) * trailing, values.shape[1])
    else:
        values = values[0]
    y = _count_reached(t, x, values, output)
    scale, bias = attributes.get("out_scale", 1.0), attributes.get("out_bias", 0.0)
    y = y if scale == 1 else t.add("Mul", y, t.constant(f"{output}.scale", scale), hint=f"{output}.scaled")
    if bias != 0:
        t.add("Add", y, t.constant(f"{output}.bias", bias), hint=output)
    t.close(node)


def _axes_behind_channels(layout: str, rank: int | None) -> int:
    """How many axes come after the channels. About other ranks the versions of the definition disagree."""
    if layout not in ("", "NC", "NCHW", "NHWC"):
        raise _Stays(f"its data layout {layout!r} is none of NC, NCHW and NHWC")
    if rank not in (2, 4):
        words = "unknown rank" if rank is None else f"rank {rank}"
        raise _Stays(f"its thresholds differ from channel to channel, and its input has {words}, not 2 or 4")
    return 2 if rank == 4 and layout != "NHWC" else 0


def _count_reached(t: _Translation, x: str, thresholds: Array, output: str) -> str:
    """How many of the thresholds, which the last axis counts, x reaches."""
    steps = thresholds.shape[-1]
    if steps > MOST_COMPARISONS:
        axis = t.constant("last", [-1], np.int64)
        column = t.add("Unsqueeze", x, axis, hint=f"{output}.column")
        limits = t.constant(f"{output}.thresholds", thresholds)
        reached = t.add("GreaterOrEqual", column, limits, hint=f"{output}.reached")
        bits = t.add("Cast", reached, hint=f"{output}.bits", to=TensorProto.FLOAT)
        return t.add("ReduceSum", bits, axis, hint=f"{output}.count", keepdims=0)
    count = ""
    for step in range(steps):
        limit = t.constant(f"{output}.threshold", thresholds[..., step])
        reached = t.add("GreaterOrEqual", x, limit, hint=f"{output}.reached")
        bit = t.add("Cast", reached, hint=f"{output}.bit", to=TensorProto.FLOAT)
        count = t.add("Add", count, bit, hint=f"{output}.count") if count else bit
    return count


def _xnor_popcount_matmul(t: _Translation, node: NodeProto) -> None:
    _require_form(node, 2, {})
    _require_float32(t, node.input)
    (x, matrix), output = node.input, node.output[0]
    bits = t.value(matrix)
    if bits is None:
        raise _Stays(f"its weights `{matrix}` are computed at run time")
    if bits.ndim != 2 or not np.all((bits == 0) | (bits == 1)):
        raise _Stays(f"its weights `{matrix}` are no matrix of 0 and 1")
    # Of a bit w of the matrix, 1 - |a - w| is 1 where the bits are equal: that is a (2 w - 1) + (1 - w).
    signs = t.constant(f"{output}.signs", 2 * bits - 1)
    zeros = t.constant(f"{output}.zeros", np.sum(1 - bits, axis=0))
    product = t.add("MatMul", x, signs, hint=f"{output}.product", name=node.name)
    t.add("Add", product, zeros, hint=output, name=f"{output}.Add")
    t.close(node)


_RULES: dict[str, Rule] = {
    "BipolarQuant": _bipolar_quant,
    "Quant": _quant,
    "IntQuant": _quant,
    "MultiThreshold": _multi_threshold,
    "XnorPopcountMatMul": _xnor_popcount_matmul,
}
