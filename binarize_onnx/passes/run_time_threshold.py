"""Pack against thresholds that the network computes, instead of making floats of ±1 first.

    before   b = BinarySign(x, t, f);  q = PackSign(b)        t, or f, computed at run time (DySign, SiMaN)
    after    q = PackSign(x, Unsqueeze(t), f)

PackSign has an axis for planes in front of the packed one; the Unsqueeze makes room for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from binarize_onnx import opset
from binarize_onnx.passes.base import Pass, Skip, constant_value, producer
from binarize_onnx.passes.packing import Pack, match_pack


@dataclass(frozen=True)
class RunTimeSign:
    """A PackSign and the BinarySign that it reads."""

    pack: Pack
    sign: gs.Node


class RunTimeThreshold(Pass[RunTimeSign]):
    """Move the computed threshold of a BinarySign into the PackSign that reads it."""

    def match(self, node: gs.Node) -> RunTimeSign | Skip | None:
        """PackSign(BinarySign(x, t, f)) with a t or f that is no constant, of known rank."""
        pack = match_pack(node)
        sign = None if pack is None else producer(pack.x)
        if pack is None or sign is None or sign.domain != opset.IDEAL_DOMAIN or sign.op != "BinarySign":
            return None
        if all(constant_value(t) is not None for t in sign.inputs[1:]):
            return None
        shapes = [self.context.shape(t) for t in sign.inputs[1:]]
        if any(shape is None or len(shape) > pack.rank for shape in shapes):
            return None
        low = int(sign.attrs["x_low"])
        between = pack.encode.shape == (1, 1) and np.all((pack.threshold > low) & (pack.threshold <= 1))
        return RunTimeSign(pack, sign) if between and not np.any(pack.flip) else None

    def rewrite(self, site: RunTimeSign) -> None:
        """Let the PackSign compare x itself."""
        x, threshold, flip = site.sign.inputs
        site.pack.node.inputs[0] = x
        site.pack.node.inputs[1] = self._with_plane_axis(threshold, site.pack)
        site.pack.node.inputs[3] = self._with_plane_axis(flip, site.pack)

    def _with_plane_axis(self, tensor: gs.Tensor, pack: Pack) -> gs.Tensor:
        """A field that broadcasts to x, with an axis of length 1 in front of the packed one."""
        shape = self.context.shape(tensor)
        assert shape is not None
        place = pack.axis - (pack.rank - len(shape))
        axes = [place] if place >= 0 else list(range(1 - place))
        values = constant_value(tensor)
        if values is not None:
            return self.context.constant(tensor.name, np.expand_dims(values, tuple(axes)))
        raised = self.context.variable(f"{tensor.name}.planes", dtype=tensor.dtype)
        self.context.insert("Unsqueeze", [tensor, self.context.constant("axes", np.asarray(axes, np.int64))], [raised])
        return raised
