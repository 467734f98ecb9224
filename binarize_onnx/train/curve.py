"""The epochs of a training: a line of the log for each, and the learning curve as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from itertools import pairwise
from math import isfinite
from typing import Any

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 64, 28, 48
LOSS, QUALITY = "#1f77b4", "#c44e52"


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to.

    Attributes:
        stage: from 1; `stages` of them.
        stages: how many there are.
        epoch: from 1, over all stages.
        epochs: of all stages together.
        binary_weights: whether weights are binary in this stage, or activations alone.
        loss: the mean over its steps.
        parts: the same of each part of the loss, before it is weighed.
        learning_rate: of its last step.
        metric: what `quality` is: `accuracy`, `agreement`, `psnr` or `error`; empty without validation.
        quality: of the student on the validation samples: percent, dB or a share.
        seconds: that it took.
        left: seconds to the end, as it looks.
    """

    stage: int
    stages: int
    epoch: int
    epochs: int
    binary_weights: bool
    loss: float
    parts: Mapping[str, float] = field(default_factory=dict)
    learning_rate: float = 0.0
    metric: str = ""
    quality: float | None = None
    seconds: float = 0.0
    left: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        """The line of the log."""
        weights = "" if self.binary_weights else ", real weights"
        stage = f"stage {self.stage}/{self.stages}{weights}"
        rate = f"learning rate {self.learning_rate:.2e}"
        head = f"epoch {self.epoch}/{self.epochs} ({stage})  loss {self.loss:.4f}  {rate}"
        quality = "" if self.quality is None else f"  {measured(self.metric, self.quality)}"
        return f"{head}{quality}  {span(self.seconds)}, {span(self.left)} left"


def measured(metric: str, value: float) -> str:
    """`accuracy 87.30 %`."""
    unit = {"accuracy": " %", "agreement": " %", "psnr": " dB"}.get(metric, "")
    return f"{metric} {value:.2f}{unit}"


def span(seconds: float) -> str:
    """`42 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def svg(epochs: Sequence[Epoch], reference: float | None = None) -> str:
    """Epochs to the right, the loss (left axis) and the quality on the validation samples (right axis) upwards.

    A dashed line stands where a stage begins. Plain SVG, without libraries.

    Args:
        epochs: one at least.
        reference: the quality of the float network, drawn as a line.
    """
    losses = [e.loss if isfinite(e.loss) else None for e in epochs]
    qualities = [e.quality if e.quality is not None and isfinite(e.quality) else None for e in epochs]
    most = max(e.epoch for e in epochs)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    ]

    def across(epoch: float) -> float:
        return round(LEFT + (epoch - 1) / max(most - 1, 1) * (WIDTH - LEFT - RIGHT), 1)

    def drawn(values: Sequence[float | None], more: Sequence[float], colour: str, right: bool) -> None:
        """One curve, its axis, and lines for `more`."""
        known = [v for v in values if v is not None]
        if not known:
            return
        low, high = min(*known, *more, known[0]), max(*known, *more, known[0])
        high, low = (high, low) if high > low else (high + 1, low - 1)

        def up(value: float) -> float:
            return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

        for share in (0, 0.25, 0.5, 0.75, 1):
            value = low + share * (high - low)
            x, anchor = (WIDTH - RIGHT + 6, "start") if right else (LEFT - 6, "end")
            parts.append(f'<text x="{x}" y="{up(value) + 4}" text-anchor="{anchor}" fill="{colour}">{value:.3g}</text>')
        for value in more:
            y = up(value)
            parts.append(f'<line x1="{LEFT}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="{colour}"/>')
            parts.append(f'<text x="{LEFT + 4}" y="{y - 4}" fill="{colour}">float network, {value:.2f}</text>')
        points = [(across(e.epoch), up(v)) for e, v in zip(epochs, values, strict=True) if v is not None]
        line = " ".join(f"{x},{y}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.extend(f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>' for x, y in points)

    for share in (0, 0.25, 0.5, 0.75, 1):
        y = round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)
        parts.append(f'<line x1="{LEFT}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="#dddddd"/>')
    for epoch in sorted({1 + round(share * (most - 1)) for share in (0, 0.25, 0.5, 0.75, 1)}):
        place = f'x="{across(epoch)}" y="{HEIGHT - BOTTOM + 16}"'
        parts.append(f'<text {place} text-anchor="middle">{epoch}</text>')
    for before, after in pairwise(epochs):
        if after.stage != before.stage:
            x = across(after.epoch - 0.5)
            dashed = 'stroke="#999999" stroke-dasharray="4 3"'
            parts.append(f'<line x1="{x}" y1="{TOP}" x2="{x}" y2="{HEIGHT - BOTTOM}" {dashed}/>')
    drawn(losses, [], LOSS, right=False)
    drawn(qualities, [] if reference is None else [reference], QUALITY, right=True)
    metric = next((e.metric for e in epochs if e.metric), "")
    parts.append(f'<text x="{LEFT}" y="16" fill="{LOSS}">loss</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="16" text-anchor="end" fill="{QUALITY}">{escape(metric)}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">epoch</text></svg>')
    return "\n".join(parts) + "\n"
