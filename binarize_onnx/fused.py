"""What onnxruntime fuses when it saves an optimised model, taken apart again into standard operators.

    before   com.microsoft::FusedConv(X, W, B, Z; activation, activation_params)
    after    activation(Add(Conv(X, W, B), Z))

    before   com.microsoft::FusedGemm(A, B, C; activation, activation_alpha, activation_beta)
    after    activation(Gemm(A, B, C))

onnxruntime fuses them again when it loads the file. A node with an activation that is not among those below stays as
it is.
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
_GEMM_PARAMETERS = ("activation_alpha", "activation_beta", "activation_gamma")


def take_apart(model: onnx.ModelProto) -> None:
    """Replace the fused nodes of the main graph in place.

    Args:
        model: a prepared model, opset 13 or newer.
    """
    if not any(node.domain == MICROSOFT and node.op_type in ("FusedConv", "FusedGemm") for node in model.graph.node):
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
    if node.domain != MICROSOFT or node.op_type not in ("FusedConv", "FusedGemm") or len(node.output) != 1:
        return None
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    activation = attributes.pop("activation", b"").decode(errors="replace")
    parameters = list(attributes.pop("activation_params", []))
    parameters += [attributes.pop(name) for name in _GEMM_PARAMETERS if name in attributes]
    names = _PARAMETERS.get(activation)
    if names is None or len(parameters) < len(names):
        return None

    def unique(hint: str) -> str:
        name = hint
        while name in taken:
            name += ".1"
        taken.add(name)
        return name

    output = node.output[0]
    linear = unique(f"{output}.linear")
    layer = helper.make_node(
        node.op_type.removeprefix("Fused"), list(node.input[:3]), [linear], name=node.name, **attributes
    )
    steps = [layer]
    if len(node.input) > 3 and node.input[3]:
        summed = unique(f"{output}.sum")
        steps.append(helper.make_node("Add", [linear, node.input[3]], [summed]))
        linear = summed
    inputs, settings = [linear], dict[str, Any](zip(names, parameters, strict=False))
    if activation == "Clip":
        for name in names:
            inputs.append(unique(f"{output}.{name}"))
            graph.initializer.append(numpy_helper.from_array(np.asarray(settings[name], np.float32), inputs[-1]))
        settings = {}
    steps.append(helper.make_node(activation, inputs, [output], **settings))
    return steps
