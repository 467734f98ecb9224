"""A LeNet of BMXNet: products counted as popcounts, (dot + K) / 2, in the file's float arithmetic.

Yang et al. 2017, arXiv:1705.09864. The sign is `x < 0 ? -1 : 1`; a convolution pads with +1; batch norms behind expect
numbers from 0 to K. The dense layer has the halving inside Gemm: alpha 1/2, and C = K/2.
"""

from __future__ import annotations

import numpy as np
import onnx
from networks import Builder
from onnx import TensorProto, helper

from zoo.base import Network, images

SIZE = 20


class Bmx(Builder):
    def det_sign(self, x: str) -> str:
        return self.node("Where", self.node("Less", x, self.constant(0.0)), self.constant(-1.0), self.constant(1.0))

    def counted(self, y: str, terms: int) -> str:
        return self.node("Mul", self.node("Add", y, self.constant(terms)), self.constant(0.5))

    def q_convolution(self, x: str, inputs: int, outputs: int) -> str:
        padded = self.node("Pad", self.det_sign(x), self.constant([0, 0, 1, 1] * 2, np.int64), self.constant(1.0))
        y = self.node("Conv", padded, self.constant(self.signs(outputs, inputs, 3, 3)), kernel_shape=(3, 3))
        return self.norm(self.counted(y, 9 * inputs), outputs, 9 * inputs)

    def norm(self, x: str, channels: int, terms: int) -> str:
        """Statistics of popcounts: about half of the terms."""
        mean = terms / 2 + self.rng.normal(size=channels) * terms**0.5 / 4
        variance = (self.rng.random(channels) + 0.5) * terms / 4
        parameters = (self.rng.normal(size=channels), self.rng.normal(size=channels), mean, variance)
        return self.node("BatchNormalization", x, *(self.constant(p) for p in parameters), epsilon=1e-3)


def lenet() -> onnx.ModelProto:
    b = Bmx(np.random.default_rng(1))
    x = b.node("Conv", "image", b.constant(b.floats(24, 3, 5, 5) / 8), kernel_shape=(5, 5))
    x = b.node("Tanh", b.norm(x, 24, 2))
    x = b.q_convolution(x, 24, 40)
    x = b.node("MaxPool", x, kernel_shape=(2, 2), strides=(2, 2))
    x = b.q_convolution(x, 40, 36)
    x = b.node("MaxPool", x, kernel_shape=(2, 2), strides=(2, 2))
    terms = 36 * (SIZE // 2 - 2) // 2 * (SIZE // 2 - 2) // 2
    half = b.constant(np.full(50, terms / 2))
    bits = b.det_sign(b.node("Flatten", x))
    x = b.node("Gemm", bits, b.constant(b.signs(50, terms)), half, transB=1, alpha=0.5, beta=1.0)
    x = b.norm(x, 50, terms)
    y = b.node("Gemm", b.node("Tanh", x), b.constant(b.floats(10, 50)), b.constant(b.floats(10)), transB=1)
    graph = helper.make_graph(
        b.nodes,
        "bmxnet",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, ["N", 10])],
        b.initializers,
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])


NETWORK = Network(
    "BMXNet LeNet", None, "Yang et al. 2017, arXiv:1705.09864", binary=3, inputs=images(3, SIZE), proto=lenet
)
