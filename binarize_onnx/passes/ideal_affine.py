"""Write the real-valued steps around binary layers as Mul, Add and PRelu, the only forms the epilogue knows.

    BatchNormalization(x)        ->  Add(Mul(x, s), t)       s = gamma * (1 / sqrt(var + eps)), t = beta - mean * s
    Sub(x, c)                    ->  Add(x, -c)
    Div(x, c)                    ->  Mul(x, 1 / c)           c a power of two
    Neg(x)                       ->  Mul(x, -1)
    Relu(x), LeakyRelu(x)        ->  PRelu(x, slope)         a Relu only behind a binary layer, and of finite values
    PRelu(x, slope)              ->  Where(x > 0, x, Mul(x, slope))     where a slope is negative
    Mul(Add(acc, c), s)          ->  Add(Mul(acc, s), c * s) acc an exact accumulator, c whole, s a power of two;
                                                             also with Sub and Div

Each is the same float32 function: the batch-normalization constants are rounded step by step as onnxruntime rounds
them, the other rewrites round nothing. (PRelu with slope 0 gives −0.0 where Relu gives 0.0: equal numbers. Of −infinity
it makes NaN, so a Relu behind a constant that is infinite, or large enough to overflow float32, stays a Relu. With a
negative slope runtimes disagree about the sign of PRelu(0), so it is spelled out.) The last one undoes the popcount
domain, (acc + K) / 2. Only steps that a binary layer feeds or that feed a sign are rewritten; float layers keep the
nodes they came with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from binarize_onnx import opset
from binarize_onnx.passes.base import (
    Array,
    Context,
    Pass,
    Skip,
    constant_value,
    producer,
    split_operands,
)
from binarize_onnx.passes.fuse_epilogue import ORDER
from binarize_onnx.passes.ideal import accumulator_bound
from binarize_onnx.passes.overflow import Magnitudes
from binarize_onnx.passes.signs import CARRIERS

# What each step is made of in ideal form.
IDEAL_KINDS: dict[str, tuple[str, ...]] = {
    "BatchNormalization": ("Mul", "Add"),
    "Add": ("Add",),
    "Sub": ("Add",),
    "Mul": ("Mul",),
    "Div": ("Mul",),
    "Neg": ("Mul",),
    "Relu": ("PRelu",),
    "LeakyRelu": ("PRelu",),
    "PRelu": ("PRelu",),
}
HINTS = {"Mul": "scale", "Add": "shift", "PRelu": "slope", "Where": "slope"}
STEPS = frozenset(IDEAL_KINDS)
AFTER_SCALE = 1  # in ORDER: where the steps of a term end


@dataclass(frozen=True)
class Steps:
    """What a node becomes: `(op, constant)` in order, applied to `x`."""

    node: gs.Node
    x: gs.Tensor
    steps: list[tuple[str, Array]]


class IdealAffine(Pass[Steps]):
    """Rewrite the affine and activation steps that touch binary layers."""

    def run(self) -> bool:
        """Find the steps that touch bits, then rewrite those."""
        self._behind = _behind_layers(self.context)
        self._touching = self._behind | _before_signs(self.context)
        self._magnitudes = Magnitudes()
        return super().run()

    def match(self, node: gs.Node) -> Steps | Skip | None:
        """A step that touches bits and is not in its ideal form."""
        if node.op not in STEPS or node.domain:
            return None
        popcount = self._match_popcount(node)
        if popcount is not None or node.outputs[0].name not in self._touching:
            return popcount
        x = node.inputs[0]
        if node.op == "BatchNormalization":
            return self._match_batchnorm(node)
        if node.op == "Neg":
            return Steps(node, x, [("Mul", np.asarray(-1, np.float32))])
        if node.op == "Relu":
            # Thresholds take a Relu as it is, and so do float layers; with slope 0, infinity would become NaN.
            if node.outputs[0].name not in self._behind or self._magnitudes.may_be_infinite(x):
                return None
            return Steps(node, x, [("PRelu", np.zeros(1, np.float32))])
        if node.op == "LeakyRelu":
            alpha = np.full(1, node.attrs.get("alpha", 0.01), np.float32)
            if not np.isfinite(alpha[0]):
                return None
            return Steps(node, x, [("Where" if np.signbit(alpha[0]) else "PRelu", alpha)])
        if node.op == "PRelu":
            slope: Array | None = constant_value(node.inputs[1])
            negative = slope is not None and slope.dtype == np.float32 and bool(np.any(np.signbit(slope)))
            if slope is None or not negative or not np.all(np.isfinite(slope)):  # runtimes differ about 0 * infinity
                return None
            shape = self.context.shape(x)
            if shape is not None and not _broadcasts(slope.shape, shape):
                return None
            return Steps(node, x, [("Where", slope)])
        if node.op in ("Sub", "Div"):
            kind = "Add" if node.op == "Sub" else "Mul"
            found = _as_ideal(node, kind)
            return None if found is None else Steps(node, found[0], [(kind, found[1])])
        return None

    def rewrite(self, site: Steps) -> None:
        """Put the steps in the node's place; the last one keeps its output."""
        output = site.node.outputs[0]
        site.node.outputs.clear()
        current = site.x
        for index, (op, values) in enumerate(site.steps):
            result = output
            if index < len(site.steps) - 1:
                result = self.context.variable(f"{output.name}.{op}", like=output)
                self._touching.add(result.name)
            hint = f"{output.name}.{HINTS[op]}"
            constant = self.context.constant(hint, values)
            if op == "Where":
                insert_select(self.context, current, constant, result)
            else:
                self.context.insert(op, [current, constant], [result])
            current = result

    def _match_batchnorm(self, node: gs.Node) -> Steps | None:
        used_outputs = [t for t in node.outputs[1:] if not t.is_empty()]
        parameters = [constant_value(t) for t in node.inputs[1:5]]
        shape = self.context.shape(node.inputs[0])
        if used_outputs or shape is None or node.attrs.get("training_mode", 0):
            return None
        gamma, beta, mean, var = parameters
        if gamma is None or beta is None or mean is None or var is None:
            return None
        if any(p.dtype != np.float32 or not np.all(np.isfinite(p)) for p in (gamma, beta, mean, var)):
            return None
        if any(p.shape != gamma.shape or p.ndim != 1 for p in (beta, mean, var)):
            return None
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            spread = var + np.float32(node.attrs.get("epsilon", 1e-5))
            deviation = np.sqrt(spread)
            scale = gamma * (np.float32(1) / deviation)
            shift = beta - mean * scale
        # Where the variance is infinite or subnormal, versions of onnxruntime disagree about its root.
        if not (
            np.all((spread >= np.finfo(np.float32).tiny) & np.isfinite(spread))
            and np.all(np.isfinite(scale))
            and np.all(np.isfinite(shift))
        ):
            return None
        per_channel = (-1,) + (1,) * (len(shape) - 2)
        return Steps(node, node.inputs[0], [("Mul", scale.reshape(per_channel)), ("Add", shift.reshape(per_channel))])

    def _match_popcount(self, node: gs.Node) -> Steps | None:
        scaled = _as_ideal(node, "Mul")
        sum_node = None if scaled is None else producer(scaled[0])
        if scaled is None or sum_node is None or self.context.only_consumer(scaled[0]) is not node:
            return None
        summed = _as_ideal(sum_node, "Add")
        if summed is None:
            return None
        (acc, c), scale = summed, scaled[1]
        bound = accumulator_bound(acc, self.context)
        if bound is None or not _powers_of_two(scale) or np.any(c != np.round(c)):
            return None
        if not (_broadcasts(c.shape, scale.shape) or _broadcasts(scale.shape, c.shape)):
            return None
        if bound + float(np.max(np.abs(c))) >= 1 << 23:  # halves of larger sums would round
            return None
        return Steps(node, acc, [("Mul", scale), ("Add", (c * scale).astype(np.float32))])


def insert_select(context: Context, x: gs.Tensor, slope: gs.Tensor, result: gs.Tensor) -> None:
    """result = x > 0 ? x : x * slope, a node for each."""
    zero = context.constant("zero", np.zeros((), np.float32))
    positive = context.variable(f"{result.name}.positive", like=x, dtype=np.bool_)
    scaled = context.variable(f"{result.name}.scaled", like=x)
    context.insert("Greater", [x, zero], [positive])
    context.insert("Mul", [x, slope], [scaled])
    context.insert("Where", [positive, x, scaled], [result])


def _as_ideal(node: gs.Node, kind: str) -> tuple[gs.Tensor, Array] | None:
    """`(x, c)` of a node that is x * c or x / (1 / c) (kind Mul), or x + c or x - (-c) (kind Add); else None."""
    inverse = {"Mul": "Div", "Add": "Sub"}[kind]
    operands = split_operands(node) if node.op in (kind, inverse) and not node.domain else None
    if operands is None or operands[1].dtype != np.float32:
        return None
    x, c = operands
    if node.op == kind:
        return x, c
    if x is not node.inputs[0] or (kind == "Mul" and not _powers_of_two(c)):
        return None
    return x, (np.float32(1) / c if kind == "Mul" else -c)


def _powers_of_two(values: Array) -> bool:
    mantissa, exponent = np.frexp(values)
    return bool(np.all(np.abs(mantissa) == 0.5) and np.all(np.abs(exponent) < 100))


def _broadcasts(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    """Whether the first shape broadcasts to the second, which stays as it is."""
    try:
        return np.broadcast_shapes(small, large) == large
    except ValueError:
        return False


def _position_after(step: gs.Node, position: int) -> int | None:
    """Where the epilogue stands after a step, None if it has no room left for one of that kind."""
    kinds = IDEAL_KINDS[step.op]
    if step.op in ("Add", "Mul") and split_operands(step) is None:
        slots = ["residual"] if step.op == "Add" else ["gate"]
        kinds = ()
        position = next((i for i, (slot, _) in enumerate(ORDER) if slot in slots and i >= position), len(ORDER)) + 1
    for kind in kinds:
        position = next((i for i, (_, op) in enumerate(ORDER) if op == kind and i >= position), len(ORDER)) + 1
    return position if position <= len(ORDER) else None


def _adds_terms(step: gs.Node, context: Context) -> bool:
    """Whether a step is an addition in a sum of binary layers, scaled or not, as one node computes it."""
    while step.op == "Add" and not step.domain:
        rest = [t for t in step.inputs if not _is_term(t, context)]
        if len(rest) != 1:
            return not rest
        maker = producer(rest[0])
        if maker is None:
            return False
        step = maker  # one more term, and the sum of those in front of it
    return False


def _is_term(tensor: gs.Tensor, context: Context) -> bool:
    """Whether a binary layer writes the tensor, or a factor behind one."""
    maker = producer(tensor)
    if maker is not None and maker.op == "Mul" and not maker.domain:
        operands = split_operands(maker)
        maker = None if operands is None else producer(operands[0])
    return maker is not None and maker.name in context.binary


def _behind_layers(context: Context) -> set[str]:
    """Names of the results of steps that an epilogue could take."""
    found: set[str] = set()
    forward = [(t, 0) for node in context.graph.nodes if node.name in context.binary for t in node.outputs]
    while forward:
        tensor, position = forward.pop()
        for consumer in context.readers(tensor):
            after = None
            if _adds_terms(consumer, context):
                after = AFTER_SCALE
            elif consumer.op in STEPS:
                after = _position_after(consumer, position)
            if after is not None and consumer.outputs[0].name not in found:
                found.add(consumer.outputs[0].name)
                forward.append((consumer.outputs[0], after))
    return found


def _before_signs(context: Context) -> set[str]:
    """Names of the results of steps in front of signs, which thresholds could take."""
    found: set[str] = set()
    backward = [node.inputs[0] for node in context.graph.nodes if node.op in opset.IDEAL_OPS]
    visited: set[str] = set()
    while backward:
        tensor = backward.pop()
        node = producer(tensor)
        if node is None or tensor.name in visited or not (node.op in STEPS or node.op in CARRIERS):
            continue
        visited.add(tensor.name)
        two_data_inputs = node.op in ("Add", "Sub", "Mul", "Div") and split_operands(node) is None
        if node.op in STEPS:
            found.add(tensor.name)
        if not two_data_inputs:  # beyond a residual sum nothing can move into the threshold
            backward += [t for t in node.inputs[:2] if not isinstance(t, gs.Constant)][:1]
    return found
