"""Foreign operators in standard ones: every op against its definition in NumPy, whole networks, and what stays."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from networks import Builder
from onnx import TensorProto, helper, numpy_helper

import binarize_onnx
from binarize_onnx import Config, convert, foreign, inspect, pipeline
from binarize_onnx.bench import benchmark
from binarize_onnx.cli import main
from binarize_onnx.errors import ModelError, UsageError
from binarize_onnx.verify import verify

Array = npt.NDArray[Any]
F32 = np.float32

QONNX, FINN, BREVITAS = foreign.DOMAINS
QUANT: dict[str, Any] = {"signed": 1, "narrow": 0, "rounding_mode": "ROUND"}


# What the operators compute, as QONNX defines them, in float32.


def bipolar_quant(x: Array, scale: Any) -> Array:
    return np.asarray(np.where(x >= 0, F32(1), F32(-1)) * scale)


ROUNDINGS: dict[str, Callable[[Array], Array]] = {
    "ROUND": np.rint,
    "HALF_EVEN": np.rint,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "UP": lambda v: np.where(v < 0, np.floor(v), np.ceil(v)),
    "DOWN": np.trunc,
    "ROUND_TO_ZERO": np.trunc,
    "HALF_UP": lambda v: np.copysign(np.floor(np.abs(v) + F32(0.5)), v),
    "HALF_DOWN": lambda v: np.copysign(np.ceil(np.abs(v) - F32(0.5)), v),
}


def quant(x: Array, scale: Any, zero: Any, bits: int, signed: int, narrow: int, rounding_mode: str) -> Array:
    y = x / scale + zero
    if bits == 1 and signed:
        y = np.where(y >= 0, F32(1), F32(-1))
    else:
        low = -(2 ** (bits - 1)) + narrow if signed else 0
        high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1 - narrow
        y = ROUNDINGS[rounding_mode](np.clip(y, F32(low), F32(high)))
    return np.asarray((y - zero) * scale)


def multi_threshold(x: Array, thresholds: Array, layout: str, scale: float, bias: float) -> Array:
    axis = x.ndim - 1 if layout == "NHWC" else 1
    count = np.zeros(x.shape, F32)
    for index in np.ndindex(x.shape):
        row = thresholds[0 if len(thresholds) == 1 else index[axis]]
        count[index] = sum(bool(x[index] >= limit) for limit in row)
    return F32(scale) * count + F32(bias)


def popcount_of_xnor(a: Array, b: Array) -> Array:
    equal = a[:, :, None].astype(bool) == b[None].astype(bool)
    return np.asarray(np.count_nonzero(equal, axis=1).astype(F32))


# Models of a node, and how they are run.


def one_node(
    op: str,
    x: Any,
    constants: Sequence[Any],
    domain: str = QONNX,
    as_constants: str = "initializers",
    opset: int = 17,
    **attributes: Any,
) -> onnx.ModelProto:
    """`op(x, *constants) -> y`; the constants as initializers, as initializers that are inputs too, or as nodes."""
    shape = x.shape if isinstance(x, np.ndarray) else x
    tensors = [numpy_helper.from_array(np.asarray(v), f"c{i}") for i, v in enumerate(constants)]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    nodes = []
    if as_constants == "inputs":
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    if as_constants == "nodes":
        nodes = [helper.make_node("Constant", [], [f"{t.name}.source"], value=t) for t in tensors]
        nodes += [helper.make_node("Identity", [f"{t.name}.source"], [t.name]) for t in tensors]
    nodes.append(helper.make_node(op, ["x", *(t.name for t in tensors)], ["y"], "node", domain=domain, **attributes))
    graph = helper.make_graph(
        nodes,
        "one",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [] if as_constants == "nodes" else tensors,
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(domain, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=3 if as_constants == "inputs" else 8)


def translated(model: onnx.ModelProto, **choices: Any) -> onnx.ModelProto:
    """The model with nothing foreign left."""
    result, notes = pipeline.translate(model, Config(**choices))
    assert notes == []
    assert not foreign.held(result, choices.get("map_ops"))
    assert {entry.domain for entry in result.opset_import} <= {"", "binarize_onnx"}
    return result


def run(model: onnx.ModelProto, x: Array) -> Array:
    """By plain onnxruntime, every node as it is written."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def values(rng: np.random.Generator, shape: Sequence[int], step: Any = 1.0) -> Array:
    """Numbers around ±10 steps: ordinary ones, whole and half steps, both zeros, and neighbours of half steps."""
    halves = rng.integers(-20, 21, shape).astype(F32) / 2
    kind = rng.integers(0, 5, shape)
    x = np.where(kind == 0, rng.normal(size=shape) * 4, halves) * step
    x = np.where(kind == 1, np.nextafter(x.astype(F32), F32(np.inf)), x)
    x = np.where(kind == 2, np.nextafter(x.astype(F32), F32(-np.inf)), x)
    return np.where((x == 0) & (kind == 3), F32(-0.0), x).astype(F32)


@pytest.mark.parametrize("domain", foreign.DOMAINS)
@pytest.mark.parametrize("scale", [1.0, 0.37, -2.0, "channels"])
def test_bipolar_quant(scale: Any, domain: str) -> None:
    rng = np.random.default_rng(0)
    x = values(rng, (2, 3, 4, 5))
    s = rng.random((1, 3, 1, 1), F32) if scale == "channels" else np.asarray(scale, F32)
    model = translated(one_node("BipolarQuant", x, [s], domain))
    np.testing.assert_array_equal(run(model, x), bipolar_quant(x, s))
    assert [n.op_type for n in model.graph.node] == ["GreaterOrEqual", "Where", "Mul"][: 2 if scale == 1 else 3]


@pytest.mark.parametrize("mode", ROUNDINGS)
def test_quant(mode: str) -> None:
    rng = np.random.default_rng(0)
    scales = (F32(1), F32(0.25), F32(0.3), np.asarray([0.7], F32), rng.random((3, 1, 1), F32) + F32(0.1))
    for bits in range(1, 9):
        for signed, narrow in np.ndindex(2, 2):
            scale, zero = scales[rng.integers(len(scales))], F32(rng.choice([0, 0, 2, 1.5]))
            x = values(rng, (2, 3, 4, 5), scale)
            x[0] *= F32(2 ** max(0, bits - 4))  # reach both ends
            attributes = {"signed": signed, "narrow": narrow, "rounding_mode": mode}
            op = str(rng.choice(["Quant", "IntQuant"]))
            model = translated(one_node(op, x, [scale, zero, F32(bits)], **attributes))
            expected = quant(x, scale, zero, bits, **attributes)
            np.testing.assert_array_equal(run(model, x), expected, f"{bits} bits, {attributes}, {scale}, {zero}")


def test_quant_reaches_both_ends_of_its_range() -> None:
    x = np.asarray([-1e9, -2.5, -0.5, 0.5, 1.5, 1e9], F32)
    parameters = [F32(1), F32(0), F32(3)]
    for signed, narrow, expected in (
        (1, 0, [-4, -2, 0, 0, 2, 3]),
        (1, 1, [-3, -2, 0, 0, 2, 3]),
        (0, 0, [0, 0, 0, 0, 2, 7]),
        (0, 1, [0, 0, 0, 0, 2, 6]),
    ):
        model = translated(one_node("Quant", x, parameters, signed=signed, narrow=narrow))  # ROUND is the default
        np.testing.assert_array_equal(run(model, x), np.asarray(expected, F32))


@pytest.mark.parametrize("steps", [1, 3, 15, 16, 40])
@pytest.mark.parametrize(
    ("layout", "shape"), [("", (5, 6)), ("NC", (5, 6)), ("NCHW", (2, 6, 3, 4)), ("NHWC", (2, 3, 4, 6))]
)
def test_multi_threshold(layout: str, shape: tuple[int, ...], steps: int) -> None:
    rng = np.random.default_rng(0)
    for channels in (1, 6):
        for scale, bias in ((1.0, 0.0), (2.0, -1.0), (0.3, 0.7)):
            x = values(rng, shape)
            limits = np.sort(rng.integers(-8, 9, (channels, steps)) / 2).astype(F32)
            attributes: dict[str, Any] = {"out_dtype": "INT4", "out_scale": scale, "out_bias": bias}
            if layout:
                attributes["data_layout"] = layout
            model = translated(one_node("MultiThreshold", x, [limits], FINN, **attributes))
            np.testing.assert_array_equal(run(model, x), multi_threshold(x, limits, layout, scale, bias))
            assert len(model.graph.node) <= 3 * 15 - 1 + 2


def test_one_row_of_thresholds_serves_any_rank() -> None:
    x = values(np.random.default_rng(0), (2, 3, 4))
    limits = np.asarray([[-1, 0.5]], F32)
    model = translated(one_node("MultiThreshold", ["N", "C", "L"], [limits], FINN))
    np.testing.assert_array_equal(run(model, x), multi_threshold(x, limits, "NCHW", 1, 0))


@pytest.mark.parametrize(("length", "outputs"), [(7, 3), (64, 10)])
def test_xnor_popcount_matmul(length: int, outputs: int) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2, (5, length)).astype(F32), rng.integers(0, 2, (length, outputs)).astype(F32)
    model = translated(one_node("XnorPopcountMatMul", a, [b], FINN))
    np.testing.assert_array_equal(run(model, a), popcount_of_xnor(a, b))
    assert next(n.name for n in model.graph.node if n.op_type == "MatMul") == "node", "the layer keeps its name"


@pytest.mark.parametrize("as_constants", ["initializers", "inputs", "nodes"])
@pytest.mark.parametrize("opset", [9, 10, 11, 12, 13, 21])
def test_every_opset_and_every_way_to_hold_a_constant(opset: int, as_constants: str) -> None:
    rng = np.random.default_rng(0)
    x = values(rng, (3, 8))
    for op, constants, attributes, expected in (
        ("Quant", [F32(0.5), F32(0), F32(2)], QUANT, quant(x, F32(0.5), F32(0), 2, **QUANT)),
        ("MultiThreshold", [np.asarray([[-1, 0, 2]], F32)], {}, multi_threshold(x, np.asarray([[-1, 0, 2]]), "", 1, 0)),
    ):
        model = one_node(op, x, constants, BREVITAS, as_constants, opset, **attributes)
        result = translated(model)
        np.testing.assert_array_equal(run(result, x), expected)
        assert result.ir_version >= 4, "only from here on an initializer need not be an input"


def test_a_neutral_scale_with_axes_of_its_own_is_no_neutral_step() -> None:
    x = values(np.random.default_rng(0), (2, 4))
    assert run(translated(one_node("BipolarQuant", x, [np.ones((1, 1, 1), F32)])), x).shape == (1, 2, 4)


def test_a_scale_that_is_computed_is_no_obstacle() -> None:
    model = one_node("BipolarQuant", (2, 4), [F32(3)])
    model.graph.node[0].input[1] = "s"
    model.graph.node.insert(0, helper.make_node("ReduceMax", ["x"], ["s"], keepdims=0))
    x = values(np.random.default_rng(0), (2, 4))
    np.testing.assert_array_equal(run(translated(model), x), bipolar_quant(x, x.max()))


ONE, ZERO, TWO = F32(1), F32(0), F32(2)
LIMITS = np.zeros((4, 1), F32)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (one_node("Trunc", (2, 4), [ONE, ZERO, TWO, ONE, TWO]), "there is no translation of this operator"),
        (one_node("BipolarQuant", (2, 4), []), "it has 1 inputs and 1 outputs, where the definition has 2 and 1"),
        (one_node("BipolarQuant", (2, 4), [np.float64(1)]), "`c0` is not float32"),
        (one_node("BipolarQuant", (2, 4), [ONE], axis=1), "its attribute `axis` is unknown, or of an unknown type"),
        (one_node("Quant", (2, 4), [ONE, ZERO, TWO], **QUANT), "where the definition has 4 and 1"),
        (one_node("Quant", (2, 4), [ONE, ZERO, F32(2.5)], **QUANT), "not a whole number from 1 to 32"),
        (one_node("Quant", (2, 4), [ONE, ZERO, F32(np.nan)], **QUANT), "not a whole number from 1 to 32"),
        (one_node("Quant", (2, 4), [ONE, ZERO, np.complex64(2)], **QUANT), "not a whole number from 1 to 32"),
        (one_node("Quant", (2, 4), [ONE, ZERO, np.asarray("2", object)], **QUANT), "not a whole number from 1 to 32"),
        (one_node("Quant", (2, 4), [ONE, ZERO, TWO], signed=1), "`signed` and `narrow` are not both there and 0 or 1"),
        (one_node("Quant", (2, 4), [ONE, ZERO, TWO], signed=1, narrow=0.5), "`narrow` is unknown, or of an unknown"),
        (one_node("Quant", (2, 4), [ONE, ZERO, TWO], **QUANT | {"rounding_mode": "DPU"}), "rounding mode 'DPU' is"),
        (one_node("MultiThreshold", (2, 4), [LIMITS[0]]), "its thresholds have the shape [1]"),
        (one_node("MultiThreshold", (2, 4), [LIMITS[:, :0]]), "its thresholds have the shape [4, 0]"),
        (one_node("MultiThreshold", (2, 4), [LIMITS], data_layout="CN"), "its data layout 'CN' is none of"),
        (one_node("MultiThreshold", (2, 4, 3), [LIMITS]), "its input has rank 3, not 2 or 4"),
        (one_node("MultiThreshold", None, [LIMITS]), "its input has unknown rank, not 2 or 4"),
        (one_node("XnorPopcountMatMul", (2, 4), []), "where the definition has 2 and 1"),
        (one_node("XnorPopcountMatMul", (2, 4), [LIMITS + F32(0.5)]), "`c0` are no matrix of 0 and 1"),
        (one_node("XnorPopcountMatMul", (2, 4), [np.zeros((2, 4, 1), F32)]), "`c0` are no matrix of 0 and 1"),
    ],
    ids=lambda x: x.replace(" ", "-") if isinstance(x, str) else "",
)
def test_what_is_not_the_definition_stays(model: onnx.ModelProto, reason: str) -> None:
    if reason.endswith("definition has 4 and 1"):
        del model.graph.node[0].input[3:]
    before = model.SerializeToString(deterministic=True)
    result, (note,) = pipeline.translate(model, Config())
    node = model.graph.node[0]
    assert note.startswith(f"{node.domain}::{node.op_type} stays as it is: ")
    assert reason in note
    assert note.endswith("(`node`)")
    assert result.graph.node == model.graph.node
    assert model.SerializeToString(deterministic=True) == before
    assert {entry.domain for entry in result.opset_import} == {"", QONNX}
    assert note in inspect(model).notes


def test_computed_widths_thresholds_and_weights_stay() -> None:
    for op, parameter, constants, attributes in (
        ("Quant", 3, [ONE, ZERO, TWO], QUANT),
        ("MultiThreshold", 1, [LIMITS], {}),
        ("XnorPopcountMatMul", 1, [LIMITS], {}),
    ):
        model = one_node(op, (2, 4), constants, **attributes)
        model.graph.node[0].input[parameter] = "computed"
        model.graph.node.insert(0, helper.make_node("Abs", [f"c{parameter - 1}"], ["computed"]))
        _, (note,) = pipeline.translate(model, Config())
        assert "`computed`" in note
        assert "computed at run time" in note


def test_equal_reasons_are_one_note() -> None:
    model = one_node("Trunc", (2, 4), [ONE])
    for i in range(3):
        model.graph.node.add(op_type="Trunc", domain=QONNX, input=["y" if not i else f"y{i - 1}"], output=[f"y{i}"])
    _, notes = pipeline.translate(model, Config())
    assert notes == [f"{QONNX}::Trunc stays as it is: there is no translation of this operator (`node` and 3 more)"]


def test_an_input_shape_settles_the_layout() -> None:
    model = one_node("MultiThreshold", None, [LIMITS])
    translated(model, input_shapes={"x": (2, 4, 3, 3)})


def test_a_definition_in_the_file_is_what_counts() -> None:
    model = one_node("BipolarQuant", (2, 4), [ONE])
    body = [helper.make_node("Neg", ["a"], ["b"])]
    model.functions.append(
        helper.make_function(QONNX, "BipolarQuant", ["a", "s"], ["b"], body, [helper.make_opsetid("", 17)])
    )
    assert foreign.held(model) == []
    x = values(np.random.default_rng(0), (2, 4))
    result, notes = pipeline.translate(model, Config())
    np.testing.assert_array_equal(run(result, x), -x)
    assert notes == []


def test_names_in_use_are_left_alone() -> None:
    model = one_node("BipolarQuant", (2, 4), [F32(0.5)])
    model.graph.node[0].output[0] = "zero"
    model.graph.node.append(helper.make_node("Identity", ["zero"], ["y"], "one"))
    x = values(np.random.default_rng(0), (2, 4))
    np.testing.assert_array_equal(run(translated(model), x), bipolar_quant(x, F32(0.5)))


# Whole networks as QONNX and FINN write them.


class Qonnx(Builder):
    """A `Builder` of networks with foreign operators."""

    def foreign(self, op: str, *inputs: str, domain: str = QONNX, **attributes: Any) -> str:
        output = self.node(op, *inputs, **attributes)
        self.nodes[-1].domain = domain
        return output

    def bipolar(self, x: str, scale: float = 1.0) -> str:
        return self.foreign("BipolarQuant", x, self.constant(scale))

    def bits(self, *shape: int) -> Array:
        return self.rng.integers(0, 2, shape).astype(F32)

    def thresholds(self, x: str, channels: int, spread: float, **attributes: Any) -> str:
        limits = np.round(self.rng.normal(size=(channels, 1)) * spread).astype(F32)
        return self.foreign("MultiThreshold", x, self.constant(limits), domain=FINN, out_dtype="BINARY", **attributes)

    def model(self, output: str, *shape: int) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "qonnx",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.initializers,
        )
        imports = [helper.make_opsetid(domain, 1) for domain in (QONNX, FINN)]
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13), *imports], ir_version=8)


def tfc(scale: float) -> onnx.ModelProto:
    """Brevitas' fully connected network: latent weights and activations behind quantizers of one bit."""
    b = Qonnx(np.random.default_rng(1))
    x = b.bipolar("x", scale)
    for _ in range(2):
        weights = b.bipolar(b.constant(b.rng.normal(size=(40, 40))), scale)
        x = b.node("MatMul", x, b.node("Transpose", weights, perm=[1, 0]))
        x = b.bipolar(b.batchnorm(x, 40), scale)
    weights = b.bipolar(b.constant(b.rng.normal(size=(10, 40))), scale)
    return b.model(b.node("MatMul", x, b.node("Transpose", weights, perm=[1, 0])), 40)


def one_bit_quant(scale: float) -> onnx.ModelProto:
    """`Quant` of one signed bit in place of `BipolarQuant`."""
    model = tfc(scale)
    for node in model.graph.node:
        if node.op_type == "BipolarQuant":
            node.op_type = "Quant"
            node.input.extend(["no_shift", "one_bit"])
            node.attribute.extend(helper.make_attribute(name, value) for name, value in QUANT.items())
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(0, F32), "no_shift"))
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(1, F32), "one_bit"))
    return model


def unsigned_bit() -> onnx.ModelProto:
    """{0, 1} activations: `Quant` of one unsigned bit rounds, and 0.5 goes to 0."""
    b = Qonnx(np.random.default_rng(2))
    constants = [b.constant(v) for v in (0.5, 0, 1)]
    x = b.foreign("Quant", "x", *constants, signed=0, narrow=0, rounding_mode="ROUND")
    return b.model(b.node("MatMul", x, b.constant(b.signs(40, 10))), 40)


def cnv() -> onnx.ModelProto:
    """FINN's convolutional network: thresholds a channel, +1 and -1, padding of -1, popcounts at the end."""
    b = Qonnx(np.random.default_rng(3))
    x = b.thresholds("x", 8, 0.5, out_scale=2.0, out_bias=-1.0)
    amounts = b.constant([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    x = b.node("Conv", b.node("Pad", x, amounts, b.constant(-1)), b.constant(b.signs(32, 8, 3, 3)))
    x = b.thresholds(x, 32, 8, out_scale=2.0, out_bias=-1.0, data_layout="NCHW")
    x = b.node("MaxPool", b.node("Conv", x, b.constant(b.signs(32, 32, 3, 3))), kernel_shape=[2, 2], strides=[2, 2])
    x = b.node("Flatten", b.thresholds(x, 32, 16), axis=1)
    return b.model(popcount_layer(b, x, 32 * 9, 10), 8, 8, 8)


def popcount_layer(b: Qonnx, x: str, length: int, outputs: int) -> str:
    """A matrix product on bits, and the way back to a product of ±1."""
    x = b.foreign("XnorPopcountMatMul", x, b.constant(b.bits(length, outputs)), domain=FINN)
    return b.node("Add", b.node("Mul", x, b.constant(2)), b.constant(-length))


def popcounts() -> onnx.ModelProto:
    """FINN's fully connected network in the popcount domain, {0, 1} from end to end."""
    b = Qonnx(np.random.default_rng(4))
    x = b.thresholds("x", 1, 0.5)
    for _ in range(2):
        x = b.thresholds(popcount_layer(b, x, 40, 40), 40, 6)
    return b.model(popcount_layer(b, x, 40, 10), 40)


def channels_last() -> onnx.ModelProto:
    """FINN after its layout changes: thresholds on NHWC, transposed for the convolution."""
    b = Qonnx(np.random.default_rng(5))
    x = b.thresholds("x", 8, 0.5, out_scale=2.0, out_bias=-1.0, data_layout="NHWC")
    x = b.node("Conv", b.node("Transpose", x, perm=[0, 3, 1, 2]), b.constant(b.signs(16, 8, 3, 3)))
    x = b.thresholds(b.node("Transpose", x, perm=[0, 2, 3, 1]), 16, 8, out_scale=2.0, out_bias=-1.0, data_layout="NHWC")
    x = b.node("Conv", b.node("Transpose", x, perm=[0, 3, 1, 2]), b.constant(b.signs(4, 16, 3, 3)))
    return b.model(x, 6, 6, 8)


def four_levels() -> onnx.ModelProto:
    """Activations of two bits: three thresholds a channel, counted."""
    b = Qonnx(np.random.default_rng(7))
    x = "x"
    for spread, outputs in ((1, 40), (8, 10)):
        limits = np.sort(b.rng.normal(size=(40, 3)) * spread).astype(F32)
        x = b.foreign("MultiThreshold", x, b.constant(limits), domain=FINN, out_dtype="UINT2")
        x = b.node("MatMul", x, b.constant(b.signs(40, outputs)))
    return b.model(x, 40)


NETWORKS = {
    "tfc": (tfc(1.0), 3),
    "tfc-scaled": (tfc(0.5), 3),
    "one-bit-quant": (one_bit_quant(1.0), 3),
    "one-bit-quant-scaled": (one_bit_quant(0.25), 3),
    "unsigned-bit": (unsigned_bit(), 1),
    "cnv": (cnv(), 3),
    "popcounts": (popcounts(), 3),
    "channels-last": (channels_last(), 2),
    "four-levels": (four_levels(), 2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_binary_and_exact(name: str) -> None:
    model, layers = NETWORKS[name]
    result = convert(model)
    assert [(x.status, x.code.value) for x in result.report.layers] == [("binary", "binary")] * layers
    assert result.report.notes == []
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    x = values(np.random.default_rng(0), (6, *shape))
    expected = run(translated(model), x)
    session = binarize_onnx.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected)
    np.testing.assert_array_equal(run(result.model, x), expected)
    assert len(np.unique(expected)) > 5


# The caller's own operators.


def mapped_network(dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """my.ops::Binarize in front of a layer, with an attribute and a second input that the mapping looks past."""
    b = Qonnx(np.random.default_rng(6))
    x = b.foreign("Binarize", "x", b.constant(0.5), domain="my.ops", gain=3.0)
    model = b.model(b.node("MatMul", x, b.constant(b.signs(40, 4))), 40)
    model.opset_import[1].domain = "my.ops"
    del model.opset_import[2:]
    model.graph.input[0].type.tensor_type.elem_type = dtype
    return model


def test_an_operator_of_the_caller_is_a_sign() -> None:
    model = mapped_network()
    assert inspect(model).layers[0].reason.endswith("its input comes from my.ops.Binarize (`t0`), not from a sign")
    config = Config(map_ops={"my.ops::Binarize": "sign", "my.ops::Other": "sign"})
    result = convert(model, config)
    assert [x.status for x in result.report.layers] == ["binary"]
    (note,) = result.report.notes
    assert note.startswith("--map-op my.ops::Other matches no node")
    x = values(np.random.default_rng(0), (5, 40))
    weights = numpy_helper.to_array(model.graph.initializer[1])
    np.testing.assert_array_equal(run(result.model, x), np.where(x >= 0, F32(1), F32(-1)) @ weights)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, np.int64])
def test_a_mapped_sign_has_the_type_of_its_input(dtype: Any) -> None:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = one_node("Binarize", (2, 4), [], "my.ops")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = element
    x = np.asarray([[-2, -1, 0, 1], [3, -0.0, -0.5, 0.5]]).astype(dtype)
    y = run(translated(model, map_ops={"my.ops::Binarize": "sign"}), x)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, np.where(x >= 0, 1, -1))


def test_a_mapping_comes_before_the_definition() -> None:
    x = values(np.random.default_rng(0), (2, 4))
    model = translated(one_node("Trunc", x, [F32(7)]), map_ops={f"{QONNX}::Trunc": "sign"})
    np.testing.assert_array_equal(run(model, x), np.where(x >= 0, 1, -1))


def test_a_mapped_node_that_is_no_sign_stays() -> None:
    two_outputs = one_node("Binarize", (2, 4), [], "my.ops")
    two_outputs.graph.node[0].output.append("mask")
    text = one_node("Binarize", (2, 4), [], "my.ops")
    text.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    for model, words in ((two_outputs, "a sign reads one and writes one"), (text, "is of a type that has no sign")):
        _, (note,) = pipeline.translate(model, Config(map_ops={"my.ops::Binarize": "sign"}))
        assert words in note


@pytest.mark.parametrize(
    ("map_ops", "words"),
    [
        ({"my.ops::Binarize": "round"}, "my.ops::Binarize cannot be mapped to 'round'; give .* TARGET is sign"),
        ({"Binarize": "sign"}, "'Binarize' names no operator of another domain; give domain::Op=TARGET"),
        ({"::Sign": "sign"}, "'::Sign' names no operator of another domain"),
        ({"a::b::c": "sign"}, "'a::b::c' names no operator"),
        ({"ai.onnx::Tanh": "sign"}, "ai.onnx::Tanh is defined already"),
        ({"binarize_onnx::PackSign": "sign"}, "binarize_onnx::PackSign is defined already"),
    ],
)
def test_mappings_that_cannot_be_followed(map_ops: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Config(map_ops=map_ops)


def test_mappings_are_recorded() -> None:
    config = Config(map_ops={"b::B": "sign", "a::A": "sign"})
    assert json.loads(config.to_json())["map_ops"] == {"a::A": "sign", "b::B": "sign"}
    assert Config.from_json(config.to_json()) == config
    old = json.loads(Config().to_json())
    del old["map_ops"]
    assert Config.from_json(json.dumps(old)) == Config()


# The commands.


def test_verify_runs_what_the_source_means(tmp_path: Path) -> None:
    for name, model, map_ops in (
        ("tfc", NETWORKS["tfc"][0], {}),
        ("own", mapped_network(), {"my.ops::Binarize": "sign"}),
    ):
        source, out = tmp_path / f"{name}.onnx", tmp_path / f"{name}.bin.onnx"
        onnx.save(model, source)
        options = [f"--map-op={op}={target}" for op, target in map_ops.items()]
        done = CliRunner().invoke(main, ["convert", str(source), str(out), *options])
        assert done.exit_code == 0, done.output
        found = verify(source, out)
        found.require()
        assert found.exact is not None
        assert found.layers
        assert any(note.startswith("the reference is run with") for note in found.notes)


def test_verify_sees_a_changed_weight(tmp_path: Path) -> None:
    source = tmp_path / "net.onnx"
    onnx.save(NETWORKS["popcounts"][0], source)
    model = convert(source).model
    weights = next(t for t in model.graph.initializer if t.data_type == TensorProto.UINT32)
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) ^ np.uint32(1), weights.name))
    (output,) = verify(source, model).outputs
    assert output.max_diff > 0


def test_bench_says_why_there_is_no_time(tmp_path: Path) -> None:
    source = tmp_path / "net.onnx"
    onnx.save(NETWORKS["tfc"][0], source)
    with pytest.raises(ModelError, match=f"holds {QONNX}::BipolarQuant, which onnxruntime does not have"):
        benchmark([source])


@pytest.mark.parametrize("text", ["my.ops::Binarize", "=sign", "my.ops::Binarize=tanh", "Sign=sign"])
def test_a_malformed_mapping_is_wrong_usage(text: str, tmp_path: Path) -> None:
    onnx.save(mapped_network(), tmp_path / "net.onnx")
    done = CliRunner().invoke(main, ["inspect", str(tmp_path / "net.onnx"), "--map-op", text])
    assert done.exit_code == 2
    assert "sign" in done.output
