"""The operator domains of the project: every op's signature, and its meaning as an ONNX function body.

``binarize_onnx`` holds the packed ops that the kernel library implements; ``binarize_onnx.ideal`` the two functions of
the ideal graph, which no library ever registers.  A model carries the body of every op that it uses, so onnxruntime
runs it without the library too: slowly, and with the same bits.  The body is therefore the definition, and
``docs/ops.md`` explains it.

The signatures come first, then the bodies (read each from top to bottom), then what writers of models need: neutral
inputs, nodes, and the functions that a model has to carry.

Rules that every body follows, and why:

* Standard ops in the form that opset 13 has and no later opset takes away, so that one text serves every model.
* Every attribute arrives by reference and no input is ever absent, so that one body serves every node.
* Sums of integers are float32 and stay below 2^24: exact in any order.  Every other float step is one node, and
  nothing that onnxruntime would merge across is adjacent: the accumulator reaches the first multiplication through
  MatMul and Reshape, and the weighted sum is a CumSum (ReduceSum has no stated order).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from binarize_onnx.bits import WORD

DOMAIN = "binarize_onnx"
VERSION = 1
IDEAL_DOMAIN = "binarize_onnx.ideal"
MIN_OPSET = 13  # the default-domain opset that the bodies are written in

LAYERS = ("XnorConv", "XnorMatMul")

INT = AttributeProto.INT
INTS = AttributeProto.INTS

# The inputs that XnorConv and XnorMatMul apply after the accumulator, in this order; threshold, encode and flip make Q.
EPILOGUE = (
    "mask",
    "combine",
    "scale",
    "gate",
    "bias",
    "slope_pre",
    "residual",
    "shift",
    "slope",
    "offset",
    "threshold",
    "encode",
    "flip",
)


@dataclass(frozen=True)
class Op:
    """The signature of one op: all inputs, outputs and attributes appear on every node."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, int] = field(hash=False)
    domain: str = DOMAIN


_SIGNATURES = (
    Op("PackSign", ("X", "threshold", "encode", "flip"), ("P",), {"axis": INT}),
    Op("Unpack", ("P",), ("X",), {"axis": INT, "channels": INT, "x_low": INT}),
    Op(
        "XnorConv",
        ("P", "W", *EPILOGUE),
        ("Y", "Q"),
        {
            "channels": INT,
            "group": INT,
            "strides": INTS,
            "pads": INTS,
            "dilations": INTS,
            "pad_value": INT,
            "x_low": INT,
            "dtype": INT,
        },
    ),
    Op("XnorMatMul", ("A", "B", *EPILOGUE), ("Y", "Q"), {"k": INT, "x_low": INT, "dtype": INT}),
    Op(
        "PackedMaxPool",
        ("P", "invert"),
        ("Q",),
        {"channels": INT, "kernel_shape": INTS, "strides": INTS, "pads": INTS, "dilations": INTS, "ceil_mode": INT},
    ),
)
_IDEAL_SIGNATURES = (
    Op("BinarySign", ("X", "threshold", "flip"), ("Y",), {"x_low": INT}, IDEAL_DOMAIN),
    Op("Level", ("X", "threshold"), ("Y",), {}, IDEAL_DOMAIN),
)
OPS = {op.name: op for op in _SIGNATURES}
IDEAL_OPS = {op.name: op for op in _IDEAL_SIGNATURES}


# --- How a body is written ---------------------------------------------------------------------------------------


_ONE = numpy_helper.from_array(np.ones(1, np.int64))  # what a ConstantOfShape fills with


@dataclass(frozen=True)
class _Ref:
    """The value that the calling node gives to its attribute ``name``."""

    name: str


class _Body:
    """Collects the nodes of one function body.

    ``b.Add(x, y)`` writes an Add node and returns the name of its output; ``out=`` names the output where the name
    helps a reader of the model, and must for the function's own outputs.
    """

    def __init__(self, op: Op) -> None:
        self.op = op
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, str] = {}

    def __getattr__(self, op_type: str) -> Callable[..., str]:
        def write(*inputs: str, out: str = "", **attributes: Any) -> str:
            output = out or f"{op_type.lower()}_{len(self.nodes)}"
            values = {name: value for name, value in attributes.items() if not isinstance(value, _Ref)}
            node = helper.make_node(op_type, inputs, [output], **values)
            for name, value in attributes.items():
                if isinstance(value, _Ref):
                    kind: Any = self.op.attributes[value.name]
                    node.attribute.append(AttributeProto(name=name, ref_attr_name=value.name, type=kind))
            self.nodes.append(node)
            return output

        return write

    def _constant(self, **value: Any) -> str:
        """A Constant node, written once a value."""
        key = repr(value)
        if key not in self._constants:
            self._constants[key] = self.Constant(**value)
        return self._constants[key]

    def ints(self, *values: int) -> str:
        """An int64 vector."""
        return self._constant(value_ints=list(values))

    def integer(self, value: int) -> str:
        """An int64 scalar."""
        return self._constant(value_int=value)

    def real(self, value: float) -> str:
        """A float32 scalar."""
        return self._constant(value_float=value)

    def attribute(self, name: str) -> str:
        """An attribute of the node as an int64 vector; an integer attribute gives one element."""
        if self.op.attributes[name] == INTS:
            return self._constant(value_ints=_Ref(name))
        return self.Reshape(self._constant(value_int=_Ref(name)), self.ints(1))

    def real_attribute(self, name: str) -> str:
        """An integer attribute of the node as a float32 scalar."""
        return self.float32(self._constant(value_int=_Ref(name)))

    def join(self, *vectors: str) -> str:
        """int64 vectors end to end: a shape, or the pads of a Pad."""
        return self.Concat(*vectors, axis=0)

    def dims(self, tensor: str, start: int | str, end: int | str = 2**31) -> str:
        """Dimensions ``start`` to ``end`` of a tensor, as a vector; the bounds are numbers or one-element vectors."""
        bounds = [self.ints(bound) if isinstance(bound, int) else bound for bound in (start, end)]
        return self.Slice(self.Shape(tensor), *bounds, self.ints(0))

    def axis_from_end(self, tensor: str, distance: int) -> str:
        """The index, from the front, of the axis that is ``distance`` from the end: 1 is the last."""
        return self.Sub(self.Shape(self.Shape(tensor)), self.ints(distance))

    def after(self, axis: str) -> str:
        """The next axis."""
        return self.Add(axis, self.ints(1))

    def size(self, dims: str) -> str:
        """The product of a vector of dimensions, 1 if there are none, as a vector of one element."""
        return self.ReduceProd(self.join(self.ints(1), dims), keepdims=1)

    def words(self, lanes: str) -> str:
        """⌈lanes / 32⌉."""
        return self.Div(self.Add(lanes, self.ints(WORD - 1)), self.ints(WORD))

    def float32(self, x: str) -> str:
        """``x`` as float32."""
        return self.Cast(x, to=TensorProto.FLOAT)

    def uint32(self, x: str) -> str:
        """``x`` as uint32."""
        return self.Cast(x, to=TensorProto.UINT32)


def _unpack(b: _Body, packed: str, axis: str, lanes: str) -> str:
    """Words to bits: [pre…, planes·words, post…] uint32 → [pre, planes, lanes, post] float32 in {0, 1}.

    ``axis`` and ``lanes`` name vectors of one element.
    """
    pre = b.size(b.dims(packed, 0, axis))
    words = b.Reshape(packed, b.join(pre, b.Gather(b.Shape(packed), axis), b.ints(1, -1)))
    # Lane i of a word is its bit i: shift it to the top of the word, then to the bottom (Mod 2 takes far longer).
    to_top = b.uint32(b.Reshape(b.ints(*range(WORD - 1, -1, -1)), b.ints(WORD, 1)))
    at_top = b.BitShift(words, to_top, direction="LEFT")
    bit = b.BitShift(at_top, b.uint32(b.integer(WORD - 1)), direction="RIGHT")
    # [pre, planes·words, 32, post] → [pre, planes, 32·words, post].  The outer dimensions are copied (0), so that a
    # number of words that is no multiple of ⌈lanes/32⌉ is an error; then the unused lanes of the last word go.
    full = b.Mul(b.words(lanes), b.ints(WORD))
    planes = b.Reshape(b.float32(bit), b.join(b.ints(0, -1), full, b.ints(0)))
    return b.Slice(planes, b.ints(0), lanes, b.ints(2))


def _low_to_one(b: _Body, bits: str) -> str:
    """Bits in {0, 1} to the values they stand for, {x_low, +1}."""
    low = b.real_attribute("x_low")
    return b.Add(b.Mul(bits, b.Sub(b.real(1.0), low)), low)


def _plus_minus_one(b: _Body, bits: str) -> str:
    """Bits in {0, 1} to weights in {−1, +1}."""
    return b.Sub(b.Mul(bits, b.real(2.0)), b.real(1.0))


def _threshold(b: _Body, v: str, axis: str) -> str:
    """Values to bits: float32 [pre…, C, post…] → bool [pre…, planes, C, post…], planes just before C.

    ``axis`` names C's in ``v``, where the planes go.  Reads the op's threshold, encode and flip.
    """
    # g_p = v ≥ threshold_p, false for NaN: [pre…, P, C, post…].  All broadcasting happens in this rank.
    reached = b.GreaterOrEqual(b.Unsqueeze(v, axis), "threshold")

    # plane_b = Σ_p encode[b, p]·g_p mod 2, over three axes [pre, P, C·post].
    pre = b.dims(v, 0, axis)
    thresholds = b.Gather(b.Shape(reached), axis)
    rows = b.Reshape(b.float32(reached), b.join(b.size(pre), thresholds, b.ints(-1)))
    count = b.uint32(b.MatMul("encode", rows))
    odd = b.Cast(b.BitShift(count, b.uint32(b.integer(WORD - 1)), direction="LEFT"), to=TensorProto.BOOL)
    shape = b.join(pre, b.dims("encode", 0, 1), b.dims(v, axis))
    return b.Xor(b.Reshape(odd, shape), "flip")


def _pack(b: _Body, bits: str, axis: str, out: str) -> None:
    """Bits to words: bool [pre…, planes, C, post…] → uint32 [pre…, planes·⌈C/32⌉, post…], named ``out``.

    ``axis`` names that of the planes.
    """
    pre = b.dims(bits, 0, axis)
    planes = b.Gather(b.Shape(bits), axis)
    channels = b.Gather(b.Shape(bits), b.after(axis))
    post = b.dims(bits, b.after(b.after(axis)))

    # Four axes, [pre, planes, C, post]; then zeros to fill the last word (int64: nothing below pads or sums uint32).
    lanes = b.Reshape(b.Cast(bits, to=TensorProto.INT64), b.join(b.size(pre), planes, channels, b.ints(-1)))
    words = b.words(channels)
    missing = b.Sub(b.Mul(words, b.ints(WORD)), channels)
    padded = b.Pad(lanes, b.join(b.ints(0, 0, 0, 0, 0, 0), missing, b.ints(0)), b.integer(0))

    # A word is Σ_i bit_i·2^i over its 32 lanes (a 0 in the shape copies a dimension).
    grouped = b.Reshape(padded, b.join(b.ints(0, 0), words, b.ints(WORD, -1)))
    place = b.Reshape(b.ints(*(1 << i for i in range(WORD))), b.ints(WORD, 1))
    sums = b.ReduceSum(b.Mul(grouped, place), b.ints(3), keepdims=0)
    b.Reshape(b.uint32(sums), b.join(pre, b.ints(-1), post), out=out)


def _slope(b: _Body, z: str, slope: str) -> str:
    """z > 0 ? z : z·slope."""
    return b.Where(b.Greater(z, b.real(0.0)), z, b.Mul(z, slope))


def _add(b: _Body, z: str, x: str) -> str:
    """z + x, where x broadcasts to z.

    onnxruntime deletes an Add of a single zero, +0.0 too, although −0.0 + 0.0 is +0.0; but not where the zero has the
    higher rank.  (Sum would be left alone as well, but onnx.reference starts it from +0.0.)
    """
    ones = b.ConstantOfShape(b.after(b.Shape(b.Shape(z))), value=_ONE)
    return b.Squeeze(b.Add(z, b.Expand(x, ones)), b.ints(0))


def _repeat(b: _Body, residual: str, axis: int, channels: str) -> str:
    """The residual in float32, its channel axis repeated R → ``channels``: channel o reads o mod R."""
    shape = b.Shape(residual)
    repeats = b.Div(channels, b.Gather(shape, b.ints(axis)))
    if axis == -1:
        ones = b.ConstantOfShape(b.axis_from_end(residual, 1), value=_ONE)
        return b.Tile(b.float32(residual), b.join(ones, repeats))
    return b.Tile(b.float32(residual), b.join(b.ints(1), repeats, b.ints(1, 1)))


def _epilogue(b: _Body, terms: str, scale: str, channel_axis: int) -> str:
    """Weighted terms to Y; the float32 steps of docs/ops.md, one rounding each, in order.

    ``terms`` is [N, S, O, H, W] (channel axis 1 of the result) or […, M, S, N] (−1); the terms are on the axis where
    the result has its channels, or just before.
    """
    term_axis = channel_axis if channel_axis > 0 else channel_axis - 1
    # scale[0]·acc₀ + scale[1]·acc₁ + … from left to right: the last of the running sums.
    sums = b.CumSum(b.Mul(terms, scale), b.integer(term_axis))
    last = b.Slice(sums, b.ints(-1), b.ints(2**31), b.ints(term_axis))
    z = b.Squeeze(last, b.ints(term_axis))
    channels = b.Gather(b.Shape(z), b.ints(channel_axis))

    z = b.Mul(z, "gate")
    z = _add(b, z, "bias")
    z = _slope(b, z, "slope_pre")
    z = _add(b, z, _repeat(b, "residual", channel_axis, channels))
    z = _add(b, z, "shift")
    z = _slope(b, z, "slope")
    z = _add(b, z, "offset")
    return b.Cast(z, to=_Ref("dtype"), out="Y")


# --- The bodies: binarize_onnx -----------------------------------------------------------------------------------


def _pack_sign(b: _Body) -> None:
    axis = b.attribute("axis")
    _pack(b, _threshold(b, b.float32("X"), axis), axis, out="P")


def _unpack_op(b: _Body) -> None:
    axis, channels = b.attribute("axis"), b.attribute("channels")
    bits = _unpack(b, "P", axis, channels)
    values = _low_to_one(b, bits)
    shape = b.join(b.dims("P", 0, axis), channels, b.dims("P", b.after(axis)))
    b.Reshape(values, shape, out="X")


def _xnor_conv(b: _Body) -> None:
    channels = b.attribute("channels")
    filter_channels = b.Div(channels, b.attribute("group"))

    # Activations: [N, planes·words, H, W] → [N·planes, C, H, W] in {x_low, +1}, padded with pad_value.
    bits = _unpack(b, "P", b.ints(1), channels)
    x = b.Reshape(_low_to_one(b, bits), b.join(b.ints(-1), channels, b.dims("P", 2)))
    top_left, bottom_right = (b.Slice(b.attribute("pads"), b.ints(i), b.ints(i + 2)) for i in (0, 2))
    pads = b.join(b.ints(0, 0), top_left, b.ints(0, 0), bottom_right)
    x = b.Pad(x, pads, b.real_attribute("pad_value"))

    # Weights: [M·O, words, kh, kw] → [M·O, C/group, kh, kw] in {−1, +1}, or 0 where the mask is clear.
    def filters(packed: str) -> str:
        bits = _unpack(b, packed, b.ints(1), filter_channels)
        return b.Reshape(bits, b.join(b.dims(packed, 0, 1), filter_channels, b.dims(packed, 2)))

    w = b.Mul(_plus_minus_one(b, filters("W")), filters("mask"))

    # The accumulator, exact: [N·planes, M·O, H', W'].
    acc = b.Conv(x, w, strides=_Ref("strides"), dilations=_Ref("dilations"), group=_Ref("group"), out="accumulator")

    # Planes to terms: [T, planes] @ [N, planes, M·O·H'·W'], then [N, S = T·M, O, H', W'].
    batch = b.dims("P", 0, 1)
    per_plane = b.Reshape(acc, b.join(batch, b.dims("combine", 1, 2), b.ints(-1)))
    combined = b.MatMul("combine", per_plane)
    terms = b.Reshape(combined, b.join(batch, b.dims("scale", 0, 2), b.dims(acc, 2)))

    y = _epilogue(b, terms, "scale", channel_axis=1)
    axis = b.ints(1)
    _pack(b, _threshold(b, b.float32(y), axis), axis, out="Q")  # the bits read the rounded Y


def _xnor_mat_mul(b: _Body) -> None:
    k = b.attribute("k")

    # A: […, M, planes·words] → […, M·planes, k] in {x_low, +1}.
    bits = _unpack(b, "A", b.axis_from_end("A", 1), k)
    a = b.Reshape(_low_to_one(b, bits), b.join(b.dims("A", 0, -2), b.ints(-1), k))

    # B: […, words, bases·N] → […, k, bases·N] in {−1, +1}, or 0 where the mask is clear.
    def columns(packed: str) -> str:
        bits = _unpack(b, packed, b.axis_from_end(packed, 2), k)
        return b.Reshape(bits, b.join(b.dims(packed, 0, -2), k, b.dims(packed, -1)))

    w = b.Mul(_plus_minus_one(b, columns("B")), columns("mask"))

    # The accumulator, exact: […, M·planes, bases·N], the leading dimensions broadcast.
    acc = b.MatMul(a, w, out="accumulator")

    # Planes to terms: [T, planes] @ […, M, planes, bases·N], then […, M, S = T·bases, N].
    rows = b.join(b.dims(acc, 0, -2), b.dims("A", -2, -1))
    per_plane = b.Reshape(acc, b.join(rows, b.dims("combine", 1, 2), b.dims(acc, -1)))
    combined = b.MatMul("combine", per_plane)
    scale = b.Squeeze("scale", b.ints(1))  # [S, 1, N] → [S, N]
    terms = b.Reshape(combined, b.join(rows, b.Shape(scale)))

    y = _epilogue(b, terms, scale, channel_axis=-1)
    axis = b.axis_from_end(y, 1)
    _pack(b, _threshold(b, b.float32(y), axis), axis, out="Q")  # the bits read the rounded Y


def _packed_max_pool(b: _Body) -> None:
    channels = b.attribute("channels")
    shape = b.join(b.dims("P", 0, 1), channels, b.dims("P", 2))
    x = b.Greater(b.Reshape(_unpack(b, "P", b.ints(1), channels), shape), b.real(0.0))
    # AND is the OR of the inverted bits, inverted; a border of zeros is the identity of either.
    x = b.Xor(x, "invert")

    # The border is written out, because MaxPool refuses pads that reach the kernel's size, and because onnxruntime
    # 1.20 counts windows differently with ceil_mode.  Rounding up is a longer border at the end, one that fills the
    # last window; but if that window starts past the input, it is left out: a stride less.
    size, strides, dilations = b.dims("P", 2), b.attribute("strides"), b.attribute("dilations")
    leading, trailing = (b.Slice(b.attribute("pads"), b.ints(i), b.ints(i + 2)) for i in (0, 2))
    reach = b.Mul(b.Sub(b.attribute("kernel_shape"), b.ints(1)), dilations)
    padded_size = b.Add(b.Add(size, leading), trailing)
    travel = b.Sub(b.Sub(padded_size, reach), b.ints(1))  # how far the window's first tap can move
    up = b.Mod(b.Sub(strides, b.Mod(travel, strides)), strides)
    starts_outside = b.GreaterOrEqual(b.Add(travel, up), b.Add(size, leading))
    extra = b.Sub(up, b.Mul(strides, b.Cast(starts_outside, to=TensorProto.INT64)))
    extra = b.Mul(extra, b.attribute("ceil_mode"))
    pads = b.join(b.ints(0, 0), leading, b.ints(0, 0), b.Add(trailing, extra))
    # The comparison between Pad and MaxPool keeps onnxruntime from merging the two.
    padded = b.Greater(b.Pad(b.float32(x), pads, b.real(0.0)), b.real(0.0))
    pooled = b.MaxPool(
        b.float32(padded),
        kernel_shape=_Ref("kernel_shape"),
        strides=_Ref("strides"),
        dilations=_Ref("dilations"),
    )

    bits = b.Xor(b.Greater(pooled, b.real(0.0)), "invert")
    _pack(b, b.Unsqueeze(bits, b.ints(1)), b.ints(1), out="Q")


# --- The bodies: binarize_onnx.ideal -----------------------------------------------------------------------------


def _binary_sign(b: _Body) -> None:
    bit = b.Xor(b.GreaterOrEqual(b.float32("X"), "threshold"), "flip")
    b.Where(bit, b.real(1.0), b.real_attribute("x_low"), out="Y")


def _level(b: _Body) -> None:
    # threshold is [P, …]; what follows P broadcasts to X, so it moves to the end of [P, 1, …, 1, …].
    x = b.Unsqueeze(b.float32("X"), b.ints(0))
    fill = b.Sub(b.Shape(b.Shape(x)), b.Shape(b.Shape("threshold")))
    ones = b.ConstantOfShape(fill, value=_ONE)
    threshold = b.Reshape("threshold", b.join(b.dims("threshold", 0, 1), ones, b.dims("threshold", 1)))
    reached = b.GreaterOrEqual(x, threshold)
    b.ReduceSum(b.float32(reached), b.ints(0), keepdims=0, out="Y")


_BODIES: dict[str, Callable[[_Body], None]] = {
    "PackSign": _pack_sign,
    "Unpack": _unpack_op,
    "XnorConv": _xnor_conv,
    "XnorMatMul": _xnor_mat_mul,
    "PackedMaxPool": _packed_max_pool,
    "BinarySign": _binary_sign,
    "Level": _level,
}


# --- For writers of models ---------------------------------------------------------------------------------------


def _find(name: str, domain: str) -> Op:
    op = {DOMAIN: OPS, IDEAL_DOMAIN: IDEAL_OPS}.get(domain, {}).get(name)
    if op is None:
        raise ValueError(f"{domain or 'ai.onnx'}.{name} is no op of this project")
    return op


def function(name: str, domain: str, default_opset: int) -> onnx.FunctionProto:
    """The body of one op, for a model whose default-domain opset is ``default_opset``."""
    if default_opset < MIN_OPSET:
        raise ValueError(f"function bodies need opset {MIN_OPSET} or later, not {default_opset}")
    op = _find(name, domain)
    body = _Body(op)
    _BODIES[name](body)
    imports = [helper.make_opsetid("", default_opset)]
    return helper.make_function(domain, name, op.inputs, op.outputs, body.nodes, imports, list(op.attributes))


def functions_in_use(model: onnx.ModelProto) -> list[onnx.FunctionProto]:
    """The bodies of every op of ours that the graph, a subgraph or a function of ``model`` calls, in a fixed order."""
    default_opset = _default_opset(model)
    return [function(name, domain, default_opset) for domain, name in _called(model)]


def attach_functions(model: onnx.ModelProto) -> None:
    """Give a model the bodies of the ops of ours that it calls, and import their domains."""
    bodies = functions_in_use(model)
    written = {(body.domain, body.name) for body in bodies}
    others = [body for body in model.functions if (body.domain, body.name) not in written]
    del model.functions[:]
    model.functions.extend([*bodies, *others])
    imported = {entry.domain for entry in model.opset_import}
    model.opset_import.extend(
        helper.make_opsetid(domain, VERSION) for domain in sorted({body.domain for body in bodies} - imported)
    )


def functions_changed(model: onnx.ModelProto) -> list[str]:
    """The ops in use whose body in ``model`` is not the one that :func:`functions_in_use` gives it, in a fixed order.

    Names of nodes and constants, documentation, metadata and the order of attributes mean nothing and may differ.  A
    body that is not there has not changed.
    """
    default_opset = _default_opset(model)
    called = _called(model)
    if default_opset < MIN_OPSET:  # where this version writes none
        ours: dict[tuple[str, str], bytes] = {}
    else:
        ours = {key: _meaning(function(key[1], key[0], default_opset)) for key in called}
    changed = {key for body in model.functions if _meaning(body) != ours.get(key := (body.domain, body.name))}
    return [name for domain, name in called if (domain, name) in changed]


def _default_opset(model: onnx.ModelProto) -> int:
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _called(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """Domain and name of every op of ours that the model calls, in a fixed order."""
    own = {(op.domain, op.name) for op in (*_SIGNATURES, *_IDEAL_SIGNATURES)}
    return sorted(own & {(node.domain, node.op_type) for node in _all_nodes(model)})


def _meaning(body: onnx.FunctionProto) -> bytes:
    """A function as bytes, without what means nothing: the same for the same text, whoever wrote it."""
    bare = onnx.FunctionProto(domain=body.domain, name=body.name, input=body.input, output=body.output)
    bare.attribute.extend(sorted(body.attribute))
    bare.attribute_proto.extend(sorted(body.attribute_proto, key=lambda attribute: attribute.name))
    bare.opset_import.extend(helper.make_opsetid(_bare_domain(e.domain), e.version) for e in body.opset_import)
    for node in body.node:
        written = bare.node.add(op_type=node.op_type, domain=_bare_domain(node.domain))
        written.input.extend(node.input)
        written.output.extend(node.output)
        written.attribute.extend(sorted(node.attribute, key=lambda attribute: attribute.name))
        for attribute in written.attribute:
            attribute.ClearField("doc_string")
            if not attribute.ref_attr_name:
                attribute.ClearField("ref_attr_name")  # written and empty says no more
            if attribute.HasField("t"):
                attribute.t.ClearField("name")
                attribute.t.ClearField("doc_string")
    content: bytes = bare.SerializeToString(deterministic=True)
    return content


def _bare_domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of the model, those of subgraphs and functions too."""
    pending: list[Any] = [model.graph, *model.functions]
    while pending:
        for node in pending.pop().node:
            yield node
            for attribute in node.attribute:
                if attribute.type == AttributeProto.GRAPH:
                    pending.append(attribute.g)
                pending.extend(attribute.graphs)


def make_node(
    name: str, inputs: Sequence[str], outputs: Sequence[str], *, node_name: str = "", **attributes: int | Sequence[int]
) -> onnx.NodeProto:
    """A node of one of our ops, checked; "" leaves an output of an op with two unused."""
    op = OPS.get(name) or IDEAL_OPS.get(name)
    if op is None:
        raise ValueError(f"{name} is no op of this project")
    node = helper.make_node(name, inputs, outputs, name=node_name, domain=op.domain)
    node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    check_node(node)
    return node


def check_node(node: onnx.NodeProto) -> None:
    """Raise ValueError unless ``node`` lists every input, output and attribute of its op, as its body needs."""
    op = _find(node.op_type, node.domain)
    where = f"{op.name} node {node.name!r}" if node.name else f"{op.name} node"
    if len(node.input) != len(op.inputs):
        raise ValueError(f"{where}: takes {len(op.inputs)} inputs ({', '.join(op.inputs)}), not {len(node.input)}")
    for given, name in zip(node.input, op.inputs, strict=True):
        if not given:
            raise ValueError(f"{where}: input {name} is absent; give its neutral element")
    if len(node.output) != len(op.outputs):
        raise ValueError(
            f"{where}: lists {len(node.output)} outputs, must list {len(op.outputs)} ({', '.join(op.outputs)}); "
            f'an unused one is ""'
        )
    if not any(node.output):
        raise ValueError(f"{where}: no output is used")
    written = {attribute.name: attribute.type for attribute in node.attribute}
    for name in written.keys() - op.attributes.keys():
        raise ValueError(f"{where}: has no attribute {name}; its attributes are {', '.join(op.attributes) or 'none'}")
    for name, kind in op.attributes.items():
        if name not in written:
            raise ValueError(f"{where}: attribute {name} is not written; there are no defaults")
        if written[name] != kind:
            wanted = "a list of integers" if kind == INTS else "an integer"
            raise ValueError(f"{where}: attribute {name} must be {wanted}")


def conv_neutral(
    name: str, *, outputs: int, words: int, planes: int = 1, terms: int = 1, dtype: Any = np.float32
) -> NDArray[Any]:
    """The value of an XnorConv epilogue input that leaves the result as it is.

    ``outputs`` is O, ``words`` the words of a filter (axis 1 of W), ``planes`` the input's planes for combine and the
    thresholds for encode, ``terms`` the S of scale, ``dtype`` that of Y.
    """
    return _neutral(name, (1,) * 3, mask=(1, words, 1, 1), scale=(terms, outputs, 1, 1), planes=planes, dtype=dtype)


def matmul_neutral(
    name: str, *, outputs: int, words: int, planes: int = 1, terms: int = 1, dtype: Any = np.float32
) -> NDArray[Any]:
    """As :func:`conv_neutral`, for XnorMatMul: ``outputs`` is N and ``words`` those of a column (axis −2 of B)."""
    return _neutral(name, (1,), mask=(words, 1), scale=(terms, 1, outputs), planes=planes, dtype=dtype)


def _neutral(
    name: str, vector: tuple[int, ...], *, mask: tuple[int, ...], scale: tuple[int, ...], planes: int, dtype: Any
) -> NDArray[Any]:
    """A neutral element; ``vector`` is the shape of a per-channel parameter that has one value."""
    one_more = (1, *vector)
    match name:
        case "mask":
            return np.full(mask, 0xFFFFFFFF, np.uint32)
        case "combine" | "encode":
            return np.eye(planes, dtype=np.float32)
        case "scale":
            return np.ones(scale, np.float32)
        case "gate" | "slope_pre" | "slope":
            return np.ones(vector, np.float32)
        case "bias" | "shift" | "offset":
            return np.full(vector, -0.0, np.float32)  # x + −0.0 is x for every x; −0.0 + 0.0 is not −0.0
        case "residual":
            return np.full(one_more, -0.0, dtype)
        case "threshold":
            return np.zeros(one_more, np.float32)
        case "flip":
            return np.zeros(one_more, np.bool_)
    raise ValueError(f"{name} is no epilogue input; they are {', '.join(EPILOGUE)}")
