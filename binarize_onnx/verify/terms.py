"""How large the sums of |terms| behind a tensor are: its roundings are measured by them.

A float32 sum of terms that cancel is small and its rounding error is not: every partial sum rounds at its own size. The
sum of |terms| bounds all of these sizes. The pieces of a graph compute it themselves, if they are fed with absolute
values and their constants are absolute values too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from binarize_onnx.verify.arrays import Array, Arrays
from binarize_onnx.verify.graphs import is_standard, pruned
from binarize_onnx.verify.pieces import Pieces
from binarize_onnx.verify.session import Runner


class Terms:
    """The sums of |terms| behind tensors: by the pieces of several graphs, whichever is largest.

    The source may have terms that cancel in a constant of the ideal graph: BatchNormalization's mean and offset.
    """

    def __init__(self, graphs: Sequence[Pieces], tensors: Sequence[str]) -> None:
        self._graphs: list[tuple[Runner, dict[str, str]]] = []  # with the tensor that each output is about
        for pieces in graphs:
            outputs = {pieces.computed(name): name for name in tensors if pieces.has_terms(name)}
            if outputs:
                self._graphs.append((Runner(pruned(_absolute(pieces.model), outputs)), outputs))

    def run(self, known: Mapping[str, Array]) -> Arrays:
        """The sums for those tensors that have any, from the values of all inputs of the pieces."""
        # np.abs of a scalar is no array, and onnxruntime takes nothing else.
        magnitudes = {name: np.asarray(np.abs(_single(x))) if x.dtype.kind == "f" else x for name, x in known.items()}
        found: Arrays = {}
        for runner, outputs in self._graphs:
            for output, sums in runner.run(magnitudes).items():
                name = outputs[output]
                found[name] = np.maximum(found[name], sums) if name in found else sums
        return found


def _absolute(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same pieces on sums of |terms|: for inputs |x| every step returns what its roundings are measured by.

    Constants become their absolute values, a difference becomes a sum, a choice the larger of its two sides, and
    activations pass on what they could at most pass on: max(1, |slope|) times their input. float16 becomes float32, in
    which the sums do not overflow.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for tensor in graph.initializer:
        values = constants[tensor.name]
        if values.dtype.kind == "f":
            tensor.CopyFrom(numpy_helper.from_array(np.abs(_single(values)), tensor.name))
    for given in graph.input:
        if given.type.tensor_type.elem_type == TensorProto.FLOAT16:
            given.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]

    def add(hint: str, values: Array) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.float32), f"{hint}|absolute"))
        return f"{hint}|absolute"

    def scale(node: NodeProto, factor: Array) -> None:
        node.input[:] = [node.input[0], add(node.output[0], np.maximum(1, np.abs(factor)))]
        node.op_type = "Mul"
        del node.attribute[:]

    nodes: list[NodeProto] = []
    for node in graph.node:
        attributes = {a.name: a for a in node.attribute}
        if node.op_type == "Constant":
            for attribute in node.attribute:
                _take_absolute(attribute)
        elif not is_standard(node):
            pass
        elif node.op_type == "Cast" and attributes["to"].i == TensorProto.FLOAT16:
            attributes["to"].i = TensorProto.FLOAT
        elif node.op_type == "Sub":
            node.op_type = "Add"
        elif node.op_type == "Neg":
            node.op_type = "Identity"
        elif node.op_type == "Clip":
            node.op_type = "Identity"
            del node.input[1:]
        elif node.op_type == "Where":
            larger = f"{node.output[0]}|larger"
            nodes.append(helper.make_node("Max", node.input[1:], [larger]))
            node.input[:] = [node.input[0], larger, larger]  # the condition still gives its shape
        elif node.op_type == "PRelu" and node.input[1] in constants:
            scale(node, constants[node.input[1]])
        elif node.op_type == "LeakyRelu":
            scale(node, np.asarray(attributes["alpha"].f if "alpha" in attributes else 0.01))
        elif node.op_type == "Gemm":
            for name in ("alpha", "beta"):
                if name in attributes:
                    attributes[name].f = abs(attributes[name].f)
        elif node.op_type == "BatchNormalization" and node.input[3] in constants:
            node.input[3] = add(node.output[0], -np.abs(constants[node.input[3]]))  # it subtracts the mean
        nodes.append(node)
    copied = onnx.GraphProto(node=nodes)
    del graph.node[:]
    graph.node.extend(copied.node)
    return changed


def _take_absolute(attribute: AttributeProto) -> None:
    """|value| of a Constant node's value, if it holds floats."""
    if attribute.type == AttributeProto.FLOAT:
        attribute.f = abs(attribute.f)
    elif attribute.type == AttributeProto.FLOATS:
        attribute.floats[:] = [abs(value) for value in attribute.floats]
    elif attribute.type == AttributeProto.TENSOR and attribute.t.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
        values = np.abs(_single(numpy_helper.to_array(attribute.t)))
        attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))


def _single(values: Array) -> Array:
    """float16 as float32, anything else as it is."""
    return values.astype(np.float32) if values.dtype == np.float16 else values
