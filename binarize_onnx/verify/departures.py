"""The first tensor that differs, in the order of the reference: of everything that was compared.

Every comparison has its own findings: the file departs from the ideal graph (`exact`), the ideal graph from the source
(`layers`), a candidate of another origin from the reference (`EndToEnd`). A reader asks one question of them all: where
does it begin? There are two answers, the first tensor that is wrong and the first that differs at all, within what
rounding explains.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from binarize_onnx.verify.arrays import Arrays, difference, same_bits
from binarize_onnx.verify.exact import ExactCheck
from binarize_onnx.verify.graphs import is_tensor, writers
from binarize_onnx.verify.layers import TeacherForcing
from binarize_onnx.verify.results import Departure
from binarize_onnx.verify.session import Runner


class EndToEnd:
    """Tensors of one name, in two models of which one was not made from the other, each fed by its own model.

    One flipped sign changes thousands of values behind it, so that only the first difference says something.

    Attributes:
        shared: inner tensors that both models compute, with one type, in the order of the reference.
        first: the first that differs, as far as batches were compared.
    """

    def __init__(self, reference: onnx.ModelProto, candidate: onnx.ModelProto) -> None:
        theirs = writers(candidate)
        names = [name for name in writers(reference) if name in theirs]
        ours, others = Runner(reference, names).types, Runner(candidate, names).types
        self.shared = [name for name in names if ours[name] == others[name] and is_tensor(ours[name])]
        self._writers = writers(reference)
        self._first = len(self.shared)
        self.first: Departure | None = None

    def compare(self, source: Arrays, candidate: Arrays) -> None:
        """One batch of both."""
        for position, name in enumerate(self.shared[: self._first]):
            a, b = source[name], candidate[name]
            if a.shape != b.shape:
                found = f"its shape is {list(a.shape)}, the candidate's {list(b.shape)}"
            elif not np.all(same_bits(a, b)):
                error = difference(a, b)
                found = f"{np.count_nonzero(~same_bits(a, b))} of {a.size} values differ, by up to {error.max():.3g}"
            else:
                continue
            self._first = position
            self.first = Departure(name, _described(self._writers, name), "end to end", False, found)
            return


def departures(
    reference: onnx.ModelProto,
    ideal: onnx.ModelProto | None,
    exact: ExactCheck | None,
    forced: TeacherForcing | None,
    foreign: EndToEnd | None,
) -> Iterator[Departure]:
    """The first difference of every comparison, and the first that no rounding explains, in the reference's order."""
    order = _positions(reference, ideal)
    in_source = writers(reference)
    found: list[Departure] = []
    if exact is not None and exact.found.first_diverging is not None:
        first = exact.found.first_diverging
        of = "its bits differ" if first.kind == "bits" else "it differs"
        words = f"in the candidate {of} at {first.differing} of {first.elements} places, first at {list(first.index)}"
        found.append(Departure(first.name, first.writer, "exact", True, words))
    for beyond in (True, False):
        rows = [r for r in (forced.rows if forced else ()) if (r.beyond if beyond else r.differs)]
        if rows:
            row = min(rows, key=lambda r: order.get(r.name, len(order)))
            writer = _described(in_source, row.name)
            found.append(Departure(row.name, writer, "layers", bool(row.beyond), row.finding))
    if foreign is not None and foreign.first is not None:
        found.append(foreign.first)
    seen: list[tuple[str, str]] = []
    for departure in sorted(found, key=lambda d: order.get(d.name, len(order))):
        if (departure.name, departure.question) not in seen:
            seen.append((departure.name, departure.question))
            yield departure


def _positions(reference: onnx.ModelProto, ideal: onnx.ModelProto | None) -> dict[str, float]:
    """The place of every tensor in the reference; one that only the ideal graph has comes right before the next."""
    order: dict[str, float] = {name: float(i) for i, name in enumerate(writers(reference))}
    waiting: list[str] = []
    for name in writers(ideal) if ideal is not None else ():
        if name not in order:
            waiting.append(name)
            continue
        order |= dict.fromkeys(waiting, order[name] - 0.5)
        waiting.clear()
    return order


def _described(nodes: dict[str, onnx.NodeProto], name: str) -> str:
    node = nodes.get(name)
    return f"{node.op_type} `{node.name}`" if node else "the graph's inputs"
