"""Evaluate what is known before the first sample arrives, and drop what does nothing.

    before   W' = Transpose(Mul(Sign(W), alpha))     W, alpha initializers or Constant nodes
    after    W' an initializer

    before   y = Identity(x) | Dropout(x)            the graph is for inference
    after    x

Exporters leave such cones behind; a binary weight is often one. The nodes are evaluated by the ONNX reference
implementation. A result larger than all its inputs by more than `GROWTH_LIMIT` elements is left in the graph, so that
folding cannot blow a small file up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from binarize_onnx.passes.base import Array, Pass, Skip, constant_value, producer

GROWTH_LIMIT = 1 << 20  # elements

FOLDED_OPS = frozenset(
    {
        "Abs",
        "Add",
        "And",
        "Cast",
        "Ceil",
        "Clip",
        "Concat",
        "Div",
        "Equal",
        "Exp",
        "Expand",
        "Flatten",
        "Floor",
        "Gather",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Log",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "Pow",
        "Range",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceSum",
        "Reshape",
        "Round",
        "Shape",
        "Sign",
        "Slice",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Transpose",
        "Unsqueeze",
        "Where",
    }
)


@dataclass(frozen=True)
class Known:
    """A node whose output is known: its values, or None if it is just the node's first input."""

    node: gs.Node
    values: Array | None


class FoldConstants(Pass[Known]):
    """Turn Constant nodes and constant cones into initializers; remove Identity and inference-time Dropout."""

    def match(self, node: gs.Node) -> Known | Skip | None:
        """Constant, an identity, or a foldable node whose every input is a constant."""
        if node.domain not in (None, "", "ai.onnx"):
            return None
        if node.op in ("Identity", "Dropout"):
            return Known(node, None) if self._does_nothing(node) else None
        if node.op == "Constant":
            values = _constant_attribute(node)
        elif node.op in FOLDED_OPS and len(node.outputs) == 1 and not self.context.is_output(node.outputs[0]):
            known = all(isinstance(t, gs.Constant) or t.is_empty() for t in node.inputs)
            values = _evaluate(node) if known and node.inputs and not _too_large(node) else None
        else:
            return None
        return None if values is None else Known(node, values)

    def rewrite(self, site: Known) -> None:
        """Replace the node's output by a constant, or by its input."""
        node, output = site.node, site.node.outputs[0]
        if site.values is not None:
            source: gs.Tensor = gs.Constant(self.context.unique(f"{output.name}.folded"), site.values)
        else:
            source = node.inputs[0]
            if self.context.is_output(output):  # the graph's output keeps its name: its producer writes it directly
                maker = producer(source)
                assert maker is not None
                maker.outputs[maker.outputs.index(source)] = output
                source, output = output, source
        node.outputs.clear()
        for consumer in list(output.outputs):
            for index, tensor in enumerate(consumer.inputs):
                if tensor is output:
                    consumer.inputs[index] = source

    def _does_nothing(self, node: gs.Node) -> bool:
        """Identity always; Dropout outside training mode, its mask unread."""
        output, source = node.outputs[0], node.inputs[0]
        if node.op == "Dropout":
            mask_read = len(node.outputs) > 1 and (node.outputs[1].outputs or self.context.is_output(node.outputs[1]))
            training = len(node.inputs) > 2 and not node.inputs[2].is_empty()
            mode = constant_value(node.inputs[2]) if training else None
            if mask_read or (training and (mode is None or bool(np.any(mode)))):
                return False
        if self.context.is_output(output):
            return producer(source) is not None and not self.context.is_output(source)
        return True


def _constant_attribute(node: gs.Node) -> Array | None:
    """The value of a Constant node, None for the forms that hold no array (strings, sparse tensors)."""
    for name, value in node.attrs.items():
        if name == "value":
            return np.asarray(value.values if isinstance(value, gs.Constant) else value)
        if name in ("value_float", "value_floats"):
            return np.asarray(value, np.float32)
        if name in ("value_int", "value_ints"):
            return np.asarray(value, np.int64)
    return None


def _too_large(node: gs.Node) -> bool:
    """Whether folding could make the file much larger: only ops that broadcast or expand can."""
    if node.op == "Expand":
        shape = constant_value(node.inputs[1])
        return shape is None or int(np.prod(shape)) > GROWTH_LIMIT
    if node.op == "Range":
        return True
    shapes = [tuple(t.shape) for t in node.inputs if isinstance(t, gs.Constant)]
    if node.op in ("Concat", "Gather"):
        return node.op == "Gather" and int(np.prod(shapes[1])) > GROWTH_LIMIT
    try:
        size = int(np.prod(np.broadcast_shapes(*shapes)))
    except ValueError:
        return False
    return size > sum(int(np.prod(s)) for s in shapes) + GROWTH_LIMIT


def _evaluate(node: gs.Node) -> Array | None:
    """One node, by the ONNX reference implementation; None where that does not know the types."""
    attributes: dict[str, Any] = {
        name: numpy_helper.from_array(np.asarray(v.values)) if isinstance(v, gs.Constant) else v
        for name, v in node.attrs.items()
    }
    feeds = {f"i{k}": np.asarray(t.values) for k, t in enumerate(node.inputs) if isinstance(t, gs.Constant)}
    names = ["" if t.is_empty() else f"i{k}" for k, t in enumerate(node.inputs)]
    proto = helper.make_node(node.op, names, ["o"], **attributes)
    graph = helper.make_graph(
        [proto],
        "fold",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feeds.items()],
        [onnx.ValueInfoProto(name="o")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    try:
        (result,) = ReferenceEvaluator(model).run(None, feeds)
    except Exception:  # it raises what its NumPy code happens to raise; the runtime will evaluate the node
        return None
    return np.asarray(result)
