"""A folder of images as the input of a model: read when they are asked for, so that their number costs no memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from binarize_onnx.errors import ModelError, RuntimeUnavailable, UsageError, one_line

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MODES = {1: "L", 3: "RGB"}  # Pillow's names of what a model with so many channels sees


class ImageFolder:
    """Images in a folder, in the order of their paths.

    A pixel p of 0 to 255 becomes (p / 255 - mean) / std; a model that takes integers has it as it is. An image of
    another size than the model's is scaled, bilinear, until it just covers that size, and its centre is cut out.

    Args:
        path: the folder; files below it that are no images by their suffix are passed over.
        mean: one number, or one for each channel.
        std: one number, or one for each channel.

    Attributes:
        files: of the images, sorted.
        labels: int64 [images] where each image lies in one of two or more folders, which then are classes: the number
            in the folder's name if all are numbers, else its place among the sorted names. None otherwise.

    Raises:
        ModelError: the folder cannot be read or holds no image.
        UsageError: mean or std cannot be used.
    """

    def __init__(
        self, path: str | os.PathLike[str], mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)
    ) -> None:
        self.path = Path(path)
        self.mean, self.std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values.ndim != 1 or values.size not in (1, 3) or not np.all(np.isfinite(values)):
                raise UsageError(f"the images' {name} is {values.tolist()};", fix="give one finite number, or three.")
        if not np.all(self.std > 0):
            raise UsageError(f"the images' std is {self.std.tolist()};", fix="give numbers above 0.")
        try:
            self.files = sorted(p for p in self.path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        except OSError as error:
            raise ModelError(f"cannot be read: {error.strerror or error}.", where=str(path)) from None
        if not self.files:
            raise ModelError(
                "the folder holds no images.", where=str(path), fix=f"Known are {', '.join(sorted(SUFFIXES))}."
            )
        self.labels = self._classes()

    def samples(self, model: onnx.ModelProto) -> dict[str, Images]:
        """The images under the name of the model's only input, in its layout.

        Raises:
            ModelError: the model does not take one image input, or the first image cannot be read.
            RuntimeUnavailable: Pillow is missing.
        """
        # Not before: what verifies reads samples, like these.
        from binarize_onnx.verify.graphs import caller_inputs, listed

        inputs = caller_inputs(model)
        if len(inputs) != 1:
            raise ModelError(f"a folder of images fills one input; the model takes {listed(inputs)}.")
        ((name, given),) = inputs.items()
        sizes = [d.dim_value if d.HasField("dim_value") else 0 for d in given.shape.dim]
        axis = channel_axis(sizes)
        if axis is None:
            raise ModelError(
                f"input `{name}` is no image [N, C, H, W] or [N, H, W, C] of 1 or 3 channels.",
                fix="Give the samples as an .npz file.",
            )
        channels = sizes[axis]
        if max(self.mean.size, self.std.size) > channels:
            raise UsageError("the images have one channel:", fix="give one mean and one std.")
        height, width = (size for i, size in enumerate(sizes) if i not in (0, axis))
        if not height or not width:
            height, width = self._size_of_first(height, width)
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(given.elem_type))
        return {name: Images(self, self.files, (height, width), channels, axis, dtype)}

    def _size_of_first(self, height: int, width: int) -> tuple[int, int]:
        """The first image's size where the model leaves it open."""
        with _opened(self.files[0]) as image:
            own_width, own_height = image.size
        return height or own_height, width or own_width

    def _classes(self) -> npt.NDArray[np.int64] | None:
        folders = [file.relative_to(self.path).parts[0] for file in self.files]
        names = sorted(set(folders))
        if len(names) < 2 or any(len(file.relative_to(self.path).parts) < 2 for file in self.files):
            return None
        numbers = [int(n) for n in names] if all(n.isascii() and n.isdigit() for n in names) else range(len(names))
        by_name = dict(zip(names, numbers, strict=True))
        return np.array([by_name[folder] for folder in folders], np.int64)


class Lazy:
    """Samples that are made when they are sliced out, `Rows` otherwise: nobody is to make all at once."""


class Images(Lazy):
    """What of an array a caller of samples uses, with the images read when they are sliced out.

    Attributes:
        shape: [N, C, H, W] or [N, H, W, C].
        dtype: of what the slices hold.
        ndim: 4.
    """

    ndim = 4

    def __init__(
        self,
        folder: ImageFolder,
        files: Sequence[Path],
        size: tuple[int, int],
        channels: int,
        axis: int,
        dtype: np.dtype[Any],
    ) -> None:
        self._folder, self._files, self._size, self._channels, self._axis = folder, files, size, channels, axis
        self.dtype = dtype
        one = (channels, *size) if axis == 1 else (*size, channels)
        self.shape = (len(files), *one)

    @property
    def nbytes(self) -> int:
        """Of all images, were they in memory."""
        return prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """The images of these rows."""
        return np.stack([self._read(file) for file in self._files[rows]])

    def take(self, indices: npt.NDArray[np.int64]) -> Images:
        """These images alone, still unread."""
        files = [self._files[i] for i in indices]
        return Images(self._folder, files, self._size, self._channels, self._axis, self.dtype)

    def _read(self, file: Path) -> npt.NDArray[Any]:
        height, width = self._size
        with _opened(file) as image:
            try:
                shown = image.convert(MODES[self._channels])
            except (OSError, ValueError, SyntaxError) as error:
                raise ModelError(f"the image cannot be read: {one_line(error)}", where=str(file)) from None
        if shown.size != (width, height):
            shown = _covering(shown, width, height)
        pixels = np.asarray(shown).reshape(height, width, self._channels)
        if self.dtype.kind == "f":
            pixels = (pixels.astype(np.float32) / np.float32(255) - self._folder.mean) / self._folder.std
        pixels = pixels.astype(self.dtype)
        return pixels.transpose(2, 0, 1) if self._axis == 1 else pixels


def channel_axis(sizes: Sequence[int]) -> int | None:
    """Where the channels of images [N, C, H, W] or [N, H, W, C] are; None for what is no image of 1 or 3 channels."""
    return next((i for i in (1, 3) if len(sizes) == 4 and sizes[i] in MODES), None)


def _opened(file: Path) -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise RuntimeUnavailable(
            "reading images needs Pillow:",
            fix="install it (pip install 'binarize-onnx[images]'), or give an .npz file.",
        ) from None
    try:
        return Image.open(file)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's own errors are these
        raise ModelError(f"the image cannot be read: {one_line(error)}", where=str(file)) from None


def _covering(image: Any, width: int, height: int) -> Any:
    """The image scaled until it just covers the size, and its centre."""
    scale = max(width / image.width, height / image.height)
    new = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    left, top = (new[0] - width) // 2, (new[1] - height) // 2
    return image.resize(new, resample=2).crop((left, top, left + width, top + height))  # 2: Pillow's BILINEAR
