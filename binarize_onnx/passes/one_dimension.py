"""Give one-dimensional layers a height of 1: from here on there are only two-dimensional ones.

    before   y = Conv(b, W)                              b [N, C, L], W [O, C, k]
    after    y = Squeeze(Conv(Unsqueeze(b), W'))         W' [O, C, 1, k]; also ConvTranspose

    before   z = Add(Mul(y, s), t);  c = BinarySign(MaxPool(z))
    after    the same steps at height 1, between one Unsqueeze and one Squeeze

Steps around such a layer that an epilogue, a threshold or a packed pool could take follow it to height 1; behind each
stands a Squeeze under the old name, which goes where nobody reads it. Neither Unsqueeze nor Squeeze moves data, and no
step computes anything else than it did.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from binarize_onnx import opset
from binarize_onnx.passes.base import Array, Context, Pass, Skip, constant_value, producer

LAYERS = ("Conv", "ConvTranspose")
ELEMENTWISE = frozenset({"Add", "Cast", "Clip", "Greater", "Mul", "PRelu", "Relu", "Where"})
FLATTENING = ("Flatten", "Reshape")
AT_HEIGHT_1: dict[str, int] = {"kernel_shape": 1, "strides": 1, "dilations": 1, "output_padding": 0}


class OneDimension(Pass[gs.Node]):
    """Raise the 1-D layers in `context.binary`, and the steps around them, to height 1."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._raised: dict[str, gs.Variable] = {}  # by the name of a [N, C, L] tensor: the same as [N, C, 1, L]

    def match(self, node: gs.Node) -> gs.Node | Skip | None:
        """A 1-D layer, or a step that reads or feeds what was raised already."""
        if node.name in self.context.binary and node.op in LAYERS:
            weights = constant_value(node.inputs[1])
            return node if weights is not None and weights.ndim == 3 else None
        if node.op in FLATTENING and not node.domain:
            return node if node.inputs[0].name in self._raised and self._drops_position(node) else None
        touched = any(t.name in self._raised for t in (*node.inputs, *node.outputs[:1]))
        return node if touched and self._can_rise(node) else None

    def rewrite(self, site: gs.Node) -> None:
        """Compute at height 1 what the node computes; its output comes from a Squeeze now."""
        if site.op in FLATTENING:
            site.inputs[0] = self._raised[site.inputs[0].name]
            return
        output, layer = site.outputs[0], site.name in self.context.binary
        if site.op == "Pad":
            inputs = [self._raise(site.inputs[0]), self._amounts(site.inputs[1]), *site.inputs[2:]]
        elif layer or site.op == "MaxPool":
            inputs = [self._raise(site.inputs[0]), *(self._weights(t) for t in site.inputs[1:])]
        elif site.op == "Level":  # its thresholds have an axis of their own in front
            inputs = [self._raise(site.inputs[0]), self._broadcast(site.inputs[1], planes=1)]
        else:
            inputs = [self._broadcast(t) for t in site.inputs]
        raised = self._raised.get(output.name)
        if raised is None:
            raised = self._twin(output)
        else:  # readers raised before: no Unsqueeze makes it any more
            unsqueeze = producer(raised)
            assert unsqueeze is not None
            unsqueeze.outputs.clear()
        site.outputs.clear()
        self.context.insert(
            site.op, inputs, [raised], name=site.name, domain=site.domain or "", attrs=_at_height_1(site.attrs)
        )
        self.context.insert("Squeeze", [raised, self._axis(2)], [output])

    def _can_rise(self, node: gs.Node) -> bool:
        """Whether the node is a step on [N, C, L] that means the same at height 1."""
        if len(self.context.shape(node.outputs[0]) or ()) != 3:
            return False
        if node.domain:
            return node.domain == opset.IDEAL_DOMAIN and all(self.context.shape(t) is not None for t in node.inputs)
        if node.op == "MaxPool":
            return len(node.outputs) == 1 and len(node.attrs["kernel_shape"]) == 1
        if node.op == "Pad":
            amounts = constant_value(node.inputs[1])
            axes_given = len(node.inputs) > 3 and not node.inputs[3].is_empty()
            return amounts is not None and amounts.size == 6 and not axes_given
        shaped = all(t.is_empty() or self.context.shape(t) is not None for t in node.inputs)
        return node.op in ELEMENTWISE and shaped

    def _drops_position(self, node: gs.Node) -> bool:
        """Whether a Flatten or Reshape of [N, C, L] makes the same of [N, C, 1, L]."""
        if node.op == "Flatten":
            return int(node.attrs.get("axis", 1)) in (0, 1)
        target = constant_value(node.inputs[1])
        return target is not None and not node.attrs.get("allowzero", 0) and not np.any(target[2:] == 0)

    def _raise(self, tensor: gs.Tensor) -> gs.Variable:
        """The tensor at height 1."""
        if tensor.name not in self._raised:
            self.context.insert("Unsqueeze", [tensor, self._axis(2)], [self._twin(tensor)])
        return self._raised[tensor.name]

    def _twin(self, tensor: gs.Tensor) -> gs.Variable:
        """A new tensor for what `tensor` holds, with a height."""
        context = self.context
        twin = context.variable(f"{tensor.name}.2d", dtype=tensor.dtype)
        shape, kind = context.shape(tensor), context.types.get(tensor.name)
        if kind is not None:
            context.types[twin.name] = kind
        if shape is not None:
            known = context.known.get(tensor.name, (None,) * 3)
            context.shapes[twin.name] = (*shape[:2], 1, *shape[2:])
            context.known[twin.name] = (*known[:2], 1, *known[2:])
        self._raised[tensor.name] = twin
        return twin

    def _broadcast(self, tensor: gs.Tensor, planes: int = 0) -> gs.Tensor:
        """An operand that broadcasts to [N, C, L] behind its `planes`, in the form that broadcasts to [N, C, 1, L]."""
        if tensor.is_empty():
            return tensor
        if tensor.name in self._raised:
            return self._raised[tensor.name]
        shape = self.context.shape(tensor)
        assert shape is not None
        axis = len(shape) - 1
        if axis - planes < 1:  # it varies along the length alone, or not at all
            return tensor
        values = constant_value(tensor)
        if values is not None:
            return self.context.constant(tensor.name, np.expand_dims(values, axis))
        if len(shape) == 3 and not planes:
            return self._raise(tensor)
        raised = self.context.variable(f"{tensor.name}.2d", dtype=tensor.dtype)
        self.context.shapes[raised.name] = (*shape[:axis], 1, *shape[axis:])
        self.context.insert("Unsqueeze", [tensor, self._axis(axis)], [raised])
        return raised

    def _weights(self, tensor: gs.Tensor) -> gs.Tensor:
        values = constant_value(tensor)
        assert values is not None
        return self.context.constant(tensor.name, np.expand_dims(values, 2))

    def _amounts(self, tensor: gs.Tensor) -> gs.Tensor:
        values: Array | None = constant_value(tensor)
        assert values is not None
        return self.context.constant(tensor.name, np.insert(values, [2, 5], 0))

    def _axis(self, axis: int) -> gs.Constant:
        return self.context.constant("axis", np.asarray([axis], np.int64))


def _at_height_1(attrs: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a 1-D window with an axis of height 1 before the length."""
    raised = dict(attrs)
    for name, neutral in AT_HEIGHT_1.items():
        if name in attrs:
            raised[name] = [neutral, *attrs[name]]
    if "pads" in attrs:
        begin, end = attrs["pads"]
        raised["pads"] = [0, begin, 0, end]
    return raised
