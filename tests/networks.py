"""Random small binary networks, as an exporter would write them: what the property tests compile."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]


class Builder:
    """Collects nodes and initializers; every method returns the name of the tensor that it adds."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{op}_{len(self.nodes)}", **attributes))
        return output

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def floats(self, *shape: int) -> Array:
        """Ordinary numbers, with a few zeros and whole numbers among them."""
        values = self.rng.normal(size=shape)
        special = self.rng.random(shape)
        return np.where(special < 0.05, 0.0, np.where(special < 0.2, np.round(values * 4), values)).astype(np.float32)

    def signs(self, *shape: int) -> Array:
        return self.rng.choice(np.asarray([-1, 1], np.float32), shape)

    def batchnorm(self, x: str, channels: int) -> str:
        variance = (self.rng.random(channels) * 4 + 0.1).astype(np.float32)
        parameters = [self.floats(channels) for _ in range(3)]
        return self.node("BatchNormalization", x, *(self.constant(p) for p in [*parameters, variance]), epsilon=1e-5)

    def sign(self, x: str) -> str:
        match self.pick("Sign", "Where", "Less", "Cast"):
            case "Sign":
                return self.node("Sign", x)
            case "Where":
                reached = self.node("GreaterOrEqual", x, self.constant(0))
                return self.node("Where", reached, self.constant(1), self.constant(-1))
            case "Less":
                below = self.node("Less", x, self.constant(self.floats(1)))
                return self.node("Where", below, self.constant(-1), self.constant(1))
            case _:
                bit = self.node("Cast", self.node("Greater", x, self.constant(0)), to=TensorProto.FLOAT)
                doubled = self.node("Mul", bit, self.constant(2))
                return self.node("Sub", doubled, self.constant(1))

    def scaled(self, weights: Array, axis: int) -> Array:
        """Sometimes ±alpha, sometimes ternary, sometimes a dead channel."""
        if self.chance(0.3):
            shape = [1] * weights.ndim
            shape[axis] = weights.shape[axis]
            weights = weights * np.abs(self.rng.normal(size=shape)).astype(np.float32)
        if self.chance(0.15):
            weights = np.where(self.rng.random(weights.shape) < 0.3, 0, weights)
        return weights.astype(np.float32)

    def conv(self, x: str, channels: int, outputs: int, size: int) -> tuple[str, int]:
        """A convolution of a binary tensor on size x size pixels; returns its output and the new size."""
        kernel = self.pick(1, 3, 3, 5)
        group = self.pick(1, 1, 2) if channels % 2 == 0 and outputs % 2 == 0 else 1
        stride, dilation = self.pick(1, 1, 2), self.pick(1, 1, 2)
        reach = dilation * (kernel - 1) + 1
        pads = [0, 0, 0, 0] if kernel == 1 else [int(p) for p in self.rng.integers(0, reach // 2 + 1, 2)] * 2
        after = (size + pads[0] + pads[2] - reach) // stride + 1
        if after < 1 or (size + pads[1] + pads[3] - reach) // stride + 1 != after:
            pads = [reach // 2] * 4
            after = (size + 2 * (reach // 2) - reach) // stride + 1
        if any(pads) and self.chance(0.5):
            amounts = self.constant([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64)
            x = self.node("Pad", x, amounts, self.constant(self.pick(-1, 0, 1)))
            pads = [0, 0, 0, 0]
        weights = self.scaled(self.signs(outputs, channels // group, kernel, kernel), 0)
        bias = [self.constant(self.floats(outputs))] if self.chance(0.3) else []
        y = self.node(
            "Conv",
            x,
            self.constant(weights),
            *bias,
            kernel_shape=[kernel] * 2,
            pads=pads,
            strides=[stride] * 2,
            dilations=[dilation] * 2,
            group=group,
        )
        return y, after

    def dense(self, x: str, length: int, outputs: int) -> str:
        if self.chance(0.5):
            return self.node("MatMul", x, self.constant(self.scaled(self.signs(length, outputs), 1)))
        weights = self.scaled(self.signs(outputs, length), 0)
        bias = [self.constant(self.floats(outputs))] if self.chance(0.5) else []
        return self.node("Gemm", x, self.constant(weights), *bias, transB=1)

    def between(self, x: str, channels: int) -> str:
        """The real-valued steps behind a layer."""
        if self.chance(0.2):  # popcount domain and back
            x = self.node("Div", self.node("Add", x, self.constant(8)), self.constant(2))
        if self.chance(0.8):
            x = self.batchnorm(x, channels)
        match self.pick("none", "none", "Relu", "PRelu", "Sub"):
            case "Relu":
                x = self.node("Relu", x)
            case "PRelu":
                x = self.node("PRelu", x, self.constant(self.floats(channels, 1, 1)))
            case "Sub":
                x = self.node("Sub", x, self.constant(self.floats(1, channels, 1, 1)))
        return x


def random_network(seed: int, opset: int = 17) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A network of 2 to 5 binary layers and inputs for it; batch and image size are open."""
    b = Builder(np.random.default_rng(seed))
    channels, size = int(b.pick(3, 8, 32, 33, 40)), int(b.pick(5, 7, 8, 12))
    inputs = b.floats(2, channels, size, size)
    x = "x"
    if b.chance(0.5):  # a float stem
        stem = b.floats(24, channels, 3, 3)
        x, channels = b.node("Conv", x, b.constant(stem), kernel_shape=[3, 3], pads=[1, 1, 1, 1]), 24
    for _ in range(int(b.rng.integers(1, 4))):
        shortcut = x
        if b.chance(0.5):
            x = b.batchnorm(x, channels)
        if b.chance(0.2) and size > 3:
            x, size = b.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), size // 2
            shortcut = ""
        bits = b.sign(x)
        if b.chance(0.2) and size > 3:
            bits = b.node("MaxPool", bits, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
            size, shortcut = (size - 1) // 2 + 1, ""
        outputs = channels if b.chance(0.5) else int(b.pick(4, 16, 32, 64, 70))
        y, after = b.conv(bits, channels, outputs, size)
        x = b.between(y, outputs)
        if shortcut and (outputs, after) == (channels, size) and b.chance(0.8):
            x = b.node("Add", *b.pick((x, shortcut), (shortcut, x)))
            if b.chance(0.5):
                x = b.node("PRelu", x, b.constant(b.floats(outputs, 1, 1)))
        channels, size = outputs, after
    open_size = True
    if b.chance(0.6):  # dense layers on the flattened bits
        flat = b.node("Flatten", *[b.sign(x)] if b.chance(0.5) else [x], axis=1)
        bits = flat if b.nodes[-2].op_type in ("Sign", "Where", "Sub") and b.chance(0.9) else b.sign(flat)
        length, open_size = channels * size * size, False
        y = b.dense(bits, length, 20)
        x = b.dense(b.sign(b.batchnorm(y, 20)), 20, 5)
    else:
        x = b.node("GlobalAveragePool", x)
    dims: list[Any] = ["N", inputs.shape[1], *(("H", "W") if open_size else inputs.shape[2:])]
    graph = helper.make_graph(
        b.nodes,
        "random",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [
            helper.make_tensor_value_info(
                x, TensorProto.FLOAT, ["N", *["?"] * (1 if b.nodes[-1].op_type != "GlobalAveragePool" else 3)]
            )
        ],
        b.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model, {"x": inputs}
