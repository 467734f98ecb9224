"""The bound of an accuracy drop: its chances are those of a trinomial, and it is wrong as seldom as it says."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest

from binarize_onnx.quantize.drop_bound import chance_of_at_most, clopper_pearson, drop, smallest_bound, upper_bound

RUNS = 100
CHANCES = [(0.0, 0.0), (0.05, 0.0), (0.0, 0.1), (0.1, 0.1), (0.3, 0.2), (0.5, 0.4), (0.7, 0.3), (1.0, 0.0)]


def trinomial(samples: int, lost: int, gained: int, p: float, r: float) -> float:
    rest = samples - lost - gained
    both: float = comb(samples, lost) * comb(samples - lost, gained) * p**lost * r**gained
    return both * max(0.0, 1 - p - r) ** rest


@pytest.mark.parametrize(("p", "r"), CHANCES)
def test_chances_are_those_of_a_trinomial(p: float, r: float) -> None:
    samples = 9
    for difference in range(-samples - 1, samples + 1):
        every = [(b, c) for b, c in product(range(samples + 1), repeat=2) if b + c <= samples and b - c <= difference]
        wanted = sum(trinomial(samples, b, c, p, r) for b, c in every)
        assert chance_of_at_most(difference, samples, p, r) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("confidence", [0.95, 0.995])
@pytest.mark.parametrize(("p", "r"), CHANCES)
def test_the_bound_holds_with_its_confidence_for_every_outcome_of_few_samples(
    p: float, r: float, confidence: float
) -> None:
    samples = 8
    held = sum(
        trinomial(samples, b, c, p, r)
        for b, c in product(range(samples + 1), repeat=2)
        if b + c <= samples and upper_bound(b, c, samples, confidence) >= p - r - 1e-12
    )
    assert held >= confidence


def test_the_bound_holds_in_a_simulation_and_is_not_loose() -> None:
    rng = np.random.default_rng(0)
    samples, p, r = 1000, 0.03, 0.02
    outcomes = [rng.multinomial(samples, [p, r, 1 - p - r]) for _ in range(RUNS)]
    bounds = np.array([upper_bound(int(b), int(c), samples) for b, c, _ in outcomes])
    assert np.mean(bounds < p - r) <= 0.05 + 3 * (0.05 * 0.95 / RUNS) ** 0.5
    normal = 1.645 * ((p + r) / samples) ** 0.5
    assert np.mean(bounds - p + r) < 1.3 * normal  # it costs less than a third of what the samples themselves do


def test_clopper_and_pearson_as_published() -> None:
    assert clopper_pearson(1000, 10000, 0.1)[1] == pytest.approx(0.1051, abs=5e-5)
    assert clopper_pearson(10, 500, 0.1)[1] == pytest.approx(0.0337, abs=5e-5)
    assert clopper_pearson(0, 10000, 0.1) == pytest.approx((0.0, 0.0003), abs=5e-6)


def test_more_lost_more_gained_more_samples() -> None:
    assert upper_bound(10, 0, 500) > upper_bound(5, 0, 500) > upper_bound(5, 3, 500)
    assert smallest_bound(5000) < smallest_bound(500) < smallest_bound(50)
    assert upper_bound(20, 20, 20000) < upper_bound(20, 20, 2000)
    assert upper_bound(7, 0, 7) == 1.0


def test_a_drop_counts_pairs() -> None:
    before = np.array([True] * 90 + [False] * 10)
    after = np.roll(before, 5)  # five of the first are lost, five behind the last are gained
    found = drop(before, after)
    assert (found.lost, found.gained, found.drop) == (5, 5, 0.0)
    assert 0 < found.bound < 12
    assert drop(before, np.zeros(100, bool)).drop == pytest.approx(90)
    most = drop(after, np.zeros(100, bool), 0.9)
    assert 80 < most.least < 90 < most.bound
    assert most.least == -drop(np.zeros(100, bool), after, 0.9).bound
