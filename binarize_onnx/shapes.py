"""Shapes of a model's tensors, by ONNX shape inference on a copy without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from binarize_onnx.errors import UsageError

Dims = tuple[int | None, ...]

SMALL = 1024  # initializers up to this many elements may be shapes or axes, so inference gets to see them
STAND_IN_BATCH = 7
STAND_IN_SIZE = 224


@dataclass(frozen=True)
class Shapes:
    """Shapes by tensor name.

    Attributes:
        known: what is fixed in the model; None for a dimension left open.
        stand_in: the same with a number in place of every open dimension (one number a symbol), so that two tensors
            can be compared whose sizes are only known at run time.
    """

    known: dict[str, Dims]
    stand_in: dict[str, tuple[int, ...]]


def infer(model: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]] | None = None) -> Shapes:
    """Infer all shapes; `input_shapes` fixes the shapes of graph inputs by name.

    Raises:
        UsageError: `input_shapes` names no input of the model, or disagrees with it in rank.
    """
    skeleton = _skeleton(model)
    _fix_inputs(skeleton, input_shapes or {})
    # What inference cannot find (behind operators it does not know), the file may declare.
    declared = [v for v in model.graph.value_info if v.type.tensor_type.HasField("shape")]
    known = _complete(_run(skeleton), {v.name: _dims(v) for v in declared})
    numbers = _replace_symbols(skeleton)
    stand_in = _complete(_run(skeleton), {v.name: _dims(v, numbers) for v in declared})
    closed = {name: tuple(d for d in shape if d is not None) for name, shape in stand_in.items() if None not in shape}
    return Shapes(known, closed)


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
    graph.node.extend(model.graph.node)
    initialised = {t.name for t in model.graph.initializer}
    graph.input.extend(i for i in model.graph.input if i.name not in initialised)
    for tensor in model.graph.initializer:
        size = 1
        for dim in tensor.dims:
            size *= dim
        if size <= SMALL and tensor.data_location != onnx.TensorProto.EXTERNAL:
            graph.initializer.append(tensor)
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    graph.output.extend(onnx.ValueInfoProto(name=output.name) for output in model.graph.output)
    return skeleton


def _fix_inputs(skeleton: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    inputs = {i.name: i for i in skeleton.graph.input}
    for name, shape in shapes.items():
        if name not in inputs:
            raise UsageError(f"the model has no input `{name}`;", fix=f"its inputs are {', '.join(inputs)}")
        tensor_type = inputs[name].type.tensor_type
        if tensor_type.HasField("shape") and len(tensor_type.shape.dim) != len(shape):
            raise UsageError(f"input `{name}` has rank {len(tensor_type.shape.dim)}, not {len(shape)}")
        tensor_type.shape.CopyFrom(onnx.TensorShapeProto(dim=[{"dim_value": d} for d in shape]))


def _replace_symbols(skeleton: onnx.ModelProto) -> dict[str, int]:
    """A number for every open input dimension: the same for the same symbol, large and even for image sizes."""
    numbers: dict[str, int] = {}
    for tensor in skeleton.graph.input:
        for axis, dim in enumerate(tensor.type.tensor_type.shape.dim):
            if dim.WhichOneof("value") == "dim_value":
                continue
            symbol = dim.dim_param or f"{tensor.name}[{axis}]"
            first = STAND_IN_BATCH if axis == 0 else STAND_IN_SIZE + 32 * len(numbers)
            dim.dim_value = numbers.setdefault(symbol, first)
    return numbers


def _dims(value: onnx.ValueInfoProto, numbers: Mapping[str, int] | None = None) -> Dims:
    """A declared shape; symbols are None, or the number that stands in for them."""
    return tuple(
        d.dim_value if d.HasField("dim_value") else (numbers or {}).get(d.dim_param)
        for d in value.type.tensor_type.shape.dim
    )


def _run(skeleton: onnx.ModelProto) -> dict[str, Dims]:
    try:
        graph = onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
    except onnx.shape_inference.InferenceError:
        graph = skeleton.graph  # what stays unknown is reported where it matters
    found: dict[str, Dims] = {}
    for tensor in [*graph.input, *graph.value_info, *graph.output]:
        if tensor.type.tensor_type.HasField("shape"):
            found[tensor.name] = _dims(tensor)
    for constant in graph.initializer:
        found[constant.name] = tuple(constant.dims)
    return found
