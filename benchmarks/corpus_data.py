"""Float networks and images that quantization and training are measured on; they are not in the repository.

`BINARIZE_ONNX_CORPUS` names their folder, else `../shared/data` from the repository's root.
"""

from __future__ import annotations

import io
import os
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from settings import LeftOut

from binarize_onnx.quantize.scoring import Labelled

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]

ROOT = Path(__file__).resolve().parents[1]
CIFAR_TRAIN = 50000  # images in front of those of the test set
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FASHION_TRAIN, FASHION_TEST = 60000, 10000  # images
FASHION_MEAN, FASHION_STD = 72.94, 90.02  # of all pixels of the training set, 0 to 255
UPSCALED = 3


def path(relative: str) -> Path:
    """A file of the corpus.

    Raises:
        LeftOut: it is not there.
    """
    folder = Path(os.environ.get("BINARIZE_ONNX_CORPUS") or ROOT.parent / "shared" / "data")
    if not (folder / relative).is_file():
        raise LeftOut(f"{relative} of the corpus is missing; BINARIZE_ONNX_CORPUS names its folder")
    return folder / relative


def network(name: str) -> onnx.ModelProto:
    """A float network."""
    return onnx.load(path(f"fp32/{name}.onnx"))


class Cifar:
    """CIFAR-10 in JPEG, normalised as ResNet-20 wants it: 50000 training images, then 10000 test images."""

    def __init__(self) -> None:
        with np.load(path("datasets/cifar10_jpeg60k.npz"), allow_pickle=False) as stored:
            self._header, self._scans = stored["jpeg_header"].tobytes(), stored["scans"].tobytes()
            self._offsets, self._labels = stored["offsets"], stored["labels"].astype(np.int64)

    def take(self, indices: Indices) -> Labelled:
        """These images with their classes."""
        mean, std = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)
        images = np.stack([self._pixels(i) for i in indices]).astype(np.float32)
        inputs = ((images / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
        return Labelled({"input": np.ascontiguousarray(inputs)}, self._labels[indices])

    def training(self, count: int, seed: int) -> Labelled:
        """Training images drawn at random, without their labels."""
        drawn = self.take(np.random.default_rng(seed).permutation(CIFAR_TRAIN)[:count])
        return Labelled(drawn.inputs)

    def test(self, first: int, last: int, seed: int = 0) -> Labelled:
        """Test images first to last, in the random order of the seed."""
        order = np.random.RandomState(seed).permutation(10000)  # RandomState: the same in every version of NumPy
        return self.take(CIFAR_TRAIN + order[first:last])

    def _pixels(self, index: int) -> Array:
        from PIL import Image

        scan = self._scans[self._offsets[index] : self._offsets[index + 1]]
        return np.asarray(Image.open(io.BytesIO(self._header + scan)).convert("RGB"))


@cache
def cifar() -> Cifar:
    """The one that is loaded."""
    return Cifar()


def mnist(kind: str, indices: Indices) -> Labelled:
    """Digits, 0 to 255; `kind` is `train` or `test`."""
    with np.load(path("datasets/mnist.npz"), allow_pickle=False) as stored:
        images, labels = stored[f"x_{kind}"][indices], stored[f"y_{kind}"][indices]
    return Labelled({"Input3": images[:, None].astype(np.float32)}, labels.astype(np.int64))


def imagenet(count: int) -> Labelled:
    """Images of as many classes, as EfficientNet-lite0 wants them: (x - 127) / 128, 224 x 224."""
    names, images = _imagenet(count)
    cut = np.stack([np.asarray(image.crop((16, 16, 240, 240))) for image in images]).astype(np.float32)
    classes = np.array([int(Path(name).name.split("_")[0]) for name in names])
    inputs = ((cut - np.float32(127)) / np.float32(128)).transpose(0, 3, 1, 2)
    return Labelled({"input": np.ascontiguousarray(inputs)}, classes)


def luma(count: int) -> Labelled:
    """Brightness of images, 0 to 1: 672 x 672 as targets, and a third of that size as inputs."""
    from PIL import Image

    _, images = _imagenet(count)
    large = [image.convert("L").resize((224 * UPSCALED,) * 2, Image.Resampling.BICUBIC) for image in images]
    small = [image.resize((224, 224), Image.Resampling.BICUBIC) for image in large]
    inputs, targets = (np.stack([np.asarray(i, np.float32)[None] / np.float32(255) for i in s]) for s in (small, large))
    return Labelled({"input": inputs}, targets)


def _imagenet(count: int) -> tuple[list[str], list[Any]]:
    from PIL import Image

    with zipfile.ZipFile(path("datasets/imagenet_evenclasses_500x1_256px_q90.zip")) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        order = np.random.RandomState(0).permutation(len(names))[:count]
        chosen = [names[i] for i in np.sort(order)]
        return chosen, [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in chosen]


def fashion(kind: str, indices: Indices) -> Labelled:
    """Fashion-MNIST with its classes, pixels of the training set with mean 0 and deviation 1; `kind` as for digits."""
    with np.load(path("datasets/fashion_mnist.npz"), allow_pickle=False) as stored:
        images, labels = stored[f"x_{kind}"][indices], stored[f"y_{kind}"][indices]
    pixels = (images[:, None].astype(np.float32) - np.float32(FASHION_MEAN)) / np.float32(FASHION_STD)
    return Labelled({"x": pixels}, labels.astype(np.int64))
