"""Shapes of a model's tensors, by ONNX shape inference on a copy without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from binarize_onnx.errors import UsageError

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

    known: dict[str, tuple[int | None, ...]]
    stand_in: dict[str, tuple[int, ...]]


def infer(model: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]] | None = None) -> Shapes:
    """Infer all shapes; `input_shapes` fixes the shapes of graph inputs by name.

    Raises:
        UsageError: `input_shapes` names no input of the model, or disagrees with it in rank.
    """
    skeleton = _skeleton(model)
    _fix_inputs(skeleton, input_shapes or {})
    known = _run(skeleton)
    _replace_symbols(skeleton)
    stand_in = {
        name: tuple(d for d in shape if d is not None) for name, shape in _run(skeleton).items() if None not in shape
    }
    return Shapes(known, stand_in)


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


def _replace_symbols(skeleton: onnx.ModelProto) -> None:
    """A number for every open input dimension: the same for the same symbol, large and even for image sizes."""
    numbers: dict[str, int] = {}
    for tensor in skeleton.graph.input:
        for axis, dim in enumerate(tensor.type.tensor_type.shape.dim):
            if dim.WhichOneof("value") == "dim_value":
                continue
            symbol = dim.dim_param or f"{tensor.name}[{axis}]"
            first = STAND_IN_BATCH if axis == 0 else STAND_IN_SIZE + 32 * len(numbers)
            dim.dim_value = numbers.setdefault(symbol, first)


def _run(skeleton: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    try:
        graph = onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
    except onnx.shape_inference.InferenceError:
        graph = skeleton.graph  # what stays unknown is reported where it matters
    found: dict[str, tuple[int | None, ...]] = {}
    for tensor in [*graph.input, *graph.value_info, *graph.output]:
        if tensor.type.tensor_type.HasField("shape"):
            dims = tensor.type.tensor_type.shape.dim
            found[tensor.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
    for constant in graph.initializer:
        found[constant.name] = tuple(constant.dims)
    return found
