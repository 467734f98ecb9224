"""The op calls that the body tests and the kernel tests share: a case is one line, and its label says what it hits.

A case holds the arrays of every input, the attributes, and which inputs arrive at run time.  Inputs that a line does
not ``use`` are neutral elements.  Thresholds are drawn from the values that they are compared with, so that equality,
the edge of every comparison, occurs in every case that has one.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import oracle
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from binarize_onnx import opset

Array = NDArray[Any]
F32 = np.float32
FLOAT16 = int(TensorProto.FLOAT16)
SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-42, -1e-42, 3.4e38)
SCALARS = {"bias": [[[0.3]]], "slope_pre": [[[0.25]]], "shift": [[[-1.7]]], "slope": [[[-0.5]]], "offset": [[[0.1]]]}
VECTORS = "bias slope_pre shift slope offset"
FULL = f"mask scale gate {VECTORS} residual threshold flip"


@dataclass(frozen=True, eq=False)
class Case:
    label: str
    op: str
    inputs: dict[str, Array]
    attributes: dict[str, Any]
    runtime: frozenset[str]  # inputs that are fed; the others are initializers

    @functools.cached_property
    def expected(self) -> dict[str, Array]:
        with np.errstate(all="ignore"):
            values = oracle.RUN[self.op](self.inputs, **self.attributes)
        return dict(zip(signature(self.op).outputs, values, strict=True))

    @property
    def output_choices(self) -> list[tuple[str, ...]]:
        """What a node may be asked for: everything, or one of two outputs."""
        outputs = signature(self.op).outputs
        return [outputs] if len(outputs) == 1 else [outputs, outputs[:1], outputs[1:]]

    def feed(self) -> dict[str, Array]:
        return {name: self.inputs[name] for name in self.runtime}

    def model(
        self,
        outputs: Sequence[str] = (),
        *,
        default_opset: int = 13,
        static: bool = False,
        functions: bool = True,
    ) -> onnx.ModelProto:
        """One node that gives ``outputs`` (all of them when empty), with dynamic or static shapes."""
        op = signature(self.op)
        outputs = outputs or op.outputs
        names = [name if name in outputs else "" for name in op.outputs]
        node = opset.make_node(self.op, op.inputs, names, **self.attributes)

        def info(name: str, array: Array) -> onnx.ValueInfoProto:
            shape = array.shape if static else [f"{name}{i}" for i in range(array.ndim)]
            return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape)

        graph = helper.make_graph(
            [node],
            "case",
            [info(name, array) for name, array in self.inputs.items() if name in self.runtime],
            [info(name, self.expected[name]) for name in names if name],
            [numpy_helper.from_array(array, name) for name, array in self.inputs.items() if name not in self.runtime],
        )
        imports = [helper.make_opsetid("", default_opset), helper.make_opsetid(op.domain, opset.VERSION)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=10 if default_opset > 17 else 8)
        if functions:
            model.functions.extend(opset.functions_in_use(model))
        return model


def signature(op: str) -> opset.Op:
    return opset.OPS.get(op) or opset.IDEAL_OPS[op]


def same(actual: Array, expected: Array) -> None:
    """Equal type, shape and bits; any NaN is as good as another."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if expected.dtype.kind == "f":
        both_nan = np.isnan(actual) & np.isnan(expected)
        actual, expected = np.where(both_nan, 0, actual), np.where(both_nan, 0, expected)
        unsigned = {2: np.uint16, 4: np.uint32}[expected.dtype.itemsize]
        actual, expected = actual.view(unsigned), expected.view(unsigned)
    np.testing.assert_array_equal(actual, expected)


# --- Drawing values ----------------------------------------------------------------------------------------------


def random_bits(rng: np.random.Generator, *shape: int) -> Array:
    return rng.integers(0, 2, shape).astype(np.bool_)


def random_real(rng: np.random.Generator, shape: Iterable[int], spread: float = 1.0) -> Array:
    return (rng.normal(size=tuple(shape)) * spread).astype(F32)


def thresholds_among(rng: np.random.Generator, v: Array, plane_axis: int, shape: Sequence[int]) -> Array:
    """Thresholds that values of ``v`` meet exactly, ascending over the planes; a dimension of 1 draws from all."""
    padded = (1,) * (v.ndim + 1 - len(shape)) + tuple(shape)
    chosen = np.empty(padded, F32)
    for index in np.ndindex(*padded):
        place = [i if padded[axis] > 1 else slice(None) for axis, i in enumerate(index)]
        del place[plane_axis]
        chosen[index] = rng.choice(v[tuple(place)].ravel())
    return np.sort(chosen, axis=plane_axis).reshape(shape)


def positional(thresholds: int) -> Array:
    """The encoding that turns 2^b − 1 ascending thresholds into the b bits of the level."""
    bits = thresholds.bit_length()
    return np.array([[float((p + 1) % (1 << i) == 0) for p in range(thresholds)] for i in range(bits)], F32)


def _encode(kind: str, thresholds: int) -> Array:
    return positional(thresholds) if kind == "positional" else np.eye(thresholds, dtype=F32)


def _given(**shapes: Any) -> dict[str, Any]:
    return {name: shape for name, shape in shapes.items() if shape is not None}


def _epilogue(
    rng: np.random.Generator,
    op: str,
    operands: dict[str, Array],
    attributes: dict[str, Any],
    *,
    out_shape: tuple[int, ...],
    mask: Array,
    planes: int,
    terms: int,
    use: str,
    combine: Any,
    encode: str,
    thresholds: int,
    shapes: dict[str, tuple[int, ...]],
    values: dict[str, Any],
) -> dict[str, Array]:
    """All thirteen inputs: random or given where ``use``, ``shapes`` or ``values`` name them, neutral elsewhere."""
    conv = op == "XnorConv"
    outputs = out_shape[1] if conv else out_shape[-1]
    vector = (outputs, 1, 1) if conv else (outputs,)
    used = {*use.split(), *shapes, *values}
    real = np.float16 if attributes["dtype"] == FLOAT16 else F32
    inputs = dict(operands)
    neutral = opset.conv_neutral if conv else opset.matmul_neutral
    words = operands["W"].shape[1] if conv else operands["B"].shape[-2]
    for name in opset.EPILOGUE:
        count = thresholds if name == "encode" else planes
        inputs[name] = neutral(name, outputs=outputs, words=words, planes=count, terms=terms, dtype=real)
    if combine is not None:
        inputs["combine"] = np.array(combine, F32)
    if "mask" in used:
        inputs["mask"] = mask
    if "scale" in used:
        inputs["scale"] = random_real(rng, inputs["scale"].shape, 0.3)
    for name in ("gate", *VECTORS.split(), "residual"):
        if name in used:
            shape = shapes.get(name, vector if name in VECTORS.split() else out_shape)
            inputs[name] = random_real(rng, shape).astype(real if name == "residual" else F32)
    inputs |= {name: np.asarray(value, inputs[name].dtype) for name, value in values.items()}
    if "threshold" in used and "threshold" not in values:
        inputs["encode"] = np.eye(1, dtype=F32)
        with np.errstate(all="ignore"):
            y = oracle.RUN[op](inputs, **attributes)[0].astype(F32)
        shape = shapes.get("threshold", (thresholds, *vector))
        inputs["threshold"] = thresholds_among(rng, y, 1 if conv else y.ndim - 1, shape)
    inputs["encode"] = _encode(encode, thresholds)
    if "flip" in used and "flip" not in values:
        inputs["flip"] = random_bits(rng, *shapes.get("flip", (1, *vector)))
    return inputs


# --- One line a case ---------------------------------------------------------------------------------------------


def conv(
    label: str,
    x: tuple[int, int, int, int],
    w: tuple[int, int, int],
    *,
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilations: tuple[int, int] = (1, 1),
    group: int = 1,
    pad_value: int = 0,
    x_low: int = -1,
    dtype: int = 1,
    planes: int = 1,
    bases: int = 1,
    combine: Any = None,
    encode: str = "identity",
    thresholds: int = 1,
    use: str = "",
    gate: tuple[int, ...] | None = None,
    residual: tuple[int, ...] | None = None,
    threshold: tuple[int, ...] | None = None,
    flip: tuple[int, ...] | None = None,
    runtime: str = "",
    values: dict[str, Any] | None = None,
) -> Case:
    """XnorConv: ``x`` is [N, C, H, W], ``w`` is [O, kh, kw]; ``values`` gives epilogue inputs outright."""
    rng = np.random.default_rng(abs(hash_of(label)))
    batch, channels, height, width = x
    outputs, kernel_h, kernel_w = w
    filters = (bases * outputs, channels // group, kernel_h, kernel_w)
    attributes = {
        "channels": channels,
        "group": group,
        "strides": list(strides),
        "pads": list(pads),
        "dilations": list(dilations),
        "pad_value": pad_value,
        "x_low": x_low,
        "dtype": dtype,
    }
    out_h = (pads[0] + height + pads[2] - dilations[0] * (kernel_h - 1) - 1) // strides[0] + 1
    out_w = (pads[1] + width + pads[3] - dilations[1] * (kernel_w - 1) - 1) // strides[1] + 1
    packed = [oracle.pack(random_bits(rng, batch, channels, height, width), 1) for _ in range(planes)]
    inputs = _epilogue(
        rng,
        "XnorConv",
        {"P": np.concatenate(packed, 1), "W": oracle.pack(random_bits(rng, *filters), 1)},
        attributes,
        out_shape=(batch, outputs, out_h, out_w),
        mask=oracle.pack(random_bits(rng, *filters), 1),
        planes=planes,
        terms=(planes if combine is None else len(combine)) * bases,
        use=use,
        combine=combine,
        encode=encode,
        thresholds=thresholds,
        shapes=_given(gate=gate, residual=residual, threshold=threshold, flip=flip),
        values=values or {},
    )
    return Case(label, "XnorConv", inputs, attributes, frozenset(["P", *runtime.split()]))


def matmul(
    label: str,
    a: tuple[int, ...],
    b: tuple[int, ...],
    *,
    x_low: int = -1,
    dtype: int = 1,
    planes: int = 1,
    bases: int = 1,
    combine: Any = None,
    encode: str = "identity",
    thresholds: int = 1,
    use: str = "",
    gate: tuple[int, ...] | None = None,
    residual: tuple[int, ...] | None = None,
    threshold: tuple[int, ...] | None = None,
    flip: tuple[int, ...] | None = None,
    runtime: str = "",
    values: dict[str, Any] | None = None,
) -> Case:
    """XnorMatMul: ``a`` is […, M, k], ``b`` is […, k, N]; ``bases`` repeats the columns."""
    rng = np.random.default_rng(abs(hash_of(label)))
    columns = (*b[:-1], bases * b[-1])
    attributes = {"k": a[-1], "x_low": x_low, "dtype": dtype}
    packed = [oracle.pack(random_bits(rng, *a), len(a) - 1) for _ in range(planes)]
    inputs = _epilogue(
        rng,
        "XnorMatMul",
        {"A": np.concatenate(packed, -1), "B": oracle.pack(random_bits(rng, *columns), len(b) - 2)},
        attributes,
        out_shape=(*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1]),
        mask=oracle.pack(random_bits(rng, *columns), len(b) - 2),
        planes=planes,
        terms=(planes if combine is None else len(combine)) * bases,
        use=use,
        combine=combine,
        encode=encode,
        thresholds=thresholds,
        shapes=_given(gate=gate, residual=residual, threshold=threshold, flip=flip),
        values=values or {},
    )
    return Case(label, "XnorMatMul", inputs, attributes, frozenset(["A", *runtime.split()]))


def pack_sign(
    label: str,
    x: tuple[int, ...],
    axis: int,
    threshold: tuple[int, ...],
    *,
    flip: tuple[int, ...] = (),
    encode: str = "identity",
    special: bool = False,
    dtype: Any = F32,
    runtime: str = "",
) -> Case:
    """PackSign of ``x``; the planes of ``threshold`` are on the axis of its rank that lies just before ``axis``."""
    rng = np.random.default_rng(abs(hash_of(label)))
    value = random_real(rng, x)
    if special:
        value.ravel()[rng.permutation(value.size)[: len(SPECIAL)]] = np.array(SPECIAL)[: value.size]
    with np.errstate(over="ignore"):
        value = value.astype(dtype)
    from_end = len(x) - axis + 1  # where the planes are, counted from the end of the threshold's shape
    planes = threshold[-from_end] if len(threshold) >= from_end else 1
    inputs = {
        "X": value,
        "threshold": thresholds_among(rng, value.astype(F32), axis, threshold),
        "encode": _encode(encode, planes),
        "flip": random_bits(rng, *flip),
    }
    return Case(label, "PackSign", inputs, {"axis": axis}, frozenset(["X", *runtime.split()]))


def unpack(label: str, shape: tuple[int, ...], axis: int, x_low: int = -1) -> Case:
    """Unpack of the bits of a tensor of ``shape``."""
    bits = random_bits(np.random.default_rng(abs(hash_of(label))), *shape)
    attributes = {"axis": axis, "channels": shape[axis], "x_low": x_low}
    return Case(label, "Unpack", {"P": oracle.pack(bits, axis)}, attributes, frozenset(["P"]))


def pool(
    label: str,
    x: tuple[int, int, int, int],
    kernel: tuple[int, int],
    *,
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilations: tuple[int, int] = (1, 1),
    ceil_mode: int = 0,
    invert: bool = True,
    runtime: str = "",
) -> Case:
    """PackedMaxPool of [N, C, H, W]; ``invert`` inverts half of the channels, otherwise it is the neutral element."""
    rng = np.random.default_rng(abs(hash_of(label)))
    attributes = {
        "channels": x[1],
        "kernel_shape": list(kernel),
        "strides": list(strides),
        "pads": list(pads),
        "dilations": list(dilations),
        "ceil_mode": ceil_mode,
    }
    flags = random_bits(rng, x[1], 1, 1) if invert else np.zeros((1, 1, 1), np.bool_)
    inputs = {"P": oracle.pack(random_bits(rng, *x), 1), "invert": flags}
    return Case(label, "PackedMaxPool", inputs, attributes, frozenset(["P", *runtime.split()]))


def binary_sign(label: str, x: tuple[int, ...], per: tuple[int, ...], x_low: int = -1) -> Case:
    """BinarySign; ``per`` is the shape of threshold and flip."""
    rng = np.random.default_rng(abs(hash_of(label)))
    value = random_real(rng, x)
    value.ravel()[: len(SPECIAL)] = np.array(SPECIAL)[: value.size]
    threshold = thresholds_among(rng, value, 0, (1, *per)).reshape(per)
    inputs = {"X": value, "threshold": threshold, "flip": random_bits(rng, *per)}
    return Case(label, "BinarySign", inputs, {"x_low": x_low}, frozenset(["X"]))


def level(label: str, x: tuple[int, ...], threshold: tuple[int, ...]) -> Case:
    """Level; ``threshold`` is [P, …]."""
    rng = np.random.default_rng(abs(hash_of(label)))
    value = random_real(rng, x)
    full = (threshold[0], *(1,) * (len(x) + 1 - len(threshold)), *threshold[1:])
    inputs = {"X": value, "threshold": thresholds_among(rng, value, 0, full).reshape(threshold)}
    return Case(label, "Level", inputs, {}, frozenset(["X"]))


def hash_of(label: str) -> int:
    """A seed from a label, the same in every process."""
    return int.from_bytes(label.encode(), "little") % (2**63)


# --- The grid ----------------------------------------------------------------------------------------------------

PAD1 = (1, 1, 1, 1)
NEGATIVE_ZERO = {"scale": [[[[-1.0]], [[1.0]]]]}  # accumulators of 0 become −0.0 in channel 0
_EDGES = [0, -0.0, 0.5, -0.5, 2, -2, 32, 33, -32, -33, 3e9, -1e38, np.inf, -np.inf, np.nan, 1e-42]
EDGES = {"threshold": np.reshape(_EDGES, (1, 16, 1, 1)), "flip": np.reshape([False, True] * 8, (1, 16, 1, 1))}
ALL_AT_RUN_TIME = f"W {' '.join(opset.EPILOGUE)}"

CONV = [
    conv("one word, all neutral", (1, 32, 5, 5), (32, 3, 3), pads=PAD1),
    conv("one lane", (1, 1, 3, 3), (1, 1, 1)),
    conv("33 lanes", (2, 33, 4, 5), (33, 3, 3), pads=PAD1, use="scale threshold"),
    conv("31 lanes, 31 outputs", (1, 31, 4, 5), (31, 3, 3), pads=PAD1, use="threshold flip"),
    conv("full epilogue", (2, 40, 7, 6), (8, 3, 3), pads=(1, 0, 2, 1), use=FULL),
    conv("full epilogue, 32 outputs, one vector width", (1, 64, 6, 6), (32, 3, 3), pads=PAD1, use=FULL),
    conv("full epilogue, float16", (2, 40, 7, 6), (8, 3, 3), pads=PAD1, use=FULL, dtype=FLOAT16),
    conv("float16 bits read the rounded Y", (2, 70, 5, 5), (33, 3, 3), pads=PAD1, use="scale threshold", dtype=FLOAT16),
    conv("full epilogue, all at run time", (2, 40, 7, 6), (6, 3, 3), pads=PAD1, use=FULL, runtime=ALL_AT_RUN_TIME),
    conv("neutral, all at run time", (2, 40, 5, 6), (6, 3, 3), pads=PAD1, runtime=ALL_AT_RUN_TIME),
    conv("weights at run time", (2, 40, 5, 6), (6, 3, 3), pads=PAD1, use="scale threshold", runtime="W"),
    conv("mask at run time", (2, 40, 5, 6), (6, 3, 3), pads=PAD1, use="mask threshold", runtime="mask"),
    conv("1x1 image", (3, 32, 1, 1), (34, 1, 1), use="scale threshold"),
    conv("1x1 image, kernel larger than it", (2, 40, 1, 1), (5, 3, 3), pads=PAD1, use="scale threshold"),
    conv("kernel larger than the input", (1, 33, 2, 3), (4, 5, 5), pads=(2, 1, 2, 2), use="scale bias threshold"),
    conv("kernel entirely in the border at corners", (1, 32, 3, 3), (4, 2, 2), pads=(3, 3, 3, 3), use="threshold"),
    conv("border of -1", (1, 70, 4, 5), (6, 3, 3), pads=PAD1, pad_value=-1, use="scale threshold"),
    conv("border of +1", (1, 70, 4, 5), (6, 3, 3), pads=PAD1, pad_value=1, use="scale threshold"),
    conv("asymmetric border of +1", (1, 70, 9, 6), (6, 3, 3), pads=(2, 1, 0, 2), pad_value=1, use="scale threshold"),
    conv(
        "asymmetric border, masked, -1", (1, 70, 5, 6), (6, 3, 3), pads=(2, 1, 0, 2), pad_value=-1, use="mask threshold"
    ),
    conv("stride 2", (2, 64, 8, 8), (16, 3, 3), strides=(2, 2), pads=PAD1, use="scale bias threshold"),
    conv("stride 2, even kernel", (1, 40, 7, 8), (9, 2, 2), strides=(2, 2), pads=(0, 0, 1, 0), use="threshold"),
    conv("stride 3x1 leaves a remainder", (1, 40, 8, 7), (9, 3, 3), strides=(3, 1), use="scale threshold"),
    conv("dilation", (1, 40, 9, 9), (6, 3, 3), dilations=(2, 3), pads=(2, 3, 2, 3), use="scale threshold"),
    conv("stride, dilation, asymmetric", (1, 70, 9, 8), (6, 3, 2), strides=(2, 1), dilations=(2, 3), pads=(2, 1, 0, 2)),
    conv("1xk kernel", (1, 40, 3, 9), (6, 1, 5), pads=(0, 2, 0, 2), use="scale threshold"),
    conv("kx1 kernel", (1, 40, 9, 3), (6, 5, 1), pads=(2, 0, 2, 0), use="scale threshold"),
    conv("7x7 stem", (1, 3, 12, 12), (8, 7, 7), strides=(2, 2), pads=(3, 3, 3, 3), use="scale threshold"),
    conv("groups, not word aligned", (2, 70, 5, 5), (6, 3, 3), group=2, pads=PAD1, use="scale threshold"),
    conv("groups, word aligned", (1, 64, 5, 5), (6, 3, 3), group=2, pads=PAD1, use=FULL),
    conv("groups of 48 straddle words", (2, 144, 5, 5), (9, 3, 3), group=3, pads=PAD1, pad_value=-1, use="mask scale"),
    conv("depthwise", (1, 40, 5, 5), (40, 3, 3), group=40, pads=PAD1, use="scale threshold"),
    conv("depthwise, two filters each", (1, 5, 5, 5), (10, 3, 3), group=5, pads=PAD1, pad_value=1, use="threshold"),
    conv("groups, x_low 0", (1, 70, 5, 5), (6, 3, 3), group=2, pads=PAD1, x_low=0, use="mask scale threshold"),
    conv("x_low 0", (2, 33, 5, 5), (6, 3, 3), pads=PAD1, x_low=0, use="scale threshold"),
    conv("x_low 0, border of -1", (2, 33, 5, 5), (6, 3, 3), pads=PAD1, x_low=0, pad_value=-1, use="scale threshold"),
    conv(
        "x_low 0, border of +1, masked", (2, 33, 5, 5), (6, 3, 3), pads=PAD1, x_low=0, pad_value=1, use="mask threshold"
    ),
    conv("two bases", (1, 70, 5, 6), (6, 3, 3), pads=PAD1, bases=2, use="scale bias threshold"),
    conv("five bases, one output", (1, 40, 5, 6), (1, 3, 3), pads=PAD1, bases=5, use="scale"),
    conv("three planes", (2, 33, 5, 5), (6, 3, 3), pads=PAD1, planes=3, use="scale threshold"),
    conv(
        "three planes, three bases, x_low 0", (2, 33, 5, 5), (6, 3, 3), pads=PAD1, planes=3, bases=3, x_low=0, use=FULL
    ),
    conv("planes of two words, groups", (1, 66, 5, 5), (6, 3, 3), pads=PAD1, planes=2, group=3, use="scale threshold"),
    conv("4-bit activations", (2, 33, 5, 5), (6, 3, 3), pads=PAD1, planes=4, x_low=0, combine=[[1, 2, 4, 8]], use=FULL),
    conv(
        "4 bits, 2 bases",
        (1, 64, 5, 5),
        (8, 3, 3),
        pads=PAD1,
        planes=4,
        bases=2,
        x_low=0,
        combine=[[1, 2, 4, 8]],
        use=FULL,
    ),
    conv(
        "2-bit activations, integer path",
        (1, 64, 5, 5),
        (32, 3, 3),
        pads=PAD1,
        planes=2,
        x_low=0,
        combine=[[1, 2]],
        use="threshold",
    ),
    conv(
        "2 bits, border of +1",
        (1, 64, 5, 5),
        (8, 3, 3),
        pads=PAD1,
        pad_value=1,
        planes=2,
        x_low=0,
        combine=[[1, 2]],
        use="scale",
    ),
    conv(
        "combine rows mix planes",
        (2, 40, 5, 5),
        (6, 3, 3),
        planes=3,
        bases=2,
        combine=[[1, -2, 0], [3, 1, 1]],
        use="scale threshold",
    ),
    conv("combine with one column", (1, 40, 5, 5), (6, 3, 3), combine=[[2], [-3]], use="scale threshold"),
    conv("combine of one weight", (1, 40, 5, 5), (6, 3, 3), combine=[[-3]], use="threshold"),
    conv(
        "positional code of 15 thresholds",
        (2, 40, 6, 5),
        (35, 3, 3),
        pads=PAD1,
        use="scale threshold",
        thresholds=15,
        encode="positional",
    ),
    conv(
        "positional code, integer path",
        (1, 64, 6, 5),
        (32, 3, 3),
        pads=PAD1,
        use="threshold",
        thresholds=3,
        encode="positional",
    ),
    conv(
        "positional code, flip a plane",
        (1, 40, 6, 5),
        (5, 3, 3),
        use="scale threshold",
        thresholds=3,
        encode="positional",
        flip=(2, 5, 1, 1),
    ),
    conv(
        "4 bits to 4 bits, float16",
        (1, 40, 6, 5),
        (5, 3, 3),
        pads=PAD1,
        planes=4,
        x_low=0,
        combine=[[1, 2, 4, 8]],
        use="scale bias residual slope threshold",
        thresholds=15,
        encode="positional",
        dtype=FLOAT16,
    ),
    conv("three thresholds, a plane each", (1, 40, 5, 5), (40, 3, 3), pads=PAD1, use="scale threshold", thresholds=3),
    conv("threshold [P, 1, 1, 1]", (2, 40, 5, 4), (6, 3, 3), use="scale", thresholds=2, threshold=(2, 1, 1, 1)),
    conv("threshold [C, 1, 1]", (2, 40, 5, 4), (6, 3, 3), use="scale", threshold=(6, 1, 1), flip=(6, 1, 1)),
    conv("threshold [1, P, C, 1, 1]", (2, 40, 5, 4), (6, 3, 3), use="scale", thresholds=2, threshold=(1, 2, 6, 1, 1)),
    conv(
        "threshold [N, P, C, 1, 1] at run time",
        (3, 40, 5, 4),
        (6, 3, 3),
        use="scale",
        thresholds=2,
        threshold=(3, 2, 6, 1, 1),
        runtime="threshold",
    ),
    conv(
        "threshold a pixel",
        (2, 40, 5, 4),
        (6, 3, 3),
        pads=PAD1,
        use="scale",
        threshold=(2, 1, 6, 5, 4),
        flip=(1, 1, 1, 5, 4),
        runtime="threshold flip",
    ),
    conv("threshold a pixel, every channel", (2, 40, 5, 4), (6, 3, 3), pads=PAD1, use="scale", threshold=(5, 4)),
    conv("scalar threshold and flip", (2, 40, 5, 4), (6, 3, 3), pads=PAD1, use="scale", threshold=(), flip=()),
    conv("flip an image", (2, 40, 5, 4), (6, 3, 3), use="threshold", flip=(2, 1, 6, 1, 1), runtime="flip"),
    conv(
        "gate [N, O, 1, 1] at run time",
        (2, 40, 5, 4),
        (6, 3, 3),
        use="scale threshold",
        gate=(2, 6, 1, 1),
        runtime="gate",
    ),
    conv(
        "gate [N, 1, H, W] at run time",
        (2, 40, 5, 4),
        (6, 3, 3),
        pads=PAD1,
        use="scale bias threshold",
        gate=(2, 1, 5, 4),
        runtime="gate",
    ),
    conv("gate [O, H, W]", (2, 40, 5, 4), (6, 3, 3), pads=PAD1, use="scale bias threshold", gate=(6, 5, 4)),
    conv("gate [W]", (2, 40, 5, 4), (6, 3, 3), pads=PAD1, use="scale bias threshold", gate=(4,)),
    conv("gate of rank 0", (2, 40, 5, 4), (6, 3, 3), pads=PAD1, use="scale bias threshold", gate=()),
    conv(
        "gate of inf, NaN and zeros", (1, 32, 1, 8), (4, 1, 1), use="bias slope threshold", values={"gate": [[SPECIAL]]}
    ),
    conv(
        "residual repeated 3 times",
        (2, 40, 5, 4),
        (6, 3, 3),
        pads=PAD1,
        use="scale threshold",
        residual=(2, 2, 5, 4),
        runtime="residual",
    ),
    conv(
        "residual of one channel",
        (2, 40, 5, 4),
        (6, 3, 3),
        pads=PAD1,
        use="scale threshold",
        residual=(2, 1, 5, 4),
        runtime="residual",
    ),
    conv("residual [1, R, 1, 1]", (2, 40, 5, 4), (6, 3, 3), pads=PAD1, use="scale threshold", residual=(1, 6, 1, 1)),
    conv(
        "residual, float16, repeated",
        (2, 40, 5, 4),
        (6, 3, 3),
        pads=PAD1,
        use="scale threshold",
        residual=(2, 3, 5, 4),
        dtype=FLOAT16,
        runtime="residual",
    ),
    conv("vectors of one value", (2, 40, 5, 4), (6, 3, 3), use="scale threshold", values=SCALARS),
    conv("ReLU", (2, 40, 5, 4), (6, 3, 3), pads=PAD1, use="scale bias", values={"slope": [[[0.0]]]}),
    conv("PReLU alone, integer Y", (2, 40, 5, 4), (6, 3, 3), pads=PAD1, use="slope threshold"),
    conv("a bias of +0 makes -0 into +0", (1, 2, 5, 5), (2, 1, 1), values=NEGATIVE_ZERO | {"bias": [[[0.0]]]}),
    conv("a shift of +0", (1, 2, 5, 5), (2, 1, 1), values=NEGATIVE_ZERO | {"shift": [[[0.0]]]}),
    conv("an offset of +0", (1, 2, 5, 5), (2, 1, 1), values=NEGATIVE_ZERO | {"offset": [[[0.0]]]}),
    conv("a residual of +0", (1, 2, 5, 5), (2, 1, 1), values=NEGATIVE_ZERO | {"residual": [[[[0.0]]]]}),
    conv("-0 survives", (1, 2, 5, 5), (2, 1, 1), values=NEGATIVE_ZERO),
    conv(
        "zero scale", (1, 32, 4, 4), (3, 1, 1), use="threshold flip", values={"scale": [[[[0.0]], [[-0.0]], [[1.0]]]]}
    ),
    conv("integer path, thresholds at every edge", (1, 32, 6, 6), (16, 1, 1), values=EDGES),
    conv(
        "integer path, masked, odd border", (1, 33, 6, 6), (16, 3, 3), pads=PAD1, pad_value=1, use="mask", values=EDGES
    ),
    conv(
        "float16 overflows to inf",
        (1, 64, 3, 3),
        (2, 1, 1),
        dtype=FLOAT16,
        use="threshold",
        values={"scale": [[[[9e4]], [[7e-9]]]]},
    ),
    conv("denormal products", (1, 64, 3, 3), (2, 1, 1), use="threshold", values={"scale": [[[[1e-42]], [[-3e-40]]]]}),
]

MATMUL = [
    matmul("one lane", (1, 1), (1, 1)),
    matmul("gemv, neutral", (1, 96), (96, 33)),
    matmul("rank 2", (5, 70), (70, 33), use=f"mask scale gate {VECTORS} residual threshold flip"),
    matmul("rank 2, float16", (5, 70), (70, 33), use=FULL, dtype=FLOAT16),
    matmul("all at run time", (5, 70), (70, 33), use=FULL, runtime=f"B {' '.join(opset.EPILOGUE)}"),
    matmul("neutral, all at run time", (5, 70), (70, 33), runtime=f"B {' '.join(opset.EPILOGUE)}"),
    matmul("rank 3, shared weights", (2, 5, 40), (40, 6), use="scale bias threshold"),
    matmul("rank 3 with rank 3", (2, 5, 40), (2, 40, 6), use="scale threshold flip", runtime="B"),
    matmul("A broadcasts", (5, 40), (3, 40, 6), use="scale threshold", runtime="B"),
    matmul("both broadcast, rank 4", (2, 1, 4, 33), (3, 33, 7), use="mask scale threshold", runtime="B"),
    matmul("attention scores", (2, 3, 5, 33), (2, 3, 33, 5), use="scale threshold", runtime="B"),
    matmul("attention values, x_low 0", (2, 3, 5, 33), (2, 3, 33, 8), x_low=0, use="scale", runtime="B"),
    matmul("rank 5", (1, 2, 1, 3, 40), (2, 40, 4), use="scale bias threshold"),
    matmul("integer path", (7, 128), (128, 40), use="threshold flip"),
    matmul("x_low 0, masked", (5, 70), (70, 33), x_low=0, use="mask scale threshold"),
    matmul("two bases", (5, 70), (70, 9), bases=2, use="scale threshold"),
    matmul("three planes, two bases", (2, 5, 70), (70, 9), planes=3, bases=2, use="scale bias threshold"),
    matmul(
        "4-bit activations", (5, 70), (70, 9), planes=4, x_low=0, combine=[[1, 2, 4, 8]], use="scale bias threshold"
    ),
    matmul("combine rows mix planes", (2, 5, 70), (70, 9), planes=2, bases=2, combine=[[1, -1], [2, 3]], use="scale"),
    matmul("positional code", (5, 70), (70, 33), use="scale", thresholds=7, threshold=(7, 33), encode="positional"),
    matmul("threshold [P, 1], rank 3", (2, 5, 40), (40, 6), use="scale", thresholds=2, threshold=(2, 1)),
    matmul("threshold [N]", (2, 5, 40), (40, 6), use="scale", threshold=(6,), flip=(6,)),
    matmul("threshold a row", (2, 5, 40), (40, 6), use="scale", thresholds=2, threshold=(5, 2, 6), runtime="threshold"),
    matmul(
        "threshold a batch",
        (2, 5, 40),
        (40, 6),
        use="scale",
        threshold=(2, 1, 1, 6),
        flip=(2, 5, 1, 1),
        runtime="threshold flip",
    ),
    matmul("gate a row", (2, 5, 40), (40, 6), use="scale threshold", gate=(2, 5, 1), runtime="gate"),
    matmul("gate a column", (2, 5, 40), (40, 6), use="scale threshold", gate=(6,)),
    matmul("residual repeated", (2, 5, 40), (40, 6), use="scale threshold", residual=(2, 5, 3), runtime="residual"),
    matmul("residual [R] repeated", (2, 5, 40), (40, 6), use="scale threshold", residual=(2,)),
    matmul("residual broadcasts over batch", (2, 5, 40), (40, 6), use="scale", residual=(5, 6), dtype=FLOAT16),
    matmul(
        "thresholds at every edge",
        (9, 32),
        (32, 16),
        values={name: value.reshape(1, 16) for name, value in EDGES.items()},
    ),
]

PACK_SIGN = [
    pack_sign("NCHW", (2, 40, 3, 4), 1, (1, 40, 1, 1), flip=(1, 40, 1, 1), special=True),
    pack_sign("NCHW, float16", (2, 70, 3, 4), 1, (1, 70, 1, 1), flip=(70, 1, 1), special=True, dtype=np.float16),
    pack_sign("one word exactly", (1, 32, 4, 4), 1, (1, 32, 1, 1), special=True),
    pack_sign("scalar threshold", (2, 33, 3, 4), 1, (), special=True),
    pack_sign("threshold [C, 1, 1]", (2, 33, 3, 4), 1, (33, 1, 1)),
    pack_sign("axis 0", (33, 5), 0, (1, 33, 1), flip=(1, 33, 1)),
    pack_sign("axis 0 of rank 1", (40,), 0, (1, 40), special=True),
    pack_sign("last axis", (3, 5, 40), 2, (1, 40), flip=(40,), special=True),
    pack_sign("last but one axis", (2, 3, 40, 5), 2, (1, 40, 1), special=True),
    pack_sign("rank 5", (2, 3, 33, 2, 2), 2, (2, 33, 1, 1)),
    pack_sign("H = W = 1", (4, 65, 1, 1), 1, (1, 65, 1, 1)),
    pack_sign("three planes", (2, 40, 3, 4), 1, (3, 40, 1, 1), special=True),
    pack_sign(
        "positional code", (2, 40, 3, 4), 1, (15, 40, 1, 1), flip=(4, 1, 1, 1), encode="positional", special=True
    ),
    pack_sign("positional code, last axis", (5, 70), 1, (3, 70), encode="positional"),
    pack_sign(
        "threshold an image", (3, 40, 3, 4), 1, (3, 1, 40, 1, 1), flip=(3, 1, 40, 1, 1), runtime="threshold flip"
    ),
    pack_sign("threshold a pixel, planes", (2, 40, 3, 4), 1, (2, 2, 1, 3, 4), runtime="threshold"),
    pack_sign(
        "everything at run time", (2, 40, 3, 4), 1, (3, 40, 1, 1), encode="positional", runtime="threshold encode flip"
    ),
]

UNPACK = [
    unpack("NCHW", (2, 40, 3, 4), 1),
    unpack("NCHW, x_low 0", (2, 70, 3, 4), 1, x_low=0),
    unpack("whole words", (2, 64, 3, 5), 1),
    unpack("axis 0", (33, 3), 0),
    unpack("rank 1", (65,), 0),
    unpack("last axis", (2, 3, 33), 2),
    unpack("last but one axis", (2, 33, 3), 1, x_low=0),
]

POOL = [
    pool("2x2, OR", (2, 40, 6, 6), (2, 2), strides=(2, 2), invert=False),
    pool("2x2, some AND", (2, 40, 6, 6), (2, 2), strides=(2, 2)),
    pool("3x3 stride 2 pad 1", (1, 70, 7, 8), (3, 3), strides=(2, 2), pads=PAD1),
    pool("inverted at run time", (1, 33, 7, 8), (3, 3), strides=(2, 2), pads=PAD1, runtime="invert"),
    pool("rounded up", (1, 33, 7, 6), (2, 2), strides=(2, 2), ceil_mode=1),
    pool("rounded up, nothing to round", (1, 33, 6, 8), (2, 2), strides=(2, 2), ceil_mode=1),
    pool(
        "rounded up, the last window would start in the border",
        (1, 33, 5, 5),
        (2, 2),
        strides=(3, 3),
        pads=(0, 0, 1, 1),
        ceil_mode=1,
    ),
    pool(
        "rounded up, the last window would start just past the input",
        (1, 33, 6, 6),
        (2, 2),
        strides=(3, 3),
        pads=(0, 0, 1, 1),
        ceil_mode=1,
    ),
    pool("rounded up, a border wider than the kernel", (1, 33, 4, 5), (2, 1), pads=(0, 1, 2, 2), ceil_mode=1),
    pool("rounded up, 3x3 stride 2 pad 1", (1, 33, 6, 7), (3, 3), strides=(2, 2), pads=PAD1, ceil_mode=1),
    pool("dilated", (1, 33, 7, 8), (2, 3), dilations=(3, 2), pads=(1, 2, 0, 1)),
    pool("windows that lie in the border", (2, 33, 1, 3), (2, 2), dilations=(2, 1), pads=PAD1),
    pool("a border wider than the kernel", (1, 33, 3, 3), (2, 2), pads=(2, 2, 3, 2)),
    pool("kernel of the whole image", (2, 33, 4, 5), (4, 5)),
    pool("1x1 stride 2, rounded up", (1, 32, 5, 5), (1, 1), strides=(2, 2), ceil_mode=1),
]

IDEAL = [
    binary_sign("scalar threshold", (2, 40, 3, 4), (1,)),
    binary_sign("a threshold a channel", (2, 40, 3, 4), (40, 1, 1)),
    binary_sign("x_low 0", (2, 40, 3, 4), (1, 40, 1, 1), x_low=0),
    binary_sign("rank 2", (5, 9), (9,)),
    binary_sign("rank 1", (9,), (1,)),
    level("one threshold", (2, 5, 3, 4), (1,)),
    level("three thresholds", (2, 5, 3, 4), (3,)),
    level("fifteen a channel", (2, 5, 3, 4), (15, 5, 1, 1)),
    level("full rank", (2, 5, 3, 4), (3, 1, 5, 1, 1)),
    level("a threshold an element", (2, 5), (3, 2, 5)),
]


def random_conv(seed: int) -> Case:
    """A convolution whose every choice is drawn; the label says which draw."""
    rng = np.random.default_rng(seed)

    def pick(*choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    group = pick(1, 1, 1, 2, 3)
    planes = pick(1, 1, 2, 3)
    bases = pick(1, 1, 2) if group == 1 else 1
    kernel = (int(rng.integers(1, 5)), int(rng.integers(1, 5)))
    dilations = (int(rng.integers(1, 3)), int(rng.integers(1, 3)))
    strides = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    top, left, bottom, right = (int(pad) for pad in rng.integers(0, 4, 4))
    reach = [dilations[axis] * (kernel[axis] - 1) + 1 for axis in (0, 1)]
    height, width = (max(int(rng.integers(1, 12)), reach[axis] - (top + bottom, left + right)[axis]) for axis in (0, 1))
    names = f"mask scale gate {VECTORS} residual threshold flip".split()
    combine = pick(None, [[1 << p for p in range(planes)]], rng.integers(-3, 4, (2, planes)).tolist())
    thresholds = pick(1, 1, 3, 7)
    return conv(
        f"draw {seed}",
        (int(rng.integers(1, 4)), group * int(rng.integers(1, 90 // group)), height, width),
        (group * int(rng.integers(1, 40 // group)), *kernel),
        strides=strides,
        pads=(top, left, bottom, right),
        dilations=dilations,
        group=group,
        pad_value=pick(-1, 0, 1),
        x_low=pick(-1, 0),
        dtype=pick(1, FLOAT16),
        planes=planes,
        bases=bases,
        combine=combine,
        encode=pick("identity", "positional"),
        thresholds=thresholds,
        use=" ".join(name for name in names if rng.random() < 0.4 or (name == "threshold" and thresholds > 1)),
        runtime=" ".join(name for name in ("W", *opset.EPILOGUE) if rng.random() < 0.1),
    )


DRAWS = [random_conv(seed) for seed in range(40)]
CASES = [*CONV, *MATMUL, *PACK_SIGN, *UNPACK, *POOL, *DRAWS]


def low_bit_convs() -> list[Case]:
    """Planes that are the bits of one number: what kernels look up in tables, and what they leave to counting."""

    def low_bit(
        label: str, x: tuple[int, int, int, int], w: tuple[int, int, int], planes: int, use: str = "scale", **more: Any
    ) -> Case:
        combine = [[1 << bit for bit in range(planes)]]
        return conv(f"{planes} bits, {label}", x, w, planes=planes, x_low=0, combine=combine, use=use, **more)

    bits = (2, 3, 4, 5, 6)
    unmasked = FULL.removeprefix("mask ")
    return [
        *(
            low_bit(f"{c} channels", (1, c, 4, 5), (33, 3, 3), b, pads=PAD1)
            for b in bits
            for c in (1, 5, 16, 21, 33, 63, 64, 65, 128)
        ),
        *(low_bit(f"{o} outputs", (1, 40, 3, 5), (o, 2, 2), b) for b in (4, 6) for o in (1, 31, 32, 64, 65, 97, 161)),
        *(
            low_bit(f"{m} bases of {o} outputs", (1, 70, 5, 4), (o, 3, 3), b, bases=m, pads=PAD1)
            for b in (2, 4, 6)
            for m, o in ((2, 40), (3, 40), (2, 97), (3, 97))
        ),
        *(
            low_bit(f"2 bases of {o} outputs", (2, 40, 5, 13), (o, 3, 3), b, bases=2, pads=PAD1, use=use)
            for o, use in ((1, "scale"), (9, unmasked), (16, "scale bias threshold"), (17, "scale"))
            for b in (2, 4, 6)
        ),
        low_bit(
            "2 bases of 16 outputs, to levels",
            (2, 16, 9, 13),
            (16, 3, 3),
            4,
            bases=2,
            pads=PAD1,
            thresholds=15,
            encode="positional",
            use="scale bias residual threshold flip",
        ),
        low_bit("3 bases of 16 outputs", (1, 40, 5, 13), (16, 3, 3), 4, bases=3, pads=PAD1),
        *(low_bit(f"width {width}", (1, 32, 3, width), (8, 3, 3), 4, pads=PAD1) for width in WIDTHS),
        *(low_bit(f"1x1, {size} pixels", (2, 64, 1, size), (40, 1, 1), 4) for size in (1, 2, 7, 10, 113)),
        *(
            low_bit(f"stride {s}, kernel {k}", (1, 24, 11, 12), (9, k, k), b, strides=(s, s), pads=PAD1)
            for b, s, k in ((4, 2, 3), (5, 2, 1), (4, 3, 2), (2, 4, 1), (4, 5, 3), (6, 2, 2))
        ),
        *(
            low_bit(f"dilation {d}", (1, 24, 9, 10), (9, 3, 3), b, dilations=d, pads=(2, 1, 2, 3))
            for b, d in ((4, (2, 1)), (4, (1, 2)), (6, (2, 3)), (3, (3, 2)))
        ),
        low_bit(
            "stride and dilation", (2, 40, 12, 11), (9, 3, 2), 4, strides=(3, 2), dilations=(2, 3), pads=(2, 1, 0, 2)
        ),
        low_bit("1xk", (1, 40, 3, 9), (6, 1, 5), 4, pads=(0, 2, 0, 2)),
        low_bit("kx1", (1, 40, 9, 3), (6, 5, 1), 4, pads=(2, 0, 2, 0)),
        low_bit("kernel in the border at corners", (1, 32, 3, 3), (4, 2, 2), 4, pads=(3, 3, 3, 3)),
        *(
            low_bit("border of +1", (1, c, 5, 5), (8, 3, 3), b, pads=PAD1, pad_value=1)
            for b in (3, 6)
            for c in (33, 70)
        ),
        *(low_bit("border of -1", (1, 33, 5, 5), (8, 3, 3), b, pads=PAD1, pad_value=-1) for b in (3, 6)),
        *(low_bit("border of -1, none", (1, 33, 5, 5), (8, 3, 3), b, pad_value=-1) for b in (3, 6)),
        *(low_bit("groups of words", (2, 96, 5, 5), (96, 3, 3), b, group=3, pads=PAD1) for b in (4, 6)),
        low_bit("groups of words, odd outputs", (1, 128, 5, 5), (42, 3, 3), 4, group=2, pads=PAD1, use=unmasked),
        low_bit("groups that are not words", (1, 80, 5, 5), (6, 3, 3), 4, group=2, pads=PAD1),
        low_bit("ternary weights", (1, 40, 5, 5), (6, 3, 3), 4, pads=PAD1, use="mask scale"),
        low_bit("weights at run time", (1, 40, 5, 5), (6, 3, 3), 4, pads=PAD1, runtime="W"),
        low_bit("combine at run time", (1, 40, 5, 5), (6, 3, 3), 4, pads=PAD1, runtime="combine"),
        low_bit("full epilogue, batch 3", (3, 40, 7, 6), (70, 3, 3), 4, pads=PAD1, use=unmasked),
        low_bit("full epilogue, float16", (2, 40, 7, 6), (35, 3, 3), 4, pads=PAD1, use=unmasked, dtype=FLOAT16),
        *(
            low_bit(
                "to levels", (2, 64, 9, 8), (70, 3, 3), b, pads=PAD1, thresholds=2**b - 1, encode="positional", use=use
            )
            for b in bits
            for use in ("threshold", "scale bias threshold flip")
        ),
        conv(
            "combine 1, 2, 4 of signs", (1, 40, 5, 5), (6, 3, 3), pads=PAD1, planes=3, combine=[[1, 2, 4]], use="scale"
        ),
        conv(
            "combine 1, 2, 5", (1, 40, 5, 5), (6, 3, 3), pads=PAD1, planes=3, x_low=0, combine=[[1, 2, 5]], use="scale"
        ),
        conv(
            "7 planes", (1, 40, 5, 5), (6, 3, 3), planes=7, x_low=0, combine=[[2.0**i for i in range(7)]], use="scale"
        ),
        low_bit("512 channels overflow 16 bits", (1, 512, 3, 4), (33, 3, 3), 4, pads=PAD1),
        low_bit("9000 channels", (1, 9000, 1, 2), (3, 1, 1), 4),
        low_bit("waves of rows", (1, 512, 48, 48), (4, 3, 3), 6, pads=PAD1),
    ]


def low_bit_matmuls() -> list[Case]:
    """The same for matrix products."""

    def low_bit(
        label: str, a: tuple[int, ...], b: tuple[int, ...], planes: int, use: str = "scale", **more: Any
    ) -> Case:
        combine = [[1 << bit for bit in range(planes)]]
        return matmul(f"{planes} bits, {label}", a, b, planes=planes, x_low=0, combine=combine, use=use, **more)

    unmasked = FULL.removeprefix("mask ")
    return [
        *(low_bit(f"{k} long", (9, k), (k, 33), b) for b in (2, 3, 4, 5, 6) for k in (1, 5, 21, 33, 300)),
        *(low_bit(f"{rows} rows", (rows, 70), (70, 40), 4) for rows in (1, 2, 3, 8, 27, 29, 60)),
        *(
            low_bit(f"{columns} columns", (8, 70), (70, columns), b)
            for b in (4, 6)
            for columns in (1, 32, 96, 129, 200)
        ),
        *(low_bit(f"{m} bases", (9, 70), (70, 140), 4, bases=m) for m in (2, 3, 5)),
        low_bit("batches", (2, 3, 5, 70), (70, 40), 4, use=unmasked),
        low_bit("batches that keep their rows apart", (2, 3, 5, 70), (70, 40), 4, gate=(2, 1, 5, 40)),
        low_bit("batches of both", (2, 5, 70), (2, 70, 40), 4),
        low_bit("one matrix of rank 3", (2, 5, 70), (1, 70, 40), 4),
        low_bit("full epilogue, float16", (5, 70), (70, 140), 4, use=unmasked, dtype=FLOAT16),
        low_bit("ternary weights", (5, 70), (70, 33), 4, use="mask scale"),
        low_bit("weights at run time", (5, 70), (70, 33), 4, runtime="B"),
        low_bit("to levels", (9, 70), (70, 140), 4, thresholds=15, encode="positional", use="scale threshold"),
        low_bit("9000 long", (2, 9000), (9000, 3), 4),
        low_bit("waves of rows", (400, 4096), (4096, 3), 4),
    ]


def border_convs() -> list[Case]:
    """Pixels that see all taps, some or none, with every value of the padding and paired, odd and single words."""
    square: dict[str, Any] = {"pads": PAD1}
    geometries: dict[str, tuple[tuple[int, int], tuple[int, int], dict[str, Any]]] = {
        "each class a pixel": ((3, 3), (3, 3), square),
        "a column": ((5, 1), (3, 3), square),
        "a row": ((1, 9), (3, 3), square),
        "chunks within a row": ((3, 130), (3, 3), square),
        "kernel wider than the image": ((3, 2), (5, 7), {"pads": (2, 3, 2, 3)}),
        "pixels without a tap": ((2, 3), (2, 2), {"pads": (4, 3, 4, 5)}),
        "no pixel with every tap": ((2, 2), (4, 3), {"pads": (3, 2, 3, 2)}),
        "top and left": ((6, 7), (3, 3), {"pads": (1, 1, 0, 0)}),
        "bottom and right": ((7, 6), (3, 3), {"pads": (0, 0, 2, 1)}),
        "stride 2": ((9, 8), (3, 3), {**square, "strides": (2, 2)}),
        "strides and dilations": ((11, 10), (3, 3), {"pads": (2, 3, 4, 3), "strides": (3, 2), "dilations": (2, 3)}),
        "strides past the image": ((2, 2), (3, 3), {"pads": (1, 1, 9, 9), "strides": (5, 5)}),
        "taps on both sides of the image": ((2, 1), (2, 2), {"pads": (3, 3, 3, 3), "dilations": (4, 3)}),
    }
    uses = ("threshold flip", "scale bias threshold", "mask scale threshold")
    channels = (256, 32, 96, 1, 64, 33, 100, 31)
    cases: list[Case] = []
    for (where, (size, kernel, more)), pad_value in itertools.product(geometries.items(), (-1, 0, 1)):
        i = len(cases)
        x = (3 if i % 4 == 0 else 1, channels[i % len(channels)], *size)
        label = f"border of {pad_value}, {where}"
        use = uses[(i + i // len(uses)) % len(uses)]
        cases.append(conv(label, x, (40, *kernel), pad_value=pad_value, x_low=-(i // 2 % 2), use=use, **more))
    return cases


def large_cases() -> list[Case]:
    """Shapes that fill the kernels' tiles and leave every tail; too many for a test that is run at every level."""
    full = "scale bias slope residual threshold"
    return [
        *(conv(f"3x3, width {width}", (1, 64, 5, width), (64, 3, 3), pads=PAD1, use=full) for width in WIDTHS),
        *(conv(f"1x1, width {width}", (1, 256, 3, width), (64, 1, 1), use="threshold") for width in WIDTHS),
        *(conv(f"3x3, {outputs} outputs", (1, 96, 9, 9), (outputs, 3, 3), pads=PAD1, use=full) for outputs in OUTPUTS),
        *(
            conv(f"{outputs} outputs, integer path", (2, 128, 7, 7), (outputs, 3, 3), pads=PAD1, use="threshold flip")
            for outputs in OUTPUTS
        ),
        *(
            conv(f"3x3, {channels} channels", (1, channels, 9, 8), (40, 3, 3), pads=PAD1, use=full)
            for channels in CHANNELS
        ),
        *(
            conv(f"stride 2, width {width}", (1, 64, 9, width), (64, 3, 3), strides=(2, 2), pads=PAD1, use=full)
            for width in WIDTHS
        ),
        conv("56x56", (1, 64, 56, 56), (64, 3, 3), pads=PAD1, use=full),
        conv("28x28, batch 3", (3, 128, 28, 28), (128, 3, 3), pads=PAD1, use="scale bias threshold"),
        conv("14x14, 512 channels", (1, 512, 14, 14), (96, 3, 3), pads=PAD1, use="threshold"),
        conv(
            "4 bits, 28x28",
            (1, 64, 28, 28),
            (64, 3, 3),
            pads=PAD1,
            planes=4,
            x_low=0,
            combine=[[1, 2, 4, 8]],
            use="scale bias threshold",
        ),
        conv(
            "2 bits, 2 bases, width 15",
            (1, 128, 9, 15),
            (72, 3, 3),
            pads=PAD1,
            planes=2,
            bases=2,
            x_low=0,
            combine=[[1, 2]],
            use=full,
        ),
        *border_convs(),
        *low_bit_convs(),
        *low_bit_matmuls(),
        conv("groups of 96", (1, 192, 9, 9), (66, 3, 3), group=2, pads=PAD1, use=full),
        conv("float16, 28x28", (1, 64, 28, 28), (64, 3, 3), pads=PAD1, use=full, dtype=FLOAT16),
        *(
            matmul(f"{rows} rows", (rows, 300), (300, 65), use="scale bias threshold")
            for rows in (*range(1, 10), 13, 29)
        ),
        *(
            matmul(
                f"{rows} rows, every step",
                (rows, 160),
                (160, 97),
                use=FULL.replace("mask ", ""),
                residual=(rows, 97),
                dtype=dtype,
            )
            for rows in (1, 2, 3, 6)
            for dtype in (1, FLOAT16)
        ),
        *(matmul(f"{columns} columns", (9, 512), (512, columns), use="threshold") for columns in OUTPUTS),
        matmul("128x768x256", (128, 768), (768, 256), use="scale bias threshold"),
        matmul("gemv 1x4096x512", (1, 4096), (4096, 512), use="scale bias threshold"),
        matmul("many rows, few columns", (603, 300), (300, 40), use="scale bias threshold"),
        matmul("a batch of matrices", (12, 41, 70), (12, 70, 100), use="scale threshold", runtime="B"),
        matmul("two matrices in pieces", (2, 64, 1024), (2, 1024, 200), use="scale", runtime="B"),
        matmul("a batch, x_low 0", (3, 4, 41, 100), (3, 1, 100, 70), x_low=0, use="scale", runtime="B"),
        pack_sign("56x56", (2, 64, 56, 56), 1, (1, 64, 1, 1), flip=(1, 64, 1, 1), special=True),
        pack_sign("57x3, 100 channels", (1, 100, 57, 3), 1, (1, 100, 1, 1), special=True),
        pack_sign("28x28, float16", (1, 65, 28, 28), 1, (1, 65, 1, 1), special=True, dtype=np.float16),
        pack_sign("rows of 1000", (37, 1000), 1, (1, 1), special=True),
        pack_sign("rows of whole words", (2, 3, 9, 1024), 3, (1, 1, 1, 1), flip=(1,), special=True),
        pack_sign("one threshold, a flip a lane", (6, 64), 1, (1, 1), flip=(1, 64)),
        pack_sign("rows of 70001", (2, 70001), 1, (1, 70001), flip=(1, 70001), special=True),
        *(
            pack_sign(f"{b} bits, {x}, axis {axis}", x, axis, threshold, encode="positional", special=True, **more)
            for b in (2, 3, 4, 5, 6, 7)
            for x, axis, threshold, more in (
                ((2, 40, 9, 9), 1, (2**b - 1, 40, 1, 1), {}),
                ((1, 33, 12, 11), 1, (2**b - 1, 1, 1, 1), {"flip": (b, 33, 1, 1)}),
                ((1, 33, 2, 9), 1, (2**b - 1, 33, 2, 9), {"dtype": np.float16}),
                ((5, 70), 1, (2**b - 1, 1), {}),
                ((5, 70), 1, (2**b - 1, 70), {"flip": (b, 1)}),
            )
        ),
        unpack("28x28", (2, 100, 28, 28), 1),
        pool("56x56", (1, 64, 56, 56), (3, 3), strides=(2, 2), pads=PAD1),
    ]


WIDTHS = (1, 2, 6, 7, 8, 13, 15, 20, 27, 29, 33)
OUTPUTS = (1, 2, 16, 31, 32, 33, 63, 65, 97)
CHANNELS = (1, 31, 32, 33, 64, 65, 224, 257)
