"""The whole comparison, read top to bottom: models, samples, the three questions, what was found."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx

from binarize_onnx import checks, foreign, int8_edges, io, opset, scopes, slow_layers, subgraphs
from binarize_onnx.errors import ModelError, UsageError
from binarize_onnx.pipeline import Config, convert, translate
from binarize_onnx.quantize import preset
from binarize_onnx.verify.arrays import Array
from binarize_onnx.verify.data import (
    batches,
    fitting_labels,
    load_data,
    only_labels,
    require_fitting,
    split_labels,
)
from binarize_onnx.verify.departures import EndToEnd, departures
from binarize_onnx.verify.exact import ExactCheck
from binarize_onnx.verify.generate import SECONDS, exercising_inputs
from binarize_onnx.verify.graphs import caller_inputs, has_our_ops, listed
from binarize_onnx.verify.layers import TeacherForcing
from binarize_onnx.verify.outputs import Outputs
from binarize_onnx.verify.results import Verification
from binarize_onnx.verify.session import Runner
from binarize_onnx.verify.spread import MODERATE, STRICT

BATCH = 4  # samples in memory at a time, with every tensor of both models

_log = logging.getLogger(__name__)


def verify(
    reference: io.ModelLike,
    candidate: io.ModelLike,
    *,
    inputs: Mapping[str, Array] | None = None,
    labels: Array | None = None,
    samples: int | None = None,
    batch: int = BATCH,
    seconds: float = SECONDS,
) -> Verification:
    """Compare a candidate with the model that it stands for.

    Args:
        reference: path, bytes or ModelProto of the original.
        candidate: the same of the converted model, or of any other with equal inputs and outputs.
        inputs: arrays by input name; None for seeded random numbers, chosen so that signs take both values
            (see `generate`).
        labels: class of every sample, to compare accuracies.
        samples: how many of the inputs to use, or how many random ones to make.
        batch: samples in memory at a time, where the model leaves the batch size open.
        seconds: that the choice of random inputs may take.

    Raises:
        ModelError: a model cannot be read or run, the two do not fit each other, or the data does not fit them.
        UsageError: the model leaves sizes open that only data can fill.
        RuntimeUnavailable: onnxruntime or our library is missing.
    """
    ref, cand = io.read(reference), io.read(candidate)
    _require_same_interface(ref.model, cand.model)
    config, notes = recorded_options(ref, cand)
    ref = _runnable(ref, config or Config(), notes)
    if any(node.op_type == "If" for node in scopes.nodes(cand.model.graph)):
        notes.append("the model has branches (If): only those that these samples take are compared")
    changed = opset.functions_changed(cand.model)
    if changed:
        words = f"the candidate's definition of {', '.join(changed)} is not this version's"
        notes.append(f"{words}: without the library it may answer something else than it does here")
    ideal = None
    if config is not None:
        ideal = convert(reference, replace(config, emit="ideal", edges="float", allow_unchanged=True)).model
    if inputs is None:
        shapes = config.input_shapes if config else {}
        generated = exercising_inputs(ref.model, ideal, samples, shapes, seconds)
        inputs, described = generated.inputs, generated.described
    else:
        described = "given"
        inputs = {name: values[:samples] if values.ndim else values for name, values in inputs.items()}
    require_fitting(ref.model, inputs)
    fed = list(batches(ref.model, inputs, batch))
    count = fed[-1][1].stop
    if labels is not None:
        labels = fitting_labels(labels[:samples] if labels.ndim else labels, count)

    outputs = Outputs(out.name for out in ref.model.graph.output)
    exact, forced, foreign, plain_model = None, None, None, ref.model
    if ideal is not None:
        plain_model = _settled(ref.model)
        given = int8_edges.recorded(cand.model)
        if given:
            notes.append(
                f"the candidate has int8 edges: its outputs are meant to differ, and what these layers write "
                f"({listed(given)}) is taken as the candidate computes it"
            )
        exact, forced = ExactCheck(ideal, cand.model, given), TeacherForcing(ideal, plain_model, _admitted(config))
    else:
        foreign = EndToEnd(ref.model, cand.model)

    plain = Runner(plain_model, forced.read_from_reference if forced else foreign.shared if foreign else [])
    default = Runner(ref.model, optimise=True)
    inner = exact.read_from_candidate if exact else foreign.shared if foreign else []
    tested = Runner(cand.model, inner, library=has_our_ops(cand.model))
    for feed, rows in fed:
        _log.info("samples %d to %d of %d", rows.start + 1, rows.stop, count)
        source, result = plain.run(feed), tested.run(feed)
        outputs.compare(source, result, default.run(feed), rows)
        if exact is not None:
            exact.compare(feed, result)
        if forced is not None:
            forced.compare(feed, source, rows)
        if foreign is not None:
            foreign.compare(source, result)
    accuracy = outputs.judge_classes(labels)

    return Verification(
        inputs=described,
        samples=count,
        outputs=outputs.rows,
        accuracy=accuracy,
        exact=None if exact is None else exact.found,
        layers=[] if forced is None else forced.rows,
        coverage=[] if forced is None else forced.coverage.rows(),
        departures=list(departures(ref.model, ideal, exact, forced, foreign)),
        stale=config is None and _is_ours(cand) and not _is_post_trained(ref, cand),
        notes=[*notes, *(forced.notes if forced else [])],
    )


def verify_files(
    reference: Path,
    candidate: Path,
    *,
    data: Path | None = None,
    labels: Path | None = None,
    samples: int | None = None,
    seconds: float = SECONDS,
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
    found = verify(reference, candidate, inputs=inputs, labels=truth, samples=samples, seconds=seconds)
    if data is not None:
        found.inputs = f"from {data.name}"
    return found


def recorded_options(ref: io.Source, cand: io.Source) -> tuple[Config | None, list[str]]:
    """The options that the candidate was made from the reference with; None, and why, if it was not."""
    recorded = {entry.key: entry.value for entry in cand.model.metadata_props}
    source, options = recorded.get("binarize_onnx.source_sha256"), recorded.get("binarize_onnx.options")
    if source is None or options is None:
        return None, ["the candidate is no file of ours: outputs are compared, bits and layers are not"]
    if _is_post_trained(ref, cand):
        return None, [
            "the candidate was quantized after training (convert --ptq): its outputs are meant to differ, and are "
            "compared; that it computes what its own ideal graph does is seen against that (convert --ptq --emit ideal)"
        ]
    if source != ref.sha256:
        return None, [
            "the candidate was made from another file than the reference "
            f"(sha256 {source[:12]}…, not {ref.sha256[:12]}…): outputs are compared, bits and layers are not"
        ]
    try:
        return slow_layers.settled(Config.from_json(options), recorded.get(slow_layers.KEY, "[]")), []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"the candidate's metadata `binarize_onnx.options` cannot be read ({error}).") from None


def _is_post_trained(ref: io.Source, cand: io.Source) -> bool:
    """Whether the candidate says that it was quantized after the training of the reference."""
    recorded = {entry.key: entry.value for entry in cand.model.metadata_props}
    return ref.sha256 != recorded.get("binarize_onnx.source_sha256") and preset.recorded_source(recorded) == ref.sha256


def _runnable(ref: io.Source, config: Config, notes: list[str]) -> io.Source:
    """The reference in operators that onnxruntime has: foreign ones are translated, as `convert` does."""
    operators = foreign.held(ref.model, config.map_ops)
    if not operators:
        return ref
    notes.append(f"the reference is run with {listed(operators)} in standard operators: onnxruntime has none of these")
    return replace(ref, model=translate(ref.model, config)[0])


def _admitted(config: Config | None) -> float:
    """The spread of weights and noise of signs that the ideal graph was made with."""
    return MODERATE if config is not None and config.match == "moderate" else STRICT


def _settled(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the branches of constant conditions in place, as its ideal graph has them."""
    if not any(node.op_type == "If" for node in scopes.nodes(model.graph)):
        return model
    settled = onnx.ModelProto()
    settled.CopyFrom(model)
    try:
        checks.require_sound(settled, io.default_opset(settled))
        subgraphs.settle(settled)
    except ModelError:  # what the ideal graph was made from is then the model as it is
        return model
    return settled


def _is_ours(cand: io.Source) -> bool:
    """Whether the candidate says what it was made from."""
    return any(entry.key == "binarize_onnx.source_sha256" for entry in cand.model.metadata_props)


def _require_same_interface(ref: onnx.ModelProto, cand: onnx.ModelProto) -> None:
    for what, ours, theirs in (
        ("inputs", set(caller_inputs(ref)), set(caller_inputs(cand))),
        ("outputs", {o.name for o in ref.graph.output}, {o.name for o in cand.graph.output}),
    ):
        if ours != theirs:
            raise ModelError(
                f"the models cannot be compared: {what} of the reference are {listed(ours)}, "
                f"of the candidate {listed(theirs)}."
            )
