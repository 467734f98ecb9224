"""What a benchmark found, in words, as JSON, and as gates."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from binarize_onnx.bench.timing import Spread, Time
from binarize_onnx.gates import Gate, at_least
from binarize_onnx.report import printable, shown_size

KERNELS, BODIES, PLAIN = "kernels", "function bodies", "onnxruntime"
NOTICEABLY = 1.1  # times slower, from which on a layer is worth a warning
SHOWN_OPS = 3  # in the column that says what ran
RESOLUTION = 2.0  # µs: the profiler's own time and its clock


@dataclass(frozen=True)
class Row:
    """One contestant, end to end.

    Attributes:
        model: its file.
        form: how it ran: `onnxruntime` (it has no ops of ours), `kernels`, or `function bodies` (without our library).
        size: bytes of the file, external data included.
        time: microseconds a run.
        speedup: how many times faster than the first row, over the rounds in which both took part.
        rounds: how often it was timed.
    """

    model: str
    form: str
    size: int
    time: Time
    speedup: Spread
    rounds: int


@dataclass(frozen=True)
class LayerRow:
    """A layer with what belongs to it (`bench.layers`), in the first model and in another.

    Attributes:
        layer: its name; empty for time that belongs to no layer.
        op: the layer's operator in the other model; without a layer, what the time went to.
        binary: whether the layer is binary in the other model.
        baseline_ops: microseconds a run by operator, in the first model.
        ops: the same in the other.
    """

    layer: str
    op: str
    binary: bool
    baseline_ops: dict[str, float]
    ops: dict[str, float]

    @property
    def baseline_us(self) -> float:
        """Microseconds in the first model."""
        return sum(self.baseline_ops.values())

    @property
    def us(self) -> float:
        """Microseconds in the other."""
        return sum(self.ops.values())

    @property
    def speedup(self) -> float | None:
        """How many times faster the other is; None where one of the two has nothing here."""
        return self.baseline_us / self.us if self.baseline_us > 0 and self.us > 0 else None

    @property
    def slower(self) -> bool:
        """Whether it is binary, and noticeably slower than in the first model."""
        return self.binary and 0 < self.baseline_us * NOTICEABLY < self.us and self.us - self.baseline_us > RESOLUTION

    def to_json(self) -> dict[str, Any]:
        """The row as plain JSON types."""
        return {**asdict(self), "baseline_us": self.baseline_us, "us": self.us, "speedup": self.speedup}


@dataclass(frozen=True)
class LayerTable:
    """The layers of one model against those of the first; the rows add up to the totals.

    Attributes:
        baseline: file of the first model.
        model: file of the other.
        baseline_total: microseconds of a profiled run of the first.
        total: the same of the other.
        runs: profiled runs of each that the numbers are means of.
    """

    baseline: str
    model: str
    rows: tuple[LayerRow, ...]
    baseline_total: float
    total: float
    runs: tuple[int, int]

    def warning(self, row: LayerRow) -> str:
        """What is to be said of a binary layer that would be faster as it was; empty for any other."""
        if not row.slower:
            return ""
        option = shlex.quote(re.escape(row.layer))
        return printable(
            f"layer {row.layer} is {row.us / row.baseline_us:.1f} times slower in {self.model} than in "
            f"{self.baseline}: exclude it with --nodes-to-exclude {option}"
        )

    def warnings(self) -> list[str]:
        """Binary layers that would be faster as they were."""
        return [words for row in self.rows if (words := self.warning(row))]

    def to_json(self) -> dict[str, Any]:
        """The table as plain JSON types."""
        return {**asdict(self), "rows": [row.to_json() for row in self.rows], "warnings": self.warnings()}

    def cells(self) -> list[tuple[str, ...]]:
        """The table as text, its header first."""
        rows: list[tuple[str, ...]] = [("layer", f"{self.baseline}, µs", f"{self.model}, µs", "speed-up", "what ran")]
        for row in self.rows:
            name = row.layer or f"({row.op})"
            rows.append((name, _us(row.baseline_us), _us(row.us), _times(row.speedup), _ops(row)))
        rows.append(("all", _us(self.baseline_total), _us(self.total), _times(self.baseline_total / self.total), ""))
        return rows

    def lines(self) -> list[str]:
        """The table for a person."""
        return [
            "Layers, each with what follows it up to the next; profiled in runs of their own, which the profiler makes "
            f"longer than those above (means of {self.runs[0]} and {self.runs[1]} runs):",
            *aligned(self.cells(), left=(0, 4)),
        ]


@dataclass(frozen=True)
class Machine:
    """Where and how it was measured; `isa` is None where no kernels of ours ran."""

    cpu: str
    onnxruntime: str
    threads: int
    isa: str | None
    isa_forced: bool


@dataclass(frozen=True)
class Benchmark:
    """Everything that was measured.

    Attributes:
        machine: where.
        inputs: what was fed, in words.
        batch: samples in a run; None where the inputs do not count them.
        rows: end to end, the baseline first.
        layers: a table for each other model that ran apart from function bodies.
        notes: what is missing, and why.
    """

    machine: Machine
    inputs: str
    batch: int | None
    rows: tuple[Row, ...]
    layers: tuple[LayerTable, ...]
    notes: tuple[str, ...] = ()

    def warnings(self) -> list[str]:
        """What is slower than it should be."""
        found = [
            f"{row.model} ({row.form}) is SLOWER than {self.rows[0].model} ({self.rows[0].form}): it takes "
            f"{1 / row.speedup.median:.2f} times as long"
            for row in self.rows[1:]
            if row.form != BODIES and row.speedup.upper < 1  # in three rounds of four: less is noise
        ]
        return [*found, *(words for table in self.layers for words in table.warnings())]

    def gates(self, *, min_speedup: float | None = None) -> list[Gate]:
        """One gate for each model but the first, on the median of its speed-up; function bodies have none."""
        if min_speedup is None:
            return []
        first = self.rows[0]
        judged = [row for row in self.rows[1:] if row.form != BODIES]
        if not judged or first.form == BODIES:
            reason = "there is no other model to compare with"
            return [at_least("min-speedup", None, min_speedup, reason, _times)]
        return [
            at_least(
                "min-speedup",
                row.speedup.median,
                min_speedup,
                f"{row.model} is {row.speedup.median:.3g} times as fast as {first.model}",
                _times,
            )
            for row in judged
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON types; times in microseconds, sizes in bytes."""
        return {
            "machine": asdict(self.machine),
            "inputs": self.inputs,
            "batch": self.batch,
            "rows": [asdict(row) for row in self.rows],
            "layers": [table.to_json() for table in self.layers],
            "warnings": self.warnings(),
            "notes": list(self.notes),
        }

    def cells(self) -> list[tuple[str, ...]]:
        """The models end to end as text, the header first."""
        rows: list[tuple[str, ...]] = [
            ("model", "runs by", "size", "µs", "quartiles", "speed-up", "quartiles", "rounds")
        ]
        for row in self.rows:
            rows.append(
                (
                    row.model,
                    row.form,
                    shown_size(row.size),
                    _us(row.time.median),
                    f"{_us(row.time.lower)} – {_us(row.time.upper)}",
                    _times(row.speedup.median),
                    f"{row.speedup.lower:.2f} – {row.speedup.upper:.2f}",
                    str(row.rounds),
                )
            )
        return rows

    def conditions(self) -> list[tuple[str, str]]:
        """Where and how it was measured, as label and words."""
        machine = self.machine
        forced = " (forced by BINARIZE_ONNX_ISA)" if machine.isa_forced else ""
        kernels = "" if machine.isa is None else f", {machine.isa} kernels{forced}"
        threads = "1 thread" if machine.threads == 1 else f"{machine.threads} threads"
        batch = "" if self.batch is None else f", batch {self.batch}"
        return [
            ("machine", f"{machine.cpu}; onnxruntime {machine.onnxruntime}, {threads}{kernels}"),
            ("inputs", f"{self.inputs}{batch}; in turns; median and middle half of all rounds"),
        ]

    def remarks(self) -> list[tuple[str, str]]:
        """Warnings and notes, as label and words."""
        return [("warning", words) for words in self.warnings()] + [("note", words) for words in self.notes]

    def table(self) -> str:
        """Everything for a person."""
        lines = [f"{label:<8} {words}" for label, words in self.conditions()]
        lines += ["", *aligned(self.cells(), left=(0, 1))]
        for table in self.layers:
            lines += ["", *table.lines()]
        said = [f"{label:<8} {words}" for label, words in self.remarks()]
        return "\n".join([*lines, *([""] if said else []), *said])


def aligned(rows: Sequence[tuple[str, ...]], left: tuple[int, ...]) -> list[str]:
    """Columns, a line below the first row; those of `left` start together, the others end together."""
    rows = [tuple(printable(cell) for cell in row) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return [line(rows[0]), "  ".join("-" * width for width in widths), *map(line, rows[1:])]


def _ops(row: LayerRow) -> str:
    """`Conv, Sign -> XnorConv`: what ran in either model, the longest first."""
    if not row.layer:
        return ""
    before, after = (_longest(ops) for ops in (row.baseline_ops, row.ops))
    return before if before == after else f"{before} -> {after}"


def _longest(ops: dict[str, float]) -> str:
    names = sorted(ops, key=lambda op: -ops[op])
    more = f" and {len(names) - SHOWN_OPS} more" if len(names) > SHOWN_OPS else ""
    return (", ".join(names[:SHOWN_OPS]) or "nothing") + more


def _us(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"
