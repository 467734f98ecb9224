"""Shapes of a model's tensors, by ONNX shape inference on a copy without its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import isqrt, prod

import onnx
from google.protobuf.message import EncodeError

from binarize_onnx import opset
from binarize_onnx.errors import UsageError

Dims = tuple[int | None, ...]

# Operators of onnxruntime's own whose first output has the shape and type of their first input.
SHAPE_KEEPING = frozenset(
    {"BiasGelu", "FastGelu", "Gelu", "QuickGelu", "SimplifiedLayerNormalization", "SkipLayerNormalization"}
)
SMALL = 1024  # initializers up to this many elements may be shapes or axes, so inference gets to see them
LONGEST_VALUE = 1 << 16  # elements of a value that inference may follow: far more than any shape has
# Operators whose values inference does not follow, whatever it knows of their inputs.
UNFOLLOWED = frozenset(
    {
        "AveragePool",
        "BatchNormalization",
        "Conv",
        "ConvTranspose",
        "Gemm",
        "GlobalAveragePool",
        "MatMul",
        "MaxPool",
        "PRelu",
        "Relu",
        "Sign",
    }
)
MOST_AXES = 8  # elements of a shape, which is what a tensor of unknown values may hold
# Open dimensions get primes of their own, from here on, that no real network uses; behind the first axis multiplied, so
# that image sizes stay divisible by the usual strides.
FIRST_PRIME = 1009
SIZE_STEP = 32


@dataclass(frozen=True)
class Shapes:
    """Shapes by tensor name.

    Attributes:
        known: what is fixed in the model; None for a dimension left open.
        stand_in: the same with a number in place of every open dimension (one number a symbol), so that two tensors
            can be compared whose sizes are only known at run time.
        types: element types, as ONNX numbers them.
    """

    known: dict[str, Dims]
    stand_in: dict[str, tuple[int, ...]]
    types: dict[str, int]


def infer(model: onnx.ModelProto) -> Shapes:
    """Infer the shapes and types of all tensors that ONNX shape inference, or the file itself, knows."""
    skeleton = _skeleton(model)
    # What inference cannot find (behind operators it does not know), the file may declare.
    declared = [v for v in model.graph.value_info if v.type.tensor_type.HasField("shape")]
    inferred, types = _run(skeleton)
    while _settle_quotients(skeleton, inferred):
        inferred, types = _run(skeleton)
    known = _complete(inferred, {v.name: _dims(v) for v in declared})
    numbers = _replace_symbols(skeleton)
    stand_in = _complete(_run(skeleton)[0], {v.name: _dims(v, numbers) for v in declared})
    closed = {name: tuple(d for d in shape if d is not None) for name, shape in stand_in.items() if None not in shape}
    return Shapes(known, closed, types)


def fix_inputs(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give graph inputs the shapes that the caller names: the model then accepts no others.

    Raises:
        UsageError: a name is no input of the model, or a shape contradicts what the model says.
    """
    initialised = {t.name for t in model.graph.initializer}
    inputs = {i.name: i for i in model.graph.input if i.name not in initialised}
    for name, shape in shapes.items():
        if name not in inputs:
            raise UsageError(f"the model has no input `{name}`;", fix=f"its inputs are {', '.join(inputs)}.")
        tensor_type = inputs[name].type.tensor_type
        if tensor_type.HasField("shape"):
            declared = _dims(inputs[name])
            fits = len(declared) == len(shape) and all(d in (None, n) for d, n in zip(declared, shape, strict=True))
            if not fits:
                has = ",".join("?" if d is None else str(d) for d in declared)
                raise UsageError(f"input `{name}` has shape {has}, which {','.join(map(str, shape))} contradicts.")
        tensor_type.shape.CopyFrom(onnx.TensorShapeProto(dim=[{"dim_value": d} for d in shape]))


def _complete(inferred: dict[str, Dims], declared: dict[str, Dims]) -> dict[str, Dims]:
    """Inferred shapes, their gaps filled from declared ones of the same rank."""
    merged = dict(declared)
    for name, shape in inferred.items():
        other = declared.get(name, shape)
        if len(other) != len(shape):
            other = shape
        merged[name] = tuple(d if d is not None else o for d, o in zip(shape, other, strict=True))
    return merged


def _skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with large initializers turned into inputs, and every claim about inner shapes dropped."""
    skeleton = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = skeleton.graph
    graph.name = model.graph.name
    long = _long_concats(model)
    sizes = {t.name: t.dims for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Level" and node.domain == opset.IDEAL_DOMAIN and node.input[1] in sizes:
            _add_level(graph, node, sizes[node.input[1]])
        elif not _divides_by_zero(node) and not long.intersection(node.output):
            graph.node.append(_known(node))
    initialised = {t.name for t in model.graph.initializer}
    graph.input.extend(i for i in model.graph.input if i.name not in initialised)
    for tensor in model.graph.initializer:
        if prod(tensor.dims) <= SMALL and tensor.data_location != onnx.TensorProto.EXTERNAL:
            graph.initializer.append(tensor)
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    graph.output.extend(onnx.ValueInfoProto(name=output.name) for output in model.graph.output)
    return skeleton


def _add_level(graph: onnx.GraphProto, node: onnx.NodeProto, dims: Sequence[int]) -> None:
    """What gives the shape and type of a Level: its body computes with ranks, which inference does not follow."""
    x, one = f"{node.output[0]}.float32", f"{node.output[0]}.one_threshold"
    graph.input.append(onnx.helper.make_tensor_value_info(one, onnx.TensorProto.FLOAT, dims[1:]))
    graph.node.append(onnx.helper.make_node("Cast", node.input[:1], [x], to=onnx.TensorProto.FLOAT))
    graph.node.append(onnx.helper.make_node("Add", [x, one], node.output))


def _known(node: onnx.NodeProto) -> onnx.NodeProto:
    """The node, or one that inference knows and that gives the same shape and type."""
    if node.domain != "com.microsoft" or node.op_type not in SHAPE_KEEPING or not node.input or not node.output:
        return node
    return onnx.helper.make_node("Identity", node.input[:1], node.output[:1])


def _long_concats(model: onnx.ModelProto) -> set[str]:
    """Outputs of Concat nodes that may make long constants: inference, which follows values, would make them too.

    Forty nodes that concatenate a tensor with itself are a terabyte. What depends on an input, or on an operator whose
    values inference never follows, has no values: a DenseNet may concatenate as often as it likes.
    """
    sizes = {t.name: size for t in model.graph.initializer if (size := prod(t.dims)) <= SMALL}
    long: set[str] = set()
    for node in model.graph.node:
        given = [sizes.get(name) for name in node.input if name]
        followed = [size for size in given if size is not None]
        if node.op_type == "Shape":
            size = MOST_AXES
        elif node.op_type in UNFOLLOWED or len(followed) < len(given):
            continue
        elif node.op_type == "Concat":
            size = sum(followed)
        else:
            size = max(followed, default=MOST_AXES)
        if node.op_type == "Concat" and size > LONGEST_VALUE:
            long.update(node.output)
            size = MOST_AXES
        sizes.update(dict.fromkeys(node.output, size))
    return long


def _settle_quotients(skeleton: onnx.ModelProto, known: dict[str, Dims]) -> bool:
    """Write the quotients of known sizes as constants, in place; whether there were any.

    Inference follows sizes through everything but division: `x.shape[-1] // heads` of an attention block.
    """
    sizes: dict[str, Dims] = {}
    values = {t.name: int(onnx.numpy_helper.to_array(t).item()) for t in skeleton.graph.initializer if _is_one_size(t)}
    settled = False
    for node in skeleton.graph.node:
        given, output = list(node.input), next(iter(node.output), "")
        match node.op_type:
            case "Constant" if len(node.attribute) == 1 and _is_one_size(node.attribute[0].t):
                values[output] = int(onnx.numpy_helper.to_array(node.attribute[0].t).item())
            case "Shape" if not node.attribute and given[0] in known:
                sizes[output] = known[given[0]]
            case "Gather" if given[0] in sizes and given[1] in values:
                place, shape = values[given[1]], sizes[given[0]]
                size = shape[place] if -len(shape) <= place < len(shape) else None
                if size is not None:
                    values[output] = size
            case "Cast" if [a.i for a in node.attribute] != [onnx.TensorProto.INT64]:
                pass  # a quotient of other types rounds otherwise, or not at all
            case "Cast" | "Identity" | "Unsqueeze" | "Squeeze" if given[0] in values:
                values[output] = values[given[0]]
            case "Div" if all(i in values for i in given) and values[given[0]] >= 0 and values[given[1]] > 0:
                rank = len(known.get(output, ()))
                quotient = onnx.helper.make_tensor(
                    output, onnx.TensorProto.INT64, [1] * rank, [values[given[0]] // values[given[1]]]
                )
                node.CopyFrom(onnx.helper.make_node("Constant", [], [output], value=quotient))
                settled = True
    return settled


def _is_one_size(tensor: onnx.TensorProto) -> bool:
    external = tensor.data_location == onnx.TensorProto.EXTERNAL
    return tensor.data_type == onnx.TensorProto.INT64 and prod(tensor.dims) == 1 and not external


def _divides_by_zero(node: onnx.NodeProto) -> bool:
    """Whether a stride or the like is not positive: older onnx divides by it without a look, and dies."""
    for attribute in node.attribute:
        if attribute.name in ("strides", "dilations", "kernel_shape", "group"):
            values = attribute.ints if attribute.type == onnx.AttributeProto.INTS else [attribute.i]
            if any(value < 1 for value in values):
                return True
    return False


def _replace_symbols(skeleton: onnx.ModelProto) -> dict[str, int]:
    """A number for every open input dimension: the same for the same symbol, another for every other."""
    numbers: dict[str, int] = {}
    primes = _primes()
    for tensor in skeleton.graph.input:
        for axis, dim in enumerate(tensor.type.tensor_type.shape.dim):
            if dim.WhichOneof("value") == "dim_value":
                continue
            symbol = dim.dim_param or f"{tensor.name}[{axis}]"
            if symbol not in numbers:
                numbers[symbol] = next(primes) * (1 if axis == 0 else SIZE_STEP)
            dim.dim_value = numbers[symbol]
    return numbers


def _primes() -> Iterator[int]:
    """The primes from FIRST_PRIME on, as many as there are symbols: two that shared one would look like one size."""
    return (n for n in count(FIRST_PRIME) if all(n % d for d in range(2, isqrt(n) + 1)))


def _dims(value: onnx.ValueInfoProto, numbers: Mapping[str, int] | None = None) -> Dims:
    """A declared shape; symbols are None, or the number that stands in for them."""
    return tuple(
        d.dim_value if d.HasField("dim_value") else (numbers or {}).get(d.dim_param)
        for d in value.type.tensor_type.shape.dim
    )


def _run(skeleton: onnx.ModelProto) -> tuple[dict[str, Dims], dict[str, int]]:
    try:
        graph = onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, EncodeError, ValueError, RuntimeError):
        graph = skeleton.graph  # what stays unknown is reported where it matters
    shapes: dict[str, Dims] = {}
    types: dict[str, int] = {}
    for tensor in [*graph.input, *graph.value_info, *graph.output]:
        if tensor.type.tensor_type.HasField("shape"):
            shapes[tensor.name] = _dims(tensor)
        if tensor.type.tensor_type.elem_type:
            types[tensor.name] = tensor.type.tensor_type.elem_type
    for constant in graph.initializer:
        shapes[constant.name] = tuple(constant.dims)
    return shapes, types
