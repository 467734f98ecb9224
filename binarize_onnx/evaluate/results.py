"""What an evaluation found, in words and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from binarize_onnx.bench import Benchmark
from binarize_onnx.bench.results import aligned
from binarize_onnx.evaluate.complexity import Complexity
from binarize_onnx.evaluate.scores import Score
from binarize_onnx.quantize.drop_bound import CONFIDENCE, Drop, finite
from binarize_onnx.quantize.scoring import TOP, Metric
from binarize_onnx.report import printable, shown_count, shown_size

NOT_COMPARABLE = (
    "the scores are BiBench's formulas on this data, these networks and this machine: they are not comparable to the "
    "paper's"
)
REFERENCES = {
    "accuracy": "against the labels",
    "agreement": "with the classes of the first model, as there are no labels",
    "psnr": "against the targets",
    "error": "from the first model's output, as a share of its variance; there are no labels",
}

Interval = tuple[float, float]


@dataclass(frozen=True)
class Quality:
    """How good a model is on the samples.

    Attributes:
        value: accuracy or agreement in percent, decibels, or the squared error as a share.
        interval: the exact one of Clopper and Pearson, in percent; None where quality is no share of samples, and for
            the agreement of the first model with itself.
        top: the share, in percent, of samples whose label is among the TOP best classes; None without labels, or for
            few classes.
        top_interval: of that share.
        drop: what is lost against the first model on the same samples; None for the first model itself, and where
            nothing says what is good.
        divergence: see `scoring.Scored`.
    """

    value: float
    interval: Interval | None
    top: float | None
    top_interval: Interval | None
    drop: Drop | None
    divergence: float

    def to_json(self) -> dict[str, Any]:
        """The fields by name; None for what is not finite."""
        return {
            "value": finite(self.value),
            "interval": self.interval,
            f"top{TOP}": self.top,
            f"top{TOP}_interval": self.top_interval,
            "drop": None if self.drop is None else self.drop.to_json(),
            "divergence": finite(self.divergence),
        }


@dataclass(frozen=True)
class ModelRow:
    """One model.

    Attributes:
        model: its file.
        form: how it ran: `onnxruntime` (it has no ops of ours) or `kernels`.
        size: bytes of the file, external data included.
        quality: on the samples as they are.
        complexity: operations and parameters.
        robustness: quality on the samples spoiled by each corruption, one value a severity.
        score: BiBench's; None for the first model.
    """

    model: str
    form: str
    size: int
    quality: Quality
    complexity: Complexity
    robustness: Mapping[str, tuple[float, ...]]
    score: Score | None

    def under(self, corruption: str) -> float:
        """The mean over the severities of a corruption."""
        return fmean(self.robustness[corruption])

    @property
    def mean_corruption(self) -> float | None:
        """The mean over all corruptions; None if there are none."""
        return fmean(map(self.under, self.robustness)) if self.robustness else None

    def to_json(self) -> dict[str, Any]:
        """The row as plain JSON types."""
        spoiled = {
            name: {"mean": finite(self.under(name)), "severities": [finite(value) for value in values]}
            for name, values in self.robustness.items()
        }
        return {
            "model": self.model,
            "form": self.form,
            "bytes": self.size,
            "quality": self.quality.to_json(),
            "complexity": {**asdict(self.complexity), "ops": self.complexity.ops},
            "corruptions": spoiled,
            "mean_corruption": finite(self.mean_corruption),
            "bibench": None if self.score is None else self.score.to_json(),
        }


@dataclass(frozen=True)
class Evaluation:
    """Everything that was found.

    Attributes:
        samples: how many there are.
        metric: see `quantize.scoring`.
        unit: of a drop: `points` (percentage points) or `dB`; empty for the metric `error`.
        output: what is judged.
        seed: of the corruptions.
        rows: the models; the others are compared with the first.
        times: what `bench` measured; None if nothing was timed.
        notes: what is missing, and why.
    """

    samples: int
    metric: Metric
    unit: str
    output: str
    seed: int
    rows: tuple[ModelRow, ...]
    times: Benchmark | None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON types: shares in percent, times in microseconds."""
        return {
            "samples": self.samples,
            "metric": self.metric,
            "unit": self.unit,
            "output": self.output,
            "confidence": CONFIDENCE,
            "seed": self.seed,
            "models": [row.to_json() for row in self.rows],
            "times": None if self.times is None else self.times.to_json(),
            "notes": list(self.notes),
        }

    def conditions(self) -> list[tuple[str, str]]:
        """What was asked on what, as label and words."""
        said = f"{self.metric} of output `{self.output}` on {self.samples} samples, {REFERENCES[self.metric]}"
        pairs = [("quality", said)]
        if any(row.quality.interval is not None for row in self.rows):
            pairs.append(("interval", f"of Clopper and Pearson, {CONFIDENCE:.0%}: exact for any number of samples"))
        if self.unit and len(self.rows) > 1:
            words = f"in {self.unit}, against the first model on the same samples; at most: one-sided, {CONFIDENCE:.0%}"
            pairs.append(("lost", words))
        return pairs + (self.times.conditions() if self.times else [])

    def remarks(self) -> list[tuple[str, str]]:
        """Warnings and notes, as label and words."""
        found = list(self.times.remarks()) if self.times else []
        return [*found, *(("note", words) for words in self.notes)]

    def tables(self) -> list[list[tuple[str, ...]]]:
        """Quality, cost, corruptions, scores as text, their headers first; tables without rows are left out."""
        every = [self._quality(), self._cost(), self._corruptions(), self._scores()]
        return [rows for rows in every if len(rows) > 1]

    def table(self) -> str:
        """Everything for a person."""
        lines = _labelled(self.conditions())
        for rows in self.tables():
            lines += ["", *aligned(rows, left=(0,))]
        said = _labelled(self.remarks())
        return "\n".join([*lines, *([""] if said else []), *said])

    def _quality(self) -> list[tuple[str, ...]]:
        shown: list[tuple[str, ...]] = [
            ("model", self.metric, "interval", f"top-{TOP}", "interval", "lost", "at most", "divergence")
        ]
        for row in self.rows:
            q = row.quality
            lost = ("", "") if q.drop is None else (f"{q.drop.drop:+.2f}", f"{q.drop.bound:+.2f}")
            top = "" if q.top is None else f"{q.top:.2f}"
            shown.append(
                (
                    row.model,
                    self._value(q.value),
                    _interval(q.interval),
                    top,
                    _interval(q.top_interval),
                    *lost,
                    "" if row is self.rows[0] else f"{q.divergence:.3g}",
                )
            )
        return _without_empty(shown)

    def _cost(self) -> list[tuple[str, ...]]:
        shown: list[tuple[str, ...]] = [("model", "binary MACs", "float MACs", "OPs", "parameter bits", "size")]
        for row in self.rows:
            c = row.complexity
            more = " + ?" if c.uncounted else ""
            counts = (shown_count(c.binary_macs), shown_count(c.float_macs) + more, shown_count(round(c.ops)) + more)
            shown.append((row.model, *counts, shown_count(c.parameter_bits), shown_size(row.size)))
        if self.times is None:
            return shown
        timed = [cells[3:] for cells in self.times.cells()]  # without model, form and size
        return [(*row, *cells) for row, cells in zip(shown, timed, strict=True)]

    def _corruptions(self) -> list[tuple[str, ...]]:
        first = self.rows[0]
        if not first.robustness:
            return []
        shown = [(f"{self.metric}, mean of five severities", *(row.model for row in self.rows))]
        shown.append(("(none)", *(self._value(row.quality.value) for row in self.rows)))
        shown += [(name, *(self._value(row.under(name)) for row in self.rows)) for name in first.robustness]
        means = [row.mean_corruption for row in self.rows]
        return [*shown, ("mean of the corruptions", *("" if m is None else self._value(m) for m in means))]

    def _scores(self) -> list[tuple[str, ...]]:
        shown: list[tuple[str, ...]] = [
            ("BiBench's formulas", "task", "corruption", "complexity", "r_c", "r_s", "inference", "time", "bytes")
        ]
        for row in self.rows:
            s = row.score
            if s is not None:
                values = (s.task, s.corruption, s.complexity, s.compression, s.speedup_of_operations)
                measured = (s.inference, s.faster, s.smaller)
                shown.append((row.model, *("" if v is None else f"{v:.3f}" for v in (*values, *measured))))
        return shown

    def _value(self, value: float) -> str:
        return f"{value:.3g}" if self.metric == "error" else f"{value:.2f}"


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval[0]:.2f} – {interval[1]:.2f}"


def _without_empty(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """A table without the columns that say nothing."""
    kept = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    return [tuple(row[i] for i in kept) for row in rows]


def _labelled(pairs: list[tuple[str, str]]) -> list[str]:
    return [printable(f"{label:<8} {words}") for label, words in pairs]
