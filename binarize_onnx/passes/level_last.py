"""Move the steps of a multi-bit activation behind everything that only moves or pools its elements.

    before   Level(x, t) -> MaxPool | Flatten | Reshape | Squeeze | Unsqueeze | Transpose | … -> layer
    after    MaxPool | ... of x -> Level(., t') -> layer

A level rises with its input, so the level of the largest element is the largest level: several planes of bits cannot
be pooled one by one, the values that they encode can. t' holds the thresholds in the places to which the elements went;
Slice, Gather and the like are followed only where all elements share their thresholds. A Level that something else
reads as well stays where it is for that reader.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from binarize_onnx import opset
from binarize_onnx.passes.base import Array, Pass, Skip, align
from binarize_onnx.passes.signs import CARRIERS, Level, match_level

KEEP_ORDER = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class MovedLevel:
    """A carrier that reads levels, and the thresholds behind it."""

    carrier: gs.Node
    level: Level
    threshold: Array


class LevelLast(Pass[MovedLevel]):
    """Swap a Level with the carrier behind it."""

    def match(self, node: gs.Node) -> MovedLevel | Skip | None:
        """A carrier that reads a Level with constant thresholds."""
        if node.domain or node.op not in CARRIERS or len([t for t in node.outputs if not t.is_empty()]) != 1:
            return None
        level = match_level(node.inputs[0])
        threshold = None if level is None else self._behind(node, level)
        return None if level is None or threshold is None else MovedLevel(node, level, threshold)

    def rewrite(self, site: MovedLevel) -> None:
        """The carrier moves the values, and the Level counts thresholds behind it."""
        context, carrier, output = self.context, site.carrier, site.carrier.outputs[0]
        moved = context.variable(f"{output.name}.values", like=output)
        carrier.inputs[0], carrier.outputs[0] = site.level.x, moved
        threshold = context.constant(f"{output.name}.threshold", site.threshold)
        context.insert("Level", [moved, threshold], [output], domain=opset.IDEAL_DOMAIN)

    def _behind(self, carrier: gs.Node, level: Level) -> Array | None:
        """The thresholds `[P, ...]` where the carrier leaves the elements; None if they do not go along."""
        threshold = level.threshold
        planes = threshold.shape[0]
        if threshold.size == planes:  # the same for every element
            return threshold.reshape(planes)
        before, after = self.context.shape(level.x), self.context.shape(carrier.outputs[0])
        if before is None or threshold.ndim - 1 > len(before):
            return None
        places = np.stack([align(t, len(before)) for t in threshold])
        if carrier.op == "MaxPool":  # elements of one window share their thresholds
            return places if all(d == 1 for d in places.shape[3:]) else None
        if carrier.op == "Transpose":
            perm = carrier.attrs.get("perm", range(len(before))[::-1])
            return np.ascontiguousarray(places.transpose(0, *(1 + int(p) for p in perm)))
        if carrier.op not in KEEP_ORDER:
            return None
        fixed = self.context.known.get(level.x.name, ())
        kept_batch = after and places.shape[1] == 1 and len(after) > 1 and after[0] == before[0]
        if after is None or not kept_batch or any(d is None for d in fixed[1:]):
            return None
        each = np.broadcast_to(places, (planes, 1, *before[1:]))
        return np.ascontiguousarray(each).reshape(planes, 1, *after[1:])
