"""A part of a graph as a model of its own.

What the part reads and no longer computes becomes an input of the shape that it had in the whole model, fed with the
values that it had there; what was a constant stays one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

import onnx
from onnx import NodeProto, helper, numpy_helper

from binarize_onnx.errors import BinarizeError
from binarize_onnx.verify.arrays import Array, Arrays
from binarize_onnx.verify.graphs import caller_inputs, is_tensor, reads
from binarize_onnx.verify.session import Runner


class Whole:
    """A model, taken apart.

    Args:
        model: to be taken apart.
        feed: one batch of inputs; None if there are none, and then only parts that begin at the model's own inputs,
            or at tensors of known types, can be made.

    Attributes:
        nodes: of the main graph, in topological order.
        feed: as given.
    """

    def __init__(self, model: onnx.ModelProto, feed: Mapping[str, Array] | None) -> None:
        self.model = model
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.feed = feed
        self._initializers = {t.name: t for t in model.graph.initializer}
        self._sparse = {t.values.name: t for t in model.graph.sparse_initializer}
        self._writer = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self._reads = [reads(node) for node in self.nodes]
        self._readers: dict[str, list[int]] = defaultdict(list)
        for i, names in enumerate(self._reads):
            for name in names:
                self._readers[name].append(i)
        self._constant = self._constant_tensors()
        self._declared = _declared(model)
        self._values: Arrays = dict(feed) if feed is not None else {}
        self._values |= self._run(feed)

    def part(self, kept: Collection[int]) -> tuple[onnx.ModelProto, Arrays | None] | None:
        """The nodes with these numbers as a model, and its inputs; None if no such model can be made."""
        chosen = sorted(kept)
        made = {name for i in chosen for name in self.nodes[i].output if name}
        read = dict.fromkeys(name for i in chosen for name in sorted(self._reads[i]))
        ends = [name for name in made if not any(i in kept for i in self._readers[name])]
        graph = onnx.GraphProto(name=self.model.graph.name, node=[self.nodes[i] for i in chosen])
        feed: Arrays = {}
        inner = {name for i in chosen for name in _inner_names(self.nodes[i])}
        for name in read:
            if name in made or (name in inner and name not in self._writer and name not in self._declared):
                continue
            if name in self._initializers:
                graph.initializer.append(self._initializers[name])
            elif name in self._sparse:
                graph.sparse_initializer.append(self._sparse[name])
            elif name in self._constant and name in self._values:
                graph.initializer.append(numpy_helper.from_array(self._values[name], name))
            else:
                declared = self._typed(name)
                if declared is None:
                    return None
                graph.input.append(declared)
                if name in self._values:
                    feed[name] = self._values[name]
        order = [name for i in chosen for name in self.nodes[i].output if name in ends]
        for name in order:
            declared = self._typed(name)
            graph.output.append(declared if declared is not None else onnx.ValueInfoProto(name=name))
        if not order or (self.feed is not None and len(feed) < len(graph.input)):
            return None
        used = {n.domain for n in graph.node}
        functions = [f for f in self.model.functions if f.domain in used or len(used) > 1]
        model = helper.make_model(
            graph, opset_imports=self.model.opset_import, functions=functions, ir_version=self.model.ir_version
        )
        return model, None if self.feed is None else feed

    def above(self, tensors: Iterable[str], stop: Collection[str] = ()) -> set[int]:
        """The nodes that lead to some tensors, those behind the tensors of `stop` left out."""
        found: set[int] = set()
        waiting = [name for name in tensors if name in self._writer]
        while waiting:
            node = self._writer[waiting.pop()]
            if node not in found:
                found.add(node)
                waiting += [n for n in self._reads[node] if n in self._writer and n not in stop]
        return found

    def around(self, tensor: str, radius: int) -> set[int]:
        """The nodes that are at most `radius` steps away from the one that writes a tensor, in either direction."""
        found = {self._writer[tensor]} if tensor in self._writer else set()
        edge = set(found)
        for _ in range(radius):
            beside: set[int] = set()
            for node in edge:
                beside |= {self._writer[n] for n in self._reads[node] if n in self._writer}
                beside |= {i for name in self.nodes[node].output for i in self._readers[name]}
            edge = beside - found
            found |= edge
        return found

    def writes(self, tensor: str) -> int | None:
        """The number of the node that writes a tensor."""
        return self._writer.get(tensor)

    def _constant_tensors(self) -> set[str]:
        known = set(self._initializers) | set(self._sparse)
        for i, node in enumerate(self.nodes):
            if all(name in known for name in self._reads[i]) and not node.op_type.startswith("Random"):
                known.update(name for name in node.output if name)
        return known

    def _typed(self, name: str) -> onnx.ValueInfoProto | None:
        if name in self._values:
            values = self._values[name]
            return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values.dtype), values.shape)
        return self._declared.get(name)

    def _run(self, feed: Mapping[str, Array] | None) -> Arrays:
        """The values of every tensor of the model; none if it cannot be run."""
        try:
            types = Runner(self.model, self._writer).types
            wanted = [n for n in self._writer if is_tensor(types[n])]
            return Runner(self.model, wanted).run(feed or {}) if feed or not caller_inputs(self.model) else {}
        except BinarizeError:
            return {}


def _declared(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """The types of tensors as far as the file or ONNX's inference says."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception:  # it raises whatever its C++ side threw
        inferred = model
    graph = inferred.graph
    known = [*graph.value_info, *graph.output, *graph.input]
    return {value.name: value for value in known if value.type.WhichOneof("value") is not None}


def _inner_names(node: NodeProto) -> set[str]:
    """Names that the node's subgraphs define for themselves."""
    names: set[str] = set()
    for attribute in node.attribute:
        for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            names.update(t.name for t in [*graph.initializer, *graph.input])
            for inner in graph.node:
                names.update(inner.output)
                names |= _inner_names(inner)
    return names
