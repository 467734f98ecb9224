"""What was done to every layer and why: the data behind `inspect`, `convert --report` and the tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any, Literal

from binarize_onnx.gates import Gate, at_least, at_most, percent
from binarize_onnx.reasons import Code


@dataclass
class Layer:
    """One Conv, ConvTranspose, Gemm or MatMul of the source model.

    Attributes:
        name: the node's name, or its first output where the exporter gave it none.
        op: the ONNX operator.
        status: `binary` if it runs (or, for `inspect`, would run) on bits; `int8` if what stayed float was quantized;
            otherwise `float`.
        code: why, for machines: one of `reasons.Code`.
        reason: what made it binary and what was fused into it, or why it stays float and what would change that.
        macs: multiply-accumulates for one sample; None where the shapes are unknown.
        gain: how many times faster than float32 it is on bits, as estimated (see `gain`); None where that is unknown,
            and where the layer is not binary.
        float_us: microseconds that it takes in float32, a binary layer with its sign; None where that is unknown.
        binary_us: microseconds that it takes on bits.
        precision: of a layer that was quantized after training: weight bases and activation bits, as `w2a4`.
        error: of such a layer, the squared error of its output as a share of the variance, on the calibration data.
    """

    name: str
    op: str
    status: Literal["binary", "float", "int8"]
    code: Code
    reason: str
    macs: int | None
    gain: float | None = None
    float_us: float | None = None
    binary_us: float | None = None
    precision: str = ""
    error: float | None = None


@dataclass
class SignSite:
    """One activation sign of the source, and what is known of sign(0) there.

    Attributes:
        name: the tensor that the sign computes.
        zero: `proved` (0 cannot reach it, or the source itself maps 0 to one of two values), `counted` (taken as +1
            though the source's `Sign` gives 0, and counted how often on data) or `assumed` (taken as +1, uncounted).
        reason: the same in words.
        zeros: of a counted sign, how many of the values that reached it were 0.
        elements: of a counted sign, how many values reached it.
    """

    name: str
    zero: Literal["proved", "counted", "assumed"]
    reason: str
    zeros: int | None = None
    elements: int | None = None


@dataclass
class Summary:
    """Totals over the layers; MACs, operations and bytes are for one sample and one file.

    Layers of int8 edges count among those that are float. `gain` is that of all layers with known sizes together, float
    ones included, on `target`; None if no binary layer has known sizes.
    """

    binary_layers: int
    float_layers: int
    binary_macs: int
    float_macs: int
    ops: float
    bytes_before: int
    bytes_after: int
    gain: float | None = None
    target: str = ""

    @property
    def binary_share(self) -> float | None:
        """Binary MACs as a share of all MACs that are known; None if none are."""
        known = self.binary_macs + self.float_macs
        return self.binary_macs / known if known else None


@dataclass
class EdgeEffect:
    """What int8 edges do to one output, on the samples that they were calibrated on.

    Attributes:
        output: its name.
        samples: how many there were.
        max_diff: the largest absolute difference from the same model with float edges.
        agreement: the share of samples that keep their class; None if the output is not [samples, classes].
    """

    output: str
    samples: int
    max_diff: float
    agreement: float | None

    def __str__(self) -> str:
        """The effect in words."""
        kept = "" if self.agreement is None else f"; {percent(self.agreement)} keep their class"
        return f"`{self.output}` moves by up to {self.max_diff:.3g} on {self.samples} samples{kept}"


@dataclass
class Report:
    """Everything `convert` and `inspect` have to say about a model."""

    layers: list[Layer]
    summary: Summary
    signs: list[SignSite] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    int8: list[EdgeEffect] = field(default_factory=list)
    post_training: list[str] = field(default_factory=list)  # what it does to each output, in words

    def add_int8(self, names: Iterable[str], effects: list[EdgeEffect], bytes_after: int) -> None:
        """These layers are int8 now, with this effect and size of the model."""
        quantized = set(names)
        for layer in self.layers:
            if layer.name in quantized:
                layer.status, layer.code = "int8", Code.INT8_EDGE
                layer.reason += "; quantized by onnxruntime, with ranges from the data given"
        self.int8, self.summary.bytes_after = effects, bytes_after
        if not quantized:
            self.notes.append("--edges int8: no float layer with constant weights is left to quantize")

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON types: `layers`, `summary`, `signs`, `notes`, `int8`, `post_training`."""
        found = asdict(self)
        for layer in found["layers"]:
            layer["code"] = str(layer["code"])
        for effect in found["int8"]:
            effect["max_diff"] = effect["max_diff"] if isfinite(effect["max_diff"]) else None
        return found

    def gates(
        self,
        *,
        min_binary_macs: float | None = None,
        max_size: int | None = None,
        max_sign_zeros: float | None = None,
    ) -> list[Gate]:
        """What the caller demands of the conversion; None demands nothing.

        Args:
            min_binary_macs: the share of the MACs that is binary, between 0 and 1, layers of unknown size left out.
            max_size: bytes of the converted model as one file.
            max_sign_zeros: the share of 0, between 0 and 1, among the values that reach any one sign.
        """
        gates, s = [], self.summary
        if min_binary_macs is not None:
            unknown = sum(x.macs is None for x in self.layers)
            share = s.binary_share
            if share is None:
                found = "no layer has a known number of MACs (--input-shape may settle it)"
            else:
                found = f"{percent(share)} of the MACs are binary"
                found += f" ({unknown} layers of unknown size left out)" if unknown else ""
            gates.append(at_least("min-binary-macs", share, min_binary_macs, found, percent))
        if max_size is not None:
            found = f"the model takes {s.bytes_after} bytes"
            gates.append(at_most("max-size", s.bytes_after, max_size, found, lambda limit: f"{limit} bytes"))
        if max_sign_zeros is not None:
            rate, found = self._most_zeros()
            gates.append(at_most("max-sign-zeros", rate, max_sign_zeros, found, percent))
        return gates

    def _most_zeros(self) -> tuple[float | None, str]:
        """The largest share of 0 at any sign, None where a sign was not counted; and the same in words."""
        uncounted = [x.name for x in self.signs if x.zero == "assumed"]
        if uncounted:
            return None, f"the zeros of sign `{uncounted[0]}` were not counted"
        shares = [(x.zeros / x.elements, x) for x in self.signs if x.zeros is not None and x.elements]
        if not shares:
            return 0.0, "no sign can see 0"
        share, worst = max(shares, key=lambda found: found[0])
        return share, f"sign `{worst.name}` saw 0 for {worst.zeros} of {worst.elements} values ({percent(share)})"

    def table(self) -> str:
        """The report for a person: one line a layer, one a sign if zeros were counted, then the totals."""
        lines = [*_aligned(self.rows(), right={4, 5}), ""]
        signs = self.sign_rows()
        if len(signs) > 1:
            lines += [*_aligned(signs, right={2, 3}), ""]
        lines += [f"{name:<13}  {value}" for name, value in self.totals()]
        return "\n".join(printable(line) for line in lines)

    def rows(self) -> list[tuple[str, ...]]:
        """The layers as lines of a table, its header first."""
        rows: list[tuple[str, ...]] = [("layer", "op", "runs as", "code", "MACs", "gain", "why")]
        rows += [
            (x.name, x.op, x.status, str(x.code), shown_count(x.macs), _shown_gain(x), x.reason) for x in self.layers
        ]
        return rows

    def totals(self) -> list[tuple[str, str]]:
        """What there is to say about the model as a whole: pairs of name and value."""
        s = self.summary
        smaller = f"  ({s.bytes_before / s.bytes_after:.1f}x smaller)" if 0 < s.bytes_after < s.bytes_before else ""
        pairs = [
            ("binary layers", f"{s.binary_layers} of {s.binary_layers + s.float_layers}"),
            ("binary MACs", f"{shown_count(s.binary_macs)} of {shown_count(s.binary_macs + s.float_macs)}"),
            ("operations", f"{shown_count(round(s.ops))}  (binary MACs / 64 + float MACs)"),
            *self._gain(),
            ("file size", f"{shown_size(s.bytes_before)} -> {shown_size(s.bytes_after)}{smaller}"),
        ]
        pairs += [("int8 edges", f"{effect}; outputs are no longer those of the source") for effect in self.int8]
        pairs += [("post-training", effect) for effect in self.post_training]
        taken = [x for x in self.signs if x.zero != "proved"]
        if taken:
            signs = f"{len(taken)} of {len(self.signs)} signs"
            names = [x.name + (f" ({x.zeros} of {x.elements})" if x.zero == "counted" else "") for x in taken]
            pairs.append(("sign(0)", f"taken as +1 at {signs}{self._zeros()}: {', '.join(names)}"))
        return [*pairs, *(("note", note) for note in self.notes)]

    def _gain(self) -> list[tuple[str, str]]:
        """What all layers gain together, if that is known."""
        if self.summary.gain is None:
            return []
        unknown = sum(x.float_us is None for x in self.layers)
        without = f", without {unknown} of unknown size" if unknown else ""
        return [
            ("gain", f"{self.summary.gain:.2f}x  (all layers together, estimated for {self.summary.target}{without})")
        ]

    def _zeros(self) -> str:
        """What was counted at all signs together, as a part of a sentence."""
        counted = [(x.zeros, x.elements) for x in self.signs if x.zeros is not None and x.elements is not None]
        if not counted:
            return ""
        zeros, elements = (sum(numbers) for numbers in zip(*counted, strict=True))
        return f", for {zeros} of {elements} values on the data given"

    def sign_rows(self) -> list[tuple[str, ...]]:
        """The signs as lines of a table, its header first; no line if none was counted."""
        rows: list[tuple[str, ...]] = [("sign", "sign(0)", "zeros", "values", "why")]
        if any(x.zero == "counted" for x in self.signs):
            rows += [(x.name, x.zero, _number(x.zeros), _number(x.elements), x.reason) for x in self.signs]
        return rows


def _aligned(rows: list[tuple[str, ...]], right: set[int]) -> list[str]:
    """A table as lines of text, its header underlined; the last column is as long as it likes."""
    columns = range(len(rows[0]) - 1)
    widths = [max(len(row[i]) for row in rows) for i in columns]
    lines = []
    for row in rows:
        cells = [row[i].rjust(widths[i]) if i in right else row[i].ljust(widths[i]) for i in columns]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return [lines[0], "  ".join("-" * w for w in widths) + "  ---", *lines[1:]]


def _shown_gain(layer: Layer) -> str:
    """`11.8x`, `0.6x (slower)`; `?` for a binary layer of unknown sizes."""
    if layer.gain is None:
        return "?" if layer.status == "binary" else ""
    if layer.gain < 1:
        return f"{min(layer.gain, 0.99):.2g}x (slower)"
    return f"{layer.gain:.1f}x" if layer.gain < 100 else f"{layer.gain:.0f}x"


def _number(n: int | None) -> str:
    return "" if n is None else str(n)


def printable(text: str) -> str:
    """One line of text for a terminal, a log or XML: control characters that names in a model may have are replaced."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def shown_count(n: int | None) -> str:
    """1234567 → `1.23 M`; unknown → `?`."""
    return "?" if n is None else _in_units(n, ("k", "M", "G", "T")) or str(n)


def shown_size(n: int) -> str:
    """Bytes in the unit a person would choose: 1234567 → `1.23 MB`."""
    return _in_units(n, ("kB", "MB", "GB", "TB")) or f"{n} B"


def _in_units(n: int, units: tuple[str, ...]) -> str:
    """Three digits and a unit; empty below 1000."""
    text = ""
    for power, unit in enumerate(units, start=1):
        scaled = f"{n / 1000**power:.3g}"
        if float(scaled) < 1:  # of the rounded number: 999,999 is 1 M
            break
        text = f"{scaled} {unit}"
    return text
