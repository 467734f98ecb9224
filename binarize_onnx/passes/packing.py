"""Reading and replacing PackSign nodes, which the passes move up the graph towards what makes the bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from binarize_onnx import opset
from binarize_onnx.passes.base import Array, Context, along_axis, constant_value

WORD_OPS = frozenset({"Concat", "PackedMaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


@dataclass(frozen=True)
class Pack:
    """A PackSign with constant thresholds; `threshold` and `flip` have the rank of X plus the plane axis."""

    node: gs.Node
    x: gs.Tensor
    threshold: Array
    encode: Array
    flip: Array
    axis: int

    @property
    def rank(self) -> int:
        """Rank of X."""
        return self.threshold.ndim - 1

    @property
    def one_plane_each(self) -> bool:
        """Whether every threshold is a plane of its own, so that thresholds can move one by one."""
        return np.array_equal(self.encode, np.eye(*self.encode.shape))

    @property
    def channel_threshold(self) -> tuple[Array, Array] | None:
        """`(threshold [n], flip [n])` of a single plane that depends on the packed axis alone (n = channels or 1)."""
        if self.encode.shape != (1, 1):
            return None
        threshold = along_axis(self.threshold, self.axis + 1, self.rank + 1)
        flip = along_axis(self.flip, self.axis + 1, self.rank + 1)
        return None if threshold is None or flip is None else (threshold, flip)


def match_pack(node: gs.Node) -> Pack | None:
    """The node as a Pack, if it is a PackSign whose thresholds, encoding and flips are constants."""
    if node.domain != opset.DOMAIN or node.op != "PackSign":
        return None
    threshold, encode, flip = (constant_value(t) for t in node.inputs[1:4])
    if threshold is None or encode is None or flip is None:
        return None
    if threshold.dtype != np.float32 or encode.dtype != np.float32 or flip.dtype != np.bool_ or encode.ndim != 2:
        return None
    return Pack(node, node.inputs[0], threshold, encode, flip, int(node.attrs["axis"]))


def only_packed(tensor: gs.Tensor, context: Context) -> bool:
    """Whether nothing but PackSign reads the tensor, so that its values need not exist as floats."""
    readers = context.readers(tensor)
    return not context.escapes(tensor) and all(n.op == "PackSign" and n.domain == opset.DOMAIN for n in readers)


def layers_reading(tensor: gs.Tensor) -> list[str]:
    """Names of the XNOR layers that the bits reach."""
    names: list[str] = []
    for node in tensor.outputs:
        if node.op in ("XnorConv", "XnorMatMul"):
            names.append(node.name)
        elif node.op in WORD_OPS:
            names += layers_reading(node.outputs[0])
    return names
