"""Images shifted and mirrored by chance, the same for the same seed, epoch and step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from binarize_onnx.errors import UsageError
from binarize_onnx.images import MODES
from binarize_onnx.passes.base import Array
from binarize_onnx.verify.graphs import caller_inputs

STREAM = 1  # of random numbers: 0 is that of the order of the samples


@dataclass(frozen=True)
class Augmentation:
    """What is done to the images of a batch.

    Attributes:
        pad: zeros on each side, out of which a window of the old size is cut at a place by chance; 0 cuts nothing.
        flip: whether every second image, by chance, is mirrored left to right.
    """

    pad: int = 4
    flip: bool = False

    def __post_init__(self) -> None:
        """Refuse what would cut nothing out of nothing."""
        if self.pad < 0:
            raise UsageError(f"images are to be padded by {self.pad};", fix="give a number from 0 on.")


class Augmenter:
    """Augments batches for a model.

    Args:
        model: its inputs of four axes are images, [N, H, W, C] if only the last axis has 1 or 3 sizes, else
            [N, C, H, W]; the others stay as they are.
        how: what is done.
        seed: of everything that is drawn.

    Raises:
        UsageError: no input is an image.
    """

    def __init__(self, model: onnx.ModelProto, how: Augmentation, seed: int) -> None:
        self._how, self._seed = how, seed
        self._axes = {n: _height(given.shape.dim) for n, given in caller_inputs(model).items() if _is_image(given)}
        if not self._axes:
            raise UsageError("no input of the model is an image [N, C, H, W]:", fix="leave the augmentation out.")

    def __call__(self, inputs: Mapping[str, Array], epoch: int, step: int, rows: slice, count: int) -> dict[str, Array]:
        """The inputs, new arrays where they are images.

        Args:
            inputs: [rows, ...] by name.
            epoch: from the start of the training.
            step: in the epoch.
            rows: which of the step's samples these are; what is drawn for a sample does not depend on the others.
            count: of the step's samples.
        """
        random = np.random.default_rng([self._seed, STREAM, epoch, step])
        places = random.integers(0, 2 * self._how.pad + 1, (count, 2))[rows]
        flips = random.random(count)[rows] < 0.5
        return {
            name: self._images(values, self._axes[name], places, flips) if name in self._axes else values
            for name, values in inputs.items()
        }

    def __str__(self) -> str:
        """What is done."""
        return str(self._how)

    def _images(self, images: Array, height: int, places: Array, flips: Array) -> Array:
        pad = self._how.pad
        sides = [(pad, pad) if axis in (height, height + 1) else (0, 0) for axis in range(4)]
        padded = np.moveaxis(np.pad(images, sides), [height, height + 1], [1, 2])
        rows, columns = images.shape[height], images.shape[height + 1]
        result = np.empty_like(images)
        into = np.moveaxis(result, [height, height + 1], [1, 2])
        for i, ((top, left), flip) in enumerate(zip(places, flips, strict=True)):
            window = padded[i, top : top + rows, left : left + columns]
            into[i] = window[:, ::-1] if flip and self._how.flip else window
        return result


def _is_image(given: onnx.TypeProto.Tensor) -> bool:
    return len(given.shape.dim) == 4


def _height(sizes: Iterable[onnx.TensorShapeProto.Dimension]) -> int:
    """The axis of the rows of an image; that of the columns is the next."""
    channels, last = ([d.dim_value for d in sizes][i] for i in (1, 3))
    return 1 if channels not in MODES and last in MODES else 2
