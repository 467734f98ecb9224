"""Move packed words instead of floats.

    before   q = PackSign(Transpose(x), axis a)                after   q = Transpose(PackSign(x, axis perm[a]))
    before   q = PackSign(Squeeze | Unsqueeze(x))              after   q = Squeeze | Unsqueeze(PackSign(x))
    before   q = PackSign(Reshape | Flatten(x))                after   q = Reshape(PackSign(x))
    before   q = PackSign(Slice(x))                            after   q = Slice(PackSign(x))
    before   q = PackSign(Concat(x, y))                        after   q = Concat(PackSign(x), PackSign(y))
    before   q = Transpose(Transpose(p))                       after   q = Transpose(p), or p

A Transpose of words moves a 32nd of the data, and the PackSign above it can climb on, to the sign and beyond. The words
of a Reshape keep their place where the packed axis keeps its elements, or is split or joined at multiples of 32; those
of a Concat on the packed axis, where every part but the last fills its words.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from binarize_onnx.bits import WORD, word_count
from binarize_onnx.passes.base import Array, Pass, Skip, constant_value, producer, record
from binarize_onnx.passes.lower_layers import insert_pack, with_plane_axis
from binarize_onnx.passes.packing import Pack, layers_reading, match_pack, only_packed


@dataclass(frozen=True)
class Source:
    """One tensor to pack above the mover: thresholds and flips `[P, ...]` in its own axes."""

    x: gs.Tensor
    threshold: Array
    flip: Array
    axis: int


@dataclass(frozen=True)
class Moved:
    """A PackSign, what to pack instead, and the node that moves the words; `tail` are its inputs behind them."""

    pack: Pack
    sources: list[Source]
    op: str
    attrs: dict[str, Any]
    tail: list[gs.Tensor]


@dataclass(frozen=True)
class Twice:
    """Two Transposes of words in a row, and the one permutation that they make."""

    node: gs.Node
    source: gs.Tensor
    perm: list[int]


class MoveWords(Pass["Moved | Twice"]):
    """Swap PackSign with the op in front of it that only moves elements."""

    def match(self, node: gs.Node) -> Moved | Twice | Skip | None:
        """A PackSign behind a mover that nothing else reads, or a Transpose behind a Transpose of words."""
        if node.op == "Transpose" and not node.domain:
            return self._match_twice(node)
        pack = match_pack(node)
        mover = None if pack is None else producer(pack.x)
        if pack is None or mover is None or mover.domain or not only_packed(pack.x, self.context):
            return None
        shape = self.context.shape(pack.x)
        if shape is None or len(shape) != pack.rank or any(self.context.shape(t) is None for t in mover.inputs):
            return None
        match mover.op:
            case "Transpose":
                return self._over_transpose(pack, mover)
            case "Squeeze" | "Unsqueeze":
                return self._over_axes(pack, mover)
            case "Reshape" | "Flatten":
                return self._over_reshape(pack, mover)
            case "Slice":
                return self._over_slice(pack, mover)
            case "Concat":
                return self._over_concat(pack, mover)
        return None

    def rewrite(self, site: Moved | Twice) -> None:
        """Pack above the mover, which then moves words."""
        context = self.context
        if isinstance(site, Twice):
            output = site.node.outputs[0]
            site.node.outputs.clear()
            if site.perm == sorted(site.perm):
                for reader in list(output.outputs):
                    reader.inputs = [site.source if t is output else t for t in reader.inputs]
            else:
                context.insert("Transpose", [site.source], [output], attrs={"perm": site.perm})
            return
        pack, output = site.pack, site.pack.node.outputs[0]
        pack.node.outputs.clear()
        packed = [
            insert_pack(
                context,
                s.x,
                with_plane_axis(s.threshold, s.threshold.ndim - 1, s.axis),
                pack.encode,
                with_plane_axis(s.flip, s.flip.ndim - 1, s.axis),
                s.axis,
                f"{s.x.name}.unmoved",
            )
            for s in site.sources
        ]
        context.insert(site.op, [*packed, *site.tail], [output], attrs=site.attrs)
        for layer in layers_reading(output):
            record(context.journal.moved, layer, "reads bits that were moved")

    def _match_twice(self, node: gs.Node) -> Twice | None:
        first = producer(node.inputs[0])
        if first is None or first.op != "Transpose" or first.domain:
            return None
        bits = producer(first.inputs[0])
        outer, inner = _perm(node), _perm(first)
        if bits is None or node.inputs[0].dtype != np.uint32 or outer is None or inner is None:
            return None
        perm = [inner[p] for p in outer]
        if perm == sorted(perm) and self.context.escapes(node.outputs[0]):
            return None
        return Twice(node, first.inputs[0], perm)

    def _over_transpose(self, pack: Pack, mover: gs.Node) -> Moved | None:
        perm = _perm(mover) or list(range(pack.rank))[::-1]
        back = np.argsort(perm)

        def moved(values: Array) -> Array:
            places = np.moveaxis(values, pack.axis, 0)
            return places.transpose(0, *(1 + back))

        source = Source(mover.inputs[0], moved(pack.threshold), moved(pack.flip), int(perm[pack.axis]))
        return Moved(pack, [source], "Transpose", {"perm": perm}, [])

    def _over_axes(self, pack: Pack, mover: gs.Node) -> Moved | None:
        """Squeeze and Unsqueeze of axes other than the packed one."""
        axes = constant_value(mover.inputs[1]) if len(mover.inputs) > 1 else None
        if axes is None:
            return None
        x = mover.inputs[0]
        before = len(self.context.shape(x) or ())
        given = {int(a) % (before if mover.op == "Squeeze" else pack.rank) for a in axes.reshape(-1)}
        squeezes = mover.op == "Squeeze"
        kept = [a for a in range(before if squeezes else pack.rank) if a not in given]
        if not squeezes and pack.axis in given:
            return None
        axis = kept[pack.axis] if squeezes else kept.index(pack.axis)

        def moved(values: Array) -> Array:
            places = np.moveaxis(values, pack.axis, 0)
            if squeezes:
                return np.expand_dims(places, tuple(1 + a for a in sorted(given)))
            return np.squeeze(places, tuple(1 + a for a in given))

        source = Source(x, moved(pack.threshold), moved(pack.flip), axis)
        return Moved(pack, [source], mover.op, {}, [mover.inputs[1]])

    def _over_reshape(self, pack: Pack, mover: gs.Node) -> Moved | None:
        """A Reshape that keeps words whole, in front of thresholds that go along with them."""
        x, target = mover.inputs[0], _target(mover)
        before, after = self.context.shape(x), self.context.shape(pack.x)
        given = pack.channel_threshold
        if target is None or before is None or after is None or given is None or mover.attrs.get("allowzero", 0):
            return None
        behind = prod(after[pack.axis + 1 :])
        axis = next((a for a in range(len(before)) if prod(before[a + 1 :]) == behind and before[a] > 1), None)
        length = self.context.known_dim(pack.x, pack.axis)
        old = None if axis is None else self.context.known_dim(x, axis)
        if axis is None or length is None or old is None:
            return None
        split = old % length == 0 and length % WORD == 0
        joined = length % old == 0 and old % WORD == 0 and all(v.size == 1 for v in given)
        if not (old == length or split or joined):
            return None
        words = target.copy()
        if axis < words.size and words[axis] == 0 and axis != pack.axis:  # the copied size is that of the packed axis
            words[axis] = old
        words[pack.axis] = word_count(length)
        along = [1] * (1 + len(before))
        along[1 + axis] = -1
        threshold, flip = ((v if v.size == 1 else np.tile(v, old // length)).reshape(along) for v in given)
        shape = self.context.constant(f"{pack.node.outputs[0].name}.shape", words)
        return Moved(pack, [Source(x, threshold, flip, axis)], "Reshape", {}, [shape])

    def _over_slice(self, pack: Pack, mover: gs.Node) -> Moved | None:
        """A Slice of axes along which neither the words nor the thresholds lie."""
        axes = constant_value(mover.inputs[3]) if len(mover.inputs) > 3 and not mover.inputs[3].is_empty() else None
        if axes is None:
            return None
        cut = {int(a) % pack.rank for a in axes}
        threshold, flip = (np.moveaxis(values, pack.axis, 0) for values in (pack.threshold, pack.flip))
        if pack.axis in cut or any(v.shape[1 + a] > 1 for v in (threshold, flip) for a in cut):
            return None
        return Moved(pack, [Source(mover.inputs[0], threshold, flip, pack.axis)], "Slice", {}, mover.inputs[1:])

    def _over_concat(self, pack: Pack, mover: gs.Node) -> Moved | None:
        """A Concat whose parts fill their words."""
        along = int(mover.attrs["axis"]) % pack.rank
        sizes = [self.context.known_dim(t, along) for t in mover.inputs]
        fixed = [s for s in sizes if s is not None]
        if len(fixed) != len(sizes) or any(isinstance(t, gs.Constant) for t in mover.inputs):
            return None
        if along == pack.axis and (
            not pack.one_plane_each or len(pack.encode) > 1 or any(s % WORD for s in fixed[:-1])
        ):
            return None
        ends = np.cumsum(fixed)

        def part(values: Array, index: int) -> Array:
            places = np.moveaxis(values, pack.axis, 0)
            if places.shape[1 + along] == 1:
                return places
            return places.take(range(ends[index] - fixed[index], ends[index]), 1 + along)

        sources = [
            Source(t, part(pack.threshold, i), part(pack.flip, i), pack.axis) for i, t in enumerate(mover.inputs)
        ]
        return Moved(pack, sources, "Concat", {"axis": along}, [])


def _target(mover: gs.Node) -> Array | None:
    """The shape that a Reshape asks for, or one that asks for what a Flatten does; None if no constant does."""
    if mover.op == "Flatten":
        return np.asarray([0, -1], np.int64) if int(mover.attrs.get("axis", 1)) == 1 else None
    return constant_value(mover.inputs[1])


def _perm(node: gs.Node) -> list[int] | None:
    """The permutation of a Transpose; None if it is the default one."""
    perm = node.attrs.get("perm")
    return None if perm is None else [int(p) for p in perm]
