"""What every op computes, written as plainly as possible: unpacked integers, loops, one float32 rounding a step.

Nothing here is shared with the package: the tests compare three independent implementations, namely this file, the
function bodies and the kernels.  NumPy only spares the innermost loops.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
F32 = np.float32


def pack(bits: Array, axis: int) -> Array:
    """Bits along ``axis`` to uint32 words: element 32·j + i is bit i of word j, what is left over is 0."""
    bits = np.moveaxis(bits, axis, 0)
    words = np.zeros(((bits.shape[0] + 31) // 32, *bits.shape[1:]), np.uint32)
    for index, bit in enumerate(bits):
        words[index // 32] |= bit.astype(np.uint32) << np.uint32(index % 32)
    return np.moveaxis(words, 0, axis)


def unpack(words: Array, axis: int, lanes: int) -> Array:
    """Words along ``axis`` to [planes, …] bits in {0, 1}: a plane is ⌈lanes/32⌉ words."""
    words = np.moveaxis(words, axis, 0)
    per_plane = (lanes + 31) // 32
    assert words.shape[0] % per_plane == 0
    planes = []
    for start in range(0, words.shape[0], per_plane):
        plane = [(words[start + lane // 32] >> np.uint32(lane % 32)) & np.uint32(1) for lane in range(lanes)]
        planes.append(np.moveaxis(np.stack(plane), 0, axis))
    return np.stack(planes).astype(np.int64)


def threshold_and_pack(v: Array, axis: int, threshold: Array, encode: Array, flip: Array) -> Array:
    """Values to packed bits: reached thresholds, encoded modulo 2, flipped; planes one after another."""
    v = np.expand_dims(v.astype(F32), axis)
    reached = v >= threshold  # false for NaN
    reached = np.moveaxis(reached, axis, 0)
    planes = []
    for row in encode:
        count = sum(int(row[p]) * reached[p].astype(np.int64) for p in range(len(reached)))
        planes.append(np.asarray(count) % 2 == 1)
    bits = np.moveaxis(np.stack(planes), 0, axis) ^ flip
    return np.concatenate([pack(plane, axis) for plane in np.moveaxis(bits, axis, 0)], axis)


def slope(z: Array, factor: Array) -> Array:
    return np.where(z > 0, z, z * factor)


def epilogue(acc: Array, channel_axis: int, inputs: Mapping[str, Array], dtype: int) -> tuple[Array, Array]:
    """[planes, bases, …] accumulators to (Y, Q); ``channel_axis`` is that of the result, scale[s] broadcasts to it."""
    combine, scale = inputs["combine"].astype(np.int64), inputs["scale"]
    terms = []
    for row in combine:  # t-major: the bases of a row are neighbours
        for base in range(acc.shape[1]):
            terms.append(sum(int(row[p]) * acc[p, base] for p in range(len(row))))
    assert len(terms) == len(scale)

    z = scale[0] * np.asarray(terms[0]).astype(F32)
    for s in range(1, len(terms)):
        z = z + scale[s] * np.asarray(terms[s]).astype(F32)
    z = z * inputs["gate"]
    z = z + inputs["bias"]
    z = slope(z, inputs["slope_pre"])
    residual = inputs["residual"].astype(F32)
    reads = np.arange(z.shape[channel_axis]) % residual.shape[channel_axis]
    z = z + np.take(residual, reads, channel_axis)
    z = z + inputs["shift"]
    z = slope(z, inputs["slope"])
    z = z + inputs["offset"]
    assert z.dtype == F32
    y = z.astype({1: np.float32, 10: np.float16}[dtype])
    q = threshold_and_pack(y, channel_axis % y.ndim, inputs["threshold"], inputs["encode"], inputs["flip"])
    return y, q


def pack_sign(inputs: Mapping[str, Array], *, axis: int) -> tuple[Array]:
    return (threshold_and_pack(inputs["X"], axis, inputs["threshold"], inputs["encode"], inputs["flip"]),)


def unpack_op(inputs: Mapping[str, Array], *, axis: int, channels: int, x_low: int) -> tuple[Array]:
    (bits,) = unpack(inputs["P"], axis, channels)
    return (np.where(bits == 1, 1, x_low).astype(F32),)


def weights(packed: Array, mask: Array, axis: int, lanes: int) -> Array:
    """±1, or 0 where the mask is clear; the mask broadcasts."""
    (signs,) = np.where(unpack(packed, axis, lanes) == 1, 1, -1)
    (kept,) = unpack(mask, axis, lanes)
    product: Array = signs * kept
    return product


def xnor_conv(
    inputs: Mapping[str, Array],
    *,
    channels: int,
    group: int,
    strides: list[int],
    pads: list[int],
    dilations: list[int],
    pad_value: int,
    x_low: int,
    dtype: int,
) -> tuple[Array, Array]:
    x = np.where(unpack(inputs["P"], 1, channels) == 1, 1, x_low)  # [planes, N, C, H, W]
    w = weights(inputs["W"], inputs["mask"], 1, channels // group)  # [filters, C/group, kh, kw]
    planes, batch, _, height, width = x.shape
    filters, per_group, kernel_h, kernel_w = w.shape
    top, left, bottom, right = pads
    padded = np.full((planes, batch, channels, top + height + bottom, left + width + right), pad_value)
    padded[:, :, :, top : top + height, left : left + width] = x

    out_h = (padded.shape[3] - dilations[0] * (kernel_h - 1) - 1) // strides[0] + 1
    out_w = (padded.shape[4] - dilations[1] * (kernel_w - 1) - 1) // strides[1] + 1
    acc = np.zeros((planes, batch, filters, out_h, out_w), np.int64)
    for g in range(group):
        first, last = g * filters // group, (g + 1) * filters // group
        for i in range(out_h):
            for j in range(out_w):
                for a in range(kernel_h):
                    for b in range(kernel_w):
                        row, column = i * strides[0] + a * dilations[0], j * strides[1] + b * dilations[1]
                        tap = padded[:, :, g * per_group : (g + 1) * per_group, row, column]
                        acc[:, :, first:last, i, j] += tap @ w[first:last, :, a, b].T

    outputs = inputs["scale"].shape[1]
    acc = np.moveaxis(acc.reshape(planes, batch, filters // outputs, outputs, out_h, out_w), 2, 1)  # base-major filters
    return epilogue(acc, 1, inputs, dtype)


def xnor_mat_mul(inputs: Mapping[str, Array], *, k: int, x_low: int, dtype: int) -> tuple[Array, Array]:
    a = np.where(unpack(inputs["A"], -1, k) == 1, 1, x_low)  # [planes, …, M, k]
    b = weights(inputs["B"], inputs["mask"], -2, k)  # […, k, bases·N]
    outputs = inputs["scale"].shape[2]
    bases = b.shape[-1] // outputs
    acc = np.stack(
        [np.stack([plane @ b[..., base * outputs : (base + 1) * outputs] for base in range(bases)]) for plane in a]
    )
    return epilogue(acc, -1, inputs, dtype)


def packed_max_pool(
    inputs: Mapping[str, Array],
    *,
    channels: int,
    kernel_shape: list[int],
    strides: list[int],
    pads: list[int],
    dilations: list[int],
    ceil_mode: int,
) -> tuple[Array]:
    (bits,) = unpack(inputs["P"], 1, channels)  # [N, C, H, W]
    all_of_them = np.broadcast_to(inputs["invert"], (channels, 1, 1))[:, 0, 0]
    counts = []
    for axis in (0, 1):
        size, before, after = bits.shape[2 + axis], pads[axis], pads[2 + axis]
        travel = before + size + after - dilations[axis] * (kernel_shape[axis] - 1) - 1
        count = travel // strides[axis] + 1
        if ceil_mode:
            count = -(-travel // strides[axis]) + 1
            if (count - 1) * strides[axis] >= before + size:  # the last window starts past the input
                count -= 1
        counts.append(count)
    out = np.zeros((*bits.shape[:2], *counts), np.bool_)
    for c in range(channels):
        for i in range(counts[0]):
            for j in range(counts[1]):
                window = []
                for a in range(kernel_shape[0]):
                    for b in range(kernel_shape[1]):
                        row = i * strides[0] + a * dilations[0] - pads[0]
                        column = j * strides[1] + b * dilations[1] - pads[1]
                        if 0 <= row < bits.shape[2] and 0 <= column < bits.shape[3]:
                            window.append(bits[:, c, row, column] == 1)
                empty = np.full(len(bits), all_of_them[c])  # the identity: false for OR, true for AND
                reduce = np.logical_and if all_of_them[c] else np.logical_or
                out[:, c, i, j] = reduce.reduce([empty, *window])
    return (pack(out, 1),)


def binary_sign(inputs: Mapping[str, Array], *, x_low: int) -> tuple[Array]:
    bit = (inputs["X"].astype(F32) >= inputs["threshold"]) ^ inputs["flip"]
    return (np.where(bit, F32(1), F32(x_low)),)


def level(inputs: Mapping[str, Array]) -> tuple[Array]:
    count = np.zeros(inputs["X"].shape, F32)
    for threshold in inputs["threshold"]:
        count += inputs["X"].astype(F32) >= threshold
    return (count,)


RUN: dict[str, Any] = {
    "PackSign": pack_sign,
    "Unpack": unpack_op,
    "XnorConv": xnor_conv,
    "XnorMatMul": xnor_mat_mul,
    "PackedMaxPool": packed_max_pool,
    "BinarySign": binary_sign,
    "Level": level,
}
