"""Times taken in turns: every contestant sees the same machine, and ratios are made within a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, log2
from typing import Any

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]  # seconds, [contestants, rounds]; NaN where one sat out

FEWEST_ROUNDS = 50
LONGEST_PAUSE = 16  # a contestant too slow for every round takes part in every 16th at least
WARM_UP_ROUNDS = 20
WARM_UP_SECONDS = 0.1  # and no more calls after that


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Time(Spread):
    """Microseconds a call: the median and the middle half of all rounds."""

    def __str__(self) -> str:
        """The median, and the middle half in brackets."""
        return f"{self.median:.0f} µs  (half of the rounds between {self.lower:.0f} and {self.upper:.0f})"


def time_in_turns(
    calls: Sequence[Callable[[], Any]],
    seconds: float,
    *,
    fewest: int = FEWEST_ROUNDS,
    most: int | None = None,
    shortest: float = 0.0,
    settle: float = 0.0,
) -> Times:
    """Durations of calls, taken in turns and in another order each round, after a warm-up.

    The rounds go on for `seconds`, all contestants together. One that is too slow to take part `fewest` times within
    its share sits out rounds: it takes part in every 2nd, 4th, 8th or 16th. All take part in the first.

    Args:
        calls: the contestants.
        seconds: how long to go on; 0 for `fewest` rounds of everybody, however long that takes.
        fewest: rounds to make, even if that takes longer.
        most: rounds to stop after, even if there is time left.
        shortest: seconds a measurement should last at least; a faster call is repeated, after one that fetches its data
            back into the caches, and the mean is its time.
        settle: seconds of untimed calls before each measurement, until the threads of the contestant before have
            stopped spinning. Waiting instead would let the processors fall asleep: the next calls are slower then.

    Returns:
        Seconds, `[len(calls), rounds]` float64; NaN where a contestant sat out.
    """
    estimates = [_warm_up(call) for call in calls]
    repeats = [max(1, round(shortest / estimate)) for estimate in estimates]
    pauses = _pauses(estimates, seconds, fewest) if seconds else [1] * len(calls)
    fewest = ceil(fewest / min(pauses))
    pauses = [pause // min(pauses) for pause in pauses]
    order = np.random.default_rng(0)
    taken: list[list[float]] = []
    stop = time.perf_counter() + seconds
    while (time.perf_counter() < stop or len(taken) < fewest) and len(taken) != most:
        row = [np.nan] * len(calls)
        for index in order.permutation(len(calls)):
            if len(taken) % pauses[index] == 0:
                row[index] = _measure(calls[index], repeats[index], settle)
        taken.append(row)
    return np.asarray(taken).T


def summary(seconds: Times) -> Time:
    """One contestant's rounds in microseconds."""
    return Time(*_quartiles(seconds * 1e6))


def ratios(baseline: Times, other: Times) -> Spread:
    """How many times faster `other` is: the ratios within the rounds in which both took part."""
    return Spread(*_quartiles(baseline / other))


def rounds(seconds: Times) -> int:
    """In how many rounds a contestant took part."""
    return int(np.count_nonzero(~np.isnan(seconds)))


def _quartiles(values: Times) -> tuple[float, float, float]:
    lower, median, upper = (float(q) for q in np.nanquantile(values, (0.25, 0.5, 0.75)))
    return median, lower, upper


def _warm_up(call: Callable[[], Any]) -> float:
    """Call until caches, threads and clocks have settled; the time of the fastest call."""
    taken: list[float] = []
    while len(taken) < WARM_UP_ROUNDS and sum(taken) < WARM_UP_SECONDS:
        taken.append(_measure(call, 1))
    return max(min(taken), 1e-9)


def _pauses(estimates: Sequence[float], seconds: float, fewest: int) -> list[int]:
    """In every how many rounds each contestant takes part: a power of two, so that slow ones meet."""
    affordable = [seconds / len(estimates) / estimate for estimate in estimates]
    return [min(LONGEST_PAUSE, 2 ** max(0, ceil(log2(fewest / max(a, 1e-9))))) for a in affordable]


def _measure(call: Callable[[], Any], repeats: int, settle: float = 0.0) -> float:
    ready = time.perf_counter() + settle
    if repeats > 1:
        call()
    while time.perf_counter() < ready:
        call()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
