"""A picture of measurements as SVG: logarithmic panels, and dotted lines of slope 1: linear growth."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT, LEFT, TOP, GAP = 330, 250, 60, 20, 90  # of a panel, and around it, in pixels
COLOURS = ("#1f5fa8", "#b8431f", "#2f7d3b", "#7a4a9c")

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line: its name and its points."""

    name: str
    points: list[Point]


def svg(panels: list[tuple[str, str, list[Series]]]) -> str:
    """Panels side by side, each `(x label, y label, lines)`; those without a line are left out."""
    shown = [panel for panel in panels if any(line.points for line in panel[2])]
    width, height = LEFT + len(shown) * (WIDTH + GAP), TOP + HEIGHT + 50
    body = [_panel(LEFT + i * (WIDTH + GAP), *panel) for i, panel in enumerate(shown)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="{width}" height="{height}" fill="white"/>\n{"".join(body)}</svg>\n'
    )


def _panel(left: int, x_label: str, y_label: str, lines: list[Series]) -> str:
    points = [point for line in lines for point in line.points]
    (x0, x1), (y0, y1) = (_decades([point[axis] for point in points]) for axis in (0, 1))

    def at(point: Point) -> str:
        x = left + WIDTH * (log10(point[0]) - x0) / (x1 - x0)
        y = TOP + HEIGHT * (y1 - log10(point[1])) / (y1 - y0)
        return f"{x:.1f},{y:.1f}"

    parts = [f'<rect x="{left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#888"/>']
    for k in range(x0, x1 + 1):
        x, y = at((10.0**k, 10.0**y0)).split(",")
        parts.append(f'<line x1="{x}" x2="{x}" y1="{TOP}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{10.0**k:g}</text>')
    for k in range(y0, y1 + 1):
        x, y = at((10.0**x0, 10.0**k)).split(",")
        parts.append(f'<line x1="{x}" x2="{left + WIDTH}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{float(y) + 4}" text-anchor="end">{10.0**k:g}</text>')
    for index, line in enumerate(lines):
        colour = COLOURS[index % len(COLOURS)]
        parts.append(_polyline([at(p) for p in line.points], colour))
        parts += [
            f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in (at(p).split(",") for p in line.points)
        ]
        last, linear = line.points[-1], [(p[0], line.points[-1][1] * p[0] / line.points[-1][0]) for p in line.points]
        inside = [at(p) for p in linear if log10(p[1]) >= y0]
        parts.append(_polyline(inside, colour, 'stroke-dasharray="1 4"'))
        x, y = at(last).split(",")
        parts.append(f'<text x="{float(x) + 7}" y="{y}" fill="{colour}">{escape(line.name)}</text>')
    middle = TOP + HEIGHT // 2
    parts.append(f'<text x="{left + WIDTH // 2}" y="{TOP + HEIGHT + 38}" text-anchor="middle">{escape(x_label)}</text>')
    turned = f'text-anchor="middle" transform="rotate(-90 {left - 42} {middle})"'
    parts.append(f'<text x="{left - 42}" y="{middle}" {turned}>{escape(y_label)}</text>')
    return "\n".join(parts) + "\n"


def _decades(values: list[float]) -> tuple[int, int]:
    """The powers of ten around all values."""
    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    return low, max(high, low + 1)


def _polyline(points: list[str], colour: str, more: str = "") -> str:
    return f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="1.5" {more}/>'
