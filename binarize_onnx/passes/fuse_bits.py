"""Let a layer write the bits that the next one reads.

    before   y = XnorConv(...) -> Y, "";  q = PackSign(y, threshold, encode, flip)
    after    XnorConv(..., threshold, encode, flip) -> Y, Q

Y stays only if something reads it as floats. Where it does not and no float step comes before the threshold, the layer
compares integers: thresholds are rounded up to the integers that they separate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from binarize_onnx.passes.base import Pass, Skip, constant_value, producer, record
from binarize_onnx.passes.fuse_epilogue import ORDER, SLOTS, is_neutral
from binarize_onnx.passes.packing import Pack, match_pack
from binarize_onnx.thresholds import on_integers


@dataclass(frozen=True)
class OwnBits:
    """A PackSign of an XNOR layer's own float output."""

    layer: gs.Node
    pack: Pack


class FuseBits(Pass[OwnBits]):
    """Move a PackSign into the layer whose output it packs; a layer takes one."""

    def match(self, node: gs.Node) -> OwnBits | Skip | None:
        """PackSign(y) along the channels of y, y the output of a layer that writes no bits yet."""
        pack = match_pack(node)
        layer = None if pack is None else producer(pack.x)
        if pack is None or layer is None or layer.name not in self.context.binary:
            return None
        axis = 1 if layer.op == "XnorConv" else pack.rank - 1
        if pack.axis != axis or not layer.outputs[1].is_empty():
            return None
        return OwnBits(layer, pack)

    def rewrite(self, site: OwnBits) -> None:
        """Hand thresholds, encoding and flips to the layer; it writes the PackSign's output."""
        layer, pack = site.layer, site.pack
        threshold = pack.threshold
        if _is_accumulator(layer):
            threshold = on_integers(threshold, _length(layer))
        name = pack.node.outputs[0].name.removesuffix(".bits")
        layer.inputs[SLOTS["threshold"]] = self.context.constant(f"{name}.threshold", threshold)
        layer.inputs[SLOTS["encode"]] = pack.node.inputs[2]
        layer.inputs[SLOTS["flip"]] = pack.node.inputs[3]
        output = pack.node.outputs[0]
        pack.node.outputs.clear()
        pack.node.inputs.clear()
        layer.outputs[1] = output
        record(self.context.journal.moved, layer.name, "writes the next layer's bits")
        if not pack.x.outputs and not self.context.is_output(pack.x):
            layer.outputs[0] = gs.Variable.empty()


class SharePacks(Pass[tuple[gs.Node, gs.Node]]):
    """Pack once what several layers read with the same thresholds."""

    def match(self, node: gs.Node) -> tuple[gs.Node, gs.Node] | Skip | None:
        """Two PackSign of one tensor that agree in everything."""
        if match_pack(node) is None:
            return None
        for other in self.context.readers(node.inputs[0]):
            same = other is not node and other.op == "PackSign" and other.attrs == node.attrs
            if same and all(a is b for a, b in zip(other.inputs, node.inputs, strict=True)):
                return (node, other) if len(node.outputs[0].name) <= len(other.outputs[0].name) else (other, node)
        return None

    def rewrite(self, site: tuple[gs.Node, gs.Node]) -> None:
        """The readers of the second read the first."""
        kept, dropped = (node.outputs[0] for node in site)
        for reader in list(dropped.outputs):
            for index, tensor in enumerate(reader.inputs):
                if tensor is dropped:
                    reader.inputs[index] = kept
        site[1].outputs.clear()
        site[1].inputs.clear()


def is_bare(layer: gs.Node) -> bool:
    """Whether Y is what `combine` makes of the integer dot products: one term, float steps neutral, no float16."""
    return layer.attrs["dtype"] == TensorProto.FLOAT and all(is_neutral(layer, slot) for slot, _ in ORDER)


def _is_accumulator(layer: gs.Node) -> bool:
    """Whether Y is the bare integer dot product with one plane."""
    combine = constant_value(layer.inputs[SLOTS["combine"]])
    return is_bare(layer) and combine is not None and combine.size == 1


def _length(layer: gs.Node) -> int:
    """Terms in the layer's dot product, an upper bound of its magnitude."""
    if layer.op == "XnorMatMul":
        return int(layer.attrs["k"])
    weights = constant_value(layer.inputs[1])
    assert weights is not None
    return int(layer.attrs["channels"]) // int(layer.attrs["group"]) * int(np.prod(weights.shape[2:]))
