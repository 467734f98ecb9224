"""What each layer of a network gains from bits, in its place, and which layers are better left float.

Sizes are read from the source, before any pass; how a layer runs, from the graph that the passes leave: a layer in a
chain of bits pays neither for packing nor for floats that nobody reads, and one that leads a chain packs for the layers
that share its bits. So whether a layer pays is judged by its marginal cost, and a chain is not broken for little.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from math import ceil, prod
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from binarize_onnx import cost, opset
from binarize_onnx.gain import KERNELS, Estimate, Placing, Sizes, Target, estimate, real_layer
from binarize_onnx.passes.base import Context, constant_value, producer
from binarize_onnx.passes.fuse_epilogue import SLOTS
from binarize_onnx.reasons import Code
from binarize_onnx.report import Layer

if TYPE_CHECKING:
    from binarize_onnx.pipeline import Config

KEY = "binarize_onnx.slow"

MOST_ROUNDS = 4
# What stands between layers on bits: it moves words, or takes the largest bit of a window.
CARRIERS = ("Concat", "Gather", "PackedMaxPool", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")


def sizes(node: gs.Node, known: cost.KnownShapes, *, of_activations: bool = False) -> Sizes | None:
    """The sizes of a layer of the source; None if one of them, other than the number of samples, is open.

    Args:
        node: a Conv, ConvTranspose, Gemm or MatMul; of other operators nothing is known.
        known: shapes by tensor name.
        of_activations: whether its second operand depends on the inputs of the graph.
    """
    if node.op not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return None
    macs, shapes = cost.macs(node, known), [_shape(t, known) for t in (*node.inputs[:2], node.outputs[0])]
    if not macs or any(shape is None or len(shape) < 2 for shape in shapes):
        return None
    x, w, y = (shape for shape in shapes if shape is not None)
    reads, writes = (_per_sample(shape) for shape in (x, y))
    if not reads or not writes or None in w[1:]:
        return None
    if node.op in ("Gemm", "MatMul"):
        columns = y[-1]
        second = _per_sample(w) if of_activations else 0
        if columns is None or second is None:
            return None
        rows, length = writes // columns, macs // writes
        return Sizes("MatMul", rows, 1, length, 1, columns, macs, reads, writes, second)
    kernel = [d for d in w[2:] if d is not None]
    groups = int(node.attrs.get("group", 1))
    if w[0] is None or w[1] is None or groups < 1 or w[0] % groups or not kernel:
        return None
    if node.op == "Conv":
        filters = w[0] // groups
        return Sizes("Conv", writes // w[0], groups, w[1], prod(kernel), filters, macs, reads, writes)
    strides = [int(s) for s in node.attrs.get("strides", [1] * len(kernel))]
    if min(strides) < 1 or len(strides) != len(kernel):
        return None
    phases, taps = prod(strides), prod(ceil(k / s) for k, s in zip(kernel, strides, strict=True))
    return Sizes(
        "ConvTranspose",
        reads // w[0],
        groups,
        w[0] // groups,
        taps,
        w[1] * phases,
        macs,
        reads,
        writes,
        apart=phases > 1,
    )


def to_metadata(layers: Iterable[Layer]) -> dict[str, str]:
    """The entry for layers that stay float because bits are slower; none if there are no such layers."""
    names = sorted(layer.name for layer in layers if layer.code is Code.SLOWER_ON_BITS)
    return {KEY: json.dumps(names)} if names else {}


def settled(config: Config, text: str) -> Config:
    """The options of a conversion with its verdicts as they were, whatever this version's estimates say.

    Args:
        config: the options that a file records.
        text: its entry of name `KEY`, or `[]`.

    Raises:
        ValueError: the entry is no list of names.
    """
    names = json.loads(text)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"`{KEY}` is no list of names")
    excluded = (*config.nodes_to_exclude, *map(re.escape, names))
    return replace(config, slow_layers="convert", nodes_to_exclude=excluded)


def all_sizes(context: Context) -> dict[str, Sizes]:
    """The sizes of the layers of a source, by name, where they are known."""
    found: dict[str, Sizes] = {}
    varying = {id(tensor) for tensor in context.graph.inputs}
    for node in context.graph.nodes:
        if not node.domain and len(node.inputs) > 1:
            of_layer = sizes(node, context.known, of_activations=id(node.inputs[1]) in varying)
            found |= {node.name: of_layer} if of_layer is not None else {}
        if any(id(tensor) in varying for tensor in node.inputs):
            varying.update(map(id, node.outputs))
    return found


class Judge:
    """Estimates the layers of one graph, and keeps those float that bits would make slower.

    Attributes:
        slow: the layers to leave float, by name, each with a sentence.
        estimates: what binary layers take where they are, or were when they were found slow. Layers that one node
            computes share its time as they would share that of floats.
    """

    def __init__(self, target: Target, *, lenient: bool) -> None:
        self.slow: dict[str, str] = {}
        self.estimates: dict[str, Estimate] = {}
        self._target, self._rounds = target, 0 if lenient else MOST_ROUNDS

    def finds_slow(self, context: Context, sizes_of: Mapping[str, Sizes]) -> bool:
        """Estimate the layers of a packed graph; True if some are to be left float, and the others looked at again.

        Without them their neighbours may lose more, for they pack now. That is looked at so often and no more.
        """
        slow: list[str] = []
        for names, placing in _nodes(context):
            if any(name not in sizes_of for name in names):
                continue
            whole = estimate([sizes_of[name] for name in names], placing, KERNELS[self._target])
            layers = [real_layer(sizes_of[name]) for name in names]
            for name, layer in zip(names, layers, strict=True):
                part = layer / sum(layers)
                self.estimates[name] = Estimate(whole.real * part, whole.binary * part)
            slow += names if whole.is_slow else []
        if not self._rounds:
            return False
        self._rounds -= 1
        self.slow |= {name: self._sentence(self.estimates[name]) for name in slow}
        return bool(slow)

    def note(self, layer: Layer, sizes_of: Mapping[str, Sizes]) -> None:
        """Put into a layer's report what it takes, as float and on bits."""
        found = self.estimates.get(layer.name)
        if found is not None and (layer.status == "binary" or layer.name in self.slow):
            layer.float_us, layer.binary_us = (round(t / 1e3, 1) for t in (found.real, found.binary))
            layer.gain = float(f"{found.gain:.3g}")
        elif layer.status == "float" and layer.name in sizes_of:
            layer.float_us = round(real_layer(sizes_of[layer.name]) / 1e3, 1)

    def _sentence(self, found: Estimate) -> str:
        ours, real = shown_time(found.binary), shown_time(found.real)
        words = f"on bits it takes {ours} and in float32, with its sign, {real} (estimated for {self._target})"
        return f"binary, but {words}; --slow-layers convert lowers it all the same"


def shown_time(nanoseconds: float) -> str:
    """Three digits: `12.3 µs`, `4.56 ms`."""
    us = nanoseconds / 1e3
    return f"{us:.3g} µs" if us < 999.5 else f"{us / 1e3:.3g} ms"


def _nodes(context: Context) -> Iterator[tuple[list[str], Placing]]:
    """The nodes that compute binary layers, each with the names of those layers, its own first."""
    layers = [node for node in context.graph.nodes if node.domain == opset.DOMAIN and node.op in opset.LAYERS]
    makers = {node.name: list(_makers(node)) for node in layers if node.name in context.binary}
    readers = Counter(id(maker) for found in makers.values() for maker in found)
    others: dict[str, list[str]] = defaultdict(list)
    for layer, host in context.journal.stacked.items():
        others[host].append(layer)
    for node in layers:
        if node.name in makers:
            yield [node.name, *others[node.name]], _placing(node, makers[node.name], readers)


def _placing(node: gs.Node, makers: list[gs.Node], readers: Mapping[int, int]) -> Placing:
    packs = [maker for maker in makers if maker.op == "PackSign"]
    share = [1 / readers[id(maker)] for maker in makers]
    packed = [1 / readers[id(maker)] for maker in packs]
    encode = constant_value(packs[0].inputs[2]) if packs else None
    combine, scale = (constant_value(node.inputs[SLOTS[slot]]) for slot in ("combine", "scale"))
    kinds, planes = (1, 1) if combine is None else combine.shape
    outputs = 0 if scale is None else int(scale.shape[1 if node.op == "XnorConv" else 2])
    return Placing(
        filters=outputs // int(node.attrs.get("group", 1)),
        signs=kinds * sum(share) / max(len(makers), 1),
        packed=sum(packed) / max(len(makers), 1),
        to_bits=node.outputs[0].is_empty(),
        thresholds=1 if encode is None else int(encode.shape[1]),
        bits=int(planes // kinds),
        terms=1 if scale is None else int(scale.shape[0]),
    )


def _makers(layer: gs.Node) -> Iterator[gs.Node]:
    """The nodes that make the bits that a layer reads: PackSigns, and layers that write bits."""
    waiting, seen = [t for t in layer.inputs[:2] if not isinstance(t, gs.Constant)], set()
    while waiting:
        node = producer(waiting.pop())
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if node.op in CARRIERS:
            waiting += node.inputs[:1] if node.op != "Concat" else node.inputs
        else:
            yield node


def _shape(tensor: gs.Tensor, known: cost.KnownShapes) -> tuple[int | None, ...] | None:
    return tuple(tensor.shape) if isinstance(tensor, gs.Constant) else known.get(tensor.name)


def _per_sample(shape: tuple[int | None, ...]) -> int | None:
    """Elements, an open first dimension counted as 1; None if another is open."""
    return None if None in shape[1:] else prod(d for d in shape if d is not None)
