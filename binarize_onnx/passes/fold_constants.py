"""Evaluate what is known before the first sample arrives, and drop what does nothing.

    before   W' = Transpose(Mul(Sign(W), alpha))     W, alpha initializers or Constant nodes
    after    W' an initializer

    before   y = Identity(x) | Dropout(x) | x * 1 | x + 0 | Cast(x) to its own type | Not(Not(x)) | ...
    after    x                                       the graph is for inference

    before   y = Add(x, Expand(c, shape of x))
    after    y = Add(x, c)

Exporters leave such cones behind; a binary weight is often one. The nodes are evaluated by the ONNX reference
implementation. Folding cannot blow a file up. A result may have as many elements as the constants that go with its
node, those that no other node reads; what it has beyond that is added up over the whole graph, and what vanishes
without a result of its size is taken off. Constants never grow beyond twice the elements of the source's and
`GROWTH_LIMIT` more: a node that could take them there, or whose result has no bound, is left in the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from binarize_onnx import order
from binarize_onnx.passes.base import Array, Context, Pass, Skip, constant_value, producer, split_operands

GROWTH_LIMIT = 1 << 22  # elements, at most 8 bytes each

# What is folded, by what bounds the elements of the result.
SIZE_KEEPING = frozenset(
    {
        "Abs",
        "Cast",
        "Ceil",
        "Exp",
        "Flatten",
        "Floor",
        "Log",
        "Neg",
        "Not",
        "Reshape",
        "Round",
        "Sigmoid",
        "Sign",
        "Slice",
        "Sqrt",
        "Squeeze",
        "Tanh",
        "Transpose",
        "Unsqueeze",
    }
)
BROADCASTING = frozenset(
    {
        "Add",
        "And",
        "Clip",
        "Div",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Max",
        "Min",
        "Mod",
        "Mul",
        "Or",
        "Pow",
        "Sub",
        "Where",
    }
)
REDUCTIONS = frozenset(
    {"ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"}
)
QUANTIZED = frozenset({"DequantizeLinear", "QuantizeLinear"})
OTHERS = frozenset({"Concat", "ConstantOfShape", "Expand", "Gather", "Shape", "Size", "Tile", "TopK"})
FOLDED_OPS = SIZE_KEEPING | BROADCASTING | REDUCTIONS | OTHERS
ELEMENTWISE = frozenset({"Add", "Div", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mul", "Sub"})
RESHAPES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
TWICE = frozenset({"Neg", "Not"})  # is nothing
NEUTRAL = {"Mul": 1, "Div": 1, "Add": 0, "Sub": 0}


@dataclass(frozen=True)
class Known:
    """A node whose outputs are known: their values, or the tensor that the one output is anyway."""

    node: gs.Node
    known: list[Array] | gs.Tensor


class FoldConstants(Pass[Known]):
    """Turn Constant nodes and constant cones into initializers; remove Identity and inference-time Dropout."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        constants = [t for t in context.graph.tensors().values() if isinstance(t, gs.Constant)]
        self._room = GROWTH_LIMIT + sum(map(_size, constants))  # elements that constants may still grow by

    def nodes(self) -> list[gs.Node]:
        """Cone after cone: those of all layers at once would hold every step of every layer."""
        return order.cone_by_cone(self.context.graph)

    def match(self, node: gs.Node) -> Known | Skip | None:
        """Constant, an identity, or a foldable node whose every input is a constant."""
        if node.domain not in (None, "", "ai.onnx"):
            return None
        same = self._handed_on(node)
        if same is not None:
            return Known(node, same) if self._can_vanish(node, same) else None
        if not node.outputs or any(map(self.context.is_output, node.outputs)):  # an output needs its node
            return None
        if node.op == "Constant":
            values = _constant_attribute(node)
            return None if values is None else Known(node, [values])
        foldable = node.inputs and (node.op in FOLDED_OPS or (node.op in QUANTIZED and self._is_no_weight(node)))
        if not foldable or not all(isinstance(t, gs.Constant) or t.is_empty() for t in node.inputs):
            return None
        results = _evaluate(node, self.context.graph.opset) if self._has_room(node) else None
        return None if results is None else Known(node, results)

    def rewrite(self, site: Known) -> None:
        """Replace the node's outputs by constants, or by its input."""
        node, inputs, outputs = site.node, list(site.node.inputs), list(site.node.outputs)
        sources: list[gs.Tensor] = []
        if isinstance(site.known, list):
            # A Constant node's value is the source's: it is there already, and as much again may grow.
            size = sum(values.size for values in site.known)
            self._room += size if node.op == "Constant" else self._freed(node) - size
            names = (self.context.unique(f"{output.name}.folded") for output in outputs)
            sources = [gs.Constant(name, values) for name, values in zip(names, site.known, strict=True)]
        else:
            source, output = site.known, outputs[0]
            if self.context.is_output(output):  # the graph's output keeps its name: its producer writes it directly
                maker = producer(source)
                assert maker is not None
                maker.outputs[maker.outputs.index(source)] = output
                source, outputs = output, [source]
            sources = [source]
        node.outputs.clear()
        node.inputs.clear()
        for output, source in zip(outputs, sources, strict=False):
            for consumer in list(output.outputs):
                for index, tensor in enumerate(consumer.inputs):
                    if tensor is output:
                        consumer.inputs[index] = source
        self.context.release(inputs)  # a cone holds few of its constants at a time

    def _is_no_weight(self, node: gs.Node) -> bool:
        """Whether quantization goes on to be computed with: what layers read as integers stays so."""
        return node.op == "QuantizeLinear" or all(reader.op in FOLDED_OPS for reader in node.outputs[0].outputs)

    def _has_room(self, node: gs.Node) -> bool:
        """Whether constants stay within their limit with this node folded."""
        bound = _bound(node)
        return bound is not None and bound - self._freed(node) <= self._room

    def _freed(self, node: gs.Node) -> int:
        """Elements of the constants that vanish with the node: nothing else reads them."""
        constants = {id(t): t for t in node.inputs if isinstance(t, gs.Constant)}.values()
        return sum(_size(t) for t in constants if all(n is node for n in t.outputs) and not self.context.is_output(t))

    def _handed_on(self, node: gs.Node) -> gs.Tensor | None:
        """The input that the node hands on as it is; None if it does something."""
        if not node.inputs or not node.outputs:
            return None
        x = node.inputs[0]
        if node.op == "Identity":
            return x
        if node.op == "Dropout":  # outside training mode, its mask unread
            mask_read = len(node.outputs) > 1 and (node.outputs[1].outputs or self.context.is_output(node.outputs[1]))
            training = len(node.inputs) > 2 and not node.inputs[2].is_empty()
            mode = constant_value(node.inputs[2]) if training else None
            return None if mask_read or (training and (mode is None or bool(np.any(mode)))) else x
        if node.op in NEUTRAL:
            return self._summand_or_factor(node)
        if isinstance(x, gs.Constant):
            return x if node.op == "Expand" and self._expands_for_nothing(node) else None
        if node.op == "Concat":
            return x if len(node.inputs) == 1 else None
        if node.op == "Cast":
            return x if self.context.types.get(x.name) == int(node.attrs.get("to", 0)) else None
        if node.op in TWICE:
            maker = producer(x)
            return maker.inputs[0] if maker is not None and maker.op == node.op and not maker.domain else None
        return self._moved_back(node)

    def _moved_back(self, node: gs.Node) -> gs.Tensor | None:
        """The tensor that a node brings back to the shape and order that it had, at once or together with others."""
        x = node.inputs[0]
        maker = producer(x)
        if node.op == "Transpose":
            order = list(node.attrs.get("perm", ()))
            if not order or order == sorted(order):
                return x if order else None
            if maker is None or maker.op != "Transpose" or maker.domain:
                return None
            first = list(maker.attrs.get("perm", ()))
            there_and_back = len(first) == len(order) and all(first[o] == i for i, o in enumerate(order))
            return maker.inputs[0] if there_and_back else None
        if node.op not in RESHAPES:
            return None
        # A Reshape behind a Cast to float16 keeps its rounding in place.
        if maker is not None and maker.op == "Cast" and maker.attrs.get("to") == onnx.TensorProto.FLOAT16:
            return None
        shape, found = self.context.shape(node.outputs[0]), None
        while shape:
            if self.context.shape(x) == shape:
                found = x
            maker = producer(x)
            if maker is None or maker.domain or maker.op not in RESHAPES:
                break
            x = maker.inputs[0]
        return found

    def _summand_or_factor(self, node: gs.Node) -> gs.Tensor | None:
        """x of x * 1, x / 1, x + 0 and x - 0, where the constant adds no axes (−0 + 0 is 0: equal numbers)."""
        operands = split_operands(node) if len(node.inputs) == 2 else None
        if operands is None or operands[1].dtype.kind not in "fiu" or not operands[1].size:
            return None
        x, c = operands
        if np.any(c != NEUTRAL[node.op]) or (node.op in ("Div", "Sub") and x is not node.inputs[0]):
            return None
        shape = self.context.shape(x)
        keeps_shape = c.ndim == 0 or (shape is not None and shape == self.context.shape(node.outputs[0]))
        return x if keeps_shape else None

    def _can_vanish(self, node: gs.Node, source: gs.Tensor) -> bool:
        """Whether a node that does nothing can go: an output of the graph must have another producer."""
        if self.context.is_output(node.outputs[0]):
            return producer(source) is not None and not self.context.is_output(source)
        return True

    def _expands_for_nothing(self, node: gs.Node) -> bool:
        """Whether everything that reads an Expand of a constant would broadcast the constant to the same shape."""
        output = node.outputs[0]
        shape = self.context.shape(output)
        for reader in output.outputs:
            if reader.op not in ELEMENTWISE or reader.domain or len(reader.inputs) != 2 or self.context.escapes(output):
                return False
            other = reader.inputs[1] if reader.inputs[0] is output else reader.inputs[0]
            if other is output:
                return False
            measured = producer(node.inputs[1])
            of_other = (
                measured is not None and measured.op == "Shape" and measured.inputs[0] is other and not measured.attrs
            )
            if not of_other and (shape is None or self.context.shape(other) != shape):
                return False
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


def _size(tensor: gs.Constant) -> int:
    return prod(int(d) for d in tensor.shape)


def _bound(node: gs.Node) -> int | None:
    """How many elements the result has at most, by the shapes of its constant inputs; None if that cannot be told."""
    shapes = [tuple(int(d) for d in t.shape) for t in node.inputs if isinstance(t, gs.Constant)]
    if node.op == "Shape":
        return len(shapes[0])
    if node.op == "Size":
        return 1
    if node.op in SIZE_KEEPING or node.op in QUANTIZED:
        text = node.op == "Cast" and node.attrs.get("to") == onnx.TensorProto.STRING  # of any length
        return None if text else prod(shapes[0])
    if node.op in REDUCTIONS:
        return prod(max(d, 1) for d in shapes[0])  # an axis of no elements may be the one that is summed over
    if node.op == "Concat":
        return sum(map(prod, shapes))
    if node.op == "Gather":
        axis = int(node.attrs.get("axis", 0))
        if not -len(shapes[0]) <= axis < len(shapes[0]):
            return None
        return prod(shapes[0][:axis] + shapes[0][axis:][1:]) * prod(shapes[1])
    if node.op == "TopK":
        return 2 * prod(shapes[0])
    if node.op == "Tile":
        repeats = constant_value(node.inputs[1])
        return None if repeats is None or np.any(repeats < 0) else prod(shapes[0]) * prod(int(r) for r in repeats.flat)
    if node.op in ("Expand", "ConstantOfShape"):
        target = constant_value(node.inputs[-1])
        if target is None or target.ndim != 1 or np.any(target < 0):
            return None
        shapes = [*shapes[: len(node.inputs) - 1], tuple(int(d) for d in target)]
    sizes = [max(dims) if 0 not in dims else 0 for dims in zip_longest(*(s[::-1] for s in shapes), fillvalue=1)]
    return prod(sizes)


def _evaluate(node: gs.Node, version: int) -> list[Array] | None:
    """One node's outputs, by the ONNX reference implementation; None where that does not know the types."""
    attributes: dict[str, Any] = {
        name: numpy_helper.from_array(np.asarray(v.values)) if isinstance(v, gs.Constant) else v
        for name, v in node.attrs.items()
    }
    feeds = {f"i{k}": np.asarray(t.values) for k, t in enumerate(node.inputs) if isinstance(t, gs.Constant)}
    if node.op in ("Clip", "Max", "Min") and any(v.dtype.kind == "f" and np.isnan(v).any() for v in feeds.values()):
        return None  # runtimes disagree
    names = ["" if t.is_empty() else f"i{k}" for k, t in enumerate(node.inputs)]
    outputs = [f"o{k}" for k in range(len(node.outputs))]
    proto = helper.make_node(node.op, names, outputs, **attributes)
    graph = helper.make_graph(
        [proto],
        "fold",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feeds.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=8)
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(model).run(None, feeds)
    except Exception:  # it raises what its NumPy code happens to raise; the runtime will evaluate the node
        return None
    return [np.asarray(result) for result in results]
