"""Four of BiBench's scores for a model beside its full-precision form (H. Qin et al., "BiBench: Benchmarking and
Analyzing Network Binarization", ICML 2023), with one member in every mean but that over corruptions:

    1 task         A^b / A
    3 corruption   sqrt(mean over c of (G_c / G^b_c)^2),   G_c = A_clean - A_c
    5 complexity   sqrt((r_c^2 + r_s^2) / 2),   r_c = |M| / ((|M| - |M^|) / 32 + |M^|),   r_s = F / ((F - F^) / 64 + F^)
    6 inference    sqrt(((T / T^b)^2 + (S / S^b)^2) / 2)

A is accuracy, |M| parameters, F operations, T time and S bytes; ^b marks the binary model, ^ what stays in full
precision. The denominators of r_c and r_s are counted in the file instead of taken from a plan: parameters in words of
32 bits, with scales and thresholds, and operations with all planes and bases. Without those it is the formula.

The paper averages over data sets, networks, the corruptions of CIFAR10-C and boards of its own: these numbers are not
comparable to the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

from binarize_onnx.evaluate.complexity import Complexity


@dataclass(frozen=True)
class Score:
    """BiBench's scores of one model against the first; None where something is not known or not defined.

    Attributes:
        task: track 1.
        corruption: track 3, over the corruptions by which both models lose something.
        corruptions: how many these are.
        compression: r_c of track 5.
        speedup_of_operations: r_s of track 5.
        complexity: track 5.
        faster: T / T^b of track 6, the median over rounds.
        smaller: S / S^b of track 6.
        inference: track 6.
    """

    task: float | None
    corruption: float | None
    corruptions: int
    compression: float | None
    speedup_of_operations: float | None
    complexity: float | None
    faster: float | None
    smaller: float
    inference: float | None

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def score(
    accuracies: tuple[float, float] | None,
    gaps: Mapping[str, tuple[float, float]],
    costs: tuple[Complexity, Complexity],
    sizes: tuple[int, int],
    faster: float | None,
) -> Score:
    """The scores; of every pair the first is the full-precision model's.

    Args:
        accuracies: in any unit; None if it is not known what is right.
        gaps: what each corruption costs, by its name, in the same unit.
        costs: operations and parameters.
        sizes: bytes of the files.
        faster: how many times faster the second model is; None if that was not measured.
    """
    lost = [full / binary for full, binary in gaps.values() if full > 0 and binary > 0]
    compression = _ratio(costs[0].parameter_bits, costs[1].parameter_bits)
    operations = None if any(c.uncounted for c in costs) else _ratio(costs[0].ops, costs[1].ops)
    smaller = sizes[0] / sizes[1]
    return Score(
        task=None if accuracies is None else _ratio(accuracies[1], accuracies[0]),
        corruption=_mean(*lost) if lost else None,
        corruptions=len(lost),
        compression=compression,
        speedup_of_operations=operations,
        complexity=None if compression is None or operations is None else _mean(compression, operations),
        faster=faster,
        smaller=smaller,
        inference=None if faster is None else _mean(faster, smaller),
    )


def _ratio(above: float, below: float) -> float | None:
    return above / below if below else None


def _mean(*values: float) -> float:
    """The quadratic mean."""
    return sqrt(sum(value**2 for value in values) / len(values))
