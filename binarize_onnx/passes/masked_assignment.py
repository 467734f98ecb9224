"""Write an assignment under a mask, `y[mask] = c`, as the choice that it is.

    before   y = ScatterND(x, Transpose(NonZero(mask)), Expand(c, number of set elements))
    after    y = Where(mask, c, x)

PyTorch's newer exporter writes assignments in the first way; the second is elementwise, and may be part of a sign.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs
from onnx import TensorProto

from binarize_onnx.passes.base import Array, Pass, Skip, producer
from binarize_onnx.passes.staircase import uniform_value


@dataclass(frozen=True)
class Assignment:
    """y is x, and c where the mask is set."""

    node: gs.Node
    mask: gs.Tensor
    value: Array


class MaskedAssignment(Pass[Assignment]):
    """Replace ScatterND at the places of a mask by Where."""

    def match(self, node: gs.Node) -> Assignment | Skip | None:
        """ScatterND of one value, at every place where a mask of the tensor's own shape is set."""
        if node.op != "ScatterND" or node.domain or node.attrs.get("reduction", "none") != "none":
            return None
        data, indices, updates = node.inputs
        mask, value = _mask(indices), uniform_value(updates)
        if mask is None or value is None or self.context.types.get(mask.name) != TensorProto.BOOL:
            return None
        shape = self.context.shape(data)
        return Assignment(node, mask, value) if shape is not None and shape == self.context.shape(mask) else None

    def rewrite(self, site: Assignment) -> None:
        """Choose instead."""
        data, output = site.node.inputs[0], site.node.outputs[0]
        site.node.outputs.clear()
        site.node.inputs.clear()
        value = self.context.constant(f"{output.name}.value", site.value)
        self.context.insert("Where", [site.mask, value, data], [output], name=site.node.name)


def _mask(indices: gs.Tensor) -> gs.Tensor | None:
    """The mask whose set places the indices list, one a row."""
    turned = producer(indices)
    if turned is None or turned.domain or turned.op != "Transpose" or list(turned.attrs.get("perm", [1, 0])) != [1, 0]:
        return None
    places = producer(turned.inputs[0])
    return places.inputs[0] if places is not None and places.op == "NonZero" and not places.domain else None
