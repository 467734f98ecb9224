"""Whole networks, images in and classes out: binary ones against the float and int8 ones that they replace."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import onnx
import whole_networks
from contest import Contest, compete
from peers import Call, onnxruntime, openvino
from process import in_process, progress
from settings import Found, Settings
from tables import Table, times

from binarize_onnx import Config, convert
from sections.layers import (
    ONE_THREAD,
    ORT_FLOAT,
    ORT_INT8,
    OURS,
    OV_FLOAT,
    OV_INT8,
    against_peers,
    faster_peer,
    threads_in_words,
    warmed,
)

MEANING = (
    "An image of 224 x 224 in, 1000 classes out, float32, batch 1; random weights (`benchmarks/whole_networks.py`). "
    "Microseconds, medians; behind each peer how many times faster the binary network is than the float or int8 one "
    "that it replaces. The first and the last layer of every binary network and the 1x1 shortcuts of Bi-Real-18 are "
    "float, as published; in the rows with int8 edges, `convert --edges int8` has quantized them. The peers' int8 is "
    "onnxruntime's static quantization of the float network, in both runtimes."
)


@dataclass(frozen=True)
class Race:
    """A binary network and the float one that it replaces, both of `whole_networks`.

    `edges` is what `convert --edges` makes of the layers that stay float.
    """

    title: str
    binary: str
    replaced: str
    replaced_title: str
    edges: Literal["float", "int8"] = "float"


RACES = (
    Race("Bi-Real-18", "bi-real-18", "resnet-18", "ResNet-18"),
    Race("Bi-Real-18, int8 edges", "bi-real-18", "resnet-18", "ResNet-18", "int8"),
    Race("Bi-Real-18's plan, W1A4", "w1a4-18", "resnet-18", "ResNet-18"),
    Race("ReActNet-A", "reactnet-a", "mobilenet-v1", "MobileNetV1"),
    Race("ReActNet-A, int8 edges", "reactnet-a", "mobilenet-v1", "MobileNetV1", "int8"),
)


def measure(settings: Settings, threads: int = 1) -> Found:
    """Every race."""
    return [
        in_process(
            "sections.networks:run",
            index,
            str(settings.folder),
            settings.quick,
            threads,
            settings.rounds,
            threads=threads,
        )
        for index in range(1 if settings.quick else len(RACES))
    ]


def run(index: int, folder: str, quick: bool, threads: int, rounds: int) -> Found:
    """One race, in this process."""
    race = RACES[index]
    progress(f"  {race.title}, {threads} thread(s)")
    ours = onnx.load(compiled_file(race, Path(folder)))
    replaced = onnx.load(network_file(race.replaced, Path(folder)))
    calls: dict[str, Call] = {OURS: onnxruntime.call(ours, threads), ORT_FLOAT: onnxruntime.call(replaced, threads)}
    if threads > 1:
        calls[ONE_THREAD] = onnxruntime.call(ours, 1)
    if not quick:
        quantized = onnx.load(network_file(f"{race.replaced}-int8", Path(folder)))
        calls[ORT_INT8] = onnxruntime.call(quantized, threads)
        if openvino.INSTALLED:
            calls |= {OV_FLOAT: openvino.call(replaced, threads), OV_INT8: openvino.call(quantized, threads)}
    return asdict(compete(f"{race.title} against {race.replaced_title}", calls, threads, rounds))


def network_file(name: str, folder: Path) -> Path:
    """The file of a network of `whole_networks`, made when it is first wanted."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        onnx.save(whole_networks.NETWORKS[name](), path)
    return path


def compiled_file(race: Race, folder: Path) -> Path:
    """What our compiler makes of the binary network."""
    path = folder / f"{race.binary}.{race.edges}.bin.onnx"
    if not path.exists():
        samples = {"x": whole_networks.images()} if race.edges == "int8" else None
        source = str(network_file(race.binary, folder))
        onnx.save(convert(source, Config(edges=race.edges), calibration_data=samples).model, path)
    return path


def tables(found: Found, threads: int = 1) -> list[Table]:
    """One table, and the ratios that matter."""
    contests = [Contest(**one) for one in found]
    said = [_conclusion(contest) for contest in contests]
    return [
        against_peers(
            f"Networks, {threads_in_words(threads)}",
            f"{MEANING} {warmed(threads)}",
            "binary against float and int8",
            contests,
            said,
        )
    ]


def _conclusion(contest: Contest) -> str:
    int8 = [peer for peer in (ORT_INT8, OV_INT8) if peer in contest.speedups]
    words = f"{contest.name}: {times(contest.speedups[ORT_FLOAT])} as fast as {ORT_FLOAT}"
    return f"{words}, {times(faster_peer(contest, int8))} as fast as the faster int8." if int8 else f"{words}."
