"""Dead nodes and topological order of a graphsurgeon graph, by loops: graphsurgeon's own recurse a level a node."""

from __future__ import annotations

import onnx_graphsurgeon as gs


class CycleFound(Exception):
    """A node reads, over others, what it writes itself.

    Args:
        node: one node of the cycle.
    """

    def __init__(self, node: gs.Node) -> None:
        self.node = node
        super().__init__(f"cycle through node `{node.name or node.outputs[0].name}`")


def remove_dead_nodes(graph: gs.Graph) -> None:
    """Drop the nodes that no output of the graph needs; graph inputs and subgraphs stay as they are."""
    for given in graph.inputs:
        given.inputs.clear()
    local = _written_here(graph)
    needed: set[int] = set()
    waiting = [node for out in graph.outputs for node in out.inputs]
    while waiting:
        node = waiting.pop()
        if id(node) not in needed:
            needed.add(id(node))
            waiting += _sources(node, local)
    alive = []
    for node in graph.nodes:
        if id(node) in needed:
            alive.append(node)
        else:
            node.inputs.clear()
            node.outputs.clear()
    graph.nodes = alive


def sort(graph: gs.Graph) -> None:
    """Nodes by level, one above the highest level among their sources; within a level as they were met first.

    Raises:
        CycleFound: there is no such order.
    """
    local = _written_here(graph)
    levels: dict[int, int] = {}  # in the order in which they were met, which sorting keeps
    nodes: dict[int, gs.Node] = {}
    open_nodes: set[int] = set()
    for root in graph.nodes:
        stack = [] if id(root) in levels else [(root, iter(sources := _sources(root, local)), sources)]
        open_nodes.update(id(node) for node, _, _ in stack)
        while stack:
            node, remaining, sources = stack[-1]
            following = next((source for source in remaining if id(source) not in levels), None)
            if following is None:
                stack.pop()
                open_nodes.discard(id(node))
                levels[id(node)] = max((levels[id(source)] for source in sources), default=-1) + 1
                nodes[id(node)] = node
            elif id(following) in open_nodes:
                raise CycleFound(following)
            else:
                open_nodes.add(id(following))
                stack.append((following, iter(sources := _sources(following, local)), sources))
    graph.nodes = [nodes[key] for key in sorted(levels, key=levels.__getitem__)]


def cone_by_cone(graph: gs.Graph) -> list[gs.Node]:
    """The nodes of a graph without cycles, sources first, and all that only one node needs right before that node."""
    local = _written_here(graph)
    ordered: dict[int, gs.Node] = {}
    waiting = [*graph.nodes, *(node for out in reversed(graph.outputs) for node in out.inputs)]
    met: set[int] = set()
    while waiting:
        node = waiting[-1]
        if id(node) in met:
            waiting.pop()
            ordered.setdefault(id(node), node)
        else:
            met.add(id(node))
            waiting += [source for source in reversed(_sources(node, local)) if id(source) not in met]
    return list(ordered.values())


def _written_here(graph: gs.Graph) -> dict[str, gs.Tensor]:
    """What the graph's own nodes write, by name: what its subgraphs may read."""
    return {t.name: t for node in graph.nodes for t in node.outputs if not t.is_empty()}


def _sources(node: gs.Node, local: dict[str, gs.Tensor]) -> list[gs.Node]:
    """The nodes of the same graph that the node, or a subgraph of it, reads; each once."""
    read = [t for t in node.inputs if t.name in local]
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            read += [local[name] for name in value._foreign_tensors() if name in local]
    return list({id(source): source for tensor in read for source in tensor.inputs}.values())
