"""Time and memory of `convert` grow with the network and no faster; what keeps them small changes no value."""

from __future__ import annotations

import cProfile
import pstats
import sys
import tracemalloc
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from binarize_onnx import InferenceSession, convert, io
from binarize_onnx.passes import weights

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import convert as benchmark
import curve
import synthetic

LARGE = (160, 128)  # more elements than are copied when a model is prepared


def _calls(model: onnx.ModelProto) -> int:
    """How many functions `convert` calls: its time, without the machine's noise."""
    profile = cProfile.Profile()
    profile.runcall(convert, model)
    total: int = pstats.Stats(profile).total_calls  # type: ignore[attr-defined]
    return total


@pytest.mark.parametrize("network", ["chain", "dense", "foldable"])
def test_four_times_the_nodes_are_four_times_the_work(network: str) -> None:
    make = synthetic.NETWORKS[network]
    convert(make(2))  # what is done once
    assert _calls(make(160)) < 4.4 * _calls(make(40))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_memory_stays_within_three_times_the_file(tmp_path: Path) -> None:
    cost = benchmark.measure("cones", 0.5, 1, tmp_path)
    assert cost.megabytes > 25
    assert cost.peak_megabytes < 3 * cost.megabytes + 25  # and what 543 nodes, and libraries on first use, take


def _with_large_constants(subgraph: bool) -> onnx.ModelProto:
    """A binary layer beside large initializers that stay: of a float layer, an output of the graph, in a subgraph."""
    rng = np.random.default_rng(0)
    values: dict[str, npt.NDArray[np.float32]] = {
        name: rng.standard_normal(LARGE, np.float32) for name in ("real", "given", "inner", "binary")
    }
    values["binary"] = np.where(values["binary"] < 0, -1, 1).astype(np.float32)
    nodes = [
        helper.make_node("Sign", ["x"], ["s"]),
        helper.make_node("MatMul", ["s", "binary"], ["a"], name="layer"),
        helper.make_node("MatMul", ["x", "real"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, LARGE[0]))]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, LARGE[1]))]
    outputs.append(helper.make_tensor_value_info("given", TensorProto.FLOAT, LARGE))
    if subgraph:
        product = helper.make_node("MatMul", ["x", "inner"], ["branch"])
        branch = helper.make_graph([product], "branch", [], [onnx.ValueInfoProto(name="branch")])
        nodes.append(helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch))
        inputs.append(helper.make_tensor_value_info("c", TensorProto.BOOL, ()))
        outputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, (1, LARGE[1])))
    initializers = [numpy_helper.from_array(v, n) for n, v in values.items()]
    graph = helper.make_graph(nodes, "constants", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("subgraph", [False, True])
def test_large_values_are_lent_and_come_back(subgraph: bool) -> None:
    model = _with_large_constants(subgraph)
    before = model.SerializeToString(deterministic=True)
    prepared = io.prepare(model, lend=True)
    assert (prepared.ByteSize() < 10_000) != subgraph, "what a subgraph may read is copied"
    converted = convert(model)
    assert converted.report.summary.binary_layers == 1
    assert model.SerializeToString(deterministic=True) == before
    feed = {"x": np.random.default_rng(1).standard_normal((1, LARGE[0]), np.float32), "c": np.asarray(True)}
    feed = {value.name: feed[value.name] for value in model.graph.input}
    wanted, found = (
        InferenceSession(m.SerializeToString()).run([o.name for o in model.graph.output][1:], feed)
        for m in (model, converted.model)
    )
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(one, other)
    kept = {t.name: numpy_helper.to_array(t) for t in converted.model.graph.initializer}
    np.testing.assert_array_equal(kept["real"], numpy_helper.to_array(model.graph.initializer[0]))


def test_a_lent_copy_has_every_other_field() -> None:
    model = synthetic.resnet(0.25)
    model.producer_name, model.doc_string, model.domain, model.model_version = "maker", "words", "org", 7
    model.metadata_props.add(key="k", value="v")
    model.graph.doc_string = "more words"
    model.graph.value_info.add(name="t0")
    prepared = io.prepare(model, lend=True)
    assert prepared.ByteSize() < model.ByteSize() / 5
    for graph in (prepared.graph, model.graph):
        assert graph.initializer
        del graph.initializer[:]
    assert prepared == model


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("shape", [(37, 23, 3, 3), (301, 37)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_weights_measured_in_blocks_are_the_same(
    monkeypatch: pytest.MonkeyPatch, axis: int, shape: tuple[int, ...], dtype: type
) -> None:
    rng = np.random.default_rng(0)
    spread = 10.0 ** rng.uniform(-4, 4 if dtype is np.float16 else 30, shape)  # so that sums in float64 round
    values: npt.NDArray[Any] = (rng.standard_normal(shape) * spread).astype(dtype)
    values[:, 5], values[3], values[4, 4] = 0, 0, 0
    results = []
    for block in (int(values.size), 1000, 1):
        monkeypatch.setattr(weights, "BLOCK", block)
        found = weights.split_scale(values, axis)
        assert found is not None
        results.append((found.signs.tobytes(), found.scale.tobytes(), found.spread))
    assert results[0] == results[1] == results[2]


def test_measuring_weights_takes_little_more_memory_than_their_signs() -> None:
    values = np.ones((2048, 2048), np.float32)
    tracemalloc.start()
    weights.split_scale(values, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * values.nbytes


def test_a_constant_handed_on_keeps_its_values() -> None:
    net = synthetic.Network()
    shifted = net.node("Add", "x", net.node("Identity", net.constant(net.real(16, 1, 1))))
    result = convert(net.model(net.binary(shifted, (16, 16, 3), synthetic.folded), 16, 8))
    assert result.report.summary.binary_layers == 1
    assert all(0 not in tensor.dims for tensor in result.model.graph.initializer if tensor.name.startswith("c"))
    onnx.shape_inference.infer_shapes(result.model, check_type=True, strict_mode=True)


def test_the_curve_is_well_formed() -> None:
    costs = [benchmark.Cost("chain", 1, 10**k, 1.0, 0.1 * 8**k, 1.0, 1.0) for k in range(1, 4)]
    picture = ElementTree.fromstring(benchmark.picture(costs))
    assert len(picture.findall("{*}circle")) == len(costs)
    assert curve.Series("a", [(1.0, 1.0)]).name in curve.svg([("x", "y", [curve.Series("a", [(1.0, 1.0)])])])
