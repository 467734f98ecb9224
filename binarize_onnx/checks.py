"""What a model must be before a pass may touch it: a whole that cannot be trusted is refused, a node is set aside."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import cache
from math import prod
from typing import Any, List  # noqa: UP035  (graphsurgeon compares with these)

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from onnx import AttributeProto

from binarize_onnx import opset
from binarize_onnx.errors import ModelError

ASIDE = "aside:"  # in front of an operator while passes run: malformed nodes and foreign operators are none of theirs

DAMAGED = "The file may be damaged: export it again."
LARGEST = 2**31 - 1  # of any stride, pad or size: what runtimes, and our kernels, count in
AUTO_PADS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
WINDOWS = ("Conv", "ConvTranspose", "MaxPool", "AveragePool")

STANDARD = (None, "", "ai.onnx")
# Elements a byte of raw data, where that is not one or less.
_PACKED = {
    number: 8 // int(bits)
    for name, number in onnx.TensorProto.DataType.items()
    for bits, names in (("4", ("INT4", "UINT4", "FLOAT4E2M1")), ("2", ("INT2", "UINT2")))
    if name in names
}


def require_sound(model: onnx.ModelProto, version: int) -> None:
    """Refuse what graphsurgeon would drop or trip over, and graphs that mean nothing.

    Raises:
        ModelError: sparse or damaged tensors, a tensor written twice or never, functions that call themselves, types
            as attributes, attributes given twice, or a node without the inputs that its operator needs; in the graph
            or in the body of a function.
    """
    for graph in _graphs(*_roots(model)):
        if isinstance(graph, onnx.GraphProto) and graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            raise ModelError(f"initializer `{name}` is sparse;", fix="store it dense.")
    for tensor in tensors(model):
        _require_whole(tensor)
    for node in model.graph.node:
        _require_usable(node, version)
    inputs, outputs = ([value.name for value in values] for values in (model.graph.input, model.graph.output))
    _require_single_assignment(inputs, [t.name for t in model.graph.initializer], model.graph.node, outputs)
    for function in model.functions:
        where = f"function {function.domain}.{function.name}, "
        versions = [int(entry.version) for entry in function.opset_import if entry.domain in STANDARD]
        for node in function.node:
            _require_usable(node, max(1, versions[-1]) if versions else version, where)
        _require_single_assignment(function.input, [], function.node, function.output, where)
    _require_ending_calls(model)


def require_text(model: onnx.ModelProto) -> None:
    """Refuse names, symbols and texts that are not UTF-8: Python cannot hold them as strings.

    Raises:
        ModelError: there is one, anywhere in the model.
    """
    try:
        for text in _texts(model):
            text.decode() if isinstance(text, bytes) else text.encode()
    except UnicodeError:  # protobuf hands bytes over, or fails where they are asked for as text
        raise ModelError("a name or a text in the model is not UTF-8.", fix=DAMAGED) from None


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that may have external data: initializers and constants of graphs, subgraphs and functions."""
    for graph in _graphs(*_roots(model)):
        if isinstance(graph, onnx.GraphProto):
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for attribute in _attributes(graph):
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                if sparse.HasField("values"):
                    yield from (sparse.values, sparse.indices)


def shown(node: gs.Node) -> str:
    """The operator of a node for a reader, with its domain if that is not ONNX's; `malformed` if it was set aside."""
    op = str(node.op).removeprefix(ASIDE)
    domain = "" if node.domain in STANDARD else str(node.domain)
    if not domain and op != node.op:
        domain = "malformed"
    return f"{domain}.{op}" if domain else op


_LIST_TYPES: dict[Any, Any] = {AttributeProto.FLOATS: List[float], AttributeProto.STRINGS: List[str]}  # noqa: UP006


def our_op(node: gs.Node) -> opset.Op | None:
    """The signature of one of our ops; None for any other, a newer one of our domains among them."""
    return {opset.DOMAIN: opset.OPS, opset.IDEAL_DOMAIN: opset.IDEAL_OPS}.get(node.domain, {}).get(node.op)


def element_type_of(node: gs.Node, attribute: str) -> Any:
    """The type of a list attribute as graphsurgeon writes it; of integers where no schema says otherwise."""
    op = str(node.op).removeprefix(ASIDE)
    known = node.domain in STANDARD and onnx.defs.has(op, "")
    declared: Any = onnx.defs.get_schema(op, "").attributes.get(attribute) if known else None
    return _LIST_TYPES.get(int(declared.type.value), List[int]) if declared else List[int]  # noqa: UP006


def flaw(node: gs.Node, version: int, rank: int | None = None) -> str | None:
    """What about a node its operator, standard or ours, does not allow, as the end of a sentence; else None.

    Args:
        node: any node.
        version: the opset of its graph.
        rank: of its first input, where that is known.
    """
    if node.domain not in STANDARD:
        return _flaw_of_ours(node)
    try:
        schema = onnx.defs.get_schema(node.op, min(version, onnx.defs.onnx_opset_version()), "")
    except onnx.defs.SchemaError:
        return None
    declarations: dict[str, Any] = dict(schema.attributes)  # onnx's own annotations of its enum lack a value
    for name in node.attrs.keys() - declarations.keys():
        return f"has an attribute `{name}`, which {node.op} does not know"
    for name, declared in declarations.items():
        kind = int(declared.type.value)
        if name not in node.attrs:
            if declared.required:
                return f"has no attribute `{name}`"
        elif not _is_of_type(node.attrs[name], kind):
            wanted = AttributeProto.AttributeType.Name(kind)
            return f"has a {_shown(node.attrs[name])} as attribute `{name}`, which is of type {wanted}"
    if len(node.inputs) > schema.max_input or len(node.outputs) > schema.max_output:
        most = f"{node.op} takes {schema.max_input} and gives {schema.max_output}"
        return f"has {len(node.inputs)} inputs and {len(node.outputs)} outputs; {most}"
    for index, tensor in enumerate(node.inputs):
        formal = schema.inputs[min(index, len(schema.inputs) - 1)]  # the last one may stand for many
        if tensor.is_empty() and formal.option != onnx.defs.OpSchema.FormalParameterOption.Optional:
            return f"lacks its input {formal.name}"
    return _window_flaw(node, rank) if node.op in WINDOWS else None


def _flaw_of_ours(node: gs.Node) -> str | None:
    """`opset.check_node` on the graph, and the one value that the passes calculate with; other ops are not ours."""
    op = our_op(node)
    if op is None:
        return None
    if len(node.inputs) != len(op.inputs) or any(tensor.is_empty() for tensor in node.inputs):
        return f"does not list its {len(op.inputs)} inputs"
    if len(node.outputs) != len(op.outputs) or all(tensor.is_empty() for tensor in node.outputs):
        return f"does not list its {len(op.outputs)} outputs, one of them in use"
    for name, kind in op.attributes.items():
        if name not in node.attrs or not _is_of_type(node.attrs[name], kind):
            return f"has no attribute `{name}` of type {AttributeProto.AttributeType.Name(kind)}"
    if node.attrs.get("x_low", 0) not in (-1, 0):
        return f"has x_low {node.attrs['x_low']}; there are -1 and 0"
    return None


def _window_flaw(node: gs.Node, input_rank: int | None) -> str | None:
    """Kernel, strides, dilations and pads: positive, as many as there are axes, and those of the weights."""
    attrs, rank = node.attrs, None if input_rank is None else input_rank - 2
    auto = attrs.get("auto_pad", "NOTSET")
    if auto not in AUTO_PADS:
        return f"has auto_pad {auto!r}; there are {', '.join(AUTO_PADS)}"
    if int(attrs.get("group", 1)) < 1:
        return f"has group {attrs['group']}, which is not positive"
    weights = node.inputs[1] if node.op.startswith("Conv") and len(node.inputs) > 1 else None
    shape = tuple(weights.shape) if isinstance(weights, gs.Constant) else None
    if shape is not None:
        rank = len(shape) - 2
        if rank < 1:
            return f"has weights of shape {list(shape)}, which leaves no axis for the image"
        if "kernel_shape" in attrs and tuple(attrs["kernel_shape"]) != shape[2:]:
            return f"has kernel_shape {list(attrs['kernel_shape'])} and weights of shape {list(shape)}"
        outputs, group = shape[0 if node.op == "Conv" else 1], int(attrs.get("group", 1))
        if node.op == "Conv" and outputs % group:
            return f"has {outputs} filters, which {group} groups do not divide"
    for name in ("kernel_shape", "strides", "dilations"):
        if name not in attrs:
            continue
        values = [int(v) for v in attrs[name]]
        rank = len(values) if rank is None else rank
        if len(values) != rank:
            return f"has {len(values)} {name} for {rank} axes"
        if values and not 0 < min(values) <= max(values) <= LARGEST:
            return f"has {name} {values}, which are not all positive and below 2^31"
    pads = [int(v) for v in attrs.get("pads", [])]
    if "pads" in attrs and rank is not None and len(pads) != 2 * rank:
        return f"has {len(pads)} pads for {rank} axes"
    if pads and max(map(abs, pads)) > LARGEST:
        return f"has pads {pads}, beyond 2^31"
    if pads and min(pads) < 0 and node.op == "MaxPool":
        return f"has negative pads {pads}"
    if attrs.get("ceil_mode", 0) not in (0, 1):
        return f"has ceil_mode {attrs['ceil_mode']}; there are 0 and 1"
    return None


_SCALARS: dict[Any, type | tuple[type, ...]] = {
    AttributeProto.INT: int,
    AttributeProto.FLOAT: float,
    AttributeProto.STRING: (str, bytes),
    AttributeProto.TENSOR: (gs.Tensor, np.ndarray),
    AttributeProto.GRAPH: gs.Graph,
}
_LISTS: dict[Any, type | tuple[type, ...]] = {
    AttributeProto.INTS: int,
    AttributeProto.FLOATS: float,
    AttributeProto.STRINGS: (str, bytes),
}


def _is_of_type(value: Any, kind: int) -> bool:
    """Whether a graphsurgeon attribute is of the type that a schema declares; kinds that no pass reads are."""
    if kind in _SCALARS:
        return isinstance(value, _SCALARS[kind])
    if kind in _LISTS:
        return isinstance(value, list) and all(isinstance(v, _LISTS[kind]) for v in value)
    return True


def _shown(value: Any) -> str:
    return f"list of {type(value[0]).__name__}" if isinstance(value, list) and value else type(value).__name__


def packed_size(tensor: onnx.TensorProto) -> int:
    """The bytes of raw data that the tensor's dimensions ask for.

    Raises:
        KeyError, TypeError, ValueError: the element type is unknown, or its elements have no fixed size.
    """
    item = int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    if tensor.data_type == onnx.TensorProto.STRING:
        raise TypeError("strings have no fixed size")
    elements: int = prod(tensor.dims)
    return -(-elements // _PACKED.get(tensor.data_type, 1)) * item


def _require_whole(tensor: onnx.TensorProto) -> None:
    """A tensor holds as many elements as its dimensions say, of a type that ONNX knows."""
    try:
        onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    except (KeyError, TypeError, ValueError):
        raise ModelError(f"tensor `{tensor.name}` has the unknown element type {tensor.data_type}.") from None
    beside_zeros = prod(d for d in tensor.dims if d)  # NumPy multiplies these although nothing is there
    if any(d < 0 for d in tensor.dims) or (0 in tensor.dims and beside_zeros > sys.maxsize // 16):
        raise ModelError(f"tensor `{tensor.name}` has the impossible shape {list(tensor.dims)}.", fix=DAMAGED)
    count, a_byte = prod(tensor.dims), _PACKED.get(tensor.data_type, 1)
    if tensor.HasField("raw_data") and tensor.data_type != onnx.TensorProto.STRING:
        held, wanted, unit = len(tensor.raw_data), packed_size(tensor), "bytes"
    else:
        held, wanted, unit = len(getattr(tensor, field)), -(-count // a_byte), "values"
        if tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128):
            wanted *= 2
    if held != wanted:
        raise ModelError(
            f"tensor `{tensor.name}` holds {held} {unit}, its shape {list(tensor.dims)} asks for {wanted}.", fix=DAMAGED
        )


def _require_usable(node: onnx.NodeProto, version: int, function: str = "") -> None:
    where = f"{function}node {node.name or (node.output[0] if node.output else '?')} ({node.op_type})"
    if any(a.type in (AttributeProto.TYPE_PROTO, AttributeProto.TYPE_PROTOS) for a in node.attribute):
        raise ModelError("has a type as an attribute, which is not supported.", where=where)
    for attribute in node.attribute:
        if attribute.type == AttributeProto.UNDEFINED or (attribute.ref_attr_name and not function):
            raise ModelError(
                f"has an attribute `{attribute.name}` without a type or a value.", where=where, fix=DAMAGED
            )
    names = [a.name for a in node.attribute]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ModelError(f"has its attribute `{twice}` twice.", where=where, fix=DAMAGED)
    if node.domain not in STANDARD or not onnx.defs.has(node.op_type, ""):
        return
    try:
        schema = onnx.defs.get_schema(node.op_type, min(version, onnx.defs.onnx_opset_version()), "")
    except onnx.defs.SchemaError:  # an operator that this opset does not have yet, or no longer
        return
    if len(node.input) < schema.min_input or len(node.output) < schema.min_output:
        raise ModelError(
            f"has {len(node.input)} inputs and {len(node.output)} outputs, needs {schema.min_input} and "
            f"{schema.min_output}.",
            where=where,
            fix=DAMAGED,
        )


def _require_single_assignment(
    inputs: Sequence[str],
    initializers: Sequence[str],
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[str],
    function: str = "",
) -> None:
    """Every tensor is written once; what is read is written somewhere."""
    given = set(inputs)
    written = [*inputs, *(n for n in initializers if n not in given)]
    written += [name for node in nodes for name in node.output if name]
    for names in (written, initializers):
        if len(set(names)) < len(names):
            seen: set[str] = set()
            twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise ModelError(f"{function}tensor `{twice}` is given twice.", fix=DAMAGED)
    known = set(written)
    for node in nodes:
        for name in node.input:
            if name and name not in known:
                where = f"{function}node {node.name or (node.output[0] if node.output else '?')} ({node.op_type})"
                raise ModelError(f"reads `{name}`, which nothing writes.", where=where, fix=DAMAGED)
    for name in outputs:
        if name not in known:
            raise ModelError(f"{function}output `{name}` is written by nothing.", fix=DAMAGED)


def _require_ending_calls(model: onnx.ModelProto) -> None:
    """No function calls itself, by whatever detour."""
    calls = {
        (f.domain, f.name): {(n.domain, n.op_type) for graph in _graphs(f) for n in graph.node} for f in model.functions
    }
    while ending := [key for key, called in calls.items() if not called & calls.keys()]:
        for key in ending:
            del calls[key]
    for domain, name in calls:
        raise ModelError(f"function `{domain}.{name}` calls itself, or one that does.", fix=DAMAGED)


def nodes(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    """Every node of the graph or function, those of subgraphs too."""
    for inner in _graphs(graph):
        yield from inner.node


def _roots(model: onnx.ModelProto) -> list[onnx.GraphProto | onnx.FunctionProto]:
    """The graphs that are inside no other."""
    training = [graph for info in model.training_info for graph in (info.initialization, info.algorithm)]
    return [model.graph, *model.functions, *training]


def _graphs(*roots: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """The graphs and functions, and all graphs inside their nodes."""
    waiting = list(roots)
    while waiting:
        current = waiting.pop()
        yield current
        for attribute in _attributes(current):
            if attribute.HasField("g"):
                waiting.append(attribute.g)
            waiting.extend(attribute.graphs)


def _attributes(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[AttributeProto]:
    """Those of the nodes, and the defaults of a function."""
    if isinstance(graph, onnx.FunctionProto):
        yield from graph.attribute_proto
    for node in graph.node:
        yield from node.attribute


def _texts(model: onnx.ModelProto) -> Iterator[str | bytes]:
    """Everything that is a name, a symbol or a text; bytes where protobuf does not make it a string."""
    waiting: list[Any] = [model]
    while waiting:
        current = waiting.pop()
        for name, is_text, is_single in _fields(current.DESCRIPTOR):
            if is_single and not current.HasField(name):
                continue
            values = [getattr(current, name)] if is_single else getattr(current, name)
            if is_text:
                yield from values
            else:
                waiting.extend(values)
        if isinstance(current, AttributeProto) and current.type in (AttributeProto.STRING, AttributeProto.STRINGS):
            yield from (current.s, *current.strings)
        elif isinstance(current, onnx.TensorProto) and current.data_type == onnx.TensorProto.STRING:
            yield from current.string_data


@cache
def _fields(message: Descriptor) -> list[tuple[str, bool, bool]]:
    """Of a kind of message: the fields that are text or messages, whether it is text, whether there is but one."""
    kinds = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE)
    fields = [field for field in message.fields if field.type in kinds]
    return [(field.name, field.type == FieldDescriptor.TYPE_STRING, field.has_presence) for field in fields]
