"""How sections measure, and how they say that they cannot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

Found = Any  # of one section: plain JSON types


class LeftOut(Exception):
    """A section cannot be measured here; the message is the plain word that stands in its place."""


@dataclass(frozen=True)
class Settings:
    """How a section measures.

    Attributes:
        rounds: interleaved rounds of every contest.
        quick: one tiny layer in place of all: a try of the benchmark itself.
        folder: where models are kept while it runs.
        ceilings: the microbenchmark of the machine's ceilings.
    """

    rounds: int
    quick: bool
    folder: Path
    ceilings: Path
