"""Graphs that are legal but unusual, and files that are damaged: right answers, or clear words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from binarize_onnx import Config, Result, convert, inspect, runtime, shapes
from binarize_onnx.errors import BinarizeError, ModelError, NothingMatched, UsageError

Array = npt.NDArray[Any]
RNG = np.random.default_rng(0)
LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)


def signs(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).choice(np.asarray([-1, 1], np.float32), shape)


def network(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[Any]],
    outputs: Mapping[str, int],
    constants: Mapping[str, Any],
    opset: int = 17,
) -> onnx.ModelProto:
    """A model; `outputs` maps names to ranks. Constants 0, 1 and −1 are there as `zero`, `plus` and `minus`."""
    every: dict[str, Any] = {"zero": 0.0, "plus": 1.0, "minus": -1.0, **constants}
    initializers = [
        numpy_helper.from_array(v if isinstance(v, np.ndarray) else np.asarray(v, np.float32), k)
        for k, v in every.items()
    ]
    graph = helper.make_graph(
        list(nodes),
        "odd",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["?"] * rank) for n, rank in outputs.items()],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def sign(x: str, y: str) -> list[onnx.NodeProto]:
    """y = x >= 0 ? 1 : -1"""
    return [
        helper.make_node("GreaterOrEqual", [x, "zero"], [f"{y}.ge"]),
        helper.make_node("Where", [f"{y}.ge", "plus", "minus"], [y]),
    ]


def node(op: str, inputs: str, output: str, name: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], name=name, **attributes)


def run(model: onnx.ModelProto, feeds: Mapping[str, Array], level: Any = LEVELS[0], *, library: bool) -> list[Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    make = runtime.InferenceSession if library else ort.InferenceSession
    session = make(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def check(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Result:
    """Converted = ideal bit for bit, with and without the library; close to the source; loads at every level."""
    result, ideal = convert(model), convert(model, Config(emit="ideal")).model
    source, wanted = run(model, feeds, library=False), run(ideal, feeds, library=False)
    for library in (False, True):
        for got, exact, original in zip(run(result.model, feeds, library=library), wanted, source, strict=True):
            assert got.shape == exact.shape == original.shape
            assert got.tobytes() == exact.tobytes()
            np.testing.assert_allclose(got, original, rtol=1e-5, atol=1e-5)
        run(result.model, feeds, LEVELS[1], library=library)
    return result


IMAGE = {"x": ["N", 8, 6, 6]}
FEED = {"x": RNG.normal(size=(2, 8, 6, 6)).astype(np.float32)}
W = {"w": signs(8, 8, 1, 1), "v": signs(8, 8, 1, 1)}


def test_a_pool_whose_bits_feed_two_layers_is_pooled_once() -> None:
    pool = node("MaxPool", "s", "p", "pool", kernel_shape=[2, 2], strides=[2, 2])
    layers = [node("Conv", "p w", "y", "a"), node("Conv", "p v", "z", "b")]
    result = check(network([*sign("x", "s"), pool, *layers], IMAGE, {"y": 4, "z": 4}, W), FEED)
    assert [n.op_type for n in result.model.graph.node].count("PackedMaxPool") == 1


def test_two_thresholds_on_one_pool() -> None:
    pool = node("MaxPool", "x", "p", "pool", kernel_shape=[2, 2], strides=[2, 2])
    shifted = [node("Add", "p shift", "q"), *sign("p", "s"), *sign("q", "t")]
    layers = [node("Conv", "s w", "y", "a"), node("Conv", "t v", "z", "b")]
    check(network([pool, *shifted, *layers], IMAGE, {"y": 4, "z": 4}, {**W, "shift": 0.5}), FEED)


def test_a_partly_compiled_file_compiles_the_rest() -> None:
    steps = [node("Mul", "a k", "b"), node("Mul", "b k", "c"), node("Mul", "c k", "y")]
    nodes = [*sign("x", "s"), node("Conv", "s w", "a", "L1"), *steps, *sign("y", "t"), node("Conv", "t v", "z", "L2")]
    model = network(nodes, IMAGE, {"y": 4, "z": 4}, {**W, "k": np.full((8, 1, 1), 1.5, np.float32)})
    first = convert(onnx.shape_inference.infer_shapes(model), Config(nodes_to_exclude=("L2",))).model
    second = convert(first).model
    for library in (False, True):
        for a, b in zip(run(second, FEED, library=library), run(model, FEED, library=False), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_step_inside_a_subgraph_stays_there() -> None:
    then = helper.make_graph(
        [node("Mul", "a k", "o1")], "then", [], [helper.make_tensor_value_info("o1", 1, ["?"] * 4)]
    )
    other = helper.make_graph(
        [node("Identity", "k", "o2")], "else", [], [helper.make_tensor_value_info("o2", 1, ["?"] * 4)]
    )
    branch = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    nodes = [*sign("x", "s"), node("Conv", "s w", "a", "layer"), branch]
    model = network(nodes, IMAGE, {"y": 4}, {**W, "k": np.full((1, 8, 1, 1), 1.5, np.float32)})
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    for condition in (True, False):
        check(model, {**FEED, "c": np.asarray(condition)})


def test_zero_behind_levels_is_not_called_impossible() -> None:
    level = helper.make_node("Level", ["x", "t"], ["l"], domain="binarize_onnx.ideal")
    nodes = [level, node("Conv", "l one", "a", "first"), node("Add", "a two", "b"), node("Sign", "b", "s")]
    model = network(
        [*nodes, node("Conv", "s one", "y", "second")],
        {"x": ["N", 1, 2, 2]},
        {"y": 4},
        {"t": np.asarray([-1, 0, 1], np.float32), "one": np.ones((1, 1, 1, 1), np.float32), "two": -2.0},
    )
    model.opset_import.append(helper.make_opsetid("binarize_onnx.ideal", 1))
    report = inspect(model)
    assert [x.zero for x in report.signs] == ["assumed"]
    assert inspect(model, Config(sign_zero="keep")).summary.binary_layers == 1


@pytest.mark.parametrize(
    "between",
    [
        [node("Clip", "x zero plus", "r")],
        [node("Relu", "x", "q"), node("MaxPool", "q", "r", kernel_shape=[2, 2])],
        [node("Relu", "x", "q"), node("AveragePool", "q", "r", kernel_shape=[2, 2])],
    ],
    ids=["Clip", "MaxPool", "AveragePool"],
)
def test_sign_of_what_is_never_negative_is_zero_or_one(between: list[onnx.NodeProto]) -> None:
    nodes = [*between, node("Sign", "r", "s"), node("Conv", "s w", "y", "layer")]
    result = check(network(nodes, IMAGE, {"y": 4}, W), FEED)
    assert [x.zero for x in result.report.signs] == ["proved"]


def test_one_session_takes_every_batch_and_image_size() -> None:
    model = network(
        [
            *sign("x", "s"),
            node("Conv", "s k", "a", "first", pads=[1, 1, 1, 1]),
            node("MaxPool", "a", "p", kernel_shape=[2, 2], strides=[1, 1]),
            *sign("p", "t"),
            node("Conv", "t l", "b", "second", pads=[1, 0, 2, 1], strides=[2, 1]),
            node("Add", "b b", "y"),
        ],
        {"x": ["N", 8, "H", "W"]},
        {"y": 4},
        {"k": signs(40, 8, 3, 3), "l": signs(5, 40, 3, 3)},
    )
    sizes = [(1, 8, 6, 6), (3, 8, 15, 4), (2, 8, 3, 31), (1, 8, 40, 41)]
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[0]
    session = runtime.InferenceSession(convert(model).model.SerializeToString(), options)
    for size in sizes:
        x = RNG.normal(size=size).astype(np.float32)
        (wanted,) = run(model, {"x": x}, library=False)
        (got,) = session.run(None, {"x": x})
        assert got.tobytes() == wanted.tobytes()


def test_names_that_collide_with_tensor_names() -> None:
    nodes = [*sign("x", "s"), node("Conv", "s w", "c", "z"), node("Conv", "c real", "z"), node("Clip", "z", "q2", "q")]
    real = RNG.normal(size=(8, 8, 1, 1)).astype(np.float32)
    model = network([*nodes, *sign("q2", "t"), node("Conv", "t v", "q")], IMAGE, {"q": 4}, {**W, "real": real})
    result = convert(model)
    assert [x.status for x in result.report.layers] == ["binary", "float", "binary"]
    assert len({x.name for x in result.report.layers}) == 3


def test_open_batches_with_two_names_may_differ() -> None:
    nodes = [*sign("x", "s"), node("Conv", "s w", "a", "layer"), node("Add", "a r", "y")]
    model = network(nodes, {**IMAGE, "r": ["M", 8, 6, 6]}, {"y": 4}, W)
    check(model, {"x": FEED["x"][:1], "r": RNG.normal(size=(3, 8, 6, 6)).astype(np.float32)})


def test_constants_of_higher_rank_add_axes() -> None:
    nodes = [
        node("GreaterOrEqual", "x zero", "ge"),
        node("Where", "ge ones minus", "s"),
        node("MatMul", "s m", "y", "layer"),
    ]
    model = network(nodes, {"x": ["N", 16]}, {"y": 3}, {"ones": np.ones((1, 1, 1), np.float32), "m": signs(16, 4)})
    with pytest.raises(NothingMatched):
        convert(model)


def test_input_shapes_are_what_the_converted_file_accepts() -> None:
    nodes = [*sign("x", "s"), node("Conv", "s k", "y", "layer", strides=[2, 2], auto_pad="SAME_UPPER")]
    model = network(nodes, {"x": ["N", 8, "H", "W"]}, {"y": 4}, {"k": signs(8, 8, 3, 3)})
    assert "--input-shape" in inspect(model).layers[0].reason
    fixed = convert(model, Config(input_shapes={"x": (2, 8, 6, 6)})).model
    assert [d.dim_value for d in fixed.graph.input[0].type.tensor_type.shape.dim] == [2, 8, 6, 6]
    np.testing.assert_array_equal(run(fixed, FEED, library=True)[0], run(model, FEED, library=False)[0])


def test_a_pool_whose_size_runtimes_dispute_stays_float() -> None:
    pool = node("MaxPool", "s", "p", kernel_shape=[2, 2], strides=[2, 2], pads=[1] * 4, ceil_mode=1)
    model = network([*sign("x", "s"), pool, node("Conv", "p w", "y", "layer")], {"x": ["N", 8, 5, 5]}, {"y": 4}, W)
    with pytest.raises(NothingMatched):
        convert(model)
    assert "ceil_mode" in inspect(model).layers[0].reason


def test_a_scalar_gemm_bias() -> None:
    nodes = [*sign("x", "s"), node("Gemm", "s m b", "y", "layer")]
    check(network(nodes, {"x": ["N", 16]}, {"y": 2}, {"m": signs(16, 4), "b": 0.5}), {"x": FEED["x"].reshape(-1, 16)})


def test_batchnorm_over_flattened_rows_of_a_layer() -> None:
    steps = [
        node("MatMul", "s m", "a", "first"),
        node("Flatten", "a", "f"),
        node("Mul", "f k", "g"),
        node("Sign", "g", "t"),
    ]
    model = network(
        [*sign("x", "s"), *steps, node("MatMul", "t n", "y", "second")],
        {"x": ["N", 3, 5]},
        {"y": 2},
        {"m": signs(5, 6), "k": RNG.normal(size=18).astype(np.float32), "n": signs(18, 4)},
    )
    check(model, {"x": RNG.normal(size=(2, 3, 5)).astype(np.float32)})


def test_a_popcount_correction_of_shapes_that_do_not_fit_is_left_alone() -> None:
    nodes = [*sign("x", "s"), node("MatMul", "s w", "m"), node("Add", "m c", "a"), node("Mul", "a half", "y")]
    constants = {"w": signs(8, 3), "c": np.ones(3, np.float32), "half": np.full(2, 0.5, np.float32)}
    source = network(nodes, {"x": ["N", 8]}, {"y": 2}, constants)
    ideal = convert(source, Config(emit="ideal")).model
    assert [n.op_type for n in ideal.graph.node] == ["BinarySign", "MatMul", "Add", "Mul"]


def test_a_function_of_another_opset_stays_a_call() -> None:
    body = [helper.make_node("Relu", ["a"], ["r"])]
    function = helper.make_function("local", "Block", ["a"], ["r"], body, [helper.make_opsetid("", 15)])
    nodes = [
        helper.make_node("Block", ["x"], ["f"], domain="local"),
        *sign("f", "s"),
        node("Conv", "s w", "y", "layer"),
    ]
    model = network(nodes, IMAGE, {"y": 4}, W)
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.functions.append(function)
    check(model, FEED)


def test_other_domains_are_not_taken_for_standard_operators() -> None:
    nodes = [helper.make_node("Sign", ["x"], ["s"], domain="com.acme"), node("Conv", "s w", "y", "layer")]
    model = network(nodes, IMAGE, {"y": 4}, W)
    model.opset_import.append(helper.make_opsetid("com.acme", 1))
    assert "com.acme.Sign" in inspect(model).layers[0].reason


def damaged(change: str) -> onnx.ModelProto:
    model = network([*sign("x", "s"), node("Conv", "s w", "y", "layer")], IMAGE, {"y": 4}, W)
    weights = next(t for t in model.graph.initializer if t.name == "w")
    conv = model.graph.node[-1]
    match change:
        case "short data":
            weights.raw_data = weights.raw_data[:-4]
        case "unknown type":
            weights.data_type = 99
        case "no type":
            weights.data_type = 0
        case "no weights":
            del conv.input[1:]
        case "no output":
            del conv.output[:]
        case "cycle":
            model.graph.node[0].input[0] = "y"
        case "sparse":
            model.graph.sparse_initializer.add(values=TensorProto(name="sparse"))
    return model


@pytest.mark.parametrize(
    "change", ["short data", "unknown type", "no type", "no weights", "no output", "cycle", "sparse"]
)
def test_damaged_models_are_refused_in_words(change: str) -> None:
    with pytest.raises(ModelError):
        convert(damaged(change))


def test_attributes_that_make_no_sense_leave_the_layer_float() -> None:
    for attributes in (
        {"strides": [0, 1]},
        {"group": 0},
        {"dilations": [1, -1]},
        {"auto_pad": "SAME_UPPER", "strides": [0, 0]},
    ):
        model = network([*sign("x", "s"), node("Conv", "s w", "y", "layer", **attributes)], IMAGE, {"y": 4}, W)
        assert "positive" in inspect(model).layers[0].reason


@pytest.mark.parametrize(
    "options",
    [
        {"nodes_to_exclude": ("(",)},
        {"nodes_to_exclude": "conv"},
        {"sign_zero": "minus"},
        {"emit": "nothing"},
        {"input_shapes": {"x": (1, 8, -6, 6)}},
        {"input_shapes": {"x": (1, 8, 2**70, 6)}},
    ],
    ids=str,
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Config(**options)


def test_an_input_shape_may_not_contradict_the_model() -> None:
    model = network([*sign("x", "s"), node("Conv", "s w", "y", "layer")], IMAGE, {"y": 4}, W)
    with pytest.raises(BinarizeError, match=r"has shape \?,8,6,6, which 1,8,7,7 contradicts"):
        convert(model, Config(input_shapes={"x": (1, 8, 7, 7)}))


def test_every_open_dimension_is_a_size_of_its_own() -> None:
    """However many there are: two that seem equal would make a broadcast look like an elementwise step."""
    others = {f"i{k}": [f"n{k}", f"m{k}"] for k in range(40)}
    model = network([node("Identity", "x", "y")], {"x": ["N", 8], **others}, {"y": 2}, {})
    sizes = shapes.infer(model).stand_in
    numbers = [d for name in ("x", *others) for d in sizes[name] if d != 8]
    assert len(set(numbers)) == len(numbers) == 81

    nodes = [*sign("x", "s"), node("Conv", "s w", "c", "layer"), node("Add", "c r", "y")]
    # Were it sixteen numbers in turn, A and B would get those of H and W again.
    unused = {f"f{k}": [1, f"q{k}"] for k in range(14)}
    model = network(nodes, {"x": ["N", 8, "H", "W"], **unused, "r": ["N", 8, "A", "B"]}, {"y": 4}, W)
    feeds = {"x": FEED["x"][:1, :, :1, :1], "r": RNG.normal(size=(1, 8, 5, 5)).astype(np.float32)}
    check(model, feeds | {name: np.zeros((1, 2), np.float32) for name in unused})
