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
   pieces, computed with the absolute value of every input and every constant (see `_absolute`).

Questions 2 and 3 need the source that the file was made from: its hash and the options are in the file's metadata.
"""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
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

BATCH = 8  # samples in memory at a time, with every tensor of both models
RANDOM_SAMPLES = 8
SEED = 0
BOUND = 4 * 2.0**-24  # of the sum of |terms|: four roundings of float32 at its full size
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
        bound: the bound at that element.
        outside: elements whose difference exceeds their bound.
    """

    name: str
    elements: int = 0
    max_diff: float = 0.0
    bound: float = 0.0
    outside: int = 0


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
            if isinstance(row, TensorRow) and row.outside:
                yield f"tensor `{row.name}`: {row.outside} of {row.elements} values differ beyond the rounding bound"

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
                yield f"min-agreement: {min(classes):.4f} of the samples keep their class, {gates.min_agreement:g} asked"
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
        table = [("layer by layer", "values", "max diff", "bound", "outside", "flips", "beyond", "zeros")]
        for row in self.layers:
            if isinstance(row, SignRow):
                flips = row.flips_inside + row.flips_outside
                table.append((row.name, str(row.elements), "", "", "", str(flips), str(row.flips_outside), str(row.zeros)))
            else:
                numbers = f"{row.max_diff:.3g}", f"{row.bound:.3g}", str(row.outside)
                table.append((row.name, str(row.elements), *numbers, "", "", ""))
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

    outputs = _Outputs([out.name for out in ref.model.graph.output], count, labels)
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
    return Verification(
        inputs=described,
        samples=count,
        outputs=outputs.rows,
        accuracy=outputs.accuracy(),
        exact=None if exact is None else exact.found,
        layers=[] if forced is None else forced.rows,
        notes=[*notes, *(forced.notes if forced else [])],
    )


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

    def __init__(self, names: list[str], count: int, labels: Array | None) -> None:
        self.rows = [OutputRow(name) for name in names]
        self._count, self._labels = count, labels
        self._right: tuple[int, int] | None = None

    def compare(self, ref: Arrays, cand: Arrays, default: Arrays, rows: slice) -> None:
        labelled = self._labels
        for row in self.rows:
            a, b, c = ref[row.name], cand[row.name], default[row.name]
            if a.shape != b.shape:
                raise ModelError(f"output `{row.name}` has shape {list(a.shape)}, the candidate's {list(b.shape)}.")
            length = rows.stop - rows.start
            batched = a.ndim > 0 and a.shape[0] == length
            row.shape = (rows.stop, *a.shape[1:]) if batched else a.shape
            row.max_diff = max(row.max_diff, _largest(_difference(a, b)))
            row.drift = max(row.drift, _largest(_difference(a, c)))
            row.identical = row.identical and bool(np.all(_same_bits(a, b)))
            if batched and a.ndim == 2 and a.shape[1] > 1 and a.dtype.kind == "f":
                best = [x.argmax(axis=1) for x in (a, b, c)]
                row.agreement = (row.agreement or 0.0) + np.count_nonzero(best[0] == best[1]) / self._count
                row.drift_agreement = (row.drift_agreement or 0.0) + np.count_nonzero(best[0] == best[2]) / self._count
                if labelled is not None:
                    truth, before = labelled[rows], self._right or (0, 0)
                    hits = [int(np.count_nonzero(x == truth)) for x in best[:2]]
                    self._right = before[0] + hits[0], before[1] + hits[1]
                    labelled = None  # the first output with classes is the one that the labels are for

    def accuracy(self) -> Accuracy | None:
        if self._labels is not None and self._right is None:
            raise ModelError("there are labels, but no output is [samples, classes].", fix="Leave --labels out.")
        return None if self._right is None else Accuracy(self._right[0] / self._count, self._right[1] / self._count)


def _difference(a: Array, b: Array) -> npt.NDArray[np.float64]:
    """|a - b|, 0 for equal infinities and NaN pairs, infinite where only one is a number."""
    if a.dtype.kind not in "fiub":
        return np.where(a == b, 0.0, np.inf)
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.abs(x - y)
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
        self.types: dict[str, str] = {out.name: out.type for out in self._session.get_outputs()}

    def run(self, feed: Mapping[str, Array]) -> Arrays:
        """Every output by name."""
        try:
            values = self._session.run(list(self.types), dict(feed))
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

    Beside tensors of one name these are packed ones: `a.bits` of the file holds the bits of `a` in the ideal graph.
    """

    def __init__(self, ideal: onnx.ModelProto, candidate: onnx.ModelProto) -> None:
        wanted, self._writers = _computed(ideal), _computed(candidate)
        packed = {name: f"{name}.bits" for name in wanted if f"{name}.bits" in self._writers}
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

# Layers begin a piece: they read the source's tensors. A sum of products, so its |terms| are those of |inputs|.
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

# Steps that a piece may go on through, because |terms| pass through them: sums, products, and ops that choose or
# move values. Anything else (Tanh, Softmax, Clip, ...) is a piece of its own.
STEPS = frozenset(
    """Abs Add AveragePool BatchNormalization Concat DepthToSpace Div Dropout Expand Flatten Gather GlobalAveragePool
    GlobalMaxPool Identity LeakyRelu MaxPool Mul Neg PRelu Pad ReduceMax ReduceMean ReduceSum Relu Reshape Slice
    SpaceToDepth Split Squeeze Sub Sum Tile Transpose Unsqueeze""".split()
)

COMPUTED = "|computed"  # appended to a tensor's name where both the source's value and the computed one exist


class _TeacherForcing:
    """The ideal graph in pieces.

    A tensor that the source has too becomes an input of the graph, fed with the source's values, where

    * a sign made it, or an op that is neither layer nor step;
    * a layer reads it, or any other op that is no step and no sign;
    * it joins another tensor (a shortcut) and goes elsewhere as well.

    Otherwise what the piece itself computes goes on, so that a sign is compared after everything between the binary
    layer and the sign.
    """

    def __init__(self, ideal: onnx.ModelProto, reference: onnx.ModelProto) -> None:
        self._nodes = _computed(ideal)
        self._constants = {t.name: numpy_helper.to_array(t) for t in ideal.graph.initializer}
        self._known = set(self._constants) | {
            name for node in ideal.graph.node if node.op_type == "Constant" for name in node.output
        }
        source = _computed(reference)
        common = [name for name in self._nodes if name in source]
        types = _Runner(reference, common).types
        self._common = {name for name in common if types[name] == "tensor(float)"}
        self._fed: set[str] = set()
        self._read: dict[str, str] = {}  # of a sign: the name under which it reads its data in the cut graph
        cut = self._cut(ideal)

        self.notes: list[str] = []
        tensors, signs = [], []
        for name, node in self._nodes.items():
            if name in self._common:
                (signs if _is_sign(node) else tensors).append(name)
            elif _is_sign(node):
                self.notes.append(f"sign `{name}` has no counterpart in the reference: it is not compared")
        self._tensors = {name: TensorRow(name) for name in tensors}
        self._signs = {name: SignRow(name) for name in signs}
        self.rows: list[TensorRow | SignRow] = [
            self._signs[name] if name in self._signs else self._tensors[name]
            for name in self._nodes
            if name in self._common
        ]
        self.read_from_reference = sorted(self._common)

        data = {self._read[name] for name in signs}
        bounded = {self._after(name) for name in tensors if self._has_terms(name)}
        self._pieces = _Runner(_pruned(cut, {self._after(n) for n in self._common} | (data - self._fed)))
        absolute = _pruned(_absolute(cut), bounded | (data - self._fed))
        self._terms = _Runner(absolute) if absolute.graph.output else None
        self._inputs = {model: [i.name for i in graph.graph.input] for model, graph in (("cut", cut), ("abs", absolute))}
        self._needed = {name: node for name, node in self._nodes.items() if name in self._common and _is_sign(node)}
        self._cut_inputs = {i.name for i in _pruned(cut, {self._after(n) for n in self._common}).graph.input}

    def _after(self, name: str) -> str:
        """The name of what the piece computes."""
        return name + COMPUTED if name in self._fed else name
