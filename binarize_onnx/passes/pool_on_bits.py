"""Pool bits instead of floats.

    before   q = PackSign(MaxPool(x), threshold, flip)
    after    q = PackedMaxPool(PackSign(x, threshold, flip), invert = flip)

The maximum reaches a threshold where any element does: pooled bits are the OR. Where the bit is flipped (a negative
batch-normalization factor) it is set only if no element reaches the threshold: AND, which `invert` asks for. Pads of
MaxPool are minus infinity and never change the maximum, as the pads of PackedMaxPool never change its result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from binarize_onnx import opset
from binarize_onnx.passes.base import Array, Pass, Skip, producer, record
from binarize_onnx.passes.ideal import pool_size_is_settled
from binarize_onnx.passes.lower_layers import insert_pack
from binarize_onnx.passes.packing import Pack, layers_reading, match_pack, only_packed


@dataclass(frozen=True)
class PooledPack:
    """A MaxPool that only a PackSign reads."""

    pack: Pack
    pool: gs.Node
    channels: int
    invert: Array


class PoolOnBits(Pass[PooledPack]):
    """Swap PackSign with the MaxPool in front of it."""

    def match(self, node: gs.Node) -> PooledPack | Skip | None:
        """PackSign(MaxPool(x)) over channels, one plane, the same threshold at every position."""
        pack = match_pack(node)
        pool = None if pack is None else producer(pack.x)
        if pack is None or pool is None or pool.op != "MaxPool" or pack.axis != 1 or pack.rank != 4:
            return None
        threshold = pack.channel_threshold
        channels = self.context.known_dim(pool.inputs[0], 1)
        indices_used = len(pool.outputs) > 1 and not pool.outputs[1].is_empty()
        if threshold is None or channels is None or indices_used or not only_packed(pack.x, self.context):
            return None
        if (
            pool.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
            or pool_size_is_settled(pool, self.context) is not True
        ):
            return None
        invert = np.broadcast_to(threshold[1], (channels,)).reshape(-1, 1, 1)
        return PooledPack(pack, pool, channels, np.ascontiguousarray(invert))

    def rewrite(self, site: PooledPack) -> None:
        """Pack what the pool reads, then pool the bits."""
        pack, pool, context = site.pack, site.pool, self.context
        output = pack.node.outputs[0]
        pack.node.outputs.clear()
        source = pool.inputs[0]
        unpooled = insert_pack(
            context, source, pack.threshold, pack.encode, pack.flip, pack.axis, f"{source.name}.unpooled"
        )
        context.insert(
            "PackedMaxPool",
            [unpooled, context.constant(f"{output.name}.invert", site.invert)],
            [output],
            name=context.unique(f"{pool.name or output.name}.bits"),
            domain=opset.DOMAIN,
            attrs={
                "channels": site.channels,
                "kernel_shape": list(pool.attrs["kernel_shape"]),
                "strides": list(pool.attrs.get("strides", [1, 1])),
                "pads": list(pool.attrs.get("pads", [0, 0, 0, 0])),
                "dilations": list(pool.attrs.get("dilations", [1, 1])),
                "ceil_mode": int(pool.attrs.get("ceil_mode", 0)),
            },
        )
        for layer in layers_reading(output):
            record(context.journal.moved, layer, "reads max-pooled bits")
