"""Times in turns, the layers that they are counted to, and the words of a benchmark. No test asserts a speed."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import binarize_onnx
from binarize_onnx import bench, cli, gates, io
from binarize_onnx.bench import layers, profile, timing
from binarize_onnx.bench import run as running
from binarize_onnx.bench.results import BODIES, KERNELS, PLAIN, LayerRow, LayerTable, Machine, Row
from binarize_onnx.errors import BinarizeError, GateFailed, ModelError, UsageError
from binarize_onnx.report import shown_size

DEMO = Path(binarize_onnx.__file__).parent / "data" / "demo.onnx"
SECONDS = 0.02


# --- Timing, on a clock that only the contestants move -------------------------------------------------------------


@pytest.fixture
def contestant(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Any]:
    """A call that takes a number of seconds on the clock of the test, and counts itself."""
    now = [0.0]
    monkeypatch.setattr("binarize_onnx.bench.timing.time.perf_counter", lambda: now[0])

    def make(seconds: float, log: list[float] | None = None) -> Callable[[], None]:
        def call() -> None:
            now[0] += seconds
            if log is not None:
                log.append(seconds)

        return call

    return make


def test_everybody_takes_part_in_every_round_if_there_is_time(contestant: Callable[..., Any]) -> None:
    log: list[float] = []
    times = bench.time_in_turns([contestant(1 / 1024, log), contestant(3 / 1024, log)], seconds=1.0)
    assert times.tolist() == [[1 / 1024] * 256, [3 / 1024] * 256]
    orders = {(log[i] < log[i + 1]) for i in range(len(log) - 512, len(log), 2)}
    assert orders == {True, False}


def test_a_slow_contestant_sits_out_rounds_but_not_the_first(contestant: Callable[..., Any]) -> None:
    log: list[float] = []
    times = bench.time_in_turns([contestant(0.001), contestant(1.0, log)], seconds=1.0)
    took_part = np.flatnonzero(~np.isnan(times[1]))
    assert took_part.tolist() == list(range(0, times.shape[1], timing.LONGEST_PAUSE))
    assert len(took_part) >= 4
    assert len(log) == len(took_part) + 1  # one call to warm up, and no more
    assert bench.rounds(times[1]) == len(took_part)
    assert bench.rounds(times[0]) == times.shape[1] >= timing.FEWEST_ROUNDS


def test_if_all_are_slow_nobody_waits_for_empty_rounds(contestant: Callable[..., Any]) -> None:
    times = bench.time_in_turns([contestant(1.0), contestant(1.0)], seconds=1.0)
    assert not np.isnan(times).any()
    assert times.shape == (2, 4)


def test_rounds_have_an_upper_limit(contestant: Callable[..., Any]) -> None:
    assert bench.time_in_turns([contestant(0.001)], seconds=9.0, most=7).shape == (1, 7)


def test_threads_settle_in_untimed_calls_before_a_measurement(contestant: Callable[..., Any]) -> None:
    log: list[float] = []
    times = bench.time_in_turns([contestant(0.125, log)], seconds=0.0, fewest=2, settle=0.25)
    assert times.tolist() == [[0.125, 0.125]]
    assert len(log) == 1 + 2 * (2 + 1)  # the warm-up; calls for 0.25 s and the one that is timed, twice


def test_a_short_call_is_repeated_and_its_mean_taken(contestant: Callable[..., Any]) -> None:
    log: list[float] = []
    times = bench.time_in_turns([contestant(1 / 1024, log), contestant(1.0)], seconds=0.0, fewest=3, shortest=4 / 1024)
    assert times.tolist() == [[1 / 1024] * 3, [1.0] * 3]
    assert len(log) == timing.WARM_UP_ROUNDS + 3 * (4 + 1)  # one in front of each measurement


def test_ratios_are_made_within_rounds() -> None:
    """The median of the ratios is 2; the ratio of the medians would be 4."""
    baseline, other = np.asarray([2.0, 8.0, 9.0, np.nan, 7.0]), np.asarray([1.0, 4.0, 1.0, 0.1, np.nan])
    found = bench.ratios(baseline, other)
    assert found.median == 2.0
    assert found.lower <= found.median <= found.upper == 5.5
    assert bench.summary(other) == bench.Time(median=1e6 * 1.0, lower=1e6 * 0.775, upper=1e6 * 1.75)


# --- The profiler's events -----------------------------------------------------------------------------------------


def event(name: str, start: int, duration: int, op: str = "") -> dict[str, Any]:
    category = "Node" if op else "Session"
    return {"cat": category, "name": name, "ts": start, "dur": duration, "args": {"op_name": op} if op else {}}


def run_events(start: int, scale: int) -> list[dict[str, Any]]:
    return [
        event("SequentialExecutor::Execute", start + 1, 98 * scale),
        event("a_fence_before", start + 1, 0, "Conv"),
        event("a_kernel_time", start + 1, 30 * scale, "Conv"),
        event("loop_kernel_time", start + 1 + 30 * scale, 40 * scale, "Loop"),
        event("inner_kernel_time", start + 1 + 30 * scale, 10 * scale, "Add"),
        event("inner_kernel_time", start + 1 + 45 * scale, 10 * scale, "Add"),
        event("b_kernel_time", start + 1 + 70 * scale, 20 * scale, "Relu"),
        event("model_run", start, 100 * scale),
    ]


def test_events_become_times_that_add_up() -> None:
    """Of eight runs, an interrupted and a lucky one are among the two quarters that are left out."""
    scales = [1, 1, 9, 1, 1, 1, 0, 1]
    events = [e for i, scale in enumerate(scales) for e in run_events(10_000 * i, scale)]
    total, nodes, runs = profile.read_events([*events, {"name": "no duration", "ts": 0}])
    assert (total, runs) == (100.0, 4)
    assert {n.name: (n.op, n.us) for n in nodes} == {
        "a": ("Conv", 30.0),
        "loop": ("Loop", 40.0),  # what it runs inside is part of it
        "b": ("Relu", 20.0),
    }


def test_names_are_those_that_the_converter_gives() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"], name="same"),
        helper.make_node("Relu", ["b"], ["c"], name="same"),
        helper.make_node("Relu", ["c"], ["d"], name="a"),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    assert [node.name for node in profile.with_names(model).graph.node] == ["a.1", "b", "c", "a"]
    assert [node.name for node in model.graph.node] == ["", "same", "same", "a"]


# --- Layers --------------------------------------------------------------------------------------------------------


def graph_of(*nodes: str) -> onnx.ModelProto:
    """`op name: inputs -> outputs`, a node a line; ops of ours begin with a dot."""
    made = []
    for line in nodes:
        op, name, read, written = re.fullmatch(r"(\S+) (\S+): (.*) -> (.*)", line).groups()  # type: ignore[union-attr]
        domain = "binarize_onnx" if op.startswith(".") else ""
        made.append(helper.make_node(op.lstrip("."), read.split(), written.split(), name=name, domain=domain))
    graph = helper.make_graph(made, "g", [], [onnx.ValueInfoProto(name=made[-1].output[0])])
    return helper.make_model(graph)


SOURCE = graph_of(
    "Cast front: x -> x0",
    "Conv stem: x0 w -> c0",
    "BatchNormalization bn0: c0 s -> n0",
    "MaxPool pool0: n0 -> p0",
    "BatchNormalization bn1: p0 s -> n1",
    "Sign sign1: n1 -> b1",
    "Pad pad1: b1 -> a1",
    "Conv conv1: a1 w -> c1",
    "MaxPool pool1: c1 -> p1",
    "Sign sign2: p1 -> b2",
    "Conv conv2: b2 w -> c2",
    "Conv side: b1 w -> c3",
    "Add sum: c2 c3 -> s1",
    "Add shortcut: s1 p0 -> s2",
    "Relu relu: s2 -> r",
    "BatchNormalization bn3: r s -> n3",
    "Gemm head: n3 w -> y",
)
CONVERTED = graph_of(
    "Cast front: x -> x0",
    "Conv stem: x0 w -> c0",
    "BatchNormalization bn0: c0 s -> n0",
    "MaxPool pool0: n0 -> p0",
    ".PackSign pack: p0 t -> b1.bits",
    ".XnorConv conv1: b1.bits w -> p1.unpooled",
    ".PackedMaxPool pool1.bits: p1.unpooled i -> b2.bits",
    ".XnorConv conv2: b2.bits w -> c2",
    ".XnorConv side: b1.bits w -> s1",
    "Add shortcut: s1 p0 -> s2",
    "Relu relu: s2 -> r",
    "BatchNormalization bn3: r s -> n3",
    "Gemm head: n3 w -> y",
)
BINARY = {"conv1", "conv2", "side"}


def test_what_follows_a_layer_counts_to_it_and_packing_to_the_layer_that_reads_the_bits() -> None:
    packed = layers.packed_tensors(CONVERTED)
    assert packed == {"p0"}
    assert layers.owners(CONVERTED, packed, BINARY).nodes == {
        "front": "",
        "stem": "stem",
        "bn0": "stem",
        "pool0": "stem",
        "pack": "conv1",
        "conv1": "conv1",
        "pool1.bits": "conv1",
        "conv2": "conv2",
        "side": "side",
        "shortcut": "side",
        "relu": "side",
        "bn3": "side",
        "head": "head",
    }
    assert layers.owners(SOURCE, packed, BINARY).nodes == {
        "front": "",
        "stem": "stem",
        "bn0": "stem",
        "pool0": "stem",
        "bn1": "conv1",
        "sign1": "conv1",
        "pad1": "conv1",
        "conv1": "conv1",
        "pool1": "conv1",
        "sign2": "conv1",  # which conv1 does in its epilogue once it is converted
        "conv2": "conv2",
        "side": "side",
        "sum": "side",
        "shortcut": "side",  # behind a packed tensor, but behind a layer as well
        "relu": "side",
        "bn3": "side",
        "head": "head",
    }


def test_what_makes_a_tensor_that_is_packed_later_counts_to_the_layer_before() -> None:
    model = graph_of(
        "Conv stem: x w -> c",
        "Relu relu: c -> r",
        "Sign sign1: c -> b1",
        "Sign sign2: r -> b2",
        "Conv one: b1 w -> c1",
        "Conv two: b2 w -> c2",
        "Add sum: c1 c2 -> y",
    )
    found = layers.owners(model, {"c", "r"}, {"one", "two"}).nodes
    assert {name: found[name] for name in ("relu", "sign1", "sign2", "sum")} == {
        "relu": "stem",
        "sign1": "one",
        "sign2": "two",
        "sum": "two",
    }


def profiled(model: onnx.ModelProto, *nodes: tuple[str, str, float], total: float = 1000.0) -> profile.Profile:
    """A profile of the optimised graph `model`: (name, op, µs) for each node that ran."""
    return profile.Profile(total, tuple(profile.NodeTime(*node) for node in nodes), model.graph, 1)


def test_nodes_that_onnxruntime_made_are_traced() -> None:
    optimised = graph_of(
        "Cast front: x -> x0",
        "Conv n0_nchwc: x0 w -> t0",  # stem with bn0
        "MaxPool p0_nchwc: t0 -> t1",
        "ReorderOutput ReorderOutput: t1 -> p0",
        "Conv n1_bn_nchwc: t1 w -> t2",  # bn1 alone
        "Sign sign1: t2 -> b1",
        "Pad pad1: b1 -> a1",
        "ReorderInput ReorderInput: a1 -> t3",
        "FusedConv fused_conv1: t3 w -> c1",
        "MaxPool pool1: c1 -> p1",
        "Sign sign2: p1 -> b2",
        "Conv conv2: b2 w -> c2",
        "Conv sum_of_both: b1 w c2 -> s1",
        "Add shortcut: s1 p0 -> s2",
        "Relu relu: s2 -> r",
        "Conv n3_bn_nchwc: r s -> t4",  # bn3 alone
        "Gemm made_up: t4 w -> y",
        "Mystery unknown: q -> v",
    )
    ran = [(node.name, node.op_type, 2.0**i) for i, node in enumerate(optimised.graph.node)]
    source = profiled(optimised, *ran, total=2.0**18)
    converted = profiled(CONVERTED, *[(node.name, node.op_type, 1.0) for node in CONVERTED.graph.node])
    rows = layers.rows((SOURCE, source), (CONVERTED, converted))
    found = {row.layer or row.op: (row.baseline_us, row.us, row.binary) for row in rows}
    power = dict(zip((node.name for node in optimised.graph.node), (2.0**i for i in range(18)), strict=True))

    def of(*names: str) -> float:
        return math.fsum(power[name] for name in names)

    assert found == {
        "stem": (of("n0_nchwc", "p0_nchwc"), 3.0, False),
        "conv1": (
            of("n1_bn_nchwc", "sign1", "pad1", "ReorderInput", "fused_conv1", "pool1", "sign2"),
            3.0,
            True,
        ),
        "conv2": (of("conv2"), 1.0, True),
        "side": (of("sum_of_both", "ReorderOutput", "shortcut", "relu", "n3_bn_nchwc"), 4.0, True),
        "head": (of("made_up"), 1.0, False),
        "Cast": (of("front"), 1.0, False),
        "Mystery": (of("unknown"), 0.0, False),
        layers.BETWEEN: (1.0, 1000.0 - 13.0, False),
    }
    assert sum(row.baseline_us for row in rows) == source.total
    assert sum(row.us for row in rows) == converted.total


def table(*rows: LayerRow) -> LayerTable:
    totals = [sum(row.baseline_us for row in rows), sum(row.us for row in rows)]
    return LayerTable("net.onnx", "net.bin.onnx", rows, totals[0], totals[1], (10, 10))


def layer_row(name: str, baseline: float, us: float, binary: bool = True) -> LayerRow:
    return LayerRow(name, "XnorConv" if binary else "Conv", binary, {"Conv": baseline}, {"XnorConv": us})


def test_a_slower_binary_layer_is_named_with_the_option_that_leaves_it_float() -> None:
    (words,) = table(
        layer_row("/a.1/it's", 100.0, 140.0),
        layer_row("faster", 140.0, 100.0),
        layer_row("float", 100.0, 140.0, binary=False),
        layer_row("hardly slower", 100.0, 109.0),
        layer_row("too short to say", 1.0, 2.5),
        LayerRow("new", "XnorConv", True, {}, {"XnorConv": 50.0}),
    ).warnings()
    assert "layer /a.1/it's is 1.4 times slower in net.bin.onnx than in net.onnx" in words
    option = shlex.split(words.partition(": exclude it with ")[2])
    assert option[0] == "--nodes-to-exclude"
    assert re.fullmatch(option[1], "/a.1/it's")
    assert not re.fullmatch(option[1], "/ax1/it's")


def test_a_table_shows_ratios_and_what_ran() -> None:
    row = LayerRow("conv", "XnorConv", True, {"Conv": 90.0, "Sign": 5.0, "Pad": 5.0, "Relu": 1.0}, {"XnorConv": 20.2})
    assert row.speedup == row.baseline_us / row.us == 5.0
    assert LayerRow("", "Cast", False, {"Cast": 1.0}, {}).speedup is None
    lines = table(row, LayerRow("", "Cast", False, {"Cast": 1.0}, {}), layer_row("bad\x1b[31m", 1.0, 1.0)).lines()
    assert re.search(r"conv +101 +20\.2 +5\.00x +Conv, Sign, Pad and 1 more -> XnorConv$", lines[3])
    assert re.search(r"\(Cast\) +1\.0 +0\.0$", lines[4])
    assert "\x1b" not in "".join(lines)
    assert lines[-1].startswith("all ")


# --- The whole -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "demo.bin.onnx"
    io.save(binarize_onnx.convert(DEMO).model, path)
    return path


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of rounds is what takes long, and says nothing here."""
    monkeypatch.setattr(profile, "FEWEST_RUNS", 4)


@pytest.fixture(scope="module")
def found(converted: Path) -> bench.Benchmark:
    return bench.benchmark([DEMO, converted], seconds=SECONDS)


def test_rows_and_their_order(found: bench.Benchmark, converted: Path) -> None:
    assert [(row.model, row.form) for row in found.rows] == [
        ("demo.onnx", PLAIN),
        ("demo.bin.onnx", KERNELS),
        ("demo.bin.onnx", BODIES),
    ]
    assert [row.size for row in found.rows] == [p.stat().st_size for p in (DEMO, converted, converted)]
    for row in found.rows:
        for spread in (row.time, row.speedup):
            assert 0 < spread.lower <= spread.median <= spread.upper
        assert row.rounds >= 3
    assert found.rows[0].speedup == bench.Spread(1.0, 1.0, 1.0)
    assert found.batch == 1
    assert found.machine.isa is not None
    assert found.machine.threads == 1


def test_every_layer_of_the_source_is_there_and_the_rows_add_up(found: bench.Benchmark) -> None:
    (demo,) = found.layers
    source = [n for n in onnx.load(DEMO).graph.node if layers.is_layer(n)]
    rows = [row for row in demo.rows if row.layer]
    assert [row.layer for row in rows] == [n.name for n in source]
    report = {x.name: x.status == "binary" for x in binarize_onnx.inspect(DEMO).layers}
    assert {row.layer: row.binary for row in rows} == report
    assert all(row.baseline_us > 0 and row.us > 0 for row in rows)
    assert sum(row.baseline_us for row in demo.rows) == pytest.approx(demo.baseline_total)
    assert sum(row.us for row in demo.rows) == pytest.approx(demo.total)
    assert [row.op for row in demo.rows if not row.layer][-1] == layers.BETWEEN
    by_name = {row.layer: row for row in rows}
    assert "PackSign" in by_name["/layer1/layer1.1/Conv"].ops
    assert "Where" in by_name["/layer1/layer1.1/Conv"].baseline_ops
    assert set(by_name["/layer4/layer4.2/MatMul"].ops) == {"XnorMatMul"}


def test_text_and_json_say_the_same(found: bench.Benchmark) -> None:
    printed = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [row["form"] for row in printed["rows"]] == [row.form for row in found.rows]
    layer = printed["layers"][0]["rows"][0]
    assert layer["speedup"] == layer["baseline_us"] / layer["us"]
    text = found.table()
    for word in (
        found.machine.cpu,
        "1 thread",
        f"{found.machine.isa} kernels",
        "batch 1",
        "function bodies",
        shown_size(found.rows[1].size),
    ):
        assert word in text


def test_a_converted_file_alone_is_compared_with_its_bodies(converted: Path) -> None:
    found = bench.benchmark([converted], seconds=SECONDS)
    assert [row.form for row in found.rows] == [BODIES, KERNELS]
    assert found.layers == ()
    (gate,) = found.gates(min_speedup=0.001)
    assert not gate.passed
    assert "no other model" in gate.message


def test_without_bodies_and_layers(converted: Path) -> None:
    found = bench.benchmark([DEMO, converted], seconds=SECONDS, bodies=False, profiled=False)
    assert [row.form for row in found.rows] == [PLAIN, KERNELS]
    assert found.layers == ()


def test_a_file_without_bodies_is_timed_with_the_kernels_alone(converted: Path, tmp_path: Path) -> None:
    model = onnx.load(converted)
    del model.functions[:]
    onnx.save(model, tmp_path / "bare.onnx")
    found = bench.benchmark([DEMO, tmp_path / "bare.onnx"], seconds=SECONDS, profiled=False)
    assert [row.form for row in found.rows] == [PLAIN, KERNELS]
    assert any("bare.onnx holds no function bodies" in note for note in found.notes)


def test_one_file_twice_and_equal_names_keep_apart(converted: Path, tmp_path: Path) -> None:
    copy = tmp_path / "demo.onnx"
    copy.write_bytes(converted.read_bytes())
    found = bench.benchmark([DEMO, copy, copy], seconds=SECONDS, bodies=False, profiled=False)
    assert [row.model for row in found.rows] == [str(DEMO), str(copy), f"{copy} (2)"]


@pytest.mark.parametrize("name", ["bmxnet_lenet_mnist", "cnv_w1a1_cifar10", "bmxnet_resnet18_imagenet_st1fp"])
def test_layers_of_trained_networks_are_matched(name: str, tmp_path: Path) -> None:
    source, converted = tmp_path / "net.onnx", tmp_path / "net.bin.onnx"
    source.write_bytes(corpus.bnn_bytes(name))
    result = binarize_onnx.convert(source)
    io.save(result.model, converted)
    (compared,) = bench.benchmark([source, converted], seconds=SECONDS, bodies=False).layers
    rows = {row.layer: row for row in compared.rows if row.layer}
    assert {name: row.binary for name, row in rows.items()} == {
        x.name: x.status == "binary" for x in result.report.layers
    }
    for row in rows.values():
        assert sum(op in layers.LAYER_KERNELS for op in row.baseline_ops) == 1, row
        assert not row.binary or sum(op.startswith("Xnor") for op in row.ops) == 1, row
    assert sum(row.us for row in compared.rows) == pytest.approx(compared.total)


# --- Inputs --------------------------------------------------------------------------------------------------------


def one_layer(
    path: Path, shape: tuple[int | str, ...], inputs: str = "x", outputs: str = "y", element: int = TensorProto.FLOAT
) -> Path:
    """A convolution of four channels."""
    weights = numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "w")
    nodes = [helper.make_node("Cast", [inputs], ["f"], to=1), helper.make_node("Conv", ["f", "w"], [outputs])]
    values = [
        helper.make_tensor_value_info(inputs, element, shape),
        helper.make_tensor_value_info(outputs, TensorProto.FLOAT, [None] * 4),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def quick(*models: Path, **choices: Any) -> bench.Benchmark:
    return bench.benchmark(models, seconds=SECONDS, profiled=False, **choices)


def test_open_sizes_are_filled(tmp_path: Path) -> None:
    open_batch = one_layer(tmp_path / "batch.onnx", ("N", 4, 5, 5))
    assert quick(open_batch).batch == 1
    assert quick(open_batch, batch=3).batch == 3
    all_open = one_layer(tmp_path / "open.onnx", ("N", 4, "H", "W"))
    assert quick(all_open, input_shapes={"x": (2, 4, 6, 7)}).batch == 2
    np.savez(tmp_path / "data.npz", x=np.ones((5, 4, 3, 2), np.float32), labels=np.arange(5))
    found = quick(all_open, all_open, data=tmp_path / "data.npz", batch=4)
    assert (found.batch, found.inputs) == (4, "from data.npz")


@pytest.mark.parametrize(
    ("second", "choices", "error", "words"),
    [
        (
            {"inputs": "z"},
            {},
            ModelError,
            r"b\.onnx: cannot be compared with a\.onnx: its inputs are `z`, there .* `x`",
        ),
        ({"outputs": "z"}, {}, ModelError, r"b\.onnx: .* its outputs are `z`, there they are `y`"),
        ({"shape": (2, 4, 5, 5)}, {}, ModelError, r"b\.onnx: does not take the inputs of a\.onnx: .* batch size is 2"),
        ({"shape": (1, 4, 5, 6)}, {}, ModelError, r"b\.onnx: does not take .* takes shape \[1, 4, 5, 6\]"),
        ({"element": TensorProto.INT64}, {}, ModelError, r"b\.onnx: does not take .* takes int64"),
        ({}, {"batch": 2}, UsageError, r"fixed shape 1,4,5,5, which --batch 2 contradicts"),
        ({}, {"input_shapes": {"q": (1,)}}, UsageError, "no input `q`"),
        ({}, {"input_shapes": {"x": (1, 4, 5, 9)}}, UsageError, "contradicts"),
        ({}, {"data": "few.npz", "batch": 2}, UsageError, "--batch asks for 2"),
        ({}, {"data": "wrong.npz"}, ModelError, r"the model takes `x`"),
        ({}, {"data": "none.npz"}, ModelError, r"none\.npz: cannot be read"),
    ],
)
def test_models_and_data_that_do_not_fit_are_refused_in_words(
    second: dict[str, Any], choices: dict[str, Any], error: type[BinarizeError], words: str, tmp_path: Path
) -> None:
    first = one_layer(tmp_path / "a.onnx", (1, 4, 5, 5))
    other = one_layer(tmp_path / "b.onnx", **{"shape": (1, 4, 5, 5), **second})
    np.savez(tmp_path / "few.npz", x=np.ones((1, 4, 5, 5), np.float32))
    np.savez(tmp_path / "wrong.npz", q=np.ones((1, 4, 5, 5), np.float32))
    if "data" in choices:
        choices = {**choices, "data": tmp_path / choices["data"]}
    with pytest.raises(error, match=words):
        quick(first, other, **choices)


def test_open_sizes_that_nothing_fills_are_refused_with_the_option(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"leaves open \(\?,4,\?,\?\): give --input-shape x:1,4,1,1 .* or --data"):
        quick(one_layer(tmp_path / "open.onnx", ("N", 4, "H", "W")))


def test_models_that_do_not_run_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        quick(tmp_path / "nothing.onnx")
    path = one_layer(tmp_path / "broken.onnx", (1, 4, 5, 5))
    model = onnx.load(path)
    model.graph.node[1].op_type = "Nonsense"
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"broken\.onnx: onnxruntime does not load it: .*Nonsense"):
        quick(path)
    with pytest.raises(ModelError, match=r"thin\.onnx: onnxruntime does not run it"):  # three channels for four
        quick(one_layer(tmp_path / "thin.onnx", ("N", "C", 5, 5)), input_shapes={"x": (1, 3, 5, 5)})
    with pytest.raises(UsageError, match="no model"):
        quick()


def test_the_processor_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert running.cpu_name()
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "model name\t: Abacus 5\nmodel name\t: Abacus 5\n")
    assert running.cpu_name() == "Abacus 5"


# --- Verdicts on made numbers --------------------------------------------------------------------------------------


def made(*speedups: tuple[str, float]) -> bench.Benchmark:
    """The first row, and others with a form and a speed-up each."""
    rows = [Row("a.onnx", PLAIN, 1, bench.Time(8, 7, 9), bench.Spread(1, 1, 1), 9)]
    for i, (form, ratio) in enumerate(speedups):
        time = bench.Time(8 / ratio, 7 / ratio, 9 / ratio)
        rows.append(Row(f"{i}.onnx", form, 1, time, bench.Spread(ratio, ratio / 1.5, ratio * 1.5), 9))
    return bench.Benchmark(Machine("Abacus", "1", 2, "scalar", True), "made up", None, tuple(rows), ())


def test_the_gate_is_on_the_median_of_every_other_model() -> None:
    found = made((KERNELS, 3.0), (PLAIN, 2.0), (BODIES, 0.1))
    assert found.gates() == []
    assert [(g.name, g.measured, g.passed) for g in found.gates(min_speedup=2.5)] == [
        ("min-speedup", 3.0, True),
        ("min-speedup", 2.0, False),
    ]
    gates.require(found.gates(min_speedup=2.0))
    with pytest.raises(GateFailed, match=r"1\.onnx is 2 times as fast as a\.onnx, at least 2\.50x demanded"):
        gates.require(found.gates(min_speedup=2.5))


def test_a_slower_model_is_said_to_be_slower_but_bodies_are_not() -> None:
    (words,) = made((KERNELS, 0.5), (PLAIN, 1.5), (BODIES, 0.1)).warnings()
    assert words.startswith("0.onnx (kernels) is SLOWER than a.onnx (onnxruntime): it takes 2.00 times as long")
    assert made((KERNELS, 0.9)).warnings() == []  # three rounds of four would have to be slower
    text = made((KERNELS, 0.5)).table()
    assert "2 threads, scalar kernels (forced by BINARIZE_ONNX_ISA)" in text
    assert "warning  0.onnx" in text
    assert math.isclose(made((KERNELS, 0.5)).rows[1].time.median, 16.0)


# --- The command ---------------------------------------------------------------------------------------------------


def command(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", *map(str, arguments)], prog_name="binarize-onnx")
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_command(capsys: pytest.CaptureFixture[str], converted: Path, tmp_path: Path) -> None:
    code, out, err = command(
        capsys, DEMO, converted, "--seconds", "0.02", "--no-bodies", "--json", "--report", tmp_path / "report.json"
    )
    assert (code, err) == (0, "")
    assert (tmp_path / "report.json").read_text() == out
    printed = json.loads(out)
    assert [row["model"] for row in printed["rows"]] == ["demo.onnx", "demo.bin.onnx"]
    assert printed["gates"] == []
    assert len(printed["layers"]) == 1


def test_command_fails_at_its_gate_and_prints_all_the_same(capsys: pytest.CaptureFixture[str], converted: Path) -> None:
    options = ("--seconds", "0.02", "--no-bodies", "--no-layers", "--min-speedup", "100000")
    code, out, err = command(capsys, DEMO, converted, *options)
    assert code == 1
    assert "demo.bin.onnx" in out
    assert "at least 100000.00x demanded" in err
    assert command(capsys, DEMO, converted, *options[:-1], "0.00001")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [((), 2), (("nothing.onnx",), 3), (("fixed.onnx", "--batch", "2"), 2), ((DEMO, "--threads", "0"), 2)],
)
def test_command_exit_codes(
    arguments: tuple[str | Path, ...],
    code: int,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    one_layer(Path("fixed.onnx"), (1, 4, 5, 5))
    found, out, err = command(capsys, *arguments)
    assert (found, out) == (code, "")
    assert err
