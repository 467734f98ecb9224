"""Fuse the real-valued steps behind an XNOR layer into its epilogue.

    before   z = PRelu(Add(Add(Mul(XnorConv(...), s), t), r), a)
    after    z = XnorConv(..., scale = s, bias = t, residual = r, slope = a)

The epilogue has one order: scale, gate, bias, slope_pre, residual, shift, slope, offset. A step takes the first slot of
its kind that is still to come; a step with none stays a node of its own, and so does everything behind it. Each slot
rounds exactly as the node it replaces, so nothing changes but the number of passes over memory. A gate is what is
computed at run time, a constant that differs from position to position (XNOR-Net++), or a second scale: that of a
BatchNormalization behind alpha. A residual that holds the channels of a tensor several times is that tensor: output o
of the layer reads its channel o mod R.

    before   Cast(XnorConv(..., dtype = 1), to float16)
    after    XnorConv(..., dtype = 10)

A Cast to float16 is the last step of an epilogue that has no residual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from binarize_onnx import opset
from binarize_onnx.passes.base import Array, Pass, Skip, along_axis, constant_value, producer, record, split_operands

SLOTS = {slot: 2 + index for index, slot in enumerate(opset.EPILOGUE)}

# The float steps in the order in which the epilogue takes them, with the ONNX op that each replaces.
ORDER = (
    ("scale", "Mul"),
    ("gate", "Mul"),
    ("bias", "Add"),
    ("slope_pre", "PRelu"),
    ("residual", "Add"),
    ("shift", "Add"),
    ("slope", "PRelu"),
    ("offset", "Add"),
)
FACTORS = frozenset({"scale", "gate", "slope_pre", "slope"})  # neutral at 1, the others at -0.0
ROUNDING = "float16"  # the rounding behind all of them


def is_neutral(layer: gs.Node, slot: str) -> bool:
    """Whether a float step of an XNOR layer does nothing; a scale of several terms adds them up."""
    values = constant_value(layer.inputs[SLOTS[slot]])
    if values is None or (slot == "scale" and values.shape[0] != 1):
        return False
    return bool(np.all(values == 1 if slot in FACTORS else (values == 0) & np.signbit(values)))


def first_free(layer: gs.Node) -> int:
    """Where in ORDER the next step may go: behind every step that does something; at its end behind a rounding."""
    if layer.attrs["dtype"] != TensorProto.FLOAT:
        return len(ORDER)
    return max((1 + i for i, (slot, _) in enumerate(ORDER) if not is_neutral(layer, slot)), default=0)


@dataclass(frozen=True)
class Fusion:
    """One step, the slot it goes to, and the tensor that goes there."""

    layer: gs.Node
    step: gs.Node
    slot: str
    value: gs.Tensor


class FuseEpilogue(Pass[Fusion]):
    """Take the next step behind each XNOR layer into the layer, until none fits."""

    def match(self, node: gs.Node) -> Fusion | Skip | None:
        """An XNOR layer whose float output one fusable step reads and nothing else."""
        if node.name not in self.context.binary or node.op not in ("XnorConv", "XnorMatMul"):
            return None
        cast = self._cast(node)
        if cast is not None:
            return cast
        found = self._next_step(node.outputs[0])
        if found is None:
            return None
        step, kind, operand = found
        for slot, op in ORDER[first_free(node) :]:
            if op == kind:
                value = self._fits(node, slot, operand)
                if value is not None:
                    return Fusion(node, step, slot, value)
        return None

    def _next_step(self, y: gs.Tensor) -> tuple[gs.Node, str, gs.Tensor] | None:
        """`(node that writes the result, kind of slot, operand)` of the one step that reads y."""
        step = self.context.only_consumer(y)
        if step is None:
            return self._select(y)
        if step.op not in ("Mul", "Add", "PRelu") or step.domain:
            return None
        operand = step.inputs[1] if step.inputs[0] is y else step.inputs[0]
        if step.op == "PRelu":
            slope = constant_value(operand)  # PRelu(0) is settled for slopes that are finite and not negative
            if step.inputs[0] is not y or slope is None or np.any(np.signbit(slope) | ~np.isfinite(slope)):
                return None
        return step, step.op, operand

    def _cast(self, layer: gs.Node) -> Fusion | None:
        """The Cast to float16 that alone reads the layer, if nothing is added in front of it."""
        step = self.context.only_consumer(layer.outputs[0])
        if step is None or step.domain or step.op != "Cast" or step.attrs["to"] != TensorProto.FLOAT16:
            return None
        neutral = constant_value(layer.inputs[SLOTS["residual"]])  # constants are no residuals
        if neutral is None:
            return None
        half = self.context.constant("neutral.residual", neutral.astype(np.float16), role="residual")
        return Fusion(layer, step, ROUNDING, half)

    def _select(self, y: gs.Tensor) -> tuple[gs.Node, str, gs.Tensor] | None:
        """Where(y > 0, y, y * slope): PRelu as the ideal graph spells it where a slope is negative."""
        readers = {node.op: node for node in y.outputs}
        if len(y.outputs) != 3 or readers.keys() != {"Greater", "Mul", "Where"} or self.context.escapes(y):
            return None
        greater, product, where = (readers[op] for op in ("Greater", "Mul", "Where"))
        zero, scaled = constant_value(greater.inputs[1]), split_operands(product)
        whole = where.inputs[0] is greater.outputs[0] and where.inputs[1] is y and where.inputs[2] is product.outputs[0]
        private = all(self.context.only_consumer(n.outputs[0]) is where for n in (greater, product))
        if not whole or not private or scaled is None or zero is None or zero.shape != () or zero != 0:
            return None
        return where, "PRelu", product.inputs[1] if scaled[0] is product.inputs[0] else product.inputs[0]

    def rewrite(self, site: Fusion) -> None:
        """Fill the slot; the layer now writes what the step wrote."""
        if site.slot == ROUNDING:
            site.layer.inputs[SLOTS["residual"]], site.layer.attrs["dtype"] = site.value, int(TensorProto.FLOAT16)
        else:
            site.layer.inputs[SLOTS[site.slot]] = site.value
        result = site.step.outputs[0]
        for reader in list(site.layer.outputs[0].outputs):
            reader.outputs.clear()
            reader.inputs.clear()
        site.layer.outputs[0] = result
        record(self.context.journal.epilogue, site.layer.name, site.slot)

    def _once(self, residual: gs.Tensor, axis: int) -> gs.Tensor:
        """What the channels of a residual repeat, if a Concat of one tensor with itself or a Tile makes them."""
        maker = producer(residual)
        if maker is None or maker.domain:
            return residual
        x = maker.inputs[0]
        if maker.op == "Concat":
            repeats = maker.attrs["axis"] in (axis, axis - len(self.context.shape(residual) or ()))
            return x if repeats and all(t is x for t in maker.inputs) else residual
        times = constant_value(maker.inputs[1]) if maker.op == "Tile" else None
        if times is None or any(n != 1 for i, n in enumerate(times) if i != axis) or self.context.shape(x) is None:
            return residual
        return x

    def _fits(self, layer: gs.Node, slot: str, operand: gs.Tensor) -> gs.Tensor | None:
        """The operand in the slot's form, None if it does not go there."""
        shape = self.context.shape(layer.outputs[0])
        if shape is None:
            return None
        rank, axis = len(shape), 1 if layer.op == "XnorConv" else len(shape) - 1
        values = constant_value(operand)
        if slot == "residual":
            fits = values is None and self.context.shape(operand) == shape
            return self._once(operand, axis) if fits else None
        if values is None:
            gates = slot == "gate" and _broadcasts(self.context.shape(operand), shape)
            return operand if gates else None
        vector = _vector(values, axis, rank)
        scale = constant_value(layer.inputs[SLOTS["scale"]])
        if slot == "gate" and vector is None:  # it differs from position to position
            known = self.context.known.get(layer.outputs[0].name, ())
            return operand if values.dtype == np.float32 and _broadcasts(values.shape, known) else None
        if vector is None or vector.size not in (1, self.context.known_dim(layer.outputs[0], axis)):
            return None
        if slot == "scale":
            if scale is None or scale.shape[0] != 1:  # several terms already have their scales
                return None
            full = np.broadcast_to(vector, (shape[axis],))
            vector = full.reshape(1, -1, 1, 1) if axis == 1 and layer.op == "XnorConv" else full.reshape(1, 1, -1)
        elif layer.op == "XnorConv":
            vector = vector.reshape(-1, 1, 1)
        return self.context.constant(f"{layer.name}.{slot}", np.ascontiguousarray(vector))


def _vector(values: Array, axis: int, rank: int) -> Array | None:
    vector = along_axis(values, axis, rank)
    return vector if vector is not None and vector.dtype == np.float32 else None


def _broadcasts(shape: Sequence[int] | None, to: Sequence[int | None]) -> bool:
    """Whether a tensor of this shape broadcasts to `to` without adding to it."""
    if shape is None or len(shape) > len(to):
        return False
    return all(d in (1, t) for d, t in zip(shape[::-1], to[::-1], strict=False))
