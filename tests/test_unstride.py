"""Convolutions of stride 2 as ones of stride 1 on 2x2 pixels: the same sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from binarize_onnx.unstride import unstride


def conv(
    kernel: tuple[int, int], size: tuple[int, int] = (8, 10), channels: int = 3, **attributes: Any
) -> onnx.ModelProto:
    """A convolution of whole numbers: float32 holds every sum."""
    weights = np.random.default_rng(0).integers(-9, 10, (5, channels // attributes.get("group", 1), *kernel))
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], **attributes)],
        "stem",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", channels, *size])],
        [onnx.ValueInfoProto(name="y", type=helper.make_tensor_type_proto(TensorProto.FLOAT, None))],
        [
            numpy_helper.from_array(weights.astype(np.float32), "w"),
            numpy_helper.from_array(np.arange(5, dtype=np.float32), "b"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto, size: tuple[int, int] = (8, 10), channels: int = 3) -> Any:
    x = np.random.default_rng(1).integers(-9, 10, (2, channels, *size)).astype(np.float32)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]


def rewritten(model: onnx.ModelProto, size: tuple[int | None, ...] = (None, 3, 8, 10)) -> list[str]:
    unstride(model.graph, {"x": size})
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("kernel", [(3, 3), (4, 5), (5, 7), (7, 7), (6, 3)])
@pytest.mark.parametrize("begin", [(0, 0), (1, 2), (3, 3), (2, 1)])
@pytest.mark.parametrize("end", [(0, 0), (1, 2), (3, 3), (2, 1)])
def test_the_same_sums(kernel: tuple[int, int], begin: tuple[int, int], end: tuple[int, int]) -> None:
    model = conv(kernel, strides=[2, 2], pads=[*begin, *end])
    before = run(model)
    assert rewritten(model) == ["SpaceToDepth", "Conv"]
    np.testing.assert_array_equal(run(model), before)
    assert sorted(t.name for t in model.graph.initializer) == ["b", "y.weights"]


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ((3, 3), {"strides": [1, 1]}),
        ((3, 3), {}),
        ((3, 3), {"strides": [2, 1]}),
        ((3, 3), {"strides": [2, 2], "dilations": [2, 2]}),
        ((3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ((1, 1), {"strides": [2, 2]}),
        ((2, 3), {"strides": [2, 2]}),
    ],
)
def test_others_stay(kernel: tuple[int, int], attributes: dict[str, Any]) -> None:
    model = conv(kernel, **attributes)
    untouched = model.SerializeToString()
    assert rewritten(model) == ["Conv"]
    assert model.SerializeToString() == untouched


def test_sizes_must_be_known_and_even() -> None:
    for size in [(None, 3, 7, 10), (None, 3, 8, 9), (None, 3, None, 10), ()]:
        assert rewritten(conv((3, 3), strides=[2, 2]), size) == ["Conv"]
    assert rewritten(conv((3, 3), channels=8, strides=[2, 2]), (None, 8, 8, 10)) == ["Conv"]
    assert rewritten(conv((3, 3), channels=5, group=5, strides=[2, 2]), (None, 5, 8, 10)) == ["Conv"]


def test_weights_that_another_layer_reads_stay() -> None:
    model = conv((3, 3), strides=[2, 2])
    model.graph.node.append(helper.make_node("Conv", ["x", "w"], ["z"]))
    assert rewritten(model) == ["SpaceToDepth", "Conv", "Conv"]
    assert {t.name for t in model.graph.initializer} == {"w", "b", "y.weights"}
