"""Find the layers that are binary already, and bring them to their ideal form.

    before   Conv(s * Sign(x), alpha * B, bias)
    after    Add(Mul(Conv(BinarySign(x), B), s * alpha), bias)           B in {-1, +1}, or {-1, 0, +1}

    before   Gemm(Sign(x), alpha * B, bias, transB) | MatMul(Sign(x), alpha * B)
    after    Add(Mul(MatMul(BinarySign(x), B'), alpha), bias)

    before   Conv(s * {0, 1} + d, alpha * B)                             no zeros around it
    after    Add(Mul(Conv(BinarySign(x), B), s * alpha), d * alpha * sum(B))

    before   Conv(k * Sign(x), alpha * B)                                k one number a sample, known at run time
    after    Mul(Mul(Conv(BinarySign(x), B), alpha), k)

    before   MatMul(Sign(x), Sign(y))
    after    MatMul(BinarySign(x), BinarySign(y))

A layer is binary if every element of its input comes from a sign (signs.py says what is one) and its weights have one
magnitude in each output channel. Convolution of ±1 is exact in float32 in any order of summation while its length stays
below 2^24; a scale inside the weights would round every partial sum, so scales move behind it. A float16 layer is
computed in float32 and rounded once, at its end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from binarize_onnx import opset
from binarize_onnx.checks import shown
from binarize_onnx.passes.base import Array, Context, Pass, Skip, constant_value, producer
from binarize_onnx.passes.ideal import unsettled_pool
from binarize_onnx.passes.layer_limits import CONVOLUTIONS, explicit_pads, too_long, unsupported
from binarize_onnx.passes.overflow import Magnitudes
from binarize_onnx.passes.signs import CARRIERS, Level, NotBinary, Sign, Traced, Tracer, pad_value, padding, scaler
from binarize_onnx.passes.staircase import RESIDUE_BOUND, Staircases
from binarize_onnx.passes.weights import Weights, known_values, layer_bias, output_axis, split_scale, unsuitable
from binarize_onnx.reasons import Code, Reason

INTEGER_OPS = ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul")
LAYER_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", *INTEGER_OPS)


@dataclass(frozen=True)
class Tolerance:
    """How far from its ideal form a source may be and still be taken for it.

    Attributes:
        weights: relative distance of a weight's magnitude from its channel's mean.
        any_residue: whether the residue of a straight-through estimator need not be bounded.
    """

    weights: float
    any_residue: bool


# The residue of a straight-through estimator, folded into weights, leaves distances up to 7e-6.
STRICT = Tolerance(weights=2.0**-16, any_residue=False)
MODERATE = Tolerance(weights=0.005, any_residue=True)
HALF_SPREAD = MODERATE.weights  # the residue in float16 leaves 2e-3


@dataclass(frozen=True)
class Filter:
    """Which layers are wanted on bits: regexes for names (whole match), op types left out, and what would be slow."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    exclude_ops: tuple[str, ...] = ()
    slow: Mapping[str, str] = field(default_factory=dict)  # names of layers, and how slow in words

    def refuses(self, node: gs.Node) -> Reason | None:
        """Why the layer is left out although it may be binary; None if it is not."""
        if node.op in self.exclude_ops:
            return Reason(Code.EXCLUDED, f"operator type {node.op} is excluded")
        if any(re.fullmatch(pattern, node.name) for pattern in self.exclude):
            return Reason(Code.EXCLUDED, "excluded by name")
        if self.include and not any(re.fullmatch(pattern, node.name) for pattern in self.include):
            return Reason(Code.EXCLUDED, "not among the nodes asked for")
        if node.name in self.slow:
            return Reason(Code.SLOWER_ON_BITS, self.slow[node.name])
        return None


@dataclass(frozen=True)
class BinaryLayer:
    """A layer that is binary in the source.

    Attributes:
        data: what it reads, run-time scales and zero pads taken off.
        weights: its binary weights, or the second tensor of signs.
        gates: run-time scales of its input that move behind it.
        scale: what its inputs' signs are worth, multiplied.
    """

    node: gs.Node
    data: gs.Tensor
    pads: list[int]
    traced: list[Traced]
    weights: Weights | gs.Tensor
    gates: list[gs.Tensor] = field(default_factory=list)

    @property
    def scale(self) -> np.float32:
        """The product of the scales of the activations."""
        return np.float32(np.prod([t.scale for t in self.traced]))


class RecogniseLayers(Pass[BinaryLayer]):
    """Rewrite every binary layer to ±1 weights behind BinarySign, scales after."""

    def __init__(
        self,
        context: Context,
        wanted: Filter,
        kept_signs: frozenset[str] = frozenset(),
        tolerance: Tolerance = STRICT,
    ) -> None:
        super().__init__(context)
        self.wanted, self.tolerance = wanted, tolerance
        self.sites: dict[str, tuple[Sign, gs.Tensor]] = {}  # with the tensor that BinarySign writes
        self.notes: list[str] = []
        staircases = Staircases(context.types, any_residue=tolerance.any_residue)
        self._tracer = Tracer(staircases, kept_signs)
        self._lenient = Tracer(Staircases(context.types, any_residue=True), kept_signs)
        self._magnitudes = Magnitudes()
        self._seen: set[str] = set()
        self._units: dict[int, gs.Tensor] = {}
        self._floats: dict[int, gs.Tensor] = {}

    def match(self, node: gs.Node) -> BinaryLayer | Skip | None:
        """A layer with a sign on its input and binary weights."""
        if node.op not in LAYER_OPS or node.domain or node.name in self._seen:
            return None
        self._seen.add(node.name)
        if node.op in INTEGER_OPS:
            return Skip(node, Reason(Code.UNSUPPORTED_OP, "it multiplies integers, and stays as it is"))
        if node.op == "Einsum":
            return Skip(node, Reason(Code.UNSUPPORTED_OP, "what an Einsum multiplies is not looked at"))
        found = self.wanted.refuses(node) or self._match(node)
        return Skip(node, found) if isinstance(found, Reason) else found

    def _match(self, node: gs.Node) -> BinaryLayer | Reason:
        values = known_values(node.inputs[1])
        if values is None:
            return self._match_two_activations(node)
        wrong = unsuitable(values)
        if wrong is not None:
            return wrong
        data, gates, pads = self._uncovered(node)
        traced = self._tracer.trace(data)
        weights = self._binary_weights(node, values, isinstance(traced, Traced))
        if isinstance(weights, Reason):
            if isinstance(traced, NotBinary):
                return Reason(Code.FLOAT_LAYER, f"real-valued weights, and {traced.words}")
            return weights
        if isinstance(traced, NotBinary):
            return self._no_sign(data, traced)
        flaw = self._flaw_of_input(data, traced)
        if flaw is not None:
            return flaw
        if pads is None:
            found = explicit_pads(node, values, self.context) if node.op in CONVOLUTIONS and values.ndim > 2 else [0]
            if isinstance(found, Reason):
                return found
            pads = found
        if traced.offset and (any(pads) or gates or node.op == "ConvTranspose"):
            low, high = (f"{traced.offset + traced.scale * bit:.6g}" for bit in (traced.x_low, traced.levels))
            words = f"its input has values from {low} to {high}, and the zeros around it are not the lowest of them"
            return Reason(Code.ACTIVATION_VALUES, words)
        scale = traced.scale + abs(traced.offset)
        wrong = unsupported(node, values, traced.levels, scale, pads, self.context)
        return wrong or BinaryLayer(node, data, pads, [traced], weights, gates)

    def _match_two_activations(self, node: gs.Node) -> BinaryLayer | Reason:
        """MatMul of two tensors of signs."""
        left, right = node.inputs[:2]
        if node.op != "Conv" and known_values(left) is not None:
            return Reason(Code.WEIGHTS_ON_LEFT, "its weights are on the left")
        words = f"its weights `{right.name}` are computed at run time{_why_not_constant(right)}"
        runtime = Reason(Code.WEIGHTS_NOT_CONSTANT, words)
        right, factor = self._without_single_factor(right)
        traced = self._tracer.trace(right)
        if node.op != "MatMul" or isinstance(traced, NotBinary):
            return runtime
        data, gates, _ = self._uncovered(node)
        gates += factor
        first = self._tracer.trace(data)
        if isinstance(first, NotBinary):
            return self._no_sign(data, first, "its second operand is binary")
        if first.levels > 1 or traced.levels > 1 or traced.x_low != -1 or first.offset:
            words = f"both operands are activations, and only the first may be {{0, 1}}; `{right.name}` is not -1 and 1"
            return Reason(
                Code.MIXED_SIGNS, words if traced.x_low != -1 else "it multiplies activations of several bits"
            )
        if self.context.types.get(node.outputs[0].name) not in (TensorProto.FLOAT, TensorProto.FLOAT16, None):
            return Reason(Code.NOT_FLOAT32, "it multiplies signs that are neither float32 nor float16")
        for tensor, found in ((data, first), (right, traced)):
            flaw = self._flaw_of_input(tensor, found)
            if flaw is not None:
                return flaw
        shapes = [self.context.shape(t) for t in (data, right)]
        length = self.context.known_dim(right, -2) if all(s is not None and len(s) > 1 for s in shapes) else None
        if length is None or self.context.known_dim(data, -1) != length:
            words = f"the number of terms in its dot products is open: `{right.name}` has no fixed size"
            return Reason(Code.DYNAMIC_SHAPE, words)
        return too_long(length) or BinaryLayer(node, data, [], [first, traced], right, gates)

    def _binary_weights(self, node: gs.Node, values: Array, sign_in_front: bool) -> Weights | Reason:
        weights = split_scale(values, output_axis(node))
        if weights is None:
            return Reason(Code.FLOAT_WEIGHTS, "its weights are empty")
        half = values.dtype == np.float16
        if weights.spread <= (HALF_SPREAD if half else self.tolerance.weights):
            if weights.spread > STRICT.weights and sign_in_front and not half:
                self.notes.append(f"`{node.name}`: magnitudes up to {weights.spread:.2%} apart are taken as one scale")
            return weights
        if weights.spread <= MODERATE.weights:
            words = (
                f"its weights have one magnitude a channel but for {weights.spread:.2%}; --match moderate takes it so"
            )
            return Reason(Code.WEIGHT_SPREAD, words)
        words = "its input is binary, but it has real-valued weights (more than one magnitude in an output channel)"
        return Reason(Code.FLOAT_WEIGHTS, words)

    def _no_sign(self, data: gs.Tensor, found: NotBinary, but: str = "binary weights") -> Reason:
        """Why the input of a layer with binary weights is not binary."""
        if not self.tolerance.any_residue and isinstance(self._lenient.trace(data), Traced):
            words = "the residue of a straight-through estimator in front of it has no bound: it rounds at any size"
            return Reason(Code.UNBOUNDED_RESIDUE, f"{but}, but {words}; --match moderate takes it off")
        scaled = producer(data)
        if scaled is not None and scaled.op in ("Mul", "Div") and not scaled.domain:
            sides = [self._tracer.trace(t) for t in scaled.inputs]
            if any(isinstance(t, Traced) for t in sides):
                if any(self._magnitudes.may_be_infinite(t) for t in scaled.inputs):
                    words = f"`{data.name}` scales the sign by a factor that constants of the file make infinite"
                    return Reason(Code.ACTIVATION_VALUES, f"{but}, but {words}")
                words = (
                    f"`{data.name}` scales the sign by a factor that differs from channel to channel or place to place"
                )
                return Reason(Code.INPUT_SCALE, f"{but}, but {words}")
        return Reason(found.code, f"{but}, but {found.words}")

    def _flaw_of_input(self, data: gs.Tensor, traced: Traced) -> Reason | None:
        """What keeps signs from being packed although they are signs."""
        for source in traced.found:
            if self.context.types.get(source.x.name, TensorProto.FLOAT) not in (TensorProto.FLOAT, TensorProto.FLOAT16):
                words = f"`{source.output.name}` reads `{source.x.name}`, which is not a float32 or float16 tensor"
                return Reason(Code.NOT_FLOAT32, words)
            if not self._keeps_shape(source):
                words = f"the threshold of its sign `{source.output.name}` has axes that the input has not"
                return Reason(Code.THRESHOLD_SHAPE, words)
        pool = unsettled_pool(data, self.context)
        if pool is None:
            return None
        words = f"the size of `{pool.outputs[0].name}` depends on the runtime (MaxPool with ceil_mode)"
        return Reason(Code.CEIL_MODE, words)

    def _keeps_shape(self, source: Sign | Level) -> bool:
        """Whether the comparison keeps the shape of x; broadcasting x to a larger threshold would not."""
        numbers = len(source.threshold) if isinstance(source, Level) else source.flip.size
        scalar = source.threshold.size == numbers and (isinstance(source, Level) or numbers == 1)
        if scalar and source.rank <= 1 and source.minus is None:
            return True
        shape = self.context.shape(source.x)
        return shape is not None and shape == self.context.shape(source.output)

    def _uncovered(self, node: gs.Node) -> tuple[gs.Tensor, list[gs.Tensor], list[int] | None]:
        """`(signs, run-time scales, pads)`: the layer's input without what moves behind the layer or into it."""
        data, pads = without_zero_pad(node)
        gates: list[gs.Tensor] = []
        while (step := producer(data)) is not None and not step.domain:
            kept = self._tracer.staircases.without_residue(data)
            if kept is not None and _runtime_product(kept) and self.context.shape(kept) == self.context.shape(data):
                data = kept
                continue
            found = _runtime_product(data)
            factors = [(k, s) for k, s in (found, found[::-1]) if self._is_gate(k, s, node)] if found else []
            if not factors:
                break
            gates.insert(0, factors[0][0])
            data = factors[0][1]
        return (data, gates, pads) if isinstance(self._tracer.trace(data), Traced) else (node.inputs[0], [], pads)

    def _without_single_factor(self, tensor: gs.Tensor) -> tuple[gs.Tensor, list[gs.Tensor]]:
        """x and [k] of x * k, k one number known at run time: the root of a size, in scaled attention."""
        factors = _runtime_product(tensor)
        for k, x in (factors, factors[::-1]) if factors else ():
            shape, large = self.context.shape(k), self.context.shape(x)
            if shape is None or large is None or self.context.types.get(k.name) != TensorProto.FLOAT:
                continue
            infinite = self._magnitudes.may_be_infinite(k)
            if all(d == 1 for d in shape) and len(shape) <= len(large) and not infinite:
                return x, [k]
        return tensor, []

    def _is_gate(self, factor: gs.Tensor, data: gs.Tensor, node: gs.Node) -> bool:
        """Whether a run-time factor is the same for all terms of a dot product and all outputs of the layer.

        An infinite one makes NaN of terms of either sign; behind the layer it would not.
        """
        small, large = self.context.shape(factor), self.context.shape(data)
        types = {self.context.types.get(t.name) for t in (factor, data)}
        if small is None or large is None or len(small) > len(large) or not types <= {TensorProto.FLOAT, None}:
            return False
        if self._magnitudes.may_be_infinite(factor):
            return False
        aligned = (1,) * (len(large) - len(small)) + small
        if node.op in CONVOLUTIONS:
            return all(d == 1 for d in aligned[1:]) and aligned[0] in (1, large[0])
        return aligned[-1] == 1 and all(d in (1, n) for d, n in zip(aligned, large, strict=True))

    def rewrite(self, site: BinaryLayer) -> None:
        """Signs to BinarySign, scales and bias behind the layer."""
        node, output, context = site.node, site.node.outputs[0], self.context
        for traced in site.traced:
            for found in traced.found:
                self._write_unit(found)
        data = self._unit(site.data)
        context.binary.add(node.name)
        convolution = node.op in CONVOLUTIONS
        half = TensorProto.FLOAT16 in (context.types.get(output.name), context.types.get(node.inputs[0].name))
        steps: list[tuple[str, gs.Tensor]] = []

        def step(op: str, values: Array, hint: str) -> None:
            steps.append((op, context.constant(f"{output.name}.{hint}", values.astype(np.float32))))

        if isinstance(site.weights, Weights):
            rank = site.weights.signs.ndim
            per_channel = (-1,) + (1,) * (rank - 2) if convolution else (-1,)
            magnitude, bias = site.weights.scale, layer_bias(node)
            if node.op == "Gemm":
                magnitude = magnitude * np.float32(node.attrs.get("alpha", 1.0))
                bias = None if bias is None else bias * np.float32(node.attrs.get("beta", 1.0))
            scale = magnitude * site.scale
            if np.any(scale != 1):
                step("Mul", scale.reshape(per_channel), "scale")
            steps += [("Mul", gate) for gate in site.gates]
            if site.traced[0].offset:
                sums = np.moveaxis(site.weights.signs, output_axis(node), 0).reshape(magnitude.size, -1).sum(axis=1)
                step("Add", (magnitude * site.traced[0].offset * sums).reshape(per_channel), "offset")
            if bias is not None and np.any(bias != 0):
                step("Add", bias.reshape(per_channel if bias.size > 1 else (1,) * len(per_channel)), "bias")
            weights: gs.Tensor = context.constant(f"{node.inputs[1].name}.signs", _oriented(site.weights.signs, node))
        else:
            if site.scale != 1:
                step("Mul", np.asarray(site.scale), "scale")
            steps += [("Mul", gate) for gate in site.gates]
            weights = self._unit(site.weights)
        op = node.op if convolution else "MatMul"
        attrs = _window(node, site) if convolution else {}
        inputs = list(node.inputs)
        node.outputs.clear()
        node.inputs.clear()
        context.release(inputs)
        last = context.variable(f"{output.name}.float32", like=output) if half else output
        current = last if not steps else context.variable(f"{output.name}.acc", like=output)
        context.insert(op, [data, weights], [current], name=node.name, attrs=attrs)
        for index, (kind, operand) in enumerate(steps):
            final = index == len(steps) - 1
            result = last if final else context.variable(f"{output.name}.scaled", like=output)
            context.insert(kind, [current, operand], [result])
            current = result
        if half:
            self._round_to_half(last, output)

    def _round_to_half(self, x: gs.Tensor, output: gs.Tensor) -> None:
        """output = float16(x), for every reader.

        onnxruntime computes most float16 operators in float32, between casts of its own, and drops a Cast to float16
        in front of one back: a Reshape to the same shape, which it has for float16, keeps the rounding in place.
        """
        context, shape = self.context, self.context.shape(output)
        rounded = output if shape is None else context.variable(f"{output.name}.rounded", like=output, dtype=np.float16)
        context.insert("Cast", [x], [rounded], attrs={"to": int(TensorProto.FLOAT16)})
        if shape is not None:
            same = context.constant(f"{output.name}.shape", np.zeros(len(shape), np.int64))
            context.insert("Reshape", [rounded, same], [output])

    def _write_unit(self, found: Sign | Level) -> None:
        """Compute an activation's ±1 (or {0, 1}, or levels) by the ideal graph's function of it."""
        output, maker = found.output, producer(found.output)
        assert maker is not None
        if id(output) in self._units:
            return
        context, unit = self.context, output
        if found.residue > RESIDUE_BOUND:
            self.notes.append(f"`{output.name}`: a straight-through residue without a bound is taken off")
        if found.scale != 1 or found.offset or context.types.get(output.name, TensorProto.FLOAT) != TensorProto.FLOAT:
            unit = context.variable(f"{output.name}.sign", like=output)
        self._units[id(output)] = unit
        if isinstance(found, Sign):
            self.sites[output.name] = (found, unit)
        if maker.domain == opset.IDEAL_DOMAIN:
            return
        if unit is output:
            maker.outputs.clear()
        inputs = [self._decisive(found), context.constant(f"{output.name}.threshold", found.threshold)]
        if isinstance(found, Sign):
            inputs.append(
                context.constant(f"{output.name}.flip", np.ascontiguousarray(found.flip).reshape(found.flip.shape))
            )
        context.insert(
            "BinarySign" if isinstance(found, Sign) else "Level",
            inputs,
            [unit],
            name=maker.name if unit is output else "",
            domain=opset.IDEAL_DOMAIN,
            attrs={"x_low": found.x_low} if isinstance(found, Sign) else {},
        )

    def _decisive(self, found: Sign | Level) -> gs.Tensor:
        """The float32 tensor whose comparison with the threshold is the bit."""
        x, context = found.x, self.context
        if found.minus is not None:  # x >= t is x - t >= 0: gradual underflow keeps the difference of unequal numbers
            difference = context.variable(f"{found.output.name}.difference", like=x)
            context.types[difference.name] = context.types.get(x.name, TensorProto.FLOAT)
            context.insert("Sub", [x, found.minus], [difference])
            x = difference
        if context.types.get(x.name, TensorProto.FLOAT) == TensorProto.FLOAT:
            return x
        if id(x) not in self._floats:
            self._floats[id(x)] = context.variable(f"{x.name}.float32", like=x)
            context.insert("Cast", [x], [self._floats[id(x)]], attrs={"to": int(TensorProto.FLOAT)})
        return self._floats[id(x)]

    def _unit(self, tensor: gs.Tensor) -> gs.Tensor:
        """A binary tensor in units of its scale: itself, or its carriers repeated behind the unit sign."""
        waiting = [tensor]
        while waiting:
            last = waiting[-1]
            node = _carrier(last)
            inputs = _carried_inputs(node)
            missing = [t for t in inputs if id(t) not in self._units]
            if id(last) not in self._units and not missing:
                units = [self._units[id(t)] for t in inputs]
                if node is not None and scaler(node) is not None:
                    self._units[id(last)] = units[0]
                else:
                    same = node is None or all(a is b for a, b in zip(inputs, units, strict=True))
                    self._units[id(last)] = last if same else self._carried(last, node, units)
            if id(last) in self._units:
                waiting.pop()
            else:
                waiting += missing
        return self._units[id(tensor)]

    def _carried(self, tensor: gs.Tensor, node: gs.Node, units: list[gs.Tensor]) -> gs.Tensor:
        """The carrier once more, on unit inputs."""
        inputs = [*units, *node.inputs[len(units) :]]
        if node.op == "Pad" and node.attrs.get("mode", "constant") == "constant":
            filled, traced = padding(node), self._tracer.trace(node.inputs[0])
            assert filled is not None, "tracing admits constants only"
            assert isinstance(traced, Traced), "the scaled signs are where they were"
            value = np.rint(np.asarray((filled - traced.offset) / traced.scale, np.float32))
            inputs[2:3] = [self.context.constant(f"{tensor.name}.value", value)]
        outputs = [t if t.is_empty() else self.context.variable(f"{t.name}.sign", like=t) for t in node.outputs]
        self.context.insert(node.op, inputs, outputs, attrs=dict(node.attrs))
        self._units |= {id(t): unit for t, unit in zip(node.outputs, outputs, strict=True)}
        return self._units[id(tensor)]


def _why_not_constant(tensor: gs.Tensor) -> str:
    """What keeps a tensor from being a constant, as the end of a sentence."""
    waiting, seen = [tensor], {id(tensor)}
    while waiting:
        node = producer(waiting.pop())
        if node is not None and all(isinstance(t, gs.Constant) or t.is_empty() for t in node.inputs):
            return f", by {shown(node)}, which is not folded"
        for t in node.inputs if node is not None else ():
            if id(t) not in seen and not isinstance(t, gs.Constant):
                waiting.append(t)
                seen.add(id(t))
    return ""


def _carrier(tensor: gs.Tensor) -> gs.Node | None:
    """The node that hands binary values on to the tensor, or scales them; None if it is made in another way."""
    node = producer(tensor)
    if node is None or node.domain:
        return None
    return node if node.op in CARRIERS or node.op in ("Concat", "Pad") or scaler(node) is not None else None


def _carried_inputs(node: gs.Node | None) -> list[gs.Tensor]:
    """Those inputs of a carrier that are binary."""
    if node is None:
        return []
    scaled = scaler(node)
    if scaled is not None:
        return [scaled[0]]
    return list(node.inputs) if node.op == "Concat" else [node.inputs[0]]


def _oriented(signs: Array, node: gs.Node) -> Array:
    """The weights as the ideal layer reads them: those of a Gemm as [K, O]."""
    return np.ascontiguousarray(signs.T) if node.op == "Gemm" and node.attrs.get("transB", 0) else signs


def _window(node: gs.Node, site: BinaryLayer) -> dict[str, Any]:
    """The attributes of a convolution, all of them written out."""
    assert isinstance(site.weights, Weights)
    kernel = list(site.weights.signs.shape[2:])
    attrs: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": list(node.attrs.get("strides", [1] * len(kernel))),
        "dilations": list(node.attrs.get("dilations", [1] * len(kernel))),
        "group": int(node.attrs.get("group", 1)),
        "pads": site.pads,
    }
    if node.op == "ConvTranspose":
        attrs["output_padding"] = list(node.attrs.get("output_padding", [0] * len(kernel)))
    return attrs


def _runtime_product(tensor: gs.Tensor) -> tuple[gs.Tensor, gs.Tensor] | None:
    """The factors of a product of two tensors that are not constants."""
    node = producer(tensor)
    if node is None or node.domain or node.op != "Mul" or any(isinstance(t, gs.Constant) for t in node.inputs):
        return None
    left, right = node.inputs
    return left, right


def without_zero_pad(node: gs.Node) -> tuple[gs.Tensor, list[int] | None]:
    """The layer's data input and, of a convolution behind Pads of zeros, the pads that make up for leaving them out.

    Zeros around a binary tensor are a third value in it; as the convolution's own pads they are not in it.
    """
    data, pads = node.inputs[0], None
    if node.op != "Conv" or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return data, None
    while (amounts := _zero_pad(producer(data))) is not None:
        own = node.attrs.get("pads", [0] * amounts.size) if pads is None else pads
        if len(own) != amounts.size:
            break
        pads = [int(a) + int(b) for a, b in zip(own, amounts, strict=True)]
        data = data.inputs[0].inputs[0]
    return data, pads


def _zero_pad(node: gs.Node | None) -> Array | None:
    """By how much a Pad widens the image with zeros, as convolutions list it; None if it does anything else."""
    if node is None or node.domain or node.op != "Pad" or pad_value(node) != 0:
        return None
    amounts = constant_value(node.inputs[1])
    if amounts is None or amounts.size < 6 or np.any(amounts.reshape(2, -1)[:, :2]):
        return None
    return amounts.reshape(2, -1)[:, 2:].reshape(-1)
