"""Sums of scaled binary layers as an ideal graph writes them: several weight bases on several signs of one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from binarize_onnx import opset

Array = npt.NDArray[Any]
Order = Sequence[tuple[int, int]]  # (plane, base) of the terms of a sum, in the order of the source


def t_major(planes: int, bases: int) -> list[tuple[int, int]]:
    """The order in which the op adds its terms."""
    return [(t, m) for t in range(planes) for m in range(bases)]


def m_major(planes: int, bases: int) -> list[tuple[int, int]]:
    """All planes of one base before the next."""
    return [(t, m) for m in range(bases) for t in range(planes)]


@dataclass(frozen=True)
class Layer:
    """What the terms of a sum have in common.

    Attributes:
        convolution: Conv on `[N, channels, size, size]`; otherwise MatMul on `[N, 3, channels]`.
        pooled: a MaxPool in front of the signs.
        flattened: Flatten behind the signs, and a dense layer.
        x_low: of the signs.
        ternary: every other base has zeros.
    """

    convolution: bool = True
    channels: int = 33
    outputs: int = 6
    size: int = 7
    kernel: int = 3
    group: int = 1
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (1, 1, 1, 1)
    pooled: bool = False
    flattened: bool = False
    x_low: int = -1
    ternary: bool = False


class Sum:
    """A model `x -> y` with the terms and additions that a test asks for; methods return names of tensors.

    Args:
        rng: draws weights, scales and thresholds.
        layer: what the terms have in common.
        planes: how many signs x has.
        bases: how many weights there are.
        same_planes: planes whose threshold is that of plane 0.
        same_bases: bases that are equal to base 0.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        layer: Layer,
        planes: int,
        bases: int,
        *,
        same_planes: Sequence[int] = (),
        same_bases: Sequence[int] = (),
    ) -> None:
        self.rng, self.layer = rng, layer
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        source = "x"
        if layer.pooled:
            source = self.node("MaxPool", source, kernel_shape=[2, 2], strides=[2, 2])
        rank = 4 if layer.convolution or layer.flattened else 3
        per_channel = [1] * rank
        per_channel[1 if rank == 4 else 2] = layer.channels
        thresholds = [rng.normal(size=per_channel).astype(np.float32) for _ in range(planes)]
        flips = [rng.random(per_channel) < 0.3 for _ in range(planes)]
        self.signs = []
        for t in range(planes):
            kept = 0 if t in same_planes else t
            fields = self.constant(thresholds[kept]), self.constant(flips[kept])
            sign = f"sign{t}"
            self.nodes.append(
                opset.make_node("BinarySign", [source, *fields], [sign], node_name=sign, x_low=layer.x_low)
            )
            self.signs.append(self.node("Flatten", sign) if layer.flattened else sign)
        weights = [self._weights(m) for m in range(bases)]
        self.weights = [self.constant(weights[0 if m in same_bases else m]) for m in range(bases)]

    @property
    def dims(self) -> list[int | str]:
        """The shape of x; the batch is open."""
        if self.layer.convolution or self.layer.flattened:
            return ["N", self.layer.channels, self.layer.size, self.layer.size]
        return ["N", 3, self.layer.channels]

    def _weights(self, base: int) -> Array:
        layer = self.layer
        shape: tuple[int, ...] = (layer.channels, layer.outputs)
        if layer.flattened:
            size = layer.size // 2 if layer.pooled else layer.size
            shape = (layer.channels * size * size, layer.outputs)
        elif layer.convolution:
            shape = (layer.outputs, layer.channels // layer.group, layer.kernel, layer.kernel)
        values = self.rng.choice(np.asarray([-1, 1], np.float32), shape)
        if layer.ternary and base % 2:
            values *= self.rng.random(shape) < 0.7
        return values.astype(np.float32)

    def constant(self, values: Array) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def node(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        name = name or f"{op}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def product(self, plane: int, base: int) -> str:
        """The layer of one plane and one base."""
        data, weights, layer = self.signs[plane], self.weights[base], self.layer
        name = f"layer_{plane}_{base}_{len(self.nodes)}"
        if not layer.convolution or layer.flattened:
            return self.node("MatMul", data, weights, name=name)
        return self.node(
            "Conv",
            data,
            weights,
            name=name,
            kernel_shape=[layer.kernel] * 2,
            strides=list(layer.strides),
            pads=list(layer.pads),
            dilations=[1, 1],
            group=layer.group,
        )

    def factor(self, *, scalar: bool = False) -> str:
        """A constant for each output channel, or for all."""
        values = np.exp(self.rng.normal(size=1 if scalar else self.layer.outputs)) * self.rng.choice([-1, 1])
        convolution = self.layer.convolution and not self.layer.flattened
        return self.constant(values.reshape((1, -1, 1, 1) if convolution else (-1,)).astype(np.float32))

    def term(self, plane: int, base: int, *, scalar: bool = False) -> str:
        """A layer times a constant, which is the left operand or the right one."""
        operands = [self.product(plane, base), self.factor(scalar=scalar)]
        return self.node("Mul", *(operands if self.rng.random() < 0.5 else operands[::-1]))

    def add(self, a: str, b: str) -> str:
        """a + b, or b + a."""
        return self.node("Add", *((a, b) if self.rng.random() < 0.5 else (b, a)))

    def chain(self, order: Order) -> str:
        """All terms, added to what is before them."""
        total = self.term(*order[0])
        for plane, base in order[1:]:
            total = self.add(total, self.term(plane, base))
        return total

    def tree(self, order: Order) -> str:
        """Half of the terms plus the other half."""
        if len(order) == 1:
            return self.term(*order[0])
        middle = len(order) // 2
        return self.add(self.tree(order[:middle]), self.tree(order[middle:]))

    def model(self, result: str, *more: str) -> onnx.ModelProto:
        """Everything so far, with y = the result; further tensors to give out have its type and rank."""
        self.nodes.append(helper.make_node("Identity", [result], ["y"]))
        rank = 2 if self.layer.flattened else len(self.dims)
        shape: list[None] = [None] * rank
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("y", *more)]
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.dims)
        graph = helper.make_graph(self.nodes, "sum", [given], outputs, self.initializers)
        imports = [helper.make_opsetid("", 17), helper.make_opsetid(opset.IDEAL_DOMAIN, 1)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=8)
        model.functions.extend(opset.functions_in_use(model))
        onnx.checker.check_model(model)
        return model

    def inputs(self) -> dict[str, Array]:
        """Two samples."""
        return {"x": self.rng.normal(size=(2, *map(int, self.dims[1:]))).astype(np.float32)}
