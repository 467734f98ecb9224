"""The last layer's new weights: cross-validation against its definition, and what it is there for on fresh samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from binarize_onnx.quantize.readout import RIDGES, refit
from binarize_onnx.quantize.weights import Moments

Array = npt.NDArray[Any]


def layer(samples: int, inputs: int = 40, outputs: int = 5, seed: int = 0) -> tuple[Array, Array, Array]:
    """Damaged inputs [samples, D] of a layer, its right answers [samples, O], and its weights [O, D]."""
    w = np.random.default_rng(99).normal(size=(outputs, inputs))
    mixing = np.random.default_rng(98).normal(size=(inputs, inputs))
    rng = np.random.default_rng(seed)
    right = rng.normal(size=(samples, inputs)) @ mixing + 3
    damaged = right + np.where(np.arange(inputs) % 2, 6.0, 0.5) * rng.normal(size=right.shape) - 1
    return damaged, right @ w.T + 2, w


def moments_of(h: Array, z: Array) -> Moments:
    moments = Moments(h.shape[1], z.shape[1])
    moments.update(h, z)
    return moments


def distance(h: Array, z: Array, weights: Array, shift: Array) -> float:
    return float(np.square(h @ weights.T + shift - z).mean())


@pytest.mark.parametrize("samples", [30, 60, 400])
def test_the_weights_are_those_of_the_best_cross_validation(samples: int) -> None:
    """By the definition: residuals and the trace of the matrix that makes answers of answers."""
    h, z, w = layer(samples)
    centred, missing = h - h.mean(axis=0), z - h @ w.T
    missing = missing - missing.mean(axis=0)
    candidates = []
    for ridge in RIDGES * h.var(axis=0).mean():
        inverse = np.linalg.inv(centred.T @ centred / samples + ridge * np.eye(len(w.T)))
        change = inverse @ centred.T @ missing / samples
        freedom = 1 + np.trace(centred @ inverse @ centred.T) / samples
        if freedom < samples:
            left = np.square(missing - centred @ change).sum() / (1 - freedom / samples) ** 2
            candidates.append((left, w + change.T))
    best, wanted = min(candidates, key=lambda pair: pair[0])
    assert best < np.square(missing).sum() / (1 - 1 / samples) ** 2
    weights, shift = refit(moments_of(h, z), w)
    np.testing.assert_allclose(weights, wanted, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(shift, (z - h @ weights.T).mean(axis=0))


@pytest.mark.parametrize("samples", [20, 45, 80, 1000])
def test_fresh_samples_are_answered_better(samples: int) -> None:
    """Better than by the old weights, and, where samples are few, than by least squares alone."""
    h, z, w = layer(samples)
    weights, shift = refit(moments_of(h, z), w)
    fresh, answers, _ = layer(4000, seed=1)
    mended = distance(fresh, answers, weights, shift)
    assert mended < distance(fresh, answers, w, (z - h @ w.T).mean(axis=0))
    plain = np.linalg.lstsq(h - h.mean(axis=0), z - z.mean(axis=0), rcond=None)[0].T
    by_plain = distance(fresh, answers, plain, z.mean(axis=0) - plain @ h.mean(axis=0))
    assert mended < (by_plain if samples < 100 else 1.02 * by_plain)


def test_a_layer_that_lost_nothing_stays_as_it_is() -> None:
    h, _, w = layer(50)
    weights, shift = refit(moments_of(h, h @ w.T + 2), w)
    np.testing.assert_allclose(weights, w, atol=1e-9)
    np.testing.assert_allclose(shift, 2)


@pytest.mark.parametrize("samples", [0, 1, 2])
def test_with_hardly_a_sample_the_weights_stay_finite(samples: int) -> None:
    h, z, w = layer(samples)
    weights, shift = refit(moments_of(h, z), w)
    assert np.isfinite(weights).all()
    assert np.isfinite(shift).all()
    if samples < 2:
        np.testing.assert_array_equal(weights, w)


def test_constant_inputs_change_the_shift_alone() -> None:
    _, z, w = layer(60)
    h = np.full((60, w.shape[1]), 2.0)
    weights, shift = refit(moments_of(h, z), w)
    np.testing.assert_array_equal(weights, w)
    np.testing.assert_allclose(shift, z.mean(axis=0) - 2 * w.sum(axis=1))
