"""Question 1: do the two models agree? Their outputs, and the classes that these stand for."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from binarize_onnx.errors import ModelError
from binarize_onnx.verify.arrays import Array, Arrays, difference, same_bits
from binarize_onnx.verify.results import Accuracy, OutputRow

NO_CLASS = np.iinfo(np.int64).min  # and the two numbers above it: the class of a sample whose scores hold NaN


class Outputs:
    """Every output of both models, over all batches.

    Attributes:
        rows: one an output; their classes are judged when all batches are compared.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.rows = [OutputRow(name) for name in names]
        self._classes: dict[str, list[Array]] = {}  # per batch, by output: those of source, candidate, drifted source

    def compare(self, source: Arrays, candidate: Arrays, drifted: Arrays, samples: slice) -> None:
        """One batch, its samples counted from the first of all; drifted: the source at onnxruntime's default level."""
        for row in self.rows:
            a, b, c = source[row.name], candidate[row.name], drifted[row.name]
            if a.shape != b.shape:
                raise ModelError(f"output `{row.name}` has shape {list(a.shape)}, the candidate's {list(b.shape)}.")
            batched = a.ndim > 0 and a.shape[0] == samples.stop - samples.start
            row.shape = (samples.stop, *a.shape[1:]) if batched else a.shape
            row.max_diff = max(row.max_diff, _largest_difference(a, b))
            row.drift = max(row.drift, _largest_difference(a, c))
            row.identical = row.identical and bool(np.all(same_bits(a, b)))
            if a.dtype.kind == "f":
                row.nans += int(np.count_nonzero(np.isnan(a) | np.isnan(b)))
                if batched and a.ndim == 2 and a.shape[1] > 1:
                    classes = [_classes(x, NO_CLASS + i) for i, x in enumerate((a, b, c))]
                    self._classes.setdefault(row.name, []).append(np.stack(classes))

    def judge_classes(self, labels: Array | None) -> Accuracy | None:
        """Fill in how often the classes agree; the labels are for the first output that has classes."""
        accuracy = None
        for row in self.rows:
            if row.name in self._classes:
                source, candidate, drifted = np.concatenate(self._classes[row.name], axis=1)
                row.agreement = float(np.mean(source == candidate))
                row.drift_agreement = float(np.mean(source == drifted))
                if labels is not None and accuracy is None:
                    _require_classes(labels, row)
                    accuracy = Accuracy(float(np.mean(source == labels)), float(np.mean(candidate == labels)))
        if labels is not None and accuracy is None:
            raise ModelError("there are labels, but no output is [samples, classes].", fix="Leave the labels out.")
        return accuracy


def _require_classes(labels: Array, row: OutputRow) -> None:
    """Labels number the classes of the output from 0: nonsense would lose nothing in any comparison."""
    count = row.shape[-1]
    if labels.min() < 0 or labels.max() >= count:
        raise ModelError(
            f"the labels go from {labels.min()} to {labels.max()}; output `{row.name}` has {count} classes, 0 to "
            f"{count - 1}.",
            fix="Number the classes as in training.",
        )


def _classes(scores: Array, none: int) -> Array:
    """The largest class of every sample; `none`, which is nobody else's, where the scores hold NaN."""
    return np.where(np.isnan(scores).any(axis=1), none, scores.argmax(axis=1))


def _largest_difference(a: Array, b: Array) -> float:
    return float(difference(a, b).max(initial=0.0))
