"""Thresholds that reproduce a monotone float32 chain bit for bit.

A chain of correctly rounded float32 steps (multiply, add, PReLU with positive slopes, clip) is monotone in its
input, so the inputs it maps to `>= t` are an up-set or a down-set of the float32 numbers. Its edge is found by
bisecting the chain itself over the ordered float32 lattice; the closed form `-shift / scale` is off at thousands of
points near the edge, because the chain rounds and the closed form rounds differently.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

_LARGEST = int(np.finfo(np.float32).max.view(np.int32))


def fold(chain: Callable[[Float32], Float32], threshold: Float32, flip: Bool) -> tuple[Float32, Bool]:
    """Move a threshold from the end of a chain to its beginning.

    Args:
        chain: an elementwise float32 function, monotone in each element (rising in some, falling in others, constant
            in others), of an array shaped like `threshold`.
        threshold: float32, compared with the chain's result.
        flip: bool, the same shape: whether the comparison's bit is inverted.

    Returns:
        `(threshold', flip')` of the same shape with `(x >= threshold') ^ flip' == (chain(x) >= threshold) ^ flip` for
        every finite float32 x. A bit that does not depend on x gets threshold −inf.
    """

    def reached(lattice: npt.NDArray[np.int64]) -> Bool:
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            result: Bool = chain(_from_lattice(lattice)) >= threshold
        return result

    low = np.full(threshold.shape, -_LARGEST, np.int64)
    high = np.full(threshold.shape, _LARGEST, np.int64)
    at_low, at_high = reached(low), reached(high)
    constant = at_low == at_high
    # Invariant where the bit does change: reached(low) == at_low and reached(high) == at_high.
    while np.any(high - low > 1):
        middle = (low + high) // 2
        before_edge = reached(middle) == at_low
        low = np.where(before_edge, middle, low)
        high = np.where(before_edge, high, middle)
    edge = np.where(constant, np.float32(-np.inf), _from_lattice(high))
    falls = np.where(constant, ~at_low, at_low)
    return edge.astype(np.float32), falls ^ flip


def on_integers(threshold: Float32, bound: int) -> Float32:
    """The same comparison for an integer v with |v| <= bound: `v >= t` is `v >= ceil(t)`, clamped to one past the end.

    −inf (always reached) is kept: it says so more plainly than −bound.
    """
    whole = np.clip(np.ceil(threshold), -bound, bound + 1)
    return np.where(np.isneginf(threshold), threshold, whole).astype(np.float32)


def after(value: Float32) -> Float32:
    """The next float32 above: `x > t` is `x >= after(t)`."""
    return np.nextafter(value, np.float32(np.inf), dtype=np.float32)


def _from_lattice(index: npt.NDArray[np.int64]) -> Float32:
    """The float32 numbers in order: 0 is 0.0, k is the k-th number above it, −k its negative."""
    magnitude = np.abs(index).astype(np.int32).view(np.float32)
    return np.where(index < 0, -magnitude, magnitude).astype(np.float32)
