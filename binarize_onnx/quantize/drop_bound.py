"""How much accuracy a changed model has lost, with a one-sided confidence bound that holds for every sample size.

Both models see the same samples, so the drop in accuracy is (lost - gained) / samples: those that only the first
model gets right, less those that only the second does. With p and r for the probabilities of the two, the bound is the
largest drop d = p - r that a test does not refuse (R. L. Berger, D. D. Boos, "P values maximized over a confidence set
for the nuisance parameter", JASA 89, 1994):

1. p + r lies in its Clopper-Pearson interval, but for SPENT of the chance to be wrong;
2. d is refused if lost - gained, or less, has at most the rest of that chance for every such p + r.

The chance in 2 is that of a trinomial, summed exactly. It falls with p and rises with r, so over a short piece of the
line p - r = d it is at most what it is at the smallest p with the largest r: pieces cover the line, halved where they
are too coarse to tell. No step approximates; what is lost to the pieces makes the bound wider, never too low.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import ceil, floor, isfinite, sqrt
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
SPENT = 0.08  # of the chance to be wrong, on the interval of p + r
HALVINGS = 8  # of the line within it, at most
STEPS = 20  # of bisection: a drop to a ten-thousandth of a point

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Drop:
    """What is lost between two models on the same samples.

    Attributes:
        samples: how many there are.
        lost: those that the first model alone gets right, or does better on.
        gained: those that the second alone does.
        drop: what is lost on these samples, in `unit`; negative where something was gained.
        unit: `points` (percentage points), or `dB` where quality is no share.
        error: the standard error of a drop in dB.
        confidence: of the bound, one-sided.
    """

    samples: int
    lost: int
    gained: int
    drop: float
    unit: Literal["points", "dB"] = "points"
    error: float = 0.0
    confidence: float = CONFIDENCE

    @property
    def bound(self) -> float:
        """What is lost at most on samples of the same kind: exact in points, that of the normal distribution in dB."""
        if self.unit == "dB":
            return self.drop + NormalDist().inv_cdf(self.confidence) * self.error
        return 100 * upper_bound(self.lost, self.gained, self.samples, self.confidence)

    @property
    def least(self) -> float:
        """What is lost at least: the bound of what is gained, and as sure as `bound`."""
        if self.unit == "dB":
            return self.drop - NormalDist().inv_cdf(self.confidence) * self.error
        return -100 * upper_bound(self.gained, self.lost, self.samples, self.confidence)

    def to_json(self) -> dict[str, Any]:
        """The fields by name, and the bound; None for what is not finite."""
        return {key: finite(value) for key, value in {**asdict(self), "bound": self.bound}.items()}


def finite(value: Any) -> Any:
    """The value, or None for a number that JSON does not have."""
    return None if isinstance(value, float) and not isfinite(value) else value


def drop(before: Flags, after: Flags, confidence: float = CONFIDENCE) -> Drop:
    """The drop from one model to another.

    Args:
        before: bool [samples], which samples the first model gets right.
        after: bool [samples], the same of the second.
        confidence: of the bound.
    """
    lost, gained = int(np.sum(before & ~after)), int(np.sum(after & ~before))
    return Drop(before.size, lost, gained, 100 * (lost - gained) / before.size, confidence=confidence)


@lru_cache(maxsize=1024)
def upper_bound(lost: int, gained: int, samples: int, confidence: float = CONFIDENCE) -> float:
    """The largest drop, between -1 and 1, that the counts do not refuse.

    Args:
        lost: samples that the first model alone gets right.
        gained: samples that the second alone gets right.
        samples: all of them, at least 1.
        confidence: the chance, at least, that the drop on all samples of this kind is not above the bound.
    """
    wrong = 1 - confidence
    refused = wrong * (1 - SPENT)
    difference = lost - gained
    interval = clopper_pearson(lost + gained, samples, wrong * SPENT)

    def possible(d: float) -> bool:
        """Whether some p + r in the interval leaves a chance to a drop of d."""
        pieces = [(max(interval[0], abs(d)), interval[1], 0)]
        while pieces:
            least, most, halved = pieces.pop()
            p, r = (least + d) / 2, (most - d) / 2
            if least > most or chance_of_at_most(difference, samples, p, min(r, 1 - p)) <= refused:
                continue
            if halved == HALVINGS or chance_of_at_most(difference, samples, (most + d) / 2, r) > refused:
                return True
            middle = (least + most) / 2
            pieces += [(least, middle, halved + 1), (middle, most, halved + 1)]
        return False

    return _last(possible, difference / samples, 1.0)


def smallest_bound(samples: int, confidence: float = CONFIDENCE) -> float:
    """The bound for a model that gets right what the other does: with so few samples none is lower without luck."""
    return upper_bound(0, 0, samples, confidence)


def clopper_pearson(count: int, samples: int, wrong: float) -> tuple[float, float]:
    """The interval of a probability, seen `count` times of `samples`; it is wrong with a chance of `wrong` at most."""

    def at_most(p: float) -> bool:
        """Whether so few are no surprise for p."""
        return chance_of_at_most(count, samples, p, 0.0) > wrong / 2

    def at_least(q: float) -> bool:
        """Whether so many are no surprise for 1 - q."""
        return chance_of_at_most(samples - count, samples, q, 0.0) > wrong / 2

    seen = count / samples
    return 1 - _last(at_least, 1 - seen, 1.0), _last(at_most, seen, 1.0)


def chance_of_at_most(difference: int, samples: int, p: float, r: float) -> float:
    """The chance that lost - gained is `difference` or less, for the probabilities p of losing and r of gaining."""
    together = p + r
    if together <= 0:
        return float(difference >= 0)
    q = p / together  # of those that change, the share that is lost
    reach = 10 * sqrt(samples * together * max(1 - together, 0.0)) + 50  # what lies beyond has no 1e-16 of the chance
    first = max(0, floor(samples * together - reach))
    last = min(samples, ceil(samples * together + reach))
    changed = np.arange(first, last + 1)
    most = (difference + changed) // 2  # of so many that change, how many may be lost
    # P(Bin(m + 1, q) <= k) = P(Bin(m, q) <= k) - q P(Bin(m, q) = k): from one number of changes to the next
    steps = -q * _binomial(changed[:-1], most[:-1], q)
    steps += np.where(most[1:] > most[:-1], _binomial(changed[1:], most[1:], q), 0.0)
    k = np.arange(0, min(most[0], first) + 1)
    start = float(np.sum(_binomial(np.full(k.size, first), k, q)))
    chances = np.clip(start + np.concatenate(([0.0], np.cumsum(steps))), 0.0, 1.0)
    return float(np.sum(_binomial(np.full(changed.size, samples), changed, together) * chances))


def _binomial(n: npt.NDArray[np.int64], k: npt.NDArray[np.int64], p: float) -> Floats:
    """The chance of k among n, 0 where k is not between 0 and n."""
    inside = (k >= 0) & (k <= n)
    n, k = np.where(inside, n, 0), np.where(inside, k, 0)
    factorials = _log_factorials(int(n.max(initial=0)))
    logs = factorials[n] - factorials[k] - factorials[n - k]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = logs + np.where(k > 0, k * np.log(p), 0.0) + np.where(n > k, (n - k) * np.log1p(-min(p, 1.0)), 0.0)
    return np.where(inside, np.exp(logs), 0.0)


@lru_cache(maxsize=4)
def _table(size: int) -> Floats:
    return np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, size + 1)))))


def _log_factorials(largest: int) -> Floats:
    """The logarithms of 0! to at least largest!; tables of few sizes are kept."""
    return _table(1 << max(10, largest.bit_length()))


def _last(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Where a condition stops to hold that holds at `low`; from above, by bisection."""
    if holds(high):
        return high
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return high
