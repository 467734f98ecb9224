"""Ideal graphs of every kind of layer, lowered: the same bits as the ideal graph itself, with the library and without.

The graphs are written directly, as the contract in `docs/ops.md` states them, and not by the front end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from networks import Builder
from onnx import TensorProto, helper
from test_property import assert_same_bits, run

from binarize_onnx import io, opset, shapes
from binarize_onnx.passes.base import Context, tidy
from binarize_onnx.pipeline import lower
from binarize_onnx.verify.exact import ExactCheck
from binarize_onnx.verify.session import Runner

Array = npt.NDArray[Any]
LAYERS = ("Conv", "ConvTranspose", "MatMul")
# Older onnx infers no shape through the body of a Level; a product of unknown rank then stays float.
SHAPES_BEHIND_LEVEL = tuple(int(part) for part in onnx.__version__.split(".")[:2]) >= (1, 23)


class Ideal(Builder):
    """Writes ideal graphs: every Conv, ConvTranspose and MatMul in them is a binary layer."""

    def __init__(self, seed: int) -> None:
        super().__init__(np.random.default_rng(seed))
        self.opset = 0  # any
        self.inputs: dict[str, tuple[Array, tuple[Any, ...]]] = {}

    def input(self, *shape: int, dims: tuple[Any, ...] | None = None, values: Array | None = None) -> str:
        """A graph input of floats; `dims` is what the model says of its shape."""
        name = f"x{len(self.inputs)}"
        data = self.floats(*shape) if values is None else values
        self.inputs[name] = (data, shape if dims is None else dims)
        return name

    def binary(self, x: str, threshold: Any = 0.0, flip: Any = False, x_low: int = -1) -> str:
        """A BinarySign; parameters given by name are run-time tensors."""
        given = [threshold if isinstance(threshold, str) else self.constant(threshold)]
        given += [flip if isinstance(flip, str) else self.constant(flip, np.bool_)]
        return self.node("BinarySign", x, *given, domain=opset.IDEAL_DOMAIN, x_low=x_low)

    def level(self, x: str, threshold: Any) -> str:
        return self.node("Level", x, self.constant(threshold), domain=opset.IDEAL_DOMAIN)

    def ints(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def weights(self, *shape: int) -> str:
        """±1, sometimes with zeros among them."""
        signs = self.signs(*shape)
        return self.constant(np.where(self.rng.random(shape) < 0.3, 0, signs) if self.chance(0.2) else signs)

    def layer(self, op: str, x: str, weights: str, **attributes: Any) -> str:
        rank = len(attributes["strides"])
        return self.node(op, x, weights, **{"dilations": [1] * rank, "group": 1, **attributes})

    def check(
        self,
        *outputs: str,
        rank: int,
        lacks: tuple[str, ...] = (),
        has: tuple[str, ...] = (),
        floats: tuple[str, ...] = (),
        code: str = "",
        kind: int = TensorProto.FLOAT,
    ) -> onnx.GraphProto:
        """Lower the graph and compare; returns the lowered graph.

        `lacks` and `has` name operators; `floats` are layers that stay so, `code` the reason; `kind` that of outputs.
        """
        graph = helper.make_graph(
            self.nodes,
            "ideal",
            [
                helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(data.dtype), d)
                for n, (data, d) in self.inputs.items()
            ],
            [helper.make_tensor_value_info(o, kind, [f"{o}.{axis}" for axis in range(rank)]) for o in outputs],
            self.initializers,
        )
        imports = [
            helper.make_opsetid("", self.opset or self.pick(13, 17, 19)),
            helper.make_opsetid(opset.IDEAL_DOMAIN, 1),
        ]
        model = helper.make_model(graph, opset_imports=imports, ir_version=8)
        model.functions.extend(opset.functions_in_use(model))
        onnx.checker.check_model(model)
        feeds = {name: data for name, (data, _) in self.inputs.items()}
        wanted = run(model, feeds, library=False)
        packed, codes = lowered(model)
        assert_same_bits(run(packed, feeds, library=False), wanted)
        assert_same_bits(run(packed, feeds, library=True), wanted)
        if self.chance(0.3):
            inside = ExactCheck(model, packed)
            inside.compare(feeds, Runner(packed, inside.read_from_candidate).run(feeds))
            assert inside.found.equal, inside.found
        ops = [node.op_type for node in packed.graph.node]
        assert not {*LAYERS, *lacks} - {*floats} & set(ops), ops
        assert {*has, *floats} <= set(ops), ops
        assert codes == ([code] if code else [])
        return packed.graph


def lowered(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """The packed form of an ideal graph, and the reasons for what stayed float."""
    context = Context(io.import_graph(model), shapes.infer(model))
    context.binary |= {node.name for node in context.graph.nodes if node.op in LAYERS}
    tidy(context.graph)
    lower(context)
    result = io.export_graph(context.graph, model, {})
    onnx.checker.check_model(result)
    return result, [str(reason.code) for reason in context.journal.skipped.values()]


def kinds(graph: onnx.GraphProto) -> list[str]:
    return [node.op_type for node in graph.node]


def affine(b: Ideal, x: str, shape: tuple[int, ...]) -> str:
    """Mul, Add and PRelu, each for every channel or for all."""
    x = b.node("Mul", x, b.constant(b.floats(*shape)))
    x = b.node("Add", x, b.constant(b.floats(*shape)))
    return b.node("PRelu", x, b.constant(np.abs(b.floats(*shape)))) if b.chance(0.5) else x


# --- One dimension -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_one_dimension(seed: int) -> None:
    """Two or three layers with steps, pools, residuals and pads between them, then perhaps a dense one."""
    b = Ideal(seed)
    channels, length = b.pick(1, 3, 32, 33, 64), b.pick(1, 9, 16)
    x = b.input(2, channels, length, dims=("N", channels, b.pick(length, "L")))
    dynamic = isinstance(b.inputs[x][1][2], str)
    for _ in range(b.pick(2, 3)):
        shortcut, same = x, channels
        bits = b.binary(x, b.floats(channels, 1) if b.chance(0.5) else 0.0)
        if b.chance(0.3) and length > 3:
            bits = b.node("MaxPool", bits, kernel_shape=[3], strides=[2], pads=[1, 1])
            length, shortcut = (length - 1) // 2 + 1, ""
        kernel, stride, dilation = b.pick(1, 3, 5), b.pick(1, 1, 2), b.pick(1, 2)
        reach = dilation * (kernel - 1) + 1
        pads = [reach // 2, reach // 2]
        if b.chance(0.3) and kernel > 1:
            bits = b.node("Pad", bits, b.ints(0, 0, pads[0], 0, 0, pads[1]), b.constant(b.pick(-1.0, 1.0)))
            after, pads = (length + 2 * pads[0] - reach) // stride + 1, [0, 0]
        else:
            after = (length + sum(pads) - reach) // stride + 1
        group = 2 if channels % 2 == 0 and b.chance(0.3) else 1
        outputs = channels if b.chance(0.5) else 2 * b.pick(2, 16, 20)
        x = b.layer(
            "Conv",
            bits,
            b.weights(outputs, channels // group, kernel),
            kernel_shape=[kernel],
            strides=[stride],
            dilations=[dilation],
            pads=pads,
            group=group,
        )
        x = affine(b, x, b.pick((outputs, 1), (1, outputs, 1), (1,)))
        if shortcut and (outputs, after) == (same, length):
            x = b.node("Add", *b.pick((x, shortcut), (shortcut, x)))
        channels, length = outputs, after
    if not dynamic and b.chance(0.5):
        flat = b.node("Flatten", b.binary(x), axis=1)
        b.check(b.node("MatMul", flat, b.weights(channels * length, 7)), rank=2)
        return
    b.check(x, rank=3)


def test_one_dimension_between_layers_is_no_float() -> None:
    """From sign to sign nothing is left between two layers: the first writes the second one's bits."""
    b = Ideal(0)
    x = b.input(2, 32, 9, dims=("N", 32, "L"))
    y = affine(
        b, b.layer("Conv", b.binary(x), b.weights(32, 32, 3), kernel_shape=[3], strides=[1], pads=[1, 1]), (32, 1)
    )
    bits = b.node("MaxPool", b.binary(y), kernel_shape=[2], strides=[2])
    z = b.layer("Conv", bits, b.weights(8, 32, 3), kernel_shape=[3], strides=[1], pads=[1, 1])
    graph = b.check(affine(b, z, (8, 1)), rank=3)
    assert kinds(graph) == ["PackSign", "Unsqueeze", "XnorConv", "PackedMaxPool", "XnorConv", "Squeeze"]


# --- Transposed convolutions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
def test_transposed_convolution(kernel: int, stride: int) -> None:
    """Kernels, strides, pads and output paddings against each other, on images down to one pixel."""
    for begin in range(kernel + 1):
        for extra in {0, (begin + 1) % stride, stride - 1}:
            b = Ideal(kernel * 1000 + stride * 100 + begin * 10 + extra)
            end, other = int(b.rng.integers(0, kernel + 1)), b.pick(0, 1)
            size = 1 + max(0, -(-(begin + end - kernel - extra + 1) // stride)) + b.pick(0, 2)
            group = b.pick(1, 2)
            channels, outputs = group * b.pick(1, 16, 33), group * b.pick(1, 5)
            x = b.input(2, channels, size, size + 1, dims=("N", channels, *b.pick(("H", "W"), (size, size + 1))))
            y = b.layer(
                "ConvTranspose",
                b.binary(x, x_low=b.pick(-1, 0)),
                b.weights(channels, outputs // group, kernel, kernel + other),
                kernel_shape=[kernel, kernel + other],
                strides=[stride, stride],
                pads=[begin, begin, end, end],
                output_padding=[extra, min(extra, stride - 1)],
                group=group,
            )
            b.check(affine(b, y, (outputs, 1, 1)) if b.chance(0.5) else y, rank=4, has=("XnorConv",))


@pytest.mark.parametrize("seed", range(12))
def test_transposed_convolution_of_two_strides(seed: int) -> None:
    b = Ideal(seed)
    strides = [b.pick(1, 2, 3), b.pick(1, 2, 3)]
    kernel = [b.pick(1, 2, 3, 4), b.pick(1, 2, 3, 4)]
    x = b.input(2, 40, 3, 4, dims=("N", 40, *b.pick(("H", "W"), (3, 4))))
    attributes = {"kernel_shape": kernel, "strides": strides, "pads": [0, 1, 1, 0]}
    y = b.layer("ConvTranspose", b.binary(x), b.weights(40, 6, *kernel), **attributes)
    b.check(affine(b, y, (6, 1, 1)), rank=4)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_transposed_convolution_in_one_dimension(stride: int) -> None:
    for seed in range(6):
        b = Ideal(seed)
        kernel, extra = b.pick(2, 3, 4), b.pick(0, stride - 1)
        x = b.input(2, 33, 5, dims=("N", 33, b.pick(5, "L")))
        attributes = {"kernel_shape": [kernel], "strides": [stride], "pads": [1, 0], "output_padding": [extra]}
        y = affine(b, b.layer("ConvTranspose", b.binary(x), b.weights(33, 6, kernel), **attributes), (6, 1))
        z = b.layer("Conv", b.binary(y), b.weights(4, 6, 3), kernel_shape=[3], strides=[1], pads=[1, 1])
        b.check(z, rank=3)


def test_steps_behind_a_transposed_convolution_are_in_its_epilogue() -> None:
    b = Ideal(0)
    x = b.input(2, 32, 5, 5)
    attributes = {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    y = b.layer("ConvTranspose", b.binary(x), b.constant(b.signs(32, 8, 4, 4)), **attributes)
    graph = b.check(
        b.node("Add", b.node("Mul", y, b.constant(b.floats(8, 1, 1))), b.constant(b.floats(8, 1, 1))), rank=4
    )
    assert kinds(graph) == ["PackSign", "XnorConv", "DepthToSpace", "Slice"]


@pytest.mark.parametrize("strides", [(2, 2), (1, 2), (2, 1), (2, 3)])
@pytest.mark.parametrize("open_size", [False, True])
def test_a_decoder_stays_on_bits(strides: tuple[int, int], open_size: bool) -> None:
    """Behind a transposed convolution whose channels fill words, words are put side by side and cut."""
    b = Ideal(sum(strides))
    x = b.input(2, 40, 4, 5, dims=("N", 40, *(("H", "W") if open_size else (4, 5))))
    attributes = {"kernel_shape": [4, 4], "strides": [*strides], "pads": [1, 1, 1, 1]}
    y = b.layer("ConvTranspose", b.binary(x), b.weights(40, 64, 4, 4), **attributes)
    bits = b.binary(affine(b, y, (64, 1, 1)), b.floats(64, 1, 1), b.rng.random((64, 1, 1)) < 0.5)
    graph = b.check(conv3(b, bits, 64), rank=4, lacks=("BinarySign", "DepthToSpace"))
    computed_shapes = open_size and strides[0] != strides[1]  # nothing is packed in front of those
    assert kinds(graph).count("PackSign") == (2 if computed_shapes else 1)


@pytest.mark.parametrize(("mode", "channels", "moves"), [("DCR", 32, True), ("DCR", 40, False), ("CRD", 32, False)])
def test_depth_to_space(mode: str, channels: int, moves: bool) -> None:
    b = Ideal(0)
    x = b.node(
        "DepthToSpace", b.input(2, 4 * channels, 3, 4, dims=("N", 4 * channels, "H", "W")), blocksize=2, mode=mode
    )
    graph = b.check(conv3(b, b.binary(x, b.floats(channels, 1, 1)), channels), rank=4)
    assert ("DepthToSpace" not in kinds(graph)) == moves


@pytest.mark.parametrize("axes", [(2, 3), (-1,), (1,)])
def test_slice(axes: tuple[int, ...]) -> None:
    b = Ideal(0)
    cut = [b.ints(*[1] * len(axes)), b.ints(*[4] * len(axes)), b.ints(*axes)]
    x = b.node("Slice", b.binary(b.input(2, 40, 5, 6), b.floats(40, 1, 1)), *cut)
    graph = b.check(conv3(b, x, 3 if axes == (1,) else 40), rank=4)
    assert ("BinarySign" not in kinds(graph)) == (axes != (1,))


# --- Products of two activations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(24))
def test_product_of_two_activations(seed: int) -> None:
    """Scores of heads, as attention writes them, and the weighted values; batch dimensions broadcast."""
    b = Ideal(seed)
    rows, depth, columns = b.pick(1, 5, 12), b.pick(1, 8, 32, 40, 64), b.pick(1, 7, 33)
    batch_a, batch_b = b.pick(((2, 3), (2, 3)), ((2, 3), (1, 3)), ((2, 3), ()), ((), (2, 3)), ((), ()))
    names = ("N", 3)[: len(batch_a)] if batch_a == batch_b else batch_a
    row, column = b.pick(rows, "M"), b.pick(columns, "L")
    a = b.input(*batch_a, rows, depth, dims=(*names, row, depth))
    leveled = b.chance(0.3) and SHAPES_BEHIND_LEVEL
    b.opset = 17 if leveled else 0
    left = b.level(a, [[[-0.5]], [[0.1]], [[0.7]]]) if leveled else b.binary(a, x_low=b.pick(-1, 0))
    if b.chance(0.5):
        right = b.input(*batch_b, columns, depth, dims=(*(names if batch_a == batch_b else batch_b), column, depth))
        order = [*range(len(batch_b)), len(batch_b) + 1, len(batch_b)]
        right = b.node("Transpose", b.binary(right), perm=order)
    else:
        right = b.input(*batch_b, depth, columns, dims=(*(names if batch_a == batch_b else batch_b), depth, column))
        right = b.binary(right, b.floats(1))
    y = b.node("MatMul", left, right)
    if b.chance(0.6):
        y = b.node("Mul", y, b.constant(b.pick(0.125, 0.3)))
        y = b.node("Add", y, b.constant(b.floats(1))) if b.chance(0.5) else y
    graph = b.check(y, rank=2 + max(len(batch_a), len(batch_b)), lacks=("Mul", "BinarySign", "Level"))
    assert "XnorMatMul" in kinds(graph)


def test_a_head_is_packed_where_its_values_are() -> None:
    """Between the sign and the product of heads, Reshape and Transpose move words."""
    b = Ideal(0)

    def heads(perm: list[int]) -> str:
        x = b.input(2, 5, 96, dims=("N", 5, 96))
        return b.node("Transpose", b.node("Reshape", b.binary(x), b.ints(0, 5, 3, 32)), perm=perm)

    y = b.node("MatMul", heads([0, 2, 1, 3]), heads([0, 2, 3, 1]))
    graph = b.check(y, rank=4, lacks=("BinarySign",))
    packs = [node for node in graph.node if node.op_type == "PackSign"]
    assert {node.input[0] for node in packs} == {"x0", "x1"}


@pytest.mark.parametrize(("case", "code"), [("depth", "dynamic-shape"), ("right", "mixed-signs")])
def test_a_product_that_does_not_fit_stays_float(case: str, code: str) -> None:
    b = Ideal(0)
    x = b.input(2, 5, 8, dims=("N", 5, "K" if case == "depth" else 8))
    z = b.input(2, 8, 6, dims=("N", "K" if case == "depth" else 8, 6))
    y = b.node("MatMul", b.binary(x), b.binary(z, x_low=0 if case == "right" else -1))
    graph = b.check(y, rank=3, floats=("MatMul",), code=code)
    assert kinds(graph) == ["BinarySign", "BinarySign", "MatMul"]


# --- Thresholds at run time --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (6,), (5, 1), (33, 1, 1), (2, 33, 1, 1), (2, 1, 1, 1), (33, 5, 6)])
@pytest.mark.parametrize("pooled", [False, True])
def test_run_time_threshold(shape: tuple[int, ...], pooled: bool) -> None:
    b = Ideal(len(shape))
    x, t = b.input(2, 33, 5, 6), b.input(*shape)
    bits = b.binary(x, b.node("Add", t, b.constant(0.25)), b.node("Greater", t, b.constant(0)) if shape else True)
    if pooled:
        bits = b.node("MaxPool", bits, kernel_shape=[2, 2])
    y = b.layer("Conv", bits, b.weights(4, 33, 3, 3), kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    b.check(y, rank=4, lacks=("BinarySign",))


@pytest.mark.parametrize("shape", [(), (40,), (3, 1), (2, 1, 1)])
def test_run_time_threshold_of_a_dense_layer(shape: tuple[int, ...]) -> None:
    b = Ideal(len(shape))
    bits = b.binary(b.input(2, 3, 40), b.input(*shape))
    b.check(b.node("MatMul", bits, b.weights(40, 5)), rank=3, lacks=("BinarySign",))


# --- Packing above what only moves elements ----------------------------------------------------------------------


def conv3(b: Ideal, bits: str, channels: int) -> str:
    return b.layer("Conv", bits, b.weights(4, channels, 3, 3), kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])


@pytest.mark.parametrize("channels", [5, 32, 40])
def test_channels_last(channels: int) -> None:
    """A network of channels-last tensors: its Transposes move words, and two in a row are none."""
    b = Ideal(channels)
    x = b.input(2, 6, 7, channels, dims=("N", "H", "W", channels))
    bits = b.binary(x, b.floats(channels), b.rng.random(channels) < 0.5)
    y = conv3(b, b.node("Transpose", bits, perm=[0, 3, 1, 2]), channels)
    last = b.node("Add", b.node("Transpose", y, perm=[0, 2, 3, 1]), b.constant(b.floats(4)))
    z = conv3(b, b.node("Transpose", b.binary(last), perm=[0, 3, 1, 2]), 4)
    graph = b.check(z, rank=4, lacks=("BinarySign",))
    assert kinds(graph) == ["PackSign", "Transpose", "XnorConv", "XnorConv"]


def test_transposes_in_a_row() -> None:
    """Neither Transpose undoes the other: one is left, of words."""
    b = Ideal(0)
    bits = b.node("Transpose", b.binary(b.input(2, 3, 4, 40), b.floats(4, 40)), perm=[1, 3, 0, 2])
    graph = b.check(conv3(b, b.node("Transpose", bits, perm=[2, 1, 3, 0]), 40), rank=4, lacks=("BinarySign",))
    assert kinds(graph) == ["PackSign", "Transpose", "XnorConv"]


@pytest.mark.parametrize("parts", [(32, 5), (64, 32, 1), (33, 5), (8, 40), (8,)])
def test_concat_of_signs(parts: tuple[int, ...]) -> None:
    b = Ideal(sum(parts))
    signs = [b.binary(b.input(2, c, 5, 5), b.floats(c, 1, 1)) for c in parts]
    graph = b.check(conv3(b, b.node("Concat", *signs, axis=1), sum(parts)), rank=4)
    whole = all(c % 32 == 0 for c in parts[:-1])
    assert ("BinarySign" not in kinds(graph)) == whole


@pytest.mark.parametrize("axis", [1, 3])
def test_sign_of_a_concat(axis: int) -> None:
    """Every part gets its own thresholds."""
    b = Ideal(0)
    parts = [b.input(2, c, 5, w) for c, w in (((32, 6), (64, 6), (3, 6)) if axis == 1 else ((40, 2), (40, 4)))]
    x = b.node("Concat", *parts, axis=axis)
    channels = 99 if axis == 1 else 40
    bits = b.binary(x, b.floats(channels, 1, 6), b.rng.random((channels, 1, 1)) < 0.5)
    b.check(conv3(b, bits, channels), rank=4, lacks=("BinarySign",))


def test_concat_on_another_axis() -> None:
    b = Ideal(1)
    signs = [b.binary(b.input(2, 40, 3, w), b.floats(40, 1, 1)) for w in (2, 5)]
    b.check(conv3(b, b.node("Concat", *signs, axis=-1), 40), rank=4, lacks=("BinarySign",))


@pytest.mark.parametrize("move", ["squeeze", "unsqueeze", "keep", "split", "split-odd", "join", "join-odd", "flatten"])
def test_reshaped_signs(move: str) -> None:
    b = Ideal(0)
    moves: dict[str, tuple[tuple[int, ...], str, str, tuple[int, ...]]] = {
        "squeeze": ((2, 1, 40), "Squeeze", b.ints(1), (2, 40)),
        "unsqueeze": ((2, 40), "Unsqueeze", b.ints(0, -2), (1, 2, 1, 40)),
        "keep": ((2, 3, 40), "Reshape", b.ints(-1, 40), (6, 40)),
        "split": ((2, 96), "Reshape", b.ints(0, -1, 32), (2, 3, 32)),
        "split-odd": ((2, 80), "Reshape", b.ints(0, 2, 40), (2, 2, 40)),
        "join": ((2, 3, 32), "Reshape", b.ints(0, -1), (2, 96)),
        "join-odd": ((2, 3, 40), "Reshape", b.ints(0, -1), (2, 120)),
        "flatten": ((2, 40, 1, 1), "Flatten", "", (2, 40)),
    }
    before, op, operand, after = moves[move]
    x = b.input(*before, dims=("N", *before[1:]))
    bits = b.node(op, b.binary(x, b.floats(before[-1] if before[-1] > 1 else 1)), *([operand] if operand else []))
    graph = b.check(b.node("MatMul", bits, b.weights(after[-1], 5)), rank=len(after))
    assert ("BinarySign" in kinds(graph)) == move.endswith("odd")


@pytest.mark.parametrize("channels", [32, 40])
@pytest.mark.parametrize("low", [-1, 0])
def test_flattened_signs(channels: int, low: int) -> None:
    """Whatever the number of channels: pooled, flattened, and read by a dense layer."""
    b = Ideal(channels)
    bits = b.binary(b.input(2, channels, 4, 4), b.floats(channels, 1, 1), x_low=low)
    flat = b.node("Flatten", b.node("MaxPool", bits, kernel_shape=[2, 2], strides=[2, 2]), axis=1)
    b.check(b.node("MatMul", flat, b.weights(channels * 4, 5)), rank=2)


def steps(b: Ideal, count: int, *shape: int) -> Array:
    """Ascending thresholds, for each channel its own."""
    return np.sort(b.floats(count, *shape), axis=0)


@pytest.mark.skipif(not SHAPES_BEHIND_LEVEL, reason="this onnx infers no shape behind a Level")
@pytest.mark.parametrize("count", [2, 3, 4, 7])
@pytest.mark.parametrize("per_channel", [False, True])
def test_pooled_levels(count: int, per_channel: bool) -> None:
    """Values are pooled, then their levels are encoded; no plane of bits is pooled."""
    b = Ideal(count)
    levels = b.level(b.input(2, 33, 6, 6), steps(b, count, *((33, 1, 1) if per_channel else (1, 1))))
    pooled = b.node("MaxPool", levels, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    b.check(conv3(b, pooled, 33), rank=4, lacks=("Level", "PackedMaxPool"), has=("MaxPool",))


def test_levels_that_no_threshold_can_follow_stay_float() -> None:
    """The thresholds differ within a window: the pool of levels is no level of the pool."""
    b = Ideal(0)
    levels = b.level(b.input(2, 33, 6, 6), steps(b, 3, 33, 6, 6))
    y = conv3(b, b.node("MaxPool", levels, kernel_shape=[2, 2], strides=[2, 2]), 33)
    b.check(y, rank=4, floats=("Conv",), code="threshold-shape")


@pytest.mark.skipif(not SHAPES_BEHIND_LEVEL, reason="this onnx infers no shape behind a Level")
@pytest.mark.parametrize("carrier", ["Flatten", "Transpose", "Reshape", "MaxPool1d"])
def test_moved_levels(carrier: str) -> None:
    b = Ideal(0)
    b.opset = 17  # below, onnx infers no shape through the body of a Level
    if carrier == "MaxPool1d":
        levels = b.level(b.input(2, 33, 8), steps(b, 3, 33, 1))
        bits = b.node("MaxPool", levels, kernel_shape=[2], strides=[2])
        y, rank = b.layer("Conv", bits, b.weights(4, 33, 3), kernel_shape=[3], strides=[1], pads=[1, 1]), 3
    elif carrier == "Transpose":
        bits = b.node("Transpose", b.level(b.input(2, 5, 6, 33), steps(b, 3, 33)), perm=[0, 3, 1, 2])
        y, rank = conv3(b, bits, 33), 4
    else:
        levels = b.level(b.input(2, 8, 3, 3, dims=("N", 8, 3, 3)), steps(b, 3, 8, 1, 1))
        tail = [b.ints(-1, 72)] if carrier == "Reshape" else []
        y, rank = b.node("MatMul", b.node(carrier, levels, *tail), b.weights(72, 5)), 2
    b.check(y, rank=rank, lacks=("Level",))


# --- Gates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "constant"),
    [
        ((2, 1, 1, 1), False),
        ((2, 4, 1, 1), False),
        ((2, 1, 5, 6), False),
        ((4, 5, 6), True),
        ((1, 4, 5, 6), True),
        ((1, 5, 6), True),
        ((2, 4, 5, 6), True),
        ((4, 1, 1), True),
        ((1,), True),
    ],
)
@pytest.mark.parametrize("scaled", [False, True])
def test_gates(shape: tuple[int, ...], constant: bool, scaled: bool) -> None:
    """A gate goes to its slot, and so does a second constant scale: a BatchNormalization's behind alpha."""
    b = Ideal(len(shape))
    y = conv3(b, b.binary(b.input(2, 33, 5, 6)), 33)
    if scaled:
        y = b.node("Mul", y, b.constant(b.floats(4, 1, 1)))
    y = b.node("Mul", y, b.constant(b.floats(*shape)) if constant else b.input(*shape))
    b.check(b.node("Add", y, b.constant(b.floats(4, 1, 1))), rank=4, lacks=("Mul",))


def test_a_constant_gate_needs_a_fixed_size() -> None:
    b = Ideal(0)
    y = conv3(b, b.binary(b.input(2, 33, 5, 6, dims=("N", 33, "H", "W"))), 33)
    b.check(b.node("Mul", y, b.constant(b.floats(4, 5, 6))), rank=4, has=("Mul",))


# --- float16 -----------------------------------------------------------------------------------------------------


def halves(b: Ideal, *shape: int) -> str:
    return b.input(*shape, values=(b.floats(*shape) * 3).astype(np.float16))


@pytest.mark.parametrize("seed", range(16))
def test_float16_around_layers(seed: int) -> None:
    """Casts on both sides of float32 layers: the sign reads float16, the layer writes it."""
    b = Ideal(seed)
    channels = b.pick(33, 64)
    x = halves(b, 2, channels, 5, 6)
    wide = b.node("Cast", x, to=TensorProto.FLOAT)
    y = b.binary(wide, b.floats(channels, 1, 1))
    if b.chance(0.3):
        y = b.node("MaxPool", y, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    y = b.layer("Conv", y, b.weights(channels, channels, 3, 3), kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    if b.chance(0.8):
        y = affine(b, y, (channels, 1, 1))
    residual = b.chance(0.5)
    y = b.node("Cast", b.node("Add", y, wide) if residual else y, to=TensorProto.FLOAT16)
    if b.chance(0.4):  # another layer reads the rounded numbers, and perhaps the caller too
        z = conv3(b, b.binary(b.node("Cast", y, to=TensorProto.FLOAT), b.floats(channels, 1, 1)), channels)
        z = b.node("Cast", z, to=TensorProto.FLOAT16)
        b.check(z, *b.pick((), (y,)), rank=4, kind=TensorProto.FLOAT16, lacks=("BinarySign",))
        return
    b.check(y, rank=4, kind=TensorProto.FLOAT16, lacks=("BinarySign",))


@pytest.mark.parametrize("shown", [False, True])
def test_a_long_sum_in_float16(shown: bool) -> None:
    """Sums beyond 2048 are rounded before the threshold: odd ones are not reached, and 4003 becomes 4004."""
    b = Ideal(0)
    shares = np.linspace(0.9, 1, 64)[:, None]
    x = b.input(64, 4003, values=np.where(b.rng.random((64, 4003)) < shares, 1, -1).astype(np.float32))
    y = b.node("MatMul", b.binary(x), b.constant(np.ones((4003, 200), np.float32)))
    half = b.node("Cast", y, to=TensorProto.FLOAT16)
    thresholds = np.concatenate([np.arange(3820, 4019), [4100]]).astype(np.float32)
    z = b.node("MatMul", b.binary(b.node("Cast", half, to=TensorProto.FLOAT), thresholds), b.weights(200, 3))
    z = b.node("Cast", z, to=TensorProto.FLOAT16)
    b.check(z, *([half] if shown else []), rank=2, kind=TensorProto.FLOAT16, lacks=("BinarySign",))


def test_a_cast_to_another_type_stays() -> None:
    b = Ideal(0)
    y = conv3(b, b.binary(b.input(2, 33, 5, 6)), 33)
    b.check(b.node("Cast", y, to=TensorProto.DOUBLE), rank=4, kind=TensorProto.DOUBLE, has=("Cast",))


def test_a_float32_residual_stays_in_front_of_the_cast() -> None:
    b = Ideal(0)
    y = conv3(b, b.binary(b.input(2, 33, 5, 6)), 33)
    y = b.node("Cast", b.node("Add", y, b.input(2, 4, 5, 6)), to=TensorProto.FLOAT16)
    b.check(y, rank=4, kind=TensorProto.FLOAT16, has=("Cast",))
