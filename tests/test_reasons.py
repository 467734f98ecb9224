"""Reason codes: each is documented, each can happen, and none means two things."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from test_odd_graphs import IMAGE, W, damaged, network, node, sign, signs

from binarize_onnx import Config, convert, inspect
from binarize_onnx.reasons import Code
from binarize_onnx.report import Layer, Report

ROOT = Path(__file__).resolve().parent.parent
REAL = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8, 1, 1)
ROWS = {"x": ["N", 16]}


def conv(weights: Any = W["w"], *, before: Sequence[onnx.NodeProto] = (), **attributes: Any) -> onnx.ModelProto:
    """A sign and the convolution `layer` that reads it; `before` are nodes that make `s` in its stead."""
    nodes = [*(before or sign("x", "s")), node("Conv", "s k", "y", "layer", **attributes)]
    return network(nodes, {"x": ["N", 8, "H", "W"]}, {"y": 4}, {"k": weights})


def gemm(inputs: str = "s m", constants: Any = None, **attributes: Any) -> onnx.ModelProto:
    constants = {"m": signs(16, 16), **(constants or {})}
    return network([*sign("x", "s"), node("Gemm", inputs, "y", "layer", **attributes)], ROWS, {"y": 2}, constants)


def matmul(inputs: str, shape: list[Any], constants: dict[str, Any]) -> onnx.ModelProto:
    return network([*sign("x", "s"), node("MatMul", inputs, "y", "layer")], {"x": shape}, {"y": 2}, constants)


def mixed() -> onnx.ModelProto:
    nodes = [*sign("x", "a"), node("Relu", "x", "r"), node("Sign", "r", "b"), node("Concat", "a b", "s", axis=1)]
    return conv(signs(8, 16, 1, 1), before=nodes)


def padded() -> onnx.ModelProto:
    model = conv(before=[*sign("x", "a"), node("Pad", "a pads half", "s")])
    constants = {"pads": np.asarray([0, 0, 1, 1, 0, 0, 1, 1]), "half": np.float32(0.5)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    return model


def higher_threshold() -> onnx.ModelProto:
    before = [node("GreaterOrEqual", "x zero", "ge"), node("Where", "ge ones minus", "s")]
    nodes = [*before, node("MatMul", "s m", "y", "layer")]
    return network(nodes, ROWS, {"y": 3}, {"ones": np.ones((1, 1, 1), np.float32), "m": signs(16, 4)})


def weights_as_input(position: str) -> onnx.ModelProto:
    model = gemm("s m b", {"b": np.ones(16, np.float32)})
    (moved,) = (t for t in model.graph.initializer if t.name == position)
    model.graph.initializer.remove(moved)
    model.graph.input.append(helper.make_tensor_value_info(position, TensorProto.FLOAT, moved.dims))
    return model


def ceil_mode() -> onnx.ModelProto:
    pool = node("MaxPool", "a", "s", kernel_shape=[2, 2], strides=[2, 2], pads=[1] * 4, ceil_mode=1)
    nodes = [*sign("x", "a"), pool, node("Conv", "s w", "y", "layer")]
    return network(nodes, {"x": ["N", 8, 5, 5]}, {"y": 4}, W)


def levels(count: int, length: int) -> onnx.ModelProto:
    level = helper.make_node("Level", ["x", "t"], ["s"], domain="binarize_onnx.ideal")
    constants = {"t": np.arange(count, dtype=np.float32), "w": signs(1, length, 1, 1)}
    model = network([level, node("Conv", "s w", "y", "layer")], {"x": ["N", length, 1, 1]}, {"y": 4}, constants)
    model.opset_import.append(helper.make_opsetid("binarize_onnx.ideal", 1))
    return model


def sequence_map() -> onnx.ModelProto:
    item = helper.make_tensor_value_info("i", TensorProto.FLOAT, None)
    inner = [*sign("i", "s"), node("Conv", "s w", "o", "layer")]
    body = helper.make_graph(inner, "body", [item], [onnx.ValueInfoProto(name="o")])
    nodes = [
        node("SequenceConstruct", "x x", "xs"),
        helper.make_node("SequenceMap", ["xs"], ["ys"], body=body),
        node("ConcatFromSequence", "ys", "y", axis=0),
    ]
    return network(nodes, IMAGE, {"y": 4}, W)


def float_tail() -> onnx.ModelProto:
    nodes = [*sign("x", "s"), node("Conv", "s w", "y0", "other"), node("Conv", "y0 k", "y", "layer")]
    return network(nodes, {"x": ["N", 8, "H", "W"]}, {"y": 4}, {**W, "k": REAL})


def unused() -> onnx.ModelProto:
    nodes = [*sign("x", "s"), node("Conv", "s w", "y", "other"), node("Conv", "s v", "z", "layer")]
    return network(nodes, IMAGE, {"y": 4}, W)


def old_opset() -> onnx.ModelProto:
    return network([node("Conv", "x w", "y", "layer")], IMAGE, {"y": 4}, W, opset=7)


def integers() -> onnx.ModelProto:
    nodes = [node("Cast", "x", "i", to=TensorProto.UINT8), node("MatMulInteger", "i m", "j", "layer")]
    nodes.append(node("Cast", "j", "y", to=TensorProto.FLOAT))
    return network(nodes, ROWS, {"y": 2}, {"m": signs(16, 16).astype(np.int8)})


def three_values() -> onnx.ModelProto:
    """-1, 1 or 2 between zeros that are none of them."""
    before = [*sign("x", "a"), node("GreaterOrEqual", "x one", "ge"), node("Where", "ge one zero", "b")]
    model = conv(before=[*before, node("Add", "a b", "s")], pads=[1] * 4)
    return with_constants(model, one=np.float32(1), zero=np.float32(0))


def one_channel() -> onnx.ModelProto:
    """One product a pixel and filter: a word of bits would hold 31 lanes of nothing."""
    nodes = [*sign("x", "s"), node("Conv", "s k", "y", "layer")]
    return network(nodes, {"x": [1, 1, 56, 56]}, {"y": 4}, {"k": signs(64, 1, 1, 1)})


def per_channel_scale() -> onnx.ModelProto:
    scale = np.arange(1, 9, dtype=np.float32).reshape(8, 1, 1)
    return with_constants(conv(before=[*sign("x", "a"), node("Mul", "a scale", "s")]), scale=scale)


def identity_estimator() -> onnx.ModelProto:
    return conv(before=[*sign("x", "a"), node("Sub", "a x", "d"), node("Add", "x d", "s")])


def with_constants(model: onnx.ModelProto, **constants: Any) -> onnx.ModelProto:
    present = {t.name for t in model.graph.initializer}
    added = {name: values for name, values in constants.items() if name not in present}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in added.items())
    return model


KEEP = Config(sign_zero="keep")
EXAMPLES: list[tuple[Code, Callable[[], onnx.ModelProto], Config]] = [
    (Code.BINARY, conv, Config()),
    (Code.ALREADY_COMPILED, lambda: convert(conv()).model, Config()),
    (Code.FLOAT_LAYER, lambda: conv(REAL, before=[node("Relu", "x", "s")]), Config()),
    (Code.FLOAT_WEIGHTS, lambda: conv(REAL), Config()),
    (Code.INPUT_NOT_SIGN, lambda: conv(before=[node("Relu", "x", "s")]), Config()),
    (
        Code.WEIGHT_SPREAD,
        lambda: conv(W["w"] * np.linspace(1, 1.001, W["w"].size, dtype=np.float32).reshape(W["w"].shape)),
        Config(),
    ),
    (Code.ACTIVATION_VALUES, three_values, Config()),
    (Code.INPUT_SCALE, per_channel_scale, Config()),
    (Code.UNBOUNDED_RESIDUE, identity_estimator, Config()),
    (Code.SIGN_ZERO, lambda: conv(before=[node("Sign", "x", "s")]), KEEP),
    (Code.MIXED_SIGNS, mixed, Config()),
    (Code.PAD_VALUE, padded, Config()),
    (Code.THRESHOLD_SHAPE, higher_threshold, Config()),
    (Code.WEIGHTS_NOT_CONSTANT, lambda: weights_as_input("m"), Config()),
    (Code.WEIGHTS_ON_LEFT, lambda: matmul("m s", [16, 16], {"m": signs(16, 16)}), Config()),
    (Code.WEIGHTS_NOT_FINITE, lambda: conv(W["w"] * np.float32(np.inf)), Config()),
    (Code.NOT_FLOAT32, lambda: conv(W["w"].astype(np.float64)), Config()),
    (Code.BIAS_NOT_CONSTANT, lambda: weights_as_input("b"), Config()),
    (Code.BIAS_PER_ROW, lambda: gemm("s m b", {"b": np.ones((2, 16), np.float32)}), Config()),
    (Code.DEPTHWISE, lambda: conv(signs(8, 1, 1, 1), group=8), Config()),
    (Code.SLOWER_ON_BITS, one_channel, Config()),
    (Code.UNSUPPORTED_OP, integers, Config()),
    (Code.UNSUPPORTED_RANK, lambda: matmul("s m", ["N", 16], {"m": signs(16)}), Config()),
    (Code.UNSUPPORTED_ATTRIBUTE, lambda: conv(pads=[-1, 0, 0, 0]), Config()),
    (Code.INVALID_ATTRIBUTE, lambda: conv(strides=[0, 1]), Config()),
    (Code.DYNAMIC_SHAPE, lambda: conv(strides=[2, 2], auto_pad="SAME_UPPER"), Config()),
    (Code.CEIL_MODE, ceil_mode, Config()),
    (Code.SUM_TOO_LONG, lambda: levels(4096, 4096), Config()),
    (Code.EXCLUDED, conv, Config(nodes_to_exclude=("layer",))),
    (Code.INT8_EDGE, float_tail, Config(edges="int8")),
    (Code.IN_SUBGRAPH, sequence_map, Config()),
    (Code.UNUSED, unused, Config()),
    (Code.UNSUPPORTED_MODEL, old_opset, Config()),
]


def report_of(model: onnx.ModelProto, config: Config) -> Report:
    data = {"x": np.zeros((2, 8, 4, 4), np.float32)} if config.edges == "int8" else None
    return convert(model, Config(**{**config.__dict__, "allow_unchanged": True}), calibration_data=data).report


def layer_of(report: Report) -> Layer:
    (layer,) = (x for x in report.layers if x.name == "layer")
    return layer


@pytest.mark.parametrize(("code", "make", "config"), EXAMPLES, ids=[str(code) for code, _, _ in EXAMPLES])
def test_every_code_happens(code: Code, make: Callable[[], onnx.ModelProto], config: Config) -> None:
    layer = layer_of(report_of(make(), config))
    assert layer.code is code, layer.reason
    runs_as = {Code.BINARY: "binary", Code.ALREADY_COMPILED: "binary", Code.INT8_EDGE: "int8"}
    assert layer.status == runs_as.get(code, "float")
    assert layer.reason


def test_no_code_is_dead() -> None:
    assert [code for code, _, _ in EXAMPLES] == list(Code)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"op_types_to_exclude": ("Conv",)}, "Conv"),
        ({"nodes_to_exclude": ("la.*",)}, "by name"),
        ({"nodes_to_quantize": ("other",)}, "not among"),
    ],
)
def test_every_way_to_exclude_a_layer(options: dict[str, Any], reason: str) -> None:
    layer = layer_of(inspect(conv(), Config(**options)))
    assert layer.code is Code.EXCLUDED
    assert reason in layer.reason


def test_codes_are_plain_strings_in_json() -> None:
    (layer,) = inspect(conv(REAL)).to_json()["layers"]
    assert type(layer["code"]) is str
    assert layer["code"] == "float-weights"


def test_the_table_shows_the_code() -> None:
    header, _, line, *_ = inspect(conv(REAL)).table().splitlines()
    at = header.index("code")
    assert line[at:].startswith("float-weights ")


def test_a_layer_in_a_body_that_stays_counts_as_float() -> None:
    report = inspect(sequence_map())
    assert (report.summary.binary_layers, report.summary.float_layers) == (0, 1)


def test_a_damaged_model_is_handed_on_where_that_is_asked_for() -> None:
    model = damaged("no output")
    model.graph.node[-1].name = ""
    result = convert(model, Config(allow_unchanged=True))
    assert result.model is model
    assert [x.code for x in result.report.layers] == [Code.UNSUPPORTED_MODEL]


def test_names_cannot_fake_lines_of_the_table() -> None:
    model = conv()
    model.graph.node[-1].name = "layer\n::error::fake\x1b[2J"
    table = inspect(model).table()
    assert "\x1b" not in table
    assert not any(line.startswith("::") for line in table.splitlines())


def test_the_page_lists_every_code_with_its_sentences() -> None:
    text = (ROOT / "docs" / "reasons.md").read_text()
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (.*?) \| (.*?) \|$", text, re.MULTILINE)
    assert rows == [(str(code), code.meaning, code.change or "—") for code in Code]
    for code in Code:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code)
        assert "|" not in code.meaning + code.change


# What released versions have printed. Lines are added, never changed: scripts compare these strings.
PUBLISHED = (
    "binary already-compiled float-layer float-weights input-not-sign sign-zero mixed-signs pad-value threshold-shape "
    "weights-not-constant weights-on-left weights-not-finite not-float32 bias-not-constant bias-per-row depthwise "
    "unsupported-op unsupported-rank unsupported-attribute invalid-attribute dynamic-shape ceil-mode sum-too-long "
    "excluded in-subgraph unused unsupported-model int8-edge"
)


def test_no_code_is_ever_taken_back() -> None:
    assert set(PUBLISHED.split()) <= {str(code) for code in Code}
