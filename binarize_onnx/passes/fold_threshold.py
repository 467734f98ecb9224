"""Fold the steps before a sign into its threshold.

    before   b = BinarySign(x, t, f);  q = PackSign(b)
    after    q = PackSign(x, threshold t, flip f)

    before   z = Add(Mul(y, s), c);  q = PackSign(z, t)       also PRelu with slopes >= 0, Relu, Clip
    after    q = PackSign(y, t', flip)

    before   z = Mul(Clip(y, 0, 1), 15);  q = PackSign(z, 15 thresholds, encode)        levels of several bits likewise
    after    q = PackSign(y, 15 thresholds', encode, flip)

t' is the first float32 that the chain itself maps to t or beyond, found by bisection (thresholds.py). A negative
factor turns the comparison round: `flip` carries it. A factor of 0 makes the bit constant. Of the P thresholds of a
level, each moves by itself where the chain rises. Where it falls, level L becomes P - L: the thresholds change places,
and every bit is inverted if that is what P - L means in the encoding. A step whose float result
anything else reads is left standing, and the threshold applies to that result. Nothing that
is float16 is folded, not even a Cast: where onnxruntime computes in float32 what the graph calls float16, it drops
roundings, and only the same nodes drop the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from binarize_onnx.passes.base import (
    Array,
    Pass,
    Skip,
    align,
    along_axis,
    constant_value,
    producer,
    record,
    split_operands,
)
from binarize_onnx.passes.lower_layers import insert_pack
from binarize_onnx.passes.packing import Pack, layers_reading, match_pack, only_packed
from binarize_onnx.passes.signs import Sign, match_sign
from binarize_onnx.thresholds import fold

Monotone = tuple[gs.Tensor, Callable[[Array], Array], tuple[int, ...]]  # (input, function, shape it varies over)


@dataclass(frozen=True)
class Folded:
    """The PackSign that replaces one or more steps."""

    pack: Pack
    x: gs.Tensor
    threshold: Array
    flip: Array
    step: str


class FoldThreshold(Pass[Folded]):
    """Move every PackSign as far up its chain of monotone steps as exactness allows."""

    def match(self, node: gs.Node) -> Folded | Skip | None:
        """A PackSign behind a BinarySign or behind a monotone step that nothing else reads."""
        pack = match_pack(node)
        if pack is None:
            return None
        sign = match_sign(pack.x)
        step = producer(pack.x)
        if step is None:
            return None
        if sign is not None and step.op == "BinarySign":
            return _through_sign(pack, sign)
        return self._through_step(pack, step)

    def rewrite(self, site: Folded) -> None:
        """Replace the PackSign by one that reads the tensor above the step."""
        old = site.pack.node
        output = old.outputs[0]
        name = output.name.removesuffix(".bits")
        replacement = insert_pack(
            self.context, site.x, site.threshold, site.pack.encode, site.flip, site.pack.axis, name
        )
        maker = producer(replacement)
        assert maker is not None
        old.outputs.clear()
        maker.outputs = [output]
        for layer in layers_reading(output):
            if site.step != "BinarySign":
                record(self.context.journal.threshold, layer, site.step, first=True)

    def _through_step(self, pack: Pack, step: gs.Node) -> Folded | None:
        if not only_packed(pack.x, self.context) or self.context.shape(pack.x) is None:
            return None
        found = _monotone(step, pack)
        if found is None or self.context.shape(found[0]) != self.context.shape(pack.x):
            return None
        x, chain, like = found
        moved = _fold(pack, chain, like)
        return None if moved is None else Folded(pack, x, *moved, step.op)


def _fold(pack: Pack, chain: Callable[[Array], Array], like: tuple[int, ...]) -> tuple[Array, Array] | None:
    """`(threshold, flip)` in front of a chain that varies as the shape `like` does; None if they cannot move."""
    try:
        shape = np.broadcast_shapes(pack.threshold.shape, like)
        if pack.one_plane_each:
            shape = np.broadcast_shapes(shape, pack.flip.shape)
    except ValueError:  # a PackSign of the source whose parameters do not fit its input
        return None
    threshold = np.ascontiguousarray(np.broadcast_to(pack.threshold, shape))
    if pack.one_plane_each:
        return fold(chain, threshold, np.ascontiguousarray(np.broadcast_to(pack.flip, shape)))
    moved, falls = fold(chain, threshold, np.zeros(shape, np.bool_))
    falling = np.all(falls, axis=pack.axis, keepdims=True)
    if np.any(falls != falling):  # part of the thresholds can never be reached, or always
        return None
    if np.any(falling):
        ascending = np.array_equal(threshold, np.sort(threshold, axis=pack.axis))  # infinities are among them
        if not ascending or not _complements(pack.encode):
            return None
        moved = np.where(falling, np.flip(moved, axis=pack.axis), moved)
    return moved, pack.flip ^ falling


def _complements(encode: Array) -> bool:
    """Whether each bit of level P - L is the inverse of that of level L."""
    bits = np.cumsum(np.pad(encode, ((0, 0), (1, 0))), axis=1) % 2  # [B, P + 1]
    return bool(np.all(bits != bits[:, ::-1]))


def _through_sign(pack: Pack, sign: Sign) -> Folded | None:
    """bit of b = bit of x, as long as the threshold lies between the two values of b."""
    if pack.encode.shape != (1, 1) or not np.all((pack.threshold > sign.x_low) & (pack.threshold <= 1)):
        return None
    if sign.threshold.ndim > pack.rank or sign.flip.ndim > pack.rank:
        return None
    threshold = np.expand_dims(align(sign.threshold, pack.rank), pack.axis).astype(np.float32)
    flip = np.expand_dims(align(sign.flip, pack.rank), pack.axis) ^ pack.flip
    return Folded(pack, sign.x, threshold, flip, "BinarySign")


def _monotone(step: gs.Node, pack: Pack) -> Monotone | None:
    """A step that is monotone in float32 and per channel; else None."""
    if step.domain:
        return None

    def vector(values: Array) -> Array | None:
        """Constants along the packed axis, broadcasting against the thresholds."""
        flat = along_axis(values, pack.axis, pack.rank)
        if flat is None or flat.dtype != np.float32 or not np.all(np.isfinite(flat)):
            return None
        shape = [1] * (pack.rank + 1)
        shape[pack.axis + 1] = flat.size
        return flat.reshape(shape)

    if step.op in ("Mul", "Add"):
        operands = split_operands(step)
        c = None if operands is None else vector(operands[1])
        if operands is None or c is None:
            return None
        if step.op == "Mul":
            return operands[0], lambda x: x * c, c.shape
        return operands[0], lambda x: x + c, c.shape
    if step.op == "PRelu":
        values = constant_value(step.inputs[1])
        slope = None if values is None else vector(values)
        if slope is None or np.any(slope < 0):
            return None
        return step.inputs[0], lambda x: np.where(x > 0, x, x * slope), slope.shape
    if step.op == "Relu":
        return step.inputs[0], lambda x: np.maximum(x, np.float32(0)), ()
    if step.op == "Clip":
        bounds = [None if t.is_empty() else constant_value(t) for t in step.inputs[1:3]]
        if any(b is None and not t.is_empty() for b, t in zip(bounds, step.inputs[1:3], strict=False)):
            return None
        if any(b is not None and np.any(np.isnan(b)) for b in bounds):
            return None
        low, high = ([*bounds, None, None])[:2]
        return step.inputs[0], lambda x: _clip(x, low, high), ()
    return None


def _clip(x: Array, low: Array | None, high: Array | None) -> Array:
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)
