"""How good a changed model is on samples that it was not made from: against labels, targets, or the float model itself.

What is scored is the first output that is [samples, classes], or the first of all if none is:

- `accuracy`: class numbers are given; a sample is right or wrong.
- `agreement`: classes, but no labels; a sample is right if it keeps the float model's class.
- `psnr`: targets of the output's shape are given, images for instance; decibels, 10 log10(peak² / squared error), the
  mean over samples. A drop does not depend on the peak.
- `error`: nothing to compare with but the float model's own output: the squared error as a share of its variance. It
  has an order, but there is no budget for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log10, sqrt
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx

from binarize_onnx.calibration import CalibrationData, Samples, feeds, load_samples, require_finite, samples_of
from binarize_onnx.errors import ModelError, UsageError
from binarize_onnx.images import ImageFolder, Images
from binarize_onnx.passes.base import Array
from binarize_onnx.quantize.drop_bound import CONFIDENCE, Drop, drop
from binarize_onnx.quantize.post_training import batch_size
from binarize_onnx.verify.data import fitting_labels, own_batches, require_fitting
from binarize_onnx.verify.graphs import caller_inputs
from binarize_onnx.verify.session import Runner

Metric = Literal["accuracy", "agreement", "psnr", "error"]
PROBABLE = 1e-3  # rows of probabilities sum to 1 up to this
TOP = 5  # classes among which a label may be to count for the other accuracy of the literature
ENOUGH = 4 * TOP  # classes, from which on that says something
FIRST = 1000  # samples that may show already that a model is hopeless

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Labelled:
    """Samples in reach one by one, and what they should come out as.

    Attributes:
        inputs: by name; arrays, or images that are read when they are asked for.
        labels: class numbers [N], targets of the shape of the output, or None.
        batch: how many the model takes at once, where that is fixed: parts of the samples are multiples of it.
    """

    inputs: Samples
    labels: Array | None = None
    batch: int = 1

    @property
    def count(self) -> int:
        """How many samples there are."""
        return int(next(iter(self.inputs.values())).shape[0])

    def take(self, indices: npt.NDArray[np.int64]) -> Labelled:
        """These samples alone."""
        inputs = {
            n: v.take(indices) if isinstance(v, Images) else np.asarray(v)[indices] for n, v in self.inputs.items()
        }
        return Labelled(inputs, None if self.labels is None else self.labels[indices], self.batch)

    def first(self, most: int) -> Labelled:
        """The first samples, `most` of them at most, but one batch at least."""
        return self.take(np.arange(min(self._whole(most), self.count)))

    def split(self, first: int, seed: int) -> tuple[Labelled, Labelled]:
        """`first` samples chosen by chance, or nearly so many, and the others; both in the order of the data."""
        first = self._whole(first)
        order = np.random.default_rng(seed).permutation(self.count)
        return self.take(np.sort(order[:first])), self.take(np.sort(order[first:]))

    def _whole(self, number: int) -> int:
        return max(number // self.batch, 1) * self.batch


def read(model: onnx.ModelProto, data: CalibrationData, labels: Array | None = None) -> Labelled:
    """The samples of calibration data, with labels: those given, else those of the data.

    What a `CalibrationDataReader` gives is kept in memory.

    Raises:
        ModelError: the data cannot be read, has no samples, does not fit the model or is not finite; or inputs differ
            in number.
        UsageError: the data is no such thing.
    """
    if isinstance(data, (str, ImageFolder)) or hasattr(data, "__fspath__"):
        inputs, own = load_samples(data, model)  # type: ignore[arg-type]  # the line above is not seen through
        labels = own if labels is None else labels
    else:
        given = samples_of(data, model)
        inputs = given if given is not None else _joined(feeds(model, data))
        if "labels" in inputs and "labels" not in caller_inputs(model):
            own = np.asarray(inputs["labels"])
            inputs = {name: values for name, values in inputs.items() if name != "labels"}
            labels = own if labels is None else labels
    require_fitting(model, inputs)
    # here, before they are divided: a number of a sample is one of the caller's
    require_finite({name: np.asarray(values) for name, values in inputs.items() if not isinstance(values, Images)})
    counts = {values.shape[0] if values.ndim else None for values in inputs.values()}
    if len(counts) != 1 or None in counts:
        raise ModelError("the inputs do not have the same number of samples.")
    found = Labelled(inputs, labels, max(own_batches(model), default=1))
    if not found.count:
        raise ModelError("the data has no samples.")
    if labels is not None and (not labels.ndim or labels.shape[0] != found.count):
        raise ModelError(f"the labels have shape {list(labels.shape)} for {found.count} samples.")
    return found


def _joined(batches: Iterable[Mapping[str, Array]]) -> dict[str, Array]:
    kept = list(batches)
    return {name: np.concatenate([batch[name] for batch in kept]) for name in kept[0]}


@dataclass(frozen=True, eq=False)
class Scored:
    """What a model makes of the samples.

    Attributes:
        value: accuracy or agreement in percent, decibels, or the squared error as a share.
        divergence: of the classes' probabilities from the float model's: Kullback and Leibler's, in nats, the mean over
            samples; where the output has no classes, the squared error as a share of the variance.
        right: bool [N] for classes; None otherwise.
        in_top: bool [N], whether the label is among the TOP best classes; None without labels, or for fewer classes
            than ENOUGH.
        decibels: float64 [N] with targets; None otherwise.
    """

    value: float
    divergence: float
    right: npt.NDArray[np.bool_] | None = None
    in_top: npt.NDArray[np.bool_] | None = None
    decibels: Floats | None = None


class Judge:
    """Scores models on samples against the float model.

    Args:
        model: the float one.
        samples: what all are scored on; labels decide which metric there is.
        confidence: of the bounds of drops.
        library: run our ops in `model` with the kernels.

    Attributes:
        metric: see the module.
        unit: of a drop: `points` (percentage points) or `dB`; empty for the metric `error`.
        reference: the float model's own score.

    Raises:
        ModelError: the samples do not fit or hold NaN, the labels are neither classes nor targets, or the model does
            not run.
    """

    def __init__(
        self, model: onnx.ModelProto, samples: Labelled, confidence: float = CONFIDENCE, *, library: bool = False
    ) -> None:
        self.samples, self.confidence, self._model = samples, confidence, model
        outputs = _joined(self._run(Runner(model, optimise=True, library=library)))
        self.output = next((n for n, v in outputs.items() if _are_classes(v, samples.count)), next(iter(outputs)))
        self._float = np.asarray(outputs[self.output], np.float64)
        if not np.isfinite(self._float).all():
            raise ModelError(f"output `{self.output}` of the float model is NaN or infinite on the data.")
        classes = _are_classes(outputs[self.output], samples.count)
        self._labels, self.metric = self._understood(samples.labels, classes)
        self.unit = {"accuracy": "points", "agreement": "points", "psnr": "dB", "error": ""}[self.metric]
        self._classes = classes
        self._peak = float(np.abs(self._labels).max()) or 1.0 if self.metric == "psnr" else 1.0
        self.reference = self.score_outputs(self._float)

    def score(
        self, model: onnx.ModelProto, *, library: bool = False, hopeless: Callable[[Drop], bool] | None = None
    ) -> Scored:
        """The score of a model with the same inputs and outputs.

        Args:
            model: to be scored.
            library: run our ops with the kernels.
            hopeless: is asked once, of the drop on the first samples, `FIRST` or a few more. If it says so, the score
                is that on these alone.
        """
        parts: list[Array] = []
        seen = 0
        for outputs in self._run(Runner(model, optimise=True, library=library)):
            parts.append(outputs[self.output])
            seen += len(parts[-1])
            if hopeless is not None and FIRST <= seen < len(self._float):
                scored = self.score_outputs(np.concatenate(parts))
                lost = self.drop(scored)
                if lost is not None and hopeless(lost):
                    return scored
                hopeless = None
        if seen != len(self._float):
            raise ModelError(f"output `{self.output}` has {seen} rows, not {len(self._float)}.")
        return self.score_outputs(np.concatenate(parts))

    def score_outputs(self, output: Array) -> Scored:
        """The score of an output [N, ...], or of its first rows."""
        values = np.asarray(output, np.float64)
        reference, labels = self._float[: len(values)], self._labels[: len(values)]
        if values.shape != reference.shape:
            raise ModelError(f"output `{self.output}` has shape {list(values.shape)}, not {list(self._float.shape)}.")
        divergence = _divergence(reference, values) if self._classes else _error(reference, values)
        if self.metric == "psnr":
            decibels = _decibels(values, labels, self._peak)
            return Scored(float(decibels.mean()), divergence, decibels=decibels)
        if self.metric == "error":
            return Scored(divergence, divergence)
        right = values.argmax(-1) == labels
        in_top = _in_top(values, labels) if self.metric == "accuracy" and values.shape[1] >= ENOUGH else None
        return Scored(100 * float(right.mean()), divergence, right=right, in_top=in_top)

    def drop(self, scored: Scored) -> Drop | None:
        """What a model has lost against the float one, on the samples of its score; None if nothing says what is good.

        The bound is exact for classes. For decibels, which have no limits, it is that of the normal approximation.
        """
        if scored.right is not None and self.reference.right is not None:
            return drop(self.reference.right[: scored.right.size], scored.right, self.confidence)
        if scored.decibels is None or self.reference.decibels is None:
            return None
        lost = self.reference.decibels[: scored.decibels.size] - scored.decibels
        error = float(lost.std(ddof=1)) / sqrt(lost.size) if lost.size > 1 else float("inf")
        worse, better = int((lost > 0).sum()), int((lost < 0).sum())
        return Drop(lost.size, worse, better, float(lost.mean()), "dB", error, self.confidence)

    def _run(self, runner: Runner) -> Iterator[dict[str, Array]]:
        """The outputs of a model, batch after batch."""
        return (outputs for (outputs,) in _batches([runner], self._model, self.samples.inputs))

    def _understood(self, labels: Array | None, classes: bool) -> tuple[Array, Metric]:
        if labels is None:
            return (self._float.argmax(-1), "agreement") if classes else (self._float, "error")
        if classes:
            found = fitting_labels(labels, self.samples.count)
            if found.min() < 0 or found.max() >= self._float.shape[1]:
                words = (
                    f"the labels go from {found.min()} to {found.max()}; the output has {self._float.shape[1]} classes."
                )
                raise ModelError(words)
            return found, "accuracy"
        if labels.dtype.kind not in "fiu" or labels.size != self._float.size:
            raise ModelError(
                f"the labels are {labels.dtype} of shape {list(labels.shape)}; output `{self.output}` "
                f"{list(self._float.shape)} needs targets of its own shape."
            )
        targets = labels.astype(np.float64).reshape(self._float.shape)
        if not np.isfinite(targets).all():
            raise ModelError("the targets are NaN or infinite.")
        return targets, "psnr"


def run(runners: Sequence[Runner], model: onnx.ModelProto, inputs: Samples) -> list[dict[str, Array]]:
    """The outputs of models on all samples, batch by batch; `model` says how large a batch may be."""
    batches = list(_batches(runners, model, inputs))
    return [_joined(batch[i] for batch in batches) for i in range(len(runners))]


def _batches(runners: Sequence[Runner], model: onnx.ModelProto, inputs: Samples) -> Iterator[list[dict[str, Array]]]:
    for feed in feeds(model, inputs, batch_size(model)):
        found = (runner.run(feed).items() for runner in runners)
        yield [{name: values if values.ndim else values[None] for name, values in outputs} for outputs in found]


def require_budget(judge: Judge) -> None:
    """Refuse a budget of accuracy where nothing measures it.

    Raises:
        UsageError: the output has no classes, and there are no targets.
    """
    if judge.metric == "error":
        raise UsageError(
            f"output `{judge.output}` has no classes: nothing says how good it is.",
            fix="give targets of its shape with --labels (the drop is then one of PSNR, in dB).",
        )


def _are_classes(values: Array, count: int) -> bool:
    return values.ndim == 2 and values.shape[0] == count and values.shape[1] > 1 and values.dtype.kind == "f"


def _in_top(scores: Floats, labels: Array) -> npt.NDArray[np.bool_]:
    """Whether fewer than TOP classes come before the label; of equal ones the first does, as it does for argmax."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    first = np.arange(scores.shape[1]) < labels[:, None]
    before = (scores > own) | ((scores == own) & first)
    found: npt.NDArray[np.bool_] = before.sum(axis=1) < TOP
    return found


def _log_probabilities(scores: Floats) -> Floats:
    """Logarithms of probabilities; of scores that are probabilities already, themselves."""
    if np.all(scores >= 0) and np.allclose(scores.sum(-1), 1, atol=PROBABLE):
        found: Floats = np.log(np.maximum(scores, 1e-12))
        return found
    shifted = scores - scores.max(-1, keepdims=True)
    logs: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return logs


def _divergence(reference: Floats, other: Floats) -> float:
    if not np.isfinite(other).all():
        return float("inf")
    p, q = _log_probabilities(reference), _log_probabilities(other)
    return max(0.0, float((np.exp(p) * (p - q)).sum(-1).mean()))


def _error(reference: Floats, other: Floats) -> float:
    squared = float(np.square(other - reference).mean())
    variance = float(reference.var())
    return squared / variance if variance else (float("inf") if squared else 0.0)


def _decibels(values: Floats, targets: Array, peak: float) -> Floats:
    """PSNR of each sample [N]; its peak is the largest magnitude among all targets."""
    squared = np.square(values - targets).reshape(values.shape[0], -1).mean(-1)
    found: Floats = 20 * log10(peak) - 10 * np.log10(np.maximum(squared, 1e-12 * peak**2))
    return found
