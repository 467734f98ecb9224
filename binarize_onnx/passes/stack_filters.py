"""Compute layers side by side in one node, where their outputs are joined to more channels (ReActNet's doubling).

    before   z = Concat(XnorConv(p, W0, epilogue0) -> Y, "", XnorConv(p, W1, epilogue1) -> Y, "")     on channels
    after    z = XnorConv(p, [W0; W1], [epilogue0; epilogue1]) -> Y, ""

Both layers read the same bits and have the same attributes; what they read channel by channel is joined as their
outputs were. A residual must be one tensor for both: output o of the node reads its channel o mod R, as output o of
either layer does, because each has a multiple of R outputs. So the bits are read once, the Concat is gone, and the
steps behind it can move into the epilogue. Of a longer Concat any two neighbours that fit are joined; the rest stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_graphsurgeon as gs

from binarize_onnx import opset
from binarize_onnx.passes.base import Array, Pass, Skip, constant_value, producer, record
from binarize_onnx.passes.fuse_epilogue import ORDER, SLOTS

JOINED = ("mask", *(slot for slot, _ in ORDER if slot != "residual"))  # what goes along with the filters


@dataclass(frozen=True)
class Neighbours:
    """Two layers that one node can compute: the makers of the inputs `first` and `first + 1` of a Concat."""

    joined: gs.Node
    first: int
    layers: tuple[gs.Node, gs.Node]


class StackFilters(Pass[Neighbours]):
    """Replace two layers whose outputs a Concat puts side by side by one."""

    def run(self) -> bool:
        """Remember where the layers are: the first of two gives the node its name."""
        self._position = {node.name: index for index, node in enumerate(self.context.graph.nodes)}
        return super().run()

    def match(self, node: gs.Node) -> Neighbours | Skip | None:
        """A Concat of channels with two such layers in a row."""
        if node.op != "Concat" or node.domain:
            return None
        makers = [self._layer(tensor, node) for tensor in node.inputs]
        for index, (one, other) in enumerate(pairwise(makers)):
            if one is not None and other is not None and self._fit(one, other):
                return Neighbours(node, index, (one, other))
        return None

    def _layer(self, tensor: gs.Tensor, joined: gs.Node) -> gs.Node | None:
        """The XNOR layer that writes the tensor as floats for the Concat alone, along the Concat's axis."""
        layer, shape = producer(tensor), self.context.shape(tensor)
        if layer is None or layer.op not in ("XnorConv", "XnorMatMul") or layer.name not in self.context.binary:
            return None
        if shape is None or not layer.outputs[1].is_empty() or len(tensor.outputs) > 1 or self.context.escapes(tensor):
            return None
        along = int(joined.attrs["axis"]) % len(shape)
        if along != (1 if layer.op == "XnorConv" else len(shape) - 1) or layer.attrs.get("group", 1) != 1:
            return None
        if any(constant_value(layer.inputs[i]) is None for i in (1, *(SLOTS[slot] for slot in ("combine", *JOINED)))):
            return None
        bases = layer.inputs[SLOTS["scale"]].shape[0] // layer.inputs[SLOTS["combine"]].shape[0]
        return layer if bases == 1 else None  # filters of several bases do not lie side by side

    def _fit(self, one: gs.Node, other: gs.Node) -> bool:
        """Whether the layers differ in nothing but what can be joined."""
        if one.op != other.op or one.attrs != other.attrs or one.inputs[0] is not other.inputs[0]:
            return False
        combine, residual = SLOTS["combine"], SLOTS["residual"]
        if not np.array_equal(one.inputs[combine].values, other.inputs[combine].values):
            return False
        if one.inputs[residual] is not other.inputs[residual]:
            return False
        window = slice(1, None) if one.op == "XnorConv" else slice(None, -1)
        return tuple(one.inputs[1].shape)[window] == tuple(other.inputs[1].shape)[window]

    def rewrite(self, site: Neighbours) -> None:
        """Insert the node under the name of the first layer in the graph; the other one is recorded with it."""
        context, layers = self.context, site.layers
        one = layers[0]
        name, absorbed = sorted((layer.name for layer in layers), key=self._position.__getitem__)
        inputs = list(one.inputs)
        weights_axis = -4 if one.op == "XnorConv" else -1
        inputs[1] = context.constant(f"{name}.bits", np.concatenate([x.inputs[1].values for x in layers], weights_axis))
        for slot in JOINED:
            axis = -1 if one.op == "XnorMatMul" else -4 if slot == "mask" else -3
            inputs[SLOTS[slot]] = self._join(f"{name}.{slot}", [x.inputs[SLOTS[slot]] for x in layers], layers, axis)
        rest = list(site.joined.inputs)
        if len(rest) == 2:
            output = site.joined.outputs[0]
            site.joined.outputs.clear()
            site.joined.inputs.clear()
        else:
            output = context.variable(f"{rest[site.first].name}.joined", like=rest[site.first])
            self._widen(output, layers)
            rest[site.first : site.first + 2] = [output]
            site.joined.inputs = rest
        for layer in layers:
            layer.inputs.clear()
            layer.outputs.clear()
        context.insert(one.op, inputs, [output, gs.Variable.empty()], name=name, domain=opset.DOMAIN, attrs=one.attrs)
        record(context.journal.moved, name, "its filters stand beside those of a layer on the same bits")
        stacked = context.journal.stacked
        stacked |= {layer: name for layer, node in stacked.items() if node == absorbed} | {absorbed: name}

    def _join(self, name: str, parts: list[gs.Constant], layers: Sequence[gs.Node], axis: int) -> gs.Tensor:
        """One input for both layers; what is the same for all channels stays as it is."""
        first = parts[0]
        if all(part is first for part in parts) and (len(first.shape) < -axis or first.shape[axis] == 1):
            return first
        values = [np.asarray(part.values) for part in parts]
        rank = max(-axis, *(v.ndim for v in values))
        aligned = [v.reshape((1,) * (rank - v.ndim) + v.shape) for v in values]
        around = np.broadcast_shapes(*(np.take(v, [0], axis).shape for v in aligned))
        return self.context.constant(
            name,
            np.concatenate(
                [_for_each(v, around, axis, _outputs(layer)) for v, layer in zip(aligned, layers, strict=True)], axis
            ),
        )

    def _widen(self, output: gs.Tensor, layers: Sequence[gs.Node]) -> None:
        """The shape of one layer's output becomes that of both."""
        axis, channels = 1 if layers[0].op == "XnorConv" else -1, sum(_outputs(layer) for layer in layers)
        stand_in, known = list(self.context.shapes[output.name]), list(self.context.known[output.name])
        stand_in[axis] = known[axis] = channels
        self.context.shapes[output.name], self.context.known[output.name] = tuple(stand_in), tuple(known)


def _outputs(layer: gs.Node) -> int:
    """Output channels: filters of a convolution with one basis, columns of a matrix."""
    return int(layer.inputs[1].shape[0 if layer.op == "XnorConv" else -1])


def _for_each(values: Array, around: tuple[int, ...], axis: int, outputs: int) -> Array:
    """The values for every output channel, in the shape that both layers' values have around that axis."""
    shape = list(around)
    shape[axis] = outputs
    return np.broadcast_to(values, shape)
