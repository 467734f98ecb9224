"""Images spoiled in known ways, at five severities, the same for the same seed.

The set is our own: the kinds are those that the literature corrupts images with (D. Hendrycks, T. Dietterich,
"Benchmarking neural network robustness to common corruptions and perturbations", ICLR 2019), code and strengths are not
theirs, so neither are the results. An image is [H, W, C] between 0 (the darkest value of its channel) and 1; lengths
are shares of its shorter side, so that small images are spoiled as much as large ones.

Where chance is involved, it comes from the seed, the kind and the number of the sample: the same whatever the batches
are, and the same at all severities, so that a severity adds strength and no luck. `RandomState` draws the same numbers
in every version of NumPy, which its successor does not promise.
"""

from __future__ import annotations

from binascii import crc32
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from io import BytesIO
from math import ceil, cos, pi, sin
from typing import Any

import numpy as np
import numpy.typing as npt

from binarize_onnx.errors import ModelError, RuntimeUnavailable, UsageError
from binarize_onnx.images import MODES, Lazy
from binarize_onnx.verify.data import Rows

ALL = "all"
SEVERITIES = (1, 2, 3, 4, 5)
LARGEST_SEED = 2**32 - 1
BLUR_REACH = 4  # standard deviations
ROUNDING = 1e-3  # of a range, by which data may go beyond the one that the caller gives
CHUNK = 256  # samples in memory at a time

Image = npt.NDArray[np.float64]
Chance = np.random.RandomState


@dataclass(frozen=True)
class Corruption:
    """One way to spoil an image.

    Attributes:
        name: as options and tables call it.
        strengths: one a severity; what they measure is said by `apply`.
        apply: from an image [H, W, C] between 0 and 1, a strength and a source of chance to such an image, which may
            leave that range.
        package: what Python has to find for it beside NumPy; empty for nothing.
    """

    name: str
    strengths: tuple[float, float, float, float, float]
    apply: Callable[[Image, float, Chance], Image]
    package: str = ""

    def is_available(self) -> bool:
        """Whether what it needs is installed."""
        return not self.package or find_spec(self.package) is not None


def gaussian_noise(image: Image, deviation: float, chance: Chance) -> Image:
    """Normal noise of this standard deviation."""
    noisy: Image = image + deviation * chance.standard_normal(image.shape)
    return noisy


def shot_noise(image: Image, photons: float, chance: Chance) -> Image:
    """Poisson noise, as of a sensor that counts so many photons at full brightness."""
    counted: Image = chance.poisson(image * photons) / photons
    return counted


def impulse_noise(image: Image, probability: float, chance: Chance) -> Image:
    """With this probability a value becomes the darkest or the brightest."""
    drawn = chance.random_sample(image.shape)
    return np.where(drawn < probability / 2, 0.0, np.where(drawn > 1 - probability / 2, 1.0, image))


def blur(image: Image, width: float, chance: Chance) -> Image:
    """A Gaussian blur; its standard deviation is `width`, as a share of the shorter side."""
    deviation = width * min(image.shape[:2])
    return _separably(image, *(_blurring(size, deviation) for size in image.shape[:2]))


def pixelate(image: Image, resolution: float, chance: Chance) -> Image:
    """Every side has this share of its pixels left, each the mean of what it covers."""
    return _separably(image, *(_pixelating(size, max(1, round(resolution * size))) for size in image.shape[:2]))


def contrast(image: Image, kept: float, chance: Chance) -> Image:
    """Of the distance to the mean of its channel, a value keeps this share."""
    mean: Image = image.mean(axis=(0, 1))
    return mean + kept * (image - mean)


def brightness(image: Image, added: float, chance: Chance) -> Image:
    """Every value becomes so much brighter."""
    return image + added


def colour(image: Image, change: float, chance: Chance) -> Image:
    """Each channel is multiplied by 1 + change or by 1 - change, as chance has it."""
    brighter = chance.random_sample(image.shape[2]) < 0.5
    return image * np.where(brighter, 1 + change, 1 - change)


def translation(image: Image, distance: float, chance: Chance) -> Image:
    """The image moves in a direction drawn by chance; its edge fills the gap."""
    height, width = image.shape[:2]
    angle, pixels = 2 * pi * chance.random_sample(), max(1.0, distance * min(height, width))
    rows = np.clip(np.arange(height) - round(pixels * sin(angle)), 0, height - 1)
    columns = np.clip(np.arange(width) - round(pixels * cos(angle)), 0, width - 1)
    moved: Image = image[rows][:, columns]
    return moved


def occlusion(image: Image, side: float, chance: Chance) -> Image:
    """A square of the image's mean colour hides what is behind it."""
    pixels = max(1, round(side * min(image.shape[:2])))
    top, left = (int(chance.random_sample() * (size - pixels + 1)) for size in image.shape[:2])
    hidden = image.copy()
    hidden[top : top + pixels, left : left + pixels] = image.mean(axis=(0, 1))
    return hidden


def jpeg(image: Image, quality: float, chance: Chance) -> Image:
    """Through a JPEG file of this quality."""
    from PIL import Image as Pillow

    pixels, file = np.rint(255 * image).astype(np.uint8), BytesIO()
    Pillow.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "JPEG", quality=int(quality))
    with Pillow.open(file) as opened:
        shown: Image = np.asarray(opened.convert(MODES[pixels.shape[2]])).reshape(image.shape) / 255
    return shown


CORRUPTIONS = {
    corruption.name: corruption
    for corruption in (
        Corruption("gaussian-noise", (0.03, 0.05, 0.08, 0.12, 0.18), gaussian_noise),
        Corruption("shot-noise", (800, 300, 120, 60, 30), shot_noise),
        Corruption("impulse-noise", (0.005, 0.01, 0.03, 0.06, 0.1), impulse_noise),
        Corruption("blur", (0.011, 0.014, 0.018, 0.023, 0.03), blur),
        Corruption("pixelate", (0.9, 0.8, 0.7, 0.6, 0.5), pixelate),
        Corruption("contrast", (0.7, 0.5, 0.35, 0.25, 0.15), contrast),
        Corruption("brightness", (0.08, 0.16, 0.24, 0.32, 0.4), brightness),
        Corruption("colour", (0.1, 0.2, 0.3, 0.45, 0.6), colour),
        Corruption("translation", (0.04, 0.08, 0.12, 0.18, 0.25), translation),
        Corruption("occlusion", (0.2, 0.3, 0.4, 0.5, 0.6), occlusion),
        Corruption("jpeg", (60, 40, 25, 15, 8), jpeg, package="PIL"),
    )
}


def chosen(names: Iterable[str]) -> tuple[Corruption, ...]:
    """Corruptions by their names, in the order of CORRUPTIONS, each once; ALL stands for those that are available.

    Raises:
        UsageError: there is none of such a name.
        RuntimeUnavailable: one that is named needs a package that is missing.
    """
    wanted = set(names)
    unknown = sorted(wanted - set(CORRUPTIONS) - {ALL})
    if unknown:
        raise UsageError(f"there is no corruption `{unknown[0]}`;", fix=f"there are {', '.join(CORRUPTIONS)}.")
    found = tuple(c for name, c in CORRUPTIONS.items() if name in wanted or (ALL in wanted and c.is_available()))
    for corruption in found:
        if not corruption.is_available():
            raise RuntimeUnavailable(
                f"{corruption.name} needs the package {corruption.package}:",
                fix="install it (pip install 'binarize-onnx[images]'), or leave that corruption out.",
            )
    return found


@dataclass(frozen=True, eq=False)
class Range:
    """What is dark and what is bright in an input of images.

    Attributes:
        axis: of the channels, 1 or 3.
        low: float64 [C] or [1].
        high: of the same shape, above `low`.
    """

    axis: int
    low: Image
    high: Image


def range_of(name: str, images: Rows, axis: int, given: Sequence[tuple[float, float]] = ()) -> Range:
    """The range of an input: the one given, else 0 to 255 of bytes, else that of each channel over all samples.

    Args:
        name: of the input, for messages.
        images: [N, C, H, W] or [N, H, W, C].
        axis: of the channels.
        given: lowest and highest value, once or for each channel.

    Raises:
        ModelError: a channel has one value only, or values beyond the range that was given.
        UsageError: the range that was given cannot be used.
    """
    channels = images.shape[axis]
    if given and (len(given) not in (1, channels) or not all(low < high for low, high in given)):
        raise UsageError(
            f"the range of input `{name}` is given as {list(given)};",
            fix=f"give LOW,HIGH with LOW below HIGH, once or for each of {channels} channels.",
        )
    if not given and images.dtype == np.uint8:
        given = [(0.0, 255.0)]
    lowest, highest = _extremes(images, axis)
    if not given:
        if np.any(lowest == highest):
            raise ModelError(
                f"input `{name}` has the same value everywhere in channel {int(np.argmax(lowest == highest))}:",
                fix="say with --range what is dark and what is bright.",
            )
        return Range(axis, lowest, highest)
    low, high = np.asarray(given, np.float64).T
    slack = ROUNDING * (high - low)
    if np.any(lowest < low - slack) or np.any(highest > high + slack):
        raise ModelError(
            f"input `{name}` goes from {lowest.min():.6g} to {highest.max():.6g}, beyond the range that was given."
        )
    return Range(axis, low, high)


class Corrupted(Lazy):
    """Images that are spoiled when they are sliced out.

    Attributes:
        shape: as of the images.
        ndim: 4.
        dtype: as of the images; integers are rounded.
    """

    ndim = 4

    def __init__(self, images: Rows, span: Range, corruption: Corruption, severity: int, seed: int) -> None:
        self._images, self._span, self._corruption, self._seed = images, span, corruption, seed
        self._strength = corruption.strengths[severity - 1]
        self.shape, self.dtype = images.shape, images.dtype

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """The images of these rows."""
        numbers = range(*rows.indices(self.shape[0]))
        span, width = self._span, self._span.high - self._span.low
        units = (np.moveaxis(self._images[rows], span.axis, -1).astype(np.float64) - span.low) / width
        units = np.clip(units, 0, 1)
        for unit, number in zip(units, numbers, strict=True):
            unit[:] = self._corruption.apply(unit, self._strength, self._chance(number))
        values = np.clip(units, 0, 1) * width + span.low
        values = np.rint(values) if self.dtype.kind in "iu" else values
        return np.ascontiguousarray(np.moveaxis(values, -1, span.axis).astype(self.dtype))

    def _chance(self, number: int) -> Chance:
        """What is drawn for one sample: a counter-based generator starts anywhere at no cost."""
        key = [self._seed << 32 | crc32(self._corruption.name.encode()), number]
        return Chance(np.random.Philox(key=np.array(key, np.uint64)))


def _extremes(images: Rows, axis: int) -> tuple[Image, Image]:
    """The smallest and the largest value of each channel, [C] each."""
    others = tuple(i for i in range(4) if i != axis)
    low, high = np.full(images.shape[axis], np.inf), np.full(images.shape[axis], -np.inf)
    for start in range(0, images.shape[0], CHUNK):
        part = images[start : start + CHUNK]
        low, high = np.minimum(low, part.min(axis=others)), np.maximum(high, part.max(axis=others))
    return low, high


def _separably(image: Image, rows: Image, columns: Image) -> Image:
    """A linear map of the rows of an image, and one of its columns."""
    mapped: Image = np.einsum("hH,HWc->hWc", rows, image, optimize=True)
    mapped = np.einsum("wW,hWc->hwc", columns, mapped, optimize=True)
    return mapped


@lru_cache(maxsize=64)
def _blurring(size: int, deviation: float) -> Image:
    """The map [size, size] of a Gaussian blur; beyond the edge there is the edge again."""
    reach = ceil(BLUR_REACH * deviation)
    steps = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (steps / deviation) ** 2)
    found = np.zeros((size, size))
    for step, weight in zip(steps, weights / weights.sum(), strict=True):
        np.add.at(found, (np.arange(size), np.clip(np.arange(size) + step, 0, size - 1)), weight)
    return found


@lru_cache(maxsize=64)
def _pixelating(size: int, blocks: int) -> Image:
    """The map [size, size] to the mean of the block in which a pixel lies."""
    block = np.arange(size) * blocks // size
    same = block[:, None] == block[None, :]
    found: Image = same / same.sum(axis=1, keepdims=True)
    return found
