"""Put packed words side by side, instead of floats.

    before   q = PackSign(DepthToSpace(x), axis 1)          mode DCR, C a multiple of 32 channels left
    after    q = Reshape(Transpose(Reshape(PackSign(x, axis 1))))

In mode DCR the channels of one place in the block follow one another and fill whole words. onnxruntime's DepthToSpace
takes no uint32, so its definition is written out. Thresholds of C channels become those of every place in the block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from binarize_onnx.bits import WORD
from binarize_onnx.passes.base import Array, Pass, Skip, producer, record
from binarize_onnx.passes.lower_layers import insert_pack
from binarize_onnx.passes.packing import Pack, layers_reading, match_pack, only_packed
from binarize_onnx.passes.transposed_conv import interleave


@dataclass(frozen=True)
class SpacedPack:
    """A PackSign behind a DepthToSpace that nothing else reads."""

    pack: Pack
    x: gs.Tensor
    block: int
    words: int
    threshold: Array
    flip: Array


class DepthToSpaceOnBits(Pass[SpacedPack]):
    """Swap PackSign with the DepthToSpace in front of it."""

    def match(self, node: gs.Node) -> SpacedPack | Skip | None:
        """PackSign(DepthToSpace(x)) of one plane whose thresholds depend on the channel alone."""
        pack = match_pack(node)
        space = None if pack is None else producer(pack.x)
        if pack is None or space is None or space.domain or space.op != "DepthToSpace" or pack.axis != 1:
            return None
        threshold, channels = pack.channel_threshold, self.context.known_dim(pack.x, 1)
        whole = channels is not None and channels % WORD == 0 and space.attrs.get("mode", "DCR") in ("DCR", b"DCR")
        if threshold is None or channels is None or not whole or not only_packed(pack.x, self.context):
            return None
        block = int(space.attrs["blocksize"])
        repeated = [(v if v.size == 1 else np.tile(v, block * block)).reshape(1, 1, -1, 1, 1) for v in threshold]
        return SpacedPack(pack, space.inputs[0], block, channels // WORD, *repeated)

    def rewrite(self, site: SpacedPack) -> None:
        """Pack what the DepthToSpace reads, then move its words."""
        context, output = self.context, site.pack.node.outputs[0]
        site.pack.node.outputs.clear()
        packed = insert_pack(context, site.x, site.threshold, site.pack.encode, site.flip, 1, f"{site.x.name}.unmoved")
        block = (site.block, site.block)
        interleave(context, packed, output, site.x, (*block, site.words), block)
        for layer in layers_reading(output):
            record(context.journal.moved, layer, "reads bits that were moved")
