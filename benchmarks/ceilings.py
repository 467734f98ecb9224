"""The machine's ceilings, as the C++ microbenchmark `custom_ops/cpu/ceilings` measures them."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

BUILT_BY = "cmake -S custom_ops -B build -DBINARIZE_ONNX_BUILD_TESTS=ON && cmake --build build"


@dataclass(frozen=True)
class Ceiling:
    """What one core does at most with some instructions: multiply-accumulates a cycle and a nanosecond."""

    name: str
    per_cycle: float
    per_ns: float
    instructions: str


@dataclass(frozen=True)
class Ceilings:
    """The clock in GHz, None where it is not measured, and the ceilings that this processor has instructions for."""

    clock: float | None
    ceilings: tuple[Ceiling, ...]

    def per_ns(self, name: str) -> float | None:
        """Multiply-accumulates a nanosecond; None where the processor lacks the instructions."""
        return next((c.per_ns for c in self.ceilings if c.name == name), None)


def measured(program: Path) -> Ceilings:
    """Run the microbenchmark."""
    return parsed(subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout)


def parsed(printed: str) -> Ceilings:
    """What the microbenchmark printed; words without tabs say that it measures nothing on this kind of processor."""
    rows = [line.split("\t") for line in printed.splitlines() if "\t" in line]
    if not rows:
        return Ceilings(None, ())
    (_, clock), *others = rows
    return Ceilings(float(clock), tuple(Ceiling(name, float(c), float(ns), how) for name, c, ns, how in others))
