"""The layers of a float model that can be quantized, and why the others cannot.

    before   y = BatchNormalization(Conv(x, W, b)) | Add(MatMul(x, W), b) | Gemm(x, W, b) | ...
    site     y = conv(x, W') + b'             W', b' in float64, everything constant behind the layer folded into them

A site says what the layer computes; the model itself stays as it is. Names are those that `inspect` prints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from binarize_onnx import io, pipeline, shapes
from binarize_onnx.errors import ModelError
from binarize_onnx.passes.base import Array, Context, along_axis, constant_value, split_operands, tidy
from binarize_onnx.passes.fold_constants import FoldConstants
from binarize_onnx.passes.layer_limits import explicit_pads, unsupported
from binarize_onnx.passes.recognise_layers import LAYER_OPS, Filter
from binarize_onnx.passes.weights import layer_bias, output_axis, unsuitable
from binarize_onnx.quantize.plan import Plan
from binarize_onnx.quantize.precision import MOST_BITS, Precision
from binarize_onnx.reasons import Code, Reason

QUANTIZABLE = ("Conv", "Gemm", "MatMul")
LARGEST_LEVEL = (1 << MOST_BITS) - 1


@dataclass(frozen=True, eq=False)
class Site:
    """A layer that can be quantized.

    Attributes:
        name: of the layer.
        op: its operator.
        kind: `conv` for [N, C, ...] and `product` for [..., K].
        input: the tensor that it reads.
        output: the tensor that it writes, behind all that is folded.
        writes: the outputs of the nodes that it consists of: the layer's own first, `output` last.
        weights: float64, [O, C / group, ...] of a convolution, [O, K] of a product.
        bias: float64 [O].
        rank: of its input.
        group: of a convolution, as `strides`, `pads` (beginnings, then ends) and `dilations`.
        macs: multiply-accumulates for one sample; None where sizes are open.
        edge: `first` or `last` if no other layer is in front of it or behind it.
    """

    name: str
    op: str
    kind: Literal["conv", "product"]
    input: str
    output: str
    writes: tuple[str, ...]
    weights: Array
    bias: Array
    rank: int
    group: int = 1
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    macs: int | None = None
    edge: Literal["", "first", "last"] = ""

    @property
    def outputs(self) -> int:
        """O, the number of output channels."""
        return int(self.weights.shape[0])

    @property
    def length(self) -> int:
        """D, the number of terms of a dot product."""
        return int(self.weights[0].size)

    @property
    def channels(self) -> int:
        """C or K, the channels of its input."""
        return int(self.weights.shape[1]) * self.group


@dataclass(frozen=True, eq=False)
class Network:
    """A float model as its quantization starts from it.

    Attributes:
        model: in standard operators, constants folded, every layer named, nodes in topological order.
        sites: the layers that can be quantized, in that order.
        left: why each other layer cannot.
    """

    model: onnx.ModelProto
    sites: tuple[Site, ...]
    left: Mapping[str, Reason] = field(default_factory=dict)

    def choose(self, precision: Precision, wanted: Filter | None = None) -> tuple[Plan, dict[str, Reason]]:
        """One precision for every site that is wanted, and why each other layer stays as it is.

        First and last layers stay float unless the filter names what to include, and they are among it.
        """
        wanted = wanted or Filter()
        plan: dict[str, Precision] = {}
        left = dict(self.left)
        for site in self.sites:
            reason = _refusal(site, wanted)
            if reason is None:
                plan[site.name] = precision
            else:
                left[site.name] = reason
        return plan, left


def _refusal(site: Site, wanted: Filter) -> Reason | None:
    if site.op in wanted.exclude_ops:
        return Reason(Code.EXCLUDED, f"operator type {site.op} is excluded")
    if any(re.fullmatch(pattern, site.name) for pattern in wanted.exclude):
        return Reason(Code.EXCLUDED, "excluded by name")
    if wanted.include:
        if any(re.fullmatch(pattern, site.name) for pattern in wanted.include):
            return None
        return Reason(Code.EXCLUDED, "not among the nodes asked for")
    if site.edge:
        return Reason(Code.EXCLUDED, f"the {site.edge} layer stays float unless --nodes-to-quantize names it")
    return None


def find(source: onnx.ModelProto, config: pipeline.Config | None = None) -> Network:
    """The network and its sites.

    Args:
        source: any model that `convert` reads.
        config: how it is read (`input_shapes`, `map_ops`); what it says of choosing layers is for `Network.choose`.

    Raises:
        ModelError: the model cannot be prepared, or the weights of a layer are not finite.
    """
    config = config or pipeline.Config()
    prepared, _ = pipeline.translate(source, config)
    inferred = shapes.infer(prepared)
    binary = _binary_already(prepared, inferred)
    context = Context(io.import_graph(prepared), inferred)
    layers = {layer.name: layer for layer in pipeline.name_layers(context)}
    tidy(context.graph)
    FoldConstants(context).run()
    _require_finite(context)
    sites: list[Site] = []
    left: dict[str, Reason] = {}
    edges = _edges(context)
    for node in context.graph.nodes:
        if node.name not in layers:
            continue
        if node.name in binary:
            left[node.name] = Reason(Code.BINARY, "it is binary already")
            continue
        found = _site(node, context, layers[node.name].macs, edges.get(node.name, ""))
        if isinstance(found, Reason):
            left[node.name] = found
        else:
            sites.append(found)
    for name, layer in layers.items():
        if name not in left and all(site.name != name for site in sites):
            left[name] = Reason(layer.code, layer.reason)
    return Network(io.export_graph(context.graph, prepared, {}), tuple(sites), left)


def _require_finite(context: Context) -> None:
    """Refuse a network that answers NaN whatever it is asked: of the first layer whose constants make it so.

    Raises:
        ModelError: a weight, a bias or a parameter of a normalization is NaN or infinite.
    """
    for node in context.graph.nodes:
        if node.domain or node.op not in (*LAYER_OPS, "BatchNormalization"):
            continue
        for tensor in node.inputs:
            values = constant_value(tensor)
            if values is not None and values.dtype.kind == "f" and not np.all(np.isfinite(values)):
                words = f"`{tensor.name}` of {node.op} `{node.name or node.outputs[0].name}` holds NaN or infinity:"
                raise ModelError(words, fix="nothing can be fitted behind it; mend the model's weights first.")


def _binary_already(prepared: onnx.ModelProto, inferred: shapes.Shapes) -> set[str]:
    """The layers that the compiler would take for binary as they are."""
    context = Context(io.import_graph(prepared), inferred)
    pipeline.name_layers(context)
    pipeline.idealise(context, Filter())
    return set(context.binary)


def _edges(context: Context) -> dict[str, Literal["first", "last"]]:
    """The layers that no other layer is in front of, or behind."""
    names = {id(node): node.name for node in context.graph.nodes if node.op in LAYER_OPS and not node.domain}
    behind_layer: set[int] = set()  # ids of tensors
    found: dict[str, Literal["first", "last"]] = {}
    for node in context.graph.nodes:
        follows = any(id(t) in behind_layer for t in node.inputs)
        if id(node) in names and not follows:
            found[node.name] = "first"
        if follows or id(node) in names:
            behind_layer |= {id(t) for t in node.outputs}
    before_layer: set[int] = set()
    for node in reversed(context.graph.nodes):
        precedes = any(id(t) in before_layer for t in node.outputs)
        if id(node) in names and not precedes:
            found.setdefault(node.name, "last")
        if precedes or id(node) in names:
            before_layer |= {id(t) for t in node.inputs}
    return found


def _site(node: gs.Node, context: Context, macs: int | None, edge: Literal["", "first", "last"]) -> Site | Reason:
    if node.domain or node.op not in QUANTIZABLE:
        return Reason(Code.UNSUPPORTED_OP, f"{node.op} is not quantized after training")
    values = constant_value(node.inputs[1])
    if values is None:
        if constant_value(node.inputs[0]) is not None:
            return Reason(Code.WEIGHTS_ON_LEFT, "its weights are on the left")
        return Reason(Code.WEIGHTS_NOT_CONSTANT, f"its weights `{node.inputs[1].name}` are computed at run time")
    wrong = unsuitable(values)
    if wrong is not None:
        return wrong
    if values.dtype != np.float32:
        return Reason(Code.NOT_FLOAT32, f"its weights are {values.dtype}; float32 ones are quantized")
    convolution = node.op == "Conv"
    pads = explicit_pads(node, values, context) if convolution and values.ndim > 2 else []
    if isinstance(pads, Reason):
        return pads
    refused = unsupported(node, values, LARGEST_LEVEL, 1.0, pads, context)
    if refused is not None:
        return refused
    shape = context.shape(node.inputs[0])
    if shape is None or context.shape(node.outputs[0]) is None:
        words = f"the rank of its input `{node.inputs[0].name}` is unknown; --input-shape may settle it"
        return Reason(Code.DYNAMIC_SHAPE, words)
    weights = np.moveaxis(values.astype(np.float64), output_axis(node), 0)
    bias = np.zeros(weights.shape[0])
    own = layer_bias(node)
    if own is not None:
        bias += own.astype(np.float64) * float(node.attrs.get("beta", 1.0))
    weights = weights * float(node.attrs.get("alpha", 1.0))
    weights, bias, writes = _folded(node, weights, bias, context)
    axes = values.ndim - 2 if convolution else 0
    return Site(
        name=node.name,
        op=node.op,
        kind="conv" if convolution else "product",
        input=node.inputs[0].name,
        output=writes[-1],
        writes=tuple(writes),
        weights=np.ascontiguousarray(weights),
        bias=bias,
        rank=len(shape),
        group=int(node.attrs.get("group", 1)),
        strides=tuple(int(s) for s in node.attrs.get("strides", [1] * axes)),
        pads=tuple(pads),
        dilations=tuple(int(d) for d in node.attrs.get("dilations", [1] * axes)),
        macs=macs,
        edge=edge,
    )


def _folded(node: gs.Node, weights: Array, bias: Array, context: Context) -> tuple[Array, Array, list[str]]:
    """Weights and bias with every constant step behind the layer in them, and what all these nodes write."""
    result = node.outputs[0]
    rank = len(context.shape(result) or ())
    axis = 1 if node.op == "Conv" else rank - 1
    writes = [result.name]
    while (step := context.only_consumer(result)) is not None:
        found = _affine(step, result, axis, rank, weights.shape[0])
        if found is None:
            break
        scale, shift = found
        weights = weights * scale.reshape(-1, *[1] * (weights.ndim - 1))
        bias = bias * scale + shift
        result = step.outputs[0]
        writes.append(result.name)
    return weights, bias, writes


def _affine(step: gs.Node, x: gs.Tensor, axis: int, rank: int, channels: int) -> tuple[Array, Array] | None:
    """`(scale, shift)`, float64 [channels], of a step that is x * scale + shift; None if it is not."""
    if step.domain:
        return None
    ones, zeros = np.ones(channels), np.zeros(channels)
    if step.op == "BatchNormalization":
        parameters = [constant_value(t) for t in step.inputs[1:5]]
        if axis != 1 or step.attrs.get("training_mode", 0) or any(not t.is_empty() for t in step.outputs[1:]):
            return None
        if any(p is None or p.shape != (channels,) for p in parameters):
            return None
        gamma, beta, mean, var = (np.asarray(p, np.float64) for p in parameters)
        spread = var + step.attrs.get("epsilon", 1e-5)
        if np.any(spread <= 0):
            return None
        scale = gamma / np.sqrt(spread)
        return _finite(scale, beta - mean * scale)
    operands = split_operands(step) if step.op in ("Add", "Sub", "Mul", "Div") else None
    if operands is None or operands[0] is not x or operands[1].dtype != np.float32:
        return None
    vector = along_axis(operands[1], axis, rank)
    if vector is None or vector.size not in (1, channels):
        return None
    values = np.broadcast_to(vector.astype(np.float64), (channels,))
    first = step.inputs[0] is x
    if step.op == "Add":
        return _finite(ones, values)
    if step.op == "Sub":
        return _finite(ones, -values) if first else _finite(-ones, values)
    if step.op == "Mul":
        return _finite(values, zeros)
    return _finite(1 / values, zeros) if first and np.all(values != 0) else None


def _finite(scale: Array, shift: Array) -> tuple[Array, Array] | None:
    return (scale, shift) if np.all(np.isfinite(scale)) and np.all(np.isfinite(shift)) else None
