"""Compile what is inside other nodes: branches of If, bodies of Loop and Scan.

    before   If(c) {t = Sign(x); y = Conv(t, W)}                     x, W of the graph around
    after    If(c) {t.bits = PackSign(x); y = XnorConv(t.bits, W.bits)}

Each body becomes a stand-alone model, is compiled as any model, and goes back to where it was. In the stand-alone model
what the body reads of the graph around it is

    a constant                     an initializer, so that weights and thresholds are seen
    any other tensor               an input, of the type and shape that it has there
    a tensor that is binary there  an input, and behind it steps that return it as it is and show its values:
                                   Sign(s), Where(s >= 0, 1, -1), …: a layer that reads it packs it itself

A tensor that a loop hands from one iteration to the next has the shape of its first value if the body makes that shape
from that shape. Nested bodies are compiled first, as part of the body that they are in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper, numpy_helper

from binarize_onnx import checks, io, opset, scopes, shapes
from binarize_onnx.errors import ModelError
from binarize_onnx.passes.base import Context, tidy
from binarize_onnx.passes.fold_constants import FoldConstants
from binarize_onnx.passes.recognise_layers import LAYER_OPS
from binarize_onnx.passes.signs import Level, Traced, Tracer
from binarize_onnx.passes.staircase import Staircases
from binarize_onnx.reasons import Code
from binarize_onnx.report import Layer, SignSite

BODIES = {"If": ("then_branch", "else_branch"), "Loop": ("body",), "Scan": ("body",)}
MOST_ROUNDS = 8  # of inference for the shapes that a loop keeps
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass
class Findings:
    """What a report says about layers, signs and choices, and how many layers are binary."""

    layers: list[Layer] = field(default_factory=list)
    signs: list[SignSite] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    binary: int = 0

    def add(self, other: Findings) -> None:
        """Take in what was found elsewhere in the model; a sign is listed where it was met first."""
        known = {site.name for site in self.signs}
        self.layers += other.layers
        self.signs += (site for site in other.signs if site.name not in known)
        self.notes += other.notes
        self.binary += other.binary


# A stand-alone model, compiled (None if nothing in it is binary), and what there is to say about it.
Compile = Callable[[onnx.ModelProto], tuple[onnx.ModelProto | None, Findings]]


class _Stays(Exception):
    """Why a body stays as it is, as words of a reason."""


def settle(model: onnx.ModelProto) -> list[Layer]:
    """Ready a prepared model for `compile_bodies`, in place: names given once, constant branches put in place.

    Returns:
        The layers of branches that are never taken.

    Raises:
        ModelError: a branch that is taken is damaged.
    """
    every = list(scopes.nodes(model.graph))
    if not any(node.op_type == "If" for node in every) and not any(map(_is_layer, every[len(model.graph.node) :])):
        return []
    scopes.make_unique(model.graph)
    _name_layers(model.graph)
    never = scopes.settle_branches(model.graph)
    checks.require_sound(model, io.default_opset(model))  # what was inside a branch has not been looked at yet
    words = "it is in a branch that is never taken"
    return [_float_layer(node, Code.UNUSED, words) for node in never if _is_layer(node)]


def compile_bodies(
    model: onnx.ModelProto, inferred: shapes.Shapes, compile_model: Compile, *, any_residue: bool
) -> Findings:
    """Compile the bodies inside a settled model, in place.

    Args:
        model: as `settle` leaves it.
        inferred: its shapes.
        compile_model: what compiles a stand-alone model.
        any_residue: see `Staircases`.

    Returns:
        What was found inside.
    """
    found = Findings()
    if not any(_layers_inside(node) for node in model.graph.node):
        return found
    outer = _Outer(model, inferred, any_residue)
    for place, node in enumerate(model.graph.node):
        layers = _layers_inside(node)
        if not layers:
            continue
        folded = outer.nodes.get(str(place))
        if folded is None:
            found.layers += [_float_layer(x, Code.UNUSED, "no output of the model depends on it") for x in layers]
        elif node.domain not in scopes.STANDARD or node.op_type not in BODIES:
            words = f"it is inside a node of type {node.op_type}, which stays as it is"
            found.layers += [_float_layer(x, Code.IN_SUBGRAPH, words) for x in layers]
        else:
            _compile_node(node, folded, outer, compile_model, found)
    return found


def _compile_node(
    node: onnx.NodeProto, folded: onnx.NodeProto, outer: _Outer, compile_model: Compile, found: Findings
) -> None:
    names = BODIES[node.op_type]
    bodies, sources = ({a.name: a.g for a in n.attribute if a.name in names} for n in (node, folded))
    for name in names:
        layers = [inner for inner in scopes.nodes(bodies[name]) if _is_layer(inner)] if name in bodies else []
        if not layers:
            continue
        try:
            body = _Body(sources[name], folded, outer)
            compiled, inside = compile_model(body.model)
        except _Stays as stays:
            found.layers += [_float_layer(x, Code.IN_SUBGRAPH, f"inside {node.op_type}, {stays}") for x in layers]
        except ModelError as error:
            words = f"inside {node.op_type}, whose body cannot be compiled: {error}"
            found.layers += [_float_layer(x, Code.IN_SUBGRAPH, words) for x in layers]
        else:
            found.add(inside)
            if compiled is not None:
                body.put_back(compiled.graph, bodies[name])


class _Outer:
    """The graph around bodies, as bodies see it.

    Attributes:
        model: the graph as it is; the bodies in it are replaced.
        nodes: its nodes with constants folded, by their place in the model.
        constants: initializers, by name, that were there or came from folding.
        names: every tensor name in use.
    """

    def __init__(self, model: onnx.ModelProto, inferred: shapes.Shapes, any_residue: bool) -> None:
        self.model = model
        numbered = onnx.ModelProto()
        numbered.CopyFrom(model)
        for place, node in enumerate(numbered.graph.node):
            node.name = str(place)
        context = Context(io.import_graph(numbered), inferred)
        tidy(context.graph)
        FoldConstants(context).run()
        folded = io.export_graph(context.graph, numbered, {}).graph
        self.nodes = {node.name: node for node in folded.node}
        self.constants = {tensor.name: tensor for tensor in folded.initializer}
        self.names = scopes.Names(scopes.all_names(model.graph) | scopes.all_names(folded))
        self._inferred = inferred
        self._tensors: dict[str, gs.Tensor] = context.graph.tensors()
        self._tracer = Tracer(Staircases(context.types, any_residue=any_residue))

    def element_type(self, name: str) -> int | None:
        """Of a tensor, as ONNX numbers it."""
        if name in self.constants:
            return int(self.constants[name].data_type)
        return self._inferred.types.get(name)

    def dims(self, name: str) -> list[int | str] | None:
        """The shape of a tensor: numbers, and one symbol for all open sizes that are one size in the model."""
        if name in self.constants:
            return [int(d) for d in self.constants[name].dims]
        known, numbers = self._inferred.known.get(name), self._inferred.stand_in.get(name)
        if known is None:
            return None
        symbols = (
            [f"{name} {axis}" for axis in range(len(known))] if numbers is None else [f"size {n}" for n in numbers]
        )
        return [symbol if d is None else d for d, symbol in zip(known, symbols, strict=True)]

    def binary(self, name: str) -> Traced | None:
        """The signs that a computed tensor comes from, if its values show what they were."""
        traced = self._tracer.trace(self._tensors[name]) if name in self._tensors else None
        if not isinstance(traced, Traced) or traced.offset:
            return None
        for sign in traced.found:
            if isinstance(sign, Level) or not np.any(sign.zero_differs):
                continue
            stairs = self._tracer.staircases.find(sign.output)
            if sign.x_low != -1 or stairs is None or stairs.residue or np.any(stairs.values[1] != 0):
                return None
        return traced


class _Body:
    """One body as a stand-alone model.

    Args:
        body: the body, as it is in `node`.
        node: the node that it belongs to, constants around it folded.
        outer: the graph around it.

    Raises:
        _Stays: it cannot stand alone.

    Attributes:
        model: the stand-alone model.
    """

    def __init__(self, body: onnx.GraphProto, node: onnx.NodeProto, outer: _Outer) -> None:
        self._outer = outer
        self._shown: dict[str, list[onnx.NodeProto]] = {}  # steps that show the values of a binary tensor
        self._captured: list[str] = []
        self._entries: dict[str, str] = {}  # the input in front of these steps, and the tensor that it is
        around = outer.model
        self.model = onnx.ModelProto(
            ir_version=around.ir_version, opset_import=around.opset_import, functions=around.functions
        )
        graph = self.model.graph
        graph.CopyFrom(body)
        graph.name = body.name or "body"
        del graph.input[:]
        self._names = scopes.Names(scopes.all_names(body))
        states = self._add_inputs(body, node)
        read = sorted(scopes.captured(body))
        graph.initializer.extend(outer.constants[name] for name in read if name in outer.constants)
        for name in read:
            if name not in outer.constants:
                self._add_captured(name)
        ahead = onnx.GraphProto(node=[*(step for steps in self._shown.values() for step in steps), *graph.node])
        graph.ClearField("node")
        graph.node.extend(ahead.node)
        checks.require_sound(self.model, io.default_opset(self.model))
        self._keep_shapes(states)

    def _add_inputs(self, body: onnx.GraphProto, node: onnx.NodeProto) -> list[tuple[str, str]]:
        """The body's own inputs; returns pairs of names: what an iteration reads, and what it leaves for the next."""
        declared, results = list(body.input), [value.name for value in body.output]
        states, slices, axes = list(node.input), list[str](), list[int]()
        if node.op_type == "If":
            states = []
        elif node.op_type == "Loop":
            states, results = states[2:], results[1:]
            for value, kind in zip(declared, (TensorProto.INT64, TensorProto.BOOL), strict=False):
                self._add_input(value.name, kind, None)  # runtimes hand number and condition over as scalars or vectors
            declared = declared[2:]
        else:
            attributes = {a.name: a for a in node.attribute}
            count = len(states) - int(attributes["num_scan_inputs"].i)
            states, slices = states[:count], states[count:]
            axes = list(attributes["scan_input_axes"].ints) if "scan_input_axes" in attributes else [0] * len(slices)
        if len(declared) != len(states) + len(slices) or len(results) < len(states) or len(axes) != len(slices):
            raise _Stays("whose body has another number of inputs or outputs than it must have")
        for value, source in zip(declared, states, strict=False):
            self._add_input(value.name, self._type(source, value), self._outer.dims(source))
        for value, source, axis in zip(declared[len(states) :], slices, axes, strict=True):
            dims = self._outer.dims(source)
            if dims is not None and -len(dims) <= axis < len(dims):
                del dims[axis]
            else:
                dims = None
            self._add_input(value.name, self._type(source, value), dims)
        return [(value.name, result) for value, _, result in zip(declared, states, results, strict=False)]

    def _type(self, source: str, declared: onnx.ValueInfoProto) -> int:
        kind = self._outer.element_type(source) or int(declared.type.tensor_type.elem_type)
        if not kind:
            raise _Stays(f"which is handed `{source}` of a type that is not known")
        return kind

    def _add_input(self, name: str, kind: int, dims: Sequence[int | str] | None) -> None:
        self.model.graph.input.append(helper.make_tensor_value_info(name, kind, dims))

    def _add_captured(self, name: str) -> None:
        """A tensor of the graph around; one that is binary there comes in under another name."""
        kind = self._outer.element_type(name)
        if kind is None:
            raise _Stays(f"which reads `{name}` of a type that is not known")
        self._captured.append(name)
        traced = self._outer.binary(name) if kind in FLOATS else None
        entry = name
        if traced is not None:
            entry = self._names.unused(f"{name}.outside")
            self._entries[entry] = name
            self._shown[name] = list(self._steps(traced, entry, name, helper.tensor_dtype_to_np_dtype(kind)))
        self._add_input(entry, kind, self._outer.dims(name))

    def _steps(self, traced: Traced, x: str, y: str, dtype: Any) -> Iterator[onnx.NodeProto]:
        """Steps that return x, a tensor with the values of `traced`, as y, so that it shows which they are."""

        def constant(hint: str, value: float) -> str:
            tensor = numpy_helper.from_array(np.asarray(value, dtype), self._names.unused(f"{y}.{hint}"))
            self.model.graph.initializer.append(tensor)
            return str(tensor.name)

        def tensor(hint: str) -> str:
            return self._names.unused(f"{y}.{hint}")

        scale = traced.scale
        if traced.levels > 1 or isinstance(traced.found[0], Level):
            units, clipped, whole = tensor("units"), tensor("clipped"), tensor("whole")
            yield helper.make_node("Div", [x, constant("scale", scale)], [units])
            limits = [constant("least", 0), constant("most", traced.levels)]
            yield helper.make_node("Clip", [units, *limits], [clipped])
            yield helper.make_node("Round", [clipped], [whole])
            yield helper.make_node("Mul", [whole, constant("factor", scale)], [y])
        elif any(np.any(getattr(sign, "zero_differs", False)) for sign in traced.found):
            sign = y if scale == 1 else tensor("unit")
            yield helper.make_node("Sign", [x], [sign])
            if scale != 1:
                yield helper.make_node("Mul", [sign, constant("factor", scale)], [y])
        else:
            low = traced.x_low * scale
            high = tensor("high")
            yield helper.make_node("GreaterOrEqual", [x, constant("middle", (low + scale) / 2)], [high])
            yield helper.make_node("Where", [high, constant("one", scale), constant("other", low)], [y])

    def _keep_shapes(self, states: Sequence[tuple[str, str]]) -> None:
        """Give what iterations hand on only such sizes as every iteration keeps.

        By induction: a size of the first value is that of all if the body makes it from itself. A size that changes
        gets a symbol of its own, a tensor whose rank changes or is not known has no shape.
        """
        values = {value.name: value for value in self.model.graph.input}
        for rounds in range(MOST_ROUNDS + 1 if states else 0):
            inferred, settled = shapes.infer(self.model), True
            for before, after in states:
                tensor = values[before].type.tensor_type
                if not tensor.HasField("shape"):
                    continue
                result = inferred.known.get(after)
                if result is None or len(result) != len(tensor.shape.dim) or rounds == MOST_ROUNDS:
                    tensor.ClearField("shape")
                    settled = False
                    continue
                numbers = inferred.stand_in.get(after, result)
                sizes = inferred.stand_in.get(before, (None,) * len(result))
                for axis, dim in enumerate(tensor.shape.dim):
                    own = f"state {before} {axis}"
                    if (sizes[axis] is None or numbers[axis] != sizes[axis]) and dim.dim_param != own:
                        dim.dim_param = own
                        settled = False
            if settled:
                return

    def put_back(self, compiled: onnx.GraphProto, body: onnx.GraphProto) -> None:
        """Replace what a body computes by the compiled stand-alone graph, under names of the whole model."""
        names, nodes = dict(self._entries), list(compiled.node)
        for name, steps in self._shown.items():
            writer = next((node for node in nodes if name in node.output), None)
            if writer is not None and (writer.op_type, writer.domain) == (steps[-1].op_type, ""):
                nodes.remove(writer)  # no layer uses the signs as they are: the body reads the tensor itself
                for step in steps[-2::-1]:
                    nodes = [n for n in nodes if n.output[:] != step.output[:] or _is_read(step.output[0], nodes)]
            else:
                names[name] = self._outer.names.unused(f"{name}.inside")
        given_outside = {tensor.name for tensor in self._outer.model.graph.initializer}
        known = scopes.all_names(body) | given_outside | {*self._captured}
        for name in sorted(scopes.all_names(compiled) - known - names.keys()):
            names[name] = self._outer.names.unused(name)
        constants = [tensor for tensor in compiled.initializer if tensor.name not in given_outside]
        del body.node[:], body.initializer[:], body.value_info[:]
        body.node.extend(nodes)
        body.initializer.extend(constants)
        body.value_info.extend(compiled.value_info)
        scopes.rename(body, names)


def _is_read(name: str, nodes: Sequence[onnx.NodeProto]) -> bool:
    return any(name in node.input or any(name in scopes.captured(g) for g in scopes.subgraphs(node)) for node in nodes)


def _is_layer(node: onnx.NodeProto) -> bool:
    """Whether a report lists the node: a layer of the source, or one of ours."""
    if node.domain == opset.DOMAIN:
        return node.op_type in opset.LAYERS
    return node.domain in scopes.STANDARD and node.op_type in LAYER_OPS


def _layers_inside(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    return [inner for inner in scopes.nodes_inside(node) if _is_layer(inner)]


def _name_layers(graph: onnx.GraphProto) -> None:
    """Give every layer inside other nodes a name that no other node has: its own if it can be, else its output's."""
    names = scopes.Names(node.name for node in graph.node)
    for node in graph.node:
        for layer in _layers_inside(node):
            layer.name = names.unused(layer.name or next(iter(layer.output), "") or layer.op_type)


def _float_layer(node: onnx.NodeProto, code: Code, words: str) -> Layer:
    return Layer(node.name, node.op_type, "float", code, words, None)
