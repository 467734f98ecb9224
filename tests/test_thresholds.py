"""Folding thresholds through float32 chains, against evaluating the chain everywhere near the edge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from binarize_onnx.thresholds import after, fold, on_integers

Array = npt.NDArray[Any]
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def check(chain: Callable[[Array], Array], threshold: float, points: Array, flip: bool = False) -> None:
    """The folded threshold gives the bit that the chain itself gives, at every point."""
    edge, flipped = fold(chain, np.full(1, threshold, np.float32), np.full(1, flip))
    with np.errstate(all="ignore"):
        wanted = (chain(points) >= np.float32(threshold)) ^ flip
    np.testing.assert_array_equal((points >= edge) ^ flipped, wanted)


def neighbourhood(edge: float) -> Array:
    """The edge, 200 float32 numbers on either side of it, and numbers of every size."""
    values = [np.float32(edge)]
    for direction in (np.float32(-np.inf), np.float32(np.inf)):
        x = np.float32(edge)
        for _ in range(200):
            x = np.nextafter(x, direction)
            values.append(x)
    powers = [np.float32(s * 2.0**e) for e in range(-149, 128, 3) for s in (1, -1)]
    return np.asarray([v for v in [*values, *powers, np.float32(0)] if np.isfinite(v)], np.float32)


@given(finite, finite, finite, st.booleans())
def test_affine_chain(scale: float, shift: float, threshold: float, flip: bool) -> None:
    s, t = np.float32(scale), np.float32(shift)
    closed_form = (threshold - shift) / scale if scale else 0.0
    edge = closed_form if abs(closed_form) < 3e38 else 0.0
    check(lambda x: x * s + t, threshold, neighbourhood(edge), flip)


@given(finite, st.floats(0, 8, width=32), finite)
def test_prelu_chain(shift: float, slope: float, threshold: float) -> None:
    a, t = np.float32(slope), np.float32(shift)

    def chain(x: Array) -> Array:
        z = x + t
        return np.where(z > 0, z, z * a)

    check(chain, threshold, neighbourhood(threshold - shift if abs(threshold - shift) < 3e38 else 0.0))


def test_every_integer_of_an_accumulator() -> None:
    rng = np.random.default_rng(0)
    length, channels = 1152, 2000
    scale = rng.normal(size=channels).astype(np.float32) * rng.choice(np.asarray([0, 1e-3, 1], np.float32), channels)
    # Ties on purpose: a shift that cancels some accumulator value exactly, before rounding.
    shift = (-scale * rng.integers(-length, length, channels)).astype(np.float32)
    threshold, flip = fold(lambda y: y * scale + shift, np.zeros(channels, np.float32), np.zeros(channels, bool))
    y = np.arange(-length, length + 1, dtype=np.float32)[:, None]
    np.testing.assert_array_equal((y >= on_integers(threshold, length)) ^ flip, y * scale + shift >= 0)


@pytest.mark.parametrize(("constant", "bit"), [(1.0, True), (-1.0, False)])
def test_constant_bit_is_minus_infinity(constant: float, bit: bool) -> None:
    threshold, flip = fold(
        lambda x: x * np.float32(0) + np.float32(constant), np.zeros(3, np.float32), np.zeros(3, bool)
    )
    assert np.all(np.isneginf(threshold))
    assert np.all(flip != bit)


def test_after_is_the_strict_comparison() -> None:
    points = neighbourhood(0.0)
    for t in (0.0, -0.0, 1.5, -3.25, 1e-45):
        np.testing.assert_array_equal(points >= after(np.asarray(t, np.float32)), points > np.float32(t))
