"""What a comparison finds, what of it counts as a failure, and how it reads: as JSON and as a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

from binarize_onnx.errors import GateFailed


@dataclass
class OutputRow:
    """One output of both models.

    Attributes:
        name: of the output.
        shape: of the source's output, all samples together.
        max_diff: the largest absolute difference; infinite where one is a number and the other is not.
        identical: whether they agree bit for bit.
        agreement: share of samples with the same largest class; None if the output is not [samples, classes].
        drift: how far the source moves between ORT_DISABLE_ALL and onnxruntime's default level.
        drift_agreement: share of samples whose class survives that.
    """

    name: str
    shape: tuple[int, ...] = ()
    max_diff: float = 0.0
    identical: bool = True
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
        bound: 4 * 2^-24 * sum of |terms| at that element.
        outside: elements whose difference exceeds their bound.
        beyond: elements whose difference even the number of roundings that there are does not explain: errors.
    """

    name: str
    elements: int = 0
    max_diff: float = 0.0
    bound: float = 0.0
    outside: int = 0
    beyond: int = 0


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
    """

    name: str
    elements: int = 0
    flips_inside: int = 0
    flips_outside: int = 0
    zeros: int = 0
    flips: list[Flip] = field(default_factory=list)


@dataclass
class Accuracy:
    """Share of samples for which the largest class is the label."""

    reference: float
    candidate: float


@dataclass(frozen=True)
class Gates:
    """What the caller demands; None demands nothing.

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
        notes: what was not compared, and why.
    """

    inputs: str
    samples: int
    outputs: list[OutputRow]
    accuracy: Accuracy | None = None
    exact: Exact | None = None
    layers: list[TensorRow | SignRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def signs(self) -> list[SignRow]:
        """The rows of `layers` that are signs."""
        return [row for row in self.layers if isinstance(row, SignRow)]

    @property
    def sign_flips(self) -> int | None:
        """Signs that differ, zeros apart; None if they were not counted."""
        return None if self.exact is None else sum(row.flips_inside + row.flips_outside for row in self.signs)

    def failures(self, gates: Gates | None = None) -> list[str]:
        """What does not hold, in words: the compiler's own promises, then the caller's gates."""
        return [*self._broken_promises(), *self._failed_gates(gates or Gates())]

    def require(self, gates: Gates | None = None) -> None:
        """Raise GateFailed, naming everything that does not hold."""
        failures = self.failures(gates)
        if failures:
            raise GateFailed("; ".join(failures) + ".")

    def _broken_promises(self) -> Iterator[str]:
        if self.exact is not None and not self.exact.equal:
            yield f"the candidate is not bit for bit the ideal graph, first in {self.exact.first_diverging}"
        for row in self.layers:
            if isinstance(row, SignRow) and row.flips_outside:
                yield f"sign `{row.name}`: {row.flips_outside} of {row.elements} differ beyond the rounding bound"
            if isinstance(row, TensorRow) and row.beyond:
                yield f"tensor `{row.name}`: {row.beyond} of {row.elements} values differ by more than rounding can do"

    def _failed_gates(self, gates: Gates) -> Iterator[str]:
        if gates.max_diff is not None:
            worst = max(self.outputs, key=lambda row: row.max_diff)
            if not worst.max_diff <= gates.max_diff:
                yield f"max-diff: output `{worst.name}` differs by {worst.max_diff:.6g}, more than {gates.max_diff:g}"
        if gates.max_sign_flips is not None:
            if self.sign_flips is None:
                yield "max-sign-flips: signs were not compared, the candidate was not made from the reference"
            elif self.sign_flips > gates.max_sign_flips:
                yield f"max-sign-flips: {self.sign_flips} signs differ, more than {gates.max_sign_flips}"
        if gates.min_agreement is not None:
            classes = [row.agreement for row in self.outputs if row.agreement is not None]
            if not classes:
                yield "min-agreement: no output is [samples, classes]"
            elif min(classes) < gates.min_agreement:
                yield f"min-agreement: {min(classes):.4f} of samples keep their class, asked {gates.min_agreement:g}"
        if gates.max_metric_drop is not None:
            if self.accuracy is None:
                yield "max-metric-drop: there are no labels to measure accuracy with"
            else:
                drop = 100 * (self.accuracy.reference - self.accuracy.candidate)
                if drop > gates.max_metric_drop + 1e-9:  # percentages of counts do not subtract exactly
                    yield f"max-metric-drop: accuracy falls by {drop:.2f} points, more than {gates.max_metric_drop:g}"

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON types; a difference without a number is null."""
        rows = [{"kind": "sign" if isinstance(row, SignRow) else "tensor", **asdict(row)} for row in self.layers]
        found: dict[str, Any] = _json_numbers({**asdict(self), "layers": rows, "sign_flips": self.sign_flips})
        return found

    def table(self) -> str:
        """Everything for a person."""
        return "\n".join([*self._overview(), *self._layer_lines(), *(f"note         {note}" for note in self.notes)])

    def _overview(self) -> Iterator[str]:
        yield f"inputs       {self.samples} samples, {self.inputs}"
        for row in self.outputs:
            same = "bit-identical" if row.identical else f"differs by up to {row.max_diff:.6g}"
            yield f"output       {row.name} {list(row.shape)}: {same}{self._classes(row.agreement)}"
            drift = f"moves by up to {row.drift:.6g}" if row.drift else "stays the same"
            yield (
                f"             the original itself {drift} at onnxruntime's default optimisation level"
                f"{self._classes(row.drift_agreement)}"
            )
        if self.accuracy is not None:
            yield f"accuracy     original {self.accuracy.reference:.2%}, candidate {self.accuracy.candidate:.2%}"
        if self.exact is not None:
            compared = f"{self.exact.float_tensors} float and {self.exact.packed_tensors} packed tensors"
            if self.exact.equal:
                yield f"exact        yes: {compared} equal the ideal graph bit for bit"
            else:
                yield f"exact        NO: of {compared} the first that departs is {self.exact.first_diverging}"
            zeros = sum(row.zeros for row in self.signs)
            yield (
                f"sign flips   {self.sign_flips} of {sum(row.elements for row in self.signs)}, fed with the original's "
                f"own tensors ({sum(row.flips_outside for row in self.signs)} beyond rounding)"
                + (f"; the original has 0 at {zeros} more" if zeros else "")
            )

    def _classes(self, share: float | None) -> str:
        return "" if share is None else f", same class for {round(share * self.samples)} of {self.samples}"

    def _layer_lines(self) -> Iterator[str]:
        if not self.layers:
            return
        table: list[tuple[str, ...]] = [
            ("layer by layer", "values", "max diff", "bound", "outside", "flips", "beyond", "zeros")
        ]
        for row in self.layers:
            if isinstance(row, SignRow):
                counts = row.flips_inside + row.flips_outside, row.flips_outside, row.zeros
                table.append((row.name, str(row.elements), "", "", "", *map(str, counts)))
            else:
                numbers = f"{row.max_diff:.3g}", f"{row.bound:.3g}", str(row.outside), "", str(row.beyond)
                table.append((row.name, str(row.elements), *numbers, ""))
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


def _json_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_numbers(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
