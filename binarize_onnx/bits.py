"""The ±1 ↔ bit convention, stated once: how a tensor of signs becomes packed words, and back.

A set bit is +1.  A clear bit is the low value of its tensor: −1 for signs, 0 for {0, 1} activations.

A packed tensor is the tensor with ONE axis, of length n, replaced by ⌈n/32⌉ uint32 words; every other axis stays.
Bit i of word j, counted from the least significant, is element 32·j + i.  Lanes at or beyond n are 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

WORD = 32  # lanes in a word


def word_count(n: int) -> int:
    """How many words hold ``n`` lanes."""
    return -(-n // WORD)


def pack(x: NDArray[Any], axis: int) -> NDArray[np.uint32]:
    """Pack ``axis`` of ``x`` into words: an element above zero is a set bit.

    ``x`` may hold booleans, {0, 1} or ±1.  A ternary tensor packs in two calls: its signs ``pack(x, axis)`` and its
    mask ``pack(x != 0, axis)``.
    """
    lanes = np.moveaxis(np.asarray(x) > 0, axis, -1)
    n = lanes.shape[-1]
    padded = np.zeros((*lanes.shape[:-1], WORD * word_count(n)), np.bool_)
    padded[..., :n] = lanes
    words = np.packbits(padded, axis=-1, bitorder="little").view("<u4").astype(np.uint32)
    return np.ascontiguousarray(np.moveaxis(words, -1, axis))


def unpack(words: NDArray[np.uint32], axis: int, n: int) -> NDArray[np.bool_]:
    """The ``n`` bits that ``words`` hold along ``axis``, as booleans; the inverse of :func:`pack`."""
    words = np.asarray(words)
    if words.dtype != np.uint32:
        raise ValueError(f"packed words are uint32, not {words.dtype}")
    if words.shape[axis] != word_count(n):
        raise ValueError(
            f"{n} lanes are {word_count(n)} words, but axis {axis} of {words.shape} has {words.shape[axis]}"
        )
    octets = np.ascontiguousarray(np.moveaxis(words, axis, -1)).astype("<u4").view(np.uint8)
    lanes = np.unpackbits(octets, axis=-1, count=n, bitorder="little").astype(np.bool_)
    return np.ascontiguousarray(np.moveaxis(lanes, -1, axis))
