"""ONNX graphs in torch and back: this package's interpreter beside onnx2torch.

\b
    pip install onnx2torch              # beside the extra `train`; without it, the interpreter is shown alone
    python benchmarks/importers.py

Of float networks of the corpus (see corpus_data.py), ideal graphs that are made of them, and trained binary networks:
every node is computed on the tensors that onnxruntime gave it, so a difference is the node's own. onnx2torch knows no
functions of ONNX, so they are put in place for it first. It goes back to ONNX by torch's exporters, the newer one as it
comes and the older one told to fold nothing; the interpreter by putting its constants into the graph that it came from.
What comes back is compared with the file end to end, and its binary layers are those that `inspect` finds.
"""

from __future__ import annotations

import importlib.util
import io
import lzma
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import corpus_data
import numpy as np
import onnx
import onnx.inliner
import torch
from onnx import numpy_helper
from process import progress
from settings import LeftOut
from tables import Row, Table

from binarize_onnx import pipeline
from binarize_onnx.errors import one_line
from binarize_onnx.quantize import sites
from binarize_onnx.quantize.post_training import quantize
from binarize_onnx.quantize.precision import Precision
from binarize_onnx.train.graph import LAYERS, GraphModule, export_values
from binarize_onnx.train.recipes import Recipe
from binarize_onnx.train.student import Student
from binarize_onnx.verify.data import random_inputs
from binarize_onnx.verify.session import Runner

Array = np.ndarray[Any, Any]
Tensors = Mapping[str, torch.Tensor]
Given = Mapping[str, Any]  # arrays by name

FLOAT = ("cifar10_resnet20_fp32", "mnist_cnn_cntk", "efficientnet_lite0_fp32", "super_resolution")
QUANTIZED = ("cifar10_resnet20_fp32", "mnist_cnn_cntk")
PRECISIONS = ("w1a1", "w2a4")
BINARY = (
    "bmxnet_lenet_mnist",
    "bmxnet_resnet18_imagenet_st1fp",
    "cnv_w1a1_cifar10",
    "lfc_w1a1_mnist",
    "tfc_w1a1_mnist",
)
FITTED = 64  # images that layers are quantized on
SAMPLES = 2  # that every node is computed on
AS_IT_COMES, UNFOLDED = "as it comes", "unfolded"  # ways back


@dataclass(frozen=True)
class Case:
    """A graph, and how it is imported.

    Attributes:
        group: what it stands for.
        name: of the network.
        model: the graph.
        student: what wrote it, if it is a student's: that is how the interpreter holds binary layers.
    """

    group: str
    name: str
    model: onnx.ModelProto
    student: Student | None = None


@dataclass(frozen=True)
class Imported:
    """A graph in torch.

    Attributes:
        steps: the names of the tensors that nodes write, each computed on tensors that are given.
        inside: the tensors inside that can be asked for by their names in the file.
        constants: the initializers whose present values can be.
        trained: what layers write whose weights are parameters, so that an optimiser is given them.
        back: ways to the graph in ONNX again, by their names.
    """

    steps: Callable[[Tensors], Iterator[tuple[str, torch.Tensor]]]
    inside: set[str]
    constants: set[str]
    trained: set[str]
    back: Mapping[str, Callable[[Given], onnx.ModelProto]]


@dataclass(frozen=True)
class Returned:
    """What came back, or why it did not: its binary layers, and whether its outputs are the file's bit for bit."""

    refused: str = ""
    binary: int = 0
    same: bool = False


@dataclass(frozen=True)
class Finding:
    """What became of a graph; `refused` says why it was not imported, and all else is empty then.

    Pairs are how many of how many: steps and binary layers that are equal bit for bit, names that are found, layers
    whose weights are parameters.
    """

    refused: str = ""
    steps: tuple[int, int] = (0, 0)
    binary: tuple[int, int] = (0, 0)
    apart: float = 0.0
    inside: tuple[int, int] = (0, 0)
    constants: tuple[int, int] = (0, 0)
    trained: tuple[int, int] = (0, 0)
    written: int = 0  # binary layers in the file
    back: Mapping[str, Returned] = field(default_factory=dict)


# --- The importers ---------------------------------------------------------------------------------------------------


def interpreter(case: Case) -> Imported:
    """This package's own."""
    module = GraphModule(case.model) if case.student is None else case.student.module
    module.eval()
    named = set(module.constants())
    parameters = {name for name in named if isinstance(module.constant(name), torch.nn.Parameter)}
    # What a student's module does not name are weights of binary layers, made of parameters.
    trained = {out for out, name in weights(case.model).items() if name in parameters or name not in named}

    def steps(values: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
        for node, result in module.replay(values):
            yield node.output[0], result

    def back(_: Given) -> onnx.ModelProto:
        if case.student is not None:
            return case.student.export()
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        export_values(model, module)
        return model

    return Imported(steps, {*module.written}, named, trained, {AS_IT_COMES: back})


def onnx2torch(case: Case) -> Imported:
    """The package of that name, with the names that it notes on request."""
    from onnx2torch import convert

    module = convert(case.model, attach_onnx_mapping=True).eval()
    nodes = [(part, part.onnx_mapping) for part in module.modules() if hasattr(part, "onnx_mapping")]

    def steps(values: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
        for part, names in nodes:
            yield names.outputs[0], part(*(values[name] if name else None for name in names.inputs))

    def exported(feed: Given, **settings: Any) -> onnx.ModelProto:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "back.onnx")
            inputs = tuple(torch.from_numpy(value) for value in feed.values())
            torch.onnx.export(module, inputs, path, input_names=[*feed], verbose=False, **settings)
            return onnx.load(path)

    unfolded = {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE}
    back = {
        AS_IT_COMES: partial(exported, dynamo=True),
        UNFOLDED: partial(exported, dynamo=False, **unfolded),
    }
    inside = {name for _, names in nodes for name in names.outputs}
    trained = {names.outputs[0] for part, names in nodes if any(value.dim() > 1 for value in part.parameters())}
    return Imported(steps, inside, {*module.state_dict()}, trained, back)


IMPORTERS: dict[str, Callable[[Case], Imported]] = {"interpreter": interpreter, "onnx2torch": onnx2torch}


# --- The graphs ------------------------------------------------------------------------------------------------------


def images(network: str, count: int) -> dict[str, Any]:
    """Training images of a network that is quantized."""
    if network == "mnist_cnn_cntk":
        return dict(corpus_data.mnist("train", np.arange(count)).inputs)
    return dict(corpus_data.cifar().training(count, seed=0).inputs)


def cases() -> Iterator[Case]:
    """All graphs."""
    for name in FLOAT:
        yield Case("float networks", name, corpus_data.network(name))
    for name in QUANTIZED:
        samples = images(name, FITTED)
        for precision in PRECISIONS:
            config = pipeline.Config(ptq=precision, emit="ideal")
            ideal = pipeline.convert(corpus_data.network(name), config, calibration_data=samples).model
            yield Case("`convert --ptq --emit ideal`", f"{name} {precision}", ideal)
    for name in QUANTIZED:
        for precision in PRECISIONS:
            network = sites.find(corpus_data.network(name))
            plan, _ = network.choose(Precision.parse(precision))
            student = Student(network, plan, Recipe(shortcuts=False), quantize(network, images(name, FITTED), plan))
            yield Case("ideal graphs of students", f"{name} {precision}", student.export(), student)
    for name in BINARY:
        yield Case("trained binary networks", name, binary(name))
    for name in BINARY:
        ideal = pipeline.convert(binary(name), pipeline.Config(emit="ideal", slow_layers="convert")).model
        yield Case("their ideal graphs", name, ideal)


def binary(name: str) -> onnx.ModelProto:
    """A trained binary network of the corpus."""
    return onnx.load_from_string(lzma.decompress(corpus_data.path(f"bnn/{name}.onnx.xz").read_bytes()))


# --- What becomes of them --------------------------------------------------------------------------------------------


def judged(case: Case, importer: Callable[[Case], Imported]) -> Finding:
    """A graph through an importer, there and back."""
    graph = case.model.graph
    feed = random_inputs(case.model, SAMPLES, {})
    written = [name for node in graph.node for name in node.output if name]
    outputs = [value.name for value in graph.output]
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    layers = weights(case.model)
    try:
        imported = importer(case)
    except Exception as error:  # of many kinds
        return Finding(refused=one_line(error))
    found = Runner(case.model, [name for name in written if name not in outputs]).run(feed)
    values = {name: torch.from_numpy(np.array(value)) for name, value in {**constants, **feed, **found}.items()}
    on_bits = binary_layers(case.model)
    if case.student is not None and importer is interpreter:  # a layer is one step, to its end
        on_bits = {layer.site.output for layer in case.student.layers.values()}
    steps, equal, apart, exact = 0, 0, 0.0, set()
    with torch.no_grad():
        for name, result in imported.steps(values):
            given, wanted = np.ascontiguousarray(result.numpy()), found[name]
            same = given.dtype == wanted.dtype and given.tobytes() == wanted.tobytes()
            steps, equal = steps + 1, equal + same
            if same:
                exact.add(name)
            elif wanted.dtype.kind == "f" and given.shape == wanted.shape:
                apart = max(apart, float(np.abs(given - wanted).max() / np.abs(wanted).max()))
            else:
                apart = np.inf
    known = {*constants} & {name for node in graph.node for name in node.input}
    wanted_outputs = [found[name] for name in outputs]
    return Finding(
        steps=(equal, steps),
        binary=(len(on_bits & exact), len(on_bits)),
        apart=apart,
        inside=(len(imported.inside & {*written}), len(written)),
        constants=(len(imported.constants & known), len(known)),
        trained=(len(imported.trained & layers.keys()), len(layers)),
        written=len(binary_layers(case.model)),
        back={way: returned(back, feed, wanted_outputs) for way, back in imported.back.items()},
    )


def binary_layers(model: onnx.ModelProto) -> set[str]:
    """What the nodes of binary layers write."""
    layers = pipeline.inspect(model, pipeline.Config(slow_layers="convert")).layers
    names = {layer.name for layer in layers if layer.status == "binary"}
    return {node.output[0] for node in model.graph.node if node.name in names or node.output[0] in names}


def weights(model: onnx.ModelProto) -> dict[str, str]:
    """The weights of each layer that has constant ones, by what it writes."""
    constants = {tensor.name for tensor in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in LAYERS]
    return {node.output[0]: node.input[1] for node in layers if node.input[1] in constants}


def returned(back: Callable[[Given], onnx.ModelProto], feed: Given, wanted: Sequence[Array]) -> Returned:
    """What comes back on one of the ways."""
    quiet = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(quiet), redirect_stderr(quiet):
            warnings.simplefilter("ignore")
            model = back(feed)
        given = Runner(model).run(feed)
    except Exception as error:  # exporters raise whatever their parts do
        return Returned(one_line(error))
    same = all(a.tobytes() == b.tobytes() for a, b in zip(given.values(), wanted, strict=True))
    return Returned("", len(binary_layers(model)), same)


# --- What is shown ---------------------------------------------------------------------------------------------------


def of(pairs: Sequence[tuple[int, int]]) -> str:
    """`18 of 18`; empty where there is nothing."""
    some, most = (sum(pair[i] for pair in pairs) for i in range(2))
    return f"{some} of {most}" if most else ""


def row(group: str, importer: str, findings: Sequence[Finding]) -> Row:
    """Some graphs of one kind together."""
    done = [f for f in findings if not f.refused]
    if not done:
        return (group, importer, of([(0, len(findings))]), *[""] * (len(HEADER) - 3))
    return (
        group,
        importer,
        of([(len(done), len(findings))]),
        of([f.steps for f in done]),
        of([f.binary for f in done]),
        of([f.inside for f in done]),
        of([f.constants for f in done]),
        of([f.trained for f in done]),
        *[cell for way in (AS_IT_COMES, UNFOLDED) for cell in cells(done, way)],
    )


def cells(findings: Sequence[Finding], way: str) -> Row:
    """What came back on a way: binary layers, and outputs that are the same."""
    if any(way not in f.back for f in findings):
        return ("", "")
    layers = of([(f.back[way].binary, f.written) for f in findings])
    return (layers, of([(f.back[way].same, 1) for f in findings]))


HEADER = (
    "graphs",
    "by",
    "imported",
    "nodes equal",
    "binary layers equal",
    "tensors named",
    "constants named",
    "layers trained",
    "back: binary layers",
    "back: equal",
    "unfolded: binary layers",
    "unfolded: equal",
)


@click.command(help=__doc__)
def main() -> None:
    """Import all graphs, print one after the other, and then what they come to together."""
    torch.set_num_threads(1)
    found: dict[tuple[str, str], list[Finding]] = {}
    names = [name for name in IMPORTERS if name == "interpreter" or importlib.util.find_spec(name)]
    try:
        for case in cases():
            inlined = Case(case.group, case.name, onnx.inliner.inline_local_functions(case.model))
            for name in names:
                progress(f"{case.group}: {case.name}, {name}")
                finding = judged(case if name == "interpreter" else inlined, IMPORTERS[name])
                found.setdefault((case.group, name), []).append(finding)
                click.echo(f"{case.group}: {case.name}, {name}: {finding}")
    except LeftOut as words:
        raise click.ClickException(str(words)) from None
    rows = [row(group, name, findings) for (group, name), findings in found.items()]
    apart = max((f.apart for some in found.values() for f in some), default=0.0)
    meaning = (
        f"{SAMPLES} samples. Equal: bit for bit, each node on the tensors that onnxruntime gave it; where not, at most "
        f"{apart:.1g} of a tensor's largest value apart. Back: what comes back, end to end."
    )
    table = Table("ONNX graphs in torch and back", meaning, HEADER, rows)
    click.echo("\n".join(["", table.text(), "", *table.lines()]))


if __name__ == "__main__":
    main()
