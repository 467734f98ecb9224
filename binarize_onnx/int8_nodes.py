"""Which nodes become int8: layers, sums between them, and the activations behind both.

    float    Conv ─► Relu ─► Conv ─► Add ─► Clip ─► Conv            Conv ─► AveragePool ─► PackSign
                      └───────────────┘
    int8     [Conv    Relu   Conv    Add    Clip    Conv]           [Conv]  AveragePool    PackSign

*Layers* are Conv, Gemm and MatMul with constant float32 weights. A *sum* of two tensors is taken along where that saves
conversions between bytes and float32: if layers or other such sums write both its inputs, or write one and read its
result. A Relu, or a Clip around 0, that alone reads the result of a layer or of a sum, is nothing but that result's
range.

Pools, and what only moves elements, stay float: in bytes they make no network measurably faster, and some with bits
in between slower.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from binarize_onnx.verify.graphs import is_standard

LAYERS = ("Conv", "Gemm", "MatMul")
ACTIVATIONS = ("Relu", "Clip")
SUM = "Add"
OP_TYPES = (*LAYERS, *ACTIVATIONS, SUM)
FLOAT_OUTPUTS = ("Gemm", "MatMul")  # their sums go straight to float32: onnxruntime has such kernels for these alone


@dataclass(frozen=True)
class Int8Nodes:
    """Names of the nodes to quantize.

    Attributes:
        layers: in the order of the graph.
        others: sums, and activations.
        results: the tensors that layers and sums write, behind their activations.
    """

    layers: list[str]
    others: list[str]
    results: list[str]


def choose(graph: onnx.GraphProto, kept: Collection[str] = ()) -> Int8Nodes:
    """The nodes of a graph to quantize; those among them that have no name get one.

    Args:
        graph: without functions and branches; what others read of it is an output.
        kept: names of layers that stay float all the same.
    """
    layers = find_layers(graph, kept)
    names = _Names(graph)
    sums = _sums(graph, layers, names)
    others, results = [], []
    for node in [*layers, *sums]:
        if node.op_type == SUM:
            node.name = node.name or f"{node.output[0]}.{SUM}"
            others.append(node.name)
        result = node.output[0]
        activation = names.activation(node)
        if activation is not None:
            activation.name = activation.name or f"{node.name}.{activation.op_type}"
            others.append(activation.name)
            result = activation.output[0]
        results.append(result)
    return Int8Nodes([node.name for node in layers], others, results)


def find_layers(graph: onnx.GraphProto, kept: Collection[str] = ()) -> list[NodeProto]:
    """The layers alone."""
    constants = {t.name: t.data_type for t in graph.initializer}
    return [
        node
        for node in graph.node
        if node.op_type in LAYERS
        and is_standard(node)
        and node.name not in kept
        and constants.get(node.input[1]) == TensorProto.FLOAT
    ]


class _Names:
    """Who reads what."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants: Mapping[str, TensorProto] = {t.name: t for t in graph.initializer}
        self._outputs = {out.name for out in graph.output}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def activation(self, node: NodeProto) -> NodeProto | None:
        """What alone reads a node's output and only narrows its range, to one that holds 0."""
        readers = self._readers.get(node.output[0], [])
        if node.op_type in FLOAT_OUTPUTS or node.output[0] in self._outputs or len(readers) != 1:
            return None
        (reader,) = readers
        if reader.op_type not in ACTIVATIONS or not is_standard(reader):
            return None
        limits = self._limits(reader)
        return reader if limits is not None and limits[0] <= 0 <= limits[1] else None

    def _limits(self, node: NodeProto) -> tuple[float, float] | None:
        """What the values of a Clip, or a Relu, lie between; None if that is not constant."""
        found = {"min": float("-inf"), "max": float("inf")}
        found |= {a.name: a.f for a in node.attribute if a.name in found}  # before operator set 11
        for limit, name in zip(found, node.input[1:], strict=False):
            if not name:
                continue
            if name not in self.constants:
                return None
            found[limit] = float(numpy_helper.to_array(self.constants[name]).reshape(-1)[0])
        return found["min"], found["max"]

    def readers(self, node: NodeProto) -> list[NodeProto]:
        """What reads a node's result, behind its activation."""
        return self._readers.get((self.activation(node) or node).output[0], [])


def _sums(graph: onnx.GraphProto, layers: list[NodeProto], names: _Names) -> list[NodeProto]:
    """The sums of which two sides at least, of both inputs and the result, are bytes anyway."""
    sums = [
        node
        for node in graph.node
        if node.op_type == SUM and is_standard(node) and names.constants.keys().isdisjoint(node.input)
    ]
    while True:
        inside = [*layers, *sums]
        written = {(names.activation(n) or n).output[0] for n in inside if n.op_type not in FLOAT_OUTPUTS}
        taken = {id(node) for node in inside}
        left = [
            node
            for node in sums
            if (given := sum(name in written for name in node.input)) == len(node.input)
            or (given and any(id(reader) in taken for reader in names.readers(node)))
        ]
        if len(left) == len(sums):
            return sums
        sums = left
