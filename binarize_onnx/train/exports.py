"""Trained activations as nodes of the ideal graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch import Tensor, nn

from binarize_onnx import opset
from binarize_onnx.errors import ModelError
from binarize_onnx.passes.base import Array
from binarize_onnx.quantize import rewrite
from binarize_onnx.quantize.activations import Levels
from binarize_onnx.quantize.rewrite import Names, Part
from binarize_onnx.quantize.sites import Site
from binarize_onnx.train.activations import (
    BinaryActivation,
    DoReFa,
    DynamicSign,
    LevelActivation,
    RPReLU,
    SampleMeanSign,
)
from binarize_onnx.train.recipes import Rectifier

AXES_ARE_INPUTS = 18  # the operator set from which on ReduceMean takes its axes as an input


def activation_part(module: nn.Module, site: Site, unique: Names, version: int) -> Part:
    """What computes the input of a layer's product; its last node writes it.

    Args:
        module: an activation of `train.activations`.
        site: the layer.
        unique: makes names that the model does not have.
        version: of the model's standard operators.

    Raises:
        ModelError: training left NaN or infinity in it.
    """
    if isinstance(module, DynamicSign | SampleMeanSign):
        return _thresholds_at_run_time(module, site, unique, version)
    threshold = _fixed_thresholds(module, site)
    if not np.all(np.isfinite(threshold)):
        raise ModelError(f"training left NaN or infinity in the thresholds of layer `{site.name}`.")
    ones = np.ones(site.channels)  # low and step are in the scales of the layer already
    return rewrite.activation(site, Levels(threshold, 0 * ones, ones), unique, x_low=getattr(module, "x_low", 0))


def _fixed_thresholds(module: nn.Module, site: Site) -> Array:
    """float32 [P, C]."""
    if isinstance(module, BinaryActivation):
        return _array(module.threshold)[None]
    if isinstance(module, LevelActivation):
        return _array(module.thresholds())
    assert isinstance(module, DoReFa)
    return np.full((1, site.channels), DoReFa.THRESHOLD, np.float32)


def _thresholds_at_run_time(module: DynamicSign | SampleMeanSign, site: Site, unique: Names, version: int) -> Part:
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(hint: str, values: Array) -> str:
        constants.append(numpy_helper.from_array(values, unique(f"{site.name}.{hint}")))
        return constants[-1].name

    def write(op: str, inputs: list[str], hint: str, **attributes: Any) -> str:
        output = unique(f"{site.name}.{hint}")
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def mean(axes: list[int], hint: str, keep: int) -> str:
        if version >= AXES_ARE_INPUTS:
            return write("ReduceMean", [site.input, constant("axes", np.asarray(axes))], hint, keepdims=keep)
        return write("ReduceMean", [site.input], hint, axes=axes, keepdims=keep)

    every = list(range(1, site.rank))
    channels = 1 if site.kind == "conv" else site.rank - 1
    if isinstance(module, SampleMeanSign):
        threshold = mean(every, "mean", 1)
    else:
        pooled = [axis for axis in every if axis != channels]
        found = mean(pooled, "means", 0) if pooled else site.input
        for linear, hint in ((module.first, "first"), (module.second, "second")):
            weights = constant(f"{hint}.weights", _array(linear.weight))
            bias = constant(f"{hint}.bias", _array(linear.bias))
            found = write("Gemm", [found, weights, bias], hint, transB=1)
            found = write("Relu", [found], "rectified") if hint == "first" else found
        shape = [-1 if axis == channels else 1 for axis in every]
        threshold = write("Reshape", [found, constant("shape", np.asarray([0, *shape]))], "thresholds")
    above = write(
        "Sub", [site.input, threshold], "above"
    )  # not negative where x >= threshold: no rounding changes that
    zero = constant("zero", np.zeros([1] * site.rank, np.float32))
    flip = constant("flip", np.zeros([1] * site.rank, np.bool_))
    output = unique(f"{site.input}.level")
    inputs = [above, zero, flip]
    nodes.append(opset.make_node("BinarySign", inputs, [output], node_name=output, x_low=module.x_low))
    return Part(nodes, constants)


def rectifier(becomes: Rectifier, channels: int) -> nn.Module:
    """What takes the place of a Relu behind `channels` channels."""
    if becomes == "rprelu":
        return RPReLU(channels)
    return nn.Hardtanh() if becomes == "hardtanh" else nn.Identity()


def rectifier_part(node: onnx.NodeProto, module: nn.Module, rank: int, unique: Names) -> Part:
    """What stands for a Relu that became something else; its last node has the Relu's name and output."""
    hint = node.name or node.output[0]

    def constants(module_values: Mapping[str, Array]) -> list[onnx.TensorProto]:
        return [numpy_helper.from_array(v, unique(f"{hint}.{step}")) for step, v in module_values.items()]

    x, y = node.input[0], node.output[0]
    if isinstance(module, nn.Identity):
        return Part([helper.make_node("Identity", [x], [y], name=node.name)], [])
    if isinstance(module, nn.Hardtanh):
        limits = constants({"low": np.asarray(-1, np.float32), "high": np.asarray(1, np.float32)})
        return Part([helper.make_node("Clip", [x, *(t.name for t in limits)], [y], name=node.name)], limits)
    assert isinstance(module, RPReLU)
    shape = (-1, *[1] * (rank - 2))
    values = {name: _array(getattr(module, name)).reshape(shape) for name in ("shift", "slope", "offset")}
    if not all(np.all(np.isfinite(v)) for v in values.values()):
        raise ModelError(f"training left NaN or infinity in the RPReLU of `{hint}`.")
    added = constants(values)
    shift, slope, offset = (t.name for t in added)
    shifted, sloped = unique(f"{hint}.shifted"), unique(f"{hint}.sloped")
    nodes = [
        helper.make_node("Add", [x, shift], [shifted], name=shifted),
        helper.make_node("PRelu", [shifted, slope], [sloped], name=sloped),
        helper.make_node("Add", [sloped, offset], [y], name=node.name),
    ]
    return Part(nodes, added)


def _array(values: Tensor) -> Array:
    found: Array = np.ascontiguousarray(values.detach().cpu().numpy().astype(np.float32))
    return found
