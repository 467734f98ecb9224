"""Count every node that ran to a layer of the model, the same way in the float model and in the converted one.

onnxruntime fuses nodes and puts others in, and the compiler fuses more: a row for each node would compare a convolution
with a convolution that also normalises and packs. So the unit is a **layer with what belongs to it**:

* A layer is a Conv, ConvTranspose, Gemm or MatMul, or the XnorConv or XnorMatMul that it became under the same name.
* What follows a layer counts to it, up to the next layers: normalization, activation, pooling, a residual sum (to the
  last of the layers that meet in it), the sign. Fusion, ours and onnxruntime's, moves work within this span only.
* The exception is the work between floats and the first binary layer behind them. Where the converted model has a
  PackSign, it and whatever leads from it to the layer count to the layer that reads the bits; in the float model, what
  leads from the tensor that PackSign reads to that layer does. Several layers on the same bits: the first of them.
* A layer that writes bits in its own epilogue has the sign in its own span, in both models.
* Layers that the converter computes in one node (`binarize_onnx.stacked`) are one row, under that node's name.
* What onnxruntime puts in to change a layout (ReorderInput, ReorderOutput) counts to what reads the result.

What comes before the first layer is listed by operator, and so is what cannot be traced. Together with the time that
onnxruntime spends between nodes the rows add up to the profiled run.

A residual sum that onnxruntime fuses into an earlier one of its layers counts there: look at both rows then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx
from onnx import NodeProto

from binarize_onnx import opset, stacked
from binarize_onnx.bench.profile import Profile
from binarize_onnx.bench.results import LayerRow
from binarize_onnx.passes.recognise_layers import LAYER_OPS
from binarize_onnx.verify.graphs import reads, writers

BETWEEN = "onnxruntime, between nodes"
# How onnxruntime names what it makes: after the tensor that it writes, or the node that it replaces.
_FUSED = "fused "
_LAYOUT = "_nchwc"
_LONE_NORMALIZATION = "_bn"  # a BatchNormalization alone, done as a convolution
_LAYOUT_CHANGES = ("ReorderInput", "ReorderOutput")
LAYER_KERNELS = frozenset(
    {*LAYER_OPS, "FusedConv", "NhwcFusedConv", "FusedGemm", "FusedMatMul", "FusedMatMulActivation"}
)


@dataclass(frozen=True)
class Owners:
    """The layer that nodes and tensors of a model count to; "" for those before the first layer.

    Attributes:
        nodes: by the name of the node.
        tensors: by what the node writes.
        fused: the layer in front, also where `tensors` gives the one behind: a convolution that onnxruntime fused with
            what follows writes such a tensor, and is still the layer in front.
    """

    nodes: Mapping[str, str]
    tensors: Mapping[str, str]
    fused: Mapping[str, str]


def is_layer(node: NodeProto) -> bool:
    """Whether a row is named after this node."""
    if node.domain == opset.DOMAIN:
        return node.op_type in opset.LAYERS
    return node.domain in ("", "ai.onnx") and node.op_type in LAYER_OPS


def packed_tensors(model: onnx.ModelProto) -> set[str]:
    """The float tensors that PackSign turns into bits."""
    return {n.input[0] for n in model.graph.node if n.domain == opset.DOMAIN and n.op_type == "PackSign"}


def owners(model: onnx.ModelProto, packed: Iterable[str], binary: Iterable[str]) -> Owners:
    """Who owns what in a model, as the module's docstring says.

    Args:
        model: every node named (`with_names`), in topological order.
        packed: tensors that a PackSign reads, here or in the model to compare with.
        binary: names of the layers that are binary, here or there.
    """
    nodes = list(model.graph.node)
    written = writers(model)
    order = {name: index for index, name in enumerate(["", *(node.name for node in nodes if is_layer(node))])}
    in_front: dict[str, str] = {}  # of every node, the last layer before it
    for node in nodes:
        before = [in_front[written[name].name] for name in reads(node) if name in written]
        in_front[node.name] = node.name if is_layer(node) else max(before, key=order.__getitem__, default="")
    by_node = in_front | _fronts(model, set(packed), set(binary), in_front)
    fused = {name: in_front[node.name] for name, node in written.items()}
    tensors = {name: by_node[node.name] for name, node in written.items()}
    return Owners(by_node, tensors, fused)


def rows(baseline: tuple[onnx.ModelProto, Profile], candidate: tuple[onnx.ModelProto, Profile]) -> tuple[LayerRow, ...]:
    """The layers of two models side by side, then what belongs to none of them.

    The models are those that were profiled, every node named.
    """
    packed = packed_tensors(baseline[0]) | packed_tensors(candidate[0])
    binary = {n.name for model, _ in (baseline, candidate) for n in model.graph.node if n.op_type in opset.LAYERS}
    layers = {n.name: n.op_type for model, _ in (candidate, baseline) for n in model.graph.node if is_layer(n)}
    recorded = stacked.read(baseline[0]) | stacked.read(candidate[0])
    together = {layer: node for layer, node in recorded.items() if node in layers}
    binary |= together.keys()
    sides = []
    for model, profile in (baseline, candidate):
        sides.append(_by_owner(owners(model, packed, binary), profile, together))
    order = [n.name for n in baseline[0].graph.node if is_layer(n)]
    order += [name for name in layers if name not in set(order)]
    order = list(dict.fromkeys(together.get(name, name) for name in order))
    in_candidate = {n.name for n in candidate[0].graph.node if n.op_type in opset.LAYERS}
    found = [
        LayerRow(name, layers[name], name in in_candidate, dict(sides[0][0][name]), dict(sides[1][0][name]))
        for name in order
    ]
    for op in sorted({*sides[0][1], *sides[1][1]}):
        mine, theirs = ({op: side[1][op]} if op in side[1] else {} for side in sides)
        found.append(LayerRow("", op, False, mine, theirs))
    between = [profile.total - sum(node.us for node in profile.nodes) for _, profile in (baseline, candidate)]
    found.append(LayerRow("", BETWEEN, False, {BETWEEN: between[0]}, {BETWEEN: between[1]}))
    return tuple(found)


def _by_owner(
    owned: Owners, profile: Profile, together: Mapping[str, str]
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Microseconds by layer and operator, and by operator for what belongs to no layer.

    The layers in `together` count to others.
    """
    ran = {node.name: node for node in profile.graph.node}
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in profile.graph.node:
        for name in node.input:
            readers[name].append(node)
    layers: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    others: dict[str, float] = defaultdict(float)
    for timed in profile.nodes:
        owner = _trace(timed.name, ran, readers, owned, fused=timed.op in LAYER_KERNELS)
        (layers[together.get(owner, owner)] if owner else others)[timed.op] += timed.us
    return layers, others


def _trace(
    name: str,
    ran: Mapping[str, NodeProto],
    readers: Mapping[str, list[NodeProto]],
    owned: Owners,
    *,
    fused: bool = False,
) -> str:
    """The owner of a node of the optimised graph: by its name, by what it writes, by who reads that; "" for none."""
    if name in owned.nodes:
        return owned.nodes[name]
    plain = name.removeprefix(_FUSED).removesuffix(_LAYOUT)
    if plain.endswith(_LONE_NORMALIZATION) and plain not in owned.tensors:
        plain, fused = plain.removesuffix(_LONE_NORMALIZATION), False
    written = (plain, *(ran[name].output if name in ran else ()))
    by_written = owned.fused if fused else owned.tensors
    by_tensor = next((by_written[tensor] for tensor in written if tensor in by_written), None)
    if by_tensor is not None and not (name in ran and ran[name].op_type in _LAYOUT_CHANGES):
        return by_tensor
    for reader in (reader for tensor in written for reader in readers.get(tensor, ())):
        owner = _trace(reader.name, ran, readers, owned, fused=reader.op_type in LAYER_KERNELS)
        if owner:
            return owner
    return by_tensor or ""


def _fronts(model: onnx.ModelProto, packed: set[str], binary: set[str], in_front: Mapping[str, str]) -> dict[str, str]:
    """Nodes on the way from packed tensors to binary layers and nowhere else, each with the first such layer."""
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in reads(node):
            readers[name].append(node)
    ends = packed | {value.name for value in model.graph.output}
    order = [node.name for node in model.graph.node if is_layer(node)]
    leads_to: dict[str, str] = {}  # backwards: everything that reads it leads to binary layers
    for node in reversed(model.graph.node):
        if is_layer(node) or ends.intersection(node.output):
            continue
        targets = [
            reader.name if is_layer(reader) and reader.name in binary else leads_to.get(reader.name)
            for output in node.output
            for reader in readers.get(output, ())
        ]
        known = [target for target in targets if target is not None]
        if known and len(known) == len(targets):
            leads_to[node.name] = min(known, key=order.index)
    # Forwards: behind packed tensors, and behind no layer that is not behind them itself.
    written = writers(model)
    behind = set(packed)
    front: dict[str, str] = {}
    for node in model.graph.node:
        sources = {name for name in reads(node) if name in written and in_front[written[name].name]}
        sources |= behind & reads(node)
        if node.name in leads_to and sources and sources <= behind:
            behind.update(node.output)
            front[node.name] = leads_to[node.name]
    return front
