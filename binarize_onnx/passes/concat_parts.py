"""Read the parts of a Concat instead of the whole: growing tensors need not be copied for every layer that grows them.

    before   s = Slice(Concat(a, b, c), the channels of b)                     after   s = b
    before   s = Slice(Concat(a, b, c), the channels of b and c)               after   s = Concat(b, c)
    before   z = Concat(Concat(a, b), c), all but c whole words                after   z = Concat(a, b, c)

MeliusNet writes `Concat(Slice(x), Slice(x) + layer)` with x a Concat already: afterwards the layer's shortcut is the
part that it improves, which its epilogue can add. Where parts fill their words, what a sign reads is a flat Concat, and
its parts can be packed one by one (`MoveWords`), without a copy. A long one is left nested: in a network that grows
every layer reads all parts before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from binarize_onnx.bits import WORD
from binarize_onnx.passes.base import Pass, Skip, constant_value, producer

MOST_PARTS = 32


@dataclass(frozen=True)
class Parts:
    """A node whose output is these tensors along this axis; a single one is that tensor itself."""

    node: gs.Node
    tensors: list[gs.Tensor]
    axis: int


class ConcatParts(Pass[Parts]):
    """Take the parts of a Concat directly."""

    def match(self, node: gs.Node) -> Parts | Skip | None:
        """A Slice of whole parts of a Concat, or a Concat of one."""
        if node.domain or node.op not in ("Slice", "Concat"):
            return None
        return self._match_slice(node) if node.op == "Slice" else self._match_concat(node)

    def rewrite(self, site: Parts) -> None:
        """One part takes the node's place at its readers; several are concatenated to the same output."""
        output = site.node.outputs[0]
        site.node.outputs.clear()
        site.node.inputs.clear()
        if len(site.tensors) > 1:
            self.context.insert("Concat", site.tensors, [output], attrs={"axis": site.axis})
            return
        for reader in list(output.outputs):
            reader.inputs = [site.tensors[0] if tensor is output else tensor for tensor in reader.inputs]

    def _match_slice(self, node: gs.Node) -> Parts | None:
        parts = self._parts(node.inputs[0])
        bounds = [constant_value(tensor) for tensor in node.inputs[1:] if not tensor.is_empty()]
        if parts is None or len(node.inputs) < 4 or any(v is None or v.size != 1 for v in bounds):
            return None
        if any(tensor.is_empty() for tensor in node.inputs[1:4]):
            return None
        start, end, along, *steps = (int(v.reshape(-1)[0]) for v in bounds if v is not None)
        sizes = [self.context.known_dim(tensor, parts.axis) for tensor in parts.tensors]
        rank = len(self.context.shape(node.inputs[0]) or ())
        if steps not in ([], [1]) or not rank or along % rank != parts.axis or any(size is None for size in sizes):
            return None
        edges = [0, *np.cumsum(np.asarray(sizes, np.int64)).tolist()]
        begin, stop, _ = slice(start, end).indices(edges[-1])
        if begin not in edges or stop not in edges or begin >= stop:
            return None
        taken = parts.tensors[edges.index(begin) : edges.index(stop)]
        seen = len(taken) == 1 and self.context.escapes(node.outputs[0])  # an output keeps its name
        return None if seen else Parts(node, taken, parts.axis)

    def _match_concat(self, node: gs.Node) -> Parts | None:
        axis = self._axis(node)
        tensors: list[gs.Tensor] = []
        for tensor in node.inputs:
            parts = self._parts(tensor)
            tensors += [tensor] if parts is None or parts.axis != axis else parts.tensors
        if axis is None or not len(node.inputs) < len(tensors) <= MOST_PARTS:
            return None
        sizes = [self.context.known_dim(tensor, axis) for tensor in tensors[:-1]]
        return Parts(node, tensors, axis) if all(size is not None and size % WORD == 0 for size in sizes) else None

    def _parts(self, tensor: gs.Tensor) -> Parts | None:
        """What a Concat makes the tensor of."""
        maker = producer(tensor)
        axis = None if maker is None or maker.op != "Concat" or maker.domain else self._axis(maker)
        return None if maker is None or axis is None else Parts(maker, list(maker.inputs), axis)

    def _axis(self, node: gs.Node) -> int | None:
        """The axis of a Concat, counted from the front."""
        shape = self.context.shape(node.outputs[0])
        return None if shape is None else int(node.attrs["axis"]) % len(shape)
