"""Layers with each instruction set forced: what a processor without the newest one can expect."""

from __future__ import annotations

from dataclasses import asdict

import models
import shapes
from contest import Contest, compete, geometric_mean
from peers import onnxruntime
from process import in_process, progress
from settings import Found, Settings
from tables import Row, Table, microseconds, times

from binarize_onnx import runtime
from sections.layers import ORT_FLOAT, OURS, compiled_layer

MEANING = (
    "float32 in and float32 out; our kernels forced to an instruction set with `BINARIZE_ONNX_ISA`. Microseconds, and "
    "how many times faster than onnxruntime's float layers on this machine, which use all that it has."
)


def measure(settings: Settings) -> Found:
    """By instruction set, worst first."""
    isas = list(reversed(runtime.available_isas()))
    return {isa: in_process("sections.isas:contests", settings.quick, settings.rounds, isa=isa) for isa in isas}


def contests(quick: bool, rounds: int) -> Found:
    """Every layer against float, in this process."""
    isa = runtime.selected_isa()
    found = []
    for layer in (shapes.TINY,) if quick else shapes.LAYERS:
        progress(f"  {layer.name}, {isa}")
        calls = {
            OURS: onnxruntime.call(compiled_layer(layer), 1),
            ORT_FLOAT: onnxruntime.call(models.float_layer(layer), 1),
        }
        found.append(asdict(compete(layer.name, calls, 1, rounds)))
    return found


def tables(found: Found) -> list[Table]:
    """A column for each instruction set."""
    by_isa = {isa: [Contest(**one) for one in contests] for isa, contests in found.items()}
    cells = [[f"{microseconds(c.us[OURS])} ({times(c.speedups[ORT_FLOAT])})" for c in cs] for cs in by_isa.values()]
    names = [contest.name for contest in next(iter(by_isa.values()))]
    rows: list[Row] = [(name, *(column[i] for column in cells)) for i, name in enumerate(names)]
    means = (f"{isa} {times(geometric_mean(c.speedups[ORT_FLOAT] for c in cs))}" for isa, cs in by_isa.items())
    said = [f"Geometric means of all layers: {', '.join(means)}."]
    return [Table("Instruction sets, one thread", MEANING, ("layer", *by_isa), rows, said)]
