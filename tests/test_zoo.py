"""Published binary networks, as exporters and optimisers leave them: recognised as a whole, lowered exactly.

A cell is one network from one exporter through one optimiser; `docs/zoo.md` shows all of them. Exporters and optimisers
come with the extra `zoo`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING

import pytest
from optimisers import require_tools
from zoo import EXPORTERS, NETWORKS, OPTIMISERS, network, table

if TYPE_CHECKING:
    from zoo.cells import Cell

CELLS = tuple(itertools.product(NETWORKS, EXPORTERS, OPTIMISERS))
TOOLS = ("torch", "onnxconverter_common", "onnxscript", "onnxsim", "onnxslim")
ON_PAGE = table.printed(table.PAGE.read_text())

Cells = Mapping[table.Export, Future[dict[str, "Cell"]]]


@pytest.fixture(scope="session")
def cells(request: pytest.FixtureRequest) -> Cells:
    """The exports that the selected tests read, on their way on all cores."""
    require_tools(*TOOLS)
    wanted: dict[table.Export, list[str]] = {}
    for item in request.session.items:
        if isinstance(item, pytest.Function) and "cells" in item.fixturenames:
            name, exporter, optimiser = (str(item.callspec.params[key]) for key in ("name", "exporter", "optimiser"))
            wanted.setdefault((name, exporter), []).append(optimiser)
    return table.compute(wanted)


@pytest.mark.parametrize(("name", "exporter", "optimiser"), CELLS)
def test_every_binary_layer_is_lowered_and_exact(cells: Cells, name: str, exporter: str, optimiser: str) -> None:
    cell = cells[name, exporter].result()[optimiser]
    assert not cell.broken or network(name).remark, cell.broken  # only with a reason that the page gives
    printed = ON_PAGE[network(name).title, exporter, optimiser]
    assert table.show(cell) == printed, f"docs/zoo.md says {printed!r}; here: {table.shortfall(cell)}"


def test_the_page_has_every_cell() -> None:
    """Titles are read from the page, for without torch the networks have none."""
    titles = list(dict.fromkeys(title for title, _, _ in ON_PAGE))
    assert len(titles) == len(NETWORKS)
    assert list(ON_PAGE) == [(t, e, o) for e in EXPORTERS for t in titles for o in OPTIMISERS]
    for cell, shown in ON_PAGE.items():
        assert re.fullmatch(r"[1-9]\d*/[1-9]\d* (exact|differs)|0/[1-9]\d*", shown), (cell, shown)


def test_the_page_names_every_cell_that_falls_short() -> None:
    text = table.PAGE.read_text()
    for (title, exporter, optimiser), shown in ON_PAGE.items():
        layers, _, exact = shown.partition(" ")
        found, expected = layers.split("/")
        named = f"* {title}, {exporter}, {optimiser}: " in text
        assert named == (found != expected or exact != "exact"), (title, exporter, optimiser, shown)
