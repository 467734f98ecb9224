"""What a comparison finds, what of it counts as a failure, and how it reads: as JSON and as a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

from binarize_onnx.errors import UsageError
from binarize_onnx.gates import Gate, at_least, at_most, percent, require
from binarize_onnx.report import printable


@dataclass
class OutputRow:
    """One output of both models.

    Attributes:
        name: of the output.
        shape: of the source's output, all samples together.
        max_diff: the largest absolute difference; infinite where one is a number and the other is not.
        identical: whether they agree bit for bit.
        nans: places at which either is NaN.
        agreement: share of samples with the same largest class, to which NaN belongs in none; None if the output is
            not [samples, classes].
        drift: how far the source moves between ORT_DISABLE_ALL and onnxruntime's default level.
        drift_agreement: share of samples whose class survives that.
    """

    name: str
    shape: tuple[int, ...] = ()
    max_diff: float = 0.0
    identical: bool = True
    nans: int = 0
    agreement: float | None = None
    drift: float = 0.0
    drift_agreement: float | None = None


@dataclass
class Divergence:
    """The first tensor, in topological order, in which the file departs from the ideal graph."""

    name: str
    kind: str
    writer: str
    index: tuple[int, ...]
    differing: int
    elements: int

    def __str__(self) -> str:
        """The finding as part of a sentence."""
        of = "the bits of " if self.kind == "bits" else ""
        return (
            f"{of}`{self.name}`, written by {self.writer}: {self.differing} of {self.elements} values differ, "
            f"the first at {list(self.index)}"
        )


@dataclass
class Exact:
    """The file against the ideal graph, bit for bit."""

    equal: bool = True
    float_tensors: int = 0
    packed_tensors: int = 0
    first_diverging: Divergence | None = None


@dataclass
class TensorRow:
    """One float tensor of the ideal graph, computed from the source's own tensors.

    Attributes:
        name: of the tensor, in both graphs.
        elements: values compared.
        max_diff: the largest absolute difference.
        bound: (4 * 2^-24 + spread) * sum of |terms| at that element; 2^-11 for 2^-24 where the source is float16.
        outside: elements whose difference exceeds their bound.
        beyond: elements whose difference even the number of roundings that there are does not explain: errors.
        differing: elements that differ at all.
        spread: how far, relatively, the source's own weights and signs are from one scale times ±1.
    """

    name: str
    elements: int = 0
    max_diff: float = 0.0
    bound: float = 0.0
    outside: int = 0
    beyond: int = 0
    differing: int = 0
    spread: float = 0.0

    @property
    def error(self) -> str:
        """What of it no rounding explains, in words; empty if nothing."""
        if not self.beyond:
            return ""
        return f"tensor `{self.name}`: {self.beyond} of {self.elements} values differ by more than rounding can do"

    @property
    def differs(self) -> bool:
        """Whether anything of it differs at all."""
        return self.differing > 0

    @property
    def finding(self) -> str:
        """How it differs, in words."""
        size = f"by up to {self.max_diff:.3g} where {self.bound:.3g} is the bound"
        return f"{self.differing} of {self.elements} values differ, {size}{_beyond(self.beyond)}"


def _beyond(count: int) -> str:
    return f"; rounding does not explain {count}" if count else "; rounding explains it"


@dataclass
class Flip:
    """One sign that differs: where, how far the source is from the threshold there, and how far it may be."""

    index: tuple[int, ...]
    margin: float
    bound: float


@dataclass
class SignRow:
    """One sign of the ideal graph, computed from the source's own tensors.

    Attributes:
        name: of the sign's output, in both graphs.
        elements: signs compared.
        flips_inside: signs that differ where the source is within its bound of the threshold.
        flips_outside: signs that differ elsewhere: errors.
        zeros: signs for which the source has 0, and bits have +1.
        flips: the first few that differ, those outside the bound first.
        noise: how far the source's signs are from their values at most, flips and zeros apart.
        spread: as that of a TensorRow, of what the sign reads.
    """

    name: str
    elements: int = 0
    flips_inside: int = 0
    flips_outside: int = 0
    zeros: int = 0
    flips: list[Flip] = field(default_factory=list)
    noise: float = 0.0
    spread: float = 0.0

    @property
    def beyond(self) -> int:
        """Signs that no rounding explains."""
        return self.flips_outside

    @property
    def error(self) -> str:
        """What of it no rounding explains, in words; empty if nothing."""
        if not self.beyond:
            return ""
        return f"sign `{self.name}`: {self.beyond} of {self.elements} differ beyond the rounding bound"

    @property
    def differs(self) -> bool:
        """Whether any of them differs, zeros and noise apart."""
        return self.flips_inside + self.flips_outside > 0

    @property
    def finding(self) -> str:
        """How it differs, in words."""
        flips = self.flips_inside + self.flips_outside
        first = f", the first {self.flips[0].margin:.3g} from its threshold" if self.flips else ""
        return f"{flips} of {self.elements} signs differ{first}{_beyond(self.beyond)}"


@dataclass
class SignCoverage:
    """Which values of one sign of the ideal graph the samples showed.

    Attributes:
        name: of the sign's output.
        channels: of it.
        both: channels at which both values occurred; of a Level, its lowest and its highest.
        never: channels at which they did not.
        proved: channels at which they cannot: the threshold is out of reach. Not among `never`.
    """

    name: str
    channels: int
    both: int
    never: list[int] = field(default_factory=list)
    proved: list[int] = field(default_factory=list)


@dataclass
class Departure:
    """The first tensor, in the order of the reference, that the comparison found to differ.

    Attributes:
        name: of the tensor.
        writer: the node that computes it.
        question: `exact` (the candidate against the ideal graph, bit for bit), `layers` (the ideal graph against the
            reference, layer by layer) or `end to end` (a candidate of another origin against the reference).
        beyond: whether no rounding explains it.
        found: how it differs, in words.
    """

    name: str
    writer: str
    question: str
    beyond: bool
    found: str

    def __str__(self) -> str:
        """The finding as a line."""
        return f"`{self.name}`, written by {self.writer}: {self.found}"


@dataclass
class Accuracy:
    """Share of samples for which the largest class is the label."""

    reference: float
    candidate: float


@dataclass(frozen=True)
class Gates:
    """What the caller demands; None demands nothing. An output that is NaN anywhere fails every demand on outputs.

    Attributes:
        max_diff: of any output.
        max_sign_flips: over all signs, inside and outside of their bounds, zeros apart.
        min_agreement: share of samples with the same class, between 0 and 1.
        max_metric_drop: accuracy that may be lost, in percentage points.
    """

    max_diff: float | None = None
    max_sign_flips: int | None = None
    min_agreement: float | None = None
    max_metric_drop: float | None = None

    def __post_init__(self) -> None:
        """Refuse limits that are no numbers: they would decide nothing, or everything."""
        for name, limit in asdict(self).items():
            if limit is not None and not isfinite(limit):
                raise UsageError(f"{name} is {limit};", fix="give a finite number.")


@dataclass
class Verification:
    """Everything that was compared.

    Attributes:
        inputs: where the samples come from.
        samples: how many.
        outputs: one row an output.
        accuracy: on the labels; None without labels.
        exact: the file against the ideal graph, question 2; None if the candidate was not made from the reference.
        layers: the ideal graph against the source, question 3, in topological order; empty if the candidate was not
            made from the reference.
        stale: whether the candidate says that it was made from another file than the reference.
        notes: what was not compared, and why.
        coverage: which values of each sign the samples showed.
        departures: the first difference that each comparison found, in the order of the reference.
    """

    inputs: str
    samples: int
    outputs: list[OutputRow]
    accuracy: Accuracy | None = None
    exact: Exact | None = None
    layers: list[TensorRow | SignRow] = field(default_factory=list)
    stale: bool = False
    notes: list[str] = field(default_factory=list)
    coverage: list[SignCoverage] = field(default_factory=list)
    departures: list[Departure] = field(default_factory=list)

    @property
    def first_diverging(self) -> Departure | None:
        """The first tensor, in the order of the reference, that is wrong: no rounding explains it."""
        return next((d for d in self.departures if d.beyond), None)

    @property
    def first_difference(self) -> Departure | None:
        """The first tensor, in the order of the reference, that differs at all."""
        return next(iter(self.departures), None)

    @property
    def signs(self) -> list[SignRow]:
        """The rows of `layers` that are signs."""
        return [row for row in self.layers if isinstance(row, SignRow)]

    @property
    def sign_flips(self) -> int | None:
        """Signs that differ, zeros apart; None if they were not counted."""
        return None if self.exact is None else sum(row.flips_inside + row.flips_outside for row in self.signs)

    def gates(self, demanded: Gates | None = None) -> list[Gate]:
        """What has to hold: the compiler's own promises (`source`, `exact`, `rounding`), then the caller's demands.

        A candidate that was made from another file keeps no promise; it is refused unless the caller demands something.
        """
        limits = demanded or Gates()
        return [*self._promises(limits), *self._demands(limits)]

    def require(self, demanded: Gates | None = None) -> None:
        """Raise GateFailed, naming everything that does not hold."""
        require(self.gates(demanded))

    def _promises(self, demanded: Gates) -> Iterator[Gate]:
        if self.stale and demanded == Gates():
            found = "the candidate was made from another file than the reference: convert again, or set another gate"
            yield Gate("source", 0, 1, False, found)
        if self.exact is None:
            return
        first = self.exact.first_diverging
        departs = f"the candidate is not bit for bit the ideal graph, first in {first}"
        found = "the candidate is the ideal graph bit for bit" if self.exact.equal else departs
        yield at_most("exact", 0 if self.exact.equal else first.differing if first else None, 0, found)
        errors = [row.error for row in self.layers if row.beyond]
        found = "; ".join(errors) or "rounding explains every difference from the original"
        yield at_most("rounding", sum(row.beyond for row in self.layers), 0, found)

    def _demands(self, limits: Gates) -> Iterator[Gate]:
        nan = next((f"output `{row.name}` is NaN at {row.nans} places" for row in self.outputs if row.nans), "")
        if limits.max_diff is not None:
            worst = max(self.outputs, key=lambda row: row.max_diff)
            found = nan or f"output `{worst.name}` differs by {worst.max_diff}"
            yield at_most("max-diff", None if nan else worst.max_diff, limits.max_diff, found)
        if limits.max_sign_flips is not None:
            unknown = "signs were not compared, the candidate was not made from the reference"
            found = unknown if self.sign_flips is None else f"{self.sign_flips} signs differ"
            yield at_most("max-sign-flips", self.sign_flips, limits.max_sign_flips, found)
        if limits.min_agreement is not None:
            classes = [row.agreement for row in self.outputs if row.agreement is not None]
            share = None if nan or not classes else min(classes)
            found = nan or "no output is [samples, classes]"
            if share is not None:
                found = f"{percent(share)} of the samples keep their class"
            yield at_least("min-agreement", share, limits.min_agreement, found, percent)
        if limits.max_metric_drop is not None:
            drop = None
            found = nan or "there are no labels to measure accuracy with"
            if self.accuracy is not None and not nan:
                # Shares of counts do not subtract exactly; a billionth of a point is none of them.
                drop = round(100 * (self.accuracy.reference - self.accuracy.candidate), 9)
                found = f"accuracy falls by {drop} points"
            yield at_most("max-metric-drop", drop, limits.max_metric_drop, found)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON types; a difference without a number is null."""
        rows = [{"kind": "sign" if isinstance(row, SignRow) else "tensor", **asdict(row)} for row in self.layers]
        found = {**asdict(self), "layers": rows, "sign_flips": self.sign_flips}
        del found["departures"]
        for name in ("first_diverging", "first_difference"):
            departure = getattr(self, name)
            found[name] = asdict(departure) if departure else None
        numbers: dict[str, Any] = _json_numbers(found)
        return numbers

    def table(self) -> str:
        """Everything for a person."""
        overview = (f"{name:<12} {value}" for name, value in self._overview())
        notes = (f"note         {note}" for note in self.notes)
        return "\n".join(printable(line) for line in (*overview, *self._layer_lines(), *notes))

    def overview(self) -> list[tuple[str, str]]:
        """What there is to say about the two models as a whole: pairs of name and value."""
        return [*self._overview(), *(("note", note) for note in self.notes)]

    def rows(self) -> list[tuple[str, ...]]:
        """The layers as lines of a table, its header first."""
        table: list[tuple[str, ...]] = [
            ("layer by layer", "values", "max diff", "bound", "outside", "flips", "beyond", "zeros", "spread")
        ]
        for row in self.layers:
            if isinstance(row, SignRow):
                counts = row.flips_inside + row.flips_outside, row.flips_outside, row.zeros
                table.append((row.name, str(row.elements), "", "", "", *map(str, counts), _small(row.noise)))
            else:
                numbers = f"{row.max_diff:.3g}", f"{row.bound:.3g}", str(row.outside), "", str(row.beyond)
                table.append((row.name, str(row.elements), *numbers, "", _small(row.spread)))
        return table

    def _overview(self) -> Iterator[tuple[str, str]]:
        yield "inputs", f"{self.samples} samples, {self.inputs}"
        for row in self.outputs:
            same = "bit-identical" if row.identical else f"differs by up to {row.max_diff:.6g}"
            nans = f" (NaN at {row.nans} places)" if row.nans else ""
            yield "output", f"{row.name} {list(row.shape)}: {same}{nans}{self._classes(row.agreement)}"
            drift = f"moves by up to {row.drift:.6g}" if row.drift else "stays the same"
            classes = self._classes(row.drift_agreement)
            yield "", f"the original itself {drift} at onnxruntime's default optimisation level{classes}"
        if self.accuracy is not None:
            yield "accuracy", f"original {self.accuracy.reference:.2%}, candidate {self.accuracy.candidate:.2%}"
        if self.exact is not None:
            compared = f"{self.exact.float_tensors} float and {self.exact.packed_tensors} packed tensors"
            if self.exact.equal:
                yield "exact", f"yes: {compared} equal the ideal graph bit for bit"
            else:
                yield "exact", f"NO: of {compared} the first that departs is {self.exact.first_diverging}"
            zeros = sum(row.zeros for row in self.signs)
            flips = (
                f"{self.sign_flips} of {sum(row.elements for row in self.signs)}, fed with the original's own tensors "
                f"({sum(row.beyond for row in self.signs)} beyond rounding)"
            )
            yield "sign flips", flips + (f"; the original has 0 at {zeros} more" if zeros else "")

        yield from self._first_lines()
        if self.coverage:
            yield "signs", self._covered()

    def _first_lines(self) -> Iterator[tuple[str, str]]:
        if self.first_diverging is not None:
            yield "diverges", f"first in {self.first_diverging}"
        if self.first_difference is not None and self.first_difference is not self.first_diverging:
            yield "differs", f"first in {self.first_difference}"

    def _covered(self) -> str:
        both, channels = sum(row.both for row in self.coverage), sum(row.channels for row in self.coverage)
        proved, never = sum(len(row.proved) for row in self.coverage), sum(len(row.never) for row in self.coverage)
        words = f"both values at {both} of {channels} channels"
        if proved:
            words += f"; {proved} {'is' if proved == 1 else 'are'} constant on any data"
        if never:
            worst = max(self.coverage, key=lambda row: len(row.never))
            words += f"; {never} never changed on these samples, most of them ({len(worst.never)}) in `{worst.name}`"
        return words

    def _classes(self, share: float | None) -> str:
        return "" if share is None else f", same class for {round(share * self.samples)} of {self.samples}"

    def _layer_lines(self) -> Iterator[str]:
        if not self.layers:
            return
        table = self.rows()
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        yield ""
        for number, line in enumerate(table):
            cells = [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
            yield "  ".join(cells).rstrip()
            if number == 0:
                yield "  ".join("-" * width for width in widths)
        for row in self.signs:
            for flip in row.flips:
                where = "within" if flip.margin <= flip.bound else "BEYOND"
                yield (
                    f"flip         {row.name}{list(flip.index)}: {flip.margin:.3g} from the threshold, "
                    f"{where} the bound {flip.bound:.3g}"
                )
        yield ""


def _small(number: float) -> str:
    return f"{number:.2g}" if number else ""


def _json_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_numbers(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
