"""What was done to every layer and why: the data behind `inspect`, `convert --report` and the tables."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass
class Layer:
    """One Conv, ConvTranspose, Gemm or MatMul of the source model.

    Attributes:
        name: the node's name, or its first output where the exporter gave it none.
        op: the ONNX operator.
        status: `binary` if it runs (or, for `inspect`, would run) on bits; otherwise `float`.
        reason: what made it binary and what was fused into it, or why it stays float and what would change that.
        macs: multiply-accumulates for one sample; None where the shapes are unknown.
    """

    name: str
    op: str
    status: Literal["binary", "float"]
    reason: str
    macs: int | None


@dataclass
class SignSite:
    """One activation sign of the source, and what is known of sign(0) there.

    `zero` is `proved` (0 cannot reach it, or the source itself maps 0 to +1) or `assumed` (taken as +1 though the
    source's `Sign` gives 0).
    """

    name: str
    zero: Literal["proved", "assumed"]
    reason: str


@dataclass
class Summary:
    """Totals over the layers; MACs, operations and bytes are for one sample and one file."""

    binary_layers: int
    float_layers: int
    binary_macs: int
    float_macs: int
    ops: float
    bytes_before: int
    bytes_after: int


@dataclass
class Report:
    """Everything `convert` and `inspect` have to say about a model."""

    layers: list[Layer]
    summary: Summary
    signs: list[SignSite] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON types: `layers`, `summary`, `signs`, `notes`."""
        return asdict(self)

    def table(self) -> str:
        """The report for a person: one line a layer, then the totals."""
        rows = [("layer", "op", "runs as", "MACs", "why")]
        rows += [(x.name, x.op, x.status, _count(x.macs), x.reason) for x in self.layers]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = []
        for index, row in enumerate(rows):
            cells = [row[i].rjust(widths[i]) if i == 3 else row[i].ljust(widths[i]) for i in range(4)]
            lines.append("  ".join([*cells, row[4]]).rstrip())
            if index == 0:
                lines.append("  ".join("-" * w for w in widths) + "  ---")
        s = self.summary
        lines += [
            "",
            f"binary layers  {s.binary_layers} of {s.binary_layers + s.float_layers}",
            f"binary MACs    {_count(s.binary_macs)} of {_count(s.binary_macs + s.float_macs)}",
            f"operations     {_count(round(s.ops))}  (binary MACs / 64 + float MACs)",
            f"file size      {_size(s.bytes_before)} -> {_size(s.bytes_after)}"
            + (f"  ({s.bytes_before / s.bytes_after:.1f}x smaller)" if 0 < s.bytes_after < s.bytes_before else ""),
        ]
        assumed = [x.name for x in self.signs if x.zero == "assumed"]
        if assumed:
            lines.append(
                f"sign(0)        taken as +1 at {len(assumed)} of {len(self.signs)} signs: {', '.join(assumed)}"
            )
        lines += [f"note           {note}" for note in self.notes]
        return "\n".join(lines)


def _count(n: int | None) -> str:
    """1234567 → `1.23 M`; unknown → `?`."""
    if n is None:
        return "?"
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= scale:
            return f"{n / scale:.3g} {unit}"
    return str(n)


def _size(n: int) -> str:
    """Bytes in the unit a person would choose: 1234567 → `1.23 MB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= scale:
            return f"{n / scale:.3g} {unit}"
    return f"{n} B"
