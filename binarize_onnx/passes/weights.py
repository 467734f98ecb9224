"""Binary weights: alpha * signs, one alpha an output channel, up to the rounding that exporters leave."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_graphsurgeon as gs

from binarize_onnx.passes import elementwise
from binarize_onnx.passes.base import Array, constant_value, producer
from binarize_onnx.reasons import Code, Reason

BLOCK = 1 << 18  # elements that are measured at once in float64, which takes five times their memory


@dataclass(frozen=True)
class Weights:
    """alpha * signs: ±1 (0 where masked) of the layer's own layout, one scale an output channel.

    `spread` is the largest relative distance of a magnitude from its channel's scale.
    """

    signs: Array
    scale: Array
    spread: float


def output_axis(node: gs.Node) -> int:
    """The axis of the weights that counts output channels."""
    if node.op == "ConvTranspose":
        return 1
    return 0 if node.op == "Conv" or node.attrs.get("transB", 0) else -1


def known_values(tensor: gs.Tensor) -> Array | None:
    """The values of a constant, also behind QuantizeLinear and DequantizeLinear, which folding leaves alone."""
    values, node = constant_value(tensor), producer(tensor)
    if values is not None or node is None or node.domain or node.op not in ("DequantizeLinear", "QuantizeLinear"):
        return values
    operands = [known_values(t) for t in node.inputs if not t.is_empty()]
    return None if any(o is None for o in operands) else elementwise.apply(node, operands)


def split_scale(weights: Array, axis: int) -> Weights | None:
    """Finite weights as alpha * signs with one alpha an output channel, the mean of its magnitudes; None if empty.

    Zeros beside ±alpha are ternary weights and stay zeros; a channel of nothing but zeros has alpha 0. Whether the
    magnitudes are one is for the caller to judge, by `spread`.
    """
    if weights.size == 0:
        return None
    rows = np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)
    blocks = [_scale(rows[block]) for block in _blocks(rows)]
    scale, spread = np.concatenate([scale for scale, _ in blocks]), max(spread for _, spread in blocks)
    signs = np.sign(weights).astype(np.float32, copy=False)
    if np.any(scale == 0):
        dead = np.expand_dims(scale == 0, [a for a in range(weights.ndim) if a != axis % weights.ndim])
        np.copyto(signs, np.float32(1), where=dead)
    return Weights(signs, scale.astype(np.float32), spread)


def _scale(rows: Array) -> tuple[Array, float]:
    """The mean magnitude of each row, zeros left out, and the largest relative distance from it."""
    magnitude = np.abs(rows).astype(np.float64)
    count = np.count_nonzero(magnitude, axis=1)
    scale = magnitude.sum(axis=1) / np.maximum(count, 1)
    distance = np.where(magnitude > 0, np.abs(magnitude - scale[:, None]), 0)
    return scale, float(np.max(distance / np.where(scale > 0, scale, 1)[:, None]))


def _blocks(rows: Array) -> list[slice]:
    """Rows in groups of about `BLOCK` elements, of two rows at least: NumPy adds up one alone in another order."""
    count = max(1, min(len(rows) // 2, rows.size // BLOCK))
    ends = [len(rows) * i // count for i in range(count + 1)]
    return [slice(*pair) for pair in pairwise(ends)]


def unsuitable(weights: Array) -> Reason | None:
    """What keeps weights from being read as ±alpha before their values matter; None if nothing does."""
    if weights.dtype not in (np.float32, np.float16):
        return Reason(Code.NOT_FLOAT32, f"its weights are {weights.dtype}; only float32 and float16 ones are lowered")
    if weights.ndim < 2:
        return Reason(Code.UNSUPPORTED_RANK, f"its weights have rank {weights.ndim}; at least 2 is needed")
    if not np.all(np.isfinite(weights)):
        return Reason(Code.WEIGHTS_NOT_FINITE, "its weights hold NaN or infinity")
    return None


def layer_bias(node: gs.Node) -> Array | None:
    """The layer's constant bias as a float32 vector, None if it has none."""
    if len(node.inputs) < 3 or node.inputs[2].is_empty():
        return None
    bias = known_values(node.inputs[2])
    return None if bias is None else bias.reshape(-1).astype(np.float32)
