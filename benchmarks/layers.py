"""Binary layers against onnxruntime's float layers: interleaved medians in one run.

    python benchmarks/layers.py                     # one thread, all layers
    taskset -c 0 python benchmarks/layers.py --rounds 31

Every contestant takes float32 and gives float32, batch 1. `float` is onnxruntime's Conv or MatMul at its default
optimisation level, `binary` our PackSign + XnorConv or XnorMatMul on the same shapes: packing the input is counted. The
ratio is the median of the ratios of the rounds, and its spread their interquartile range.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from binarize_onnx import convert, runtime
from binarize_onnx.bench import ratios, summary, time_in_turns

SHORTEST = 4e-3  # seconds of one measurement: faster layers are repeated


@dataclass(frozen=True)
class Conv:
    """A square convolution: channels in and out, image size, kernel, stride, padding."""

    name: str
    channels: int
    outputs: int
    size: int
    kernel: int
    stride: int
    pad: int


@dataclass(frozen=True)
class MatMul:
    """A matrix product [rows, inner] x [inner, columns]."""

    name: str
    rows: int
    inner: int
    columns: int


LAYERS: tuple[Conv | MatMul, ...] = (
    Conv("3x3 64@56", 64, 64, 56, 3, 1, 1),
    Conv("3x3 128@28", 128, 128, 28, 3, 1, 1),
    Conv("3x3 256@14", 256, 256, 14, 3, 1, 1),
    Conv("3x3 512@7", 512, 512, 7, 3, 1, 1),
    Conv("3x3 s2 128-256@28", 128, 256, 28, 3, 2, 1),
    Conv("1x1 256@14", 256, 256, 14, 1, 1, 0),
    Conv("1x1 512@14", 512, 512, 14, 1, 1, 0),
    Conv("1x1 1024@7", 1024, 1024, 7, 1, 1, 0),
    MatMul("1x4096x4096", 1, 4096, 4096),
    MatMul("128x768x3072", 128, 768, 3072),
)


@dataclass(frozen=True)
class Timing:
    """Medians in microseconds and the speed-up's median and quartiles."""

    layer: str
    float_us: float
    binary_us: float
    speedup: float
    low: float
    high: float


def model(layer: Conv | MatMul, binary: bool, rng: np.random.Generator) -> tuple[onnx.ModelProto, np.ndarray]:
    """One layer with real weights, or with a sign in front and ±1 weights, and an input for it."""
    attributes: dict[str, Any]
    shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    if isinstance(layer, Conv):
        shape = (1, layer.channels, layer.size, layer.size)
        weight_shape = (layer.outputs, layer.channels, layer.kernel, layer.kernel)
        attributes = {"kernel_shape": [layer.kernel] * 2, "strides": [layer.stride] * 2, "pads": [layer.pad] * 4}
    else:
        shape, weight_shape, attributes = (layer.rows, layer.inner), (layer.inner, layer.columns), {}
    weights = rng.normal(size=weight_shape).astype(np.float32)
    if binary:
        weights = np.where(weights < 0, -1, 1).astype(np.float32)
    nodes = [helper.make_node("Sign", ["x"], ["s"])] if binary else []
    op = "Conv" if isinstance(layer, Conv) else "MatMul"
    nodes.append(helper.make_node(op, ["s" if binary else "x", "w"], ["y"], name=layer.name, **attributes))
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["?"] * len(shape))],
        [numpy_helper.from_array(weights, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return proto, rng.normal(size=shape).astype(np.float32)


def runner(proto: onnx.ModelProto, x: np.ndarray, threads: int) -> Callable[[], None]:
    """A call that runs the model on preallocated buffers."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(proto.SerializeToString(), options)
    (y,) = session.run(None, {"x": x})
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(x))
    binding.bind_ortvalue_output("y", ort.OrtValue.ortvalue_from_numpy(y))
    return lambda: session.run_with_iobinding(binding)


def measure(layer: Conv | MatMul, threads: int, rounds: int) -> Timing:
    """Interleave rounds of both contestants, each long enough to time."""
    rng = np.random.default_rng(0)
    source, x = model(layer, False, rng)
    binary_source, _ = model(layer, True, rng)
    calls = [runner(source, x, threads), runner(convert(binary_source).model, x, threads)]
    times = time_in_turns(calls, seconds=0.0, fewest=rounds, shortest=SHORTEST)
    medians, speedup = [summary(taken).median for taken in times], ratios(times[0], times[1])
    return Timing(layer.name, medians[0], medians[1], speedup.median, speedup.lower, speedup.upper)


@click.command(help=__doc__)
@click.option("--threads", default=1, show_default=True, help="Threads of onnxruntime's own pool.")
@click.option("--rounds", default=21, show_default=True, help="Interleaved rounds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def main(threads: int, rounds: int, as_json: bool) -> None:
    """Measure every layer and print the table."""
    timings = [measure(layer, threads, rounds) for layer in LAYERS]
    if as_json:
        click.echo(
            json.dumps({"isa": runtime.selected_isa(), "threads": threads, "layers": [asdict(t) for t in timings]})
        )
        return
    click.echo(f"onnxruntime {ort.__version__}, {threads} thread(s), ISA {runtime.selected_isa()}")
    click.echo(f"{'layer':<20}{'float us':>10}{'binary us':>11}{'speed-up':>10}   quartiles")
    for t in timings:
        row = f"{t.layer:<20}{t.float_us:>10.0f}{t.binary_us:>11.1f}{t.speedup:>9.1f}x   {t.low:.1f} - {t.high:.1f}"
        click.echo(row)


if __name__ == "__main__":
    main()
