"""A picture of single layers and the ceilings of the machine, as SVG; the axis is logarithmic."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from math import log10
from typing import Any

import shapes
from sections import bits
from sections.layers import ORT_FLOAT, ORT_INT8, OURS, OV_BINARY

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BELOW = 620, 330, 62, 16, 240, 62  # of the plot, and around it, in pixels
LOW, HIGH = 20.0, 2000.0  # of the axis, MAC a nanosecond
TICKS = (20, 50, 100, 200, 500, 1000, 2000)
BITS_TO_BITS = "binarize-onnx, bits to bits"
COLOURS = {
    BITS_TO_BITS: "#1f5fa8",
    OURS: "#6fa8dc",
    OV_BINARY: "#2f7d3b",
    ORT_INT8: "#d98b1f",
    ORT_FLOAT: "#8a8a8a",
}
LABELS = {OURS: "binarize-onnx, float to float", OV_BINARY: f"{OV_BINARY}, float to float"}
ROOFS = (("int8", "int8"), ("fma-avx512", "float32"))


@dataclass(frozen=True)
class Dot:
    """One layer in one form: multiply-accumulates a nanosecond."""

    series: str
    layer: str
    rate: float


def svg(sections: Any) -> str:
    """Dots of the convolutions of `layers` and `bits`, lines of the ceilings that `bits` measured."""
    found = sections.get("bits", {})
    dots, roofs = _dots(sections), _roofs(found) if "ceilings" in found else []
    width, height = LEFT + WIDTH + RIGHT, TOP + HEIGHT + BELOW
    parts = [_axes(), *(_roof(name, rate) for name, rate in roofs), *(_dot(dot) for dot in dots), _legend(dots)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="{width}" height="{height}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _dots(sections: Any) -> list[Dot]:
    macs = {layer.name: layer.macs for layer in shapes.CONVS}
    contests, nodes = sections.get("layers", []), sections.get("bits", {}).get("nodes", [])
    timed = [
        (series, contest["name"], contest["us"][series])
        for series in (ORT_FLOAT, ORT_INT8, OV_BINARY, OURS)
        for contest in (contests if isinstance(contests, list) else [])
        if series in contest["us"]
    ]
    timed += [(BITS_TO_BITS, node["name"], node["us"].get("a node", node["us"]["a call"])) for node in nodes]
    return [Dot(series, name, macs[name] / (1000 * us)) for series, name, us in timed if name in macs]


def _roofs(found: Any) -> list[tuple[str, float]]:
    ceilings = bits.ceilings_of(found)
    wanted = ((bits.CEILING_OF_ISA.get(found["isa"], ""), "bits"), *ROOFS)
    rates = ((words, ceilings.per_ns(name)) for name, words in wanted)
    return [(words, rate) for words, rate in rates if rate is not None]


def _y(rate: float) -> float:
    share = (log10(rate) - log10(LOW)) / (log10(HIGH) - log10(LOW))
    return TOP + HEIGHT * (1 - min(max(share, 0.0), 1.0))


def _x(layer: str) -> float:
    names = [known.name for known in shapes.CONVS]
    return LEFT + WIDTH * (names.index(layer) + 0.5) / len(names)


def _axes() -> str:
    parts = [f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#888"/>']
    for tick in TICKS:
        y = _y(tick)
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>')
    for layer in shapes.CONVS:
        kind, _, size = layer.name.rpartition(" ")
        for line, words in enumerate((kind, size)):
            y = TOP + HEIGHT + 18 + 15 * line
            parts.append(f'<text x="{_x(layer.name):.1f}" y="{y}" text-anchor="middle">{escape(words)}</text>')
    middle = TOP + HEIGHT // 2
    turned = f'text-anchor="middle" transform="rotate(-90 16 {middle})"'
    parts.append(f'<text x="16" y="{middle}" {turned}>multiply-accumulates a nanosecond</text>')
    return "\n".join(parts)


def _roof(words: str, rate: float) -> str:
    y = _y(rate)
    line = f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#b8431f" stroke-dasharray="6 4"/>'
    said = f"ceiling, {words}: {rate:.0f}"
    return f'{line}\n<text x="{LEFT + WIDTH + 8}" y="{y + 4:.1f}" fill="#b8431f">{escape(said)}</text>'


def _dot(dot: Dot) -> str:
    return f'<circle cx="{_x(dot.layer):.1f}" cy="{_y(dot.rate):.1f}" r="5" fill="{COLOURS[dot.series]}"/>'


def _legend(dots: list[Dot]) -> str:
    """The series from the top down, as they lie in the plot, between the ceilings of bits and int8."""
    shown = [series for series in COLOURS if any(dot.series == series for dot in dots)]
    parts = []
    for index, series in enumerate(shown):
        x, y = LEFT + WIDTH + 14, TOP + 56 + 17 * index
        parts.append(f'<circle cx="{x}" cy="{y}" r="5" fill="{COLOURS[series]}"/>')
        parts.append(f'<text x="{x + 12}" y="{y + 4}">{escape(LABELS.get(series, series))}</text>')
    return "\n".join(parts)
