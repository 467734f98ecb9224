"""Flatten packed words in front of a dense layer, instead of floats.

    before   XnorMatMul(PackSign(Flatten(x)), B)              x [N, C, H, W], C a multiple of 32
    after    XnorMatMul(Reshape(PackSign(x, axis 1)), B')     B' = B with its rows in the order of the words

Packed, x is [N, C/32, H, W] words; flattening those puts element (c, h, w) at ((c // 32 * H + h) * W + w) * 32 + c % 32
where Flatten puts it at (c * H + h) * W + w. The rows of the weights move along.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from binarize_onnx import bits, opset
from binarize_onnx.passes.base import Array, Pass, Skip, constant_value, producer, record
from binarize_onnx.passes.lower_layers import insert_pack
from binarize_onnx.passes.packing import Pack, match_pack

MASK = 2 + opset.EPILOGUE.index("mask")


@dataclass(frozen=True)
class FlattenedPack:
    """A PackSign behind a Flatten (or a Reshape that flattens), and the dense layers that read it."""

    pack: Pack
    source: gs.Tensor
    shape: tuple[int, int, int]
    threshold: Array
    flip: Array


class FlattenOnBits(Pass[FlattenedPack]):
    """Swap PackSign with the Flatten in front of it."""

    def match(self, node: gs.Node) -> FlattenedPack | Skip | None:
        """PackSign(Flatten(x)) read by XnorMatMul alone, its thresholds the same at every position of a channel."""
        pack = match_pack(node)
        flatten = None if pack is None else producer(pack.x)
        if pack is None or flatten is None or flatten.op not in ("Flatten", "Reshape") or pack.rank != 2:
            return None
        source = flatten.inputs[0]
        before, after = self.context.shape(source), self.context.shape(pack.x)
        if pack.axis != 1 or before is None or after is None or len(before) != 4 or before[0] != after[0]:
            return None
        c, h, w = (self.context.known_dim(source, axis) for axis in (1, 2, 3))
        if c is None or h is None or w is None or c % 32 or after != (before[0], c * h * w):
            return None
        readers = self.context.readers(node.outputs[0])
        if self.context.escapes(node.outputs[0]) or any(
            n.op != "XnorMatMul" or constant_value(n.inputs[1]) is None for n in readers
        ):
            return None
        moved = [_per_channel(v, c, h * w) for v in (pack.threshold, pack.flip)]
        if moved[0] is None or moved[1] is None:
            return None
        return FlattenedPack(pack, source, (c, h, w), moved[0], moved[1])

    def rewrite(self, site: FlattenedPack) -> None:
        """Pack along the channels, flatten the words, permute the rows of the weights and their mask."""
        context, output = self.context, site.pack.node.outputs[0]
        site.pack.node.outputs.clear()
        name = f"{site.source.name}.unflattened"
        packed = insert_pack(context, site.source, site.threshold, site.pack.encode, site.flip, 1, name)
        (c, h, w), planes = site.shape, site.pack.encode.shape[0]
        words = context.constant(f"{output.name}.shape", np.asarray([-1, planes * c // 32 * h * w], np.int64))
        context.insert("Reshape", [packed, words], [output])
        order = np.arange(c * h * w).reshape(c // 32, 32, h, w).transpose(0, 2, 3, 1).reshape(-1)
        for layer in output.outputs:
            for index in (1, MASK):
                values = constant_value(layer.inputs[index])
                if values is not None and not (index == MASK and values.shape[1] == 1):
                    rows = bits.unpack(values, 0, c * h * w)[order]
                    layer.inputs[index] = context.constant(f"{layer.name}.{opset_name(index)}", bits.pack(rows, 0))
            record(context.journal.moved, layer.name, "reads flattened bits")


def opset_name(index: int) -> str:
    """What the permuted input holds: `bits` or `mask`."""
    return "bits" if index == 1 else "mask"


def _per_channel(values: Array, channels: int, positions: int) -> Array | None:
    """A `[1|N, P, C*H*W or 1]` field as `[1, P, C or 1, 1, 1]`, if it does not vary within a channel."""
    if values.shape[0] != 1:
        return None
    if values.shape[2] == 1:
        return values.reshape(1, -1, 1, 1, 1)
    grouped = values.reshape(values.shape[1], channels, positions)
    if np.any(grouped != grouped[:, :, :1]):
        return None
    return grouped[:, :, 0].reshape(1, -1, channels, 1, 1)
