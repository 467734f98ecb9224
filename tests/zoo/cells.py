"""One cell of the zoo: a network, exported by one exporter, changed by one optimiser, converted and compared.

    torch module ─► exporter ─► optimiser ─► source.onnx ─► convert ─► converted = ideal?  ideal ≈ source?

A cell is well when the layers that are lowered are as many as the paper calls binary, the file equals its ideal graph
bit for bit, with the library and without, and rounding explains every difference of the ideal graph from the source.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import optimisers
import torch
from onnx import helper, numpy_helper

import binarize_onnx
from binarize_onnx.errors import NothingMatched
from binarize_onnx.report import Report, SignSite
from binarize_onnx.verify import verify
from zoo import network
from zoo.base import Array, Feed, planted, trained

SEED = 7
FAR = 1e-3  # of the largest output: rounding alone leaves 1e-5 and less, one wrong sign 1e-2 and more


@dataclass(frozen=True)
class Cell:
    """What became of one file.

    Attributes:
        found: layers that were lowered.
        expected: layers that the paper calls binary.
        broken: promises that do not hold, in words: of the file (bit for bit the ideal graph), of the ideal graph
            (rounding explains every difference from the source) and end to end; empty if all do, or if nothing was
            lowered.
        difference: the largest absolute difference of an output from the source's, end to end, where 0 counts as +1
            in the source's signs too.
        classes: share of samples for which the same output is largest.
        flips: signs that differ from the source's, each layer fed with the source's own tensors; zeros apart.
        zeros: signs that the source reads exactly 0 at.
        reasons: reason codes of the layers that stay float, each with its number.
    """

    found: int
    expected: int
    broken: tuple[str, ...]
    difference: float
    classes: float
    flips: int
    zeros: int
    reasons: dict[str, int]

    @property
    def well(self) -> bool:
        """Whether everything that should be lowered is, and nothing else, and all promises hold."""
        return self.found == self.expected and not self.broken


def cell(name: str, exporter: str, optimiser: str) -> Cell:
    """Convert one file of the zoo, and compare it with its ideal graph and with its source."""
    source = optimised(name, exporter, optimiser)
    expected = network(name).binary
    try:
        result = binarize_onnx.convert(source)
    except NothingMatched:
        return Cell(0, expected, (), 0.0, 1.0, 0, 0, _reasons(binarize_onnx.inspect(source)))
    feed = compared_inputs(name)
    found = verify(source, result.model, inputs=feed)
    broken = [str(gate) for gate in found.gates() if not gate.passed]
    fast = _run(result.model, feed, library=True)
    # Once an export: without the library a session takes seconds to start.
    if optimiser == "none" and fast.tobytes() != _run(result.model, feed, library=False).tobytes():
        broken.append("plain: onnxruntime without the library answers other bits")
    reference = _run(_zero_as_plus(source, result.report.signs), feed, library=False)
    difference = np.abs(fast - reference).reshape(len(fast), -1).max(axis=1)
    departing = difference > FAR * np.abs(reference).max()
    # A sign that rounding turned round takes one sample along; one that is wrong at its threshold takes all those with
    # planted zeros. (float16 rounds so coarsely that signs turn round in every sample.)
    if np.count_nonzero(departing) > 1 and not _rounds_to_half(source):
        broken.append(f"end to end: the outputs of {np.count_nonzero(departing)} of {len(departing)} samples differ")
    return Cell(
        found=result.report.summary.binary_layers,
        expected=expected,
        broken=tuple(broken),
        difference=float(difference.max()),
        classes=float(np.mean(_classes(fast) == _classes(reference))),
        flips=found.sign_flips or 0,
        zeros=sum(row.zeros for row in found.signs),
        reasons=_reasons(result.report),
    )


def cells(name: str, exporter: str, chosen: Sequence[str]) -> dict[str, Cell]:
    """The cells of one export, by optimiser."""
    torch.set_num_threads(1)  # every core has its own export to do
    return {optimiser: cell(name, exporter, optimiser) for optimiser in chosen}


def compared_inputs(name: str) -> Feed:
    """Random samples, and behind them the same with zeros planted in them."""
    feed = _random_inputs(name)
    return {tensor: np.concatenate([feed[tensor], zeros]) for tensor, zeros in planted(feed).items()}


def _random_inputs(name: str) -> Feed:
    return network(name).inputs(np.random.default_rng(SEED))


def _reasons(report: Report) -> dict[str, int]:
    return dict(Counter(str(layer.code) for layer in report.layers if layer.status == "float"))


def _rounds_to_half(source: bytes) -> bool:
    constants = onnx.load_from_string(source).graph.initializer
    return any(constant.data_type == onnx.TensorProto.FLOAT16 for constant in constants)


def _classes(output: Array) -> Array:
    return np.asarray(np.argmax(output.reshape(len(output), -1), axis=1))


def _zero_as_plus(source: bytes, signs: Sequence[SignSite]) -> onnx.ModelProto:
    """The source, its signs that may give 0 followed by `Where(sign == 0, 1, sign)`."""
    model = onnx.load_from_string(source)
    assumed = {site.name for site in signs if site.zero == "assumed"}
    for node in model.graph.node:
        node.input[:] = [f"{tensor}|plus" if tensor in assumed else tensor for tensor in node.input]
    written = [tensor for node in model.graph.node for tensor in node.output if tensor in assumed]
    for number, tensor in enumerate(written):
        position = next(i for i, node in enumerate(model.graph.node) if tensor in node.output)
        zero, one, test = (f"{tensor}|{part}" for part in ("zero", "one", "test"))
        for constant, value in ((zero, 0.0), (one, 1.0)):
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), constant))
        model.graph.node.insert(position + 1, helper.make_node("Equal", [tensor, zero], [test], name=f"zero{number}"))
        where = helper.make_node("Where", [test, one, tensor], [f"{tensor}|plus"], name=f"plus{number}")
        model.graph.node.insert(position + 2, where)
    return model


def _run(model: onnx.ModelProto, feed: Feed, *, library: bool) -> Array:
    """The network's output at ORT_DISABLE_ALL."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    start = binarize_onnx.InferenceSession if library else ort.InferenceSession
    session = start(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feed)[0])


# --- Exporters ---------------------------------------------------------------------------------------------------

OPSETS = {"torchscript": 17, "dynamo": 18}


@cache
def exported(name: str, exporter: str) -> bytes:
    """The network as ONNX, its batch size open, and whatever else was done to the file."""
    feed, made = _random_inputs(name), network(name)
    model = made.proto() if made.proto is not None else _from_torch(name, exporter, feed)
    if made.after is not None:
        model = made.after(model, feed)
    return bytes(model.SerializeToString())


def _from_torch(name: str, exporter: str, feed: Feed) -> onnx.ModelProto:
    module = trained(network(name), SEED)
    args = tuple(torch.from_numpy(values) for values in feed.values())
    names: dict[str, Any] = {"input_names": list(feed), "output_names": ["output"], "opset_version": OPSETS[exporter]}
    with _quiet():
        if exporter == "torchscript":
            stream = io.BytesIO()
            axes = {tensor: {0: "batch"} for tensor in (*feed, "output")}
            torch.onnx.export(module, args, stream, dynamo=False, dynamic_axes=axes, **names)
            return onnx.load_from_string(stream.getvalue())
        batch = torch.export.Dim("batch")
        shapes = tuple({0: batch} for _ in feed)
        program = torch.onnx.export(module, args, dynamo=True, verbose=False, dynamic_shapes=shapes, **names)
    model: onnx.ModelProto = program.model_proto
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says about itself while it exports."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def optimised(name: str, exporter: str, optimiser: str) -> bytes:
    """The exported file after a tool has been over it."""
    return optimisers.optimised(exported(name, exporter), optimiser)
