"""Layers whose outputs are joined, shortcuts that repeat channels, and levels behind chains: exact, in few nodes."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from networks import Builder
from onnx import TensorProto, helper
from test_lowering import SHAPES_BEHIND_LEVEL, Ideal, affine, kinds

from binarize_onnx import convert, stacked


def layer(b: Ideal, bits: str, channels: int, outputs: int, convolution: bool, stride: int = 1) -> str:
    """A 3x3 convolution or a product with a matrix, and steps behind it."""
    if not convolution:
        return affine(b, b.node("MatMul", bits, b.weights(channels, outputs)), (outputs,))
    pads, strides = [1, 1, 1, 1], [stride, stride]
    y = b.layer("Conv", bits, b.weights(outputs, channels, 3, 3), kernel_shape=[3, 3], strides=strides, pads=pads)
    return affine(b, y, b.pick((outputs, 1, 1), (1, outputs, 1, 1), (1,)))


@pytest.mark.parametrize("seed", range(60))
def test_layers_side_by_side(seed: int) -> None:
    """Two to four layers on the same bits, some with shortcuts, joined; then more steps and a layer."""
    b = Ideal(seed)
    convolution, channels = b.chance(0.6), b.pick(3, 32, 33, 40)
    x = b.input(2, *((channels, 5, 6) if convolution else (4, channels)))
    tail = (1, 1) if convolution else ()
    bits, shortcut = b.binary(x, b.floats(channels, *tail)), b.pick("one", "one", "none", "some")
    parts = []
    for _ in range(b.pick(2, 2, 3, 4)):
        width = channels if shortcut == "one" or b.chance(0.6) else b.pick(1, 32, 64)
        y = layer(b, bits, channels, width, convolution)
        if width == channels and (shortcut == "one" or (shortcut == "some" and b.chance(0.5))):
            y = b.node("Add", *b.pick((y, x), (x, y)))
        parts.append((y, width))
    total = sum(width for _, width in parts)
    z = b.node("Concat", *(y for y, _ in parts), axis=1 if convolution else b.pick(-1, 2))
    z = affine(b, z, (total, *tail))
    again = layer(b, b.binary(z), total, 7, convolution)
    outputs = (again, z) if b.chance(0.7) else (again,)
    graph = b.check(*outputs, rank=4 if convolution else 3)
    if shortcut in ("one", "none") and z in outputs:  # otherwise it may be words that are joined
        assert "Concat" not in kinds(graph)
        assert sum(op.startswith("Xnor") for op in kinds(graph)) == 2


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("repeat", ["Concat", "Tile"])
def test_shortcut_with_repeated_channels(repeat: str, seed: int) -> None:
    b = Ideal(seed)
    convolution, channels, times = b.chance(0.6), b.pick(1, 3, 32, 33), b.pick(2, 3)
    x = b.input(2, *((channels, 4, 6) if convolution else (3, channels)))
    axis = 1 if convolution else 2
    y = layer(b, b.binary(x), channels, times * channels, convolution)
    if repeat == "Concat":
        shortcut = b.node("Concat", *[x] * times, axis=b.pick(axis, axis - (4 if convolution else 3)))
    else:
        shortcut = b.node("Tile", x, b.ints(*(times if i == axis else 1 for i in range(4 if convolution else 3))))
    graph = b.check(b.node("Add", *b.pick((y, shortcut), (shortcut, y))), rank=4 if convolution else 3, lacks=(repeat,))
    assert kinds(graph) == ["PackSign", "XnorConv" if convolution else "XnorMatMul"]


@pytest.mark.parametrize("seed", range(30))
def test_growing_and_improving(seed: int) -> None:
    """MeliusNet: layers append channels, and add to the last ones; no float is copied for it inside a stage."""
    b = Ideal(seed)
    channels, growth = b.pick(32, 40, 64), b.pick(32, 32, 33)
    x = b.input(2, channels, 5, 6)
    for _ in range(b.pick(1, 2, 3)):
        new = layer(b, b.binary(x, b.floats(channels, 1, 1)), channels, growth, True)
        x, channels = b.node("Concat", x, new, axis=b.pick(1, -3)), channels + growth
        better = layer(b, b.binary(x, b.floats(channels, 1, 1)), channels, growth, True)
        border, axis = b.ints(b.pick(-growth, channels - growth)), b.ints(b.pick(1, -3))
        old = b.node("Slice", x, border, b.ints(b.pick(channels, 2**62)), axis)
        kept = b.node("Slice", x, b.ints(0), border, axis, b.ints(1))
        x = b.node("Concat", kept, b.node("Add", *b.pick((old, better), (better, old))), axis=1)
    again = layer(b, b.binary(x), channels, 7, True)
    graph = b.check(*((again, x) if b.chance(0.3) else (again,)), rank=4, lacks=("Slice", "Add"))
    floats = [
        n
        for n in graph.node
        if n.op_type == "Concat" and not n.input[0].endswith((".bits", ".1", ".2", ".3", ".4", ".5"))
    ]
    if growth == 32 and channels % 32 == 0 and len(graph.output) == 1:
        assert not floats


@pytest.mark.skipif(not SHAPES_BEHIND_LEVEL, reason="this onnx infers no shape behind a Level")
@pytest.mark.parametrize("seed", range(60))
def test_levels_behind_a_chain(seed: int) -> None:
    """Steps in front of a Level, rising in some channels and falling in others, and a layer in front of them."""
    b = Ideal(seed)
    b.opset = 17
    channels, count = b.pick(3, 32, 33), b.pick(2, 3, 3, 7, 15)
    x = b.input(2, channels, 5, 6)
    source = layer(b, b.binary(x), channels, channels, True) if b.chance(0.5) else x
    factors = b.floats(channels, 1, 1)
    if b.chance(0.8):
        factors = np.where(factors == 0, np.float32(1), factors)
    y = b.node("Mul", source, b.constant(factors))
    if b.chance(0.7):
        y = b.node("Add", y, b.constant(b.floats(channels, 1, 1)))
    if b.chance(0.5):
        y = b.node("Clip", y, b.constant(-2.5), b.constant(3.0))
    steps = np.sort(b.rng.normal(size=(count, channels if b.chance(0.5) else 1, 1, 1)).astype(np.float32), axis=0)
    z = layer(b, b.level(y, steps), channels, 5, True)
    graph = b.check(*((z, y) if b.chance(0.2) else (z,)), rank=4, lacks=("Level",))
    if np.all(factors != 0) and np.abs(steps).max() < 2 and len(graph.output) == 1:
        assert not {"Mul", "Add", "Clip"} & set(kinds(graph))


def test_every_layer_is_accounted_for() -> None:
    """The report has a line for each layer, and the file says which node computes it: also for one of several terms."""
    b = Builder(np.random.default_rng(0))
    bits = b.node("Sign", "x")
    makes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    first, *terms = (b.node("Conv", bits, b.constant(b.signs(8, 8, 3, 3)), **makes) for _ in range(4))
    second = b.node("Conv", bits, b.constant(b.signs(8, 8, 3, 3)), **makes)
    joined = b.node("Concat", first, second, terms[0], axis=1)
    shape = [1, 8, 6, 6]
    graph = helper.make_graph(
        b.nodes,
        "doubling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (joined, *terms[1:])],
        b.initializers,
    )
    result = convert(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert stacked.read(result.model) == {"Conv_2": "Conv_1", "Conv_5": "Conv_1"}
    reasons = {line.name: line.reason for line in result.report.layers}
    assert reasons["Conv_5"].endswith("computed together with `Conv_1`")
    assert "its filters stand beside" in reasons["Conv_1"]
    assert result.report.summary.binary_layers == 5


def test_many_layers_that_grow_have_shapes() -> None:
    """However often channels are concatenated, no float step is left."""
    b = Ideal(0)
    x, channels = b.input(1, 32, 2, 2), 32
    for _ in range(18):
        x, channels = b.node("Concat", x, layer(b, b.binary(x), channels, 32, True), axis=1), channels + 32
    graph = b.check(layer(b, b.binary(x), channels, 7, True), rank=4)
    assert set(kinds(graph)) == {"PackSign", "XnorConv", "Concat"}


SLOPES = [(1.0, 0.25, 1e-30, np.nextafter(np.float32(1), np.float32(0))), (0.0, 0.5, 1.0, 0.25), (0.5, 3.0, 1.0, 2.0)]


@pytest.mark.parametrize("slopes", SLOPES)
def test_prelu_in_other_operators_keeps_every_bit(slopes: tuple[float, ...]) -> None:
    """A PRelu that no epilogue takes, because two layers read what is in front of it."""
    tiny, huge = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
    # onnxruntime 1.20's own PRelu makes NaN of infinity: there it has no bits to keep.
    largest = np.inf if tuple(map(int, ort.__version__.split(".")[:2])) > (1, 20) else huge
    special = np.asarray([0.0, 1.0, tiny, 3e-38, 1e-20, 1.5, huge, largest], np.float32)
    b = Ideal(0)
    x = b.input(1, 4, 2, 8, values=np.broadcast_to(np.stack([special, -special]), (1, 4, 2, 8)).copy())
    y = b.node("PRelu", x, b.constant(np.asarray(slopes).reshape(4, 1, 1)))
    b.check(y, layer(b, b.binary(y), 4, 5, True), rank=4, lacks=("PRelu",))


def test_a_relu_in_front_of_a_sign_and_a_shortcut_stays() -> None:
    """onnxruntime fuses it with the float stem; a PRelu it would compute element by element."""
    b = Builder(np.random.default_rng(0))
    x = b.node("Relu", b.node("Conv", "x", b.constant(b.floats(8, 3, 3, 3)), pads=[1, 1, 1, 1]))
    y = b.node("Conv", b.node("Sign", x), b.constant(b.signs(8, 8, 1, 1)))
    y = b.node("Relu", b.node("Add", y, x))
    graph = helper.make_graph(
        b.nodes,
        "relu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, None)],
        b.initializers,
    )
    converted = convert(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)).model
    assert kinds(converted.graph) == ["Conv", "Relu", "PackSign", "XnorConv"]
