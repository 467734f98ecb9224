"""Gates: a number that was measured, the limit that the caller set, and whether it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from binarize_onnx.errors import GateFailed


@dataclass(frozen=True)
class Gate:
    """One check.

    Attributes:
        name: of the check; that of the option without its dashes.
        limit: what was demanded, inclusive.
        measured: what was found, in the same unit; None where it cannot be measured.
        passed: whether it holds. What is no number never passes.
        message: measurement and limit in words.
    """

    name: str
    limit: float
    measured: float | None
    passed: bool
    message: str

    def __str__(self) -> str:
        """The gate on one line."""
        return f"{self.name}: {self.message}"

    def to_json(self) -> dict[str, Any]:
        """The gate as plain JSON types; a measurement that is no number is null."""
        return {**asdict(self), "measured": self.measured if self.measured is None or isfinite(self.measured) else None}


def at_most(name: str, measured: float | None, limit: float, found: str, show: Callable[[float], str] = str) -> Gate:
    """A gate that holds up to its limit; `found` says in words what was measured, or why it could not be."""
    passed = measured is not None and isfinite(measured) and measured <= limit
    return Gate(name, limit, measured, passed, f"{found}, at most {show(limit)} allowed")


def at_least(name: str, measured: float | None, limit: float, found: str, show: Callable[[float], str] = str) -> Gate:
    """A gate that holds from its limit on; `found` as in `at_most`."""
    passed = measured is not None and isfinite(measured) and measured >= limit
    return Gate(name, limit, measured, passed, f"{found}, at least {show(limit)} demanded")


def require(gates: Iterable[Gate]) -> None:
    """Raise GateFailed, naming every gate that does not hold, what was measured and the limit."""
    failures = [str(gate) for gate in gates if not gate.passed]
    if failures:
        raise GateFailed("; ".join(failures) + ".")


def percent(share: float) -> str:
    """0.125 → `12.5%`, with enough digits to tell a failure from its limit."""
    return f"{100 * share:.15g}%"
