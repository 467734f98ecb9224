"""The whole evaluation, read top to bottom: models, samples, quality, corruptions, complexity, times, scores."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from binarize_onnx.bench.inputs import feed
from binarize_onnx.bench.results import KERNELS
from binarize_onnx.bench.run import SECONDS, Contestant, benchmark, read
from binarize_onnx.calibration import CalibrationData, Samples
from binarize_onnx.errors import ModelError, UsageError
from binarize_onnx.evaluate import complexity
from binarize_onnx.evaluate.corruptions import (
    ALL,
    CORRUPTIONS,
    LARGEST_SEED,
    SEVERITIES,
    Corrupted,
    Corruption,
    chosen,
    range_of,
)
from binarize_onnx.evaluate.results import NOT_COMPARABLE, Evaluation, Interval, ModelRow, Quality
from binarize_onnx.evaluate.scores import Score, score
from binarize_onnx.images import channel_axis
from binarize_onnx.passes.base import Array
from binarize_onnx.quantize import scoring
from binarize_onnx.quantize.drop_bound import CONFIDENCE, clopper_pearson
from binarize_onnx.quantize.scoring import Judge, Labelled, Metric, Scored
from binarize_onnx.verify.arrays import Arrays
from binarize_onnx.verify.data import load_data, only_labels, own_batches
from binarize_onnx.verify.session import Runner

Progress = Callable[[str], None]
Robustness = list[dict[str, tuple[float, ...]]]  # a model: quality by corruption, one value a severity


def evaluate(
    models: Sequence[str | os.PathLike[str]],
    data: CalibrationData,
    labels: str | os.PathLike[str] | Array | None = None,
    *,
    corruptions: Sequence[str] = (),
    seed: int = 0,
    ranges: Sequence[tuple[float, float]] = (),
    timed: bool = True,
    threads: int = 1,
    seconds: float = SECONDS,
    progress: Progress | None = None,
) -> Evaluation:
    """Judge models on the same samples, and put beside it what they cost.

    The first model is the one that the others are compared with: the float one, usually. Converted files run with the
    kernels.

    Args:
        models: ONNX files with the same inputs and outputs.
        data: samples, as `convert` takes them.
        labels: class numbers [N], targets of the output's shape, or a file of either; None for those in the data, if
            any. Without labels, models are judged by their agreement with the first.
        corruptions: names of `CORRUPTIONS`, or `all`; applied to every input of images [N, C, H, W] or [N, H, W, C].
        seed: of the corruptions.
        ranges: lowest and highest value of an image, once or for each channel; what the data shows where empty.
        timed: measure how long the models take.
        threads: of onnxruntime's pool in each session, while timing.
        seconds: of timing, all models together.
        progress: is told in words what is being done.

    Raises:
        ModelError: a model or the data cannot be read or run, the models or the data do not fit each other, labels are
            none of the classes, or an output is NaN or infinite.
        UsageError: no model is given, or the corruptions are not as they can be.
        RuntimeUnavailable: onnxruntime, the kernel library or a package that a corruption needs is missing.
    """
    if not models:
        raise UsageError("there is no model to evaluate.")
    if not 0 <= seed <= LARGEST_SEED:
        raise UsageError(f"the seed is {seed};", fix=f"give one from 0 to {LARGEST_SEED}.")
    tell = progress or (lambda words: None)
    spoilers = chosen(corruptions)
    paths = [Path(path) for path in models]
    given = read(paths)
    first = given[0].model
    known = only_labels(load_data(Path(labels))) if isinstance(labels, (str, os.PathLike)) else labels
    samples = scoring.read(first, data, known)
    batch = _common_batch(given)
    fed = _first(samples, batch or 1)
    feed({c.label: c.model for c in given}, batch=batch, data=fed)  # refuses models that do not fit each other
    tell(f"quality on {samples.count} samples")
    contest = _Contest(given, samples)
    scored = [contest.judge.reference, *contest.score(samples.inputs, first=1)]
    robustness = _robustness(contest, spoilers, seed, ranges, tell)
    judge = contest.judge
    del contest  # sessions of its own would disturb the timing
    costs = [complexity.measure(c.model, fed, batch or 1, library=c.form == KERNELS) for c in given]
    times = None
    if timed:
        tell("timing")
        times = benchmark(paths, threads=threads, seconds=seconds, batch=batch, data=fed, bodies=False, profiled=False)
    rows: list[ModelRow] = []
    for i, c in enumerate(given):
        quality = _quality(judge, scored[i], is_first=i == 0)
        faster = times.rows[i].speedup.median if times else None
        row = ModelRow(c.label, c.form, c.size, quality, costs[i], robustness[i], None)
        if rows:
            row = replace(row, score=_score(rows[0], row, faster, judge.metric))
        rows.append(row)
    notes = _notes(rows, corruptions)
    return Evaluation(samples.count, judge.metric, judge.unit, judge.output, seed, tuple(rows), times, tuple(notes))


class _Contest:
    """The models in sessions of their own, and what says how good they are.

    Attributes:
        labels: what tables call the models.
        judge: of the first model.
        samples: what it judges on.
    """

    def __init__(self, given: Sequence[Contestant], samples: Labelled) -> None:
        self.samples = samples
        self.labels = [c.label for c in given]
        # a model that takes so many samples at once says so for all
        self._sizing = next((c.model for c in given if own_batches(c.model)), given[0].model)
        self._runners = [Runner(c.model, optimise=True, library=c.form == KERNELS) for c in given]
        try:
            self.judge = Judge(given[0].model, samples, library=given[0].form == KERNELS)
        except ModelError as error:
            raise ModelError(error.what, where=error.where or given[0].label, fix=error.fix) from None

    def score(self, inputs: Samples, first: int = 0) -> list[Scored]:
        """What each model, from the `first` on, makes of these inputs, which have the labels of the samples."""
        labels, runners = self.labels[first:], self._runners[first:]
        found = []
        for label, outputs in zip(labels, scoring.run(runners, self._sizing, inputs) if runners else [], strict=True):
            values = outputs[self.judge.output]
            try:
                found.append(self.judge.score_outputs(values))
            except ModelError as error:
                raise ModelError(error.what, where=label, fix="Give models that do the same job.") from None
            odd = ~np.isfinite(values.reshape(values.shape[0], -1)).all(axis=1)
            if odd.any():
                words = f"output `{self.judge.output}` is NaN or infinite in sample {int(np.argmax(odd))}"
                raise ModelError(f"{words}; there are {int(odd.sum())} such samples.", where=label)
        return found


def _common_batch(given: Sequence[Contestant]) -> int | None:
    """How many samples the models take at once where any of them fixes that."""
    sizes = {c.label: own_batches(c.model) for c in given}
    every = set().union(*sizes.values())
    if len(every) > 1:
        said = ", ".join(f"{label}: {' and '.join(map(str, sorted(own)))}" for label, own in sizes.items() if own)
        raise ModelError(f"the models fix different batch sizes ({said}).", fix="Export them with an open one.")
    return next(iter(every), None)


def _first(samples: Labelled, count: int) -> Arrays:
    """The first samples as arrays."""
    if samples.count < count:
        raise ModelError(f"the models take {count} samples at once, the data has {samples.count}.")
    return {name: np.asarray(values[:count]) for name, values in samples.inputs.items()}


def _robustness(
    contest: _Contest,
    corruptions: Sequence[Corruption],
    seed: int,
    ranges: Sequence[tuple[float, float]],
    tell: Progress,
) -> Robustness:
    """The quality of each model on spoiled inputs, in one pass over the samples for each severity."""
    inputs = contest.samples.inputs
    models = range(len(contest.labels))
    if not corruptions:
        if ranges:
            raise UsageError("a range is for corruptions:", fix="ask for some, or leave it out.")
        return [{} for _ in models]
    axes = {name: channel_axis(values.shape) for name, values in inputs.items()}
    spans = {name: range_of(name, inputs[name], axis, ranges) for name, axis in axes.items() if axis is not None}
    if not spans:
        shapes = ", ".join(f"`{name}` {list(values.shape)}" for name, values in inputs.items())
        raise ModelError(
            f"no input is an image [N, C, H, W] or [N, H, W, C] of 1 or 3 channels: {shapes}.",
            fix="Leave the corruptions out.",
        )
    found: Robustness = [{} for _ in models]
    for corruption in corruptions:
        values: list[list[float]] = [[] for _ in models]
        for severity in SEVERITIES:
            tell(f"{corruption.name}, severity {severity}")
            spoiled = {n: Corrupted(inputs[n], span, corruption, severity, seed) for n, span in spans.items()}
            for i, scored in enumerate(contest.score({**inputs, **spoiled})):
                values[i].append(scored.value)
        for i in models:
            found[i][corruption.name] = tuple(values[i])
    return found


def _quality(judge: Judge, scored: Scored, *, is_first: bool) -> Quality:
    drop = None if is_first else judge.drop(scored)
    certain = is_first and judge.metric == "agreement"  # with itself
    interval = None if certain else _interval(scored.right)
    top = None if scored.in_top is None else 100 * float(scored.in_top.mean())
    return Quality(scored.value, interval, top, _interval(scored.in_top), drop, scored.divergence)


def _interval(flags: Array | None) -> Interval | None:
    """In percent."""
    if flags is None:
        return None
    low, high = clopper_pearson(int(flags.sum()), flags.size, 1 - CONFIDENCE)
    return 100 * low, 100 * high


def _score(first: ModelRow, other: ModelRow, faster: float | None, metric: Metric) -> Score:
    """BiBench's scores, where there is accuracy to speak of."""
    accuracies, gaps = None, {}
    if metric == "accuracy":
        accuracies = (first.quality.value, other.quality.value)
        gaps = {n: (accuracies[0] - first.under(n), accuracies[1] - other.under(n)) for n in first.robustness}
    return score(accuracies, gaps, (first.complexity, other.complexity), (first.size, other.size), faster)


def _notes(rows: Sequence[ModelRow], corruptions: Sequence[str]) -> list[str]:
    """What is missing, and what the numbers are not."""
    notes = [
        f"{row.model}: {row.complexity.uncounted} layers are not counted, which are in branches, bodies or functions, "
        "or of operators not known here"
        for row in rows
        if row.complexity.uncounted
    ]
    if ALL in corruptions:
        left_out = [name for name, corruption in CORRUPTIONS.items() if not corruption.is_available()]
        notes += [f"without {name}, which needs {CORRUPTIONS[name].package}" for name in left_out]
    for row in rows[1:]:
        if row.score is not None and row.score.task is not None and row.score.corruptions < len(row.robustness):
            counted = f"{row.score.corruptions} of {len(row.robustness)}"
            notes.append(f"{row.model}: {counted} corruptions are in its score, those by which both models lose")
    return [*notes, NOT_COMPARABLE] if len(rows) > 1 else notes
