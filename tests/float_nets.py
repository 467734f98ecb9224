"""Small float networks of the shapes that quantization after training meets, with random weights, and samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from networks import Builder
from onnx import TensorProto, helper

Array = npt.NDArray[Any]
SAMPLES = 24


class FloatNet(Builder):
    """A network whose layers are `l0`, `l1`, ... in the order in which they were added."""

    def __init__(self) -> None:
        super().__init__(np.random.default_rng(7))
        self.layers = 0

    def layer(self, op: str, *inputs: str, **attributes: Any) -> str:
        output = self.node(op, *inputs, **attributes)
        self.nodes[-1].name = f"l{self.layers}"
        self.layers += 1
        return output

    def weights(self, *shape: int, fan: int) -> str:
        return self.constant(self.rng.normal(size=shape) / np.sqrt(fan))

    def convolve(self, x: str, outputs: int, inputs: int, kernel: int = 3, **attributes: Any) -> str:
        group = attributes.get("group", 1)
        size = (kernel,) * attributes.pop("axes", 2)
        bias = [self.constant(self.rng.normal(size=outputs))] if attributes.pop("bias", False) else []
        weights = self.weights(outputs, inputs // group, *size, fan=inputs // group * kernel ** len(size))
        attributes.setdefault("pads", [kernel // 2] * 2 * len(size))
        return self.layer("Conv", x, weights, *bias, **attributes)

    def normalize(self, x: str, channels: int) -> str:
        parameters = [1 + self.rng.normal(size=channels) / 5, *self.rng.normal(size=(2, channels)) / 5]
        variance = 0.5 + self.rng.random(channels)
        return self.node("BatchNormalization", x, *(self.constant(p) for p in (*parameters, variance)))

    def block(self, x: str, outputs: int, inputs: int, **attributes: Any) -> str:
        return self.node("Relu", self.normalize(self.convolve(x, outputs, inputs, **attributes), outputs))

    def classes(self, x: str, channels: int) -> str:
        flat = self.node("Flatten", self.node("GlobalAveragePool", x))
        return self.layer("Gemm", flat, self.weights(4, channels, fan=channels), self.constant(np.zeros(4)), transB=1)

    def model(self, output: str, inputs: dict[str, list[int | str]], rank: int = 2) -> onnx.ModelProto:
        given = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in inputs.items()]
        result = [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * rank)]
        graph = helper.make_graph(self.nodes, "float", given, result, self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def residual(batch: int | str = "N") -> onnx.ModelProto:
    """A stem, a block with a shortcut, one that halves the image with a convolution beside it, a classifier."""
    net = FloatNet()
    x = net.block("x", 32, 3)
    y = net.normalize(net.convolve(net.block(x, 32, 32), 32, 32), 32)
    x = net.node("Relu", net.node("Add", y, x))
    y = net.normalize(net.convolve(net.block(x, 64, 32, strides=[2, 2]), 64, 64), 64)
    beside = net.normalize(net.convolve(x, 64, 32, kernel=1, strides=[2, 2]), 64)
    x = net.node("Relu", net.node("Add", y, beside))
    return net.model(net.classes(x, 64), {"x": [batch, 3, 8, 8]})


def plain_forms() -> onnx.ModelProto:
    """Pools, groups, dilations, odd strides and pads, Clip(0, 6), biases of both kinds, a depthwise layer."""
    net = FloatNet()
    x = net.node("MaxPool", net.block("x", 32, 3), kernel_shape=[2, 2], strides=[2, 2])
    x = net.node("Add", net.convolve(x, 32, 32, dilations=[2, 2], pads=[2, 2, 2, 2]), net.constant(np.ones((32, 1, 1))))
    x = net.node("Clip", x, net.constant(0.0), net.constant(6.0))
    x = net.node("Relu", net.convolve(x, 64, 32, group=2, strides=[1, 2], pads=[1, 0, 0, 1]))
    x = net.node("Relu", net.normalize(net.convolve(x, 64, 64, group=64), 64))
    x = net.block(x, 40, 64, kernel=1, bias=True)
    return net.model(net.classes(x, 40), {"x": ["N", 3, 16, 16]})


def channels_last() -> onnx.ModelProto:
    """Images with their channels last, a Transpose around each convolution as tf2onnx writes them."""
    net = FloatNet()

    def around(x: str, outputs: int, inputs: int) -> str:
        y = net.convolve(net.node("Transpose", x, perm=[0, 3, 1, 2]), outputs, inputs)
        return net.node("Relu", net.node("Transpose", y, perm=[0, 2, 3, 1]))

    x = around(around(around("x", 32, 3), 64, 32), 32, 64)
    x = net.node("Transpose", x, perm=[0, 3, 1, 2])
    return net.model(net.classes(x, 32), {"x": ["N", 8, 8, 3]})


def one_dimension() -> onnx.ModelProto:
    """Convolutions of sequences."""
    net = FloatNet()
    x = net.node("Relu", net.convolve("x", 32, 4, axes=1))
    x = net.node("Relu", net.convolve(x, 64, 32, axes=1, strides=[2]))
    x = net.node("Relu", net.convolve(x, 32, 64, axes=1))
    return net.model(net.classes(x, 32), {"x": ["N", 4, 16]})


def products() -> onnx.ModelProto:
    """Tokens through MatMul with additions, then Gemm in both directions; two inputs."""
    net = FloatNet()
    x = net.node("Add", "x", "y")
    x = net.node("Add", net.layer("MatMul", x, net.weights(24, 64, fan=24)), net.constant(np.ones(64)))
    x = net.node("Relu", x)
    x = net.node("Add", net.constant(np.ones(48)), net.layer("MatMul", x, net.weights(64, 48, fan=64)))
    x = net.node("ReduceMean", net.node("Relu", x), axes=[1], keepdims=0)
    x = net.node("Relu", net.layer("Gemm", x, net.weights(64, 48, fan=48), net.constant(np.zeros(64)), transB=1))
    x = net.node(
        "Tanh", net.layer("Gemm", x, net.weights(64, 48, fan=64), net.constant(np.ones(48)), alpha=0.5, beta=2.0)
    )
    x = net.layer("Gemm", x, net.weights(4, 48, fan=48), transB=1)
    return net.model(x, {"x": ["N", 6, 24], "y": ["N", 6, 24]})


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    f.__name__: f for f in (residual, plain_forms, channels_last, one_dimension, products)
}


def samples(model: onnx.ModelProto, count: int = SAMPLES, seed: int = 0) -> dict[str, Array]:
    """Random inputs."""
    rng = np.random.default_rng(seed)
    found = {}
    for given in model.graph.input:
        shape = [d.dim_value for d in given.type.tensor_type.shape.dim][1:]
        found[given.name] = rng.normal(size=(count, *shape)).astype(np.float32)
    return found
