"""Two arrays of one shape, compared value by value: how far apart they are, and whether they are the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = dict[str, Array]  # by the names of the tensors


def difference(a: Array | np.number[Any], b: Array | np.number[Any]) -> npt.NDArray[np.float64]:
    """|a - b|, 0 for equal infinities and NaN pairs, infinite where only one is a number."""
    if a.dtype.kind not in "fiub":
        return np.where(a == b, 0.0, np.inf)
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        distance = np.asarray(np.abs(x - y))
    distance[(x == y) | (np.isnan(x) & np.isnan(y))] = 0.0
    distance[np.isnan(distance)] = np.inf
    return distance


def same_bits(a: Array, b: Array) -> npt.NDArray[np.bool_]:
    """Where two arrays agree bit for bit; any NaN equals any other."""
    if a.dtype != b.dtype:
        return np.zeros(a.shape, np.bool_)
    if a.dtype.kind != "f":
        return np.asarray(a == b)
    words = f"u{a.dtype.itemsize}"
    same = np.ascontiguousarray(a).view(words) == np.ascontiguousarray(b).view(words)
    return np.asarray(same | (np.isnan(a) & np.isnan(b))).reshape(a.shape)
