"""Operations and parameters of a file as it runs.

A layer counts as binary where an XNOR op computes it: a binary network that is not compiled is float here, as it is for
onnxruntime (`inspect` says what would be binary). A multiply-accumulate is one operation and 64 binary ones are one, as
in `cost`; every plane of bits meets every basis of weights, so a layer with N planes and M bases counts N·M times. An
int8 multiply-accumulate counts as one. Sizes are those that tensors have when the model runs, so none stays open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from binarize_onnx import cost, io, opset, scopes
from binarize_onnx.bits import word_count
from binarize_onnx.passes.recognise_layers import LAYER_OPS
from binarize_onnx.verify.arrays import Array, Arrays
from binarize_onnx.verify.graphs import constants
from binarize_onnx.verify.session import Runner

FAMILIES = ("Conv", "Gemm", "MatMul", "Attention")

Sizes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Complexity:
    """What a model costs for one sample.

    Attributes:
        binary_macs: multiply-accumulates of bits.
        float_macs: all others, int8 ones too.
        parameter_bits: of weights and of everything else that is trained or fitted; a binary weight has one.
        uncounted: layers whose operations are not counted: an Einsum, one of a domain that is neither ONNX's nor ours,
            or one in a branch, a body or a function.
    """

    binary_macs: int
    float_macs: int
    parameter_bits: int
    uncounted: int = 0

    @property
    def ops(self) -> float:
        """`BOPs/64 + FLOPs`."""
        return cost.operations(self.binary_macs, self.float_macs)


def measure(model: onnx.ModelProto, feed: Arrays, samples: int, *, library: bool = False) -> Complexity:
    """Count, for one sample, what a model does with this feed.

    Args:
        model: what is counted.
        feed: inputs to run it on once.
        samples: how many these are.
        library: run our ops with the kernels.

    Raises:
        ModelError: the model does not run.
    """
    nodes = [node for node in io.import_graph(model).nodes if _is_layer(node)]
    constant = constants(model)
    sizes = {name: values.shape for name, values in (constant | feed).items()}
    named = {tensor.name for node in nodes for tensor in [*node.inputs[:4], *node.outputs] if tensor.name}
    runner = Runner(model, sorted(named - set(sizes)), library=library)
    sizes |= {name: values.shape for name, values in runner.run(feed).items()}
    binary, real, uncounted = 0, 0, 0
    for node in nodes:
        if node.domain == opset.DOMAIN:
            binary += _binary_macs(node, sizes)
        elif (macs := cost.macs(node, sizes)) is None:
            uncounted += 1
        else:
            real += macs
    uncounted += sum(map(_multiplies, _out_of_sight(model)))
    return Complexity(binary // samples, real // samples, _parameter_bits(nodes, constant), uncounted)


def _is_layer(node: gs.Node) -> bool:
    return node.op in (opset.LAYERS if node.domain == opset.DOMAIN else () if node.domain else LAYER_OPS)


def _out_of_sight(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Nodes whose operations are not counted: in branches and bodies, in functions, and those that others define."""
    for node in model.graph.node:
        yield from scopes.nodes_inside(node)
        if node.domain not in ("", "ai.onnx", opset.DOMAIN):
            yield node
    for function in model.functions:
        if function.domain != opset.DOMAIN:
            yield from function.node


def _multiplies(node: onnx.NodeProto) -> bool:
    """Whether the operator is a layer, by its name where others define it: FusedConv, QGemm, MultiHeadAttention."""
    return node.op_type in LAYER_OPS or any(word in node.op_type for word in FAMILIES)


def _binary_macs(node: gs.Node, sizes: Sizes) -> int:
    """Of an XnorConv or XnorMatMul: planes · filters · places · terms."""
    words, weights = (sizes[tensor.name] for tensor in node.inputs[:2])
    made = next(sizes[tensor.name] for tensor in node.outputs if tensor.name)
    if node.op == "XnorConv":
        channels: int = node.attrs["channels"]
        places, filters = made[0] * prod(made[2:]), weights[0]
        terms, planes = channels // node.attrs["group"] * prod(weights[2:]), words[1] // word_count(channels)
    else:
        terms = node.attrs["k"]
        places, filters, planes = prod(made[:-1]), weights[-1], words[-1] // word_count(terms)
    return int(planes * filters * places * terms)


def _parameter_bits(nodes: list[gs.Node], constant: Mapping[str, Array]) -> int:
    """Bits of all parameters; of packed weights and masks only those that stand for one, not what fills a word."""
    packed: dict[str, int] = {}
    for node in nodes:
        if node.domain == opset.DOMAIN:
            weights, mask = (constant.get(tensor.name) for tensor in node.inputs[1:3])
            if weights is not None:
                packed[node.inputs[1].name] = _weight_bits(node, weights.shape)
                if mask is not None and mask.shape == weights.shape:  # a neutral one has one filter
                    packed[node.inputs[2].name] = _weight_bits(node, mask.shape)
    return sum(packed.get(name, 0) or _bits(values) for name, values in constant.items())


def _weight_bits(node: gs.Node, shape: tuple[int, ...]) -> int:
    """Of weights [O, words, kh, kw] or [..., words, N], without the lanes that fill a word."""
    if node.op == "XnorConv":
        return int(shape[0] * (node.attrs["channels"] // node.attrs["group"]) * prod(shape[2:]))
    return int(prod(shape[:-2]) * node.attrs["k"] * shape[-1])


def _bits(values: Array) -> int:
    """Of a constant that is no packed weight: real numbers, 8-bit integers, and the 32-bit ones of int8 biases."""
    is_parameter = values.dtype.kind == "f" or values.dtype in (np.int8, np.uint8, np.int32)
    return values.size * values.dtype.itemsize * 8 if is_parameter else 0
