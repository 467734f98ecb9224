"""What a pass is, and what passes share: the graph, its shapes, its names and its journal."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from binarize_onnx import checks, order
from binarize_onnx.reasons import Reason
from binarize_onnx.scopes import Names
from binarize_onnx.shapes import Shapes

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Skip:
    """A node that is the pass's own kind and is left as it was, with words a user can act on."""

    node: gs.Node
    reason: Reason


@dataclass
class Journal:
    """What became of every layer, by name.

    Attributes:
        skipped: why a layer stays float.
        threshold: steps of the source that went into the threshold of the bits the layer reads.
        epilogue: steps of the source that the layer now does itself.
        moved: what else was done with its bits.
        stacked: layers that another one computes along with its own, and that one.
    """

    skipped: dict[str, Reason] = field(default_factory=dict)
    threshold: dict[str, list[str]] = field(default_factory=dict)
    epilogue: dict[str, list[str]] = field(default_factory=dict)
    moved: dict[str, list[str]] = field(default_factory=dict)
    stacked: dict[str, str] = field(default_factory=dict)

    def reason(self, layer: str) -> str:
        """How a binary layer runs, in one line."""
        parts = ["sign input, binary weights"]
        if layer in self.threshold:
            parts.append(f"{', '.join(self.threshold[layer])} in the threshold of its input")
        if layer in self.epilogue:
            parts.append(f"{', '.join(self.epilogue[layer])} in its epilogue")
        parts += self.moved.get(layer, [])
        if layer in self.stacked:
            parts.append(f"computed together with `{self.stacked[layer]}`")
        return "; ".join(parts)


def record(steps: dict[str, list[str]], layer: str, step: str, *, first: bool = False) -> None:
    """Add a step to a layer's list once."""
    known = steps.setdefault(layer, [])
    if step not in known:
        known.insert(0 if first else len(known), step)


class Context:
    """One graph under compilation.

    Attributes:
        graph: the graphsurgeon graph, changed in place.
        shapes: shape of every tensor whose shape could be inferred, with stand-in numbers for open dimensions:
            two tensors that agree here agree in the model.
        known: the same with None for open dimensions.
        types: element types of the source's tensors, as ONNX numbers them, where inference found them.
        binary: names of the layers recognised as binary.
        journal: what the passes have to say.
        flaws: what is wrong with nodes whose attributes their operator does not allow, by id.
        is_tidy: whether no pass has changed the graph since it was tidied.
    """

    def __init__(self, graph: gs.Graph, shapes: Shapes) -> None:
        self.flaws: dict[int, str] = {}
        self.shapes = dict(shapes.stand_in)
        for node in graph.nodes:
            node.domain = None if node.domain == "ai.onnx" else node.domain
            flaw = checks.flaw(node, graph.opset, self._rank(node))
            if flaw is not None:
                self.flaws[id(node)] = flaw
            if flaw is not None or (node.domain and checks.our_op(node) is None):
                node.op = checks.ASIDE + node.op  # no pass knows such an operator
        self.graph = graph
        self.types = dict(shapes.types)
        self.known = dict(shapes.known)
        self.binary: set[str] = set()
        self.journal = Journal()
        self.is_tidy = False
        self._names = Names(_all_names(graph))
        self._inner = {id(node) for node in subgraph_nodes(graph)}  # they never change
        self._shared: dict[tuple[str, Shape, bytes], gs.Constant] = {}  # by a digest of the values
        self._kept: set[int] = set()  # ids of the constants above

    def _rank(self, node: gs.Node) -> int | None:
        """The rank of a node's first input."""
        shape = self.shape(node.inputs[0]) if node.inputs else None
        return None if shape is None else len(shape)

    def unique(self, hint: str) -> str:
        """A tensor or node name not in use yet: the hint itself if it is free."""
        return self._names.unused(hint)

    def constant(self, hint: str, values: Array, *, role: str = "") -> gs.Constant:
        """An initializer; equal values share one, or one for each role if they have roles."""
        whole = np.ascontiguousarray(values).reshape(values.shape)
        key = (f"{values.dtype} {role}", values.shape, hashlib.sha256(whole.tobytes()).digest())
        if key not in self._shared:
            self._shared[key] = gs.Constant(self.unique(hint), whole)
            self._kept.add(id(self._shared[key]))
        return self._shared[key]

    def release(self, tensors: Iterable[gs.Tensor]) -> None:
        """Let go of the values of those among the tensors that are initializers which nothing reads any more.

        A tensor and the lists of its readers refer to each other: the garbage collector would free them, but late.
        """
        for tensor in tensors:
            unread = isinstance(tensor, gs.Constant) and not tensor.outputs and not self.is_output(tensor)
            if unread and id(tensor) not in self._kept:
                tensor.values = np.empty(0, np.float32)

    def variable(self, hint: str, *, like: gs.Tensor | None = None, dtype: Any = np.float32) -> gs.Variable:
        """A new tensor, of the shape of `like` where given."""
        tensor = gs.Variable(self.unique(hint), dtype=dtype)
        shape = self.shape(like) if like is not None else None
        if like is not None and shape is not None:
            self.shapes[tensor.name] = shape
            self.known[tensor.name] = self.known.get(like.name, (None,) * len(shape))
        return tensor

    def shape(self, tensor: gs.Tensor) -> Shape | None:
        """The tensor's shape, None if it could not be inferred."""
        if isinstance(tensor, gs.Constant):
            return tuple(int(d) for d in tensor.shape)
        return self.shapes.get(tensor.name)

    def known_dim(self, tensor: gs.Tensor, axis: int) -> int | None:
        """One dimension where the model fixes it."""
        shape = self.known.get(tensor.name)
        return None if shape is None else shape[axis]

    def insert(
        self,
        op: str,
        inputs: Sequence[gs.Tensor],
        outputs: Sequence[gs.Tensor],
        *,
        name: str = "",
        domain: str = "",
        attrs: Mapping[str, Any] | None = None,
    ) -> gs.Node:
        """Add a node; the passes' sweep sorts it into place."""
        node = gs.Node(
            op,
            name=name or self.unique(f"{outputs[0].name}.{op}"),
            attrs=dict(attrs or {}),
            inputs=list(inputs),
            outputs=list(outputs),
            domain=domain or None,
        )
        self.graph.nodes.append(node)
        return node

    def is_output(self, tensor: gs.Tensor) -> bool:
        """Whether the tensor is an output of the graph."""
        return any(tensor is out for out in self.graph.outputs)

    def escapes(self, tensor: gs.Tensor) -> bool:
        """Whether something beside the graph's own nodes sees the tensor: the caller, or a subgraph."""
        return self.is_output(tensor) or any(id(node) in self._inner for node in tensor.outputs)

    def readers(self, tensor: gs.Tensor) -> list[gs.Node]:
        """The graph's own nodes that read the tensor; those of subgraphs are left out."""
        return [node for node in tensor.outputs if id(node) not in self._inner]

    def only_consumer(self, tensor: gs.Tensor) -> gs.Node | None:
        """The one node that reads the tensor, once; None if anything else sees it."""
        if len(tensor.outputs) != 1 or self.escapes(tensor):
            return None
        return tensor.outputs[0]


Found = TypeVar("Found")


class Pass(ABC, Generic[Found]):
    """One rewrite: what it matches, why it may decline, and what it does.

    A pass is run to its fixed point: every node in topological order, again and again until a sweep changes nothing.
    `rewrite` must therefore leave nothing that the same pass would match for ever.
    """

    def __init__(self, context: Context) -> None:
        self.context = context

    @abstractmethod
    def match(self, node: gs.Node) -> Found | Skip | None:
        """The site to rewrite; a Skip if it is this pass's kind but must stay; None if it is not."""

    @abstractmethod
    def rewrite(self, site: Found) -> None:
        """Change the graph at the site."""

    def nodes(self) -> list[gs.Node]:
        """The nodes in the order of a sweep."""
        return list(self.context.graph.nodes)

    def run(self) -> bool:
        """Apply the pass to its fixed point; True if it changed anything."""
        changed_at_all, changed = False, True
        while changed:
            changed = False
            for node in self.nodes():
                if not node.outputs:  # taken out by a rewrite earlier in this sweep
                    continue
                found = self.match(node)
                if isinstance(found, Skip):
                    self.context.journal.skipped[found.node.name] = found.reason
                elif found is not None:
                    self.context.is_tidy = False
                    self.rewrite(found)
                    changed = changed_at_all = True
            if not self.context.is_tidy:
                tidy(self.context.graph)
                self.context.is_tidy = True
        return changed_at_all


def subgraph_nodes(graph: gs.Graph) -> Iterator[gs.Node]:
    """Every node below the top level."""
    for node in graph.nodes:
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                yield from value.nodes
                yield from subgraph_nodes(value)


def _all_names(graph: gs.Graph) -> set[str]:
    """Every tensor and node name in the graph and its subgraphs."""
    names = set(graph.tensors(check_duplicates=False)) | {node.name for node in graph.nodes}
    for node in graph.nodes:
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                names |= _all_names(value)
    return names


def tidy(graph: gs.Graph) -> None:
    """Drop what no output needs and put the nodes in topological order. Graph inputs stay as they are."""
    order.remove_dead_nodes(graph)
    order.sort(graph)


def producer(tensor: gs.Tensor) -> gs.Node | None:
    """The node that computes the tensor; None for graph inputs and constants."""
    return tensor.inputs[0] if tensor.inputs else None


def constant_value(tensor: gs.Tensor) -> Array | None:
    """The values of a constant; None for anything computed, and for text, which graphsurgeon cannot write once read."""
    return np.asarray(tensor.values) if isinstance(tensor, gs.Constant) and tensor.dtype != object else None


def split_operands(node: gs.Node) -> tuple[gs.Tensor, Array] | None:
    """`(data, constant)` of a two-input node with exactly one constant operand, whichever side it is on."""
    left, right = node.inputs
    a, b = constant_value(left), constant_value(right)
    if a is None and b is not None:
        return left, b
    if b is None and a is not None:
        return right, a
    return None


def along_axis(values: Array, axis: int, rank: int) -> Array | None:
    """The values as a vector along one axis of a rank-`rank` tensor, if they vary along no other.

    Returns shape [n] or [1]; None if the values vary along another axis, or would add axes to the tensor.
    """
    if values.ndim > rank:
        return None
    aligned = align(values, rank)
    if any(d != 1 for i, d in enumerate(aligned.shape) if i != axis):
        return None
    return aligned.reshape(-1)


def align(values: Array, rank: int) -> Array:
    """The values with leading axes of 1 up to `rank`, as broadcasting reads them."""
    return values.reshape((1,) * (rank - values.ndim) + values.shape)
