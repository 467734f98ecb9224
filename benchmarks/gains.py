"""The constants of `binarize_onnx/gain.py`: measure them, and how far its estimates are off.

    taskset -c 1 python benchmarks/gains.py                     # every instruction set of this machine: 2 minutes
    python benchmarks/gains.py --save times.json                # and keep what was measured
    python benchmarks/gains.py --load times.json --write        # fit again, write gain.py and docs/gain.md

Each layer is timed as onnxruntime's float32 layer, as the sign in front of it (Sign, or GreaterOrEqual and Where:
whichever is faster), and in the parts that `convert` makes of it: what packs its input, what computes floats from bits,
and the layer as it writes bits for another. Batch 1, one thread, in turns, without what a session takes for itself. An
instruction set is forced on a process of its own. The constants are those with the least squares of logarithms: a
layer that is estimated at half its time weighs as much as one at twice its time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import NodeProto, helper, numpy_helper

from binarize_onnx import Config, convert, gain, io, opset, runtime, shapes, slow_layers
from binarize_onnx.bench import time_in_turns
from binarize_onnx.gain import Counts, Placing, Sizes

Array = npt.NDArray[Any]

ROUNDS = 5
SHORTEST = 1e-3  # seconds of one measurement: faster models are repeated
SHORTEST_NODE = 50.0  # ns; what is measured as less is within the noise of what a session takes
ITERATIONS = 500
NEGLIGIBLE = 1e-2  # of any layer's time: a constant that never makes up more is 0
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
MEANINGS = {
    "conv": "a float convolution",
    "mac": "a multiply-accumulate of a convolution or a product",
    "element": "an element that a convolution reads or writes",
    "depthwise": "a multiply-accumulate of a depthwise convolution",
    "column": "an element of the columns that a transposed convolution adds up",
    "product": "a float matrix product",
    "sign": "a sign in floats",
    "signed": "an element of its input",
    "pack": "a PackSign",
    "packed": "an element that it compares with one threshold",
    "compared": "an element and one threshold of several",
    "node": "an XnorConv or XnorMatMul",
    "word": "32 words of weights (of 32 filters) with one word of bits",
    "run": "the same words with those of RUN rows: reading the weights",
    "levels": "32 words of weights with RUN rows of several bits",
    "levels_bit": "the same for each of the bits",
    "to_floats": "32 channels of a row written as floats",
    "to_bits": "32 channels of a row written as bits",
    "placed": "an element of a transposed convolution put in its place",
}
PAGE = Path(__file__).resolve().parent.parent / "docs" / "gain.md"
PARTS = {"to floats": False, "to bits": True}
LAYER = "layer"  # the name of the node that is measured
SIGNS = {
    "Sign": [helper.make_node("Sign", ["x"], ["y"])],
    "Where": [
        helper.make_node("GreaterOrEqual", ["x", "zero"], ["reached"]),
        helper.make_node("Where", ["reached", "one", "minus"], ["y"]),
    ],
}


@dataclass(frozen=True)
class Layer:
    """A layer of the grid: its operator, the shapes of its input and weights, and its attributes.

    `bits` are those of an activation; a sum of `bases` layers has weights of its own in each of them.
    """

    op: str
    reads: tuple[int, ...]
    weights: tuple[int, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    bits: int = 1
    bases: int = 1

    @property
    def convolves(self) -> bool:
        """Whether channels are on axis 1."""
        return self.op != "MatMul"

    @property
    def stays(self) -> bool:
        """Whether the compiler leaves it float whatever it costs: a depthwise convolution."""
        return self.op == "Conv" and self.weights[1] == 1 < self.attributes.get("group", 1)

    @property
    def outputs(self) -> int:
        """Output channels, or columns."""
        return self.weights[0 if self.op == "Conv" else 1 if self.convolves else -1]

    def placing(self, to_bits: bool) -> Placing:
        """How our op runs it, behind a sign of its own or between other layers on bits."""
        levels = (1 << self.bits) - 1
        return Placing(0, 1, 0 if to_bits else 1, to_bits, levels, self.bits, self.bases)


def conv(
    channels: int,
    outputs: int,
    size: int,
    kernel: int,
    stride: int = 1,
    group: int = 1,
    *,
    bits: int = 1,
    bases: int = 1,
) -> Layer:
    """A square convolution that keeps the size but for its stride."""
    attributes = {"strides": [stride] * 2, "pads": [kernel // 2] * 4, "group": group}
    weights = (outputs, channels // group, kernel, kernel)
    return Layer("Conv", (1, channels, size, size), weights, attributes, bits, bases)


def line(channels: int, outputs: int, length: int, kernel: int) -> Layer:
    """A convolution in one dimension."""
    attributes = {"strides": [1], "pads": [kernel // 2] * 2}
    return Layer("Conv", (1, channels, length), (outputs, channels, kernel), attributes)


def transposed(channels: int, outputs: int, size: int, kernel: int, pad: int) -> Layer:
    """A transposed convolution that doubles the size."""
    attributes = {"strides": [2] * 2, "pads": [pad] * 4}
    return Layer("ConvTranspose", (1, channels, size, size), (channels, outputs, kernel, kernel), attributes)


def product(rows: int, inner: int, columns: int, *, bits: int = 1, bases: int = 1) -> Layer:
    """A matrix product with constant weights."""
    return Layer("MatMul", (rows, inner), (inner, columns), {}, bits, bases)


# (channels, outputs, size); in every combination with a kernel of 1, 3 and 5
IMAGES = (
    *((1, 16, 28), (1, 64, 56), (3, 8, 16), (3, 32, 32), (3, 64, 112), (4, 4, 8), (8, 8, 4), (8, 8, 56), (8, 16, 28)),
    *((16, 16, 8), (16, 16, 56), (16, 32, 28), (24, 24, 28), (32, 32, 4), (32, 32, 14), (32, 32, 56), (32, 64, 28)),
    *((48, 48, 16), (64, 1, 28), (64, 64, 1), (64, 64, 7), (64, 64, 14), (64, 64, 56), (100, 100, 10), (128, 32, 14)),
    *((128, 128, 28), (256, 64, 7), (256, 256, 14), (512, 8, 7), (512, 512, 7), (1024, 1024, 7)),
)
STRIDED = (
    *((3, 16, 32, 3), (16, 32, 32, 3), (24, 48, 16, 3), (64, 128, 56, 3), (128, 256, 28, 3), (256, 512, 14, 3)),
    *((32, 64, 28, 1), (128, 256, 28, 1)),
)
GROUPED = (
    *((8, 8, 16, 3, 8), (32, 32, 56, 3, 32), (128, 128, 28, 3, 128), (512, 512, 14, 3, 512), (64, 64, 28, 3, 2)),
    *((64, 64, 28, 3, 4), (96, 96, 14, 3, 2), (96, 96, 14, 3, 4), (96, 96, 28, 3, 3), (128, 128, 14, 3, 8)),
    *((128, 128, 28, 3, 32), (256, 256, 14, 3, 32), (512, 512, 7, 3, 8), (128, 256, 14, 1, 4), (256, 256, 14, 1, 8)),
)
LINES = ((16, 16, 512, 5), (40, 64, 128, 3), (64, 64, 256, 3), (128, 128, 100, 3), (256, 256, 32, 1))
TRANSPOSED = ((16, 8, 28, 2, 0), (32, 3, 32, 4, 1), (64, 64, 14, 2, 0), (64, 64, 14, 4, 1), (64, 64, 28, 3, 1))
PRODUCTS = (
    *((1, 16, 10), (1, 256, 10), (1, 256, 256), (1, 256, 4096), (1, 768, 64), (1, 1024, 10), (1, 1024, 1024)),
    *((1, 4096, 10), (1, 4096, 1024), (4, 64, 256), (4, 768, 1024), (4, 4096, 64), (8, 100, 10), (16, 16, 64)),
    *((16, 64, 256), (16, 256, 1024), (16, 1024, 10), (64, 64, 64), (64, 256, 10), (64, 256, 256), (64, 768, 64)),
    *((64, 1024, 256), (64, 1024, 4096), (128, 8, 8), (128, 16, 1024), (128, 64, 10), (128, 256, 64), (128, 768, 768)),
    *((512, 3, 64), (512, 16, 16), (512, 64, 64), (512, 64, 256), (512, 256, 256), (512, 4096, 10)),
)
SEVERAL = ((16, 16, 28, 3), (64, 64, 28, 3), (128, 128, 14, 1), (256, 256, 14, 3))
LARGEST = 3e8  # MACs

GRID: tuple[Layer, ...] = (
    *(
        conv(*shape, kernel)
        for kernel in (1, 3, 5)
        for shape in IMAGES
        if np.prod(shape) * shape[2] * kernel**2 < LARGEST
    ),
    *(conv(*shape, stride=2) for shape in STRIDED),
    *(conv(c, o, size, kernel, 1, group) for c, o, size, kernel, group in GROUPED),
    *(line(*shape) for shape in LINES),
    *(transposed(*shape) for shape in TRANSPOSED),
    *(product(*shape) for shape in PRODUCTS),
    *(conv(*shape, bits=bits) for shape in SEVERAL for bits in (2, 3, 4)),
    *(conv(*shape, bases=bases) for shape in SEVERAL for bases in (2, 3)),
    *(product(128, 768, 768, bits=bits) for bits in (2, 4)),
    *(product(128, 768, 768, bases=bases) for bases in (2, 3)),
)


def model(
    nodes: Sequence[NodeProto], inputs: Mapping[str, Array], constants: Mapping[str, Array], output: str
) -> onnx.ModelProto:
    """A model of these nodes; the type of its output is left to inference."""
    graph = helper.make_graph(
        list(nodes),
        "layer",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values.dtype), values.shape)
            for name, values in inputs.items()
        ],
        [onnx.ValueInfoProto(name=output)],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(opset.DOMAIN, opset.VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def source(layer: Layer, *, to_bits: bool) -> onnx.ModelProto:
    """The layer on bits as `convert` reads it: signs, the layers, scales, a bias, and a next layer if there is one."""
    rng = np.random.default_rng(0)
    per_channel = (layer.outputs,) + (1,) * (len(layer.weights) - 2 if layer.convolves else 0)
    constants: dict[str, Array] = {}
    nodes: list[NodeProto] = []

    def node(op: str, *names: str, **attributes: Any) -> str:
        output = f"t{len(nodes)}"
        nodes.append(helper.make_node(op, names, [output], **attributes))
        return output

    def constant(values: Any) -> str:
        name = f"c{len(constants)}"
        constants[name] = np.asarray(values, np.float32)
        return name

    def sign(x: str) -> str:
        return node("Where", node("GreaterOrEqual", x, constant(0)), constant(1), constant(-1))

    def levels(x: str) -> str:
        return node("Round", node("Clip", x, constant(0), constant((1 << layer.bits) - 1)))

    x = sign("x") if layer.bits == 1 else levels("x")
    y = ""
    for _ in range(layer.bases):
        weights = constant(np.where(rng.random(layer.weights) < 0.5, -1, 1))
        scaled = node(layer.op, x, weights, name=f"{LAYER}{y}", **layer.attributes)
        scaled = node("Mul", scaled, constant(rng.random(per_channel) + 0.5))
        y = node("Add", y, scaled) if y else scaled
    y = node("Add", y, constant(rng.normal(size=per_channel)))
    if to_bits and layer.convolves:
        y = node("Conv", sign(y), constant(np.ones((1, *per_channel))))
    elif to_bits:
        y = node("MatMul", sign(y), constant(np.ones((layer.outputs, 1))))
    return model(nodes, {"x": np.empty(layer.reads, np.float32)}, constants, y)


def behind(compiled: onnx.ModelProto, given: Mapping[str, Array], output: str) -> onnx.ModelProto:
    """The part of a compiled model that leads from given tensors to another."""
    constants = {t.name: numpy_helper.to_array(t) for t in compiled.graph.initializer}
    needed, nodes = {output}, list[NodeProto]()
    for node in reversed(compiled.graph.node):
        if needed & set(node.output) - set(given):
            nodes.insert(0, node)
            needed.update(node.input)
    given, constants = ({k: v for k, v in values.items() if k in needed} for values in (given, constants))
    return model(nodes, given, constants, output)


def session(proto: onnx.ModelProto) -> ort.InferenceSession:
    """The model with our kernels, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return runtime.InferenceSession(proto.SerializeToString(), options)


def runner(proto: onnx.ModelProto, feed: Mapping[str, Array]) -> Callable[[], None]:
    """A call that runs a model on preallocated buffers."""
    running = session(proto)
    binding = running.io_binding()
    given = {i.name: feed[i.name] for i in running.get_inputs()}
    for name, values in given.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(values))
    for output, values in zip(running.get_outputs(), running.run(None, given), strict=True):
        binding.bind_ortvalue_output(output.name, ort.OrtValue.ortvalue_from_numpy(values))
    return lambda: running.run_with_iobinding(binding)


def contestants(layer: Layer) -> dict[str, Callable[[], None]]:
    """What is timed of a layer: see the module's docstring."""
    rng = np.random.default_rng(1)
    x, w = (rng.normal(size=shape).astype(np.float32) for shape in (layer.reads, layer.weights))
    found = {"float": runner(model([real(layer)], {"x": x}, {"w": w}, "y"), {"x": x})}
    constants = {name: np.full((), value, np.float32) for name, value in (("one", 1), ("minus", -1), ("zero", 0))}
    for name, nodes in SIGNS.items():
        found[name] = runner(model(nodes, {"x": x}, constants, "y"), {"x": x})
    if layer.stays:
        return found
    for part, to_bits in PARTS.items():
        compiled = convert(source(layer, to_bits=to_bits), Config(slow_layers="convert")).model
        (ours,) = (node for node in compiled.graph.node if node.name == LAYER)
        packing = behind(compiled, {"x": x}, ours.input[0])
        (bits,) = session(packing).run(None, {"x": x})
        end = ours.output[1] if to_bits else compiled.graph.output[0].name
        if end:  # phases whose channels fill no words cannot write bits
            found[part] = runner(behind(compiled, {ours.input[0]: bits}, end), {ours.input[0]: bits})
    return found | {"pack": runner(packing, {"x": x})}


def real(layer: Layer) -> NodeProto:
    """The layer on floats."""
    return helper.make_node(layer.op, ["x", "w"], ["y"], **layer.attributes)


def empty(nodes: int) -> Callable[[], None]:
    """A model that does next to nothing in so many nodes."""
    names = ["x", *(f"t{i}" for i in range(1, nodes)), "y"]
    chain = [helper.make_node("Neg", names[i : i + 1], names[i + 1 : i + 2]) for i in range(nodes)]
    x = np.zeros(1, np.float32)
    return runner(model(chain, {"x": x}, {}, "y"), {"x": x})


def measure() -> list[dict[str, float]]:
    """Nanoseconds of every contestant of every layer, with the kernels that this process runs."""
    idle = {"one node": empty(1), "nine nodes": empty(9)}
    found = []
    for layer in GRID:
        named = idle | contestants(layer)
        times = time_in_turns(list(named.values()), 0.0, fewest=ROUNDS, shortest=SHORTEST)
        taken = dict(zip(named, (float(t) for t in np.median(times, axis=1) * 1e9), strict=True))
        a_node = (taken["nine nodes"] - taken["one node"]) / 8
        of_session = taken["one node"] - a_node
        found.append({name: max(taken[name] - of_session, SHORTEST_NODE) for name in named if name not in idle})
    return found


def measure_forced(isa: str) -> list[dict[str, float]]:
    """The same with an instruction set forced, in a process of its own."""
    command = [sys.executable, __file__, "--only-measure"]
    ran = subprocess.run(command, env={**os.environ, "BINARIZE_ONNX_ISA": isa}, stdout=subprocess.PIPE, check=True)
    found: list[dict[str, float]] = json.loads(ran.stdout)
    return found


def sizes(layer: Layer) -> Sizes:
    """The sizes of a layer, as the compiler reads them."""
    zeros = {"x": np.zeros(layer.reads, np.float32)}, {"w": np.zeros(layer.weights, np.float32)}
    proto = model([real(layer)], *zeros, "y")
    (node,) = io.import_graph(proto).nodes
    found = slow_layers.sizes(node, shapes.infer(proto).known)
    assert found is not None
    return found


@dataclass
class Samples:
    """Counts, and the nanoseconds that were measured for each."""

    counts: list[Counts] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def add(self, counts: Counts, time: float) -> None:
        """One measurement."""
        self.counts.append(counts)
        self.times.append(time)

    def fit(self) -> dict[str, float]:
        """The constants, all positive, with the least squares of log(estimate / time): Levenberg's method."""
        names = list(dict.fromkeys(name for counts in self.counts for name in counts))
        table = np.asarray([[counts.get(name, 0) for name in names] for counts in self.counts], np.float64)
        times = np.asarray(self.times)
        alone = times[:, None] / np.where(table > 0, table, np.nan)  # if each were the only thing that takes time
        logs = np.log(np.nanmedian(alone, axis=0) / len(names))

        def residues(logs: Array) -> Array:
            errors: Array = np.log(table @ np.exp(logs) / times)
            return errors

        errors, damping = residues(logs), 1e-2
        for _ in range(ITERATIONS):
            slopes = table * np.exp(logs)
            slopes /= slopes.sum(axis=1, keepdims=True)
            step = np.linalg.solve(slopes.T @ slopes + damping * np.eye(len(names)), -slopes.T @ errors)
            after = residues(logs + step)
            if after @ after < errors @ errors:
                logs, errors, damping = logs + step, after, damping / 3
            else:
                damping *= 4
        constants = np.exp(logs)
        constants[(table * constants / (table @ constants)[:, None]).max(axis=0) < NEGLIGIBLE] = 0
        return {name: float(f"{constant:.3g}") for name, constant in zip(names, constants, strict=True)}

    def errors(self, constants: Counts) -> Array:
        """Estimate divided by time."""
        estimated = np.asarray([gain.nanoseconds(counts, constants) for counts in self.counts])
        errors: Array = estimated / np.asarray(self.times)
        return errors


def of_float(measured: Mapping[str, Sequence[Mapping[str, float]]]) -> Samples:
    """The float layers and signs, which all processes have measured."""
    found = Samples()
    for i, layer in enumerate(GRID):
        times = {name: float(np.median([each[i][name] for each in measured.values()])) for name in ("float", *SIGNS)}
        found.add(gain.layer_counts(sizes(layer)), times["float"])
        found.add(gain.sign_counts(sizes(layer)), min(times[name] for name in SIGNS))
    return found


def of_kernels(measured: Sequence[Mapping[str, float]]) -> Samples:
    """Our ops on one instruction set."""
    found = Samples()
    for layer, times in zip(GRID, measured, strict=True):
        if layer.stays:
            continue
        found.add(gain.pack_counts(sizes(layer).reads, layer.placing(False).thresholds), times["pack"])
        for part in sorted(PARTS.keys() & times.keys()):
            found.add(gain.xnor_counts(sizes(layer), layer.placing(PARTS[part])), times[part])
    return found


def gains(measured: Sequence[Mapping[str, float]], kernels: Counts, real: Counts) -> tuple[Array, Array]:
    """The gains that were measured and those that are estimated: of layers alone, and of layers between others."""
    pairs = []
    for layer, times in zip(GRID, measured, strict=True):
        if layer.stays:
            continue
        floats = layer.bases * times["float"] + min(times[name] for name in SIGNS)
        for part in sorted(PARTS.keys() & times.keys()):
            to_bits = PARTS[part]
            ours = times[part] if to_bits else times[part] + times["pack"]
            pairs.append(
                (floats / ours, gain.estimate([sizes(layer)] * layer.bases, layer.placing(to_bits), kernels, real).gain)
            )
    found = np.asarray(pairs).T
    return found[0], found[1]


def errors_of(name: str, errors: Array) -> str:
    """A line of the table of errors: quantiles of estimate / measured, and the factor within which nine of ten are."""
    within = np.exp(np.quantile(np.abs(np.log(errors)), 0.9))
    return f"{name:<28}" + "".join(f"{q:>7.2f}" for q in np.quantile(errors, QUANTILES)) + f"{within:>7.2f}"


def literal(real: Counts, kernels: Mapping[str, Counts]) -> str:
    """The constants as they stand in `gain.py`."""
    lines = ["FLOAT: Counts = {"]
    lines += [f'    "{name}": {real[name]:g},  # {words}' for name, words in MEANINGS.items() if name in real]
    lines += ["}", "_KERNELS: Mapping[str, tuple[float, ...]] = {", f"    # {', '.join(kernels)}"]
    for name, words in MEANINGS.items():
        if name not in real:
            row = ", ".join(f"{constants[name]:g}" for constants in kernels.values())
            lines.append(f'    "{name}": ({row}),  # {words}')
    return "\n".join([*lines, "}", ""])


@click.command(help=__doc__)
@click.option("--save", type=click.Path(path_type=Path), help="Write what was measured to a file.")
@click.option("--load", type=click.Path(path_type=Path), help="Read what was measured from a file.")
@click.option("--write", is_flag=True, help="Put constants and table into gain.py and docs.")
@click.option("--only-measure", is_flag=True, help="Print what this process measures, as JSON.")
def main(save: Path | None, load: Path | None, write: bool, only_measure: bool) -> None:
    """Measure, fit, and say how good the fit is."""
    if only_measure:
        click.echo(json.dumps(measure()))
        return
    isas = [isa for isa in gain.TARGETS if isa in runtime.available_isas()]
    measured = json.loads(load.read_text()) if load else {isa: measure_forced(isa) for isa in isas}
    if save:
        save.write_text(json.dumps(measured))
    floats = of_float(measured)
    real, kernels = floats.fit(), dict[str, Counts]()
    table = ["estimate / measured, quantile " + "".join(f"{q:>7.0%}" for q in QUANTILES)[2:] + "    90%"]
    table.append(errors_of("float32", floats.errors(real)))
    for isa, times in measured.items():
        ours = of_kernels(times)
        kernels[isa] = ours.fit()
        there, estimated = gains(times, kernels[isa], real)
        right, clear = (there > 1) == (estimated > 1), np.abs(np.log(there)) > np.log(gain.ERROR)
        table.append(errors_of(isa, ours.errors(kernels[isa])))
        table.append(errors_of("  gains", estimated / there))
        table.append(
            f"  faster or slower: right for {right.mean():.1%}; not within {gain.ERROR} of 1, {right[clear].mean():.1%}"
        )
    constants = literal(real, kernels)
    click.echo("\n".join([*table, "", constants]), nl=False)
    if write:
        if tuple(kernels) != gain.TARGETS:
            raise click.UsageError(f"gain.py has constants of {', '.join(gain.TARGETS)}: this machine has fewer.")
        replace(Path(gain.__file__), "# measured by benchmarks/gains.py\n", constants, "# until here\n")
        replace(PAGE, "benchmarks/gains.py`:\n\n```\n", "\n".join([*table, ""]), "```\n")


def replace(page: Path, before: str, text: str, after: str) -> None:
    """Put text between two marks."""
    head, mark, rest = page.read_text().partition(before)
    page.write_text(head + mark + text + rest[rest.index(after) :])


if __name__ == "__main__":
    main()
