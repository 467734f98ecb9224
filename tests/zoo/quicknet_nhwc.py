"""QuickNet as tf2onnx writes larq's code: channels last, Transposes round what ONNX has with channels first only.

Bannink et al. 2021, arXiv:2011.09398. The sign is `Sign -> Add 0.1 -> Sign`; a convolution pads with +1 by a Pad of its
own and has ReLU before its batch norm. The first stage is what the converter writes before it moves Transposes (latent
weights in HWIO), the second what it writes after. Between them are convolutions of stride 2 with SAME padding, zeros,
once as `auto_pad` and once in numbers that differ from side to side.
"""

from __future__ import annotations

import numpy as np
import onnx
from networks import Builder
from onnx import TensorProto, helper

from zoo.base import BATCH, Feed, Network

FIRST, LAST = (0, 3, 1, 2), (0, 2, 3, 1)
WIDTH = 40


class Larq(Builder):
    """Builder of larq's layers, `channels_last` or first."""

    channels_last = True

    def sign(self, x: str) -> str:
        return self.node("Sign", self.node("Add", self.node("Sign", x), self.constant(0.1)))

    def moved(self, op: str, x: str, *inputs: str, **attributes: object) -> str:
        """A node that knows channels first only."""
        if not self.channels_last:
            return self.node(op, x, *inputs, **attributes)
        y = self.node(op, self.node("Transpose", x, perm=FIRST), *inputs, **attributes)
        return self.node("Transpose", y, perm=LAST)

    def weights(self, inputs: int, outputs: int) -> str:
        if not self.channels_last:
            return self.constant(self.signs(outputs, inputs, 3, 3))
        return self.node("Transpose", self.sign(self.constant(self.floats(3, 3, inputs, outputs))), perm=(3, 2, 0, 1))

    def quant_conv(self, x: str, inputs: int, outputs: int, **attributes: object) -> str:
        """With pad_values = 1, or with SAME padding of zeros where attributes say so."""
        bits = self.sign(x)
        if not attributes:
            space = [0, 1, 1, 0] if self.channels_last else [0, 0, 1, 1]
            bits = self.node("Pad", bits, self.constant(space * 2, np.int64), self.constant(1.0))
        y = self.moved("Conv", bits, self.weights(inputs, outputs), kernel_shape=(3, 3), **attributes)
        return self.norm(self.node("Relu", y), outputs, 9 * inputs)

    def norm(self, x: str, channels: int, terms: int) -> str:
        """A batch norm with statistics of a ReLU of sums of that many signs; larq fixes gamma at 1."""
        deviation = 0.6 * terms**0.5
        mean = np.abs(self.floats(channels)) * deviation
        variance = (self.rng.random(channels) + 0.5) * deviation**2
        parameters = (np.ones(channels), self.floats(channels), mean, variance)
        return self.moved("BatchNormalization", x, *(self.constant(p) for p in parameters), epsilon=1e-3)


def quicknet() -> onnx.ModelProto:
    b = Larq(np.random.default_rng(0))
    stem = b.constant(b.floats(WIDTH, 3, 3, 3) / 4)
    x = b.norm(b.moved("Conv", "image", stem, kernel_shape=(3, 3), strides=(2, 2), pads=(0, 0, 1, 1)), WIDTH, 4)
    for _ in range(3):
        x = b.node("Add", b.quant_conv(x, WIDTH, WIDTH), x)
    x = b.quant_conv(x, WIDTH, WIDTH, strides=(2, 2), auto_pad="SAME_UPPER")
    x = b.node("Transpose", x, perm=FIRST)
    b.channels_last = False
    x = b.quant_conv(x, WIDTH, 2 * WIDTH, strides=(2, 2), pads=(0, 0, 1, 1))
    for _ in range(2):
        x = b.node("Add", b.quant_conv(x, 2 * WIDTH, 2 * WIDTH), x)
    x = b.node("Relu", b.node("Transpose", x, perm=LAST))
    x = b.node("ReduceMean", x, axes=(1, 2), keepdims=0)
    y = b.node(
        "Softmax", b.node("Add", b.node("MatMul", x, b.constant(b.floats(2 * WIDTH, 10))), b.constant(b.floats(10)))
    )
    graph = helper.make_graph(
        b.nodes,
        "quicknet",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 32, 32, 3])],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, ["N", 10])],
        b.initializers,
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])


def images_last(rng: np.random.Generator) -> Feed:
    """float32 [BATCH, 32, 32, 3]."""
    return {"image": rng.normal(size=(BATCH, 32, 32, 3)).astype(np.float32)}


NETWORK = Network(
    "QuickNet (larq, tf2onnx)",
    None,
    "Bannink et al. 2021, arXiv:2011.09398",
    binary=7,
    inputs=images_last,
    proto=quicknet,
)
