"""ONNX models of single layers: float, binary, and nodes of our own ops alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from shapes import Conv, Layer

from binarize_onnx import opset
from binarize_onnx.bits import WORD

Array = npt.NDArray[Any]


def float_layer(layer: Layer) -> onnx.ModelProto:
    """`x` -> Conv or MatMul with real weights -> `y`."""
    weights = np.random.default_rng(0).standard_normal(layer.weight_shape, np.float32) * np.float32(0.05)
    return _model([_standard(layer, "x")], {"x": layer.input_shape}, TensorProto.FLOAT, ["y"], {"w": weights})


def sign_layer(layer: Layer) -> onnx.ModelProto:
    """`x` -> Sign -> Conv or MatMul with ±1 weights -> `y`: what our compiler is given."""
    signs = np.where(np.random.default_rng(0).random(layer.weight_shape) < 0.5, -1, 1).astype(np.float32)
    nodes = [helper.make_node("Sign", ["x"], ["s"]), _standard(layer, "s")]
    return _model(nodes, {"x": layer.input_shape}, TensorProto.FLOAT, ["y"], {"w": signs})


def _standard(layer: Layer, x: str) -> onnx.NodeProto:
    if not isinstance(layer, Conv):
        return helper.make_node("MatMul", [x, "w"], ["y"], name=layer.name)
    attributes: dict[str, Any] = {
        "kernel_shape": [layer.kernel] * 2,
        "strides": [layer.stride] * 2,
        "pads": [layer.pad] * 4,
    }
    return helper.make_node("Conv", [x, "w"], ["y"], name=layer.name, **attributes)


def low_bit_node(layer: Conv, bases: int, bits: int) -> onnx.ModelProto:
    """One XnorConv, planes of `bits`-bit activations in and float out, on the sum of `bases` scaled binary weights."""
    rng = np.random.default_rng(0)
    inputs = _inputs(layer, rng, planes=bits, bases=bases)
    inputs["combine"] = np.asarray([[1 << bit for bit in range(bits)]], np.float32)
    inputs["scale"] = rng.uniform(0.01, 0.02, (bases, layer.outputs, 1, 1)).astype(np.float32)
    node = opset.make_node("XnorConv", ("x", "W", *opset.EPILOGUE), ("y", ""), **_attributes(layer, x_low=0))
    words = (1, bits * _words(layer.channels), layer.size, layer.size)
    return _model([node], {"x": words}, TensorProto.UINT32, ["y"], inputs)


def bit_chain(layer: Conv, length: int) -> onnx.ModelProto:
    """`length` XnorConv nodes in a row, bits in and bits out; each has weights of its own."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    initializers: dict[str, Array] = {}
    for index in range(length):
        inputs = _inputs(layer, rng, planes=1, bases=1)
        inputs["threshold"] = rng.normal(0, layer.channels**0.5, (1, 1, layer.outputs, 1, 1)).astype(np.float32)
        initializers |= {f"{name}_{index}": values for name, values in inputs.items()}
        read, written = f"q{index}" if index else "x", f"q{index + 1}" if index + 1 < length else "y"
        names = (read, *(f"{name}_{index}" for name in ("W", *opset.EPILOGUE)))
        nodes.append(opset.make_node("XnorConv", names, ("", written), **_attributes(layer, x_low=-1)))
    words = (1, _words(layer.channels), layer.size, layer.size)
    return _model(nodes, {"x": words}, TensorProto.UINT32, ["y"], initializers)


def empty() -> onnx.ModelProto:
    """One Relu of one number: what a call of onnxruntime takes."""
    return _model([helper.make_node("Relu", ["x"], ["y"])], {"x": (1,)}, TensorProto.FLOAT, ["y"], {})


def random_input(model: onnx.ModelProto) -> Array:
    """Standard normal numbers, or random words, for the model's input."""
    rng = np.random.default_rng(1)
    tensor = model.graph.input[0].type.tensor_type
    shape = [dim.dim_value for dim in tensor.shape.dim]
    if tensor.elem_type == TensorProto.UINT32:
        return rng.integers(0, 2**32, shape, dtype=np.uint32)
    return rng.standard_normal(shape, np.float32)


def _inputs(layer: Conv, rng: np.random.Generator, planes: int, bases: int) -> dict[str, Array]:
    """Random weights and a neutral epilogue. The channels of all layers here fill their words."""
    words = _words(layer.channels)
    filters = (bases * layer.outputs, words, layer.kernel, layer.kernel)
    inputs: dict[str, Array] = {"W": rng.integers(0, 2**32, filters, dtype=np.uint32)}
    for name in opset.EPILOGUE:
        neutral = opset.conv_neutral(name, outputs=layer.outputs, words=words, planes=planes, terms=bases)
        inputs[name] = np.eye(1, dtype=np.float32) if name == "encode" else neutral
    return inputs


def _attributes(layer: Conv, x_low: int) -> dict[str, Any]:
    return {
        "channels": layer.channels,
        "group": 1,
        "strides": [layer.stride] * 2,
        "pads": [layer.pad] * 4,
        "dilations": [1, 1],
        "pad_value": 0,
        "x_low": x_low,
        "dtype": int(TensorProto.FLOAT),
    }


def _words(channels: int) -> int:
    return -(-channels // WORD)


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int]],
    kind: int,
    outputs: Sequence[str],
    initializers: Mapping[str, Array],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(values, name) for name, values in initializers.items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(opset.DOMAIN, opset.VERSION)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)
