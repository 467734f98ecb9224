"""Samples that a conversion may look at: arrays, a file of them, images, or an onnxruntime CalibrationDataReader."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx

from binarize_onnx.errors import ModelError, UsageError
from binarize_onnx.images import ImageFolder, Lazy
from binarize_onnx.passes.base import Array
from binarize_onnx.verify.data import Rows, batches, load_data, require_fitting, split_labels

BATCH = 4  # samples in memory at a time, with the inner tensors that are looked at


class CalibrationDataReader(Protocol):
    """What onnxruntime.quantization calls so: batches one by one, and None behind the last."""

    def get_next(self) -> Mapping[str, Array] | None:
        """The next batch, by input name."""


Samples = Mapping[str, Rows]  # by input name
CalibrationData = str | os.PathLike[str] | Samples | ImageFolder | CalibrationDataReader


class Replayed:
    """A reader that can be read again: after the None behind its last batch it begins anew."""

    def __init__(self, reader: CalibrationDataReader) -> None:
        self._reader: CalibrationDataReader | None = reader
        self._batches: list[Mapping[str, Array]] = []
        self._next = 0

    def get_next(self) -> Mapping[str, Array] | None:
        """The next batch, by input name."""
        if self._next == len(self._batches) and self._reader is not None:
            batch = self._reader.get_next()
            if batch is None:
                self._reader = None
            else:
                self._batches.append(
                    {k: np.array(v) for k, v in batch.items()} if isinstance(batch, Mapping) else batch
                )
        if self._next == len(self._batches):
            self._next = 0
            return None
        self._next += 1
        return self._batches[self._next - 1]


def replayed(data: CalibrationData) -> CalibrationData:
    """The data in a form that `feeds` can go through more than once."""
    kept = isinstance(data, (str, os.PathLike, Mapping, ImageFolder)) or not callable(getattr(data, "get_next", None))
    return data if kept else Replayed(data)  # type: ignore[arg-type]  # the line above is not seen through


def feeds(model: onnx.ModelProto, data: CalibrationData, batch: int = BATCH) -> Iterator[Mapping[str, Array]]:
    """The data in batches that fit the model; what is all there is refused before the first.

    Arrays are cut into batches of `batch` samples, or of as many as the model takes; a reader's stay as they are.

    Raises:
        ModelError: the data cannot be read, does not fit the model, or has no samples.
        UsageError: the data is none of these things.
    """
    inputs = samples_of(data, model)
    if inputs is not None:
        require_fitting(model, inputs)
        found = batches(model, inputs, batch)  # views: nothing is copied
        first = next(found)
        return _finite(feed for feed, _ in chain([first], found))
    if not callable(getattr(data, "get_next", None)):
        raise UsageError(
            f"the calibration data is a {type(data).__name__};",
            fix="give arrays by input name, a file of them, or an onnxruntime CalibrationDataReader.",
        )
    return _finite(_read(model, data))  # type: ignore[arg-type]  # the line above is not seen through


def samples_of(data: CalibrationData, model: onnx.ModelProto) -> Samples | None:
    """The samples, not yet checked against the model; None for a reader, or for what is no data at all."""
    if isinstance(data, (str, os.PathLike, ImageFolder)):
        return load_samples(data, model)[0]
    if isinstance(data, Mapping):
        return {name: values if isinstance(values, Lazy) else np.asarray(values) for name, values in data.items()}
    return None


def load_samples(data: str | os.PathLike[str] | ImageFolder, model: onnx.ModelProto) -> tuple[Samples, Array | None]:
    """The samples of a file or of a folder of images, and their labels where it has any.

    Raises:
        ModelError: it cannot be read, or does not fill the model's inputs.
    """
    if not isinstance(data, ImageFolder) and Path(data).is_dir():
        data = ImageFolder(data)
    if isinstance(data, ImageFolder):
        return data.samples(model), data.labels
    return split_labels(load_data(Path(data)), model)


def require_finite(inputs: Mapping[str, Array], seen: int = 0) -> None:
    """Refuse samples that are NaN or infinite; `seen` others come before them.

    Raises:
        ModelError: one is, with its number.
    """
    for name, values in inputs.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            odd = int(np.argwhere(~np.isfinite(values))[0][0]) if values.ndim else 0
            raise ModelError(
                f"input `{name}` is NaN or infinite in sample {seen + odd}.", fix="Take such samples out of the data."
            )


def _finite(feeds: Iterable[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
    """The batches; what is no finite number makes statistics of everything, and is refused."""
    seen = 0
    for feed in feeds:
        require_finite(feed, seen)
        yield feed
        seen += max((values.shape[0] for values in feed.values() if values.ndim), default=1)


def _read(model: onnx.ModelProto, reader: CalibrationDataReader) -> Iterator[Mapping[str, Array]]:
    empty = True
    while (batch := reader.get_next()) is not None:
        if not isinstance(batch, Mapping):
            raise UsageError(
                f"the calibration data reader gives a {type(batch).__name__};", fix="give arrays by input name."
            )
        feed = {name: np.asarray(values) for name, values in batch.items()}
        require_fitting(model, feed)
        empty = False
        yield feed
    if empty:
        raise ModelError("the data has no samples.")
