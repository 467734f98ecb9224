"""The few figures that the README shows: how many times faster, with one thread and with two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import shapes
from contest import Contest, geometric_mean
from sections.layers import ORT_FLOAT, ORT_INT8, OV_BINARY, OV_INT8, faster_peer
from tables import Table, times

Figure = Callable[[Any], str | None]  # from what `layers` or `networks` found; None where a peer did not take part

FASTER_INT8 = (ORT_INT8, OV_INT8)


def headlines(found: Any) -> Table:
    """One thread from the sections themselves, two from `threads`."""
    one, two = found["sections"], found["sections"].get("threads", {})
    rows = []
    for section, words, figure in FIGURES:
        cells = [figure(runs[section]) if isinstance(runs.get(section), list) else None for runs in (one, two)]
        if any(cells):
            rows.append((words, *(cell or "–" for cell in cells)))
    return Table("", "", ("how many times faster", "one thread", "two threads"), rows)


def mean_of(layers: Sequence[shapes.Layer], peers: Sequence[str]) -> Figure:
    """The geometric mean over some layers against the fastest of some peers, and the least."""

    def figure(section: Any) -> str | None:
        names = {layer.name for layer in layers}
        met = [c for c in _contests(section) if c.name in names and set(peers) & set(c.speedups)]
        if not met:
            return None
        ratios = [faster_peer(contest, peers) for contest in met]
        return f"**{times(geometric_mean(ratios))}** (least {times(min(ratios))})"

    return figure


def of_network(title: str, peers: Sequence[str]) -> Figure:
    """One network against the fastest of some peers."""

    def figure(section: Any) -> str | None:
        met = [c for c in _contests(section) if c.name.startswith(f"{title} against ") and set(peers) & set(c.speedups)]
        return f"**{times(faster_peer(met[0], peers))}**" if met else None

    return figure


def _contests(section: Any) -> list[Contest]:
    return [Contest(**one) for one in section]


FIGURES: tuple[tuple[str, str, Figure], ...] = (
    ("layers", "eight convolutions; in OpenVINO, binary", mean_of(shapes.CONVS, [OV_BINARY])),
    ("layers", "four 3x3 convolutions; in onnxruntime, fp32", mean_of(shapes.SQUARE_3X3, [ORT_FLOAT])),
    ("layers", "four 3x3 convolutions; in onnxruntime, int8", mean_of(shapes.SQUARE_3X3, [ORT_INT8])),
    ("networks", "Bi-Real-18; ResNet-18 in onnxruntime, fp32", of_network("Bi-Real-18", [ORT_FLOAT])),
    ("networks", "Bi-Real-18; ResNet-18, int8 in the faster of both", of_network("Bi-Real-18", FASTER_INT8)),
    (
        "networks",
        "the same plan in W1A4; ResNet-18, int8 in the faster of both",
        of_network("Bi-Real-18's plan, W1A4", FASTER_INT8),
    ),
    ("networks", "ReActNet-A; MobileNetV1, int8 in the faster of both", of_network("ReActNet-A", FASTER_INT8)),
)
