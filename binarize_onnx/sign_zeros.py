"""Count on data how often a three-valued sign sees the value that a bit has no place for.

    before   SignSite(zero="assumed")
    after    SignSite(zero="counted", zeros=k, elements=n)      of n values that reached the sign, k were 0

The source itself runs, every node as it is written (ORT_DISABLE_ALL), a batch at a time, and the tensor that each sign
reads is looked at. A sign whose tensor only the passes compute stays assumed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx

from binarize_onnx.calibration import CalibrationData, feeds
from binarize_onnx.passes.base import Array
from binarize_onnx.passes.signs import Sign
from binarize_onnx.report import SignSite
from binarize_onnx.verify.graphs import caller_inputs, writers
from binarize_onnx.verify.session import Runner

_log = logging.getLogger(__name__)


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
    batches = feeds(model, data)
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
    for number, feed in enumerate(batches, start=1):
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
