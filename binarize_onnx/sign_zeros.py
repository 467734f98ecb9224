"""Count on data how often a three-valued sign sees the value that a bit has no place for.

    before   SignSite(zero="assumed")
    after    SignSite(zero="counted", zeros=k, elements=n)      of n values that reached the sign, k were 0

The source itself runs, every node as it is written (ORT_DISABLE_ALL), a batch at a time, and the tensor that each sign
reads is looked at. A sign whose tensor only the passes compute stays assumed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx

from binarize_onnx.errors import ModelError, UsageError
from binarize_onnx.passes.base import Array
from binarize_onnx.passes.signs import Sign
from binarize_onnx.report import SignSite
from binarize_onnx.verify.data import batches, load_data, require_fitting, split_labels
from binarize_onnx.verify.graphs import caller_inputs, writers
from binarize_onnx.verify.session import Runner

BATCH = 4  # samples in memory at a time, with the tensors that the signs read

_log = logging.getLogger(__name__)


class CalibrationDataReader(Protocol):
    """What onnxruntime.quantization calls so: batches one by one, and None behind the last."""

    def get_next(self) -> Mapping[str, Array] | None:
        """The next batch, by input name."""


CalibrationData = str | os.PathLike[str] | Mapping[str, Array] | CalibrationDataReader


def count(sites: Sequence[tuple[SignSite, Sign]], model: onnx.ModelProto, data: CalibrationData) -> list[SignSite]:
    """The sites, with a count in place of every assumption that the data can settle.

    Args:
        sites: what is known of each sign, and the sign in terms of the model's tensors.
        model: the source, prepared.
        data: arrays by input name (samples along the first axis), a file of them, or a CalibrationDataReader.

    Raises:
        ModelError: the data cannot be read or does not fit the model, or the model does not run.
        UsageError: the data is none of these things.
        RuntimeUnavailable: onnxruntime is missing.
    """
    feeds = _feeds(model, data)
    given = set(caller_inputs(model))
    present = given | set(writers(model))
    wanted = {
        site.name: sign
        for site, sign in sites
        if site.zero == "assumed" and all(name in present for name in _read_by(sign))
    }
    zeros, elements = dict.fromkeys(wanted, 0), dict.fromkeys(wanted, 0)
    inner = {name for sign in wanted.values() for name in _read_by(sign)} - given
    runner = Runner(model, sorted(inner)) if wanted else None
    for number, feed in enumerate(feeds, start=1):
        _log.info("zeros of signs: batch %d", number)
        known = {**feed, **runner.run(feed)} if runner else {}
        for name, sign in wanted.items():
            at_threshold = _at_threshold(sign, known)
            zeros[name] += int(np.count_nonzero(at_threshold))
            elements[name] += at_threshold.size
    return [_counted(site, zeros[site.name], elements[site.name]) if site.name in wanted else site for site, _ in sites]


def _read_by(sign: Sign) -> list[str]:
    return [sign.x.name] if sign.minus is None else [sign.x.name, sign.minus.name]


def _at_threshold(sign: Sign, known: Mapping[str, Array]) -> Array:
    """Where the source's sign has a value that the converted one has not."""
    x = known[sign.x.name]
    if sign.minus is not None:
        with np.errstate(invalid="ignore"):
            x = x - known[sign.minus.name]
    return np.asarray((x == sign.threshold) & sign.zero_differs)


def _counted(site: SignSite, zeros: int, elements: int) -> SignSite:
    words = f"{zeros} of {elements} values were 0 on the data given; taken as +1"
    return replace(site, zero="counted", reason=words, zeros=zeros, elements=elements)


def _feeds(model: onnx.ModelProto, data: CalibrationData) -> Iterator[Mapping[str, Array]]:
    """The data in batches that fit the model; what is all there is refused before the first."""
    if isinstance(data, (str, os.PathLike)):
        data = split_labels(load_data(Path(data)), model)[0]
    if isinstance(data, Mapping):
        inputs = {name: np.asarray(values) for name, values in data.items()}
        require_fitting(model, inputs)
        return iter([feed for feed, _ in batches(model, inputs, BATCH)])  # views: nothing is copied
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
