"""Write docs/zoo.md: every network, exporter and optimiser, how many layers are lowered, and whether the file is exact.

PYTHONPATH=.:tests python -m zoo.table
"""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from zoo import EXPORTERS, NETWORKS, OPTIMISERS, network

if TYPE_CHECKING:
    from zoo.cells import Cell

Export = tuple[str, str]

LONGEST = 120  # characters of a broken promise
PAGE = Path(__file__).resolve().parents[2] / "docs" / "zoo.md"

HEAD = """\
# The zoo

Binary networks as their papers' own code writes them in PyTorch, exported to ONNX by both of torch's exporters, then
changed by what people run over such files. For each file: how many of the layers that the paper calls binary are
lowered, and whether the result is exact as [docs/ops.md](ops.md#what-exact-means) defines it: equal to its ideal graph
bit for bit, and the ideal graph equal to the source, layer by layer, up to what rounding explains.

Weights are random, widths and images small; depth, strides, shortcuts, signs, scales and straight-through estimators
are the paper's. The inputs are random numbers, and the same with zeros planted in them that meet the first signs
exactly at their thresholds. The networks are in `tests/zoo`, `tests/test_zoo.py` holds every cell of the tables, and
`PYTHONPATH=.:tests python -m zoo.table` writes this page. Versions are those of the extra `zoo` in pyproject.toml.
"""


def main() -> None:
    """Compute every cell and write the page."""
    found = compute({(name, exporter): OPTIMISERS for name in NETWORKS for exporter in EXPORTERS})
    PAGE.write_text(page({export: future.result() for export, future in found.items()}))


def compute(wanted: Mapping[Export, Sequence[str]]) -> dict[Export, Future[dict[str, Cell]]]:
    """The cells of these exports by optimiser, computed one export a core."""
    from zoo.cells import cells

    pool = ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"))
    found = {export: pool.submit(cells, *export, optimisers) for export, optimisers in wanted.items()}
    pool.shutdown(wait=False)
    return found


def page(columns: Mapping[Export, Mapping[str, Cell]]) -> str:
    """The page that holds these cells."""
    lines = [HEAD]
    for exporter in EXPORTERS:
        lines += [f"## {exporter}\n", _row(["network", *OPTIMISERS]), _row(["---"] * (1 + len(OPTIMISERS)))]
        for name in NETWORKS:
            shown = (show(columns[name, exporter][optimiser]) for optimiser in OPTIMISERS)
            lines.append(_row([network(name).title, *shown]))
        lines.append("")
    short = [
        f"* {network(name).title}, {exporter}, {optimiser}: {shortfall(columns[name, exporter][optimiser])}"
        + (f" ({network(name).remark})" if network(name).remark else "")
        for exporter in EXPORTERS
        for name in NETWORKS
        for optimiser in OPTIMISERS
        if not columns[name, exporter][optimiser].well
    ]
    lines += ["## What falls short\n", *(short or ["Nothing."]), "", "## Papers\n"]
    lines += [f"* {network(name).title}: {network(name).paper}" for name in NETWORKS]
    return "\n".join(lines) + "\n"


def show(cell: Cell) -> str:
    """A cell of the table."""
    exact = "differs" if cell.broken else "exact"
    return f"{cell.found}/{cell.expected} {exact}" if cell.found else f"0/{cell.expected}"


def shortfall(cell: Cell) -> str:
    """What a cell lacks, in words."""
    words = [text if len(text) <= LONGEST else f"{text[:LONGEST]}…" for text in cell.broken]
    if cell.found != cell.expected and set(cell.reasons) <= {"float-layer"}:
        words.insert(
            0, f"{cell.found} layers where the paper has {cell.expected}: joined by the optimiser, all lowered"
        )
    elif cell.found != cell.expected:
        codes = ", ".join(f"{number} {code}" for code, number in sorted(cell.reasons.items()))
        words.insert(0, f"{cell.found} of {cell.expected} layers lowered; float layers: {codes}")
    return "; ".join(words)


def printed(text: str) -> dict[tuple[str, str, str], str]:
    """The cells of a page, by title, exporter and optimiser."""
    found: dict[tuple[str, str, str], str] = {}
    for exporter, table in re.findall(r"^## (\w+)\n\n(\|.*?)\n\n", text, re.MULTILINE | re.DOTALL):
        header, _, *rows = ([part.strip() for part in line.strip("|").split("|")] for line in table.splitlines())
        for title, *shown in rows:
            found |= {(title, exporter, opt): text for opt, text in zip(header[1:], shown, strict=True)}
    return found


def _row(parts: Iterable[str]) -> str:
    return f"| {' | '.join(parts)} |"


if __name__ == "__main__":
    main()
