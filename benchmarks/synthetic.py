"""Binary networks of any size, without training: what `convert` is timed on.

resnet    ResNet-50's shape (bottlenecks 3, 4, 6, 3), weights alpha * signs; `size` multiplies its width
cones     the same, its weights written in the graph as torch exports them: a mean, a sign, a straight-through residue
chain     one narrow layer behind the other; `size` counts layers, four nodes each
dense     DenseNet: every layer's output is concatenated to what it read; `size` counts layers
foldable  one layer whose weights come from a chain of `size` constant steps
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
Weights = Callable[["Network", Array], str]  # the tensor that a layer reads, made from real weights


class Network:
    """Collects nodes and initializers; every method returns the name of the tensor that it adds."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """An initializer."""
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """A node of one output."""
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{op}_{len(self.nodes)}", **attributes))
        return output

    def real(self, *shape: int) -> Array:
        """Real weights, float32."""
        return self.rng.standard_normal(shape, np.float32)

    def conv(self, x: str, weights: str, kernel: int, stride: int = 1) -> str:
        """A convolution that keeps the image size but for its stride."""
        return self.node("Conv", x, weights, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[kernel // 2] * 4)

    def batchnorm(self, x: str, channels: int) -> str:
        """A batch normalization with a positive variance."""
        parameters = [self.real(channels) for _ in range(3)]
        variance = self.rng.random(channels, np.float32) + np.float32(0.5)
        return self.node("BatchNormalization", x, *(self.constant(p) for p in [*parameters, variance]))

    def binary(self, x: str, shape: tuple[int, int, int], weights: Weights, stride: int = 1) -> str:
        """A sign, a binary convolution `(outputs, inputs, kernel)` and its batch normalization."""
        outputs, inputs, kernel = shape
        made = weights(self, self.real(outputs, inputs, kernel, kernel))
        return self.batchnorm(self.conv(self.node("Sign", x), made, kernel, stride), outputs)

    def model(self, output: str, channels: int, size: int) -> onnx.ModelProto:
        """The network from `x` [1, channels, size, size] to `output`."""
        graph = helper.make_graph(
            [*self.nodes, helper.make_node("Identity", [output], ["y"])],
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, channels, size, size))],
            [onnx.ValueInfoProto(name="y", type=helper.make_tensor_type_proto(TensorProto.FLOAT, None))],
            self.initializers,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def folded(network: Network, real: Array) -> str:
    """alpha * signs as an initializer."""
    return network.constant(np.where(real < 0, -1, 1) * np.abs(real).mean((1, 2, 3), keepdims=True))


def in_graph(network: Network, real: Array) -> str:
    """The same from the real weights, in nodes: alpha * Sign(W), and the residue of Clip(W) that training leaves."""
    w = network.constant(real)
    alpha = network.node("ReduceMean", network.node("Abs", w), axes=[1, 2, 3], keepdims=1)
    scaled = network.node("Mul", alpha, network.node("Sign", w))
    clipped = network.node("Clip", w, network.constant(-1), network.constant(1))
    return network.node("Add", network.node("Sub", scaled, clipped), clipped)


def resnet(size: float, weights: Weights = folded) -> onnx.ModelProto:
    """ResNet-50 of `size` times its width, 25.5 million weights at 1: all but its first and last layer binary."""
    net = Network()
    width = max(8, round(64 * size))
    x = net.batchnorm(net.conv("x", net.constant(net.real(width, 3, 7, 7)), 7, 2), width)
    x = net.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    inputs = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner, outputs = width << stage, 4 * width << stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            skip = net.binary(x, (outputs, inputs, 1), weights, stride) if not block else x
            y = net.binary(x, (inner, inputs, 1), weights)
            y = net.binary(y, (inner, inner, 3), weights, stride)
            x = net.node("Add", net.binary(y, (outputs, inner, 1), weights), skip)
            inputs = outputs
    flat = net.node("Flatten", net.node("GlobalAveragePool", x))
    return net.model(net.node("MatMul", flat, net.constant(net.real(inputs, 1000))), 3, 224)


def cones(size: float) -> onnx.ModelProto:
    """`resnet` with its weights computed in the graph."""
    return resnet(size, in_graph)


def chain(size: float) -> onnx.ModelProto:
    """`size` layers of 16 channels in a row, a residual sum around each."""
    net = Network()
    x = "x"
    for _ in range(round(size)):
        x = net.node("Add", net.binary(x, (16, 16, 3), folded), x)
    return net.model(x, 16, 16)


def dense(size: float) -> onnx.ModelProto:
    """`size` layers of 16 new channels each, every one behind the signs of all before it."""
    net = Network()
    x, channels = "x", 16
    for _ in range(round(size)):
        x = net.node("Concat", x, net.binary(x, (16, channels, 1), folded), axis=1)
        channels += 16
    return net.model(x, 16, 16)


def foldable(size: float) -> onnx.ModelProto:
    """One layer behind `size` negations of its weights."""
    net = Network()
    weights = net.constant(np.where(net.real(16, 16, 3, 3) < 0, -1, 1))
    for _ in range(round(size)):
        weights = net.node("Neg", weights)
    return net.model(net.conv(net.node("Sign", "x"), weights, 3), 16, 16)


NETWORKS: dict[str, Callable[[float], onnx.ModelProto]] = {
    "resnet": resnet,
    "cones": cones,
    "chain": chain,
    "dense": dense,
    "foldable": foldable,
}
