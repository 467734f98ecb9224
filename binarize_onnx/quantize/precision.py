"""How many bits a layer gets: `w2a4` is two bases of binary weights on activations of four bits."""

from __future__ import annotations

import re
from dataclasses import dataclass

from binarize_onnx.errors import UsageError

MOST_BASES = 4
MOST_BITS = 6


@dataclass(frozen=True, order=True)
class Precision:
    """The precision of one layer.

    Attributes:
        bases: how many ±1 weights a real-valued one is made of, each with a scale for every output channel.
        bits: of an activation; it takes 2^bits equally spaced values.

    Raises:
        UsageError: there are no such kernels.
    """

    bases: int
    bits: int

    def __post_init__(self) -> None:
        """Refuse what nothing could run."""
        if not (1 <= self.bases <= MOST_BASES and 1 <= self.bits <= MOST_BITS):
            raise UsageError(
                f"there is no precision of {self.bases} weight bases and {self.bits} activation bits:",
                fix=f"bases go from 1 to {MOST_BASES}, bits from 1 to {MOST_BITS}.",
            )

    @classmethod
    def parse(cls, text: str) -> Precision:
        """The precision that `str` writes.

        Raises:
            UsageError: the text is not of that form.
        """
        found = re.fullmatch(r"w(\d)a(\d)", text.strip().lower())
        if found is None:
            raise UsageError(f"{text!r} is no precision:", fix="write w2a4, say: weight bases and activation bits.")
        return cls(int(found[1]), int(found[2]))

    @property
    def levels(self) -> int:
        """The largest value of an activation in steps, which is also the number of its thresholds."""
        return (1 << self.bits) - 1

    def __str__(self) -> str:
        """`w2a4`."""
        return f"w{self.bases}a{self.bits}"
