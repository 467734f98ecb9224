"""Constant cones of a graph become initializers, with the values that onnxruntime computes.

    before   w = initializer;  s = Sign(w);  a = ReduceMean(Abs(w));  W = Mul(s, a);  y = Conv(x, W)
    after    W = initializer;  y = Conv(x, W)

Weights that are written as a cone are constants for the comparison as well: what they are can be measured, and the
sum of |terms| behind a layer holds |W|, not every intermediate of the cone.
"""

from __future__ import annotations

import onnx
from onnx import NodeProto, numpy_helper

from binarize_onnx.errors import ModelError
from binarize_onnx.verify.graphs import is_standard, pruned, reads
from binarize_onnx.verify.session import Runner

# No value of theirs is the same twice.
_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without its constant cones; the model itself if it has none, or onnxruntime does not run them."""
    known = {t.name for t in model.graph.initializer}
    known |= {name for node in model.graph.node if node.op_type == "Constant" for name in node.output}
    cone = [node for node in model.graph.node if _extends(node, known)]
    inside = {name for node in cone for name in node.output}
    results = {out.name for out in model.graph.output}
    outside = [node for node in model.graph.node if not inside.intersection(node.output)]
    edge = [name for name in inside if name in results or any(name in reads(node) for node in outside)]
    if not edge:
        return model
    try:
        values = Runner(pruned(model, sorted(edge))).run({})
    except ModelError:
        return model
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.node[:]
    changed.graph.node.extend(outside)
    changed.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    return changed


def _extends(node: NodeProto, known: set[str]) -> bool:
    """Whether the node computes a constant from constants; `known` grows by it."""
    computes = (
        is_standard(node)
        and node.op_type not in _RANDOM | {"Constant"}
        and bool(node.input)
        and not any(a.HasField("g") or a.graphs for a in node.attribute)
        and all(name in known for name in node.input if name)
    )
    if computes:
        known.update(name for name in node.output if name)
    return computes
