"""Layer by layer against sources of many spellings: noise is no flip, and what is wrong is found in every one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from binarize_onnx import opset
from binarize_onnx.verify.coverage import Coverage
from binarize_onnx.verify.layers import TeacherForcing
from binarize_onnx.verify.pieces import Pieces
from binarize_onnx.verify.results import SignRow, TensorRow
from binarize_onnx.verify.session import Runner
from binarize_onnx.verify.spread import MODERATE, STRICT, sign_noise, sign_scale, weight_spread

Array = npt.NDArray[Any]
RNG = np.random.default_rng(5)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), name=outputs.split()[0], **attributes)


def binary_sign(x: str, threshold: str, flip: str, output: str, x_low: int = -1) -> NodeProto:
    return node("BinarySign", f"{x} {threshold} {flip}", output, domain=opset.IDEAL_DOMAIN, x_low=x_low)


def model(
    nodes: list[NodeProto], feed: dict[str, Array], output: str, **constants: Array | np.generic
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), ["N", *x.shape[1:]])
            for name, x in feed.items()
        ],
        [onnx.ValueInfoProto(name=output)],
        [numpy_helper.from_array(np.asarray(x), name) for name, x in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made.functions.extend(opset.functions_in_use(made))
    if made.functions:
        made.opset_import.append(helper.make_opsetid(opset.IDEAL_DOMAIN, opset.VERSION))
    return made


def rows(
    source: onnx.ModelProto, ideal: onnx.ModelProto, feed: dict[str, Array], admitted: float = STRICT
) -> dict[str, Any]:
    forced = TeacherForcing(ideal, source, admitted)
    values = Runner(source, forced.read_from_reference).run(feed)
    forced.compare(feed, values, slice(0, len(next(iter(feed.values())))))
    return {row.name: row for row in forced.rows}


def floats(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def plus_minus(*shape: int) -> Array:
    return RNG.choice(np.asarray([-1, 1], np.float32), shape)


ZERO, NO_FLIP = np.zeros((), np.float32), np.zeros((), np.bool_)

# --- Noise in signs and weights -----------------------------------------------------------------------------------

RESIDUE = [
    node("Sign", "x", "s"),
    node("Neg", "x", "n"),  # with a residue of the other sign the difference rounds
    node("Clip", "n low high", "r"),
    node("Sub", "s r", "difference"),
    node("Add", "difference r", "b"),
]


def residue(weights: Array, named: str) -> tuple[onnx.ModelProto, onnx.ModelProto, dict[str, Array]]:
    """A straight-through residue before a convolution; the ideal graph calls its sign `named`."""
    feed = {"x": 3 * floats(2, 8, 6, 6)}
    signs = np.sign(weights)
    alpha = np.abs(weights).mean(axis=(1, 2, 3), keepdims=True).astype(np.float32)
    nodes = [*RESIDUE, node("Conv", "b w", "y")]
    source = model(nodes, feed, "y", w=weights, low=np.float32(-4), high=np.float32(4))
    ideal = model(
        [binary_sign("x", "zero", "no", named), node("Conv", f"{named} signs", "acc"), node("Mul", "acc alpha", "y")],
        feed,
        "y",
        signs=signs,
        alpha=alpha.reshape(1, -1, 1, 1),
        zero=ZERO,
        no=NO_FLIP,
    )
    return source, ideal, feed


def test_noise_of_a_residue_is_no_flip() -> None:
    source, ideal, feed = residue(plus_minus(4, 8, 3, 3), "b")
    found = rows(source, ideal, feed)["b"]
    assert isinstance(found, SignRow)
    assert (found.flips_inside, found.flips_outside) == (0, 0)
    assert 0 < found.noise < 2**-20


@pytest.mark.parametrize("named", ["b", "b.sign"])
def test_weights_may_spread_as_much_as_the_source_shows(named: str) -> None:
    weights = plus_minus(4, 8, 3, 3) * np.linspace(0.3, 0.7, 4, dtype=np.float32).reshape(4, 1, 1, 1)
    weights *= 1 + RNG.uniform(-1, 1, weights.shape).astype(np.float32) * 2**-18
    source, ideal, feed = residue(weights, named)
    found = rows(source, ideal, feed)["y"]
    assert 2**-20 < found.spread < 2**-16
    assert (found.beyond, found.outside) == (0, 0)
    assert found.max_diff > 0
    strict = rows(source, ideal, feed, admitted=0)["y"]
    assert (strict.spread, strict.outside > 0) == (0, True), "without the spread the bound is exceeded"


def test_more_spread_than_the_match_mode_admits_is_not_allowed_for() -> None:
    weights = plus_minus(4, 8, 3, 3) * (1 + RNG.uniform(-1, 1, (4, 8, 3, 3)).astype(np.float32) * 0.002)
    source, ideal, feed = residue(weights, "b")
    assert rows(source, ideal, feed)["y"].beyond > 0
    assert rows(source, ideal, feed, MODERATE)["y"].beyond == 0
    shifted = residue(plus_minus(4, 8, 3, 3), "b")
    constant = next(t for t in shifted[1].graph.initializer if t.name == "alpha")
    constant.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant) * np.float32(1.001), "alpha"))
    assert rows(*shifted, MODERATE)["y"].beyond > 0, "a clean source allows no spread, whatever the mode"


def test_weights_that_are_a_cone_are_measured_as_weights() -> None:
    feed, latent = {"x": floats(2, 8, 6, 6)}, 3 * floats(4, 8, 3, 3)
    nodes = [
        node("Sign", "latent", "s"),
        node("Abs", "latent", "a"),
        node("ReduceMean", "a", "m", axes=[1, 2, 3]),
        node("Neg", "latent", "n"),
        node("Clip", "n low high", "c"),
        node("Sub", "s c", "d"),
        node("Add", "d c", "e"),
        node("Mul", "e m", "w"),
        node("Sign", "x", "b"),
        node("Conv", "b w", "y"),
    ]
    source = model(nodes, feed, "y", latent=latent, low=np.float32(-4), high=np.float32(4))
    alpha = np.abs(latent).mean(axis=(1, 2, 3)).reshape(1, -1, 1, 1)
    ideal = model(
        [binary_sign("x", "zero", "no", "b"), node("Conv", "b signs", "acc"), node("Mul", "acc alpha", "y")],
        feed,
        "y",
        signs=np.sign(latent),
        alpha=alpha,
        zero=ZERO,
        no=NO_FLIP,
    )
    found = rows(source, ideal, feed)["y"]
    assert found.spread > 0
    assert found.beyond == found.outside == 0
    assert found.bound < 100 * 2**-24 * 72 * alpha.max(), "|terms| are those of the weights, not of their cone"


def test_spread_and_noise() -> None:
    assert weight_spread(np.asarray([[0.5, -0.5], [2, 2]])) == 0
    assert weight_spread(np.asarray([[0.5, -0.505], [2, 0]])) == pytest.approx(0.01)
    assert weight_spread(np.zeros((2, 3))) == 0
    assert sign_noise(np.asarray([1, -1, 0, 1 + 2**-20])) == 2**-20
    assert sign_noise(np.asarray([1, 0.5])) == np.inf
    assert sign_scale(np.asarray([[0.5, -0.5], [3, 0], [0, 0]]), 3).tolist() == [[0.5], [3], [1]]


# --- Signs with a scale that the ideal graph has without --------------------------------------------------------------


def scaled(threshold: float, factor: float = 1) -> tuple[onnx.ModelProto, onnx.ModelProto, dict[str, Array]]:
    """XNOR-Net's scale, one a sample, times a factor, on the sign: the ideal graph has them behind the layer."""
    feed = {"x": floats(3, 8, 6, 6)}
    feed["x"][0, 0, 0, 0] = 0
    weights = plus_minus(4, 8, 3, 3)
    between, size = ("MaxPool", {"kernel_shape": [2, 2]}) if factor > 0 else ("Identity", {})
    scale = [node("Abs", "x", "a"), node("ReduceMean", "a", "m", axes=[1, 2, 3]), node("Mul", "m factor", "k")]
    source = model(
        [
            *scale,
            node("Sign", "x", "s"),
            node("Mul", "k s", "b"),
            node(between, "b", "p", **size),
            node("Conv", "p w", "y"),
        ],
        feed,
        "y",
        w=weights,
        factor=np.float32(factor),
    )
    ideal = model(
        [
            *scale,
            binary_sign("x", "t", "no", "sign"),
            node(between, "sign", "q", **size),
            node("Conv", "q w", "acc"),
            node("Mul", "acc k", "y"),
        ],
        feed,
        "y",
        w=weights,
        t=np.float32(threshold),
        no=NO_FLIP,
        factor=np.float32(factor),
    )
    return source, ideal, feed


@pytest.mark.parametrize("factor", [1, -0.3])
def test_a_scaled_sign_is_compared_without_its_scale(factor: float) -> None:
    found = rows(*scaled(0, factor))
    assert (found["sign"].elements, found["sign"].zeros, found["sign"].differs) == (3 * 8 * 36, 1, False)
    assert found["y"].beyond == found["y"].outside == 0
    wrong = rows(*scaled(0.25, factor))
    assert wrong["sign"].flips_outside > 0
    assert wrong["y"].beyond == 0, "the layer is fed with the source's own signs"


# --- Other kinds of layers ----------------------------------------------------------------------------------------

Build = Callable[[], tuple[list[NodeProto], list[NodeProto], dict[str, Array], dict[str, Array]]]


def conv1d() -> Any:
    weights = plus_minus(4, 8, 3)
    feed = {"x": floats(2, 8, 9)}
    own = [node("Sign", "x", "b"), node("Conv", "b w", "y")]
    return own, feed, {"w": weights * np.float32(0.3)}, {"signs": weights}, "Conv"


def transposed() -> Any:
    weights = plus_minus(8, 4, 3, 3)
    feed = {"x": floats(2, 8, 5, 5)}
    own = [node("Sign", "x", "b"), node("ConvTranspose", "b w", "y", strides=[2, 2])]
    return own, feed, {"w": weights * np.float32(0.3)}, {"signs": weights}, "ConvTranspose"


@pytest.mark.parametrize("build", [conv1d, transposed])
def test_other_convolutions(build: Callable[[], Any]) -> None:
    own, feed, weights, signs, op = build()
    source = model(own, feed, "y", **weights)
    attributes = {a.name: helper.get_attribute_value(a) for a in own[1].attribute}

    def ideal(values: Array) -> onnx.ModelProto:
        nodes = [binary_sign("x", "t", "no", "b"), node(op, "b signs", "acc", **attributes)]
        nodes.append(node("Mul", "acc alpha", "y"))
        return model(nodes, feed, "y", signs=values, t=ZERO, no=NO_FLIP, alpha=np.float32(0.3))

    found = rows(source, ideal(signs["signs"]), feed)["y"]
    assert isinstance(found, TensorRow)
    assert found.differing > 0
    assert found.beyond == 0
    assert found.spread == 0
    wrong = signs["signs"].copy()
    wrong.reshape(-1)[0] *= -1
    assert rows(source, ideal(wrong), feed)["y"].beyond > 0


def test_a_product_of_two_activations() -> None:
    feed = {"x": floats(2, 3, 40), "z": floats(2, 40, 3)}
    source = model(
        [node("Sign", "x", "a"), node("Mul", "a scale", "p"), node("Sign", "z", "b"), node("MatMul", "p b", "y")],
        feed,
        "y",
        scale=np.float32(0.3),
    )

    def ideal(scale: float) -> onnx.ModelProto:
        nodes = [binary_sign("x", "t", "no", "a"), binary_sign("z", "t", "no", "b"), node("MatMul", "a b", "acc")]
        nodes.append(node("Mul", "acc scale", "y"))
        return model(nodes, feed, "y", scale=np.float32(scale), t=ZERO, no=NO_FLIP)

    found = rows(source, ideal(0.3), feed)
    assert found["y"].differing > 0
    assert found["y"].beyond == 0
    assert rows(source, ideal(0.3001), feed)["y"].beyond > 0
    pieces = Pieces(source, {"p", "b"})
    assert pieces.roundings("y") == (1, 0)
    pieces.learn_shapes(feed | {"b": feed["z"]})
    assert pieces.roundings("y") == (1, 40), "as many as it has terms at run time"


def test_several_convolutions_in_one() -> None:
    feed, first, second = {"x": floats(2, 8, 6, 6)}, plus_minus(3, 8, 3, 3), plus_minus(5, 8, 3, 3)
    source = model(
        [
            node("Sign", "x", "b"),
            node("Conv", "b u", "y"),
            node("Conv", "b v", "z"),
            node("Concat", "y z", "o", axis=1),
        ],
        feed,
        "o",
        u=first * np.float32(0.3),
        v=second * np.float32(0.7),
    )

    def ideal(alpha: float) -> onnx.ModelProto:
        nodes = [binary_sign("x", "t", "no", "b"), node("Conv", "b w", "acc"), node("Mul", "acc alpha", "all")]
        nodes += [node("Split", "all sizes", "y z", axis=1), node("Concat", "y z", "o", axis=1)]
        scales = np.asarray([0.3] * 3 + [alpha] * 5, np.float32).reshape(1, -1, 1, 1)
        both = np.concatenate([first, second])
        return model(nodes, feed, "o", w=both, alpha=scales, sizes=np.asarray([3, 5]), t=ZERO, no=NO_FLIP)

    found = rows(source, ideal(0.7), feed)
    assert set(found) == {"b", "y", "z", "o"}
    assert all(row.beyond == 0 for row in found.values())
    wrong = rows(source, ideal(0.7001), feed)
    assert (wrong["y"].beyond, wrong["z"].beyond > 0) == (0, True)


def test_float16_is_compared_at_its_own_rounding() -> None:
    feed = {"x": floats(2, 8, 6, 6).astype(np.float16)}
    weights, alpha = plus_minus(4, 8, 3, 3), np.float16(0.3)
    source = model(
        [
            node("Sign", "x", "b"),
            node("Conv", "b w", "y"),
            node("Mul", "y scale", "z"),
            node("Sign", "z", "c"),
            node("Conv", "c v", "o"),
        ],
        feed,
        "o",
        w=(weights * alpha).astype(np.float16),
        v=plus_minus(2, 4, 1, 1).astype(np.float16),
        scale=np.float16(0.7),
    )

    def ideal(scale: float, threshold: float = 0) -> onnx.ModelProto:
        half, single = TensorProto.FLOAT16, TensorProto.FLOAT
        nodes = [
            node("Cast", "x", "x32", to=single),
            binary_sign("x32", "t", "no", "sign"),
            node("Conv", "sign signs", "acc"),
            node("Mul", "acc alpha", "y32"),
            node("Cast", "y32", "y", to=half),
            node("Mul", "y scale", "z"),
            node("Cast", "z", "z32", to=single),
            binary_sign("z32", "u", "no", "d"),
            node("Conv", "d v", "o32"),
            node("Cast", "o32", "o", to=half),
        ]
        own = numpy_helper.to_array(next(t for t in source.graph.initializer if t.name == "v")).astype(np.float32)
        return model(
            nodes,
            feed,
            "o",
            signs=weights,
            alpha=np.float32(alpha),
            v=own,
            t=ZERO,
            u=np.float32(threshold),
            scale=np.float16(scale),
            no=NO_FLIP,
        )

    found = rows(source, ideal(0.7), feed)
    assert set(found) == {"sign", "y", "z", "d", "o"}
    assert all(row.beyond == 0 for row in found.values())
    assert found["y"].bound > 2**-11
    wrong = rows(source, ideal(0.75, 0.5), feed)
    assert wrong["z"].beyond > 0
    assert wrong["d"].flips_outside > 0


# --- Coverage -----------------------------------------------------------------------------------------------------


def test_channels_that_cannot_change_are_proved() -> None:
    """Channel 0 cannot reach its threshold (27 terms, threshold 28), channel 1 can, channel 2 always does."""
    feed = {"x": np.abs(floats(1, 3, 5, 5))}
    thresholds = np.asarray([28, -26, -27], np.float32).reshape(3, 1, 1)
    weights = np.ones((3, 3, 3, 3), np.float32)
    weights[1] = -1
    ideal = model(
        [
            binary_sign("x", "t", "no", "a"),
            node("Conv", "a w", "y"),
            binary_sign("y", "u", "no", "b"),
            node("Conv", "b w", "z"),
        ],
        feed,
        "z",
        w=weights,
        t=ZERO,
        u=thresholds,
        no=NO_FLIP,
    )
    coverage = Coverage(ideal)
    coverage.count(Runner(ideal, ["a", "b"]).run(feed))
    a, b = coverage.rows()
    assert (a.both, a.never, a.proved) == (0, [0, 1, 2], [])
    assert (b.both, b.never, b.proved) == (0, [1], [0, 2])
    coverage.count(Runner(ideal, ["a", "b"]).run({"x": -feed["x"]}))
    a, b = coverage.rows()
    assert (a.both, a.never) == (3, [])
    assert (b.both, b.never, b.proved) == (1, [], [0, 2])
