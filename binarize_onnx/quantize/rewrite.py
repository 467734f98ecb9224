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


def activation(site: Site, levels: Levels, unique: Names, *, x_low: int = 0) -> Part:
    """The node that counts what thresholds the layer's input reaches; its output is what `product` reads.

    With a single threshold and `x_low` -1 it writes -1 and +1 in place of 0 and 1.
    """
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
        node = opset.make_node("BinarySign", inputs, [output], node_name=output, x_low=x_low)
    return Part([node], constants)


def float_layer(site: Site, weights: Array, bias: Array, unique: Names) -> Part:
    """The layer itself with other weights, and with all that was folded into it.

    Args:
        site: the layer.
        weights: [O, D], for its input as it is.
        bias: [O].
        unique: makes names that the model does not have.
    """
    shaped = weights.reshape(site.weights.shape) if site.kind == "conv" else weights.T
    constants = [
        numpy_helper.from_array(np.ascontiguousarray(values, np.float32), unique(f"{site.name}.{hint}"))
        for hint, values in (("weights", shaped), ("bias", bias))
    ]
    w, b = (constant.name for constant in constants)
    if site.kind == "conv":
        return Part([_convolution(site, [site.input, w, b], site.output, site.name)], constants)
    if site.op == "Gemm":
        return Part([helper.make_node("Gemm", [site.input, w, b], [site.output], name=site.name)], constants)
    dots = unique(f"{site.name}.dots")
    nodes = [
        helper.make_node("MatMul", [site.input, w], [dots], name=site.name),
        helper.make_node("Add", [dots, b], [site.output], name=unique(f"{site.name}.biased")),
    ]
    return Part(nodes, constants)


def _convolution(site: Site, inputs: list[str], output: str, name: str) -> onnx.NodeProto:
    return helper.make_node(
        "Conv",
        inputs,
        [output],
        name=name,
        strides=list(site.strides),
        pads=list(site.pads),
        dilations=list(site.dilations),
        group=site.group,
    )


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
            dots = unique(f"{site.name}.dots.{m}")
            nodes.append(_convolution(site, [level, weights], dots, name))
        else:
            dots = write("MatMul", [level, constant(f"signs.{m}", signs.T)], f"dots.{m}", name)
        factor = constant(f"scale.{m}", scale.astype(np.float32).reshape(per_channel))
        term = write("Mul", [dots, factor], f"term.{m}")
        total = term if m == 0 else write("Add", [total, term], f"sum.{m}")
    write("Add", [total, constant("shift", bases.shift.astype(np.float32).reshape(per_channel))], "shifted")
    nodes[-1].output[0] = site.output
    return Part(nodes, constants)
