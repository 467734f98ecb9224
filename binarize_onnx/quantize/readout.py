"""The last layer of a quantized network stays float; its weights are fitted again to what reaches it now.

The float layer z = W·a + b reads what quantized layers make of a.  Of all V and shifts, least squares on the samples
alone would take those that fit the samples, not the network: there are hundreds of weights an output and often no more
samples.  So V is drawn to W,

    least  Σ (z − V·a − shift)² + n λ |V − W|²        V = W + (T − W·H) (H + λ)⁻¹,  H = cov(a, a), T = cov(z, a)

and λ is the one of least generalised cross-validation, n Σ(error²) / (n − degrees of freedom)² (Golub, Heath and Wahba,
"Generalized cross-validation as a method for choosing a good ridge parameter", 1979), which moments are enough for.
"""

from __future__ import annotations

import numpy as np

from binarize_onnx.passes.base import Array
from binarize_onnx.quantize.weights import Moments

RIDGES = 4.0 ** np.arange(-10, 6)  # times the mean variance of the inputs: every λ that is tried, but for infinity


def refit(moments: Moments, weights: Array) -> tuple[Array, Array]:
    """Weights V, float64 [O, D], and shifts, float64 [O], of a layer with the weights W [O, D].

    `moments` are those of its inputs and of what it should answer to them.  Without them, or where no λ is better than
    an infinite one, the weights stay as they are; the shifts always make the mean answers right.

    Raises:
        ValueError: there are more inputs than covariances are kept of.
    """
    h = moments.hh
    left = moments.hz - h @ weights.T  # [D, O]: covariances of the inputs and what W does not answer
    error = float((moments.zz - np.einsum("od,do->o", weights, moments.hz + left)).sum())
    variance, axes = np.linalg.eigh(h)
    variance = np.maximum(variance, 0.0)
    left = axes.T @ left
    power = np.square(left).sum(axis=1)
    best, change = _validated(error, 1.0, moments.count), np.zeros_like(left)
    for ridge in RIDGES * variance.mean():
        if ridge <= 0:
            continue
        share = 1 / (variance + ridge)
        reached = error - float((power * share * (2 - variance * share)).sum())
        validated = _validated(reached, 1.0 + float((variance * share).sum()), moments.count)
        if validated < best:
            best, change = validated, left * share[:, None]
    fitted = weights + (axes @ change).T
    return fitted, moments.mean_z - fitted @ moments.mean_h


def _validated(error: float, freedom: float, samples: int) -> float:
    """Generalised cross-validation of a mean squared error: infinite where nothing is left to validate with."""
    return max(error, 0.0) / (1 - freedom / samples) ** 2 if samples > freedom else np.inf
