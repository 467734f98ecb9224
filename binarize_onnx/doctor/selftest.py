"""Every op on small models chosen to break something, three ways: kernels, function bodies, integers in NumPy.

The NumPy side shares nothing with the bodies and the kernels but the packing of `bits`. Results must be the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from binarize_onnx import bits, opset, runtime
from binarize_onnx.verify.arrays import Array, Arrays, same_bits

OPSET, IR_VERSION = opset.MIN_OPSET, 8
F32 = np.float32
BODIES = "function bodies"
_FED = ("X", "P", "A")  # inputs that arrive at run time, so that nothing is computed beforehand
_EDGES = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-42, -1e-42, 3.4e38)
_POSITIONAL = np.asarray([[1, 1, 1], [0, 1, 0]], F32)  # three thresholds to the two bits of the level


@dataclass(frozen=True, eq=False)
class Case:
    """One node: its inputs, and what its outputs must be; outputs that are not expected are left unused."""

    label: str
    op: str
    inputs: Arrays
    attributes: dict[str, Any]
    expected: Arrays


@dataclass(frozen=True)
class Difference:
    """An output that is not what it should be.

    Attributes:
        op: of our domain.
        case: what the small model is about.
        by: the instruction set, or `function bodies`.
        output: of the op.
        words: how much differs, or what happened instead.
    """

    op: str
    case: str
    by: str
    output: str
    words: str

    def __str__(self) -> str:
        """The difference on one line."""
        return f"{self.op} ({self.case}) by {self.by}: output {self.output} {self.words}"


def self_test(isas: Sequence[str]) -> tuple[list[Difference], list[str]]:
    """Run all cases by function bodies and by the kernels of each instruction set.

    Args:
        isas: names, each of which can run here; none if there is no library.

    Returns:
        What differs, and by what the cases ran.
    """
    cases = make_cases()
    data = _model(cases).SerializeToString()
    differences = _compare(cases, data, BODIES, runtime_session=False)
    for isa in isas:
        with forced(isa):
            differences += _compare(cases, data, isa, runtime_session=True)
    return differences, [BODIES, *isas]


@contextmanager
def forced(isa: str | None) -> Iterator[None]:
    """The instruction set that sessions created in the block use; None leaves the choice to the library."""
    before = os.environ.pop(runtime.ISA_VARIABLE, None)
    try:
        if isa is not None:
            os.environ[runtime.ISA_VARIABLE] = isa
        yield
    finally:
        os.environ.pop(runtime.ISA_VARIABLE, None)
        if before is not None:
            os.environ[runtime.ISA_VARIABLE] = before


def make_cases() -> list[Case]:
    """The models, and what they must give."""
    rng = np.random.default_rng(0)
    with np.errstate(all="ignore"):
        return [case for family in (_packs, _convs, _matmuls, _pools) for case in family(rng)]


def _compare(cases: Sequence[Case], data: bytes, by: str, *, runtime_session: bool) -> list[Difference]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    feed = {f"{i}.{n}": values for i, case in enumerate(cases) for n, values in case.inputs.items() if n in _FED}
    names = [f"{i}.{n}" for i, case in enumerate(cases) for n in case.expected]
    try:
        start = runtime.InferenceSession if runtime_session else onnxruntime.InferenceSession
        session = start(data, options, providers=["CPUExecutionProvider"])
        found = dict(zip(names, session.run(names, feed), strict=True))
    except Exception as error:  # whatever goes wrong here is the answer
        return [Difference("every op", "all models", by, "", f"does not run: {' '.join(str(error).split())}")]
    differences = []
    for i, case in enumerate(cases):
        for name, expected in case.expected.items():
            words = _difference(np.asarray(found[f"{i}.{name}"]), expected)
            if words:
                differences.append(Difference(case.op, case.label, by, name, words))
    return differences


def _difference(found: Array, expected: Array) -> str:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return f"is {found.dtype} {list(found.shape)}, not {expected.dtype} {list(expected.shape)}"
    wrong = int(np.count_nonzero(~same_bits(found, expected)))
    return f"has {wrong} of {expected.size} values wrong" if wrong else ""


def _model(cases: Sequence[Case]) -> onnx.ModelProto:
    """All cases as one graph."""
    nodes, inputs, outputs, constants = [], [], [], []

    def declare(name: str, values: Array) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values.dtype), values.shape)

    for i, case in enumerate(cases):
        op = opset.OPS[case.op]
        written = [f"{i}.{name}" if name in case.expected else "" for name in op.outputs]
        nodes.append(opset.make_node(case.op, [f"{i}.{name}" for name in op.inputs], written, **case.attributes))
        for name, values in case.inputs.items():
            if name in _FED:
                inputs.append(declare(f"{i}.{name}", values))
            else:
                constants.append(numpy_helper.from_array(values, f"{i}.{name}"))
        outputs += [declare(f"{i}.{name}", values) for name, values in case.expected.items()]
    graph = helper.make_graph(nodes, "self_test", inputs, outputs, constants)
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(opset.DOMAIN, opset.VERSION)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
    model.functions.extend(opset.functions_in_use(model))
    return model


# --- The cases ---------------------------------------------------------------------------------------------------


def _packs(rng: np.random.Generator) -> Iterator[Case]:
    x = rng.normal(size=(2, 45, 3, 4)).astype(F32)
    x.reshape(-1)[: 3 * len(_EDGES) : 3] = _EDGES
    thresholds = {"threshold": x[:1, :, 1:2, 1:2].reshape(1, 45, 1, 1), "flip": _random_bits(rng, 1, 45, 1, 1)}
    yield _pack_case("45 channels, every edge of float32", x, 1, {**thresholds, "encode": np.eye(1, dtype=F32)})
    half = rng.normal(size=(3, 33)).astype(np.float16)
    levels = np.asarray([[-0.5], half[0, :1], [0.75]], F32)
    flip = np.zeros((1, 1), np.bool_)
    encoded = {"threshold": np.sort(levels, axis=0), "encode": _POSITIONAL, "flip": flip}
    yield _pack_case("float16 to two bits", half, 1, encoded)
    ones = _random_bits(rng, 2, 45, 3)
    attributes = {"axis": 1, "channels": 45, "x_low": 0}
    yield Case("45 channels", "Unpack", {"P": bits.pack(ones, 1)}, attributes, {"X": ones.astype(F32)})


def _pack_case(label: str, x: Array, axis: int, parameters: Arrays) -> Case:
    q = _thresholds(x, axis, **parameters)
    return Case(label, "PackSign", {"X": x, **parameters}, {"axis": axis}, {"P": q})


def _convs(rng: np.random.Generator) -> Iterator[Case]:
    everything = ("mask", "scale", "gate", "bias", "slope_pre", "residual", "shift", "slope", "offset")
    yield _conv_case(
        rng,
        "groups of 35, stride, dilation, border of +1, every step",
        (2, 70, 7, 8),
        (6, 3, 2),
        group=2,
        strides=[2, 1],
        pads=[2, 1, 0, 2],
        dilations=[1, 2],
        pad_value=1,
        use=everything,
    )
    yield _conv_case(rng, "integers against thresholds", (1, 64, 6, 6), (32, 3, 3), pads=[1] * 4, only_bits=True)
    yield _conv_case(
        rng,
        "two-bit activations, border of 0",
        (1, 33, 5, 6),
        (33, 3, 3),
        pads=[1] * 4,
        x_low=0,
        planes=2,
        combine=[[1, 2]],
        use=("scale", "bias"),
    )
    yield _conv_case(
        rng,
        "two planes, two bases, float16",
        (1, 40, 4, 15),
        (7, 1, 1),
        planes=2,
        bases=2,
        dtype=TensorProto.FLOAT16,
        use=("scale", "residual", "slope"),
    )


def _matmuls(rng: np.random.Generator) -> Iterator[Case]:
    yield _matmul_case(rng, "one row", (1, 70), 33, ("scale", "bias"))
    yield _matmul_case(rng, "many rows, masked, every step", (2, 5, 96), 40, ("mask", "scale", "gate", "slope_pre"))
    yield _matmul_case(rng, "integers against thresholds", (3, 129), 64, (), only_bits=True)


def _pools(rng: np.random.Generator) -> Iterator[Case]:
    """Maximum and minimum, a border, a stride that leaves a remainder, the size rounded up."""
    x, invert = _random_bits(rng, 1, 33, 7, 6), _random_bits(rng, 33, 1, 1)
    pads, out = (1, 1, 1, 0), (4, 3)
    pooled = np.zeros((1, 33, *out), np.bool_)
    for row in range(out[0]):
        for column in range(out[1]):
            top, left = 2 * row - pads[0], 2 * column - pads[1]
            window = x[:, :, max(top, 0) : top + 3, max(left, 0) : left + 3]
            smallest, largest = window.all(axis=(2, 3)), window.any(axis=(2, 3))
            pooled[:, :, row, column] = np.where(invert[:, 0, 0], smallest, largest)
    attributes = {
        "channels": 33,
        "kernel_shape": [3, 3],
        "strides": [2, 2],
        "pads": list(pads),
        "dilations": [1, 1],
        "ceil_mode": 1,
    }
    inputs = {"P": bits.pack(x, 1), "invert": invert}
    yield Case("3x3 with a border", "PackedMaxPool", inputs, attributes, {"Q": bits.pack(pooled, 1)})


def _conv_case(
    rng: np.random.Generator,
    label: str,
    x: tuple[int, int, int, int],
    w: tuple[int, int, int],
    *,
    group: int = 1,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    pad_value: int = 0,
    x_low: int = -1,
    dtype: int = int(TensorProto.FLOAT),
    planes: int = 1,
    bases: int = 1,
    combine: Sequence[Sequence[int]] | None = None,
    use: Sequence[str] = (),
    only_bits: bool = False,
) -> Case:
    channels, outputs = x[1], w[0]
    shape = (bases * outputs, channels // group, *w[1:])
    ones = [_random_bits(rng, *x) for _ in range(planes)]
    signs, kept = _random_bits(rng, *shape), _random_bits(rng, *shape) if "mask" in use else None
    weights = np.where(signs, 1, -1) * (1 if kept is None else kept)
    acc = np.stack(
        [_convolve(np.where(plane, 1, x_low), weights, group, strides, pads, dilations, pad_value) for plane in ones]
    )  # [planes, N, bases·O, H, W]
    acc = np.moveaxis(acc.reshape(planes, x[0], bases, outputs, *acc.shape[3:]), 2, 1)
    words = bits.word_count(channels // group)
    inputs = {"P": np.concatenate([bits.pack(plane, 1) for plane in ones], 1), "W": bits.pack(signs, 1)}
    real = helper.tensor_dtype_to_np_dtype(dtype)
    terms = bases * (planes if combine is None else len(combine))

    def neutral(name: str) -> Array:
        return opset.conv_neutral(name, outputs=outputs, words=words, planes=planes, terms=terms, dtype=real)

    expected = _finish(rng, inputs, acc, 1, neutral, kept, combine, use, real)
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
    return Case(label, "XnorConv", inputs, attributes, {"Q": expected["Q"]} if only_bits else expected)


def _matmul_case(
    rng: np.random.Generator,
    label: str,
    a: tuple[int, ...],
    columns: int,
    use: Sequence[str],
    *,
    only_bits: bool = False,
) -> Case:
    k = a[-1]
    ones, signs = _random_bits(rng, *a), _random_bits(rng, k, columns)
    kept = _random_bits(rng, k, columns) if "mask" in use else None
    acc = np.where(ones, 1, -1) @ (np.where(signs, 1, -1) * (1 if kept is None else kept))
    inputs = {"A": bits.pack(ones, -1), "B": bits.pack(signs, 0)}

    def neutral(name: str) -> Array:
        return opset.matmul_neutral(name, outputs=columns, words=bits.word_count(k))

    expected = _finish(rng, inputs, acc[None, None], -1, neutral, kept, None, use, np.dtype(F32))
    attributes = {"k": k, "x_low": -1, "dtype": int(TensorProto.FLOAT)}
    return Case(label, "XnorMatMul", inputs, attributes, {"Q": expected["Q"]} if only_bits else expected)


# --- Integers and single roundings -------------------------------------------------------------------------------


def _random_bits(rng: np.random.Generator, *shape: int) -> Array:
    return rng.integers(0, 2, shape).astype(np.bool_)


def _convolve(
    x: Array,
    w: Array,
    group: int,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    pad_value: int,
) -> Array:
    """The convolution of integers, one tap at a time: [N, C, H, W] and [O, C/group, kh, kw] to [N, O, H', W']."""
    top, left, bottom, right = pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=pad_value)
    spans = [dilations[i] * (w.shape[2 + i] - 1) + 1 for i in (0, 1)]
    height, width = ((padded.shape[2 + i] - spans[i]) // strides[i] + 1 for i in (0, 1))
    result = np.zeros((len(x), len(w), height, width), np.int64)
    filters, channels = len(w) // group, w.shape[1]
    for g in range(group):
        mine = slice(g * filters, (g + 1) * filters)
        for row, column in np.ndindex(*w.shape[2:]):
            taps = padded[
                :,
                g * channels : (g + 1) * channels,
                row * dilations[0] : row * dilations[0] + height * strides[0] : strides[0],
                column * dilations[1] : column * dilations[1] + width * strides[1] : strides[1],
            ]
            result[:, mine] += np.einsum("nchw,oc->nohw", taps, w[mine, :, row, column])
    return result


def _finish(
    rng: np.random.Generator,
    inputs: Arrays,
    acc: Array,
    axis: int,
    neutral: Callable[[str], Array],
    kept: Array | None,
    combine: Sequence[Sequence[int]] | None,
    use: Sequence[str],
    real: np.dtype[Any],
) -> Arrays:
    """Draw the parameters in use, add all thirteen to the inputs, and carry the steps out: Y and Q.

    `acc` is [planes, bases, …] with the channels of the result on `axis`.
    """
    parameters: Arrays = {name: neutral(name) for name in opset.EPILOGUE} | {"encode": np.eye(1, dtype=F32)}
    if combine is not None:
        parameters["combine"] = np.asarray(combine, F32)
    if kept is not None:
        parameters["mask"] = bits.pack(kept, 1 if axis == 1 else 0)
    shape = acc.shape[2:]
    channels = shape[axis]
    per_channel = (channels, 1, 1) if axis == 1 else (channels,)
    for name in use:
        if name == "mask":
            continue
        drawn_shape = {"scale": parameters["scale"].shape, "gate": shape, "residual": shape}.get(name, per_channel)
        parameters[name] = rng.normal(size=drawn_shape).astype(real if name == "residual" else F32)

    rows = parameters["combine"].astype(np.int64)
    terms = [sum(int(row[p]) * acc[p, m] for p in range(len(acc))) for row in rows for m in range(acc.shape[1])]
    scale = parameters["scale"]
    z = scale[0] * np.asarray(terms[0]).astype(F32)
    for s in range(1, len(terms)):
        z = z + scale[s] * np.asarray(terms[s]).astype(F32)
    z = z * parameters["gate"] + parameters["bias"]
    z = np.where(z > 0, z, z * parameters["slope_pre"])
    z = z + parameters["residual"].astype(F32)
    z = z + parameters["shift"]
    z = np.where(z > 0, z, z * parameters["slope"]) + parameters["offset"]
    y = z.astype(real)

    # Thresholds that values meet exactly: equality is the edge of every comparison.
    by_channel = np.moveaxis(y.astype(F32), axis, 0).reshape(channels, -1)
    parameters["threshold"] = by_channel[:, by_channel.shape[1] // 2].reshape(1, *per_channel)
    parameters["flip"] = _random_bits(rng, 1, *per_channel)
    inputs |= parameters
    q = _thresholds(y, axis % y.ndim, parameters["threshold"], parameters["encode"], parameters["flip"])
    return {"Y": y, "Q": q}


def _thresholds(v: Array, axis: int, threshold: Array, encode: Array, flip: Array) -> Array:
    """Values to packed bits; the planes of the thresholds are on the axis just before the packed one."""
    reached = np.expand_dims(v.astype(F32), axis) >= threshold
    reached = np.moveaxis(reached, axis, 0)
    counts = np.tensordot(encode.astype(np.int64), reached.astype(np.int64), 1)
    planes = np.moveaxis((counts % 2).astype(np.bool_), 0, axis) ^ flip
    return np.concatenate([bits.pack(plane, axis) for plane in np.moveaxis(planes, axis, 0)], axis)
