"""Calls timed in turns, in a process that has a processor for each thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import exp, log

from peers import Call

from binarize_onnx.bench import ratios, summary, time_in_turns

SHORTEST = 4e-3  # seconds of one measurement: faster calls are repeated
# Seconds of untimed calls in front of each measurement: the contestant before has emptied the caches, and threads of
# onnxruntime go on spinning for a while that have nothing to do.
WARM, SETTLE = 3e-3, 0.12


@dataclass(frozen=True)
class Contest:
    """What one layer or network took everybody.

    Attributes:
        name: of the layer or network.
        us: microseconds a call by contestant, medians of all rounds.
        speedups: how many times faster the first contestant is than each other: medians of the ratios of the rounds.
    """

    name: str
    us: dict[str, float]
    speedups: dict[str, float]


def compete(name: str, calls: Mapping[str, Call], threads: int, rounds: int) -> Contest:
    """Time the calls in turns; the first is ours."""
    times = time_in_turns(list(calls.values()), 0.0, fewest=rounds, shortest=SHORTEST, settle=untimed(threads))
    taken = dict(zip(calls, times, strict=True))
    first, *others = taken
    return Contest(
        name,
        {peer: summary(seconds).median for peer, seconds in taken.items()},
        {peer: ratios(taken[peer], taken[first]).median for peer in others},
    )


def untimed(threads: int) -> float:
    """Seconds of calls in front of each measurement."""
    return SETTLE if threads > 1 else WARM


def geometric_mean(values: Iterable[float]) -> float:
    """The mean for ratios."""
    logs = [log(value) for value in values]
    return exp(sum(logs) / len(logs))
