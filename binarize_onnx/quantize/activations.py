"""Where the levels of a quantized activation lie: uniform steps for each channel, fitted to a histogram of its values.

A tensor a is replaced by the number of thresholds that it reaches, an integer that the kernels look up:

    h = Σ_p [a ≥ threshold_p],  p = 1 … P = 2^bits − 1        a ≈ low + step · h

Low, step and thresholds belong to a channel.  The steps of one channel are equal, so that h itself can be multiplied
with ±1 weights, and the step goes into the weights before these are made binary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from binarize_onnx.passes.base import Array

BINS = 4096  # a channel: half of them for negative values, so a rectified channel is resolved to 1/2048 of its peak
MAX_BITS = 6
NEVER = np.finfo(np.float32).max  # a threshold that no value of a calibrated network reaches

# Parts of the range of a channel, around its median or from its smallest value, from which the fits below start.
_PARTS = tuple(0.94**k for k in range(46))  # from all of it to a sixteenth
_STARTS = 4
_ITERATIONS = 20

Thresholds = Literal["zero", "means"]


@dataclass(frozen=True)
class Levels:
    """What a tensor with C channels becomes: h thresholds reached, which stands for `low + step * h`.

    `threshold` is float32 [P, C] and ascends along its first axis; `low` and `step` are float64 [C].  A channel with
    step 0 is a constant, `low`, and its h is 0.
    """

    threshold: Array
    low: Array
    step: Array

    def reached(self, values: Array, axis: int = 1) -> Array:
        """How many thresholds each of `values`, float32 with the channels at `axis`, reaches: uint8, the same shape."""
        x = np.moveaxis(values, axis, -1)
        h = np.zeros(x.shape, np.uint8)
        for threshold in self.threshold:
            h += x >= threshold
        return np.moveaxis(h, -1, axis)


class ActivationStatistics:
    """Histograms of the channels of a tensor, from any number of batches: 33 KiB a channel, however many values.

    A bin is [k, k+1) times a power of two, which doubles when a value falls outside; exact zeros, the bulk of what
    comes out of a ReLU, are counted apart.  Only counts are kept, so batches and merges may come in any order and of of
    any size: the result is the same to the bit.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.count = np.zeros(channels, np.int64)
        self.zeros = np.zeros(channels, np.int64)
        self.minimum = np.full(channels, np.inf)
        self.maximum = np.full(channels, -np.inf)
        self._bins = np.zeros((channels, BINS), np.int64)
        self._exponent = np.full(channels, np.iinfo(np.int32).min // 2, np.int64)  # values are below 2^exponent

    def update(self, values: Array, axis: int = 1) -> None:
        """Add a batch, with the channels at `axis` and any number of other axes.

        Raises:
            ValueError: the number of channels is another, or a value is NaN or infinite.
        """
        columns = np.moveaxis(values, axis, 0)
        if columns.shape[0] != self.channels:
            raise ValueError(f"{columns.shape[0]} channels, but these statistics are of {self.channels}")
        for channel, column in enumerate(columns):
            self._update_channel(channel, np.ravel(column).astype(np.float64))

    def _update_channel(self, channel: int, values: Array) -> None:
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(low + high):  # NaN comes through min and max
            raise ValueError(f"channel {channel} has a value that is NaN or infinite")
        self.count[channel] += values.size
        self.minimum[channel] = min(self.minimum[channel], low)
        self.maximum[channel] = max(self.maximum[channel], high)
        nonzero = values[values != 0]
        self.zeros[channel] += values.size - nonzero.size
        if nonzero.size:
            self._widen(channel, int(np.frexp(max(-low, high))[1]))
            k = np.floor(np.ldexp(nonzero, BINS.bit_length() - 2 - self._exponent[channel])).astype(np.int64)
            self._bins[channel] += np.bincount(k + BINS // 2, minlength=BINS)

    def _widen(self, channel: int, exponent: int) -> None:
        """Make room for values below 2^exponent: bins that become one are added."""
        shift = exponent - self._exponent[channel]
        if shift <= 0:
            return
        k = (np.arange(BINS) - BINS // 2) >> min(shift, BINS.bit_length())
        merged = np.zeros(BINS, np.int64)
        np.add.at(merged, k + BINS // 2, self._bins[channel])
        self._bins[channel] = merged
        self._exponent[channel] = exponent

    def merge(self, other: ActivationStatistics) -> None:
        """Add everything that `other`, of the same number of channels, has seen."""
        if other.channels != self.channels:
            raise ValueError(f"{other.channels} channels, but these statistics are of {self.channels}")
        for channel in range(self.channels):
            self._widen(channel, int(other._exponent[channel]))
            shift = min(int(self._exponent[channel] - other._exponent[channel]), BINS.bit_length())
            k = (np.arange(BINS) - BINS // 2) >> shift
            np.add.at(self._bins[channel], k + BINS // 2, other._bins[channel])
        self.count += other.count
        self.zeros += other.zeros
        self.minimum = np.minimum(self.minimum, other.minimum)
        self.maximum = np.maximum(self.maximum, other.maximum)

    def levels(self, bits: int, how: Thresholds = "means") -> Levels:
        """Uniform levels of `bits` bits for each channel.

        "means" has the least mean square of a − (low + step·h): the levels of Lloyd and Max (Lloyd, "Least squares
        quantization in PCM", 1982) with equal steps; with one bit, the midpoint of two means.  "zero" is what a naive
        conversion does: with one bit the sign, +1 above zero and −1 elsewhere; with more, equal parts of the range from
        the least to the greatest value.

        Raises:
            ValueError: `bits` is not 1 to 6, or no values were seen.
        """
        if not 1 <= bits <= MAX_BITS:
            raise ValueError(f"{bits} bits: activations have 1 to {MAX_BITS}")
        if not self.count.all():
            raise ValueError("no values were seen")
        top = 2**bits - 1
        if how == "zero":
            if bits == 1:
                threshold = np.full((1, self.channels), np.finfo(np.float32).smallest_subnormal, np.float32)
                return Levels(threshold, np.full(self.channels, -1.0), np.full(self.channels, 2.0))
            return _levels(self.minimum, (self.maximum - self.minimum) / top, top)
        return _levels(*_least_squares(_Points(self), top), top)


def _levels(low: Array, step: Array, top: int) -> Levels:
    """Thresholds halfway between neighbouring levels; where the step is 0, out of reach."""
    halves = np.arange(top)[:, None] + 0.5
    threshold = np.where(step > 0, low + step * halves, NEVER).astype(np.float32)
    return Levels(threshold, low, step)


class _Points:
    """A histogram as points with weights: the middle of each bin, and zero.  Sums over intervals take one look-up."""

    def __init__(self, statistics: ActivationStatistics) -> None:
        half = BINS // 2
        self.minimum, self.maximum = statistics.minimum, statistics.maximum
        self.width = np.ldexp(1.0, statistics._exponent - (BINS.bit_length() - 2))
        middles = (np.arange(BINS) - half + 0.5) * self.width[:, None]
        values = np.insert(middles, half, 0.0, axis=1)
        values = np.clip(values, self.minimum[:, None], self.maximum[:, None])  # where a bin is only partly in use
        counts = np.insert(statistics._bins, half, statistics.zeros, axis=1)
        self.counts = _running_sum(counts.astype(np.float64))
        self.sums = _running_sum(counts * values)
        self.squares = (counts * values * values).sum(axis=1)
        half_way = np.argmax(self.counts[:, 1:] >= self.counts[:, -1:] / 2, axis=1)
        self.median = np.take_along_axis(values, half_way[:, None], 1)[:, 0]

    def below(self, threshold: Array) -> Array:
        """How many points lie below each of `threshold` [C, …]."""
        with np.errstate(divide="ignore", invalid="ignore"):
            bins = np.ceil(threshold / self.width[:, None] - 0.5)
        edges: Array = np.clip(np.nan_to_num(bins), -(BINS // 2), BINS // 2).astype(np.int64) + BINS // 2
        return edges + (threshold > 0)

    def cells(self, low: Array, step: Array, top: int) -> tuple[Array, Array]:
        """How many values have h = 0 … top, and their sums: [C, top + 1] each."""
        edges = self.below(low[:, None] + step[:, None] * (np.arange(top) + 0.5))
        edges = np.pad(edges, ((0, 0), (1, 1)), constant_values=(0, BINS + 1))
        return (
            np.diff(np.take_along_axis(self.counts, edges, 1)),
            np.diff(np.take_along_axis(self.sums, edges, 1)),
        )


def _running_sum(values: Array) -> Array:
    sums: Array = np.pad(np.cumsum(values, axis=1), ((0, 0), (1, 0)))
    return sums


def _least_squares(points: _Points, top: int) -> tuple[Array, Array]:
    """Low and step [C] of the least squared error: alternately cells for the levels and levels for the cells.

    This ends in the nearest minimum, so it starts from several parts of the range, the most promising of many.
    """
    lowest, highest = points.minimum, points.maximum
    starts = []
    for middle in (lowest, points.median):
        for part in _PARTS:
            low = middle - part * (middle - lowest)
            starts.append(_settled(points, top, low, (middle + part * (highest - middle) - low) / top, 1))
    lows, steps, errors = (np.stack(kind) for kind in zip(*starts, strict=True))
    promising = np.argsort(errors, axis=0, kind="stable")[:_STARTS]
    best, best_low, best_step = np.full(len(lowest), np.inf), lowest, (highest - lowest) / top
    for start in promising:
        chosen = (start, np.arange(len(lowest)))
        low, step, error = _settled(points, top, lows[chosen], steps[chosen], _ITERATIONS)
        better = error < best
        best = np.where(better, error, best)
        best_low, best_step = np.where(better, low, best_low), np.where(better, step, best_step)
    return best_low, best_step


def _settled(points: _Points, top: int, low: Array, step: Array, iterations: int) -> tuple[Array, Array, Array]:
    """Low, step and squared error [C] where neither cells nor levels change any more, or nearly so."""
    h = np.arange(top + 1.0)
    error = np.full(len(low), np.inf)
    for _ in range(iterations):
        n, s = points.cells(low, step, top)
        low, step = _regress(h, n, s, low, step)
        level = low[:, None] + step[:, None] * h
        before, error = error, points.squares - 2 * (level * s).sum(axis=1) + (level * level * n).sum(axis=1)
        if not (error < before).any():
            break
    return low, step, error


def _regress(h: Array, n: Array, s: Array, low: Array, step: Array) -> tuple[Array, Array]:
    """The line low + step·h through cells of n values with sums s; where all values are in one cell, as it was."""
    total = n.sum(axis=1)
    mean_h, mean_a = (n * h).sum(axis=1) / total, s.sum(axis=1) / total
    apart = h - mean_h[:, None]
    spread = (n * apart * apart).sum(axis=1)
    possible = spread > 0
    slope = (apart * s).sum(axis=1) / np.where(possible, spread, 1.0)
    return np.where(possible, mean_a - slope * mean_h, low), np.where(possible, slope, step)
