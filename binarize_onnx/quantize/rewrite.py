"""One layer in ideal form: the number of thresholds reached, ±1 convolutions of it, scales and a shift behind them.

    before   z = BatchNormalization(Conv(x, W))
    after    h = Level(x, thresholds)                                      BinarySign(x) in {0, 1} where it has one bit
             z = s0 * Conv(h, B0) + s1 * Conv(h, B1) + ... + t             B in {-1, +1}, s and t one an output channel

The sum is written in the order in which one XNOR node adds its terms, so that the compiler makes one node of it. MatMul
and Gemm become MatMul. Zeros around the image are the lowest level, h = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from binarize_onnx import opset
from binarize_onnx.passes.base import Array
from binarize_onnx.quantize.activations import Levels
from binarize_onnx.quantize.sites import Site
from binarize_onnx.quantize.weights import Bases

Names = Callable[[str], str]  # makes a name from a hint


@dataclass(frozen=True)
class Part:
    """Nodes in topological order, the first of which is named as the layer, and the constants that they read."""

    nodes: list[onnx.NodeProto]
    constants: list[onnx.TensorProto]


def activation(site: Site, levels: Levels, unique: Names) -> Part:
    """The node that counts what thresholds the layer's input reaches; its output is what `product` reads."""
    output = unique(f"{site.input}.level")
    axes = site.rank - 2 if site.kind == "conv" else 0  # behind that of the channels
    threshold = levels.threshold.astype(np.float32).reshape(*levels.threshold.shape, *[1] * axes)
    if len(threshold) > 1:
        constants = [numpy_helper.from_array(threshold, unique(f"{output}.thresholds"))]
        node = opset.make_node("Level", [site.input, constants[0].name], [output], node_name=output)
    else:
        constants = [
            numpy_helper.from_array(threshold[0], unique(f"{output}.threshold")),
            numpy_helper.from_array(np.zeros([1] * (axes + 1), np.bool_), unique(f"{output}.flip")),
        ]
        inputs = [site.input, *(constant.name for constant in constants)]
        node = opset.make_node("BinarySign", inputs, [output], node_name=output, x_low=0)
    return Part([node], constants)


def product(site: Site, level: str, bases: Bases, unique: Names) -> Part:
    """What the layer makes of its levels.

    Args:
        site: the layer.
        level: the tensor that `activation` writes.
        bases: for all its output channels.
        unique: makes names that the model does not have.
    """
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    convolution = site.kind == "conv"
    per_channel = (-1, *[1] * (site.rank - 2)) if convolution else (-1,)

    def constant(hint: str, values: Array) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(values), unique(f"{site.name}.{hint}")))
        return constants[-1].name

    def write(op: str, inputs: list[str], hint: str, name: str = "") -> str:
        output = unique(f"{site.name}.{hint}")
        nodes.append(helper.make_node(op, inputs, [output], name=name or output))
        return output

    total = ""
    for m, (signs, scale) in enumerate(zip(bases.signs, bases.scale, strict=True)):
        name = site.name if m == 0 else unique(f"{site.name}.basis.{m}")
        signs = signs.astype(np.float32)
        if convolution:
            weights = constant(f"signs.{m}", signs.reshape(site.weights.shape))
            dots = write("Conv", [level, weights], f"dots.{m}", name)
            for key, values in (("strides", site.strides), ("pads", site.pads), ("dilations", site.dilations)):
                nodes[-1].attribute.append(helper.make_attribute(key, list(values)))
            nodes[-1].attribute.append(helper.make_attribute("group", site.group))
        else:
            dots = write("MatMul", [level, constant(f"signs.{m}", signs.T)], f"dots.{m}", name)
        factor = constant(f"scale.{m}", scale.astype(np.float32).reshape(per_channel))
        term = write("Mul", [dots, factor], f"term.{m}")
        total = term if m == 0 else write("Add", [total, term], f"sum.{m}")
    write("Add", [total, constant("shift", bases.shift.astype(np.float32).reshape(per_channel))], "shifted")
    nodes[-1].output[0] = site.output
    return Part(nodes, constants)
