"""Single layers: ours against float, int8 and binary layers of other runtimes, float32 in and float32 out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import models
import numpy as np
import onnx
import shapes
from contest import Contest, compete, geometric_mean, untimed
from int8 import int8
from peers import Call, onnxruntime, openvino
from process import in_process, progress
from settings import Found, Settings
from shapes import Layer
from tables import Row, Table, microseconds, times

from binarize_onnx import convert

OURS, ORT_FLOAT, ORT_INT8 = "binarize-onnx", "onnxruntime fp32", "onnxruntime int8"
OV_FLOAT, OV_INT8, OV_BINARY = "OpenVINO fp32", "OpenVINO int8", "OpenVINO binary"
ONE_THREAD = "ours on one thread"
PEERS = (ONE_THREAD, ORT_FLOAT, ORT_INT8, OV_FLOAT, OV_INT8, OV_BINARY)
CALIBRATION_BATCHES = 4

MEANING = (
    "float32 in and float32 out, NCHW, batch 1, packing or quantizing the input included; `64@56` is 64 channels of "
    "56 x 56 pixels, `s2` stride 2. Microseconds, medians; behind each peer how many times faster ours is, the median "
    "of the ratios within a round. int8 is what onnxruntime's static quantization makes of the float layer (u8 "
    "activations with zero point 0, s8 weights, a scale a channel), in both runtimes; OpenVINO's binary layer has "
    "FakeQuantize to two levels in front, which it runs as packing."
)


def measure(settings: Settings, threads: int = 1) -> Found:
    """Every layer against every peer that is installed."""
    return in_process("sections.layers:contests", settings.quick, threads, settings.rounds, threads=threads)


def contests(quick: bool, threads: int, rounds: int) -> Found:
    """The contests, in this process."""
    return [asdict(contest(layer, threads, rounds)) for layer in ((shapes.TINY,) if quick else shapes.LAYERS)]


def contest(layer: Layer, threads: int, rounds: int) -> Contest:
    """One layer, everybody in turns."""
    progress(f"  {layer.name}, {threads} thread(s)")
    source = models.float_layer(layer)
    quantized = quantized_layer(layer)
    calls: dict[str, Call] = {
        OURS: onnxruntime.call(compiled_layer(layer), threads),
        ORT_FLOAT: onnxruntime.call(source, threads),
        ORT_INT8: onnxruntime.call(quantized, threads),
    }
    if threads > 1:
        calls[ONE_THREAD] = onnxruntime.call(compiled_layer(layer), 1)
    if openvino.INSTALLED:
        calls |= {OV_FLOAT: openvino.call(source, threads), OV_INT8: openvino.call(quantized, threads)}
        if isinstance(layer, shapes.Conv):  # it has no binary matrix product
            calls[OV_BINARY] = openvino.binary_call(layer, threads)
    return compete(layer.name, calls, threads, rounds)


def compiled_layer(layer: Layer) -> onnx.ModelProto:
    """Sign and the layer with ±1 weights, as our compiler lowers them."""
    return convert(models.sign_layer(layer)).model


def quantized_layer(layer: Layer) -> onnx.ModelProto:
    """The float layer in int8, its input as behind a ReLU: the form that int8 runtimes are fastest on."""
    rng = np.random.default_rng(1)
    inputs = [np.abs(rng.standard_normal(layer.input_shape, np.float32)) for _ in range(CALIBRATION_BATCHES)]
    return int8(models.float_layer(layer), inputs)


def tables(found: Found, threads: int = 1) -> list[Table]:
    """One table, and what follows from it."""
    contests = [Contest(**one) for one in found]
    title, meaning = f"Layers, {threads_in_words(threads)}", f"{MEANING} {warmed(threads)}"
    return [against_peers(title, meaning, "layer", contests, conclusions(contests))]


def warmed(threads: int) -> str:
    """What is done in front of a measurement."""
    own = f"Behind `{ONE_THREAD}` stands what the other threads bring. " if threads > 1 else ""
    return (
        f"{own}Calls for {1e3 * untimed(threads):g} ms, one at least, come before each measurement and are not timed: "
        "each contestant is measured as it runs alone."
    )


def threads_in_words(threads: int) -> str:
    """`one thread`."""
    return {1: "one thread", 2: "two threads"}.get(threads, f"{threads} threads")


def against_peers(title: str, meaning: str, what: str, contests: Sequence[Contest], said: list[str]) -> Table:
    """Ours in the first column of numbers, then each peer that took part in any of the contests."""
    peers = [peer for peer in PEERS if any(peer in c.speedups for c in contests)]

    def cell(contest: Contest, peer: str) -> str:
        if peer not in contest.speedups:
            return "–"
        return f"{microseconds(contest.us[peer])} ({times(contest.speedups[peer])})"

    rows: list[Row] = [
        (c.name, microseconds(next(iter(c.us.values()))), *(cell(c, peer) for peer in peers)) for c in contests
    ]
    return Table(title, meaning, (what, "ours, µs", *peers), rows, said)


def conclusions(contests: Sequence[Contest]) -> list[str]:
    """Geometric means and least ratios of the sets of layers that go together."""
    sets = (
        ("the four 3x3 convolutions of stride 1", shapes.SQUARE_3X3, (ONE_THREAD,)),
        ("the convolutions", shapes.CONVS, (OV_BINARY,)),
        ("the four 3x3 convolutions of stride 1", shapes.SQUARE_3X3, (ORT_FLOAT,)),
        ("the four 3x3 convolutions of stride 1", shapes.SQUARE_3X3, (ORT_INT8,)),
        ("the matrix product of one row", (shapes.VECTOR,), (ORT_INT8, OV_INT8)),
    )
    said = []
    for words, layers, peers in sets:
        names = {layer.name for layer in layers}
        met = [(c.name, faster_peer(c, peers)) for c in contests if c.name in names and set(peers) & set(c.speedups)]
        if met:
            said.append(f"{_either(peers)}, {words}: {_spread(met)}.")
    return said


def faster_peer(contest: Contest, peers: Sequence[str]) -> float:
    """How many times faster ours is than the fastest of these peers, of those that took part."""
    return min(contest.speedups[peer] for peer in peers if peer in contest.speedups)


def _either(peers: Sequence[str]) -> str:
    return f"Against {peers[0]}" if len(peers) == 1 else f"Against the faster of {' and '.join(peers)}"


def _spread(met: Sequence[tuple[str, float]]) -> str:
    least = min(met, key=lambda pair: pair[1])
    if len(met) == 1:
        return f"{times(least[1])}"
    return f"geometric mean {times(geometric_mean(ratio for _, ratio in met))}, least {times(least[1])} ({least[0]})"
