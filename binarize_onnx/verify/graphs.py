"""What the comparisons ask of an ONNX graph: what a caller gives it, who computes what, who reads what."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from binarize_onnx import opset, scopes

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def caller_inputs(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """The inputs that a caller must give, with their types: those that no initializer fills."""
    filled = {t.name for t in model.graph.initializer}
    return {i.name: i.type.tensor_type for i in model.graph.input if i.name not in filled}


def writers(model: onnx.ModelProto) -> dict[str, NodeProto]:
    """Every tensor that a node of the main graph computes, and the node, in topological order."""
    return {name: node for node in model.graph.node if node.op_type != "Constant" for name in node.output if name}


def reads(node: NodeProto) -> set[str]:
    """Every name that a node reads, those of its subgraphs included."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            for inner in graph.node:
                names |= reads(inner)
    return names


def constants(model: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    """The values of all initializers and of the Constant nodes that hold a tensor."""
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and is_standard(node):
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    found[node.output[0]] = numpy_helper.to_array(attribute.t)
    return found


def layer_weights(node: NodeProto, constant: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any] | None:
    """The constant weights of a layer as [output channels, terms]; None if they are computed, or it is no layer."""
    if not is_layer(node) or len(node.input) < 2 or node.input[1] not in constant:
        return None
    weights = constant[node.input[1]]
    if weights.ndim < 2 or not weights.size:
        return None
    attributes = {a.name: a.i for a in node.attribute}
    if node.op_type == "ConvTranspose":  # [inputs, outputs of one group, ...]
        group = max(attributes.get("group", 1), 1)
        if weights.shape[0] % group:
            return None
        split = weights.reshape(group, -1, *weights.shape[1:])
        return np.moveaxis(split, 1, 2).reshape(group * weights.shape[1], -1)
    axis = 0 if node.op_type == "Conv" or attributes.get("transB", 0) else -1
    return np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)


def are_binary(weights: npt.NDArray[Any]) -> bool:
    """Whether weights are nothing but ±1 and 0."""
    return bool(np.all((np.abs(weights) == 1) | (weights == 0)))


def is_layer(node: NodeProto) -> bool:
    """Whether the node is a convolution or a matrix product of ONNX."""
    return is_standard(node) and node.op_type in LAYERS


def is_standard(node: NodeProto) -> bool:
    """Whether ONNX itself defines the operator."""
    return node.domain in ("", "ai.onnx")


def is_sign(node: NodeProto) -> bool:
    """Whether the node is a sign of an ideal graph: `BinarySign`, or `Level`, which counts the thresholds reached."""
    return node.domain == opset.IDEAL_DOMAIN


def is_tensor(kind: str) -> bool:
    """Whether onnxruntime's name of a type is that of a tensor: there are sequences, maps and optionals too."""
    return kind.startswith("tensor(")


def has_signs_inside(node: NodeProto) -> bool:
    """Whether there is a sign of an ideal graph in a branch or a body of the node."""
    return any(map(is_sign, scopes.nodes_inside(node)))


def has_our_ops(model: onnx.ModelProto) -> bool:
    """Whether any node is one of ours, so that the kernel library can run it."""
    return any(function.domain == opset.DOMAIN for function in model.functions) or any(
        node.domain == opset.DOMAIN for node in model.graph.node
    )


def with_outputs(model: onnx.ModelProto, extra: Iterable[str]) -> onnx.ModelProto:
    """The model with inner tensors as further outputs; the model itself if it has them all."""
    present = {out.name for out in model.graph.output}
    added = [name for name in extra if name not in present]
    if not added:
        return model
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in added)
    return shown


def pruned(model: onnx.ModelProto, wanted: Iterable[str]) -> onnx.ModelProto:
    """The part of the model that computes the wanted tensors, with those as its outputs."""
    outputs = list(dict.fromkeys(wanted))
    needed, kept = set(outputs), []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed |= reads(node)
            kept.append(node)
    graph = onnx.GraphProto(name=model.graph.name, node=kept[::-1])
    graph.initializer.extend(t for t in model.graph.initializer if t.name in needed)
    graph.input.extend(i for i in model.graph.input if i.name in needed)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return onnx.ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions, graph=graph
    )


def without(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """The model with these float tensors among its inputs instead of computed; the model itself if there are none."""
    if not names:
        return model
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    del cut.graph.node[:], cut.graph.output[:]
    cut.graph.node.extend(node for node in model.graph.node if not set(names).intersection(node.output))
    cut.graph.output.extend(out for out in model.graph.output if out.name not in names)
    cut.graph.input.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    return cut


def listed(names: Iterable[str]) -> str:
    """Names in a message."""
    return ", ".join(f"`{name}`" for name in sorted(names)) or "none"
