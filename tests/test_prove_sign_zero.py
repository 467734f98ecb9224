"""Where 0 is called impossible it never comes, and where one was planted it is not called so: on every input there is.

The layer in front of the sign has 3 or 4 terms, so that all ±1 inputs fit into one batch: what is proved is compared
with all that can happen, and a planted zero does happen.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from test_odd_graphs import Array, network, node, sign

from binarize_onnx import Config, inspect
from binarize_onnx.report import SignSite

IDEAL = Config(emit="ideal")
COLUMNS = np.asarray([[1, 1, -1, 1], [1, -1, 1, 1], [1, 1, 1, -1], [-1, 1, 1, 1]], np.float32)


def every_input(terms: int) -> Array:
    return np.asarray(list(product([-1, 1], repeat=terms)), np.float32)


def judged(model: onnx.ModelProto, feed: dict[str, Array]) -> tuple[SignSite, int]:
    """What is said of sign `t` without data, and how often the source gives 0 there; counting must find the same."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.append(onnx.ValueInfoProto(name="t"))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    t = ort.InferenceSession(shown.SerializeToString(), options).run(["t"], feed)[0]
    zeros = int(np.count_nonzero(t == 0))
    site = next(s for s in inspect(model, IDEAL).signs if s.name == "t")
    counted = next(s for s in inspect(model, IDEAL, calibration_data=feed).signs if s.name == "t")
    if site.zero == "proved":
        assert counted == site
    else:
        assert (counted.zero, counted.zeros, counted.elements) == ("counted", zeros, t.size)
    return site, zeros


def check(model: onnx.ModelProto, feed: dict[str, Array], *, never: bool) -> None:
    site, zeros = judged(model, feed)
    assert (site.zero, zeros == 0) == (("proved", True) if never else ("assumed", False))


def behind_a_product(steps: list[onnx.NodeProto], constants: dict[str, Any], terms: int, width: int = 4) -> Any:
    """±1 inputs, a product `a` of 4 columns (and `b`, the same columns backwards), the steps from `a` to `r`, Sign."""
    nodes = [
        *sign("x", "s"),
        node("MatMul", "s w", "a", "first"),
        node("MatMul", "s u", "b", "other"),
        *steps,
        node("Flatten", "r", "flat"),
        node("Sign", "flat", "t"),
        node("MatMul", "t v", "y", "second"),
    ]
    every = {"w": COLUMNS[:terms], "u": COLUMNS[:terms, ::-1].copy(), "v": np.ones((width, 2), np.float32), **constants}
    return network(nodes, {"x": ["N", terms]}, {"y": 2, "b": 2}, every)


CHAINS: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], dict[str, Any]]] = {
    # name: steps from a (-4, -2, 0, 2 or 4) to r, constants with which r is never 0, and with which it can be
    "Mul Add": ([node("Mul", "a k", "m"), node("Add", "m c", "r")], {"k": -0.5, "c": 0.5}, {"k": -0.5, "c": 2.0}),
    "popcount": (
        [node("Add", "a four", "m"), node("Div", "m two", "n"), node("Sub", "n c", "r")],
        {"four": 4.0, "two": 2.0, "c": 2.5},
        {"four": 4.0, "two": 2.0, "c": 3.0},
    ),
    "Div": ([node("Div", "a k", "m"), node("Add", "m c", "r")], {"k": 3.0, "c": 1.0}, {"k": 2.0, "c": 1.0}),
    "Sub from": ([node("Sub", "c a", "r")], {"c": 3.0}, {"c": 4.0}),
    "Neg": ([node("Neg", "a", "m"), node("Add", "m c", "r")], {"c": 1.0}, {"c": 2.0}),
    "Relu": ([node("Relu", "a", "m"), node("Sub", "m c", "r")], {"c": 1.0}, {"c": 2.0}),
    "PRelu": (
        [node("PRelu", "a p", "m"), node("Add", "m c", "r")],
        {"p": np.asarray([0.25, 0.5, 1, 2], np.float32), "c": np.asarray([0.75, 0.5, 1, 2], np.float32)},
        {"p": np.asarray([0.25, 0.5, 1, 2], np.float32), "c": np.asarray([0.75, 0.5, 1, 4], np.float32)},
    ),
    "LeakyRelu": (
        [node("LeakyRelu", "a", "m", alpha=0.25), node("Add", "m c", "r")],
        {"c": 0.75},
        {"c": 0.5},
    ),
    "Clip": ([node("Clip", "a minus plus", "m"), node("Sub", "m c", "r")], {"c": 0.5}, {"c": 1.0}),
    "Max Min": (
        [node("Max", "minus a", "m"), node("Min", "m plus", "n"), node("Add", "n c", "r")],
        {"c": 1.5},
        {"c": -1.0},
    ),
    "Abs in between": ([node("Abs", "a", "m"), node("Add", "m c", "r")], {"c": 0.25}, {"c": -2.0}),
    "Reshape Transpose": (
        # The second column, which is halved, is the first of the second row behind the two.
        [
            node("Mul", "a k", "m"),
            node("Reshape", "m shape", "n"),
            node("Transpose", "n", "o", perm=[0, 2, 1]),
            node("Add", "o c", "r"),
        ],
        {
            "k": np.asarray([1, 0.5, 1, 1], np.float32),
            "c": np.asarray([[1, 1], [0.25, 1]], np.float32),
            "shape": np.asarray([0, 2, 2]),
        },
        {
            "k": np.asarray([1, 0.5, 1, 1], np.float32),
            "c": np.asarray([[1, 0.25], [1, 1]], np.float32),
            "shape": np.asarray([0, 2, 2]),
        },
    ),
    "Unsqueeze Squeeze": (
        [
            node("Unsqueeze", "a one", "m"),
            node("Add", "m c", "n"),
            node("Squeeze", "n one", "o"),
            node("Add", "o d", "r"),
        ],
        {"one": np.asarray([1]), "c": np.ones((1, 1, 4), np.float32), "d": np.asarray([0, 2, 4, 0], np.float32)},
        {"one": np.asarray([1]), "c": np.ones((1, 1, 4), np.float32), "d": np.asarray([0, 2, 3, 0], np.float32)},
    ),
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("never", [True, False])
def test_chains(name: str, never: bool) -> None:
    steps, proved, planted = CHAINS[name]
    check(behind_a_product(steps, proved if never else planted, 4), {"x": every_input(4)}, never=never)


@pytest.mark.parametrize(("terms", "never"), [(3, True), (4, False)])
def test_parity(terms: int, never: bool) -> None:
    check(behind_a_product([node("Identity", "a", "r")], {}, terms), {"x": every_input(terms)}, never=never)


@pytest.mark.parametrize(("terms", "never"), [(3, True), (4, False)])
def test_a_magnitude_is_0_where_its_number_is(terms: int, never: bool) -> None:
    """Alone it would make a sign of two values; beside another tensor it makes one of three."""
    steps = [node("Abs", "a", "m"), node("Concat", "m b", "r", axis=1)]
    check(behind_a_product(steps, {}, terms, width=8), {"x": every_input(terms)}, never=never)


@pytest.mark.parametrize(
    ("c", "d", "never"),
    [
        ([1, 1, 1, 1], [1, 1, 1, 1, 0.25, 0.25, 0.25, 0.25], True),
        ([1, 1, 1, 1], [0.25, 0.25, 0.25, 0.25, 1, 1, 1, 1], False),  # constants of the one part for the other
        ([1, 1, 1, 3], [1, 1, 1, 1, 0.25, 0.25, 0.25, 0.25], True),
        ([1, 1, 1, 2], [1, 1, 1, 1, 0.25, 0.25, 0.25, 0.25], False),
        ([1, 1, 1, 1], [3, 3, 3, 3, 0.25, 0.25, 0.25, 2], False),
    ],
)
def test_every_part_of_a_concat(c: list[float], d: list[float], never: bool) -> None:
    """a + (c - 1) and b / 2, side by side, + d."""
    steps = [
        node("Add", "a c", "m"),
        node("Mul", "b half", "n"),
        node("Concat", "m n", "o", axis=1),
        node("Add", "o d", "r"),
    ]
    constants = {"c": np.asarray(c, np.float32) - 1, "half": 0.5, "d": np.asarray(d, np.float32)}
    check(behind_a_product(steps, constants, 4, width=8), {"x": every_input(4)}, never=never)


def test_a_slope_below_0_ends_a_proof() -> None:
    """PRelu(a) is 2, 1, 0, 2, 4: neither rising nor falling, and 1 is not between the ends."""
    steps = [
        node("Unsqueeze", "a axis", "l"),
        node("PRelu", "l k", "m"),
        node("Sub", "m plus", "n"),
        node("Unsqueeze", "b axis", "p"),
        node("Sub", "p plus", "o"),
        node("Concat", "n o", "r", axis=1),  # between Unsqueeze and Concat no pass respells the PRelu
    ]
    constants = {"k": np.full((4, 1), -0.5, np.float32), "axis": np.asarray([2])}
    model = behind_a_product(steps, constants, 4, width=8)
    check(model, {"x": every_input(4)}, never=False)


def test_constants_that_widen_what_was_reshaped_end_a_proof() -> None:
    steps = [node("Unsqueeze", "a axis", "m"), node("Add", "m c", "r")]
    constants = {"axis": np.asarray([2]), "c": np.ones((1, 1, 3), np.float32)}
    site, zeros = judged(behind_a_product(steps, constants, 4, width=12), {"x": every_input(4)})
    assert (site.zero, zeros) == ("assumed", 0)


@pytest.mark.parametrize(("c", "never"), [(0.5, True), (0.0, False)])
def test_a_part_that_ends_at_0_can_be_0(c: float, never: bool) -> None:
    nodes = [
        node("Relu", "x", "m"),
        node("Add", "m c", "n"),
        node("Neg", "n", "o"),
        node("Sub", "o plus", "p"),
        node("Concat", "n p", "r", axis=1),
        node("Sign", "r", "t"),
        node("MatMul", "t v", "y", "layer"),
    ]
    model = network(nodes, {"x": ["N", 4]}, {"y": 2}, {"c": c, "v": np.ones((8, 2), np.float32)})
    check(model, {"x": every_input(4)}, never=never)


@pytest.mark.parametrize(
    ("steps", "never"),
    [
        ([node("Abs", "x", "m"), node("Add", "m half", "r")], True),
        ([node("Abs", "x", "m"), node("Sub", "m plus", "r")], False),
        ([node("Relu", "x", "m"), node("Mul", "m k", "n"), node("Sub", "n half", "r")], True),  # k < 0: falling
        ([node("Relu", "x", "m"), node("Mul", "m k", "n"), node("Add", "n two", "r")], False),
        ([node("Clip", "x minus plus", "m"), node("Add", "m two", "r")], True),
        ([node("Clip", "x minus plus", "m"), node("Sub", "m plus", "r")], False),
        ([node("Sigmoid", "x", "m"), node("Sub", "m two", "r")], True),
        ([node("Sigmoid", "x", "m"), node("Sub", "m m", "r")], False),
        ([node("PRelu", "x k", "m"), node("Sub", "m two", "r")], False),  # k < 0: neither rising nor falling
        ([node("Div", "two x", "m"), node("Abs", "m", "n"), node("Sub", "n two", "r")], False),
    ],
)
def test_bounded_tensors(steps: list[onnx.NodeProto], never: bool) -> None:
    nodes = [*steps, node("Sign", "r", "t"), node("MatMul", "t v", "y", "layer")]
    constants = {"half": 0.5, "two": 2.0, "k": np.full(4, -2, np.float32), "v": np.ones((4, 2), np.float32)}
    check(network(nodes, {"x": ["N", 4]}, {"y": 2}, constants), {"x": every_input(4)}, never=never)


def test_tiny_numbers_that_vanish_are_not_called_impossible() -> None:
    """-(|x| + 1e-30) * 1e-30 is negative on paper and 0 in float32."""
    nodes = [
        node("Abs", "x", "m"),
        node("Add", "m tiny", "n"),
        node("Mul", "n tiny", "o"),
        node("Neg", "o", "r"),
        node("Sign", "r", "t"),
        node("MatMul", "t v", "y", "layer"),
    ]
    model = network(nodes, {"x": ["N", 4]}, {"y": 2}, {"tiny": 1e-30, "v": np.ones((4, 2), np.float32)})
    assert [s.zero for s in inspect(model, IDEAL).signs if s.name == "t"] == ["assumed"]


@pytest.mark.parametrize(
    ("c", "never"), [(1.0, True), (np.asarray([1, 3]).reshape(1, 2, 1, 1), True), (2.0, False)], ids=["1", "1 3", "2"]
)
@pytest.mark.parametrize("pool", ["MaxPool", "GlobalMaxPool"])
def test_pools_pick_values(pool: str, c: Any, never: bool) -> None:
    attrs: dict[str, Any] = {"kernel_shape": [1, 2]} if pool == "MaxPool" else {}
    nodes = [
        *sign("x", "s"),
        node("Conv", "s w", "a", "first"),
        node(pool, "a", "m", **attrs),
        node("Add", "m c", "r"),
        node("Sign", "r", "t"),
        node("Conv", "t w2", "y", "second"),
    ]
    weights = {"w": COLUMNS[:2].reshape(2, 4, 1, 1), "w2": np.ones((2, 2, 1, 1), np.float32)}
    model = network(nodes, {"x": ["N", 4, 1, 2]}, {"y": 4}, {**weights, "c": np.asarray(c, np.float32)})
    x = every_input(8).reshape(-1, 4, 1, 2)
    check(model, {"x": x}, never=never)


@pytest.mark.parametrize("terms", [3, 4])
def test_one_dimensional_convolution(terms: int) -> None:
    nodes = [*sign("x", "s"), node("Conv", "s w", "a", "first"), node("Sign", "a", "t"), node("Conv", "t w2", "y", "l")]
    weights = {"w": COLUMNS[:2, :terms].reshape(2, terms, 1), "w2": np.ones((2, 2, 1), np.float32)}
    model = network(nodes, {"x": ["N", terms, 2]}, {"y": 3}, weights)
    check(model, {"x": every_input(2 * terms).reshape(-1, terms, 2)}, never=terms == 3)


@pytest.mark.parametrize(
    ("channels", "attributes", "never"),
    [
        (3, {"strides": [2]}, True),  # every pixel has three terms
        (2, {"strides": [2]}, False),
        (3, {"strides": [1]}, False),  # kernels overlap: three terms at the edges and six inside
        (3, {"strides": [3]}, False),  # between the kernels there is nothing
        (3, {"strides": [2], "output_padding": [1]}, False),
    ],
)
def test_transposed_convolution(channels: int, attributes: dict[str, Any], never: bool) -> None:
    nodes = [
        *sign("x", "s"),
        node("ConvTranspose", "s w", "a", "first", **attributes),
        node("Sign", "a", "t"),
        node("Conv", "t w2", "y", "second"),
    ]
    weights = {"w": COLUMNS[:channels].reshape(channels, 2, 2), "w2": np.ones((2, 2, 1), np.float32)}
    model = network(nodes, {"x": ["N", channels, 2]}, {"y": 3}, weights)
    check(model, {"x": every_input(2 * channels).reshape(-1, channels, 2)}, never=never)


def test_a_transposed_convolution_adds_up_all_its_channels() -> None:
    """Three channels times two kernel places reach 6: a bound of less would hide this zero."""
    nodes = [
        *sign("x", "s"),
        node("ConvTranspose", "s w", "a", "first"),
        node("Sub", "a six", "r"),
        node("Sign", "r", "t"),
        node("Conv", "t w2", "y", "second"),
    ]
    weights = {"w": np.ones((3, 2, 2), np.float32), "w2": np.ones((2, 2, 1), np.float32), "six": 6.0}
    check(network(nodes, {"x": ["N", 3, 2]}, {"y": 3}, weights), {"x": every_input(6).reshape(-1, 3, 2)}, never=False)


@pytest.mark.parametrize(("terms", "c", "never"), [(3, 0.0, True), (2, 0.0, False), (3, 3.0, False), (3, 5.0, True)])
def test_product_of_two_activations(terms: int, c: float, never: bool) -> None:
    nodes = [
        *sign("x", "s"),
        *sign("z", "q"),
        node("MatMul", "s q", "a", "first"),
        node("Sub", "a c", "r"),
        node("Sign", "r", "t"),
        node("MatMul", "t v", "y", "second"),
    ]
    model = network(
        nodes,
        {"x": ["N", 1, terms], "z": ["N", terms, 2]},
        {"y": 3},
        {"v": np.ones((2, 2), np.float32), "c": c},
    )
    x = every_input(3 * terms)
    feed = {"x": x[:, :terms].reshape(-1, 1, terms), "z": x[:, terms:].reshape(-1, terms, 2)}
    check(model, feed, never=never)


@pytest.mark.parametrize(("c", "zero"), [(2.0, "assumed"), (3.0, "assumed"), (3.5, "proved"), (4.0, "proved")])
def test_levels_count_behind_what_moves_them(c: float, zero: str) -> None:
    """A level of three thresholds reaches 3, a Transpose later too."""
    nodes = [
        helper.make_node("Level", ["x", "levels"], ["l"], domain="binarize_onnx.ideal"),
        node("Transpose", "l", "turned", perm=[0, 1, 3, 2]),
        node("Conv", "turned w", "a", "first"),
        node("Sub", "a c", "r"),
        node("Sign", "r", "t"),
        node("Conv", "t w", "y", "second"),
    ]
    constants = {"levels": np.asarray([-1, 0, 1], np.float32), "w": np.ones((1, 1, 1, 1), np.float32), "c": c}
    model = network(nodes, {"x": ["N", 1, 2, 2]}, {"y": 4}, constants)
    model.opset_import.append(helper.make_opsetid("binarize_onnx.ideal", 1))
    assert [s.zero for s in inspect(model, IDEAL).signs if s.name == "t"] == [zero]


@pytest.mark.parametrize(("c", "never"), [(1.0, True), (2.0, False)])
def test_the_third_value_may_be_elsewhere_than_at_0(c: float, never: bool) -> None:
    """a > c is 1, a < c is -1, and a == c is 0."""
    steps = [node("Identity", "a", "r")]
    model = behind_a_product(steps, {"c": c, "nothing": 0.0}, 4)
    at = next(i for i, n in enumerate(model.graph.node) if n.op_type == "Sign")
    del model.graph.node[at]
    for index, made in enumerate(
        [
            node("Greater", "flat c", "more"),
            node("Equal", "flat c", "same"),
            node("Where", "same nothing minus", "low"),
            node("Where", "more plus low", "t"),
        ]
    ):
        model.graph.node.insert(at + index, made)
    check(model, {"x": every_input(4)}, never=never)
