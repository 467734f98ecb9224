"""Convolutions from bits to bits, and how near they come to what the machine can do at most."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import models
import shapes
from ceilings import BUILT_BY, Ceiling, Ceilings, measured
from contest import compete
from peers import onnxruntime
from process import in_process, progress
from settings import Found, LeftOut, Settings
from tables import Row, Table, microseconds, percent

from binarize_onnx import runtime

CHAIN = 8  # nodes in a row
CEILING_OF_ISA = {"avx512vpopcntdq": "popcount", "avx512": "shuffle-avx512", "avx2": "shuffle-avx2"}

CEILINGS = (
    "What one core does at most, measured in the same run: multiply-accumulates of these instructions on registers "
    "alone (`build/ceilings_bench`)."
)
NODES = (
    "One XnorConv, packed bits in and packed bits out, one thread. `a call` is a model of this one node, with what a "
    "call of onnxruntime takes; `a node` one of {chain} in a row, each with weights of its own, as in a network. A "
    "call of onnxruntime that does nothing takes {empty:.1f} µs."
)
SHARES = (
    " The percentages are of the ceiling of {isa}, {rate:.0f} MAC a nanosecond. More than 100 % is no mistake: MACs "
    "are counted as everybody counts them, with those in the padding, which are not computed, and words taken in "
    "pairs need fewer instructions than the ceiling has (docs/kernels.md)."
)


def measure(settings: Settings) -> Found:
    """The ceilings, then every convolution, on the same processor."""
    if not settings.ceilings.exists():
        raise LeftOut(f"the microbenchmark of the ceilings is not built: {BUILT_BY}")
    return in_process("sections.bits:nodes", str(settings.ceilings), settings.quick, settings.rounds)


def nodes(program: str, quick: bool, rounds: int) -> Found:
    """Everything in this process."""
    progress("  ceilings")
    ceilings, found = asdict(measured(Path(program))), []
    empty = compete("empty", {"a call": onnxruntime.call(models.empty(), 1)}, 1, rounds).us["a call"]
    for layer in (shapes.TINY,) if quick else shapes.CONVS:
        progress(f"  {layer.name}, bits to bits")
        calls = {"a call": onnxruntime.call(models.bit_chain(layer, 1), 1)}
        if layer.channels == layer.outputs and layer.stride == 1:
            calls["a node"] = onnxruntime.call(models.bit_chain(layer, CHAIN), 1)
        us = compete(layer.name, calls, 1, rounds).us
        us |= {"a node": us["a node"] / CHAIN} if "a node" in us else {}
        found.append({"name": layer.name, "macs": layer.macs, "us": us})
    return {"isa": runtime.selected_isa(), "ceilings": ceilings, "empty": empty, "nodes": found}


def ceilings_of(found: Found) -> Ceilings:
    """The ceilings as they were measured."""
    rows = tuple(Ceiling(**row) for row in found["ceilings"]["ceilings"])
    return Ceilings(found["ceilings"]["clock"], rows)


def tables(found: Found) -> list[Table]:
    """The ceilings, and the nodes below theirs."""
    ceilings = ceilings_of(found)
    machine: list[Row] = [(c.instructions, f"{c.per_cycle:.0f}", f"{c.per_ns:.0f}") for c in ceilings.ceilings]
    clock = f"The clock: {ceilings.clock:.2f} GHz." if ceilings.clock else "None is measured on this kind of processor."
    ceiling = ceilings.per_ns(CEILING_OF_ISA.get(found["isa"], ""))
    words = NODES.format(chain=CHAIN, empty=found["empty"])
    words += SHARES.format(isa=found["isa"], rate=ceiling) if ceiling else ""
    rows = [(node["name"], *_cells(node, ceiling)) for node in found["nodes"]]
    columns = ("layer", "a call, µs", "of the ceiling", "a node, µs", "of the ceiling")
    return [
        Table("Ceilings, one core", CEILINGS, ("instructions", "MAC a cycle", "MAC a nanosecond"), machine, [clock]),
        Table("Bits to bits, one thread", words, columns, rows),
    ]


def _cells(node: Found, ceiling: float | None) -> list[str]:
    cells: list[str] = []
    for what in ("a call", "a node"):
        us = node["us"].get(what)
        cells.append("–" if us is None else microseconds(us))
        cells.append("–" if us is None or ceiling is None else percent(node["macs"] / (1000 * us * ceiling)))
    return cells
