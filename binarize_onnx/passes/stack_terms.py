"""Compute a sum of binary layers in one node: several weight bases on several planes of bits (ABC-Net).

    before   z = s0 * Conv(b0, W0) + s1 * Conv(b0, W1) + s2 * Conv(b1, W0) + s3 * Conv(b1, W1)
             lowered: a PackSign of x for each b, an XnorConv, a Mul and an Add for each term
    after    z = XnorConv(PackSign(x, [t0, t1]), [W0; W1], combine = identity, scale = [s0; s1; s2; s3])

The node adds its terms from left to right, those of the first plane first, so a sum becomes one where it is written in
that order: additions nested to the left, all bases on one plane before the next. `a + b` is `b + a` in every bit, so
either operand may be the running sum. Of any other sum the longest beginning of that form is taken, and the rest stays
as layers that add what they are given.

All layers of a stack have the same attributes, and the bits that they read are made in the same way: by a PackSign, and
the same pools and Reshape behind it if there are any. These go along: words of several planes are pooled as so many
more channels, and flattened plane after plane. Where the PackSigns read different tensors, a Concat joins their words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from binarize_onnx import opset
from binarize_onnx.bits import WORD, word_count
from binarize_onnx.passes.base import (
    Array,
    Context,
    Pass,
    Skip,
    along_axis,
    constant_value,
    producer,
    record,
    split_operands,
)
from binarize_onnx.passes.fuse_bits import is_bare
from binarize_onnx.passes.fuse_epilogue import SLOTS
from binarize_onnx.passes.lower_layers import insert_pack
from binarize_onnx.passes.packing import Pack, match_pack


@dataclass(frozen=True)
class Term:
    """A binary layer with the factor behind it: `scale` times its dot products, which one addition reads."""

    layer: gs.Node
    scale: Array  # [O]

    @property
    def bits(self) -> gs.Tensor:
        """The packed tensor that the layer reads."""
        return self.layer.inputs[0]

    def has_weights_of(self, other: Term) -> bool:
        """Whether both layers have the same weights."""
        return all(
            np.array_equal(self.layer.inputs[i].values, other.layer.inputs[i].values) for i in (1, SLOTS["mask"])
        )

    def fits(self, other: Term) -> bool:
        """Whether one node can compute both, as far as the layers themselves decide."""
        mine, theirs = self.layer, other.layer
        same = mine.op == theirs.op and mine.attrs == theirs.attrs
        return same and tuple(mine.inputs[1].shape) == tuple(theirs.inputs[1].shape)


@dataclass(frozen=True)
class Way:
    """How a packed tensor comes from floats: a PackSign, and what moves its words behind that."""

    pack: Pack
    steps: tuple[gs.Node, ...]

    def is_parallel_to(self, other: Way, context: Context) -> bool:
        """Whether both do the same to tensors of one shape, but for thresholds and what depends on them."""
        x, y = self.pack.x, other.pack.x
        alike = x is y or (context.shape(x) is not None and context.shape(x) == context.shape(y))
        if not alike or self.pack.axis != other.pack.axis or len(self.steps) != len(other.steps):
            return False
        return all(_does_the_same(a, b) for a, b in zip(self.steps, other.steps, strict=True))


@dataclass(frozen=True)
class Stack:
    """Terms in the order in which one node adds them: `bases` in a row read the same bits.

    `replaced` are the multiplications, additions and layers that the node takes the place of, the last of them the
    addition that makes the sum.
    """

    terms: list[Term]
    bases: int
    replaced: list[gs.Node]

    @property
    def planes(self) -> list[Term]:
        """The first term of each plane."""
        return self.terms[:: self.bases]


class StackTerms(Pass[Stack]):
    """Replace sums of scaled binary layers by one layer each."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._joined: dict[tuple[str, ...], gs.Tensor] = {}  # by the names of what was joined

    def run(self) -> bool:
        """Remember where the layers are: the first of a stack gives it its name."""
        self._position = {node.name: index for index, node in enumerate(self.context.graph.nodes)}
        return super().run()

    def match(self, node: gs.Node) -> Stack | Skip | None:
        """The innermost addition of a sum, of two terms."""
        if node.op != "Add" or node.domain:
            return None
        first, second = (self._term(tensor) for tensor in node.inputs)
        if first is None or second is None:
            return None
        terms, additions = [first, second], [node]
        while (found := self._next_term(additions[-1])) is not None:
            terms.append(found[1])
            additions.append(found[0])
        for count in range(len(terms), 1, -1):
            for ordered in (terms[:count], [second, first, *terms[2:count]]):
                bases = self._bases(ordered)
                if bases is not None:
                    return Stack(ordered, bases, self._replaced(ordered, additions[: count - 1]))
        return None

    def _term(self, tensor: gs.Tensor) -> Term | None:
        """`Mul(layer, constant per channel)` or a bare layer, its result read by one node."""
        maker = producer(tensor)
        if maker is None or self.context.only_consumer(tensor) is None:
            return None
        if maker.op != "Mul" or maker.domain:
            return self._layer(maker, np.ones(1, np.float32))
        operands = split_operands(maker)
        layer = None if operands is None else producer(operands[0])
        if operands is None or layer is None or self.context.only_consumer(operands[0]) is not maker:
            return None
        return self._layer(layer, operands[1])

    def _layer(self, node: gs.Node, factor: Array) -> Term | None:
        """An XNOR layer with constant weights and nothing in its epilogue, and its factor as one value a channel."""
        if node.name not in self.context.binary or node.op not in ("XnorConv", "XnorMatMul") or not is_bare(node):
            return None
        fixed = [constant_value(node.inputs[i]) for i in (1, SLOTS["mask"], SLOTS["combine"])]
        shape = self.context.shape(node.outputs[0])
        if any(values is None for values in fixed) or not node.outputs[1].is_empty() or shape is None:
            return None
        axis = 1 if node.op == "XnorConv" else len(shape) - 1
        scale = along_axis(factor, axis, len(shape))
        if scale is None or scale.dtype != np.float32 or scale.size not in (1, shape[axis]):
            return None
        return Term(node, np.broadcast_to(scale, (shape[axis],)))

    def _next_term(self, addition: gs.Node) -> tuple[gs.Node, Term] | None:
        """The addition that reads the running sum, and the term that it adds."""
        total = addition.outputs[0]
        following = self.context.only_consumer(total)
        if following is None or following.op != "Add" or following.domain:
            return None
        term = self._term(following.inputs[1] if following.inputs[0] is total else following.inputs[0])
        return None if term is None else (following, term)

    def _bases(self, terms: list[Term]) -> int | None:
        """How many terms in a row read the same bits, if bits and weights run as one node runs through them.

        With M such terms, term i reads the bits of term i - i % M and has the weights of term i % M. M is the largest
        that fits: a plane has to be packed, a base costs nothing at run time.
        """
        first = terms[0]
        if not all(first.fits(term) for term in terms[1:]):
            return None
        for bases in range(len(terms), 0, -1):
            if len(terms) % bases or (bases > 1 and first.layer.attrs.get("group", 1) != 1):
                continue
            if all(
                term.bits is terms[i - i % bases].bits and term.has_weights_of(terms[i % bases])
                for i, term in enumerate(terms)
            ) and self._are_planes_of_one(terms[::bases]):
                return bases
        return None

    def _are_planes_of_one(self, terms: list[Term]) -> bool:
        """Whether the bits that the terms read can be planes of one packed tensor."""
        if len(terms) == 1:
            return True
        ways = [_way(term.bits) for term in terms]
        first = ways[0]
        return first is not None and all(way is not None and first.is_parallel_to(way, self.context) for way in ways)

    def _replaced(self, terms: list[Term], additions: list[gs.Node]) -> list[gs.Node]:
        layers = [term.layer for term in terms]
        readers = [self.context.only_consumer(layer.outputs[0]) for layer in layers]
        return [*layers, *(node for node in readers if node is not None and node.op == "Mul"), *additions]

    def rewrite(self, site: Stack) -> None:
        """Insert the layer of all terms under the name of the first in the graph; the others are recorded with it."""
        first, context = site.terms[0].layer, self.context
        convolution = first.op == "XnorConv"
        names = [term.layer.name for term in site.terms]
        name = min(names, key=self._position.__getitem__)
        inputs = list(first.inputs)
        inputs[0] = self._join([term.bits for term in site.planes])
        inputs[1], inputs[SLOTS["mask"]] = self._filters([term.layer for term in site.terms[: site.bases]], name)
        combine = _block_diagonal([term.layer.inputs[SLOTS["combine"]].values for term in site.planes])
        inputs[SLOTS["combine"]] = context.constant(f"{name}.combine", combine)
        scale = np.stack([term.scale for term in site.terms])
        shape = (*scale.shape, 1, 1) if convolution else (scale.shape[0], 1, scale.shape[1])
        inputs[SLOTS["scale"]] = context.constant(f"{name}.scale", scale.reshape(shape))
        output = site.replaced[-1].outputs[0]
        for node in site.replaced:
            node.inputs.clear()
            node.outputs.clear()
        context.insert(
            first.op, inputs, [output, gs.Variable.empty()], name=name, domain=opset.DOMAIN, attrs=first.attrs
        )
        counted = f"planes of bits: {len(site.planes)}, bases of weights: {site.bases}"
        record(context.journal.moved, name, f"one node for {len(names)} layers ({counted})")
        context.journal.stacked |= {other: name for other in names if other != name}

    def _filters(self, layers: list[gs.Node], name: str) -> tuple[gs.Tensor, gs.Tensor]:
        """The weights of all bases, and their mask, base after base."""
        first, context = layers[0], self.context
        axis = 0 if first.op == "XnorConv" else -1
        weights = np.concatenate([layer.inputs[1].values for layer in layers], axis)
        bits = context.constant(f"{name}.bits", weights)
        masks = [layer.inputs[SLOTS["mask"]] for layer in layers]
        if all(mask is masks[0] and mask.shape[axis] == 1 for mask in masks):
            return bits, masks[0]
        full = [np.broadcast_to(mask.values, first.inputs[1].shape) for mask in masks]
        return bits, context.constant(f"{name}.mask", np.concatenate(full, axis))

    def _join(self, planes: list[gs.Tensor]) -> gs.Tensor:
        """One packed tensor with the planes of all; those of one tensor stay that tensor."""
        if len(planes) == 1:
            return planes[0]
        key = tuple(plane.name for plane in planes)
        if key not in self._joined:
            ways = [way for plane in planes if (way := _way(plane)) is not None]
            packs = [way.pack for way in ways]
            joined = self._join_packs(packs) if all(p.x is packs[0].x for p in packs) else self._concatenate(packs)
            for together in zip(*(way.steps for way in ways), strict=True):
                joined = self._join_steps(joined, together)
            self._joined[key] = joined
        return self._joined[key]

    def _join_packs(self, packs: list[Pack]) -> gs.Tensor:
        """A PackSign with the thresholds of all, one after the other."""
        first = packs[0]
        encode = _block_diagonal([pack.encode for pack in packs])
        threshold = _one_after_the_other([(pack.threshold, pack.encode.shape[1]) for pack in packs], first.axis)
        flip = _one_after_the_other([(pack.flip, pack.encode.shape[0]) for pack in packs], first.axis)
        return insert_pack(self.context, first.x, threshold, encode, flip, first.axis, f"{first.x.name}.planes")

    def _concatenate(self, packs: list[Pack]) -> gs.Tensor:
        """The words of packed tensors, one after the other."""
        parts = [pack.node.outputs[0] for pack in packs]
        output = self.context.variable(f"{parts[0].name}.planes", dtype=np.uint32)
        self.context.insert("Concat", parts, [output], attrs={"axis": packs[0].axis})
        return output

    def _join_steps(self, source: gs.Tensor, steps: Sequence[gs.Node]) -> gs.Tensor:
        """A pool or a Reshape of one plane, done to the words of all."""
        first, context = steps[0], self.context
        output = context.variable(f"{first.outputs[0].name}.planes", dtype=np.uint32)
        if first.op == "Reshape":
            shape = np.asarray([-1, len(steps) * int(first.inputs[1].values[1])], np.int64)
            context.insert("Reshape", [source, context.constant(f"{output.name}.shape", shape)], [output])
            return output
        channels = int(first.attrs["channels"])
        lanes = word_count(channels) * WORD
        inverts = [np.broadcast_to(step.inputs[1].values, (channels, 1, 1)) for step in steps]
        invert = np.concatenate([np.pad(values, ((0, lanes - channels), (0, 0), (0, 0))) for values in inverts])
        context.insert(
            "PackedMaxPool",
            [source, context.constant(f"{output.name}.invert", invert)],
            [output],
            domain=opset.DOMAIN,
            attrs={**first.attrs, "channels": invert.size},
        )
        return output


def _way(bits: gs.Tensor) -> Way | None:
    """How one plane comes from floats, None if it is made otherwise."""
    steps: list[gs.Node] = []
    node = producer(bits)
    while node is not None and node.op in ("PackedMaxPool", "Reshape"):
        if constant_value(node.inputs[1]) is None:
            return None
        steps.insert(0, node)
        node = producer(node.inputs[0])
    pack = None if node is None else match_pack(node)
    return None if pack is None else Way(pack, tuple(steps))


def _does_the_same(a: gs.Node, b: gs.Node) -> bool:
    """Whether two pools, or two Reshape, differ at most in what they invert."""
    same_shape = a.op == "PackedMaxPool" or np.array_equal(a.inputs[1].values, b.inputs[1].values)
    return bool(a.op == b.op and a.attrs == b.attrs and same_shape)


def _one_after_the_other(planes: list[tuple[Array, int]], axis: int) -> Array:
    """Fields of PackSign joined on the plane axis; each comes with the number of its planes, which it may broadcast."""
    shape = list(np.broadcast_shapes(*(np.delete(values.shape, axis) for values, _ in planes)))
    full = [np.broadcast_to(values, (*shape[:axis], count, *shape[axis:])) for values, count in planes]
    return np.concatenate(full, axis)


def _block_diagonal(blocks: list[Array]) -> Array:
    """The blocks along the diagonal, zeros beside them."""
    result = np.zeros(np.sum([block.shape for block in blocks], axis=0), np.float32)
    row = column = 0
    for block in blocks:
        result[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return result
