"""Sensitivity, scores and the search: judged samples, budgets, and what is said where int8 or nothing is best.

Times are made up here: what is measured differs from run to run.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from networks import Builder
from onnx import TensorProto, helper
from test_cli import Command, command  # noqa: F401  # a fixture

from binarize_onnx import int8_edges, io, pipeline
from binarize_onnx.calibration import feeds
from binarize_onnx.errors import ModelError, NothingMatched, UsageError
from binarize_onnx.quantize import auto, int8, layer_times, pareto, paths, scoring, search, sensitivity, sites
from binarize_onnx.quantize.drop_bound import Drop
from binarize_onnx.quantize.layer_times import LayerTimes, NetworkTime
from binarize_onnx.quantize.pareto import Point
from binarize_onnx.quantize.plan import Settings
from binarize_onnx.quantize.post_training import quantize
from binarize_onnx.quantize.precision import Precision
from binarize_onnx.quantize.scoring import Judge, Labelled, read
from binarize_onnx.quantize.search import Budget, Found
from binarize_onnx.quantize.sites import Site

Array = npt.NDArray[Any]
W1A1, W2A4 = Precision(1, 1), Precision(2, 4)
FAST = Settings(weights="greedy")
INNER = ["b", "c"]


def network(classes: int = 4) -> onnx.ModelProto:
    """A stem, two inner convolutions with a shortcut around the second, and a dense layer."""
    b = Builder(np.random.default_rng(0))

    def conv(name: str, x: str, outputs: int, inputs: int) -> str:
        weights = b.rng.normal(0, (2 / (9 * inputs)) ** 0.5, (outputs, inputs, 3, 3)).astype(np.float32)
        out: str = b.node("Conv", x, b.constant(weights), kernel_shape=[3, 3], pads=[1] * 4)
        b.nodes[-1].name = name
        return out

    x = b.node("Relu", conv("a", "x", 8, 3))
    x = b.node("Relu", conv("b", x, 8, 8))
    x = b.node("Relu", b.node("Add", conv("c", x, 8, 8), x))
    flat = b.node("Flatten", b.node("GlobalAveragePool", x))
    y = b.node("Gemm", flat, b.constant(b.rng.normal(0, 2, (classes, 8)).astype(np.float32)), transB=1)
    b.nodes[-1].name = "d"
    graph = helper.make_graph(
        b.nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, ["N", classes])],
        b.initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def images(count: int, seed: int = 1) -> Array:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, 3, 8, 8)) + rng.normal(size=(count, 3, 1, 1))).astype(np.float32)


def _classes(source: io.Source, x: Array) -> Array:
    found: Array = layer_times.session(source.model, 1).run(None, {"x": x})[0].argmax(-1)
    return found


@pytest.fixture(scope="module")
def source() -> io.Source:
    return io.read(network())


@pytest.fixture(scope="module")
def judged(source: io.Source) -> Labelled:
    """Labels are what the float model says, but for one of ten."""
    x = images(600, seed=2)
    labels = _classes(source, x)
    labels[::10] = (labels[::10] + 1) % 4
    return Labelled({"x": x}, labels)


@pytest.fixture(scope="module")
def fitted() -> Labelled:
    return Labelled({"x": images(60)})


# --- Scores ------------------------------------------------------------------------------------------------------


def test_labels_decide_the_metric(source: io.Source, judged: Labelled) -> None:
    accuracy = Judge(source.model, judged)
    agreement = Judge(source.model, Labelled(judged.inputs))
    assert (accuracy.metric, accuracy.unit, accuracy.reference.value) == ("accuracy", "points", 90.0)
    assert (agreement.metric, agreement.reference.value) == ("agreement", 100.0)
    assert accuracy.reference.divergence == 0


def test_targets_are_judged_by_psnr_and_nothing_by_error() -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1, 4, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = np.random.default_rng(0).uniform(0, 1, (20, 1, 4, 4)).astype(np.float32)
    targets = np.clip(x + np.float32(0.01), 0, 1)
    targets[0, 0, 0, 0] = 1.0
    judge = Judge(model, Labelled({"x": x}, targets))
    assert judge.metric == "psnr"
    worse = judge.score_outputs(targets + 10 * (x - targets))
    lost = judge.drop(worse)
    assert lost is not None
    assert lost.unit == "dB"
    assert lost.drop == pytest.approx(20, abs=0.01)
    bare = Judge(model, Labelled({"x": x}))
    assert (bare.metric, bare.drop(bare.reference)) == ("error", None)
    with pytest.raises(UsageError, match="targets"):
        search.require_samples(Budget(max_drop=1.0), bare)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros(10, np.int64), "for 600 samples"),
        (np.zeros(600, np.float32), "class numbers"),
        (np.full(600, 4), "classes"),
        (np.full(600, -1), "classes"),
    ],
)
def test_labels_that_are_something_else(source: io.Source, labels: Array, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Judge(source.model, read(source.model, {"x": images(600)}, labels))


def test_samples_are_divided_without_overlap(source: io.Source) -> None:
    x = images(90)
    first, rest = auto.samples(source, pipeline.Config(), {"x": x}, np.arange(90) % 4)
    rows = {part.tobytes() for part in np.asarray(first.inputs["x"])}
    others = {part.tobytes() for part in np.asarray(rest.inputs["x"])}
    assert (first.count, rest.count) == (30, 60)
    assert rows.isdisjoint(others)
    assert rest.labels is not None
    by_bytes = {row.tobytes(): i for i, row in enumerate(x)}
    places = np.array([by_bytes[row.tobytes()] for row in np.asarray(rest.inputs["x"])])
    assert np.array_equal(rest.labels, places % 4)  # labels went along


# --- Sensitivity -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [W1A1, W2A4])
def test_one_layer_alone_is_what_quantizing_it_alone_gives(
    source: io.Source, judged: Labelled, fitted: Labelled, precision: Precision
) -> None:
    net = sites.find(source.model)
    judge = Judge(net.model, judged)
    found = sensitivity.measure(net, fitted.inputs, judge, {name: [precision] for name in INNER}, FAST)
    assert [s.name for s in found] == INNER
    for s in found:
        alone = quantize(net, fitted.inputs, {s.name: precision}, replace(FAST, readout=False)).model
        scored = judge.score(alone)
        assert s.divergence == pytest.approx(scored.divergence, rel=1e-3)
        assert s.drop == judge.drop(scored)


def test_groups_of_layers_change_nothing(
    source: io.Source, judged: Labelled, fitted: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = sites.find(source.model)
    judge = Judge(net.model, judged)
    wanted = {name: [W1A1, W2A4] for name in INNER}
    together = sensitivity.measure(net, fitted.inputs, judge, wanted, FAST)
    monkeypatch.setattr(sensitivity, "GROUP_BYTES", 1)
    assert sensitivity.measure(net, fitted.inputs, judge, wanted, FAST) == together


def test_the_worst_comes_first_and_the_list_can_be_read(source: io.Source) -> None:
    rows = [sensitivity.Sensitivity(name, W1A1, d, None, 1) for name, d in (("x.y", 0.1), ("b", 2.0), ("c", 0.5))]
    ranked = sensitivity.ranked(rows)
    assert [s.name for s in ranked] == ["b", "c", "x.y"]
    assert sensitivity.exclude_list(ranked, 0.4) == ["b", "c"]
    assert sensitivity.exclude_text(["x.y"]).splitlines()[1:] == [r"x\.y"]


# --- The search --------------------------------------------------------------------------------------------------


def made_up(monkeypatch: pytest.MonkeyPatch, layers: Mapping[str, float], eight: float = 500.0) -> None:
    """Times of layers by form; a network takes 300 µs less for each layer on bits, and a little for its weights."""

    def of(self: LayerTimes, site: Site, precisions: Collection[Precision]) -> dict[str, float]:
        return {"float": 100.0, "int8": 80.0, **{str(p): layers.get(str(p), 200.0) for p in precisions}}

    def of_networks(models: Sequence[onnx.ModelProto], *_: Any, **__: Any) -> list[NetworkTime]:
        times = []
        for model in models:
            ops = [node.op_type for node in model.graph.node]
            us = 1000.0 - 300 * ops.count("XnorConv")
            us += 1e-5 * model.ByteSize() if "XnorConv" in ops else 0
            if "QuantizeLinear" in ops:
                us = eight if "XnorConv" not in ops else us - 1
            times.append(us)
        return [NetworkTime(us, times[0] / us) for us in times]

    monkeypatch.setattr(LayerTimes, "of", of)
    monkeypatch.setattr(layer_times, "of_networks", of_networks)


def searched(source: io.Source, fitted: Labelled, judged: Labelled, **budget: float) -> Found:
    config = pipeline.Config(ptq_settings=FAST)
    return search.search(source, fitted, judged, Budget(**budget), config=config)


def test_a_wide_budget_takes_the_fastest_network(
    source: io.Source, fitted: Labelled, judged: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up(monkeypatch, {"w1a1": 10.0, "w2a4": 40.0})
    found = searched(source, fitted, judged, max_drop=99)
    assert found.chosen is not None
    assert found.chosen.us == min(p.us for p in found.points)
    assert {found.chosen.forms[name] for name in INNER} == {"w1a1"}
    assert all(gate.passed for gate in found.gates)
    assert not found.int8_is_better
    for name in ("PackSign", "XnorConv"):
        assert name in {node.op_type for node in found.candidate.model.graph.node}


def test_the_bound_counts_and_not_the_drop(
    source: io.Source, fitted: Labelled, judged: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up(monkeypatch, {"w1a1": 10.0})
    wide = searched(source, fitted, judged, max_drop=99)
    fastest = wide.chosen
    assert fastest is not None
    assert fastest.drop is not None
    assert fastest.drop.drop < fastest.drop.bound
    between = (fastest.drop.drop + fastest.drop.bound) / 2
    tight = searched(source, fitted, judged, max_drop=between)
    assert tight.chosen is not None
    assert tight.chosen.us > fastest.us
    assert tight.chosen.drop is not None
    assert tight.chosen.drop.bound <= between


def test_a_gentler_precision_is_tried_where_the_fastest_loses_too_much(
    source: io.Source, fitted: Labelled, judged: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up(monkeypatch, {"w1a1": 1.0, "w3a6": 79.9}, eight=900.0)
    wide = searched(source, fitted, judged, max_drop=99)
    least = min(p.drop.bound for p in wide.points if p.kind == "mixed" and p.drop is not None)
    found = searched(source, fitted, judged, max_drop=0.8 * least)
    assert "w3a6" in {form for p in found.points for form in p.forms.values()}


def test_what_int8_beats_is_never_chosen(
    source: io.Source, fitted: Labelled, judged: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up(monkeypatch, {"w1a1": 10.0}, eight=50.0)
    for budget in ({"max_drop": 99.0}, {"target_speedup": 1.2}, {"target_ops": 0.9}):
        found = searched(source, fitted, judged, **budget)
        assert found.int8_is_better
        assert found.chosen is not None
        assert found.chosen.kind == "int8"
        assert "int8 is better here" in found.verdict


def test_a_precision_that_is_much_slower_than_int8_is_not_even_tried(
    source: io.Source, fitted: Labelled, judged: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up(monkeypatch, {"w1a1": 121.0})
    found = searched(source, fitted, judged, max_drop=99)
    assert {p.kind for p in found.points} == {"float", "int8"}
    assert found.sensitivities == []


def test_what_is_too_slow_is_neither_fitted_nor_ranked(
    source: io.Source, fitted: Labelled, judged: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both layers on bits take 399 µs: the whole network in int8 is the one to beat, not the float one."""
    fitted_to: list[int] = []

    def counted(net: sites.Network, data: Mapping[str, Array], *rest: Any, **named: Any) -> Any:
        fitted_to.append(len(data["x"]))
        return quantize(net, data, *rest, **named)

    monkeypatch.setattr(search, "quantize", counted)
    made_up(monkeypatch, {"w1a1": 10.0}, eight=380.0)
    found = searched(source, fitted, judged, max_drop=99)
    assert (fitted_to, found.sensitivities, found.int8_is_better) == ([1], [], True)
    assert any("1.05 times as long as int8" in note for note in found.notes)
    made_up(monkeypatch, {"w1a1": 10.0}, eight=420.0)
    found = searched(source, fitted, judged, max_drop=99)
    assert (fitted_to[1:].count(fitted.count), found.int8_is_better) == (1, False)
    assert [p.kind for p in found.points] == ["float", "int8", "mixed"], "the slower rest is not made"


def test_both_paths_are_walked(
    source: io.Source, fitted: Labelled, judged: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network with one layer in int8 is slower than int8 itself: what loses less than w1a1 has bits in both."""
    monkeypatch.setattr(search, "TRIES", 0)
    made_up(monkeypatch, {"w1a1": 1.0, "w3a6": 75.0}, eight=450.0)
    wide = searched(source, fitted, judged, max_drop=99)
    assert wide.chosen is not None
    assert wide.chosen.drop is not None
    found = searched(source, fitted, judged, max_drop=0.8 * wide.chosen.drop.bound)
    assert found.chosen is not None
    assert "w3a6" in {found.chosen.forms[name] for name in INNER}
    assert {found.chosen.forms[name] for name in INNER} <= {"w1a1", "w3a6"}


def test_a_network_that_int8_cannot_be_made_of_is_left_out(
    source: io.Source, fitted: Labelled, judged: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = int8_edges.quantize

    def broken(model: onnx.ModelProto, data: Mapping[str, Array], **named: Any) -> Any:
        if len(data["x"]) > 1:
            raise ModelError("onnxruntime.quantization does not quantize the edges: words of its own")
        return whole(model, data, **named)

    monkeypatch.setattr(int8_edges, "quantize", broken)
    made_up(monkeypatch, {"w1a1": 10.0})
    found = searched(source, fitted, judged, max_drop=99)
    assert any("left out with the rest in int8" in note and "words of its own" in note for note in found.notes)
    assert found.chosen is not None
    assert found.chosen.name == "2 layers: 2 w1a1; rest float"


def test_the_bound_is_that_of_many_tests_and_there_are_no_more(
    source: io.Source, fitted: Labelled, judged: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up(monkeypatch, {"w1a1": 10.0}, eight=450.0)
    found = searched(source, fitted, judged, max_drop=99)
    assert [p.drop.confidence for p in found.points if p.drop] == [pytest.approx(1 - 0.05 / search.JUDGED)] * 3
    assert "99.5 %" in found.table()
    monkeypatch.setattr(search, "JUDGED", 2)
    made_up(monkeypatch, {"w1a1": 10.0, "w3a6": 60.0}, eight=450.0)
    tight = searched(source, fitted, judged, max_drop=15)
    assert [p.kind for p in tight.points] == ["float", "int8", "mixed"]
    assert {p.drop.confidence for p in tight.points if p.drop} == {0.975}
    assert any("2 networks were judged" in note for note in tight.notes)


def test_few_samples_judge_few_networks(source: io.Source, judged: Labelled) -> None:
    judge = Judge(source.model, judged)
    numbers = [search.networks_to_judge(Budget(max_drop=most), judge) for most in (0.7, 0.9, 1.1, 1.3)]
    assert numbers == sorted(numbers)
    assert (numbers[0], 1 < numbers[1] < 10, numbers[-1]) == (0, True, 10)
    assert search.networks_to_judge(Budget(target_speedup=2.0), judge) == 10


def test_a_hopeless_network_is_judged_on_the_first_samples(
    source: io.Source, judged: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "FIRST", 100)
    monkeypatch.setattr(scoring, "batch_size", lambda _: 64)
    judge = Judge(source.model, judged)
    broken = onnx.ModelProto()
    broken.CopyFrom(source.model)
    last = broken.graph.node[-1].input[1]
    weights = next(t for t in broken.graph.initializer if t.name == last)
    weights.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weights), last))
    asked: list[Drop] = []

    def hopeless(lost: Drop) -> bool:
        asked.append(lost)
        return lost.least > 20

    early, whole = judge.drop(judge.score(broken, hopeless=hopeless)), judge.drop(judge.score(broken))
    assert early is not None
    assert whole is not None
    assert (early.samples, whole.samples) == (128, 600)
    assert early == asked[0]
    assert early.drop == pytest.approx(whole.drop, abs=15)
    same = judge.drop(judge.score(source.model, hopeless=hopeless))
    assert (same, len(asked)) == (judge.drop(judge.reference), 2)


def test_a_target_that_cannot_be_met_names_the_nearest(
    source: io.Source, fitted: Labelled, judged: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up(monkeypatch, {"w1a1": 10.0})
    found = searched(source, fitted, judged, target_speedup=1e6)
    assert found.chosen is None
    assert found.best.us == min(p.us for p in found.points)
    assert not all(gate.passed for gate in found.gates)
    assert "No network meets the budget" in found.verdict
    json.dumps(found.to_json(), allow_nan=False)
    ElementTree.fromstring(found.svg())


def test_operations_can_be_the_budget(
    source: io.Source, fitted: Labelled, judged: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up(monkeypatch, {}, eight=999.0)
    found = searched(source, fitted, judged, target_ops=0.5)
    assert found.chosen is not None
    total = next(p.ops for p in found.points if p.kind == "float")
    assert found.chosen.ops <= 0.5 * total
    met = [p for p in found.points if p.ops <= 0.5 * total]
    assert found.chosen.loss == min(p.loss for p in met)


def test_budgets_that_cannot_be_judged(source: io.Source, fitted: Labelled, judged: Labelled) -> None:
    with pytest.raises(UsageError, match="needs a budget"):
        Budget()
    with pytest.raises(UsageError, match="max_drop"):
        Budget(max_drop=-1)
    few = judged.take(np.arange(50))
    with pytest.raises(UsageError, match="50 samples cannot show") as refused:
        search.search(source, fitted, few, Budget(max_drop=1))
    needed = int(str(refused.value).split("give about ")[1].split()[0])
    assert 300 < needed < 1000
    config = pipeline.Config(nodes_to_exclude=(".*",))
    with pytest.raises(NothingMatched, match="excluded"):
        search.search(source, fitted, judged, Budget(max_drop=99), config=config)


# --- Layer times and peers ---------------------------------------------------------------------------------------


def test_every_form_of_a_layer_is_a_model_of_it(source: io.Source) -> None:
    net = sites.find(source.model)
    site = next(s for s in net.sites if s.name == "b")
    models = layer_times.forms(site, (1, 8, 8, 8), [W1A1, W2A4])
    assert list(models) == ["float", "int8", "w1a1", "w2a4"]
    x = np.abs(np.random.default_rng(0).normal(size=(1, 8, 8, 8))).astype(np.float32)
    for name, model in models.items():
        (y,) = layer_times.session(model, 1).run(None, {"x": x})
        assert y.shape == (1, 8, 8, 8)
        assert [n.op_type for n in model.graph.node].count("XnorConv") == (name in ("w1a1", "w2a4"))
    dense = next(s for s in net.sites if s.name == "d")
    products = layer_times.forms(dense, (1, 8), [W1A1])
    assert [n.op_type for n in products["w1a1"].graph.node].count("XnorMatMul") == 1


def test_layers_of_one_shape_are_timed_once(source: io.Source, monkeypatch: pytest.MonkeyPatch) -> None:
    net = sites.find(source.model)
    asked: list[str] = []
    forms = layer_times.forms

    def counted(site: Site, *rest: Any) -> dict[str, onnx.ModelProto]:
        asked.append(site.name)
        return forms(site, *rest)

    monkeypatch.setattr(layer_times, "forms", counted)
    monkeypatch.setattr(layer_times, "SECONDS", 0.01)
    clock = LayerTimes(net, {"x": images(1)})
    times = [clock.of(site, [W1A1]) for site in net.sites if site.name in INNER]
    assert asked == ["b"]
    assert times[0] == times[1]
    assert all(us > 0 for us in times[0].values())


def test_the_whole_network_in_int8(source: io.Source) -> None:
    eight = int8.whole(source.model, feeds(source.model, {"x": images(8)}))
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in eight.graph.node}
    judge = Judge(source.model, Labelled({"x": images(50)}))
    assert judge.score(eight).value > 80


# --- The front ---------------------------------------------------------------------------------------------------


def point(us: float, loss: float, kind: pareto.Kind = "mixed") -> Point:
    return Point(f"{us} µs", kind, 90 - loss, loss, None, us, 1000 / us, 1e6, 1000)


def test_the_front_is_what_nothing_beats() -> None:
    a, b, c, d = point(10, 5), point(20, 1), point(20, 2), point(30, 1)
    assert pareto.front([d, c, b, a]) == [a, b]
    assert not a.beats(a)
    assert pareto.front([a, point(10, 5)]) == [a, a]  # twins do not beat each other


def test_nothing_that_int8_beats_is_chosen_and_nothing_else_hidden() -> None:
    eight, gentle, fast, beaten = point(50, 1, "int8"), point(60, 0.5), point(10, 5), point(55, 2)
    every = [point(100, 0, "float"), eight, gentle, fast, beaten]

    def order(p: Point) -> tuple[float, float]:
        return p.us, p.loss

    assert pareto.choose(every, every, order) == (fast, None)
    assert pareto.choose(every, [eight, beaten], order) == (eight, None)
    assert pareto.choose(every, [gentle, beaten], order) == (gentle, None), "int8 is faster, and not within the budget"
    assert pareto.choose(every, [beaten], order) == (eight, beaten)
    assert pareto.choose(every, [], order) == (None, None)


def test_a_precision_is_outdone_by_a_finer_one_that_is_no_slower() -> None:
    times = {W1A1: 10.0, Precision(1, 4): 30.0, W2A4: 30.0, Precision(3, 6): 29.0, Precision(2, 2): 20.0}
    assert paths.not_outdone([*times], times.__getitem__) == [W1A1, Precision(3, 6), Precision(2, 2)]


def test_the_picture_and_the_table_show_every_network() -> None:
    points = [point(100, 0, "float"), point(50, 0.1, "int8"), point(10, 5)]
    root = ElementTree.fromstring(pareto.svg(points, "accuracy", "points", points[2]))
    assert len(root.findall("{http://www.w3.org/2000/svg}circle")) == 3
    lines = pareto.table(points, "accuracy", "points", points[2]).splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["chosen", "front", "front"]


# --- The command line --------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path, source: io.Source, judged: Labelled) -> dict[str, Path]:
    paths = {name: tmp_path / name for name in ("net.onnx", "data.npz", "bare.npz", "out.onnx", "list.txt", "f.svg")}
    onnx.save(source.model, paths["net.onnx"])
    x = np.asarray(judged.inputs["x"])
    np.savez(paths["data.npz"], x=x, labels=np.asarray(judged.labels))
    np.savez(paths["bare.npz"], x=x)
    return paths


def test_a_list_of_fragile_layers_is_written_and_read(
    files: dict[str, Path],
    command: Command,  # noqa: F811
) -> None:
    net, data, fragile = files["net.onnx"], files["data.npz"], files["list.txt"]
    done = command(
        "sensitivity", net, "--calibration-data", data, "--precision", "w1a1", "--write-exclude-list", fragile,
        "--max-loss", "0", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["metric"] == "accuracy"
    rows = done.json["layers"]
    assert {row["name"] for row in rows} == set(INNER)
    assert [row["lost"] for row in rows] == sorted((row["lost"] for row in rows), reverse=True)
    assert done.json["excluded"] == [row["name"] for row in rows if row["lost"] > 0]
    fragile.write_text("# one\nb\n")
    arguments = ("--ptq", "w1a1", "--ptq-weights", "greedy", "--calibration-data", files["bare.npz"], "--json")
    done = command("convert", net, files["out.onnx"], *arguments, "--exclude-list", fragile)
    assert done.code == 0, done.err
    assert {row["name"]: row["status"] for row in done.json["layers"]}["b"] == "float"
    assert {row["name"]: row["status"] for row in done.json["layers"]}["c"] == "binary"


def test_a_search_writes_its_choice_and_the_front(
    files: dict[str, Path],
    command: Command,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made_up(monkeypatch, {"w1a1": 10.0})
    auto_search = ("--ptq", "auto", "--ptq-weights", "greedy", "--calibration-data", files["data.npz"])
    net, out, front = files["net.onnx"], files["out.onnx"], files["f.svg"]
    done = command("convert", net, out, *auto_search, "--max-drop", "99", "--front-svg", front, "--json")
    assert done.code == 0, done.err
    assert done.json["search"]["chosen"] in done.json["search"]["front"]
    assert done.json["gates"][-1]["passed"]
    assert "XnorConv" in {node.op_type for node in onnx.load(out).graph.node}
    ElementTree.fromstring(front.read_text())
    out.unlink()
    done = command("convert", net, out, *auto_search, "--target-speedup", "1000")
    assert (done.code, out.exists()) == (1, False)
    assert "No network meets the budget" in done.out


def test_int8_is_offered_and_only_written_on_demand(
    files: dict[str, Path],
    command: Command,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made_up(monkeypatch, {"w1a1": 10.0}, eight=50.0)
    search_it = (
        "--ptq",
        "auto",
        "--ptq-weights",
        "greedy",
        "--calibration-data",
        files["data.npz"],
        "--max-drop",
        "99",
    )
    done = command("convert", files["net.onnx"], files["out.onnx"], *search_it)
    assert (done.code, files["out.onnx"].exists()) == (4, False)
    assert "int8 is better here" in done.err
    assert "--allow-int8" in done.err
    done = command("convert", files["net.onnx"], files["out.onnx"], *search_it, "--allow-int8")
    assert done.code == 0, done.err
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(files["out.onnx"]).graph.node}


def test_calls_that_cannot_be_answered(
    files: dict[str, Path],
    command: Command,  # noqa: F811
    tmp_path: Path,
) -> None:
    net, out, bare = files["net.onnx"], files["out.onnx"], files["bare.npz"]
    convert = ("convert", net, out, "--ptq", "auto")
    without_value = command("convert", "--calibration-data", bare, net, out, "--ptq")
    assert (without_value.code, without_value.err) == (2, command(*convert, "--calibration-data", bare).err)
    in_front = command("convert", net, out, "--ptq", "--calibration-data", bare)
    assert (in_front.code, in_front.err) == (2, without_value.err)
    misplaced = command("convert", "--ptq", net, out)
    assert (misplaced.code, f"{str(net)!r} is no precision" in misplaced.err) == (2, True)
    assert command(*convert, "--max-drop", "1").code == 2  # no data
    assert command(*convert, "--calibration-data", bare).code == 2  # no budget
    assert command(*convert, "--calibration-data", bare, "--max-drop", "0.01").code == 2  # too few samples
    done = command(*convert, "--calibration-data", bare, "--max-drop", "5", "--metric", "accuracy")
    assert (done.code, "labels" in done.err) == (2, True)
    same = ("--selection-data", bare)
    assert command(*convert, "--calibration-data", bare, *same, "--max-drop", "5").code == 2
    assert command("convert", net, out, "--max-drop", "5").code == 2  # only a search has budgets
    assert command("sensitivity", net, "--calibration-data", bare, "--precision", "w9a9").code == 2
    assert command("sensitivity", net, "--calibration-data", tmp_path / "missing.npz").code == 3
    x = images(40)
    for name, values in {
        "nan": np.where(x == x.max(), np.nan, x),
        "wide": x.astype(np.float64),
        "empty": x[:0],
    }.items():
        np.savez(tmp_path / f"{name}.npz", x=values)
        done = command("sensitivity", net, "--calibration-data", tmp_path / f"{name}.npz")
        assert (name, done.code) == (name, 3), done.err
    np.savez(tmp_path / "odd.npz", x=x, labels=np.full(40, 9))
    done = command("sensitivity", net, "--calibration-data", tmp_path / "odd.npz")
    assert (done.code, "labels go from" in done.err) == (3, True)


def test_a_sample_that_is_nan_has_its_number_in_the_file(
    files: dict[str, Path],
    command: Command,  # noqa: F811
    tmp_path: Path,
) -> None:
    """And not that in the part of the samples that it came into."""
    x = images(40)
    x[31, 0, 0, 0] = np.nan
    np.savez(tmp_path / "nan.npz", x=x)
    done = command("sensitivity", files["net.onnx"], "--calibration-data", tmp_path / "nan.npz")
    assert (done.code, "in sample 31." in done.err) == (3, True), done.err


def test_samples_of_a_model_with_a_fixed_batch_are_divided_into_batches(source: io.Source) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 8
    fixed = io.read(model)
    fitted, judged = auto.samples(fixed, pipeline.Config(), {"x": images(40)})
    assert (fitted.count, judged.count) == (8, 32)
    assert (judged.first(20).count, judged.first(3).count) == (16, 8)
    rows = auto.rank(fixed, pipeline.Config(), fitted, judged, Precision(1, 1), settings=FAST).rows
    assert {row.name for row in rows} == set(INNER)
    with pytest.raises(ModelError, match="8 samples, which the model takes at once"):
        auto.samples(fixed, pipeline.Config(), {"x": images(8)})


def test_a_dry_run_draws_nothing(
    files: dict[str, Path],
    command: Command,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made_up(monkeypatch, {"w1a1": 10.0})
    auto_search = ("--ptq", "auto", "--ptq-weights", "greedy", "--calibration-data", files["data.npz"])
    out, front = files["out.onnx"], files["f.svg"]
    done = command(
        "convert", files["net.onnx"], out, *auto_search, "--max-drop", "99", "--front-svg", front, "--dry-run"
    )
    assert (done.code, out.exists(), front.exists()) == (0, False, False), done.err


def test_int8_that_misses_the_budget_itself_is_told_of_and_never_written(
    files: dict[str, Path],
    command: Command,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has all the operations; networks of signs of the weights, fitted to nothing, lose more than it does."""
    made_up(monkeypatch, {"w1a1": 10.0}, eight=50.0)
    naive = ("--ptq-weights", "sign", "--ptq-thresholds", "zero", "--ptq-correction", "none")
    auto_search = ("--ptq", "auto", *naive, "--calibration-data", files["data.npz"])
    convert = ("convert", files["net.onnx"], files["out.onnx"], *auto_search, "--target-ops", "0.9")
    done = command(*convert)
    assert (done.code, files["out.onnx"].exists()) == (4, False)
    assert "int8 is better here" in done.err
    assert "it misses the budget" in done.err
    assert "within it, and beaten by int8" in done.err
    done = command(*convert, "--allow-int8")
    assert (done.code, files["out.onnx"].exists()) == (1, False)


@pytest.mark.parametrize(
    "options",
    [
        ("--labels", "labels.npy"),
        ("--metric", "accuracy"),
        ("--ptq", "w1a1", "--selection-data", "more.npz"),
        ("--resume", "folder"),
        ("--ptq", "auto", "--max-drop", "5", "--resume", "folder"),
    ],
)
def test_options_that_nothing_would_look_at(
    files: dict[str, Path],
    command: Command,  # noqa: F811
    options: tuple[str, ...],
) -> None:
    done = command("convert", files["net.onnx"], files["out.onnx"], "--calibration-data", files["bare.npz"], *options)
    assert done.code == 2
    assert "--ptq" in done.err


def test_an_operation_count_needs_sizes(source: io.Source, fitted: Labelled, judged: Labelled) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size{axis}"
    with pytest.raises(UsageError, match="sizes are open"):
        searched(io.read(model), fitted, judged, target_ops=0.5)


def test_what_is_not_finite_is_no_number_in_json() -> None:
    """One sample says nothing of how PSNR varies, and a network that gives infinities has lost everything."""
    one = Drop(1, 1, 0, 3.0, "dB", float("inf"))
    broken = replace(point(10.0, float("inf")), quality=float("nan"), drop=one)
    assert (one.to_json()["bound"], broken.to_json()["loss"], broken.to_json()["quality"]) == (None, None, None)
    json.dumps(broken.to_json(), allow_nan=False)
    picture = pareto.svg([broken, point(20.0, 0.0, "float")], "psnr", "dB")
    assert "inf" not in picture.replace("infinite", "")
    assert "nan" not in picture.replace(f"psnr {broken.quality:.2f}", "")
