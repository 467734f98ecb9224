"""Quantization after training, end to end: compiled = ideal bit for bit, close to the float network, and as the
command line promises."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from corpus import corpus_path, datasets
from float_nets import NETWORKS, SAMPLES, FloatNet, residual, samples
from onnx import numpy_helper
from test_cli import Command, command  # noqa: F401  # a fixture
from test_property import assert_same_bits, run

from binarize_onnx import Config, convert, opset, pipeline, runtime
from binarize_onnx.errors import ModelError, NothingMatched, UsageError
from binarize_onnx.quantize import Precision, Settings, post_training, sites
from binarize_onnx.quantize.activations import Levels
from binarize_onnx.quantize.post_training import Quantized
from binarize_onnx.quantize.stream import Spool
from binarize_onnx.verify import Gates, verify

Array = npt.NDArray[Any]
FAST = Settings(weights="recon")


def quantized(name: str, preset: str, settings: Settings = FAST, **arguments: Any) -> Quantized:
    """A network of `float_nets` with all its inner layers in one precision."""
    model = NETWORKS[name]()
    network = sites.find(model)
    plan, _ = network.choose(Precision.parse(preset))
    return post_training.quantize(network, samples(model), plan, settings, **arguments)


def xnor_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.domain == opset.DOMAIN and node.op_type in opset.LAYERS]


def require_exact(ideal: onnx.ModelProto, compiled: onnx.ModelProto, inputs: Mapping[str, Array]) -> None:
    """The compiled model has the bits of the compiler's ideal graph, and the values of the one it was made from."""
    steps = convert(ideal, Config(emit="ideal", slow_layers="convert")).model
    wanted = run(steps, dict(inputs), library=False)
    assert_same_bits(run(compiled, dict(inputs), library=False), wanted)
    assert_same_bits(run(compiled, dict(inputs), library=True), wanted)
    normalized = any(node.op_type == "BatchNormalization" for node in ideal.graph.node)
    for values, source in zip(wanted, run(ideal, dict(inputs), library=False), strict=True):
        if normalized:  # onnxruntime 1.20 does not round a BatchNormalization step by step, as ideal graphs do
            np.testing.assert_allclose(values, source, rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(values, source)  # beside bits: a Relu has no negative zeros


@pytest.mark.parametrize("preset", ["w1a1", "w1a3", "w2a2", "w3a6"])
@pytest.mark.parametrize("name", NETWORKS)
def test_compiled_is_ideal_and_a_layer_is_a_node(name: str, preset: str) -> None:
    model, inputs = NETWORKS[name](), samples(NETWORKS[name](), 4, seed=1)
    data, config = samples(model), Config(ptq=preset, ptq_settings=FAST)
    result = convert(model, config, calibration_data=data)
    ideal = convert(model, Config(ptq=preset, ptq_settings=FAST, emit="ideal"), calibration_data=data).model
    onnx.checker.check_model(ideal)
    require_exact(ideal, result.model, inputs)
    layers = [layer for layer in result.report.layers if layer.precision]
    assert {layer.status for layer in layers} == {"binary"}
    grouped = 2 if name == "plain_forms" and int(preset[1]) > 1 else 0  # bases of a layer with groups are nodes
    assert len(xnor_nodes(result.model)) == len(layers) + grouped // 2 * (int(preset[1]) - 1)


@pytest.mark.parametrize("preset", ["w1a1", "w3a4"])
def test_no_float_steps_stand_between_layers(preset: str) -> None:
    """Sums of bases, shortcuts and Relu are in the layers, which write each other's bits."""
    model = NETWORKS["residual"]()
    result = convert(model, Config(ptq=preset, ptq_settings=FAST), calibration_data=samples(model))
    ops = [node.op_type for node in result.model.graph.node]
    assert ops.index("PackSign") < ops.index("XnorConv")
    assert ops[ops.index("PackSign") + 1 :] == ["XnorConv"] * 5 + ["GlobalAveragePool", "Flatten", "Gemm"]


def test_channels_that_come_last_leave_no_steps_either() -> None:
    """The Relu between the last binary layer and the float one moves into the layer, and both Transposes are gone."""
    model = NETWORKS["channels_last"]()
    result = convert(model, Config(ptq="w1a2", ptq_settings=FAST), calibration_data=samples(model))
    ops = [node.op_type for node in result.model.graph.node]
    assert ops == ["Transpose", "Conv", "PackSign", "XnorConv", "XnorConv", "GlobalAveragePool", "Flatten", "Gemm"]


@pytest.mark.parametrize("name", NETWORKS)
def test_more_bits_come_closer_to_the_float_network(name: str) -> None:
    errors = [quantized(name, preset).outputs[0].error for preset in ("w1a1", "w2a4", "w4a6")]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01


def test_every_rung_of_methods_helps() -> None:
    rungs = (
        Settings("sign", "zero", "none", compensate=False, readout=False),
        Settings("sign", "zero", "ls", compensate=False, readout=False),
        Settings("sign", "means", "ls", compensate=False, readout=False),
        Settings("recon", "means", "ls", compensate=False, readout=False),
    )
    errors = [sum(row.error for row in quantized("residual", "w1a1", rung).layers) for rung in rungs]
    assert all(worse > better > 0.1 for worse, better in pairwise(errors))


def test_a_layer_makes_up_for_its_shortcut() -> None:
    def at_the_sum(compensate: bool) -> float:
        found = quantized("residual", "w1a1", Settings("recon", compensate=compensate))
        source, inputs = NETWORKS["residual"](), samples(NETWORKS["residual"]())
        (added,) = [node.output[0] for node in source.graph.node if node.op_type == "Add"][1:]
        sums = []
        for model in (source, found.model):
            model.graph.output.append(onnx.helper.make_tensor_value_info(added, 1, [None] * 4))
            sums.append(run(model, inputs, library=False)[1])
        return float(np.square(sums[1] - sums[0]).mean())

    assert at_the_sum(True) < at_the_sum(False)


def test_layers_that_read_one_tensor_share_its_levels() -> None:
    found = quantized("residual", "w1a3")
    levels = [node for node in found.model.graph.node if node.op_type == "Level"]
    assert len(levels) == len({node.input[0] for node in levels}) < len(found.layers)


def test_each_layer_may_have_a_precision_of_its_own() -> None:
    model = NETWORKS["residual"]()
    plan = {"l1": Precision(1, 1), "l2": Precision(2, 2), "l4": Precision(1, 6), "l6": Precision(1, 4)}
    found = post_training.quantize(sites.find(model), samples(model), plan, FAST)
    assert {row.name: row.precision for row in found.layers} == plan
    compiled = convert(found.model, Config(slow_layers="convert"))
    require_exact(found.model, compiled.model, samples(model, 3, seed=2))
    assert len(xnor_nodes(compiled.model)) == len(plan)


def test_what_is_not_in_the_plan_stays_as_it_is() -> None:
    model = NETWORKS["residual"]()
    network = sites.find(model)
    nodes = {node.name: node for node in network.model.graph.node}
    layers = {f"l{i}" for i in range(7)}
    for settings, changed in ((replace(FAST, readout=False), {"l2"}), (FAST, {"l2", "l6"})):
        found = post_training.quantize(network, samples(model), {"l2": Precision(1, 2)}, settings)
        made = {node.name: node for node in found.model.graph.node}
        assert layers <= set(made)
        assert {name for name in layers if made[name] != nodes[name]} == changed
        assert set(found.refitted) == changed - {"l2"}
        assert [row.name for row in found.layers] == ["l2"]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_last_layer_with_new_weights_answers_fresh_samples_better(name: str) -> None:
    """Where there are some hundred: to a few, the layers in front of it are fitted too well to learn from."""
    model = NETWORKS[name]()
    network = sites.find(model)
    plan, _ = network.choose(Precision(1, 1))
    fresh = samples(model, 200, seed=5)
    (wanted,) = run(model, fresh, library=False)
    errors = []
    for settings in (FAST, replace(FAST, readout=False)):
        found = post_training.quantize(network, samples(model, 200), plan, settings)
        (answer,) = run(found.model, fresh, library=False)
        errors.append(float(np.square(answer - wanted).mean()))
    assert errors[0] < errors[1]


def test_a_last_layer_that_is_quantized_or_reads_nothing_quantized_gets_no_new_weights() -> None:
    network = sites.find(NETWORKS["residual"]())
    one = Precision(1, 1)
    assert [site.name for site in post_training.readouts(network, {"l1": one})] == ["l6"]
    assert post_training.readouts(network, {"l1": one, "l6": one}) == []
    net = FloatNet()
    x = net.block("x", 32, 3)
    deep, flat = net.classes(net.block(x, 32, 32), 32), net.classes(x, 32)
    model = net.model(net.node("Add", deep, flat), {"x": ["N", 3, 8, 8]})
    assert [site.name for site in post_training.readouts(sites.find(model), {"l1": one})] == ["l2"]


def test_batches_and_fixed_batch_sizes_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """All sums over levels are exact; those over targets are not, so signs are the same and scales nearly."""
    whole = quantized("residual", "w2a3")
    monkeypatch.setattr(post_training, "MOST_SAMPLES", 5)
    parts = quantized("residual", "w2a3")
    fixed = residual(1)
    network = sites.find(fixed)
    plan, _ = network.choose(Precision(2, 3))
    single = post_training.quantize(network, samples(NETWORKS["residual"]()), plan, FAST)
    assert (whole.samples, parts.samples, single.samples) == (SAMPLES,) * 3
    for other in (parts, single):
        np.testing.assert_allclose([x.error for x in other.layers], [x.error for x in whole.layers], rtol=0.05)


class Reader:
    """An onnxruntime CalibrationDataReader, which can be read once."""

    def __init__(self, inputs: Mapping[str, Array]) -> None:
        (name, values), *_ = inputs.items()
        self._batches: Iterator[dict[str, Array]] = iter([{name: part} for part in np.split(values, 4)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)


def test_a_reader_gives_what_arrays_do() -> None:
    model = NETWORKS["residual"]()
    config = Config(ptq="w1a2", ptq_settings=FAST)
    by_reader = convert(model, config, calibration_data=Reader(samples(model))).report
    by_array = convert(model, config, calibration_data=samples(model)).report
    errors = [[layer.error for layer in report.layers if layer.precision] for report in (by_reader, by_array)]
    np.testing.assert_allclose(np.asarray(errors[0], float), np.asarray(errors[1], float), rtol=0.05)


def test_the_same_call_gives_the_same_bytes_and_another_seed_others() -> None:
    some = Settings("recon", patches=200)
    first, again = (quantized("residual", "w1a2", some).model.SerializeToString(deterministic=True) for _ in range(2))
    assert first == again
    other = Settings("recon", patches=200, seed=1)
    assert quantized("residual", "w1a2", other).model.SerializeToString(deterministic=True) != first


class Stop(Exception):
    """What a test stops a calculation with."""


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 6, 8, 9, 11, 13, 20, 21])
def test_what_was_stopped_goes_on_with_the_same_result(
    stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of each stage and at its end, once after the other."""
    wanted = quantized("residual", "w2a2")
    write, finish, calls = Spool.write, Spool.finish, [0]

    def stopping(method: Any) -> Any:
        def call(*arguments: Any) -> None:
            calls[0] += 1
            if calls[0] == stop_at:
                raise Stop
            method(*arguments)

        return call

    monkeypatch.setattr(post_training, "MOST_SAMPLES", 12)
    whole = quantized("residual", "w2a2")
    monkeypatch.setattr(Spool, "write", stopping(write))
    monkeypatch.setattr(Spool, "finish", stopping(finish))
    with pytest.raises(Stop):
        quantized("residual", "w2a2", resume=tmp_path / "work")
    told: list[str] = []
    found = quantized("residual", "w2a2", resume=tmp_path / "work", progress=told.append)
    assert found.model.SerializeToString(deterministic=True) == whole.model.SerializeToString(deterministic=True)
    assert (found.layers, found.outputs, found.samples) == (whole.layers, whole.outputs, wanted.samples)
    finished = (stop_at - 1) // 3 - 1  # stages, of two batches and a mark each; layers are kept behind them
    assert sum(words.startswith("layer") for words in told) == 6 - max(finished, 0)


def test_a_finished_folder_is_read_again(tmp_path: Path) -> None:
    first = quantized("residual", "w1a1", resume=tmp_path)
    told: list[str] = []
    again = quantized("residual", "w1a1", resume=tmp_path, progress=told.append)
    assert again.model == first.model
    assert told == ["comparing the outputs"]


@pytest.mark.parametrize("change", ["plan", "settings", "data", "model", "solver", "version"])
def test_a_folder_of_another_calculation_is_refused(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized("residual", "w1a1", resume=tmp_path)
    if change == "solver":
        monkeypatch.setattr(post_training, "WORK", post_training.WORK + 1)
    if change == "version":
        monkeypatch.setattr(pipeline, "package_version", lambda: "another")
    model = NETWORKS["residual" if change != "model" else "plain_forms"]()
    network = sites.find(model)
    plan, _ = network.choose(Precision(1, 2 if change == "plan" else 1))
    settings = Settings("sign") if change == "settings" else FAST
    data = samples(model, seed=1 if change == "data" else 0)
    with pytest.raises(UsageError, match="name another folder to begin anew"):
        post_training.quantize(network, data, plan, settings, resume=tmp_path)


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty, and holds no work of ours"):
        quantized("residual", "w1a1", resume=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("how", ["empty", "half", "gone"])
@pytest.mark.parametrize("name", ["calculation.json", "layer.0001.npz", "000000.0.npy", "complete.json"])
def test_a_folder_that_is_damaged_is_refused(name: str, how: str, tmp_path: Path) -> None:
    quantized("residual", "w1a1", resume=tmp_path)
    (path,) = tmp_path.rglob(name)
    content = path.read_bytes()
    path.unlink()
    if how != "gone":
        path.write_bytes(content[: len(content) // 2] if how == "half" else b"")
    with pytest.raises((ModelError, UsageError), match=r"is damaged|holds no work of ours"):
        quantized("residual", "w1a1", resume=tmp_path)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="holds no work of ours"):
        quantized("residual", "w1a1", resume=tmp_path / "file")
    with pytest.raises(ModelError, match="cannot be stored"):
        quantized("residual", "w1a1", resume=tmp_path / "file" / "below")


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    quantized("residual", "w1a1")
    assert list(tmp_path.iterdir()) == []


def test_layers_that_are_binary_already_stay_as_they_are() -> None:
    net = FloatNet()
    x = net.block(net.block("x", 32, 3), 32, 32)
    bit = net.node("Where", net.node("GreaterOrEqual", x, net.constant(0.5)), net.constant(1), net.constant(-1))
    x = net.layer("Conv", bit, net.constant(0.25 * net.signs(32, 32, 3, 3)), pads=[1] * 4)
    model = net.model(net.classes(net.node("Relu", net.normalize(x, 32)), 32), {"x": ["N", 3, 8, 8]})
    data = samples(model)
    result = convert(model, Config(ptq="w1a2", ptq_settings=FAST), calibration_data=data)
    found = {layer.name: (layer.status, layer.precision) for layer in result.report.layers}
    assert found == {"l0": ("float", ""), "l1": ("binary", "w1a2"), "l2": ("binary", ""), "l3": ("float", "")}
    ideal = convert(model, Config(ptq="w1a2", ptq_settings=FAST, emit="ideal"), calibration_data=data).model
    nodes = [node for node in ideal.graph.node if node.name == "l2"]
    assert [list(node.input) for node in nodes] == [[bit, next(n for n in model.graph.node if n.name == "l2").input[1]]]
    require_exact(ideal, result.model, data)
    excluded = Config(ptq="w1a2", ptq_settings=FAST, nodes_to_exclude=("l2",))
    found = {x.name: (x.status, x.precision) for x in convert(model, excluded, calibration_data=data).report.layers}
    assert (found["l1"], found["l2"]) == (("binary", "w1a2"), ("float", ""))


# --- What is said ------------------------------------------------------------------------------------------------


def test_too_few_rows_and_chance_are_warned_of() -> None:
    model = NETWORKS["residual"]()
    network = sites.find(model)
    plan, _ = network.choose(Precision(1, 1))
    few = post_training.quantize(network, samples(model, 2), plan, FAST)
    by_name = {row.name: row for row in few.layers}
    assert by_name["l4"].patches == 2 * 4 * 4 < 10 * by_name["l4"].length
    assert any("32 rows of input for 576 weights a channel: give more samples" in w for w in by_name["l4"].warnings)
    poor = post_training.OutputAgreement("y", 1.0, 0.12, 10)
    assert "which is chance" in post_training._warnings([poor], 200)[0]
    fair = post_training.OutputAgreement("y", 1.0, 0.4, 10)
    assert post_training._warnings([fair], 200) == []


def test_values_beyond_the_levels_are_counted() -> None:
    levels = Levels(np.asarray([[0.5, 9], [1.5, 9]], np.float32), np.zeros(2), np.asarray([1.0, 0.0]))
    values = np.asarray([[0, 5], [2.5, 5], [3.5, 5], [-1.5, 5]], np.float32)
    assert post_training._count_outside(levels, values) == 2


def test_the_file_records_what_was_done() -> None:
    model = NETWORKS["residual"]()
    result = convert(model, Config(ptq="w1a2", ptq_settings=FAST), calibration_data=samples(model))
    entries = {entry.key: entry.value for entry in result.model.metadata_props}
    entry = json.loads(entries["binarize_onnx.post_training"])
    assert entry["plan"] == dict.fromkeys(["l1", "l2", "l3", "l4", "l5"], "w1a2")
    assert (entry["samples"], entry["settings"]["weights"]) == (SAMPLES, "recon")
    assert result.report.to_json()["post_training"][0].startswith("`t")


def test_verify_compares_outputs_with_the_float_model_and_bits_with_the_ideal_one(tmp_path: Path) -> None:
    model = NETWORKS["residual"]()
    data = samples(model)
    compiled = convert(model, Config(ptq="w2a4", ptq_settings=FAST), calibration_data=data).model
    ideal = convert(model, Config(ptq="w2a4", ptq_settings=FAST, emit="ideal"), calibration_data=data).model
    against_ideal = verify(ideal, compiled, inputs=data)
    against_ideal.require()
    assert against_ideal.exact is not None
    assert against_ideal.exact.equal
    against_float = verify(model, compiled, inputs=data)
    against_float.require()
    assert against_float.exact is None
    assert any("was quantized after training" in note for note in against_float.notes)
    assert not all(gate.passed for gate in against_float.gates(Gates(max_diff=1e-6)))
    other = verify(residual("M"), compiled, inputs=data)
    assert not all(gate.passed for gate in other.gates(Gates()))


# --- What is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x[:0], "no samples"),
        (lambda x: np.where(np.arange(len(x))[:, None, None, None] == 5, np.nan, x).astype(np.float32), "sample 5"),
        (lambda x: x[:, :2], r"takes shape \[any, 3, 8, 8\], the data is \[24, 2, 8, 8\]"),
        (lambda x: x.astype(np.float64), "takes float32, the data is float64"),
    ],
)
def test_bad_data_is_refused(change: Any, words: str) -> None:
    model = NETWORKS["residual"]()
    data = {name: change(values) for name, values in samples(model).items()}
    with pytest.raises(ModelError, match=words):
        convert(model, Config(ptq="w1a1"), calibration_data=data)


def test_infinities_that_the_network_makes_are_told_of() -> None:
    net = FloatNet()
    x = net.node("Exp", net.node("Mul", net.block("x", 8, 3), net.constant(1e4)))
    model = net.model(net.classes(net.block(x, 8, 8), 8), {"x": ["N", 3, 8, 8]})
    with pytest.raises(ModelError, match="NaN or infinity reaches layer `l1`"):
        convert(model, Config(ptq="w1a1"), calibration_data=samples(model))


@pytest.mark.parametrize("layer", ["l0", "l2", "l6"])
@pytest.mark.parametrize("odd", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_told_of_by_their_own_layer(layer: str, odd: float) -> None:
    model = NETWORKS["residual"]()
    name = next(node.input[1] for node in model.graph.node if node.name == layer)
    (stored,) = (t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(stored).copy()
    values.flat[3] = odd
    stored.CopyFrom(numpy_helper.from_array(values, name))
    with pytest.raises(ModelError, match=f"`{name}` of (Conv|Gemm) `{layer}` holds NaN or infinity"):
        convert(model, Config(ptq="w1a1"), calibration_data=samples(model))


def test_a_float_model_without_data_is_refused() -> None:
    with pytest.raises(UsageError, match="layers that are quantized after training need samples to calibrate on: give"):
        convert(NETWORKS["residual"](), Config(ptq="w1a1"))


def test_plans_of_layers_that_are_not_there_are_refused() -> None:
    network = sites.find(NETWORKS["plain_forms"]())
    for name, words in (("nowhere", "is no layer of the model"), ("l3", "cannot be quantized: depthwise")):
        with pytest.raises(UsageError, match=words):
            post_training.quantize(network, {}, {name: Precision(1, 1)})


def test_nothing_to_quantize() -> None:
    model = NETWORKS["residual"]()
    with pytest.raises(NothingMatched, match="no layer is left to be quantized"):
        convert(model, Config(ptq="w1a1", nodes_to_exclude=(".*",)), calibration_data=samples(model))


def test_on_the_command_line(command: Command, tmp_path: Path) -> None:  # noqa: F811
    model = NETWORKS["residual"]()
    source, out, ideal, data = (tmp_path / name for name in ("in.onnx", "out.onnx", "ideal.onnx", "data.npz"))
    onnx.save(model, source)
    np.savez(data, x=samples(model)["x"])
    options = ["--ptq", "w2a2", "--ptq-weights", "recon", "--calibration-data", data]
    done = command("convert", source, out, *options, "--json", "--resume", tmp_path / "work")
    assert (done.code, done.err) == (0, "")
    assert [layer["precision"] for layer in done.json["layers"]].count("w2a2") == 5
    first = out.read_bytes()
    shutil.rmtree(tmp_path / "work")
    done = command("convert", source, out, *options)
    assert "w2a2, error " in done.out
    assert "keep their class" in done.out
    assert out.read_bytes() == first
    assert command("convert", source, ideal, *options, "--emit", "ideal").code == 0
    assert command("verify", ideal, out, "--data", data).code == 0
    assert command("verify", source, out, "--data", data).code == 0
    assert command("verify", source, out, "--data", data, "--min-agreement", "90%").code == 0
    done = command("convert", source, out, "--ptq", "w2a2")
    assert (done.code, "--calibration-data" in done.err) == (2, True)
    assert command("convert", source, out, "--ptq", "w9a9", "--calibration-data", data).code == 2
    assert command("convert", source, out, *options, "--nodes-to-exclude", ".*").code == 4
    assert command("convert", source, out, *options, "--seed", "1", "--resume", tmp_path).code == 2


# --- Real networks -----------------------------------------------------------------------------------------------


def test_mnist_keeps_most_of_its_accuracy_in_w1a1() -> None:
    """One image at a time, as the file of opset 8 has it; the inner layer on bits."""
    path, data = corpus_path("fp32/mnist_cnn_cntk.onnx"), datasets("mnist")
    given = {"Input3": data["x_train"][:300, None].astype(np.float32)}
    result = convert(path, Config(ptq="w1a1"), calibration_data=given)
    assert [layer.name for layer in result.report.layers if layer.precision] == ["Convolution110"]
    images, labels = data["x_test"][:1000, None].astype(np.float32), data["y_test"][:1000]
    accuracy = []
    for start, model in (
        (ort.InferenceSession, onnx.load(path)),
        (runtime.InferenceSession, result.model),
    ):
        session = start(model.SerializeToString(), providers=["CPUExecutionProvider"])
        classes = [int(session.run(None, {"Input3": image[None]})[0].argmax()) for image in images]
        accuracy.append(float(np.mean(np.asarray(classes) == labels)))
    assert accuracy[0] > 0.98
    assert accuracy[1] > 0.955  # 96.5 % when this was written; without the fit it is far below


def test_resnet20_compiles_into_one_node_a_layer_without_floats_between() -> None:
    """Few samples and the plainest weights: what is looked at is the graph."""
    path = corpus_path("fp32/cifar10_resnet20_fp32.onnx")
    images = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
    config = Config(ptq="w2a4", ptq_settings=Settings("sign", patches=2000))
    result = convert(path, config, calibration_data={"input": images})
    ideal = convert(
        path, Config(ptq="w2a4", ptq_settings=config.ptq_settings, emit="ideal"), calibration_data={"input": images}
    )
    require_exact(ideal.model, result.model, {"input": images[:2]})
    ops = [node.op_type for node in result.model.graph.node]
    assert ops.count("XnorConv") == 18
    assert (ops.count("Relu"), ops.count("PackSign")) == (1, 1)  # behind the stem; every other layer writes bits


@pytest.mark.parametrize("name", ["efficientnet_lite0_fp32", "super_resolution"])
def test_depthwise_clip_and_depth_to_space_do_not_trouble_it(name: str) -> None:
    path = corpus_path(f"fp32/{name}.onnx")
    channels = 3 if name.startswith("efficientnet") else 1
    image = np.random.default_rng(0).normal(size=(1, channels, 224, 224)).astype(np.float32)
    names = r"_blocks\.(2|3)\.(expand|proj)" if channels == 3 else "Conv_4"
    options = {"ptq": "w1a3", "ptq_settings": Settings("sign", patches=2000), "nodes_to_quantize": (names,)}
    result = convert(path, Config(**options), calibration_data={"input": image})  # type: ignore[arg-type]
    ideal = convert(path, Config(**options, emit="ideal"), calibration_data={"input": image}).model  # type: ignore[arg-type]
    assert (
        len(xnor_nodes(result.model))
        == sum(bool(x.precision) for x in result.report.layers)
        == (4 if channels == 3 else 1)
    )
    require_exact(ideal, result.model, {"input": image})
