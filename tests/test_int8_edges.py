"""Int8 edges: what stays float is quantized, binary layers are as they were, and `verify` still sees every fault."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from networks import Builder
from onnx import TensorProto, helper, numpy_helper
from test_cli import Command, command  # noqa: F401  # a fixture
from test_property import run

from binarize_onnx import Config, calibration, convert, inspect, int8_edges, opset, runtime
from binarize_onnx.errors import ModelError, RuntimeUnavailable, UsageError
from binarize_onnx.pipeline import Result
from binarize_onnx.quantize import int8
from binarize_onnx.report import EdgeEffect
from binarize_onnx.verify import verify

Array = npt.NDArray[Any]
INT8 = Config(edges="int8")
EDGES = ["down", "fc", "stem"]


class Small(Builder):
    """Networks with float edges."""

    def named(self, name: str, op: str, *inputs: str, **attributes: Any) -> str:
        output = self.node(op, *inputs, **attributes)
        self.nodes[-1].name = name
        return output

    def conv(self, name: str, x: str, weights: Array, stride: int = 1) -> str:  # type: ignore[override]
        kernel = weights.shape[2]
        pads = [kernel // 2] * 4
        attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": pads}
        return self.named(name, "Conv", x, self.constant(weights), **attributes)

    def real(self, *shape: int) -> Array:
        return self.rng.normal(0, 0.3, shape).astype(np.float32)


def network() -> onnx.ModelProto:
    """Bi-Real's plan in small: a stem, a layer of stride 1, one of stride 2 with a 1x1 shortcut, a dense layer."""
    b = Small(np.random.default_rng(0))
    x = b.batchnorm(b.conv("stem", "x", b.real(8, 3, 3, 3), 2), 8)
    x = b.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = b.node("Add", b.batchnorm(b.conv("same", b.node("Sign", x), b.signs(8, 8, 3, 3)), 8), x)
    pooled = b.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    shortcut = b.batchnorm(b.conv("down", pooled, b.real(16, 8, 1, 1)), 16)
    y = b.batchnorm(b.conv("half", b.node("Sign", x), b.signs(16, 8, 3, 3), 2), 16)
    flat = b.node("Flatten", b.node("GlobalAveragePool", b.node("Add", y, shortcut)))
    return model(b, b.named("fc", "Gemm", flat, b.constant(b.real(10, 16)), b.constant(b.real(10)), transB=1))


def model(b: Builder, output: str, shape: tuple[Any, ...] = (3, 16, 16)) -> onnx.ModelProto:
    graph = helper.make_graph(
        b.nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [onnx.ValueInfoProto(name=output, type=helper.make_tensor_type_proto(TensorProto.FLOAT, None))],
        b.initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def images(count: int = 10, shape: tuple[int, ...] = (3, 16, 16)) -> dict[str, Array]:
    return {"x": np.random.default_rng(1).normal(size=(count, *shape)).astype(np.float32)}


@pytest.fixture(scope="module")
def converted() -> Result:
    return convert(network(), INT8, calibration_data=images())


def ours(found: onnx.ModelProto) -> dict[str, tuple[bytes, ...]]:
    """Every node of ours with the values of the constants that it reads."""
    constants = {t.name: t.SerializeToString() for t in found.graph.initializer}
    return {
        node.name: (node.SerializeToString(), *(constants.get(name, b"") for name in node.input))
        for node in found.graph.node
        if node.domain == opset.DOMAIN
    }


def test_float_layers_become_int8_and_binary_ones_stay(converted: Result) -> None:
    before = convert(network()).model
    assert ours(converted.model) == ours(before)
    assert "SpaceToDepth" in {node.op_type for node in converted.model.graph.node}, "the stem has stride 2"
    assert {x.name: x.status for x in converted.report.layers} == {
        **dict.fromkeys(EDGES, "int8"),
        "same": "binary",
        "half": "binary",
    }
    stored = {t.name: t.data_type for t in converted.model.graph.initializer}
    makers = {name: node for node in converted.model.graph.node for name in node.output}
    for node in converted.model.graph.node:
        if node.name in EDGES:
            weights = makers[node.input[1]]
            assert weights.op_type == "DequantizeLinear"
            assert stored[weights.input[0]] == TensorProto.INT8
            scales = next(t for t in converted.model.graph.initializer if t.name == weights.input[1])
            assert scales.dims == [16 if node.name == "down" else 10 if node.name == "fc" else 8], "a scale a channel"
    assert not any(node.op_type in ("Mul", "BatchNormalization") for node in converted.model.graph.node)


def test_the_report_says_what_it_costs(converted: Result) -> None:
    feed = images()
    before, after = (answers(m, feed) for m in (convert(network()).model, converted.model))
    (effect,) = converted.report.int8
    assert 0 < effect.max_diff == pytest.approx(np.abs(before - after).max(), rel=0.2)  # at other levels, both
    assert effect.agreement == np.mean(before.argmax(1) == after.argmax(1)) > 0.7
    assert effect.samples == 10
    assert "no longer those of the source" in converted.report.table()
    assert json.loads(json.dumps(converted.report.to_json()))["int8"][0]["max_diff"] == effect.max_diff
    assert converted.report.summary.bytes_after == len(converted.model.SerializeToString())
    assert convert(network()).report.int8 == []


def answers(found: onnx.ModelProto, feed: dict[str, Array]) -> Array:
    (values,) = run(found, feed, library=True)
    return np.asarray(values)


def test_verify_is_content(converted: Result) -> None:
    """Outputs differ and are meant to; every binary layer is exact with what the edges give it."""
    found = verify(network(), converted.model, inputs=images())
    found.require()
    assert found.exact is not None
    assert found.exact.equal
    assert found.exact.packed_tensors == 2
    assert found.outputs[0].max_diff > 0
    assert any("int8 edges" in note for note in found.notes)


@pytest.mark.parametrize("name", ["same", "half"])
def test_verify_finds_a_fault_behind_int8_edges(converted: Result, name: str) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(converted.model)
    node = next(node for node in broken.graph.node if node.name == name)
    weights = next(t for t in broken.graph.initializer if t.name == node.input[1])
    values = numpy_helper.to_array(weights).copy()
    values.flat[0] ^= 1
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    found = verify(network(), broken, inputs=images())
    assert found.exact is not None
    assert not found.exact.equal


def test_the_same_bytes_again_and_without_the_library(converted: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise RuntimeUnavailable("the library is missing")

    assert convert(network(), INT8, calibration_data=images()).model == converted.model
    monkeypatch.setattr(runtime, "get_library_path", missing)
    assert convert(network(), INT8, calibration_data=images()).model == converted.model


def test_a_reader_is_read_once(converted: Result) -> None:
    """Signs are counted on the same batches, one at a time."""
    rows = list(images()["x"])

    class Reader:
        def get_next(self) -> dict[str, Array] | None:
            return {"x": rows.pop(0)[None]} if rows else None

    found = convert(network(), INT8, calibration_data=Reader())
    assert found.model == converted.model
    assert found.report.signs == converted.report.signs
    assert {site.zero for site in found.report.signs} == {"counted"}


def test_a_replayed_reader_keeps_what_its_reader_writes_over() -> None:
    class Reader:
        def __init__(self) -> None:
            self.buffer = np.zeros(1)

        def get_next(self) -> dict[str, Array] | None:
            self.buffer += 1
            return {"x": self.buffer} if self.buffer < 4 else None

    reader = calibration.replayed(Reader())
    for _ in range(2):
        assert [int(batch["x"][0]) for batch in iter(reader.get_next, None)] == [1, 2, 3]  # type: ignore[union-attr]


def test_options_are_recorded(converted: Result) -> None:
    recorded = {entry.key: entry.value for entry in converted.model.metadata_props}
    assert Config.from_json(recorded["binarize_onnx.options"]) == INT8
    assert len(int8_edges.recorded(converted.model)) == len(EDGES)
    assert int8_edges.recorded(convert(network()).model) == []


def test_an_effect_that_is_no_number_is_null() -> None:
    report = inspect(network())
    report.add_int8(["stem"], [EdgeEffect("y", 3, np.inf, None)], 1)
    assert report.to_json()["int8"] == [{"output": "y", "samples": 3, "max_diff": None, "agreement": None}]


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "3", '["nobody"]', "[{}]"])
def test_a_wrong_record_is_no_record(converted: Result, text: str) -> None:
    odd = onnx.ModelProto()
    odd.CopyFrom(converted.model)
    next(entry for entry in odd.metadata_props if entry.key == int8_edges.KEY).value = text
    assert int8_edges.recorded(odd) == []


@pytest.mark.skipif(ort.__version__.startswith("1.20."), reason="it aborts when it optimises this source")
def test_branches_stay_float() -> None:
    """What an If computes is left alone, and the layers around it are quantized."""
    b = Small(np.random.default_rng(0))
    y = b.conv("stem", "x", b.real(8, 3, 3, 3))
    y = b.conv("first", b.node("Sign", y), b.signs(8, 8, 3, 3))
    arms = []
    for number in range(2):
        arm = Small(np.random.default_rng(number))
        arm.nodes += [onnx.NodeProto()] * 50 * (1 + number)  # its tensors have numbers of their own
        arm.initializers += [onnx.TensorProto()] * 50 * (1 + number)
        x, weights = (arm.node("Sign", y), arm.signs(8, 8, 3, 3)) if number else ("x", arm.real(8, 3, 3, 3))
        out = arm.conv(f"arm{number}", x, weights)
        values = [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)]
        arms.append(
            helper.make_graph(
                arm.nodes[50 * (1 + number) :], f"arm{number}", [], values, arm.initializers[50 * (1 + number) :]
            )
        )
    flat = b.node("Reshape", "x", b.constant([-1], np.int64))
    condition = b.node("Greater", b.node("Gather", flat, b.constant(0, np.int64)), b.constant(0.0))
    z = b.node("If", condition, then_branch=arms[0], else_branch=arms[1])
    last = b.conv("last", z, b.real(4, 8, 1, 1))
    source = model(b, last)
    found = convert(source, INT8, calibration_data=images())
    status = {x.name: x.status for x in found.report.layers}
    assert status == {"stem": "int8", "first": "binary", "arm0": "float", "arm1": "binary", "last": "int8"}
    verify(source, found.model, inputs=images()).require()


@pytest.mark.parametrize("named", [True, False])
def test_a_relu_behind_a_layer_is_a_range_from_0(named: bool) -> None:
    b = Small(np.random.default_rng(0))
    x = b.named("act" if named else "", "Relu", b.batchnorm(b.conv("stem", "x", b.real(8, 3, 3, 3)), 8))
    y = b.node("Add", b.conv("bits", b.node("Sign", x), b.signs(8, 8, 3, 3)), x)
    both = b.conv("both", y, b.real(8, 8, 1, 1))
    z = b.node("Add", b.node("Relu", both), both)
    source = model(b, b.node("Add", z, b.constant(1.0)))
    found = convert(source, INT8, calibration_data=images())
    ops = [node.op_type for node in found.model.graph.node]
    assert ops.count("Relu") == 1, "the other one is not the only reader"
    assert x in int8_edges.recorded(found.model)
    verify(source, found.model, inputs=images()).require()
    zero_points = {
        t.name: int(numpy_helper.to_array(t)) for t in found.model.graph.initializer if t.data_type == 2 and not t.dims
    }
    written = next(node for node in found.model.graph.node if node.output[0] == x)
    assert zero_points[written.input[2]] == 0


def bytes_around(found: onnx.ModelProto, op: str) -> list[tuple[int, int]]:
    """For each such node, how many of its inputs were bytes, and how many of its readers want them."""
    makers = {name: node.op_type for node in found.graph.node for name in node.output}
    return [
        (
            sum(makers.get(name) == "DequantizeLinear" for name in node.input),
            sum(n.op_type == "QuantizeLinear" and node.output[0] in n.input for n in found.graph.node),
        )
        for node in found.graph.node
        if node.op_type == op
    ]


@pytest.mark.parametrize("activation", ["", "Relu"])
def test_a_sum_between_layers_is_one_of_bytes(activation: str) -> None:
    """That of two layers, and that of a layer with a binary one which a layer reads; not one that only bits read."""
    b = Small(np.random.default_rng(0))

    def summed(*names: str) -> str:
        out = b.node("Add", *names)
        return b.node(activation, out) if activation else out

    stem = b.conv("stem", "x", b.real(8, 3, 3, 3))
    both = summed(b.conv("one", stem, b.real(8, 8, 3, 3)), stem)
    bits = b.conv("bits", b.node("Sign", both), b.signs(8, 8, 3, 3))
    pooled = b.node("MaxPool", bits, kernel_shape=[1, 1])
    mixed = summed(b.conv("two", both, b.real(8, 8, 1, 1)), pooled)
    three = b.conv("three", mixed, b.real(8, 8, 1, 1))
    last = b.conv("last", b.node("Sign", b.node("Add", three, pooled)), b.signs(4, 8, 1, 1))
    source = model(b, last)
    found = convert(source, INT8, calibration_data=images())
    assert bytes_around(found.model, "Add") == [(2, 1), (2, 1), (1, 0)]
    assert bytes_around(found.model, "Relu") == [], "it is the sum's range"
    assert {both, mixed} <= set(int8_edges.recorded(found.model))
    verify(source, found.model, inputs=images()).require()


@pytest.mark.parametrize(("low", "high", "left"), [(0.0, 6.0, 0), (-1.0, 1.0, 0), (0.5, 6.0, 1), (-6.0, -0.5, 1)])
def test_a_clip_around_0_behind_a_layer_is_its_range(low: float, high: float, left: int) -> None:
    b = Small(np.random.default_rng(0))
    limits = [b.constant(np.full(shape, limit)) for limit, shape in ((low, ()), (high, (1,)))]  # onnxruntime takes both
    x = b.node("Clip", b.conv("stem", "x", b.real(8, 3, 3, 3)), *limits)
    y = b.conv("second", x, b.real(8, 8, 1, 1))
    source = model(b, b.conv("bits", b.node("Sign", y), b.signs(4, 8, 3, 3)))
    found = convert(source, INT8, calibration_data=images())
    assert len(bytes_around(found.model, "Clip")) == left
    assert (x in int8_edges.recorded(found.model)) == (left == 0)
    verify(source, found.model, inputs=images()).require()
    before, after = (shown(m.model, x) for m in (convert(source), found))
    assert np.abs(before - after).max() < 0.1


def shown(found: onnx.ModelProto, name: str) -> Array:
    """A tensor of a model on the samples."""
    changed = onnx.ModelProto()
    changed.CopyFrom(found)
    changed.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return np.asarray(run(changed, images(), library=True)[1])


def test_other_readers_see_no_rounding(converted: Result) -> None:
    """What is float and no layer reads its input as before, where a layer reads it in 8 bits."""
    source = network()
    source.graph.node.extend([helper.make_node("ReduceMax", ["x"], ["largest"], axes=[1, 2, 3], keepdims=0)])
    source.graph.output.append(helper.make_tensor_value_info("largest", TensorProto.FLOAT, None))
    found = convert(source, INT8, calibration_data=images()).model
    _, largest = run(found, images(), library=True)
    np.testing.assert_array_equal(largest, images()["x"].max((1, 2, 3)))


def test_a_source_with_int8_layers_of_its_own(tmp_path: Path) -> None:
    """They stay as they are, and the rest is quantized."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    onnx.save(network(), tmp_path / "float.onnx")
    reader = iter([images()])
    samples = type("Reader", (quantization.CalibrationDataReader,), {"get_next": lambda self: next(reader, None)})()
    paths = str(tmp_path / "float.onnx"), str(tmp_path / "int8.onnx")
    quantization.quantize_static(*paths, samples, nodes_to_quantize=["stem", "MaxPool_3"])
    source = onnx.load(paths[1])
    own = [n.name for n in source.graph.node if n.op_type == "DequantizeLinear"]
    found = convert(source, INT8, calibration_data=images())
    assert {x.name: x.status for x in found.report.layers if x.status != "binary"} == {
        "stem": "float",
        "down": "int8",
        "fc": "int8",
    }
    assert len({n.name for n in found.model.graph.node} & set(own)) == len(own)
    verify(source, found.model, inputs=images()).require()


def test_nothing_to_quantize() -> None:
    b = Small(np.random.default_rng(0))
    found = convert(model(b, b.conv("only", b.node("Sign", "x"), b.signs(4, 3, 3, 3))), INT8, calibration_data=images())
    assert any("nothing" in note or "no float layer" in note for note in found.report.notes)
    assert found.report.int8 == []


def test_names_that_quantization_would_take() -> None:
    """A tensor of the source that has a name which onnxruntime.quantization gives to its own."""
    source = network()
    bits = next(node for node in source.graph.node if node.op_type == "Sign").output[0]
    for node in source.graph.node:
        for names in (node.input, node.output):
            names[:] = ["x_QuantizeLinear_Output" if name == bits else name for name in names]
    found = convert(source, INT8, calibration_data=images())
    verify(source, found.model, inputs=images()).require()


# --- What is refused -----------------------------------------------------------------------------------------------


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="edges is 'int4'"):
        Config(edges="int4")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="ideal graph has float edges"):
        Config(edges="int8", emit="ideal")
    with pytest.raises(UsageError, match="need samples to calibrate on"):
        convert(network(), INT8)
    with pytest.raises(UsageError, match="calibration data is a int"):
        convert(network(), INT8, calibration_data=3)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="takes shape"):
        convert(network(), INT8, calibration_data=images(shape=(3, 9, 9)))
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with pytest.raises(RuntimeUnavailable, match=r"onnxruntime\.quantization.*cannot be imported"):
        convert(network(), INT8, calibration_data=images())
    inspect(network(), INT8)  # says what it can without quantizing


def test_command_line(command: Command, tmp_path: Path) -> None:  # noqa: F811
    source, out, data = tmp_path / "net.onnx", tmp_path / "net.bin.onnx", tmp_path / "data.npz"
    onnx.save(network(), source)
    np.savez(data, x=images()["x"])
    assert command("convert", source, out, "--edges", "int8").code == 2
    assert command("convert", source, out, "--edges", "int8", "--calibration-data", tmp_path / "none.npz").code == 3
    assert not out.exists()
    done = command("convert", source, out, "--edges", "int8", "--calibration-data", data, "--json")
    assert done.code == 0
    assert [x["name"] for x in done.json["layers"] if x["code"] == "int8-edge"] == ["stem", "down", "fc"]
    assert done.json["int8"][0]["samples"] == 10
    assert command("verify", source, out, "--data", data).code == 0
    assert command("verify", source, out, "--data", data, "--max-diff", "1e-9").code == 1
    assert "--edges" in command("convert", "--help").out


def test_a_model_whose_constants_are_inputs_is_quantized_as_a_whole() -> None:
    """Before version 4 of the format every initializer was an input, and those that folding makes are none."""
    b = Small(np.random.default_rng(0))
    x = b.node("Add", b.conv("stem", "x", b.real(8, 3, 3, 3)), b.constant(b.real(8, 1, 1)))
    source = model(b, b.node("GlobalAveragePool", x))
    source.ir_version, source.opset_import[0].version = 3, 8
    source.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in source.graph.initializer
    )
    samples = np.random.default_rng(0).normal(size=(4, 1, 3, 16, 16)).astype(np.float32)
    quantized = int8.whole(source, [{"x": sample} for sample in samples])
    assert any(node.op_type == "QuantizeLinear" for node in quantized.graph.node)
