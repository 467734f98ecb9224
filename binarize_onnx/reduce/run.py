"""The whole reduction, read top to bottom: does it fail, on which sample, where, and how little of it still does."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from binarize_onnx import io
from binarize_onnx.errors import BinarizeError, ModelError, NothingMatched, UsageError
from binarize_onnx.pipeline import Config, convert
from binarize_onnx.reduce import failures
from binarize_onnx.reduce.anonymous import anonymous
from binarize_onnx.reduce.failures import Failure, Look
from binarize_onnx.reduce.parts import Whole
from binarize_onnx.reduce.search import smallest
from binarize_onnx.report import printable
from binarize_onnx.verify.arrays import Array, Arrays
from binarize_onnx.verify.check import recorded_options
from binarize_onnx.verify.data import RANDOM_SAMPLES, batches, load_data, random_inputs, require_fitting, split_labels
from binarize_onnx.verify.generate import exercising_inputs
from binarize_onnx.verify.graphs import is_layer

SECONDS = 60.0

Say = Callable[[str], object]


@dataclass(frozen=True)
class Reduction:
    """The smallest model found that fails, and what is known of it.

    Attributes:
        model: it; its inputs stand where the rest of the source was.
        inputs: which show the failure, by input name; None if it takes none to show it.
        failure: how it fails, in the names of `model`.
        nodes_before: nodes of the source.
        nodes_after: of the model.
        trials: models that were tried.
        finished: whether no single node can be left out; False if time ran out before.
        layer: the name in `model` of the layer that was expected to be binary; empty without one.
        notes: what a reader should know.
    """

    model: onnx.ModelProto
    inputs: Arrays | None
    failure: Failure
    nodes_before: int
    nodes_after: int
    trials: int
    finished: bool
    layer: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """What was found as plain JSON types, without the model and its inputs."""
        return {
            "failure": {"kind": self.failure.kind, "words": self.failure.words, "tensor": self.failure.tensor},
            "nodes_before": self.nodes_before,
            "nodes_after": self.nodes_after,
            "trials": self.trials,
            "finished": self.finished,
            "layer": self.layer,
            "inputs": {name: list(values.shape) for name, values in (self.inputs or {}).items()},
            "notes": list(self.notes),
        }

    def npz(self) -> bytes:
        """The inputs as the bytes of an .npz file, for `verify --data`."""
        file = BytesIO()
        np.savez(file, **(self.inputs or {}))  # type: ignore[arg-type]
        return file.getvalue()

    def table(self) -> str:
        """The same for a person."""
        ended = "no single node can be left out" if self.finished else "stopped when time ran out"
        lines = [
            f"failure      {self.failure.kind}: {self.failure.words}",
            f"nodes        {self.nodes_before} before, {self.nodes_after} after {self.trials} trials; {ended}",
            *([f"layer        {self.layer}"] if self.layer else []),
            *(f"input        {name} {list(values.shape)}" for name, values in (self.inputs or {}).items()),
            *(f"note         {note}" for note in self.notes),
        ]
        return "\n".join(map(printable, lines))


def reduce(
    reference: io.ModelLike,
    candidate: io.ModelLike | None = None,
    *,
    inputs: Mapping[str, Array] | None = None,
    expect_binary: str | None = None,
    config: Config | None = None,
    seconds: float = SECONDS,
    keep_names: bool = False,
    progress: Say = lambda words: None,
) -> Reduction:
    """The smallest part of a model that still fails: to be converted, to be verified, or to have a layer binary.

    Args:
        reference: path, bytes or ModelProto of the model that fails.
        candidate: what it was converted to; its recorded options are used, in place of `config`.
        inputs: arrays by input name that show the failure; None for the random ones of `verify`.
        expect_binary: the name of a layer that should be binary and stays float; then that is the failure.
        config: the options of the conversion.
        seconds: of search, after which no further part is tried; what the whole model takes does not count.
        keep_names: leave the names of nodes and tensors, documentation and metadata as they are.
        progress: is told how far it is, in words.

    Returns:
        The part, as a model without names of the source; the weights in it are the source's own.

    Raises:
        NothingMatched: nothing fails.
        ModelError: a model or the data cannot be read, or the reference not be run.
        UsageError: there is no layer of that name; the model leaves sizes open that only data can fill.
        RuntimeUnavailable: onnxruntime or our library is missing.
    """
    source = io.read(reference)
    config = _options(source, candidate, config)
    if expect_binary is not None:
        failures.require_layer(source.model, expect_binary, config)
        look = failures.of_layer(expect_binary, config)
        whole, failure = Whole(source.model, None), look(source.model, None)
        if failure is None:
            raise NothingMatched(f"layer `{expect_binary}` does not stay float: there is nothing to reduce.")
    else:
        look = failures.of_conversion(config)
        whole, failure = _failing_whole(source.model, inputs, config, look)
    progress(f"{len(whole.nodes)} nodes fail: {failure.kind}")
    deadline = time.monotonic() + seconds

    tried: dict[frozenset[int], bool] = {}

    def fails(kept: Collection[int]) -> bool:
        known = frozenset(kept)
        if known not in tried:
            made = whole.part(kept)
            tried[known] = made is not None and failure.is_like(look(*made))
            if tried[known]:
                progress(f"{len(kept)} nodes fail ({len(tried)} tried)")
        return tried[known]

    def expired() -> bool:
        return time.monotonic() > deadline

    if expect_binary is not None:
        kept = _whole_way(whole, expect_binary, fails)
    else:
        kept = smallest(_first_cut(whole, failure, fails, expired), fails, expired)
    made = whole.part(kept) if fails(kept) else None
    notes = [] if made else ["no part of the model fails as it does: it is whole"]
    model, feed = made or (source.model, None if whole.feed is None else dict(whole.feed))
    layer = expect_binary or ""
    if not keep_names:
        bare, names = anonymous(model)
        renamed = None if feed is None else {names[name]: values for name, values in feed.items()}
        new_layer = names.get(f"node:{layer}") or names.get(layer, "")  # one without a name is called by its output
        again = failures.of_layer(new_layer, config) if layer else look
        if failure.is_like(again(bare, renamed)):
            model, feed, layer, look = bare, renamed, new_layer, again
        else:
            notes.append("the names matter to the failure, or the options choose layers by name: they were kept")
    final = look(model, feed) or failure
    if feed is not None and final.kind not in ("exception", "not loaded") and _fails_without(model, config, final):
        notes.append("it fails on standard normal numbers too")
    return Reduction(
        model=model,
        inputs=feed,
        failure=final,
        nodes_before=len(whole.nodes),
        nodes_after=len(model.graph.node),
        trials=len(tried),
        finished=not expired(),
        layer=layer,
        notes=tuple(notes),
    )


def reduce_files(
    reference: Path, candidate: Path | None = None, *, data: Path | None = None, **choices: Any
) -> Reduction:
    """`reduce` on files, with samples from .npz or .npy."""
    inputs = None if data is None else split_labels(load_data(data), io.load(reference))[0]
    return reduce(reference, candidate, inputs=inputs, **choices)


def _options(source: io.Source, candidate: io.ModelLike | None, config: Config | None) -> Config:
    """The options of the conversion: those that the candidate was made with, if there is one."""
    if candidate is None:
        return config or Config()
    recorded, notes = recorded_options(source, io.read(candidate))
    if recorded is None:
        raise ModelError(f"{notes[0]};", fix="leave it out, or give the file that it was made from.")
    return replace(recorded, edges="float")  # that int8 edges move the outputs is no failure


def _failing_whole(
    model: onnx.ModelProto, inputs: Mapping[str, Array] | None, config: Config, look: Look
) -> tuple[Whole, Failure]:
    """The model with one sample that shows its failure, or with all of them if none does alone."""
    failure = look(model, None)
    given = inputs
    if given is None:
        try:
            given = _random(model, config)
        except UsageError:
            if failure is None:
                raise
    if given is not None:
        require_fitting(model, given)
    if failure is not None:  # convert raises: no sample has a part in it
        sample = next((feed for feed, _ in batches(model, given, 1)), None) if given is not None else None
        return Whole(model, sample), failure
    assert given is not None
    failure = look(model, given)
    if failure is None:
        raise NothingMatched(
            "nothing fails: the model converts, and the result is verified on these inputs. (A converted file that "
            "`verify` refuses all the same is not what `convert` writes: convert again.) --data gives other "
            "inputs, and --expect-binary names a layer that should not stay float."
        )
    samples = [feed for feed, _ in batches(model, given, 1)]
    for feed in samples if len(samples) > 1 else ():
        alone = look(model, feed)
        if alone is not None and alone.is_like(failure):
            return Whole(model, feed), alone
    return Whole(model, given), failure


def _random(model: onnx.ModelProto, config: Config) -> Arrays:
    """The random inputs that verify takes."""
    try:
        ideal = convert(model, replace(config, emit="ideal", allow_unchanged=True)).model
    except BinarizeError:
        raise
    except Exception:  # the failure itself, perhaps
        ideal = None
    return exercising_inputs(model, ideal, None, config.input_shapes).inputs


def _first_cut(
    whole: Whole, failure: Failure, fails: Callable[[Collection[int]], bool], expired: Callable[[], bool]
) -> set[int]:
    """A small part that fails, to begin with: around the tensor that diverges first, or what leads to it, or all."""
    everything = set(range(len(whole.nodes)))
    if whole.writes(failure.tensor) is not None:
        radius = 1
        while radius < len(everything) and not expired():
            near = whole.around(failure.tensor, radius)
            if fails(near):
                return near
            if near == everything or len(near) > len(everything) // 2:
                break
            radius *= 2
        above = whole.above([failure.tensor])
        if fails(above):
            return above
    return everything


def _whole_way(whole: Whole, layer: str, fails: Callable[[Collection[int]], bool]) -> set[int]:
    """The layer with the whole way to it: what decides whether it is binary may be any part of that.

    The part begins at the layers before it; where that fails no longer for the same reason, at the model's inputs.
    """
    node = next((n for n in whole.nodes if n.name == layer), None)
    node = node or next((n for n in whole.nodes if is_layer(n) and layer in n.output), None)
    if node is None:
        return set(range(len(whole.nodes)))
    others = {name for n in whole.nodes if is_layer(n) and n is not node for name in n.output}
    for stop in (others, set()):
        kept = whole.above(node.output, stop)
        if fails(kept):
            return kept
    return set(range(len(whole.nodes)))


def _fails_without(model: onnx.ModelProto, config: Config, failure: Failure) -> bool:
    """Whether the failure shows on standard normal numbers as well."""
    try:
        return failure.is_like(failures.of_conversion(config)(model, random_inputs(model, RANDOM_SAMPLES, {})))
    except BinarizeError:
        return False
