"""`sensitivity` and `convert --ptq auto` from files to results: which samples are for what, and which metric counts.

Samples to fit layers to and samples to judge networks on must not be the same. Where the caller gives one set for both,
it is divided by chance: a third to fit to, at most MOST_FITTED, and the rest to judge on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from binarize_onnx import io
from binarize_onnx.calibration import CalibrationData, replayed
from binarize_onnx.errors import ModelError, NothingMatched, UsageError
from binarize_onnx.passes.base import Array
from binarize_onnx.passes.recognise_layers import Filter
from binarize_onnx.pipeline import Config, Result, inspect
from binarize_onnx.quantize import preset, scoring, search, sensitivity, sites
from binarize_onnx.quantize.plan import Settings
from binarize_onnx.quantize.post_training import Progress
from binarize_onnx.quantize.precision import Precision
from binarize_onnx.quantize.scoring import Judge, Labelled, Metric
from binarize_onnx.quantize.search import Budget, Found
from binarize_onnx.quantize.sensitivity import Sensitivity
from binarize_onnx.verify.data import load_data, only_labels

MOST_FITTED = 1000
FEWEST = 2


@dataclass(frozen=True)
class Ranking:
    """Layers by what quantizing each alone costs, the worst first, and what that was measured with."""

    judge: Judge
    rows: list[Sensitivity]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "metric": self.judge.metric,
            "unit": self.judge.unit,
            "samples": self.judge.samples.count,
            "reference": self.judge.reference.value,
            "layers": [row.to_json() for row in self.rows],
        }

    def table(self) -> str:
        """The ranking for a person."""
        words = f"{self.judge.metric} of the float model on {self.judge.samples.count} samples"
        return f"{sensitivity.table(self.rows, self.judge)}\n\n{words}: {self.judge.reference.value:.4g}"


def samples(
    source: io.Source,
    config: Config,
    data: CalibrationData,
    labels: str | os.PathLike[str] | Array | None = None,
    selection: CalibrationData | None = None,
    *,
    seed: int = 0,
) -> tuple[Labelled, Labelled]:
    """Samples to fit to, and samples to judge on.

    Args:
        source: the float model.
        config: how it is read.
        data: samples to fit to, and to judge on if there are no others.
        labels: of the samples that are judged: a file of them, or an array; None for those in the data, if any.
        selection: samples to judge on.
        seed: of the division.

    Raises:
        ModelError: the data or the labels cannot be read, do not fit, or are too few.
        UsageError: both sets are one file.
    """
    model = sites.find(source.model, config).model
    given = only_labels(load_data(Path(labels))) if isinstance(labels, (str, os.PathLike)) else labels
    if selection is None:
        every = scoring.read(model, replayed(data), given)
        if every.count < FEWEST * every.batch:
            number = "1 sample" if every.count == 1 else f"{every.count} samples, which the model takes at once"
            raise ModelError(f"the data has {number}: some are to fit to and others to judge on.", fix="Give more.")
        return every.split(min(MOST_FITTED, every.count // 3), seed)
    if _path(data) is not None and _path(data) == _path(selection):
        raise UsageError(
            "the samples to fit to and those to judge on are the same:",
            fix="leave --selection-data out, and they are divided.",
        )
    return scoring.read(model, replayed(data)), scoring.read(model, replayed(selection), given)


def require_metric(judge: Judge, wanted: Metric) -> None:
    """Refuse to judge by something else than the caller wants.

    Raises:
        UsageError: accuracy needs class numbers, PSNR needs targets.
    """
    if judge.metric == wanted:
        return
    if wanted in ("accuracy", "psnr"):
        missing = "class numbers" if wanted == "accuracy" else "targets of the output's shape"
        raise UsageError(f"{wanted} needs labels, and there are no {missing}:", fix="give them with --labels.")
    raise UsageError(f"the samples have labels, which {wanted} does not look at:", fix="leave the labels out.")


def rank(
    source: io.Source,
    config: Config,
    fitted: Labelled,
    judged: Labelled,
    precision: Precision,
    *,
    metric: Metric | None = None,
    settings: Settings = sensitivity.RANKING,
    progress: Progress | None = None,
) -> Ranking:
    """What `sensitivity` prints: every layer that could be quantized, alone, in one precision."""
    network = sites.find(source.model, config)
    wanted = Filter(config.nodes_to_quantize, config.nodes_to_exclude, config.op_types_to_exclude)
    plan, left = network.choose(precision, wanted)
    if not plan:
        raise preset.nothing_to_choose(left)
    judge = Judge(network.model, judged)
    if metric is not None:
        require_metric(judge, metric)
    plans = {name: (p,) for name, p in plan.items()}
    return Ranking(
        judge, sensitivity.ranked(sensitivity.measure(network, fitted.inputs, judge, plans, settings, progress))
    )


def convert(
    source: io.Source,
    config: Config,
    fitted: Labelled,
    judged: Labelled,
    budget: Budget,
    *,
    metric: Metric | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> Found:
    """What `convert --ptq auto` does: see `search.search`."""
    if metric is not None:
        require_metric(Judge(sites.find(source.model, config).model, judged), metric)
    return search.search(source, fitted, judged, budget, config=config, threads=threads, progress=progress)


def _path(data: CalibrationData | None) -> str | None:
    path = data if isinstance(data, (str, os.PathLike)) else getattr(data, "path", None)
    return None if path is None else os.path.realpath(path)


@dataclass(frozen=True)
class Searched:
    """What a search found, and the model that was chosen with its report; of the nearest one where none was."""

    found: Found
    result: Result

    def writes(self, *, int8: bool, unchanged: bool) -> bool:
        """Whether there is something to write: binary weights, or what the caller takes in place of them."""
        kind = self.found.chosen.kind if self.found.chosen else ""
        return {"mixed": True, "int8": int8, "float": unchanged}.get(kind, False)

    def require(self, *, int8: bool, unchanged: bool) -> None:
        """Raise what the caller is to know if nothing is written.

        Raises:
            NothingMatched: something without binary weights is best.
        """
        if self.found.chosen is not None and not self.writes(int8=int8, unchanged=unchanged):
            option = "--allow-int8" if self.found.chosen.kind == "int8" else "--allow-unchanged"
            fix = f"{option} writes it." if all(gate.passed for gate in self.found.gates) else "it misses the budget."
            raise NothingMatched(f"{self.found.verdict} Nothing was written;", fix=fix)


def convert_file(
    path: Path,
    config: Config,
    data: CalibrationData | None,
    labels: Path | None,
    selection: CalibrationData | None,
    budget: Mapping[str, float | None],
    *,
    metric: Metric | None,
    threads: int,
    seed: int,
    progress: Progress | None,
) -> Searched:
    """`convert --ptq auto`, from files.

    Raises:
        UsageError: there is no data, no budget, or what was asked for contradicts `auto`.
        ModelError, NothingMatched: see `search.search`.
    """
    wanted = Budget(**budget)
    if data is None:
        raise UsageError("--ptq needs samples to calibrate on:", fix="give --calibration-data.")
    if config.emit != "compiled" or config.edges != "float":
        raise UsageError("--ptq auto compiles, and chooses the edges itself:", fix="leave out --emit and --edges.")
    source = io.read(str(path))
    fitted, judged = samples(source, config, data, labels, selection, seed=seed)
    found = convert(source, config, fitted, judged, wanted, metric=metric, threads=threads, progress=progress)
    candidate = found.candidate
    report = candidate.report or inspect(source.model, config)
    if candidate.report is None:
        for layer in report.layers:
            layer.status = "int8" if candidate.kind == "int8" and layer.name in candidate.forms else layer.status
        report.summary.bytes_after = io.byte_size(candidate.model)
    return Searched(found, Result(candidate.model, report))
