"""Random small binary networks: converted = ideal bit for bit, ideal ≈ source layer by layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from networks import random_network

from binarize_onnx import Config, convert, runtime
from binarize_onnx.verify import verify

Array = npt.NDArray[Any]

SEEDS = range(120)
ALLOW = Config(allow_unchanged=True)  # a rare network has no binary layer
IDEAL = Config(emit="ideal", allow_unchanged=True)


def run(model: onnx.ModelProto, inputs: dict[str, Array], *, library: bool) -> list[Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = model.SerializeToString()
    if library:
        session = runtime.InferenceSession(data, options)
    else:
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))


def assert_same_bits(got: list[Array], wanted: list[Array]) -> None:
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))


@pytest.mark.parametrize("seed", SEEDS)
def test_converted_is_ideal(seed: int) -> None:
    source, inputs = random_network(seed, opset=(13, 17, 19)[seed % 3])
    converted, ideal = convert(source, ALLOW).model, convert(source, IDEAL).model
    wanted = run(ideal, inputs, library=False)
    assert_same_bits(run(converted, inputs, library=False), wanted)
    assert_same_bits(run(converted, inputs, library=True), wanted)


@pytest.mark.parametrize("seed", SEEDS)
def test_ideal_is_the_source_layer_by_layer(seed: int) -> None:
    source, inputs = random_network(seed)
    result = convert(source, ALLOW)
    if result.report.summary.binary_layers == 0:
        pytest.skip("this seed has no binary layer")
    verify(source, result.model, inputs=inputs).require()  # every difference is one that rounding explains


def test_the_seeds_cover_what_matters() -> None:
    """A generator that stopped making residuals or pools would leave the tests above green."""
    ops: set[str] = set()
    fused: set[str] = set()
    for seed in SEEDS:
        result = convert(random_network(seed)[0], ALLOW)
        ops |= {node.op_type for node in result.model.graph.node}
        for layer in result.report.layers:
            fused |= {word for word in ("residual", "slope", "scale", "bias", "shift") if word in layer.reason}
    assert ops >= {"PackSign", "XnorConv", "XnorMatMul", "PackedMaxPool", "Reshape"}
    assert fused == {"residual", "slope", "scale", "bias", "shift"}


def test_same_input_same_bytes() -> None:
    source, _ = random_network(3)
    first, second = (convert(source, ALLOW).model.SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_an_ideal_graph_compiles_to_what_its_source_compiles_to() -> None:
    for seed in range(20):
        source, inputs = random_network(seed)
        ideal = convert(source, IDEAL).model
        again = convert(ideal, ALLOW).model
        assert_same_bits(run(again, inputs, library=False), run(ideal, inputs, library=False))
        assert [n.op_type for n in again.graph.node] == [n.op_type for n in convert(source, ALLOW).model.graph.node]


def test_a_compiled_model_is_left_alone() -> None:
    source, _ = random_network(1)
    compiled = convert(source).model
    again = convert(compiled, ALLOW)
    assert again.model is compiled
    assert all(x.status == "binary" or "compiled" not in x.reason for x in again.report.layers)
