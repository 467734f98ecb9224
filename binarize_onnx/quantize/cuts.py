"""Where two networks are cut: what stands between the layers of a plan, and which tensors cross each cut.

Stage k lies in front of the k-th layer for the quantized network, and right behind it for the float one, which is asked
what that layer answers; stage 0 is in front of everything. What no layer of the plan comes before is the same in both
networks: it belongs to the float one.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from binarize_onnx import shapes
from binarize_onnx.quantize.sites import Site
from binarize_onnx.quantize.stream import outer_reads
from binarize_onnx.verify.graphs import caller_inputs


class Cuts:
    """The cuts of a model in front of each of these layers.

    Attributes:
        nodes: of the model in topological order, the nodes of each layer next to each other.
        sites: the layers, in that order.
        touched: tensors that depend on a layer's output, those outputs included.
        outputs: of the model.
    """

    def __init__(self, model: onnx.ModelProto, sites: Sequence[Site]) -> None:
        self.nodes = _chains_together(model, sites)
        at = {name: index for index, node in enumerate(self.nodes) for name in node.output}
        self.sites = sorted(sites, key=lambda site: at[site.writes[0]])
        self._shapes = shapes.infer(model).stand_in
        self.outputs = [out.name for out in model.graph.output]
        self._given = set(caller_inputs(model))
        self._starts = [0, *(at[site.writes[0]] for site in self.sites), len(self.nodes)]
        self._ends = [0, *(at[site.output] + 1 for site in self.sites), len(self.nodes)]
        self._in_layer = {name for site in self.sites for name in site.writes}
        self.touched: set[str] = set()
        for node in self.nodes:
            if not self._in_layer.isdisjoint(node.output) or not self.touched.isdisjoint(outer_reads(node)):
                self.touched.update(node.output)

    @property
    def last(self) -> int:
        """The number of the stage behind everything."""
        return len(self.sites) + 1

    def float_nodes(self, k: int) -> list[onnx.NodeProto]:
        """What the float network runs between stages k - 1 and k."""
        return self.nodes[self._ends[k - 1] : self._ends[k]]

    def quantized_nodes(self, k: int) -> list[onnx.NodeProto]:
        """What the quantized network runs there behind layer k - 1, without that layer."""
        return [node for node in self.nodes[self._ends[k - 1] : self._starts[k]] if self._is_touched(node)]

    def float_live(self, k: int) -> set[str]:
        """What crosses stage k of the float network's tensors, what the quantized one reads of them included."""
        if k == self.last:
            return set(self.outputs)
        before = self._given.union(*(node.output for node in self.nodes[: self._ends[k]]))
        later = self._read(self.nodes[self._ends[k] :]) | {*self.outputs} | (self._read_later(k) - self.touched)
        return (later | {self.sites[k - 1].output if k else ""}) & before

    def quantized_live(self, k: int) -> set[str]:
        """What crosses stage k of the quantized network's own tensors."""
        if k == self.last:
            return self.touched.intersection(self.outputs)
        before = {name for node in self.nodes[: self._starts[k]] for name in node.output}
        return self._read_later(k) & before & self.touched

    def shortcut(self, k: int) -> str | None:
        """The tensor that is added to what layer k writes, if it is there by then and has lost something."""
        output = self.sites[k - 1].output
        readers = [node for node in self.nodes if output in outer_reads(node)]
        if len(readers) != 1 or readers[0].op_type != "Add" or output in self.outputs:
            return None
        other = next((name for name in readers[0].input if name != output), None)
        return other if other in self.quantized_live(k) and self._are_alike(output, other) else None

    def _are_alike(self, a: str, b: str) -> bool:
        """Whether two tensors are known to have one shape."""
        first, second = self._shapes.get(a), self._shapes.get(b)
        return first is not None and first == second

    def _is_touched(self, node: onnx.NodeProto) -> bool:
        return not self.touched.isdisjoint(node.output)

    def _read_later(self, k: int) -> set[str]:
        """What the quantized network reads from stage k on."""
        rest = [
            node
            for node in self.nodes[self._starts[k] :]
            if self._is_touched(node) and self._in_layer.isdisjoint(node.output)
        ]
        return self._read(rest) | {site.input for site in self.sites[max(k - 1, 0) :]} | {*self.outputs}

    @staticmethod
    def _read(nodes: Sequence[onnx.NodeProto]) -> set[str]:
        return {name for node in nodes for name in outer_reads(node)}


def _chains_together(model: onnx.ModelProto, sites: Sequence[Site]) -> list[onnx.NodeProto]:
    """The model's nodes, what is folded into a layer right behind it: that reads nothing else but constants."""
    chains = {site.writes[0]: site.writes[1:] for site in sites}
    makers = {name: node for node in model.graph.node for name in node.output}
    moved = {name for chain in chains.values() for name in chain}
    ordered: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if moved.isdisjoint(node.output):
            ordered.append(node)
            chain = chains.get(node.output[0], ()) if node.output else ()
            ordered += [makers[name] for name in chain]
    return ordered
