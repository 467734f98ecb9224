"""The levels of quantized activations: against every value itself, without the histogram."""

from __future__ import annotations

import numpy as np
import pytest

from binarize_onnx.passes.base import Array
from binarize_onnx.quantize.activations import BINS, NEVER, ActivationStatistics, Levels, Thresholds

NEARLY = 1.05  # equal steps have many minima that are so close to each other, and only some of them are tried


def rectified(samples: int = 40, channels: int = 5, seed: int = 0) -> Array:
    values = (
        np.random.default_rng(seed).normal(size=(samples, channels, 6, 7))
        * np.geomspace(0.01, 100, channels)[:, None, None]
    )
    rectified: Array = np.maximum(values, 0).astype(np.float32)
    return rectified


def statistics_of(values: Array) -> ActivationStatistics:
    statistics = ActivationStatistics(values.shape[1])
    statistics.update(values)
    return statistics


def squared_error(values: Array, levels: Levels) -> Array:
    h = levels.reached(values)
    decoded = levels.low[:, None, None] + levels.step[:, None, None] * h
    error: Array = np.square(decoded - values).mean(axis=(0, 2, 3))
    return error


def least_of_two_means(values: Array) -> float:
    """The least mean square of a one-bit quantizer: every split of the sorted values."""
    ordered = np.sort(values.ravel().astype(np.float64))
    splits = np.flatnonzero(np.diff(ordered)) + 1
    return min(float(ordered[:k].var() * k + ordered[k:].var() * (len(ordered) - k)) for k in splits) / len(ordered)


def same(a: Levels, b: Levels) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("threshold", "low", "step"))


def test_one_bit_reaches_the_best_split_of_all() -> None:
    values = rectified()
    error = squared_error(values, statistics_of(values).levels(1))
    best = np.array([least_of_two_means(values[:, c]) for c in range(values.shape[1])])
    # the histogram knows values to half a bin of peak / 2048
    np.testing.assert_allclose(error, best, rtol=0.002)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_no_uniform_quantizer_of_a_grid_is_better(bits: int) -> None:
    values = rectified(samples=300, channels=3)
    levels = statistics_of(values).levels(bits)
    error, top = squared_error(values, levels), 2**bits - 1
    for part in np.linspace(0.1, 1, 20):
        step = part * values.max(axis=(0, 2, 3)).astype(np.float64) / top
        threshold = (step * (np.arange(top)[:, None] + 0.5)).astype(np.float32)
        assert (error <= NEARLY * squared_error(values, Levels(threshold, np.zeros(3), step))).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 6])
def test_more_bits_and_better_levels_never_hurt(bits: int) -> None:
    values = rectified()
    statistics = statistics_of(values)
    fitted, naive = (
        squared_error(values, statistics.levels(bits)),
        squared_error(values, statistics.levels(bits, "zero")),
    )
    assert (fitted <= naive).all()
    if bits > 1:
        assert (fitted < squared_error(values, statistics.levels(bits - 1))).all()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_batches_in_any_order_and_size_give_the_same_levels(bits: int) -> None:
    values = rectified() - np.float32(0.3)
    whole = statistics_of(values)
    backwards = ActivationStatistics(values.shape[1])
    for start in (30, 29, 7, 0):
        backwards.update(values[start : {30: 40, 29: 30, 7: 29, 0: 7}[start]])
    merged, second = statistics_of(values[:3]), statistics_of(values[3:])
    merged.merge(second)
    assert same(whole.levels(bits), backwards.levels(bits))
    assert same(whole.levels(bits), merged.levels(bits))


def test_growing_ranges_lose_no_value() -> None:
    values = np.float32(2.0) ** np.arange(-140, 120, dtype=np.float32)
    values = np.concatenate([values, -values, np.zeros(3, np.float32)])
    rising = ActivationStatistics(1)
    for v in values:
        rising.update(v.reshape(1, 1))
    whole = statistics_of(values.reshape(-1, 1))
    assert rising.count[0] == len(values)
    assert rising.zeros[0] == 3
    np.testing.assert_array_equal(rising._bins, whole._bins)
    assert rising._bins.sum() == len(values) - 3


def test_any_axis_holds_the_channels() -> None:
    values = rectified()
    last = ActivationStatistics(values.shape[1])
    last.update(np.moveaxis(values, 1, -1), axis=-1)
    levels = last.levels(3)
    assert same(levels, statistics_of(values).levels(3))
    np.testing.assert_array_equal(
        np.moveaxis(levels.reached(np.moveaxis(values, 1, -1), -1), -1, 1), levels.reached(values)
    )


def test_reached_counts_thresholds() -> None:
    levels = Levels(np.array([[0, 1], [1, 3]], np.float32), np.zeros(2), np.ones(2))
    x = np.array([[-1, 0.5], [0, 1], [1, 3], [9, 2]], np.float32)
    np.testing.assert_array_equal(levels.reached(x), [[0, 0], [1, 1], [2, 2], [2, 1]])
    assert levels.reached(x).dtype == np.uint8


@pytest.mark.parametrize("how", ["zero", "means"])
@pytest.mark.parametrize("bits", [2, 6])
@pytest.mark.parametrize("constant", [0.0, 2.5, -3.0, 1e30])
def test_a_constant_channel_is_its_low(bits: int, how: Thresholds, constant: float) -> None:
    values = rectified(channels=2)
    values[:, 0] = constant
    levels = statistics_of(values).levels(bits, how)
    assert levels.step[0] == 0
    assert levels.low[0] == np.float32(constant)
    assert (levels.threshold[:, 0] == NEVER).all()
    assert not levels.reached(values)[:, 0].any()
    assert levels.step[1] > 0


def test_values_far_from_zero_get_equal_parts_of_their_range() -> None:
    values = (1000 + np.arange(-4, 4)[:, None] / 16).astype(np.float32)  # a bin is half a unit here
    levels = statistics_of(values).levels(3)
    np.testing.assert_array_equal(levels.reached(values)[:, 0], np.arange(8))
    np.testing.assert_allclose(levels.low[0] + levels.step[0] * np.arange(8), values[:, 0])


def test_two_values_are_met_exactly() -> None:
    values = np.where(np.random.default_rng(0).random((50, 1)) < 0.2, 0.0, 3.0).astype(np.float32)
    levels = statistics_of(values).levels(1)
    decoded = levels.low + levels.step * levels.reached(values)
    np.testing.assert_allclose(decoded, values, atol=4.0 / BINS)


def test_a_naive_sign_after_relu_is_above_zero() -> None:
    values = rectified()
    levels = statistics_of(values).levels(1, "zero")
    np.testing.assert_array_equal(levels.reached(values), values > 0)
    assert (levels.low == -1).all()
    assert (levels.step == 2).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 6])
@pytest.mark.parametrize("how", ["zero", "means"])
def test_thresholds_ascend(bits: int, how: Thresholds) -> None:
    levels = statistics_of(rectified()).levels(bits, how)
    assert levels.threshold.dtype == np.float32
    assert levels.threshold.shape == (2**bits - 1, 5)
    assert (np.diff(levels.threshold, axis=0) > 0).all()


def test_what_cannot_be_is_refused() -> None:
    statistics = ActivationStatistics(2)
    with pytest.raises(ValueError, match="no values"):
        statistics.levels(1)
    with pytest.raises(ValueError, match="3 channels, but these statistics are of 2"):
        statistics.update(np.zeros((1, 3), np.float32))
    with pytest.raises(ValueError, match="of 2"):
        statistics.merge(ActivationStatistics(3))
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="channel 1 has a value that is NaN or infinite"):
            statistics.update(np.array([[0, bad]], np.float32))
    statistics.update(np.ones((1, 2), np.float32))
    for bits in (0, 7):
        with pytest.raises(ValueError, match=f"{bits} bits"):
            statistics.levels(bits)
