"""Tables as text for a terminal and as Markdown for a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from textwrap import fill

Row = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """What a section shows.

    Attributes:
        title: what is compared, with how many threads.
        meaning: what the numbers are, in a sentence or two.
        header: the names of the columns.
        rows: the cells; the first column is text, the others are numbers.
        conclusions: sentences below the table.
    """

    title: str
    meaning: str
    header: Row
    rows: Sequence[Row]
    conclusions: list[str] = field(default_factory=list)

    def text(self) -> str:
        """For a terminal: columns aligned."""
        widths = [max(len(row[i]) for row in (self.header, *self.rows)) for i in range(len(self.header))]
        lines = [_aligned(row, widths) for row in (self.header, *self.rows)]
        return "\n".join(
            [f"{self.title}\n{self.meaning}", "", *lines, *([""] if self.conclusions else []), *self.conclusions]
        )

    def lines(self) -> list[str]:
        """The rows alone, in Markdown."""
        marks = ["---", *["---:"] * (len(self.header) - 1)]
        return [f"| {' | '.join(row)} |" for row in (self.header, marks, *self.rows)]

    def markdown(self) -> str:
        """For a page: a section of its own."""
        said = [f"* {words}" for words in self.conclusions]
        meaning = fill(self.meaning, 120, break_long_words=False, break_on_hyphens=False)
        blocks = ([f"## {self.title}"], [meaning], self.lines() if self.rows else [], said)
        parts = [line for block in blocks if block for line in ("", *block)][1:]
        return "\n".join(parts) + "\n"


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def microseconds(value: float) -> str:
    """Three digits or more."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def times(ratio: float) -> str:
    """`2.6x`."""
    return f"{ratio:.0f}x" if ratio >= 100 else f"{ratio:.1f}x" if ratio >= 10 else f"{ratio:.2f}x"


def percent(share: float) -> str:
    """`88 %`."""
    return f"{100 * share:.0f} %"
