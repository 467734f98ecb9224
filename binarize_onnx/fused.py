"""What onnxruntime fuses when it saves an optimised model, taken apart again into standard operators.

    before   com.microsoft::FusedConv(X, W, B, Z; activation, activation_params)
    after    activation(Add(Conv(X, W, B), Z))

    before   com.microsoft::FusedGemm(A, B, C; activation, activation_alpha, activation_beta)
    after    activation(Gemm(A, B, C))

    before   com.microsoft::FusedMatMul(A, B; alpha)
    after    Mul(MatMul(A, B), alpha)

onnxruntime fuses them again when it loads the file. A node with an activation that is not among those below, or
with transposed operands, stays as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

MICROSOFT = "com.microsoft"

# Activations by the attributes that their parameters become, in onnxruntime's order.
_PARAMETERS: dict[str, tuple[str, ...]] = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "Clip": ("min", "max"),
}
FUSED = ("FusedConv", "FusedGemm", "FusedMatMul")
_GEMM_PARAMETERS = ("activation_alpha", "activation_beta", "activation_gamma")


def take_apart(model: onnx.ModelProto) -> None:
    """Replace the fused nodes of the main graph in place.

    Args:
        model: a prepared model, opset 13 or newer.
    """
    if not any(node.domain == MICROSOFT and node.op_type in FUSED for node in model.graph.node):
        return
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        nodes += _apart(node, model.graph, taken) or [node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    if not any(node.domain == MICROSOFT for node in model.graph.node):
        kept = [entry for entry in model.opset_import if entry.domain != MICROSOFT]
        del model.opset_import[:]
        model.opset_import.extend(kept)


def _apart(node: NodeProto, graph: onnx.GraphProto, taken: set[str]) -> list[NodeProto] | None:
    """The standard nodes that a fused one stands for; None if it is none, or not one of the definitions."""
    if node.domain != MICROSOFT or node.op_type not in FUSED or len(node.output) != 1:
        return None
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "FusedMatMul":
        return _scaled_product(node, graph, attributes, taken)
    activation = attributes.pop("activation", b"").decode(errors="replace")
    parameters = list(attributes.pop("activation_params", []))
    parameters += [attributes.pop(name) for name in _GEMM_PARAMETERS if name in attributes]
    names = _PARAMETERS.get(activation)
    if names is None or len(parameters) < len(names):
        return None

    output = node.output[0]
    linear = _unique(f"{output}.linear", taken)
    layer = helper.make_node(
        node.op_type.removeprefix("Fused"), list(node.input[:3]), [linear], name=node.name, **attributes
    )
    steps = [layer]
    if len(node.input) > 3 and node.input[3]:
        summed = _unique(f"{output}.sum", taken)
        steps.append(helper.make_node("Add", [linear, node.input[3]], [summed]))
        linear = summed
    inputs, settings = [linear], dict[str, Any](zip(names, parameters, strict=False))
    if activation == "Clip":
        for name in names:
            inputs.append(_unique(f"{output}.{name}", taken))
            graph.initializer.append(numpy_helper.from_array(np.asarray(settings[name], np.float32), inputs[-1]))
        settings = {}
    steps.append(helper.make_node(activation, inputs, [output], **settings))
    return steps


def _scaled_product(
    node: NodeProto, graph: onnx.GraphProto, attributes: dict[str, Any], taken: set[str]
) -> list[NodeProto] | None:
    alpha = attributes.pop("alpha", 1.0)
    if any(attributes.values()):
        return None
    output = node.output[0]
    if alpha == 1:
        return [helper.make_node("MatMul", node.input, [output], name=node.name)]
    product, factor = (_unique(f"{output}.{hint}", taken) for hint in ("product", "alpha"))
    graph.initializer.append(numpy_helper.from_array(np.asarray(alpha, np.float32), factor))
    scaled = helper.make_node("Mul", [product, factor], [output])
    return [helper.make_node("MatMul", node.input, [product], name=node.name), scaled]


def _unique(hint: str, taken: set[str]) -> str:
    """A tensor name that is not in use yet."""
    name = hint
    while name in taken:
        name += ".1"
    taken.add(name)
    return name
