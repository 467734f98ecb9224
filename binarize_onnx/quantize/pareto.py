"""Networks by their time and by what they have lost: the front of those that no other beats in both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal
from xml.sax.saxutils import escape

from binarize_onnx.quantize.drop_bound import Drop, finite
from binarize_onnx.report import printable

Kind = Literal["float", "int8", "mixed"]

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 20, 48
COLOURS: Mapping[Kind, str] = {"float": "#666666", "int8": "#c44e52", "mixed": "#1f77b4"}


@dataclass(frozen=True)
class Point:
    """One network, measured.

    Attributes:
        name: what tables call it.
        kind: `float` and `int8` are the whole network so; `mixed` has layers in binary weights.
        quality: accuracy or agreement in percent, decibels; the squared error as a share where nothing else is known.
        loss: what was lost against the float network on the selection samples, in the unit of quality.
        drop: the same with its bound; None where quality is an error.
        us: microseconds a run.
        speedup: how many times faster than the float network, in the same rounds.
        ops: operations as the literature counts them; an int8 multiply-accumulate counts as one, as a float one does.
        size: bytes of the file.
        forms: `float`, `int8` or a precision, by layer.
    """

    name: str
    kind: Kind
    quality: float
    loss: float
    drop: Drop | None
    us: float
    speedup: float
    ops: float
    size: int
    forms: Mapping[str, str] = field(default_factory=dict)

    def beats(self, other: Point) -> bool:
        """Whether it is at least as good in time and in quality, and better in one."""
        better = self.us < other.us or self.loss < other.loss
        return self.us <= other.us and self.loss <= other.loss and better

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "name": self.name,
            "kind": self.kind,
            "quality": finite(self.quality),
            "loss": finite(self.loss),
            "drop": None if self.drop is None else self.drop.to_json(),
            "us": self.us,
            "speedup": self.speedup,
            "ops": self.ops,
            "bytes": self.size,
            "forms": dict(self.forms),
        }


def front(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats, the fastest first."""
    every = list(points)
    return sorted((p for p in every if not any(q.beats(p) for q in every)), key=lambda p: (p.us, p.loss))


def choose(
    points: Iterable[Point], within: Sequence[Point], order: Callable[[Point], Any]
) -> tuple[Point | None, Point | None]:
    """What to recommend: nothing that int8 beats.

    Args:
        points: every network.
        within: those within the budget.
        order: the first by it is the best.

    Returns:
        The choice, None if nothing is within the budget. It is int8, though that is not within the budget itself, if
        int8 beats everything with binary weights that is: then the best of these comes second, otherwise None.
    """
    eight = next((p for p in points if p.kind == "int8"), None)
    worth = [p for p in within if p.kind != "mixed" or eight is None or not eight.beats(p)]
    outdone = min((p for p in within if p not in worth), key=order, default=None)
    if outdone is not None and eight not in within and not any(p.kind == "mixed" for p in worth):
        return eight, outdone
    return min(worth, key=order, default=None), None


def table(points: Sequence[Point], quality: str, unit: str, chosen: Point | None = None) -> str:
    """The points for a person; those of the front have a mark, and the one that was chosen."""
    best = front(points)
    rows = [("", "network", quality, "lost", "at most", "µs", "faster", "OPs", "bytes")]
    for p in sorted(points, key=lambda p: p.us):
        mark = "chosen" if p is chosen else "front" if p in best else ""
        lost = f"{p.loss:+.2f}" if p.drop else f"{p.loss:.3g}"
        bound = f"{p.drop.bound:+.2f}" if p.drop else "-"
        measured = (f"{p.us:.0f}", f"{p.speedup:.2f}x", f"{p.ops / 1e6:.2f} M", f"{p.size:,}")
        rows.append((mark, p.name, f"{p.quality:.2f}", lost, bound, *measured))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))).rstrip()
        for r in rows
    ]
    sure = {p.drop.confidence for p in points if p.drop}
    least = f"one-sided, {100 * min(sure):g} %" if sure else "one-sided"
    words = f"lost, and lost at most ({least}), in {unit}" if unit else "lost: squared error as a share"
    return "\n".join(printable(line) for line in [*lines, "", words])


def svg(points: Sequence[Point], quality: str, unit: str, chosen: Point | None = None) -> str:
    """Time to the right, what is lost upwards; the front is joined by a line. Plain SVG, without libraries."""
    best = front(points)
    longest = max(p.us for p in points) * 1.05
    losses = [p.loss for p in points if isfinite(p.loss)]  # what has lost everything lies at the upper edge
    low, high = min(0.0, *losses), max(0.0, *losses)
    high = high + 0.05 * (high - low or 1.0)

    def at(us: float, loss: float) -> tuple[float, float]:
        loss = loss if isfinite(loss) else high
        x = LEFT + us / longest * (WIDTH - LEFT - RIGHT)
        return round(x, 1), round(HEIGHT - BOTTOM - (loss - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = at(share * longest, low)[0], at(0, low + share * (high - low))[1]
        parts.append(f'<line x1="{LEFT}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{low + share * (high - low):.3g}</text>')
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{share * longest:.3g}</text>')
    line = " ".join(f"{x},{y}" for x, y in (at(p.us, p.loss) for p in best))
    parts.append(f'<polyline points="{line}" fill="none" stroke="#999999" stroke-dasharray="4 3"/>')
    for p in points:
        x, y = at(p.us, p.loss)
        ring = ' stroke="black" stroke-width="2"' if p is chosen else ""
        words = escape(f"{p.name}: {quality} {p.quality:.2f}, {p.us:.0f} µs")
        parts.append(f'<circle cx="{x}" cy="{y}" r="5" fill="{COLOURS[p.kind]}"{ring}><title>{words}</title></circle>')
        if p.kind != "mixed" or p is chosen:
            parts.append(f'<text x="{x + 8}" y="{y - 6}">{escape("chosen" if p is chosen else p.name)}</text>')
    lost = f"{quality} lost, {unit}" if unit else "squared error"
    middle = (HEIGHT - BOTTOM + TOP) / 2
    turned = f'text-anchor="middle" transform="rotate(-90 14 {middle})"'
    parts.append(f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">microseconds a run</text>')
    parts.append(f'<text x="14" y="{middle}" {turned}>{escape(lost)}</text></svg>')
    return "\n".join(parts) + "\n"
