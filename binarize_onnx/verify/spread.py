"""How far a source's binary layers are from one scale times ±1, as the source itself shows it.

Exporters and optimisers leave noise in what was trained binary: a straight-through residue `(S - R) + R` is ±1 up to a
few roundings, and folded weights ±alpha differ within a channel in their last bits. The ideal graph takes exact signs
and one scale a channel, so the two may differ by that much and no more:

    spread of weights = (largest - smallest magnitude of a channel) / smallest
    noise of signs    = distance from the nearer of the two values / the larger magnitude

Both are measured in the source, never assumed. What exceeds the tolerance of the match mode is not allowed for.
"""

from __future__ import annotations

import numpy as np

from binarize_onnx.verify.arrays import Array

STRICT = 2.0**-16  # as the recogniser admits it; see Config.match
MODERATE = 0.005
NEAR = 2.0**-10  # noise of a sign; what is farther away is another value

# Below this share of a channel's largest magnitude a weight is a zero with noise, beside ternary ±alpha.
_ZERO = 2.0**-10


def weight_spread(weights: Array) -> float:
    """The spread of weights [channels, terms], the largest over the channels; zeros of ternary weights left out."""
    magnitude = np.abs(weights.astype(np.float64))
    largest = magnitude.max(axis=1, keepdims=True)
    zero = magnitude <= _ZERO * largest
    smallest = np.where(zero, np.inf, magnitude).min(axis=1, keepdims=True)
    alive = np.isfinite(smallest) & np.isfinite(largest) & (largest > 0)
    if not np.any(alive):
        return 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        uneven = np.where(alive, (largest - smallest) / smallest, 0)
        noise = np.where(alive & zero, magnitude / largest, 0)
    return float(max(uneven.max(), noise.max()))


def sign_scale(signs: Array, samples: int) -> Array:
    """What ±1 or {0, 1} were multiplied with, a number for each sample where there are samples; 1 where all is 0."""
    magnitude = np.abs(signs.astype(np.float64))
    axes = tuple(range(1, signs.ndim)) if signs.ndim > 1 and signs.shape[0] == samples else None
    scale = magnitude.max(axis=axes, keepdims=True, initial=0.0)
    return np.where(scale == 0, 1.0, scale)


def scaled_signs(signs: Array, samples: int) -> Array:
    """Signs without their scale; NaN where that is infinite."""
    with np.errstate(invalid="ignore"):
        return np.asarray(signs / sign_scale(signs, samples))


def counted_steps(values: Array, computed: Array) -> Array:
    """What the source has as offset + scale * n, as n; `computed` has n, but for the few elements that differ.

    Args:
        values: the source's tensor.
        computed: the ideal graph's, of whole numbers.
    """
    levels = np.unique(computed)
    if values.shape != computed.shape or len(levels) < 2:
        return np.asarray(computed + (values - np.median(values))) if values.size else values
    middles = [float(np.median(values[computed == level])) for level in levels[[0, -1]]]
    scale = (middles[1] - middles[0]) / float(levels[-1] - levels[0])
    if not np.isfinite(scale) or scale == 0:
        return values
    return np.asarray((values.astype(np.float64) - middles[0]) / scale + float(levels[0]))


def sign_noise(scaled: Array) -> float:
    """The largest distance of scaled signs from -1, 0 or 1; infinite if any is another value altogether."""
    distance = np.abs(scaled - np.clip(np.rint(scaled), -1, 1))
    worst = float(distance.max(initial=0.0))
    return worst if worst <= NEAR else np.inf
