"""Corruptions are what they say, stronger with every severity, and the same for the same seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from binarize_onnx.errors import ModelError, RuntimeUnavailable, UsageError
from binarize_onnx.evaluate import CORRUPTIONS, Corruption, corruptions
from binarize_onnx.evaluate.corruptions import SEVERITIES, Chance, Corrupted, chosen, range_of

Array = npt.NDArray[Any]
NAMES = [name for name, corruption in CORRUPTIONS.items() if corruption.is_available()]
BY_CHANCE = {"gaussian-noise", "shot-noise", "impulse-noise", "colour", "translation", "occlusion"}
SIDE = 32
UNIT = ((0.0, 1.0),)


def smooth(count: int = 6, channels: int = 3, side: int = SIDE) -> Array:
    """Images [N, C, H, W] with structure at several scales, between 0 and 1."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    waves = rng.normal(size=(count, channels, 4, 2)) * 9
    found = sum(np.sin(waves[:, :, i, 0, None, None] * y + waves[:, :, i, 1, None, None] * x) for i in range(4))
    return ((np.asarray(found) + 4) / 8).astype(np.float32)


def spoiled(images: Array, name: str, severity: int = 3, *, seed: int = 0, axis: int = 1) -> Array:
    span = range_of("x", images, axis, UNIT if images.dtype.kind == "f" else ())
    return Corrupted(images, span, CORRUPTIONS[name], severity, seed)[0 : images.shape[0]]


def applied(name: str, image: Array, strength: float, seed: int = 0) -> Array:
    return CORRUPTIONS[name].apply(image.astype(np.float64), strength, Chance(seed))


# --- All of them ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_same_for_a_seed_whatever_the_batches_are(name: str) -> None:
    images = smooth()
    whole = spoiled(images, name)
    lazy = Corrupted(images, range_of("x", images, 1, UNIT), CORRUPTIONS[name], 3, 0)
    assert lazy.shape == images.shape
    parts = [lazy[0:1], lazy[1:4], lazy[4:99]]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(spoiled(images, name), whole)
    assert np.array_equal(spoiled(images, name, seed=1), whole) == (name not in BY_CHANCE)


@pytest.mark.parametrize("name", NAMES)
def test_every_severity_is_stronger_and_stays_within_the_range(name: str) -> None:
    images = (smooth() + (smooth() > 0.5).astype(np.float32)) / 2  # with edges, for a blur to take
    changes = []
    for severity in SEVERITIES:
        values = spoiled(images, name, severity)
        assert values.dtype == np.float32
        assert values.min() >= 0
        assert values.max() <= 1
        changes.append(float(np.abs(values - images).mean()))
    assert changes[0] > 2e-4
    assert changes == sorted(changes)
    assert changes[-1] > 1.5 * changes[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_place_of_the_channels_makes_no_difference(name: str, channels: int) -> None:
    images = smooth(3, channels)
    last = spoiled(np.ascontiguousarray(images.transpose(0, 2, 3, 1)), name, axis=3)
    np.testing.assert_array_equal(last.transpose(0, 3, 1, 2), spoiled(images, name))


@pytest.mark.parametrize("name", NAMES)
def test_the_unit_of_the_data_makes_no_difference(name: str) -> None:
    """Bytes are rounded; normalised data is what normalising the spoiled images gives."""
    bytes_ = np.rint(255 * smooth(3)).astype(np.uint8)
    images = (bytes_ / np.float32(255)).astype(np.float32)
    wanted = spoiled(images, name)
    found = spoiled(bytes_, name)
    assert found.dtype == np.uint8
    assert np.abs(found / 255.0 - wanted).max() <= 0.5 / 255 + 1e-6
    mean, std = np.array([0.5, 0.4, 0.3])[:, None, None], np.array([0.2, 0.3, 0.4])[:, None, None]
    normalised = ((images - mean) / std).astype(np.float32)
    given = [(float(-m / s), float((1 - m) / s)) for m, s in zip(mean.ravel(), std.ravel(), strict=True)]
    lazy = Corrupted(normalised, range_of("x", normalised, 1, given), CORRUPTIONS[name], 3, 0)
    # a JPEG file rounds: what is just below a half may be just above it
    np.testing.assert_allclose(lazy[0:3] * std + mean, wanted, atol=0.3 if name == "jpeg" else 2e-6)


def test_chance_is_the_same_at_every_severity_and_differs_between_kinds_and_samples() -> None:
    grey = np.full((2, 1, 8, 8), 0.5, np.float32)
    weak, strong = (spoiled(grey, "gaussian-noise", severity) - 0.5 for severity in (1, 2))
    np.testing.assert_allclose(5 * weak, 3 * strong, atol=1e-6)  # 0.03 and 0.05
    assert not np.array_equal(weak[0], weak[1])


def test_what_is_drawn_stays_the_same_in_every_version() -> None:
    """A set that changed with NumPy or with this package could be compared with nothing."""
    grey = np.full((2, 1, 1, 3), 0.5, np.float32)
    for name, wanted in {
        "gaussian-noise": [0.823257, 0.615693, 0.549727],
        "shot-noise": [13 / 30, 15 / 30, 22 / 30],
    }.items():
        np.testing.assert_allclose(spoiled(grey, name, 5, seed=7)[1].ravel(), wanted, atol=1e-6)


# --- Each of them --------------------------------------------------------------------------------------------------


def test_noise_has_the_strength_it_says() -> None:
    grey = np.full((200, 200, 1), 0.5)
    normal = applied("gaussian-noise", grey, 0.1) - 0.5
    assert abs(normal.mean()) < 0.002
    assert normal.std() == pytest.approx(0.1, rel=0.02)
    shot = applied("shot-noise", grey, 50)
    assert shot.mean() == pytest.approx(0.5, abs=0.002)
    assert shot.var() == pytest.approx(0.5 / 50, rel=0.05)
    assert np.allclose(shot * 50, np.rint(shot * 50))
    impulse = applied("impulse-noise", grey, 0.2)
    assert np.mean(impulse == 0) == pytest.approx(0.1, abs=0.006)
    assert np.mean(impulse == 1) == pytest.approx(0.1, abs=0.006)
    assert set(np.unique(impulse)) == {0, 0.5, 1}


def test_blur_is_a_gaussian_with_the_edge_repeated() -> None:
    image = smooth(1)[0].transpose(1, 2, 0)[:20]
    deviation = 0.1 * 20
    reach = int(4 * deviation)
    steps = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (steps / deviation) ** 2)
    kernel = np.outer(weights, weights) / weights.sum() ** 2
    padded = np.pad(image.astype(np.float64), ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape, axis=(0, 1))
    np.testing.assert_allclose(applied("blur", image, 0.1), (windows * kernel).sum(axis=(-2, -1)), atol=1e-12)


def test_pixelate_takes_means_of_blocks() -> None:
    image = smooth(1)[0].transpose(1, 2, 0)
    means = image.astype(np.float64).reshape(8, 4, 8, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(applied("pixelate", image, 0.25), means.repeat(4, 0).repeat(4, 1), atol=1e-12)
    assert len(np.unique(applied("pixelate", image[:, :, :1], 0.3))) == 100  # 9.6 are 10


def test_light_and_colour() -> None:
    image = smooth(1)[0].transpose(1, 2, 0).astype(np.float64)
    np.testing.assert_allclose(applied("brightness", image, 0.2), image + 0.2)
    changed = applied("contrast", image, 0.4)
    np.testing.assert_allclose(changed.mean(axis=(0, 1)), image.mean(axis=(0, 1)))
    np.testing.assert_allclose(changed.std(axis=(0, 1)), 0.4 * image.std(axis=(0, 1)))
    factors = {tuple(np.round(applied("colour", image, 0.3, seed)[5, 5] / image[5, 5], 6)) for seed in range(40)}
    assert factors == {(a, b, c) for a in (0.7, 1.3) for b in (0.7, 1.3) for c in (0.7, 1.3)}


def test_translation_moves_by_its_distance_in_any_direction() -> None:
    image = np.zeros((40, 40, 1))
    image[20, 20] = 1
    places = [np.argwhere(applied("translation", image, 0.25, seed)[:, :, 0])[0] - 20 for seed in range(60)]
    lengths = np.hypot(*np.transpose(places))
    assert np.all(np.abs(lengths - 10) < 0.8)
    assert {tuple(np.sign(place)) for place in places} >= {(-1, -1), (-1, 1), (1, -1), (1, 1)}
    edge = np.tile(np.arange(40.0)[:, None, None], (1, 40, 1))
    assert set(np.unique(applied("translation", edge, 0.25))) <= set(range(40))


def test_occlusion_hides_a_square_anywhere() -> None:
    image = smooth(1)[0].transpose(1, 2, 0).astype(np.float64)
    corners = set()
    for seed in range(60):
        places = np.argwhere(np.any(applied("occlusion", image, 0.25, seed) != image, axis=2))
        assert tuple(places.max(axis=0) - places.min(axis=0)) == (7, 7)
        assert len(places) == 64
        corners.add(tuple(places.min(axis=0)))
    assert min(row for row, _ in corners) < 4
    assert max(row for row, _ in corners) > 20
    hidden = applied("occlusion", image, 1.0)
    np.testing.assert_allclose(hidden, np.broadcast_to(image.mean(axis=(0, 1)), image.shape))


# --- Choosing, and ranges ------------------------------------------------------------------------------------------


def test_all_are_those_that_are_available(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [c.name for c in chosen(["jpeg", "blur", "blur"])] == ["blur", "jpeg"]
    monkeypatch.setattr(corruptions, "find_spec", lambda name: None)
    assert [c.name for c in chosen(["all"])] == [name for name in CORRUPTIONS if name != "jpeg"]
    with pytest.raises(RuntimeUnavailable, match="jpeg needs the package PIL"):
        chosen(["all", "jpeg"])
    with pytest.raises(UsageError, match=r"no corruption `fog`; there are gaussian-noise, "):
        chosen(["blur", "fog"])


def test_a_range_is_that_of_each_channel_over_all_samples() -> None:
    images = smooth(300, 3, 4) * np.array([1, 2, 3], np.float32)[:, None, None]
    found = range_of("x", images, 1)
    np.testing.assert_array_equal(found.low, images.min(axis=(0, 2, 3)))
    np.testing.assert_array_equal(found.high, images.max(axis=(0, 2, 3)))
    bytes_ = range_of("x", np.ones((2, 3, 4, 4), np.uint8), 1)
    assert (bytes_.low.tolist(), bytes_.high.tolist()) == ([0], [255])


def test_ranges_that_cannot_be_used() -> None:
    images = smooth(2)
    for given in ([(0, 1), (0, 1)], [(1, 0)], [(1, 1)]):
        with pytest.raises(UsageError, match="once or for each of 3 channels"):
            range_of("x", images, 1, given)
    with pytest.raises(ModelError, match=r"input `x` goes from .* beyond the range"):
        range_of("x", images, 1, [(0.4, 1)])
    images[:, 1] = 0.25
    with pytest.raises(ModelError, match="same value everywhere in channel 1"):
        range_of("x", images, 1)


def test_a_corruption_says_what_it_is() -> None:
    for name, corruption in CORRUPTIONS.items():
        assert isinstance(corruption, Corruption)
        assert (corruption.name, len(corruption.strengths)) == (name, len(SEVERITIES))
        assert corruption.apply.__doc__
