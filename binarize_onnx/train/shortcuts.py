"""Shortcuts without parameters round a binary layer (Bi-Real Net, ECCV 2018, section 3.1; E2FIF for super-resolution).

    y = layer(x) + x                      equal shapes
    y = layer(x) + AveragePool(x)         a layer with strides (ReActNet)
    y = layer(x) + Concat(x, x)           twice as many channels come out (ReActNet)

They change what the network computes, so they are valid only where it is trained afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import torch
from onnx import helper
from torch import Tensor

from binarize_onnx.quantize.rewrite import Names
from binarize_onnx.quantize.sites import Site
from binarize_onnx.train.operators import OPERATORS


@dataclass(frozen=True)
class Shortcut:
    """Average over the strides, and so many copies one after the other."""

    strides: tuple[int, ...]
    copies: int

    @property
    def is_exact(self) -> bool:
        """Whether every runtime computes the same: an average is a sum that may be rounded in another order."""
        return all(s == 1 for s in self.strides)

    def __call__(self, x: Tensor) -> Tensor:
        """What is added to the layer's output, for the layer's input."""
        if any(s > 1 for s in self.strides):
            x = OPERATORS["AveragePool"]([x], {"kernel_shape": self.strides, "strides": self.strides})
        return torch.cat([x] * self.copies, 1) if self.copies > 1 else x

    def nodes(self, x: str, y: str, output: str, unique: Names) -> list[onnx.NodeProto]:
        """The same in ONNX: `output` is what the layer makes, `y`, and the shortcut together."""
        found: list[onnx.NodeProto] = []
        if any(s > 1 for s in self.strides):
            pooled = unique(f"{output}.pooled")
            node = helper.make_node(
                "AveragePool", [x], [pooled], name=pooled, kernel_shape=list(self.strides), strides=list(self.strides)
            )
            found.append(node)
            x = pooled
        if self.copies > 1:
            copied = unique(f"{output}.copied")
            found.append(helper.make_node("Concat", [x] * self.copies, [copied], name=copied, axis=1))
            x = copied
        found.append(helper.make_node("Add", [y, x], [output], name=unique(f"{output}.shortcut")))
        return found


def around(site: Site, before: Sequence[int], after: Sequence[int]) -> Shortcut | None:
    """The shortcut round a layer from its input's shape to its output's; None if none fits without parameters."""
    if site.kind != "conv" or site.outputs % site.channels:
        return None
    averaged = [size // stride for size, stride in zip(before[2:], site.strides, strict=True)]
    if averaged != list(after[2:]):
        return None
    return Shortcut(site.strides, site.outputs // site.channels)
