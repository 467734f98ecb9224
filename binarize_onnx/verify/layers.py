"""Question 3: is the ideal graph the source? Layer by layer, every piece fed with the source's own tensors.

What a piece of the ideal graph computes from the source's tensors is compared with what the source has there:

    |computed - source| <= (4 * 2^-24 + spread) * sum of |terms|

and a sign may differ only where the source is that close to the threshold. The sums of |terms| come from the pieces of
both graphs (`terms`), so a rounding counts at its full size on either side. Where the source computes in float16, its
roundings are 2^-11. The spread is what the source itself shows of noise in its signs and weights (`spread`): 0 for
clean ±alpha.

A source that keeps its scales in the weights rounds every partial sum, and equal magnitudes round the same way again
and again: its own error may exceed 4 roundings, as may that of a BatchNormalization. So a float tensor counts as wrong
only if all the roundings that there are do not explain it (`Pieces.roundings`); both counts are reported.

The ideal graph may keep a sign that the source only has with a scale, k * ±1: then the layer behind it is fed with the
source's tensor divided by k, and the sign is compared with that (`_stand_ins`).
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import NodeProto

from binarize_onnx.passes.signs import CARRIERS
from binarize_onnx.verify.arrays import Array, Arrays, difference
from binarize_onnx.verify.coverage import Coverage
from binarize_onnx.verify.folding import folded
from binarize_onnx.verify.graphs import (
    are_binary,
    constants,
    has_signs_inside,
    is_layer,
    is_sign,
    layer_weights,
    pruned,
    writers,
)
from binarize_onnx.verify.pieces import Pieces
from binarize_onnx.verify.results import Flip, SignRow, TensorRow
from binarize_onnx.verify.session import Runner
from binarize_onnx.verify.spread import MODERATE, NEAR, STRICT, counted_steps, scaled_signs, sign_noise, weight_spread
from binarize_onnx.verify.terms import Terms

ROUNDINGS = 4  # each at the full size of the sum of |terms|
SINGLE, HALF = "tensor(float)", "tensor(float16)"
ROUNDING = {SINGLE: 2.0**-24, HALF: 2.0**-11}  # relative
SMALLEST = {SINGLE: 0.0, HALF: 2.0**-25}  # absolute: half of float16's smallest step, which ordinary numbers reach
HALF_SUMS = platform.machine() in ("aarch64", "arm64")  # elsewhere onnxruntime sums float16 in float32
SHOWN_FLIPS = 10  # for each sign

# Steps that only move or choose values: the sign behind them is the same on both sides.
_CARRIERS = CARRIERS | {"Pad", "Identity"}


class TeacherForcing:
    """Every piece of the ideal graph, fed with the source's tensors, against the source.

    Args:
        ideal: the ideal graph of the source.
        reference: the source.
        admitted: the spread of weights and signs that the ideal graph was made with.

    Attributes:
        read_from_reference: the inner tensors of the source that `compare` needs.
        rows: the findings so far, one a tensor or sign that both graphs have, in topological order.
        coverage: which bits occurred at every sign.
        notes: signs that cannot be compared.
    """

    def __init__(self, ideal: onnx.ModelProto, reference: onnx.ModelProto, admitted: float = STRICT) -> None:
        reference = folded(reference)
        in_source, in_ideal = writers(reference), writers(ideal)
        self._constants = constants(ideal)
        weights = constants(reference)
        shared = [name for name in in_ideal if name in in_source]
        read = dict.fromkeys([*shared, *(name for node in in_source.values() for name in _way_to(node, in_source))])
        self._types = types = Runner(reference, read).types
        own = {name for name in read if types[name] in ROUNDING}
        common = own.intersection(shared)
        self._source_of, settled = _stand_ins(Pieces(ideal, common, types), in_source, own)
        self.read_from_reference = [name for name in read if name in own]
        in_common = {name: types[name] for name in common} | dict.fromkeys(self._source_of, SINGLE)
        self._pieces = pieces = Pieces(ideal, common | set(self._source_of), in_common)
        self._source_pieces = Pieces(reference, own, types)
        self._admitted = admitted

        self.rows: list[TensorRow | SignRow] = []
        self.notes: list[str] = []
        wanted, summed = [], []
        for name, node in pieces.nodes.items():
            if has_signs_inside(node):
                self.notes.append(
                    f"`{name}` comes from binary layers inside {node.op_type}: they are not compared alone"
                )
                continue
            if is_sign(node):
                wanted.append(pieces.computed(name))
            if name not in common and name not in self._source_of:
                if is_sign(node):
                    self.notes.append(f"sign `{name}` has no counterpart in the reference: it is not compared")
                continue
            self.rows.append(SignRow(name) if is_sign(node) else TensorRow(name))
            wanted.append(pieces.computed(name))
            # What decides the row: the tensor itself, or what the sign reads. If a piece computes it, it has |terms|.
            tensor, decisive = (node.input[0], pieces.data_of(name)) if is_sign(node) else (name, pieces.computed(name))
            if tensor in pieces.nodes and decisive not in pieces.fed:
                wanted.append(decisive)
                summed.append(tensor)
        self._values = Runner(pruned(pieces.model, wanted)) if wanted else None
        self._terms = Terms([pieces, self._source_pieces], summed)
        self._behind = {row.name: pieces.behind(row.name) for row in self.rows}
        self._uneven = {name: _spread_of(pieces, name, in_source, weights, self._constants) for name in common}
        self._noise: dict[str, float] = {}  # of what the source's layers read, by the names of what these compute
        self._noisy = {
            name: in_source[name].input[0]
            for name in common
            if is_layer(in_source[name]) and in_source[name].input[0] in own - common and name not in settled
        }
        self.coverage = Coverage(ideal)

    def compare(self, feed: Mapping[str, Array], source: Arrays, rows: slice) -> None:
        """One batch: what the models are fed with, what the source computed, and which samples of all they are."""
        known = {**feed, **source}
        count = rows.stop - rows.start
        for name, original in self._source_of.items():
            signs = source[original]
            known[name] = scaled_signs(signs, count).astype(np.float32)
        for name, data in self._noisy.items():
            noise = sign_noise(scaled_signs(source[data], count))
            self._noise[name] = max(self._noise.get(name, 0.0), noise)
        self._pieces.learn_shapes(known)
        self._source_pieces.learn_shapes(known)
        values = self._values.run(known) if self._values else {}
        steps = [name for name in self._source_of if _low_value(self._pieces.nodes[name]) == 0]
        if self._values and steps:  # {0, 1} and levels, times a scale, plus an offset
            for name in steps:
                computed = values[self._pieces.computed(name)]
                known[name] = counted_steps(source[self._source_of[name]], computed).astype(np.float32)
            values = self._values.run(known)
        turned = [name for name in self._source_of if self._is_turned(name, values, known)]
        if self._values and turned:  # a negative scale: the sign itself is what the source has the other way round
            known |= {name: -known[name] for name in turned}
            values = self._values.run(known)
        self.coverage.count({name: values[self._pieces.computed(name)] for name in self.coverage.signs})
        terms = self._terms.run(known)
        for row in self.rows:
            computed, expected = values[self._pieces.computed(row.name)], known[row.name]
            row.elements += expected.size
            row.spread = max(row.spread, self._spread(row.name))
            if isinstance(row, SignRow):
                self._compare_sign(row, computed, expected, known | values, terms, rows.start)
            else:
                sums = terms.get(row.name, np.abs(expected))
                self._compare_tensor(row, computed, expected, sums.astype(np.float64))

    def _is_turned(self, name: str, values: Arrays, known: Arrays) -> bool:
        """Whether the source's tensor is mostly the opposite of the ±1 that it stands in for."""
        computed, given = values[self._pieces.computed(name)], known[name]
        if computed.shape != given.shape or _low_value(self._pieces.nodes[name]) != -1:
            return False
        return float(np.sum(computed * np.nan_to_num(given), dtype=np.float64)) < 0

    def _spread(self, name: str) -> float:
        """What signs and weights of the layers behind a tensor deviate in the source, as far as it is admitted."""
        found = 0.0
        for tensor in self._behind[name][0]:
            if self._uneven.get(tensor) is not None:
                both = self._uneven[tensor], self._noise.get(tensor, 0.0)
                admitted = MODERATE if self._types.get(tensor) == HALF else self._admitted
                found = max(found, sum(min(deviation or 0.0, admitted) for deviation in both))
        return found

    def _type(self, name: str) -> str:
        """The coarsest type in which the source computes the piece behind a tensor."""
        return HALF if any(self._types.get(tensor) == HALF for tensor in self._behind[name][0]) else SINGLE

    def _bound(self, name: str, terms: Array, roundings: int, single: int = 0) -> Array:
        """How far so many roundings, `single` ones in float32, and the spread can move each element of a tensor."""
        kind = self._type(name)
        relative = roundings * ROUNDING[kind] + single * ROUNDING[SINGLE] + self._spread(name)
        bound: Array = relative * terms + roundings * SMALLEST[kind]
        return bound

    def _compare_sign(
        self, row: SignRow, computed: Array, expected: Array, known: Arrays, terms: Arrays, start: int
    ) -> None:
        if computed.shape != expected.shape:
            row.flips_outside += expected.size
            return
        node = self._pieces.nodes[row.name]
        with np.errstate(invalid="ignore"):
            distance = np.abs(expected.astype(np.float64) - computed)
            zeros = (np.abs(expected) <= NEAR) & bool(_low_value(node) == -1)
            near = distance <= NEAR  # noise is no flip; NaN is one
        row.zeros += int(np.count_nonzero(zeros))
        row.noise = max(row.noise, float(distance[near].max(initial=0.0)))
        flip = self._constants.get(node.input[2]) if len(node.input) > 2 else None
        plus = computed if flip is None else np.where(flip, _low_value(node), 1)
        differs = np.where(zeros, computed != plus, ~near)  # a 0 of the source counts as +1, and nothing else
        if not np.any(differs):
            return
        tensor, data = node.input[0], self._pieces.data_of(row.name)
        x = known[tensor if tensor in known else data]
        margin, threshold = _margin(node, x, self._constants.get(node.input[1]))
        bound = np.zeros(margin.shape)  # of a sign that reads the source's own tensor: nothing excuses it
        if not self._pieces.is_fed(row.name) and tensor in terms:
            size = terms[tensor].astype(np.float64) + np.where(np.isfinite(threshold), np.abs(threshold), 0)
            bound += self._bound(row.name, size, ROUNDINGS)
        inside = differs & (margin <= bound)
        row.flips_inside += int(np.count_nonzero(inside))
        row.flips_outside += int(np.count_nonzero(differs & ~inside))
        for where in (differs & ~inside, inside):
            for index in np.argwhere(where)[:SHOWN_FLIPS]:
                at = tuple(int(i) for i in index)
                row.flips.append(Flip((at[0] + start, *at[1:]) if at else at, float(margin[at]), float(bound[at])))
        row.flips.sort(key=lambda flip: flip.margin <= flip.bound)
        del row.flips[SHOWN_FLIPS:]

    def _compare_tensor(self, row: TensorRow, computed: Array, expected: Array, terms: Array) -> None:
        if computed.shape != expected.shape:
            row.max_diff, row.outside, row.beyond = np.inf, row.outside + expected.size, row.beyond + expected.size
            row.differing += expected.size
            return
        if not expected.size:
            return
        steps, sums = max((p.roundings(row.name) for p in (self._pieces, self._source_pieces)), key=sum)
        if self._type(row.name) == SINGLE or HALF_SUMS:
            steps, sums = steps + sums, 0
        most = max(ROUNDINGS, steps), sums
        error, bound = difference(computed, expected), self._bound(row.name, terms, ROUNDINGS)
        row.differing += int(np.count_nonzero(error))
        row.outside += _count_above(error, bound)
        row.beyond += _count_above(error, self._bound(row.name, terms, *most))
        at = np.unravel_index(int(np.argmax(error)), error.shape)
        if error[at] > row.max_diff or row.bound == 0:
            row.max_diff, row.bound = float(error[at]), float(bound[at])


def _way_to(layer: NodeProto, in_source: Mapping[str, NodeProto]) -> Iterator[str]:
    """What a layer of the source reads, and what that was carried from; nothing for another node."""
    for name in layer.input[:2] if is_layer(layer) else ():
        while name in in_source:
            yield name
            if in_source[name].op_type not in _CARRIERS:
                break
            name = in_source[name].input[0]


def _stand_ins(pieces: Pieces, in_source: Mapping[str, NodeProto], own: set[str]) -> tuple[dict[str, str], set[str]]:
    """The signs of the ideal graph that the source has with a scale only, and the source's tensors.

        source   S = Mul(Sign(x), k);  P = MaxPool(S);  y = Conv(P, W)
        ideal    b = BinarySign(x);    p = MaxPool(b);  z = Conv(p, ±1);  y = Mul(z, k)         b: S

    Found from the two layers that lead to the same tensor `y`, through steps of one kind on both sides.

    Args:
        pieces: of the ideal graph.
        in_source: who computes each tensor of the source.
        own: tensors of the source that can be read.

    Returns:
        The source's tensor for each such sign, and the outputs of the layers that are fed with one.
    """
    found: dict[str, str] = {}
    settled: set[str] = set()
    for name, layer in in_source.items():
        if not is_layer(layer) or name not in pieces.nodes:
            continue
        layers = pieces.behind(name)[1]
        if len(layers) != 1 or len(layers[0].input) < 2:
            continue
        for side in range(2):
            pairs = _behind_carriers(layer.input[side], layers[0].input[side], in_source, pieces.nodes)
            signs = {ours: theirs for theirs, ours in pairs if ours in pieces.nodes and is_sign(pieces.nodes[ours])}
            if len(signs) == len({ours for _, ours in pairs}) and all(
                theirs in own and ours not in in_source for ours, theirs in signs.items()
            ):
                found |= signs
                settled.add(name)
    return found, settled


def _behind_carriers(
    theirs: str, ours: str, in_source: Mapping[str, NodeProto], in_ideal: Mapping[str, NodeProto]
) -> list[tuple[str, str]]:
    """What two tensors were carried from, pair by pair, as far as the same nodes carry them."""
    waiting, found = [(theirs, ours)], []
    while waiting:
        theirs, ours = waiting.pop()
        one, two = in_source.get(theirs), in_ideal.get(ours)
        if one is None or two is None or one.op_type != two.op_type or one.op_type not in (*_CARRIERS, "Concat"):
            found.append((theirs, ours))
        elif one.op_type == "Concat":
            waiting += zip(one.input, two.input, strict=False)
        else:
            waiting.append((one.input[0], two.input[0]))
    return found


def _spread_of(
    pieces: Pieces, name: str, in_source: Mapping[str, NodeProto], weights: Mapping[str, Array], ideal: Arrays
) -> float | None:
    """The spread of the source's weights that the ideal graph has as ±1; None if `name` is no layer or stays float."""
    if not is_layer(in_source[name]):
        return None
    binary = [_is_binary(layer_weights(layer, ideal)) for layer in pieces.behind(name)[1]]
    if not any(binary):
        return None
    own = layer_weights(in_source[name], weights)
    return 0.0 if own is None else weight_spread(own)


def _is_binary(weights: Array | None) -> bool:
    """Whether weights are ±1 and 0; what is computed at run time may be."""
    return weights is None or are_binary(weights)


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
