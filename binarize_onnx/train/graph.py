"""An ONNX graph that torch computes and trains, with some of its nodes computed by modules of our own.

Nodes run one after the other, as they stand in the file. What is trained are the weights of float layers (weights and
biases of Conv, Gemm and MatMul, what is added right behind a MatMul), slopes of PRelu, and scale and shift of
BatchNormalization; every other constant stays. BatchNormalization takes the statistics of the batch in training, as
torch has it, and its running ones otherwise. All is float32, but for layers in mixed precision (see mixed.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from binarize_onnx import checks, scopes
from binarize_onnx.errors import ModelError
from binarize_onnx.train import mixed
from binarize_onnx.train.operators import OPERATORS, Untrainable

LAYERS = ("Conv", "Gemm", "MatMul")
MOMENTUM = 0.1  # of running statistics: the weight of a batch


@dataclass(frozen=True)
class Part:
    """Nodes that a module computes instead.

    Attributes:
        writes: all that these nodes write; the last of it is what the module returns.
        reads: what the module is called with.
        module: the module.
    """

    writes: tuple[str, ...]
    reads: tuple[str, ...]
    module: nn.Module


@dataclass(frozen=True)
class _Step:
    """A node, or a part in its place."""

    node: onnx.NodeProto
    attributes: Mapping[str, Any]
    reads: tuple[str, ...]
    writes: str
    part: int | None = None
    done_with: tuple[str, ...] = ()  # read by no later step


class GraphModule(nn.Module):
    """A model of standard operators, its graph in topological order.

    Attributes:
        lower: what Conv, Gemm and MatMul are computed in, for `mixed.float_layers_in` to set; None is float32.

    Raises:
        Untrainable: an operator is missing here, or used in a way that is; names the node.
    """

    def __init__(self, model: onnx.ModelProto, parts: Sequence[Part] = ()) -> None:
        super().__init__()
        self.lower: torch.dtype | None = None
        graph = model.graph
        self.inputs = [v.name for v in graph.input if v.name not in {t.name for t in graph.initializer}]
        self.outputs = [v.name for v in graph.output]
        self.parts = nn.ModuleList([part.module for part in parts])
        instead = {name: i for i, part in enumerate(parts) for name in part.writes}
        nodes = [node for node in graph.node if not any(name in instead for name in node.output)]
        for node in nodes:
            _check(node)
        read = {name for node in nodes for name in node.input} | {*self.outputs}
        trained = _trained(nodes)
        self.values = nn.ParameterDict()  # by a number: a name of ONNX may hold what torch's may not
        self._named: dict[str, str] = {}
        for tensor in graph.initializer:
            if tensor.name not in read:
                continue
            key = f"t{len(self._named)}"
            self._named[tensor.name] = key
            value = torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
            if tensor.name in trained and value.dtype == torch.float32:
                self.values[key] = nn.Parameter(value)
            else:
                self.register_buffer(key, value)
        self._steps = _steps(graph, parts, instead, {*self.outputs})
        self.written = [step.writes for step in self._steps]  # in the order of the graph

    def constant(self, name: str) -> Tensor:
        """The present value of an initializer."""
        key = self._named[name]
        value: Tensor = self.values[key] if key in self.values else getattr(self, key)
        return value

    def constants(self) -> dict[str, np.ndarray[Any, Any]]:
        """The present values of all initializers that nodes read."""
        return {name: self.constant(name).detach().cpu().numpy() for name in self._named}

    def forward(
        self, inputs: Mapping[str, Tensor], keep: Iterable[str] = ()
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """`(outputs, kept)`: the outputs by name, and the tensors asked for.

        Args:
            inputs: by name; float32 images [N, C, H, W] and whatever else the model reads.
            keep: names of tensors inside that are wanted too.
        """
        wanted = set(keep)
        values = {name: inputs[name] for name in self.inputs}
        kept = {name: values[name] for name in wanted & values.keys()}
        for step in self._steps:
            read = [self._value(values, name) for name in step.reads]
            result = self._run(step, read)
            values[step.writes] = result
            if step.writes in wanted:
                kept[step.writes] = result
            for name in step.done_with:
                values.pop(name, None)
        return {name: self._output(values, name) for name in self.outputs}, kept

    def replay(self, values: Mapping[str, Tensor]) -> Iterator[tuple[onnx.NodeProto, Tensor]]:
        """Every step, computed on tensors that are given; of several nodes in one, the last is named."""
        for step in self._steps:
            yield step.node, self._run(step, [self._value(values, name) for name in step.reads])

    def _value(self, values: Mapping[str, Tensor], name: str) -> Tensor | None:
        if not name:
            return None
        return values[name] if name in values else self.constant(name)

    def _output(self, values: Mapping[str, Tensor], name: str) -> Tensor:
        found = self._value(values, name)
        assert found is not None
        return found

    def _run(self, step: _Step, read: Sequence[Tensor | None]) -> Tensor:
        if step.part is not None:
            result: Tensor = self.parts[step.part](*read)
            return result
        if step.node.op_type == "BatchNormalization":
            return self._normalised(step, read)
        run, channels = OPERATORS[step.node.op_type], 1 if step.node.op_type == "Conv" else -1
        try:
            if self.lower is not None and step.node.op_type in LAYERS:
                return mixed.layer(run, read, step.attributes, self.lower, channels)
            return run(read, step.attributes)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            words = " ".join(str(error).split())[:200]
            raise Untrainable(f"node `{step.node.name}` ({step.node.op_type}): {words}") from None

    def _normalised(self, step: _Step, read: Sequence[Tensor | None]) -> Tensor:
        x, scale, shift, mean, variance = read[:5]
        assert x is not None
        epsilon = float(step.attributes.get("epsilon", 1e-5))
        return functional.batch_norm(x, mean, variance, scale, shift, self.training, MOMENTUM, epsilon)


def with_own_statistics(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, its running statistics in tensors that nothing else reads.

    Exporters write equal tensors once: means and shifts of untrained BatchNormalizations are all zeros, and training
    changes each in its own way.
    """
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    readers = Counter(name for node in model.graph.node for name in node.input)
    shared = {name for node in norms for name in node.input[3:5] if readers[name] > 1}
    if not shared:
        return model
    found = onnx.ModelProto()
    found.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in found.graph.initializer}
    unused = scopes.Names(scopes.all_names(found.graph)).unused
    for node in found.graph.node:
        for i in range(3, 5) if node.op_type == "BatchNormalization" else ():
            if node.input[i] in shared & constants.keys():
                own = found.graph.initializer.add()
                own.CopyFrom(constants[node.input[i]])
                own.name = node.input[i] = unused(f"{node.input[i]}.{('mean', 'variance')[i - 3]}")
    return found


def _check(node: onnx.NodeProto) -> None:
    """Refuse what cannot be computed."""
    if (node.op_type != "BatchNormalization" and node.op_type not in OPERATORS) or node.domain not in checks.STANDARD:
        known = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        raise Untrainable(
            f"node `{node.name}`: operator {known} cannot be trained;",
            fix="leave it out of the model, or write it with others.",
        )
    if sum(bool(name) for name in node.output) != 1:
        raise Untrainable(f"node `{node.name}` ({node.op_type}): a node with several outputs cannot be trained.")


def _trained(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """The initializers that training changes."""
    found: set[str] = set()
    products: set[str] = set()  # what MatMul writes
    for node in nodes:
        if node.op_type in LAYERS:
            found.update(node.input[1:])
            products.update(node.output if node.op_type == "MatMul" else ())
        elif node.op_type == "BatchNormalization":
            found.update(node.input[1:3])
        elif node.op_type == "PRelu" or (node.op_type == "Add" and products.intersection(node.input)):
            found.update(node.input)
    return found


def _steps(graph: onnx.GraphProto, parts: Sequence[Part], instead: Mapping[str, int], outputs: set[str]) -> list[_Step]:
    """The nodes in order, each part in the place of the last of its nodes."""
    steps: list[_Step] = []
    for node in graph.node:
        writes = next(name for name in node.output if name)
        part = instead.get(writes)
        if part is None:
            attributes = {a.name: _plain(helper.get_attribute_value(a)) for a in node.attribute}
            steps.append(_Step(node, attributes, tuple(node.input), writes))
        elif parts[part].writes[-1] == writes:
            steps.append(_Step(node, {}, parts[part].reads, writes, part))
    seen = set(outputs)
    freed: list[_Step] = []
    for step in reversed(steps):
        last = tuple(name for name in dict.fromkeys(step.reads) if name and name not in seen)
        seen.update(last)
        freed.append(_Step(step.node, step.attributes, step.reads, step.writes, step.part, last))
    return freed[::-1]


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def export_values(model: onnx.ModelProto, module: GraphModule) -> None:
    """Put the module's present constants into the model.

    Raises:
        ModelError: one of them is not finite.
    """
    values = module.constants()
    for tensor in model.graph.initializer:
        if tensor.name not in values:
            continue
        value = values[tensor.name]
        if value.dtype.kind == "f" and not np.all(np.isfinite(value)):
            raise ModelError(f"training left NaN or infinity in `{tensor.name}`.")
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
