"""Samples that a conversion may look at: arrays, a file of them, or an onnxruntime CalibrationDataReader."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx

from binarize_onnx.errors import ModelError, UsageError
from binarize_onnx.passes.base import Array
from binarize_onnx.verify.data import batches, load_data, require_fitting, split_labels

BATCH = 4  # samples in memory at a time, with the inner tensors that are looked at


class CalibrationDataReader(Protocol):
    """What onnxruntime.quantization calls so: batches one by one, and None behind the last."""

    def get_next(self) -> Mapping[str, Array] | None:
        """The next batch, by input name."""


CalibrationData = str | os.PathLike[str] | Mapping[str, Array] | CalibrationDataReader


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
    readable_once = not isinstance(data, (str, os.PathLike, Mapping)) and callable(getattr(data, "get_next", None))
    return Replayed(data) if readable_once else data  # type: ignore[arg-type]  # the line above is not seen through


def feeds(
    model: onnx.ModelProto, data: CalibrationData, batch: int = BATCH
) -> Iterator[Mapping[str, Array]]:
    """The data in batches that fit the model; what is all there is refused before the first.

    Arrays are cut into batches of `batch` samples, or of as many as the model takes; those of a reader stay as they are.

    Raises:
        ModelError: the data cannot be read, does not fit the model, or has no samples.
        UsageError: the data is none of these things.
    """
    if isinstance(data, (str, os.PathLike)):
        data = split_labels(load_data(Path(data)), model)[0]
    if isinstance(data, Mapping):
        inputs = {name: np.asarray(values) for name, values in data.items()}
        require_fitting(model, inputs)
        return iter([feed for feed, _ in batches(model, inputs, batch)])  # views: nothing is copied
    if not callable(getattr(data, "get_next", None)):
        raise UsageError(
            f"the calibration data is a {type(data).__name__};",
            fix="give arrays by input name, a file of them, or an onnxruntime CalibrationDataReader.",
        )
    return _read(model, data)


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
