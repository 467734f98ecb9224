"""Cut a graph into pieces that can be fed with the source's own tensors.

A binary network turns one rounding error into a flipped sign and one flipped sign into thousands, so that two graphs
that compute the same thing cannot be compared end to end. In pieces they can: a piece begins at tensors that the source
has too, and is short enough for its roundings to be counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from math import prod

import onnx
from onnx import NodeProto, TensorProto, helper

from binarize_onnx.verify.arrays import Array
from binarize_onnx.verify.graphs import is_layer, is_sign, is_standard, reads, writers

# Layers begin a piece: they read the source's tensors. Their |terms| are those of |inputs| and |weights|, or of the
# two |inputs| of a product of two activations.

# Steps that a piece goes on through, because |terms| pass through them: sums, products, and ops that choose or move
# values. Anything else (Tanh, Softmax, ...) is a piece of its own.
_NAMES = """
    Abs Add AveragePool BatchNormalization Cast Clip Concat DepthToSpace Div Dropout Expand Flatten Gather
    GlobalAveragePool GlobalMaxPool Identity LeakyRelu MaxPool Mul Neg PRelu Pad ReduceMax ReduceMean ReduceSum Relu
    Reshape Resize Slice SpaceToDepth Split Squeeze Sub Sum Tile Transpose Unsqueeze Where
"""
_STEPS = frozenset(_NAMES.split())

# var + eps, its root, the inverse, gamma and mu times that, beta minus that, x times scale, plus shift: on both sides.
_STEP_ROUNDINGS = {"BatchNormalization": 16}

# Casts between these are steps that round; a comparison that is cast is none.
_FLOATS = {"tensor(float)": TensorProto.FLOAT, "tensor(float16)": TensorProto.FLOAT16}

# Ends the name of what a piece computes where the source's tensor, fed under the name itself, stands beside it.
_COMPUTED = "|computed"


class Pieces:
    """The ideal graph, or the source itself, cut into pieces.

    A tensor that both graphs have becomes an input of this one, to be fed with the source's values, where

    * a sign made it, or an op that is neither layer nor step;
    * a layer reads it, or any other op that is neither step nor sign;
    * it joins a tensor of another piece: a shortcut.

    Everywhere else what the piece itself computes goes on. So a sign reads what became of the whole way from the
    binary layer to it, shortcuts included.

    Args:
        model: what to cut.
        common: the tensors that may be fed: those that both graphs compute.
        types: onnxruntime's type of each of them, float32 where it is not given.

    Attributes:
        nodes: who computes each tensor, before the cut.
        fed: the tensors that became inputs.
        model: the graph after the cut. A fed tensor has its own name there; what its piece computes is
            `computed(name)`.
    """

    def __init__(self, model: onnx.ModelProto, common: set[str], types: Mapping[str, str] | None = None) -> None:
        self.nodes = writers(model)
        self._types = types or {}
        self._given = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
        self._constants: dict[str, tuple[int, ...]] = {t.name: tuple(t.dims) for t in model.graph.initializer}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for node in model.graph.node:
            if node.op_type == "Constant":
                self._constants[node.output[0]] = ()
        self._readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in reads(node):
                self._readers[name].append(node)
        self.fed = {n for n in common if n in self.nodes and any(self._feeds(n, node) for node in self._readers[n])}
        self.model = self._cut(model)

    def computed(self, name: str) -> str:
        """The name of a tensor as its piece computes it."""
        return name + _COMPUTED if name in self.fed else name

    def data_of(self, sign: str) -> str:
        """The name of what a sign reads."""
        return self._read_as(self.nodes[sign].input[0], self.nodes[sign])

    def is_fed(self, sign: str) -> bool:
        """Whether the sign reads a fed tensor or an input of the graph as it is, or cast without a rounding."""
        node, name = self.nodes[sign], self.data_of(sign)
        while name in self.nodes and name not in self.fed and self._is_widening(self.nodes[name]):
            node = self.nodes[name]
            name = self._read_as(node.input[0], node)
        return name in self.fed or (name not in self.nodes and not name.endswith(_COMPUTED))

    def learn_shapes(self, known: Mapping[str, Array]) -> None:
        """The sizes of tensors at run time: a product of two activations sums as many terms as these say."""
        self._shapes |= {name: values.shape for name, values in known.items()}

    def behind(self, name: str) -> tuple[list[str], list[NodeProto]]:
        """What of the tensor's piece comes before it: tensors, itself included, and the layers that begin the piece."""
        tensors, layers, waiting = [name], [], [name]
        while waiting:
            node = self.nodes.get(waiting.pop())
            if node is None or not (is_layer(node) or is_sign(node) or self._is_step(node)):
                continue
            if is_layer(node):
                layers.append(node)
                continue
            for data in node.input[:1] if is_sign(node) else node.input:
                if data in self.nodes and data not in tensors and self._read_as(data, node) not in self.fed:
                    tensors.append(data)
                    waiting.append(data)
        return tensors, layers

    def has_terms(self, name: str) -> bool:
        """Whether the tensor is a sum of terms of what its piece is fed with."""
        node = self.nodes.get(name)
        return node is not None and (is_layer(node) or self._is_step(node))

    def roundings(self, name: str) -> tuple[int, int]:
        """How many roundings, at most, lie between the fed tensors and this one: in the steps, and in the layer's sum.

        On both sides, if both round.
        """
        node = self.nodes.get(name)
        if node is None or not self.has_terms(name):
            return 0, 0
        if is_layer(node):
            return 1, self._dot_length(node)
        own = [i for i in node.input if i not in self.fed or not self._feeds(i, node)]
        behind = max((self.roundings(i) for i in own), default=(0, 0), key=sum)
        return _STEP_ROUNDINGS.get(node.op_type, 2) + behind[0], behind[1]

    def _dot_length(self, layer: NodeProto) -> int:
        """Terms of one output of a layer; 0 if the sizes of its weights are not known."""
        shape = self._constants.get(layer.input[1]) or self._shapes.get(layer.input[1], ())
        if len(shape) < 2:
            return 0
        if layer.op_type == "Conv":
            return prod(shape[1:])
        if layer.op_type == "ConvTranspose":
            return prod(shape) // max(shape[1], 1)
        transposed = any(a.name == "transB" and a.i for a in layer.attribute)
        return shape[-1] if transposed else shape[-2]

    def _feeds(self, name: str, reader: NodeProto) -> bool:
        """Whether the reader gets the source's tensor instead of the computed one."""
        if not self.has_terms(name):
            return True
        if is_sign(reader):
            return False
        if not self._is_step(reader):
            return True
        others = [i for i in reader.input if i not in ("", name) and i not in self._constants]
        shortcut = bool(others) and len(self._readers[name]) > 1
        return shortcut and not any(self._derives_from(other, name) for other in others)

    def _derives_from(self, name: str, origin: str) -> bool:
        """Whether steps alone lead from `origin` to the tensor."""
        node = self.nodes.get(name)
        if name == origin or node is None or not self._is_step(node):
            return name == origin
        return any(self._derives_from(i, origin) for i in node.input if i)

    def _read_as(self, name: str, reader: NodeProto) -> str:
        """The name under which the reader finds a tensor after the cut."""
        return name if name not in self.fed or self._feeds(name, reader) else name + _COMPUTED

    def _is_step(self, node: NodeProto) -> bool:
        """Whether |terms| pass through the node."""
        if not is_standard(node) or node.op_type not in _STEPS:
            return False
        if node.op_type == "Cast":
            return any(a.name == "to" and a.i in _FLOATS.values() for a in node.attribute) and self._is_float(node)
        if node.op_type == "Resize":  # a cubic one weights some values negatively
            return not any(a.name == "mode" and a.s == b"cubic" for a in node.attribute)
        if node.op_type in ("Div", "PRelu", "BatchNormalization"):  # the factors must be known
            return all(name in self._constants for name in node.input[1:])
        return True

    def _is_float(self, cast: NodeProto) -> bool:
        """Whether a Cast reads floats, as far as that can be told: unknown is not."""
        name = cast.input[0]
        if name in self._types or name in self._given:
            return self._types.get(name) in _FLOATS or self._given.get(name) in _FLOATS.values()
        return self.has_terms(name) or (name in self.nodes and is_sign(self.nodes[name]))

    def _is_widening(self, node: NodeProto) -> bool:
        """Whether the node is a Cast of floats to float32: it rounds nothing."""
        to_single = any(a.name == "to" and a.i == TensorProto.FLOAT for a in node.attribute)
        return node.op_type == "Cast" and to_single and self._is_step(node)

    def _cut(self, model: onnx.ModelProto) -> onnx.ModelProto:
        cut = onnx.ModelProto()
        cut.CopyFrom(model)
        del cut.graph.value_info[:]
        for node, original in zip(cut.graph.node, model.graph.node, strict=True):
            node.input[:] = [self._read_as(name, original) for name in original.input]
            node.output[:] = [self.computed(name) for name in original.output]
        cut.graph.input.extend(
            helper.make_tensor_value_info(name, _FLOATS[self._types.get(name, "tensor(float)")], None)
            for name in self.nodes
            if name in self.fed
        )
        return cut
