"""Compare a converted model with its source: outputs, bits, and every layer under the source's own signs.

Three questions, each with its own answer:

1. Do the two models agree? Every output, both at ORT_DISABLE_ALL, and beside it how far the source moves by itself
   between onnxruntime's optimisation levels.
2. Is the file what the compiler says it is? Outputs, float tensors and packed signs of the file against the ideal
   graph of the source, bit for bit.
3. Is the ideal graph the source? One binary network turns a rounding error into a flipped sign, and one flipped sign
   into thousands, so end to end this cannot be asked. Instead the ideal graph is cut into pieces, every piece is fed
   with the source's own tensors, and what it computes is compared with what the source has there:

       |computed - source| <= 4 * 2^-24 * sum of |terms|

   and a sign may differ only where the source is that close to the threshold. The sums of |terms| come from the same
   pieces of both graphs, computed with the absolute value of every input and every constant (`_absolute`). A source
   that keeps its scales in the weights rounds every partial sum, and equal magnitudes round the same way again and
   again: its own error may exceed 4 roundings, as may that of a BatchNormalization. So a float tensor counts as wrong
   only if all the roundings that there are do not explain it (`_Pieces.roundings`); both counts are reported.

Questions 2 and 3 need the source that the file was made from: its hash and the options are in the file's metadata.
"""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import EncodeError
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from binarize_onnx import bits, io, opset
from binarize_onnx.errors import BinarizeError, GateFailed, ModelError, RuntimeUnavailable, UsageError
from binarize_onnx.pipeline import Config, convert

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

BATCH = 4  # samples in memory at a time, with every tensor of both models
RANDOM_SAMPLES = 8
SEED = 0
ROUNDING = 2.0**-24  # of float32, relative
ROUNDINGS = 4  # each at the full size of the sum of |terms|
BOUND = ROUNDINGS * ROUNDING
SHOWN_FLIPS = 10  # for each sign

_log = logging.getLogger(__name__)


# --- What is found -----------------------------------------------------------------------------------------------


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
        exact: question 2 of this module; None if the candidate was not made from the reference.
        layers: question 3, in topological order; empty if the candidate was not made from the reference.
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


# --- The comparison ----------------------------------------------------------------------------------------------


def verify(
    reference: io.ModelLike,
    candidate: io.ModelLike,
    *,
    inputs: Mapping[str, Array] | None = None,
    labels: Array | None = None,
    samples: int | None = None,
    batch: int = BATCH,
) -> Verification:
    """Compare a candidate with the model that it stands for.

    Args:
        reference: path, bytes or ModelProto of the original.
        candidate: the same of the converted model, or of any other with equal inputs and outputs.
        inputs: arrays by input name; None for seeded random numbers (standard normal; 0 and 1 for integers).
        labels: class of every sample, to compare accuracies.
        samples: how many of the inputs to use, or how many random ones to make.
        batch: samples in memory at a time, where the model leaves the batch size open.

    Raises:
        ModelError: a model cannot be read or run, the two do not fit each other, or the data does not fit them.
        UsageError: the model leaves sizes open that only data can fill.
        RuntimeUnavailable: onnxruntime or our library is missing.
    """
    ref, cand = io.read(reference), io.read(candidate)
    _require_same_interface(ref.model, cand.model)
    config, notes = _recorded_options(ref, cand)
    if inputs is None:
        described = f"random (standard normal, seed {SEED})"
        inputs = _random_inputs(ref.model, samples or RANDOM_SAMPLES, config.input_shapes if config else {})
    else:
        described = "given"
        inputs = {name: values[:samples] if values.ndim else values for name, values in inputs.items()}
    _require_fitting(ref.model, inputs)
    batches = list(_batches(ref.model, inputs, batch))
    count = batches[-1][1].stop
    if labels is not None:
        labels = _fitting_labels(labels[:samples] if labels.ndim else labels, count)

    outputs = _Outputs([out.name for out in ref.model.graph.output])
    ideal = None
    if config is not None:
        ideal = convert(reference, replace(config, emit="ideal", allow_unchanged=True)).model
    exact = None if ideal is None else _ExactCheck(ideal, cand.model)
    forced = None if ideal is None else _TeacherForcing(ideal, ref.model)
    plain = _Runner(ref.model, forced.read_from_reference if forced else [])
    default = _Runner(ref.model, optimise=True)
    tested = _Runner(cand.model, exact.read_from_candidate if exact else [], library=_has_our_ops(cand.model))
    for feed, rows in batches:
        _log.info("samples %d to %d of %d", rows.start + 1, rows.stop, count)
        source, result = plain.run(feed), tested.run(feed)
        outputs.compare(source, result, default.run(feed), rows)
        if exact is not None:
            exact.compare(feed, result)
        if forced is not None:
            forced.compare(feed, source, rows.start)
    accuracy = outputs.judge_classes(labels)
    return Verification(
        inputs=described,
        samples=count,
        outputs=outputs.rows,
        accuracy=accuracy,
        exact=None if exact is None else exact.found,
        layers=[] if forced is None else forced.rows,
        notes=[*notes, *(forced.notes if forced else [])],
    )


def verify_files(
    reference: Path,
    candidate: Path,
    *,
    data: Path | None = None,
    labels: Path | None = None,
    samples: int | None = None,
) -> Verification:
    """`verify` on files: samples and labels from .npz or .npy.

    Raises:
        UsageError: there are labels without samples.
    """
    if data is None and labels is not None:
        raise UsageError("labels belong to samples:", fix="give --data as well.")
    inputs, truth = (None, None) if data is None else split_labels(load_data(data), io.load(reference))
    if labels is not None:
        truth = only_labels(load_data(labels))
    found = verify(reference, candidate, inputs=inputs, labels=truth, samples=samples)
    if data is not None:
        found.inputs = f"from {data.name}"
    return found


def _recorded_options(ref: io.Source, cand: io.Source) -> tuple[Config | None, list[str]]:
    """The options that the candidate was made from the reference with; None, and why, if it was not."""
    recorded = {entry.key: entry.value for entry in cand.model.metadata_props}
    source, options = recorded.get("binarize_onnx.source_sha256"), recorded.get("binarize_onnx.options")
    if source is None or options is None:
        return None, ["the candidate is no file of ours: outputs are compared, bits and layers are not"]
    if source != ref.sha256:
        return None, [
            "the candidate was made from another file than the reference "
            f"(sha256 {source[:12]}…, not {ref.sha256[:12]}…): outputs are compared, bits and layers are not"
        ]
    try:
        return Config.from_json(options), []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"the candidate's metadata `binarize_onnx.options` cannot be read ({error}).") from None


def _require_same_interface(ref: onnx.ModelProto, cand: onnx.ModelProto) -> None:
    for what, ours, theirs in (
        ("inputs", set(_inputs(ref)), set(_inputs(cand))),
        ("outputs", {o.name for o in ref.graph.output}, {o.name for o in cand.graph.output}),
    ):
        if ours != theirs:
            raise ModelError(
                f"the models cannot be compared: {what} of the reference are {_list(ours)}, "
                f"of the candidate {_list(theirs)}."
            )


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "none"


class _Outputs:
    """Question 1: what both models return."""

    def __init__(self, names: list[str]) -> None:
        self.rows = [OutputRow(name) for name in names]
        self._classes: dict[str, list[Array]] = {}  # per batch, by output: those of source, candidate, drifted source

    def compare(self, ref: Arrays, cand: Arrays, default: Arrays, rows: slice) -> None:
        for row in self.rows:
            a, b, c = ref[row.name], cand[row.name], default[row.name]
            if a.shape != b.shape:
                raise ModelError(f"output `{row.name}` has shape {list(a.shape)}, the candidate's {list(b.shape)}.")
            batched = a.ndim > 0 and a.shape[0] == rows.stop - rows.start
            row.shape = (rows.stop, *a.shape[1:]) if batched else a.shape
            row.max_diff = max(row.max_diff, _largest(_difference(a, b)))
            row.drift = max(row.drift, _largest(_difference(a, c)))
            row.identical = row.identical and bool(np.all(_same_bits(a, b)))
            if batched and a.ndim == 2 and a.shape[1] > 1 and a.dtype.kind == "f":
                self._classes.setdefault(row.name, []).append(np.stack([x.argmax(axis=1) for x in (a, b, c)]))

    def judge_classes(self, labels: Array | None) -> Accuracy | None:
        """Fill in how often the classes agree; the labels are for the first output that has classes."""
        accuracy = None
        for row in self.rows:
            if row.name in self._classes:
                source, candidate, drifted = np.concatenate(self._classes[row.name], axis=1)
                row.agreement = float(np.mean(source == candidate))
                row.drift_agreement = float(np.mean(source == drifted))
                if labels is not None and accuracy is None:
                    accuracy = Accuracy(float(np.mean(source == labels)), float(np.mean(candidate == labels)))
        if labels is not None and accuracy is None:
            raise ModelError("there are labels, but no output is [samples, classes].", fix="Leave the labels out.")
        return accuracy


def _difference(a: Array, b: Array) -> npt.NDArray[np.float64]:
    """|a - b|, 0 for equal infinities and NaN pairs, infinite where only one is a number."""
    if a.dtype.kind not in "fiub":
        return np.where(a == b, 0.0, np.inf)
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.asarray(np.abs(x - y))
    difference[(x == y) | (np.isnan(x) & np.isnan(y))] = 0.0
    difference[np.isnan(difference)] = np.inf
    return difference


def _largest(difference: npt.NDArray[np.float64]) -> float:
    return float(difference.max(initial=0.0))


def _same_bits(a: Array, b: Array) -> npt.NDArray[np.bool_]:
    """Where two arrays of one shape agree bit for bit; any NaN equals any other."""
    if a.dtype != b.dtype:
        return np.zeros(a.shape, np.bool_)
    if a.dtype.kind != "f":
        return np.asarray(a == b)
    words = f"u{a.dtype.itemsize}"
    same = np.ascontiguousarray(a).view(words) == np.ascontiguousarray(b).view(words)
    return np.asarray(same | (np.isnan(a) & np.isnan(b))).reshape(a.shape)


# --- Running models ----------------------------------------------------------------------------------------------


class _Runner:
    """A model in an onnxruntime session, with chosen inner tensors as further outputs."""

    def __init__(
        self, model: onnx.ModelProto, extra: Iterable[str] = (), *, optimise: bool = False, library: bool = False
    ) -> None:
        shown = _with_outputs(model, extra)
        try:
            import onnxruntime
        except ImportError as error:
            raise RuntimeUnavailable(f"onnxruntime cannot be imported ({error});", fix="install it.") from None
        try:
            data = shown.SerializeToString()
        except (EncodeError, ValueError):
            raise ModelError("the model is too large to verify: it does not fit into one protobuf of 2 GB.") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if not optimise:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        start = onnxruntime.InferenceSession
        if library:
            from binarize_onnx import runtime

            start = runtime.InferenceSession
        try:
            self._session = start(data, options, providers=["CPUExecutionProvider"])
        except BinarizeError:
            raise
        except Exception as error:  # onnxruntime's own classes share no base
            raise ModelError(f"onnxruntime does not load the model: {_one_line(error)}") from None
        self._inputs = [given.name for given in self._session.get_inputs()]
        self.types: dict[str, str] = {out.name: out.type for out in self._session.get_outputs()}

    def run(self, feed: Mapping[str, Array]) -> Arrays:
        """Every output by name; of the feed the model takes what it needs."""
        try:
            values = self._session.run(list(self.types), {name: feed[name] for name in self._inputs})
        except Exception as error:
            raise ModelError(f"onnxruntime does not run the model on this data: {_one_line(error)}") from None
        odd = [name for name, value in zip(self.types, values, strict=True) if not isinstance(value, np.ndarray)]
        if odd:
            raise ModelError(f"output `{odd[0]}` is no tensor: only tensors can be compared.")
        return dict(zip(self.types, values, strict=True))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _with_outputs(model: onnx.ModelProto, extra: Iterable[str]) -> onnx.ModelProto:
    present = {out.name for out in model.graph.output}
    added = [name for name in extra if name not in present]
    if not added:
        return model
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in added)
    return shown


def _has_our_ops(model: onnx.ModelProto) -> bool:
    return any(function.domain == opset.DOMAIN for function in model.functions) or any(
        node.domain == opset.DOMAIN for node in model.graph.node
    )


def _computed(model: onnx.ModelProto) -> dict[str, NodeProto]:
    """Every tensor that a node of the main graph computes, and the node, in topological order."""
    return {name: node for node in model.graph.node if node.op_type != "Constant" for name in node.output if name}


# --- Question 2: the file against the ideal graph ----------------------------------------------------------------


class _ExactCheck:
    """Tensors that the ideal graph and the file have in common, bit for bit.

    Beside tensors of one name these are packed ones: `a.bits` of the file holds the bits of `a` in the ideal graph,
    and so does `a.unpooled.bits` where `a` is a sign's output.
    """

    def __init__(self, ideal: onnx.ModelProto, candidate: onnx.ModelProto) -> None:
        wanted, self._writers = _computed(ideal), _computed(candidate)
        packed = {name: words for name, node in wanted.items() if (words := self._words(name, node))}
        self._ideal = _Runner(ideal, [name for name in wanted if name in self._writers or name in packed])
        self._order = [name for name in wanted if name in self._ideal.types]
        self._packed = {name: self._packed_source(words) for name, words in packed.items()}
        self._flattened = {name for name, words in packed.items() if self._packed[name] != words}
        self.read_from_candidate = [
            *(name for name in self._order if name in self._writers),
            *dict.fromkeys(self._packed.values()),
        ]
        outputs = {out.name for out in candidate.graph.output}
        self._order += [name for name in self._ideal.types if name not in self._order and name in outputs]
        self._first = len(self._order)
        self.found = Exact(
            float_tensors=sum(name in self._writers or name in outputs for name in self._order),
            packed_tensors=len(self._packed),
        )

    def compare(self, feed: Mapping[str, Array], candidate: Arrays) -> None:
        ideal = self._ideal.run(feed)
        for position, name in enumerate(self._order[: self._first + 1]):
            for kind, differs in self._differences(name, ideal[name], candidate):
                if not np.any(differs):
                    continue
                self.found.equal = False
                if position < self._first:
                    self._first = position
                    words = self._packed[name] if kind == "bits" else name
                    writer = self._writers.get(words)
                    self.found.first_diverging = Divergence(
                        name=name,
                        kind=kind,
                        writer=f"{writer.op_type} `{writer.name}`" if writer else "the graph's inputs",
                        index=tuple(int(i) for i in np.argwhere(differs)[0]) if differs.ndim else (),
                        differing=int(np.count_nonzero(differs)),
                        elements=int(differs.size),
                    )

    def _differences(self, name: str, ideal: Array, candidate: Arrays) -> Iterator[tuple[str, Array]]:
        if name in self._packed:
            unpacked = self._unpack(name, ideal, candidate[self._packed[name]])
            yield "bits", np.ones(ideal.shape, np.bool_) if unpacked is None else unpacked != (ideal > 0)
        if name in candidate:
            same_shape = ideal.shape == candidate[name].shape
            yield "values", ~_same_bits(ideal, candidate[name]) if same_shape else np.ones(ideal.shape, np.bool_)

    def _words(self, name: str, node: NodeProto) -> str | None:
        """What holds the bits of an ideal tensor in the file, if anything does; levels have more than one."""
        if _is_sign(node) and node.op_type != "BinarySign":
            return None
        names = [f"{name}.bits", *([f"{name}.unpooled.bits"] if _is_sign(node) else [])]
        return next((words for words in names if words in self._writers), None)

    def _packed_source(self, words: str) -> str:
        """What to read for packed words: of words that were flattened, the words before."""
        writer = self._writers[words]
        return writer.input[0] if writer.op_type == "Reshape" and writer.input[0] in self._writers else words

    def _unpack(self, name: str, ideal: Array, words: Array) -> npt.NDArray[np.bool_] | None:
        """The bits in the ideal tensor's own shape; None if the words cannot hold that tensor."""
        if words.dtype != np.uint32:
            return None
        if name in self._flattened:
            lanes = bits.unpack(words, 1, words.shape[1] * bits.WORD)
            return lanes.reshape(ideal.shape) if lanes.size == ideal.size else None
        for axis, length in enumerate(ideal.shape):
            if words.shape == (*ideal.shape[:axis], bits.word_count(length), *ideal.shape[axis + 1 :]):
                return bits.unpack(words, axis, length)
        return None


# --- Question 3: layer by layer, fed with the source's own tensors -----------------------------------------------

# Layers begin a piece: they read the source's tensors. Their |terms| are those of |inputs| and |weights|.
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

# Steps that a piece goes on through, because |terms| pass through them: sums, products, and ops that choose or move
# values. Anything else (Tanh, Softmax, Clip, ...) is a piece of its own.
_STEP_NAMES = """
    Abs Add AveragePool BatchNormalization Concat DepthToSpace Div Dropout Expand Flatten Gather GlobalAveragePool
    GlobalMaxPool Identity LeakyRelu MaxPool Mul Neg PRelu Pad ReduceMax ReduceMean ReduceSum Relu Reshape Slice
    SpaceToDepth Split Squeeze Sub Sum Tile Transpose Unsqueeze Where
"""
STEPS = frozenset(_STEP_NAMES.split())

# var + eps, its root, the inverse, gamma and mu times that, beta minus that, x times scale, plus shift: on both sides.
STEP_ROUNDINGS = {"BatchNormalization": 16}

COMPUTED = "|computed"  # appended to a tensor's name where the source's value goes on under the name itself


class _Pieces:
    """The ideal graph, cut into pieces.

    A tensor that the source has too becomes an input of the graph, to be fed with the source's values, where

    * a sign made it, or an op that is neither layer nor step;
    * a layer reads it, or any other op that is neither step nor sign;
    * it joins a tensor of another piece: a shortcut.

    Everywhere else what the piece itself computes goes on. So a sign reads what became of the whole way from the
    binary layer to it, shortcuts included.
    """

    def __init__(self, ideal: onnx.ModelProto, common: set[str]) -> None:
        self.nodes = _computed(ideal)
        self._constants: dict[str, tuple[int, ...]] = {t.name: tuple(t.dims) for t in ideal.graph.initializer}
        for node in ideal.graph.node:
            if node.op_type == "Constant":
                self._constants[node.output[0]] = ()
        self._readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in ideal.graph.node:
            for name in _reads(node):
                self._readers[name].append(node)
        self.fed = {n for n in common if n in self.nodes and any(self._feeds(n, node) for node in self._readers[n])}
        self.model = self._cut(ideal)

    def computed(self, name: str) -> str:
        """The name of a tensor as its piece computes it."""
        return name + COMPUTED if name in self.fed else name

    def data_of(self, sign: str) -> str:
        """The name of what a sign reads."""
        return self._read_as(self.nodes[sign].input[0], self.nodes[sign])

    def has_terms(self, name: str) -> bool:
        """Whether the tensor is a sum of terms of what its piece is fed with."""
        node = self.nodes.get(name)
        return node is not None and (_is_layer(node) or self._is_step(node))

    def roundings(self, name: str) -> int:
        """How many roundings, at most, lie between the fed tensors and this one: on both sides, if both round."""
        node = self.nodes.get(name)
        if node is None or not self.has_terms(name):
            return 0
        if _is_layer(node):
            return self._dot_length(node)
        own = [i for i in node.input if i not in self.fed or not self._feeds(i, node)]
        return STEP_ROUNDINGS.get(node.op_type, 2) + max((self.roundings(i) for i in own), default=0)

    def _dot_length(self, layer: NodeProto) -> int:
        """Terms of one output of a layer; 0 if its weights are no constant."""
        shape = self._constants.get(layer.input[1], ())
        if len(shape) < 2:
            return 0
        if layer.op_type == "Conv":
            return prod(shape[1:])
        if layer.op_type == "ConvTranspose":
            return prod(shape) // shape[1]
        transposed = any(a.name == "transB" and a.i for a in layer.attribute)
        return shape[-1] if transposed else shape[-2]

    def _feeds(self, name: str, reader: NodeProto) -> bool:
        """Whether the reader gets the source's tensor instead of the computed one."""
        if not self.has_terms(name):
            return True
        if _is_sign(reader):
            return False
        if not self._is_step(reader):
            return True
        others = [i for i in reader.input if i not in ("", name) and i not in self._constants]
        shortcut = bool(others) and len(self._readers[name]) > 1
        return shortcut and not any(self._derives_from(other, name) for other in others)

    def _derives_from(self, name: str, origin: str) -> bool:
        """Whether steps alone lead from `origin` to the tensor."""
        node = self.nodes.get(name)
        if name == origin or node is None or not self._is_step(node):
            return name == origin
        return any(self._derives_from(i, origin) for i in node.input if i)

    def _read_as(self, name: str, reader: NodeProto) -> str:
        return name if name not in self.fed or self._feeds(name, reader) else name + COMPUTED

    def _is_step(self, node: NodeProto) -> bool:
        if node.domain not in ("", "ai.onnx") or node.op_type not in STEPS:
            return False
        if node.op_type in ("Div", "PRelu", "BatchNormalization"):  # the factors must be known
            return all(name in self._constants for name in node.input[1:])
        return True

    def _cut(self, ideal: onnx.ModelProto) -> onnx.ModelProto:
        cut = onnx.ModelProto()
        cut.CopyFrom(ideal)
        del cut.graph.value_info[:]
        for node, original in zip(cut.graph.node, ideal.graph.node, strict=True):
            node.input[:] = [self._read_as(name, original) for name in original.input]
            node.output[:] = [self.computed(name) for name in original.output]
        cut.graph.input.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self.nodes if name in self.fed
        )
        return cut


class _Terms:
    """The sums of |terms| behind tensors: by the pieces of several graphs, whichever is largest.

    The source may have terms that cancel in a constant of the ideal graph: BatchNormalization's mean and offset.
    """

    def __init__(self, graphs: Sequence[_Pieces], tensors: Sequence[str]) -> None:
        self._runners = []
        for pieces in graphs:
            names = [pieces.computed(name) for name in tensors if pieces.has_terms(name)]
            if names:
                self._runners.append(_Runner(_pruned(_absolute(pieces.model), names)))

    def run(self, known: Mapping[str, Array]) -> Arrays:
        """The sums for those tensors that have any, from the values of all inputs of the pieces."""
        magnitudes = {name: np.abs(x) if x.dtype.kind == "f" else x for name, x in known.items()}
        found: Arrays = {}
        for runner in self._runners:
            for output, sums in runner.run(magnitudes).items():
                name = output.removesuffix(COMPUTED)
                found[name] = np.maximum(found[name], sums) if name in found else sums
        return found


class _TeacherForcing:
    """Every piece of the ideal graph, fed with the source's tensors, against the source."""

    def __init__(self, ideal: onnx.ModelProto, reference: onnx.ModelProto) -> None:
        in_source = _computed(reference)
        shared = [name for name in _computed(ideal) if name in in_source]
        types = _Runner(reference, shared).types
        self.read_from_reference = [name for name in shared if types[name] == "tensor(float)"]
        pieces = self._pieces = _Pieces(ideal, set(self.read_from_reference))
        self._thresholds = {t.name: numpy_helper.to_array(t) for t in ideal.graph.initializer}

        self.rows: list[TensorRow | SignRow] = []
        self.notes: list[str] = []
        wanted, summed = [], []
        for name, node in pieces.nodes.items():
            if name not in types:
                if _is_sign(node):
                    self.notes.append(f"sign `{name}` has no counterpart in the reference: it is not compared")
                continue
            if types[name] != "tensor(float)":
                continue
            self.rows.append(SignRow(name) if _is_sign(node) else TensorRow(name))
            wanted.append(pieces.computed(name))
            measured = pieces.data_of(name) if _is_sign(node) else pieces.computed(name)
            if measured.removesuffix(COMPUTED) in pieces.nodes and measured not in pieces.fed:
                wanted.append(measured)
                summed.append(measured.removesuffix(COMPUTED))
        self._values = _Runner(_pruned(pieces.model, wanted)) if wanted else None
        both = [pieces, _Pieces(reference, set(self.read_from_reference))]
        self._terms = _Terms(both, summed)
        self._roundings = {row.name: max(ROUNDINGS, *(p.roundings(row.name) for p in both)) for row in self.rows}

    def compare(self, feed: Mapping[str, Array], source: Arrays, start: int) -> None:
        """One batch, its first sample the `start`-th of all."""
        known = {**feed, **source}
        values = self._values.run(known) if self._values else {}
        terms = self._terms.run(known)
        for row in self.rows:
            computed, expected = values[self._pieces.computed(row.name)], source[row.name]
            row.elements += expected.size
            if isinstance(row, SignRow):
                self._compare_sign(row, computed, expected, known | values, terms, start)
            else:
                sums = terms.get(row.name, np.abs(expected))
                _compare_tensor(row, computed, expected, sums, self._roundings[row.name])

    def _compare_sign(
        self, row: SignRow, computed: Array, expected: Array, known: Arrays, terms: Arrays, start: int
    ) -> None:
        node = self._pieces.nodes[row.name]
        zeros = (expected == 0) & bool(_low_value(node) == -1)
        differs = (expected != computed) & ~zeros
        row.zeros += int(np.count_nonzero(zeros))
        if not np.any(differs):
            return
        data = self._pieces.data_of(row.name)
        tensor = data.removesuffix(COMPUTED)
        margin, threshold = _margin(node, known.get(tensor, known.get(data)), self._thresholds.get(node.input[1]))
        bound = np.zeros(margin.shape)  # of a sign that reads the source's own tensor: nothing excuses it
        if data not in self._pieces.fed and tensor in terms:
            bound += BOUND * (terms[tensor] + np.where(np.isfinite(threshold), np.abs(threshold), 0))
        inside = differs & (margin <= bound)
        row.flips_inside += int(np.count_nonzero(inside))
        row.flips_outside += int(np.count_nonzero(differs & ~inside))
        for where in (differs & ~inside, inside):
            for index in np.argwhere(where)[:SHOWN_FLIPS]:
                at = tuple(int(i) for i in index)
                row.flips.append(Flip((at[0] + start, *at[1:]) if at else at, float(margin[at]), float(bound[at])))
        row.flips.sort(key=lambda flip: flip.margin <= flip.bound)
        del row.flips[SHOWN_FLIPS:]


def _compare_tensor(row: TensorRow, computed: Array, expected: Array, terms: Array, roundings: int) -> None:
    if computed.shape != expected.shape:
        row.max_diff, row.outside, row.beyond = np.inf, row.outside + expected.size, row.beyond + expected.size
        return
    if not expected.size:
        return
    difference, rounding = _difference(computed, expected), ROUNDING * terms.astype(np.float64)
    for what, count in (("outside", ROUNDINGS), ("beyond", roundings)):
        exceeds = (difference > 0) & ~(difference <= count * rounding)
        setattr(row, what, getattr(row, what) + int(np.count_nonzero(exceeds)))
    at = np.unravel_index(int(np.argmax(difference)), difference.shape)
    if difference[at] > row.max_diff or row.bound == 0:
        row.max_diff, row.bound = float(difference[at]), float(ROUNDINGS * rounding[at])


def _margin(sign: NodeProto, x: Any, threshold: Array | None) -> tuple[Array, Array]:
    """How far each value is from the (nearest) threshold, and that threshold; NaN if it is only known at run time."""
    if threshold is None:
        return np.full(x.shape, np.nan), np.zeros(())
    t = threshold.astype(np.float64)
    if sign.op_type == "BinarySign":
        return np.abs(x - t), t
    levels = t.reshape(t.shape[0], *(1,) * (x.ndim - t.ndim + 1), *t.shape[1:])
    distance = np.abs(x[None] - levels)
    nearest = distance.argmin(axis=0)[None]
    chosen = np.take_along_axis(np.broadcast_to(levels, distance.shape), nearest, axis=0)
    return np.take_along_axis(distance, nearest, axis=0)[0], chosen[0]


def _is_sign(node: NodeProto) -> bool:
    return node.domain == opset.IDEAL_DOMAIN


def _is_layer(node: NodeProto) -> bool:
    return node.domain in ("", "ai.onnx") and node.op_type in LAYERS


def _low_value(sign: NodeProto) -> int:
    """What a clear bit of the sign stands for; levels count from 0."""
    return next((int(a.i) for a in sign.attribute if a.name == "x_low"), 0)


def _reads(node: NodeProto) -> set[str]:
    """Every name that a node reads, those of its subgraphs included."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            for inner in graph.node:
                names |= _reads(inner)
    return names


def _pruned(model: onnx.ModelProto, wanted: Iterable[str]) -> onnx.ModelProto:
    """The part of the model that computes the wanted tensors, with those as its outputs."""
    outputs = list(dict.fromkeys(wanted))
    needed, kept = set(outputs), []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed |= _reads(node)
            kept.append(node)
    graph = onnx.GraphProto(name=model.graph.name, node=kept[::-1])
    graph.initializer.extend(t for t in model.graph.initializer if t.name in needed)
    graph.input.extend(i for i in model.graph.input if i.name in needed)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return onnx.ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions, graph=graph
    )


def _absolute(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same pieces on sums of |terms|: for inputs |x| every step returns what its roundings are measured by.

    Constants become their absolute values, a difference becomes a sum, a choice the larger of its two sides, and
    activations pass on what they could at most pass on: max(1, |slope|) times their input.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for tensor in graph.initializer:
        values = constants[tensor.name]
        if values.dtype.kind == "f":
            tensor.CopyFrom(numpy_helper.from_array(np.abs(values), tensor.name))

    def add(hint: str, values: Array) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.float32), f"{hint}|absolute"))
        return f"{hint}|absolute"

    def scale(node: NodeProto, factor: Array) -> None:
        node.input[:] = [node.input[0], add(node.output[0], np.maximum(1, np.abs(factor)))]
        node.op_type = "Mul"
        del node.attribute[:]

    nodes: list[NodeProto] = []
    for node in graph.node:
        attributes = {a.name: a for a in node.attribute}
        if node.op_type == "Constant":
            for attribute in node.attribute:
                _take_absolute(attribute)
        elif node.domain not in ("", "ai.onnx"):
            pass
        elif node.op_type == "Sub":
            node.op_type = "Add"
        elif node.op_type == "Neg":
            node.op_type = "Identity"
        elif node.op_type == "Where":
            larger = f"{node.output[0]}|larger"
            nodes.append(helper.make_node("Max", node.input[1:], [larger]))
            node.input[:] = [node.input[0], larger, larger]  # the condition still gives its shape
        elif node.op_type == "PRelu" and node.input[1] in constants:
            scale(node, constants[node.input[1]])
        elif node.op_type == "LeakyRelu":
            scale(node, np.asarray(attributes["alpha"].f if "alpha" in attributes else 0.01))
        elif node.op_type == "Gemm":
            for name in ("alpha", "beta"):
                if name in attributes:
                    attributes[name].f = abs(attributes[name].f)
        elif node.op_type == "BatchNormalization" and node.input[3] in constants:
            node.input[3] = add(node.output[0], -np.abs(constants[node.input[3]]))  # it subtracts the mean
        nodes.append(node)
    copied = onnx.GraphProto(node=nodes)
    del graph.node[:]
    graph.node.extend(copied.node)
    return changed


def _take_absolute(attribute: AttributeProto) -> None:
    """|value| of a Constant node's value, if it holds floats."""
    if attribute.type == AttributeProto.FLOAT:
        attribute.f = abs(attribute.f)
    elif attribute.type == AttributeProto.FLOATS:
        attribute.floats[:] = [abs(value) for value in attribute.floats]
    elif attribute.type == AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
        attribute.t.CopyFrom(numpy_helper.from_array(np.abs(numpy_helper.to_array(attribute.t)), attribute.t.name))


# --- Data --------------------------------------------------------------------------------------------------------


def load_data(path: Path) -> Arrays:
    """The arrays of an .npz file by name, or the one array of an .npy file under the name "".

    Raises:
        ModelError: the file cannot be read, is neither, or holds Python objects.
    """
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            return {"": stored}
        with stored:
            return {name: np.asarray(stored[name]) for name in stored.files}
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, TypeError, AttributeError):
        raise ModelError(
            "is no .npz or .npy file of plain arrays, or is cut short.",
            where=str(path),
            fix="Write it with numpy.savez(path, **arrays); arrays of Python objects are not read.",
        ) from None
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror or error}.", where=str(path)) from None


def split_labels(data: Arrays, model: onnx.ModelProto) -> tuple[Arrays, Array | None]:
    """Inputs and labels of a data file: `labels` is the labels where no input has that name.

    The one array of an .npy file is the input of a model that has only one.
    """
    names = list(_inputs(model))
    if set(data) == {""} and len(names) == 1:
        return {names[0]: data[""]}, None
    labels = data.get("labels") if "labels" not in names else None
    return {name: values for name, values in data.items() if name != "labels" or labels is None}, labels


def only_labels(data: Arrays) -> Array:
    """The labels of a file of labels: its `labels`, or its only array."""
    if "labels" in data or len(data) == 1:
        return data.get("labels", next(iter(data.values())))
    raise ModelError(f"the file of labels has {_list(data)}; call the right one `labels`.")


def _inputs(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """The model's inputs that a caller must give, with their types."""
    given = {t.name for t in model.graph.initializer}
    return {i.name: i.type.tensor_type for i in model.graph.input if i.name not in given}


def _declared(tensor_type: onnx.TypeProto.Tensor) -> tuple[int | None, ...] | None:
    """The shape in the model, None for open dimensions; None if even the rank is open."""
    if not tensor_type.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor_type.shape.dim)


def _dtype(name: str, tensor_type: onnx.TypeProto.Tensor) -> np.dtype[Any]:
    try:
        return np.dtype(helper.tensor_dtype_to_np_dtype(tensor_type.elem_type))
    except (KeyError, TypeError):
        raise ModelError(f"input `{name}` is no tensor of numbers: it cannot be verified.") from None


def _random_inputs(model: onnx.ModelProto, samples: int, fixed: Mapping[str, Sequence[int]]) -> Arrays:
    """Standard normal numbers, or 0 and 1 where the model takes integers; `samples` of each."""
    generator = np.random.default_rng(SEED)
    made: Arrays = {}
    for name, tensor_type in _inputs(model).items():
        declared = tuple(fixed[name]) if name in fixed else _declared(tensor_type)
        if declared is None or None in declared[1:]:
            raise UsageError(f"input `{name}` has sizes that the model leaves open:", fix="give samples with --data.")
        shape = [samples if d is None or (i == 0 and name in fixed) else d for i, d in enumerate(declared)]
        dtype = _dtype(name, tensor_type)
        numbers = generator.standard_normal(shape) if dtype.kind == "f" else generator.integers(0, 2, shape)
        made[name] = np.asarray(numbers).astype(dtype)
    return made


def _require_fitting(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> None:
    """Refuse data that the model's inputs do not take, in words."""
    declared = _inputs(model)
    if set(inputs) != set(declared):
        raise ModelError(
            f"the data has {_list(inputs)}; the model takes {_list(declared)}.",
            fix="Name the arrays as the inputs (and `labels`).",
        )
    for name, values in inputs.items():
        dtype, shape = _dtype(name, declared[name]), _declared(declared[name])
        if values.dtype != dtype:
            raise ModelError(
                f"input `{name}` takes {dtype}, the data is {values.dtype}.",
                fix="Store it as the model wants it, scaled as in training.",
            )
        if shape is None:
            continue
        fits = len(shape) == values.ndim and all(
            want is None or want == got for want, got in zip(shape[1:], values.shape[1:], strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if d is None else str(d) for d in shape)
            raise ModelError(f"input `{name}` takes shape [{wanted}], the data is {list(values.shape)}.")


def _batches(model: onnx.ModelProto, inputs: Mapping[str, Array], batch: int) -> Iterator[tuple[Arrays, slice]]:
    """The data in pieces of `batch` samples, or of as many as the model's own batch size says."""
    shapes = {name: _declared(tensor_type) for name, tensor_type in _inputs(model).items()}
    sizes = {values.shape[0] for values in inputs.values() if values.ndim}
    if len(sizes) != 1 or any(not values.ndim for values in inputs.values()):
        yield dict(inputs), slice(0, 1)  # inputs that do not count samples together: one run
        return
    (count,) = sizes
    if count == 0:
        raise ModelError("the data has no samples.")
    own = {shape[0] for shape in shapes.values() if shape and shape[0] is not None}
    if own:
        batch = min(own)
    if len(own) > 1 or (own and count % batch):
        raise ModelError(
            f"the model's batch size is {' and '.join(map(str, sorted(own)))}, the data has {count} samples.",
            fix="Give a multiple of it, or a model with an open batch size.",
        )
    for start in range(0, count, batch):
        rows = slice(start, min(start + batch, count))
        yield {name: values[rows] for name, values in inputs.items()}, rows


def _fitting_labels(labels: Array, count: int) -> Array:
    flat = labels.reshape(-1)
    if labels.dtype.kind not in "iu" or flat.size != count:
        raise ModelError(
            f"the labels are {labels.dtype} of shape {list(labels.shape)}; {count} samples need {count} class numbers."
        )
    return flat
