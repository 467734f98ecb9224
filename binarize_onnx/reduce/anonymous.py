"""A model without anything that its owner may not want to show, as far as that is not needed to compute it.

Nodes, tensors, inputs and open dimensions get numbers for names; documentation, metadata, annotations and the producer
go. Operators, attributes and the values of weights stay: without them it would be another model.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import GraphProto


def anonymous(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The model with numbers for names, and the new name of every tensor and node.

    A node's name is under `node:NAME`, as a tensor may have the same.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    names: dict[str, str] = {}
    nodes: dict[str, str] = {}
    dims: dict[str, str] = {}
    bare.ClearField("producer_name")
    bare.ClearField("producer_version")
    bare.ClearField("domain")
    bare.ClearField("model_version")
    bare.ClearField("doc_string")
    del bare.metadata_props[:]
    for i, value in enumerate(bare.graph.input):
        names[value.name] = f"x{i}"
    for i, value in enumerate(bare.graph.output):
        names.setdefault(value.name, f"y{i}")
    for graph in _graphs(bare.graph):
        _rename(graph, names, nodes, dims)
    for function in bare.functions:
        function.ClearField("doc_string")
        for node in function.node:
            node.ClearField("doc_string")
            node.ClearField("name")
            del node.metadata_props[:]
    used = {node.domain for graph in _graphs(bare.graph) for node in graph.node}
    used |= {node.domain for function in bare.functions for node in function.node}
    imports = [o for o in bare.opset_import if o.domain in used or o.domain in ("", "ai.onnx")]
    del bare.opset_import[:]
    bare.opset_import.extend([onnx.helper.make_opsetid(o.domain, o.version) for o in imports])
    return bare, names | {f"node:{old}": new for old, new in nodes.items()}


def _rename(graph: GraphProto, names: dict[str, str], nodes: dict[str, str], dims: dict[str, str]) -> None:
    def renamed(name: str) -> str:
        return names.setdefault(name, f"t{len(names)}") if name else ""

    graph.name = "reduced"
    graph.ClearField("doc_string")
    del graph.value_info[:]
    del graph.quantization_annotation[:]
    del graph.metadata_props[:]
    for value in [*graph.input, *graph.output]:
        value.name = renamed(value.name)
        value.ClearField("doc_string")
        del value.metadata_props[:]
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("denotation")
            if dim.HasField("dim_param"):
                dim.dim_param = dims.setdefault(dim.dim_param, f"d{len(dims)}")
    for tensor in graph.initializer:
        tensor.name = renamed(tensor.name)
        tensor.ClearField("doc_string")
        del tensor.metadata_props[:]
    for sparse in graph.sparse_initializer:
        sparse.values.name = renamed(sparse.values.name)
    for node in graph.node:
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
        if node.name:
            node.name = nodes.setdefault(node.name, f"n{len(nodes)}")
        node.ClearField("doc_string")
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            for tensor in [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]:
                tensor.ClearField("doc_string")
                tensor.ClearField("name")


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and the subgraphs of its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)
