"""Random float networks in random precisions: whatever is made of them, compiled is ideal bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from networks import Builder
from onnx import TensorProto, helper
from test_property import assert_same_bits, run

from binarize_onnx import Config, convert
from binarize_onnx.quantize import Settings

Array = npt.NDArray[Any]
Shape = tuple[int, int, int]

STEPS = (
    "Conv", "Conv", "Conv", "Conv", "BatchNormalization", "Relu", "Neg", "Sigmoid", "Mul", "Clip", "Add", "Concat",
    "MaxPool", "AveragePool", "Transpose", "MatMul",
)  # fmt: skip
MOST_CHANNELS = 96


class RandomNet:
    """A network of random steps, each on the last tensor or an earlier one, and a classifier of three layers."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.net = Builder(self.rng)
        size = int(self.rng.integers(4, 9))
        self.input: Shape = (int(self.rng.integers(1, 9)), size, size)
        self.tensors: list[tuple[str, Shape]] = [("x", self.input)]
        for _ in range(self.rng.integers(4, 12)):
            last = self.rng.random() < 0.8
            x, shape = self.tensors[-1 if last else self.rng.integers(len(self.tensors))]
            self.step(str(self.rng.choice(STEPS)), x, shape)

    def step(self, op: str, x: str, shape: Shape) -> None:
        """Add a step, or nothing where it does not fit."""
        net, rng, (channels, height, width) = self.net, self.rng, shape
        if op == "Conv":
            self.convolve(x, shape)
        elif op == "BatchNormalization":
            parameters = rng.normal(size=(3, channels))
            parameters[0, rng.integers(channels)] *= rng.integers(2)  # a channel that is dead, or not
            constants = (*parameters, 0.1 + rng.random(channels))
            self.tensors.append((net.node(op, x, *map(net.constant, constants)), shape))
        elif op == "Mul":
            self.tensors.append((net.node(op, x, net.constant(rng.normal(size=(channels, 1, 1)))), shape))
        elif op == "Clip":
            bounds = net.constant(rng.choice([0, -1])), net.constant(rng.choice([1, 6]))
            self.tensors.append((net.node(op, x, *bounds), shape))
        elif op in ("Add", "Concat"):
            alike = [name for name, other in self.tensors if other == shape]
            other = alike[rng.integers(len(alike))]
            if op == "Add":
                self.tensors.append((net.node(op, x, other), shape))
            elif 2 * channels <= MOST_CHANNELS:
                self.tensors.append((net.node(op, x, other, axis=1), (2 * channels, height, width)))
        elif op in ("MaxPool", "AveragePool"):
            if min(height, width) > 2:
                y = net.node(op, x, kernel_shape=[2, 2], strides=[2, 2])
                self.tensors.append((y, (channels, height // 2, width // 2)))
        elif op == "Transpose":
            self.tensors.append((net.node(op, x, perm=[0, 1, 3, 2]), (channels, width, height)))
        elif op == "MatMul":
            outputs = int(rng.integers(1, 20))
            y = net.node(op, x, net.constant(rng.normal(size=(width, outputs))))
            self.tensors.append((y, (channels, height, outputs)))
        else:
            self.tensors.append((net.node(op, x), shape))

    def convolve(self, x: str, shape: Shape) -> None:
        net, rng, channels = self.net, self.rng, shape[0]
        group = int(rng.choice([g for g in range(1, channels + 1) if channels % g == 0])) if rng.random() < 0.3 else 1
        outputs = group * int(rng.integers(1, 40 // group + 1))
        kernel, pads = rng.choice([1, 3], 2), rng.integers(0, 3, 4)
        stride, dilation = int(rng.choice([1, 1, 2])), int(rng.choice([1, 1, 2]))
        sizes = (np.asarray(shape[1:]) + pads[:2] + pads[2:] - dilation * (kernel - 1) - 1) // stride + 1
        if sizes.min() < 1:
            return
        weights = rng.normal(size=(outputs, channels // group, *kernel))
        weights[rng.integers(outputs)] *= rng.integers(2)  # a filter of zeros, or not
        inputs = [x, net.constant(weights), *([net.constant(rng.normal(size=outputs))] if rng.random() < 0.5 else [])]
        y = net.node(
            "Conv", *inputs, group=group, pads=pads.tolist(), strides=[stride] * 2, dilations=[dilation] * 2
        )  # fmt: skip
        self.tensors.append((y, (outputs, int(sizes[0]), int(sizes[1]))))

    def model(self) -> onnx.ModelProto:
        """The network, at times with one of its inner tensors for a second output."""
        net, rng, (x, shape) = self.net, self.rng, self.tensors[-1]
        x = net.node("Flatten", net.node("GlobalAveragePool", x))
        for inputs, outputs in ((shape[0], 20), (20, 12)):
            weights, bias = net.constant(rng.normal(size=(inputs, outputs))), net.constant(rng.normal(size=outputs))
            x = net.node("Relu", net.node("Gemm", x, weights, bias, alpha=0.5))
        x = net.node("Gemm", x, net.constant(rng.normal(size=(5, 12))), transB=1)
        results = [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", 5])]
        inner, _ = self.tensors[rng.integers(len(self.tensors))]
        if inner != "x" and rng.random() < 0.3:
            results.append(helper.make_tensor_value_info(inner, TensorProto.FLOAT, [None] * 4))
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *self.input])
        graph = helper.make_graph(net.nodes, "random", [given], results, net.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("seed", range(8))
def test_random_networks_compile_exactly(seed: int) -> None:
    built = RandomNet(seed)
    model, rng = built.model(), np.random.default_rng(seed)
    onnx.checker.check_model(model)
    scale = float(rng.choice([1e-6, 1, 1, 1e6]))
    data = {"x": (scale * rng.normal(size=(6, *built.input))).astype(np.float32)}
    test = {"x": (scale * rng.normal(size=(2, *built.input))).astype(np.float32)}
    config = Config(
        ptq=f"w{rng.integers(1, 5)}a{rng.integers(1, 7)}",
        ptq_settings=Settings(str(rng.choice(["sign", "abc", "greedy", "recon", "gptq"]))),  # type: ignore[arg-type]
        nodes_to_quantize=(".*",) if rng.random() < 0.3 else (),
    )
    compiled = convert(model, config, calibration_data=data).model  # the classifier has a layer between two, at least
    ideal = convert(model, Config(**{**vars(config), "emit": "ideal"}), calibration_data=data).model
    onnx.checker.check_model(ideal)
    steps = convert(ideal, Config(emit="ideal", slow_layers="convert")).model
    wanted = run(steps, dict(test), library=False)
    assert_same_bits(run(compiled, dict(test), library=False), wanted)
    assert_same_bits(run(compiled, dict(test), library=True), wanted)
    for values, source in zip(wanted, run(ideal, dict(test), library=False), strict=True):
        np.testing.assert_array_equal(values, source)
