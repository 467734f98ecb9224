"""Names across a graph and the graphs inside its nodes, and branches that are settled before the first sample.

    before   y = If(true) {then: t = Relu(x); out t   else: …}
    after    y = Relu(x)

A graph inside a node (a branch, the body of a loop) reads the tensors around it by name. With every name given once in
the whole model, graphs can be taken out, put back and moved by plain renaming.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

import numpy as np
import onnx
from onnx import AttributeProto, helper, numpy_helper

STANDARD = ("", "ai.onnx")


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that are attributes of the node."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of the graph, and then those of the graphs inside it, each graph whole."""
    yield from graph.node
    for node in graph.node:
        yield from nodes_inside(node)


def nodes_inside(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Every node of the graphs inside a node, nested ones too."""
    for graph in subgraphs(node):
        yield from nodes(graph)


def given(graph: onnx.GraphProto) -> set[str]:
    """The names that the graph itself gives: to its inputs, its constants and what its own nodes write."""
    names = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    return names | {name for node in graph.node for name in node.output} - {""}


def captured(graph: onnx.GraphProto) -> set[str]:
    """What the graph, or one inside it, reads of the graphs around it."""
    read = {value.name for value in graph.output}
    for node in graph.node:
        read.update(node.input)
        for inner in subgraphs(node):
            read |= captured(inner)
    return read - given(graph) - {""}


def all_names(graph: onnx.GraphProto) -> set[str]:
    """Every tensor name in the graph and inside it, given or read."""
    names = given(graph) | {value.name for value in graph.output}
    for node in graph.node:
        names.update(node.input)
        for inner in subgraphs(node):
            names |= all_names(inner)
    return names - {""}


class Names:
    """Names in use; new ones are told apart by a number at their end."""

    def __init__(self, names: Iterable[str]) -> None:
        self._next = dict.fromkeys(names, 1)

    def unused(self, hint: str) -> str:
        """A name that is not in use, the hint itself if it is free; it is in use then."""
        name = hint
        while name in self._next:
            name = f"{hint}.{self._next[hint]}"
            self._next[hint] += 1
        self._next[name] = 1
        return name


def rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give tensors of the graph and of those inside it other names; each name must stand for one tensor."""
    _rename_here(graph, names)
    for node in graph.node:
        for inner in subgraphs(node):
            rename(inner, names)


def make_unique(graph: onnx.GraphProto) -> None:
    """Let no graph inside the graph give a name that is given anywhere else; names of the graph itself stay."""
    taken = Names(given(graph))
    for node in graph.node:
        for inner in subgraphs(node):
            _make_unique(inner, {}, taken)


def _make_unique(graph: onnx.GraphProto, around: Mapping[str, str], taken: Names) -> None:
    """The same for one inner graph; `around` holds the new names of the graphs around it."""
    names = {**around, **{name: taken.unused(name) for name in sorted(given(graph))}}
    _rename_here(graph, names)
    for node in graph.node:
        for inner in subgraphs(node):
            _make_unique(inner, names, taken)


def _rename_here(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give tensors other names wherever the graph's own level speaks of them."""
    for value in chain(graph.input, graph.output, graph.value_info, graph.initializer):
        value.name = names.get(value.name, value.name)
    for annotation in graph.quantization_annotation:
        annotation.tensor_name = names.get(annotation.tensor_name, annotation.tensor_name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def settle_branches(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Put in place of every If with a constant condition the branch that it takes; names must be unique.

    Returns:
        The nodes of the branches that are never taken.
    """
    return _settle(graph, {})


def _settle(graph: onnx.GraphProto, around: Mapping[str, bool]) -> list[onnx.NodeProto]:
    conditions = {**around, **_constant_conditions(graph)}
    never: list[onnx.NodeProto] = []
    kept: list[onnx.NodeProto] = []
    names: dict[str, str] = {}
    waiting = list(graph.node)[::-1]
    while waiting:
        node = waiting.pop()
        branches = _branches(node)
        if branches is None or node.input[0] not in conditions:
            kept.append(node)
            continue
        taken, other = branches if conditions[node.input[0]] else branches[::-1]
        never += nodes(other)
        conditions |= _constant_conditions(taken)
        copies = _hand_over(taken, node, names)
        graph.initializer.extend(taken.initializer)
        graph.value_info.extend(value for value in taken.value_info if value.name not in names)
        waiting += [*copies[::-1], *list(taken.node)[::-1]]
    settled = onnx.GraphProto(node=kept)
    del graph.node[:]
    graph.node.extend(settled.node)
    rename(graph, names)
    inner_graphs = [inner for node in graph.node for inner in subgraphs(node)]
    return [*never, *(node for inner in inner_graphs for node in _settle(inner, conditions))]


def _hand_over(branch: onnx.GraphProto, node: onnx.NodeProto, names: dict[str, str]) -> list[onnx.NodeProto]:
    """Let the branch write what the If wrote: under that name, or over an Identity where that cannot be."""
    written = {name for inner in branch.node for name in inner.output}
    copies = []
    for wanted, value in zip(node.output, branch.output, strict=True):
        if wanted and value.name in written and value.name not in names:
            names[value.name] = names.get(wanted, wanted)  # of a branch inside a branch
        elif wanted:
            copies.append(helper.make_node("Identity", [value.name], [wanted]))
    return copies


def _branches(node: onnx.NodeProto) -> tuple[onnx.GraphProto, onnx.GraphProto] | None:
    """The two branches of an If that is as its operator wants it."""
    graphs = {a.name: a.g for a in node.attribute if a.type == AttributeProto.GRAPH}
    if node.op_type != "If" or node.domain not in STANDARD or len(node.input) != 1:
        return None
    if set(graphs) != {"then_branch", "else_branch"} or len(node.attribute) != len(graphs):
        return None
    if any(g.input or g.sparse_initializer or len(g.output) != len(node.output) for g in graphs.values()):
        return None
    return graphs["then_branch"], graphs["else_branch"]


def _constant_conditions(graph: onnx.GraphProto) -> dict[str, bool]:
    """The single truth values among the graph's constants."""
    inputs = {value.name for value in graph.input}
    tensors = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in inputs}
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in STANDARD and len(node.output) == 1:
            tensors.update((node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value")
    booleans = {name: t for name, t in tensors.items() if t.data_type == onnx.TensorProto.BOOL and _is_single(t)}
    return {name: bool(np.all(numpy_helper.to_array(tensor))) for name, tensor in booleans.items()}


def _is_single(tensor: onnx.TensorProto) -> bool:
    return all(d == 1 for d in tensor.dims) and tensor.data_location != onnx.TensorProto.EXTERNAL
