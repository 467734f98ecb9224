"""Question 3: is the ideal graph the source? Layer by layer, every piece fed with the source's own tensors.

What a piece of the ideal graph computes from the source's tensors is compared with what the source has there:

    |computed - source| <= 4 * 2^-24 * sum of |terms|

and a sign may differ only where the source is that close to the threshold. The sums of |terms| come from the pieces of
both graphs (`terms`), so a rounding counts at its full size on either side.

A source that keeps its scales in the weights rounds every partial sum, and equal magnitudes round the same way again
and again: its own error may exceed 4 roundings, as may that of a BatchNormalization. So a float tensor counts as wrong
only if all the roundings that there are do not explain it (`Pieces.roundings`); both counts are reported.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from binarize_onnx.verify.arrays import Array, Arrays, difference
from binarize_onnx.verify.graphs import has_signs_inside, is_sign, pruned, writers
from binarize_onnx.verify.pieces import Pieces
from binarize_onnx.verify.results import Flip, SignRow, TensorRow
from binarize_onnx.verify.session import Runner
from binarize_onnx.verify.terms import Terms

ROUNDING = 2.0**-24  # of float32, relative
ROUNDINGS = 4  # each at the full size of the sum of |terms|
BOUND = ROUNDINGS * ROUNDING
SHOWN_FLIPS = 10  # for each sign


class TeacherForcing:
    """Every piece of the ideal graph, fed with the source's tensors, against the source.

    Attributes:
        read_from_reference: the inner tensors of the source that `compare` needs.
        rows: the findings so far, one a tensor or sign that both graphs have, in topological order.
        notes: signs that cannot be compared.
    """

    def __init__(self, ideal: onnx.ModelProto, reference: onnx.ModelProto) -> None:
        in_source = writers(reference)
        shared = [name for name in writers(ideal) if name in in_source]
        types = Runner(reference, shared).types
        self.read_from_reference = [name for name in shared if types[name] == "tensor(float)"]
        common = set(self.read_from_reference)
        self._pieces = pieces = Pieces(ideal, common)
        self._thresholds = {t.name: numpy_helper.to_array(t) for t in ideal.graph.initializer}

        self.rows: list[TensorRow | SignRow] = []
        self.notes: list[str] = []
        wanted, summed = [], []
        for name, node in pieces.nodes.items():
            if has_signs_inside(node):
                self.notes.append(
                    f"`{name}` comes from binary layers inside {node.op_type}: they are not compared alone"
                )
                continue
            if name not in types:
                if is_sign(node):
                    self.notes.append(f"sign `{name}` has no counterpart in the reference: it is not compared")
                continue
            if types[name] != "tensor(float)":
                continue
            self.rows.append(SignRow(name) if is_sign(node) else TensorRow(name))
            wanted.append(pieces.computed(name))
            # What decides the row: the tensor itself, or what the sign reads. If a piece computes it, it has |terms|.
            tensor, decisive = (node.input[0], pieces.data_of(name)) if is_sign(node) else (name, pieces.computed(name))
            if tensor in pieces.nodes and decisive not in pieces.fed:
                wanted.append(decisive)
                summed.append(tensor)
        self._values = Runner(pruned(pieces.model, wanted)) if wanted else None
        both = [pieces, Pieces(reference, common)]
        self._terms = Terms(both, summed)
        self._roundings = {row.name: max(ROUNDINGS, *(p.roundings(row.name) for p in both)) for row in self.rows}

    def compare(self, feed: Mapping[str, Array], source: Arrays, start: int) -> None:
        """One batch: what the models are fed with, what the source computed, and how many samples came before."""
        known = {**feed, **source}
        values = self._values.run(known) if self._values else {}
        terms = self._terms.run(known)
        for row in self.rows:
            computed, expected = values[self._pieces.computed(row.name)], source[row.name]
            row.elements += expected.size
            if isinstance(row, SignRow):
                self._compare_sign(row, computed, expected, known | values, terms, start)
            else:
                sums = terms.get(row.name, np.abs(expected))
                _compare_tensor(row, computed, expected, sums, self._roundings[row.name])

    def _compare_sign(
        self, row: SignRow, computed: Array, expected: Array, known: Arrays, terms: Arrays, start: int
    ) -> None:
        node = self._pieces.nodes[row.name]
        zeros = (expected == 0) & bool(_low_value(node) == -1)
        differs = (expected != computed) & ~zeros
        row.zeros += int(np.count_nonzero(zeros))
        if not np.any(differs):
            return
        tensor, data = node.input[0], self._pieces.data_of(row.name)
        x = known[tensor if tensor in known else data]
        margin, threshold = _margin(node, x, self._thresholds.get(node.input[1]))
        bound = np.zeros(margin.shape)  # of a sign that reads the source's own tensor: nothing excuses it
        if data not in self._pieces.fed and tensor in terms:
            bound += BOUND * (terms[tensor] + np.where(np.isfinite(threshold), np.abs(threshold), 0))
        inside = differs & (margin <= bound)
        row.flips_inside += int(np.count_nonzero(inside))
        row.flips_outside += int(np.count_nonzero(differs & ~inside))
        for where in (differs & ~inside, inside):
            for index in np.argwhere(where)[:SHOWN_FLIPS]:
                at = tuple(int(i) for i in index)
                row.flips.append(Flip((at[0] + start, *at[1:]) if at else at, float(margin[at]), float(bound[at])))
        row.flips.sort(key=lambda flip: flip.margin <= flip.bound)
        del row.flips[SHOWN_FLIPS:]


def _compare_tensor(row: TensorRow, computed: Array, expected: Array, terms: Array, roundings: int) -> None:
    if computed.shape != expected.shape:
        row.max_diff, row.outside, row.beyond = np.inf, row.outside + expected.size, row.beyond + expected.size
        return
    if not expected.size:
        return
    error, rounding = difference(computed, expected), ROUNDING * terms.astype(np.float64)
    row.outside += _count_above(error, ROUNDINGS * rounding)
    row.beyond += _count_above(error, roundings * rounding)
    at = np.unravel_index(int(np.argmax(error)), error.shape)
    if error[at] > row.max_diff or row.bound == 0:
        row.max_diff, row.bound = float(error[at]), float(ROUNDINGS * rounding[at])


def _count_above(error: Array, bound: Array) -> int:
    """Errors above their bound; any error is above a bound that is no number."""
    return int(np.count_nonzero((error > 0) & ~(error <= bound)))


def _margin(sign: NodeProto, x: Array, threshold: Array | None) -> tuple[Array, Array]:
    """How far each value is from the (nearest) threshold, and that threshold; NaN if it is only known at run time."""
    if threshold is None:
        return np.full(x.shape, np.nan), np.zeros(())
    t = threshold.astype(np.float64)
    if sign.op_type == "BinarySign":
        return np.abs(x - t), t
    levels = t.reshape(t.shape[0], *(1,) * (x.ndim - t.ndim + 1), *t.shape[1:])
    distance = np.abs(x[None] - levels)
    nearest = distance.argmin(axis=0)[None]
    chosen = np.take_along_axis(np.broadcast_to(levels, distance.shape), nearest, axis=0)
    return np.take_along_axis(distance, nearest, axis=0)[0], chosen[0]


def _low_value(sign: NodeProto) -> int:
    """What a clear bit of the sign stands for; levels count from 0."""
    return next((int(a.i) for a in sign.attribute if a.name == "x_low"), 0)
