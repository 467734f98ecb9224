"""How far the statistics of tensors are from those wanted, and which way the inputs must move: a graph that says both.

    before   a network of x, and for some of its tensors t the mean and deviation that each channel should have
    after    distance = mean over t and channels of ((mean - wanted mean) / wanted)² + ((deviation - wanted) / wanted)²
             and its derivative by x, made of standard operators: onnxruntime runs both ways

Behind an operator without a rule here nothing is learned of what is in front of it: the derivative leaves that way out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from binarize_onnx import scopes, shapes
from binarize_onnx.passes.base import Array
from binarize_onnx.verify import graphs
from binarize_onnx.verify.session import Runner

SMALLEST = 1e-12  # variance whose root still has a derivative


@dataclass(frozen=True, eq=False)
class Target:
    """What a tensor [N, C, ...] should look like.

    Attributes:
        tensor: its name.
        mean: float64 [C].
        deviation: float64 [C], above 0.
    """

    tensor: str
    mean: Array
    deviation: Array


class Distance:
    """The distance of a batch from its targets.

    Args:
        model: of fixed shapes, as `shapes.fix_inputs` leaves it, nodes in topological order.
        targets: at least one.

    Attributes:
        inputs: what the caller must give and gets derivatives of, with their shapes.
        targets: how many there are.
        bytes: of all tensors that depend on these, which are held at the same time.
    """

    def __init__(self, model: onnx.ModelProto, targets: Sequence[Target]) -> None:
        self.targets = len(targets)
        self._shapes = shapes.infer(model)
        self._constants = graphs.constants(model)
        whole = graphs.pruned(model, [t.tensor for t in targets])
        self._graph, needed = whole.graph, list(whole.graph.node)
        del self._graph.output[:]
        given = graphs.caller_inputs(whole)
        self.inputs = {name: self.shape(name) for name in given}
        self._moving = set(self.inputs)
        for node in needed:
            if not self._moving.isdisjoint(node.input):
                self._moving.update(node.output)
        self.bytes = sum(4 * prod(self.shape(name)) for name in self._moving if self.knows(name))
        self._unique = scopes.Names(scopes.all_names(model.graph)).unused
        self._derivatives: dict[str, list[str]] = {}
        self._result = self._distance(targets)
        self._backwards(needed)
        self._gradients = {name: self._sum(name) for name in self.inputs}
        outputs = [self._result, *(name for name in self._gradients.values() if name)]
        self._graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        self._runner = Runner(whole, optimise=True)

    def __call__(self, feed: Mapping[str, Array]) -> tuple[float, dict[str, Array]]:
        """The distance, and its derivative by each input; zeros for one that no derivative reaches."""
        found = self._runner.run(feed)
        zeros = {name: np.zeros_like(feed[name]) for name in self.inputs}
        known = {name: found[gradient] for name, gradient in self._gradients.items() if gradient}
        return float(found[self._result]), zeros | known

    # --- What rules read and write -------------------------------------------------------------------------------

    def knows(self, name: str) -> bool:
        """Whether a tensor is float32 of a shape that is fixed."""
        shape = self._shapes.known.get(name)
        return shape is not None and None not in shape and self._shapes.types.get(name) == onnx.TensorProto.FLOAT

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; open sizes are 0."""
        return tuple(d or 0 for d in self._shapes.known.get(name, ()))

    def constant_of(self, node: onnx.NodeProto, index: int) -> Array | None:
        """An input of a node that is constant."""
        return self._constants.get(node.input[index]) if index < len(node.input) else None

    def constant(self, values: Any, dtype: type = np.float32) -> str:
        """A new initializer."""
        name = self._unique("constant")
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """A new node; its only output."""
        return self.several(op, *inputs, outputs=1, **attributes)[0]

    def several(self, op: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """A new node; its outputs."""
        names = [self._unique(op.lower()) for _ in range(outputs)]
        self._graph.node.append(helper.make_node(op, inputs, names, **attributes))
        return names

    def to_shape(self, gradient: str, like: str, of: str) -> str:
        """The derivative by an operand that was broadcast to the shape of another tensor."""
        shape, whole = self.shape(like), self.shape(of)
        padded = (1,) * (len(whole) - len(shape)) + shape
        axes = [i for i, (a, b) in enumerate(zip(padded, whole, strict=True)) if a != b]
        if axes:
            gradient = self.node("ReduceSum", gradient, self.constant(axes, np.int64), keepdims=1)
        return gradient if padded == shape else self.reshaped(gradient, shape)

    def reshaped(self, gradient: str, shape: Sequence[int]) -> str:
        """The same numbers in another shape."""
        return self.node("Reshape", gradient, self.constant(shape, np.int64))

    # --- Forwards ------------------------------------------------------------------------------------------------

    def _distance(self, targets: Sequence[Target]) -> str:
        """The nodes of the distance, and of its derivative by each tensor that has a target."""
        terms = []
        for target in targets:
            shape = self.shape(target.tensor)
            count, channels = prod(shape) // shape[1], shape[1]
            view = (1, channels, *[1] * (len(shape) - 2))
            axes = self.constant([i for i in range(len(shape)) if i != 1], np.int64)
            mean, wanted, inverse = (
                self.constant(v.reshape(view)) for v in (target.mean, target.deviation, 1 / target.deviation)
            )
            share = self.constant(1 / count)

            def average(x: str, axes: str = axes, share: str = share) -> str:
                return self.node("Mul", self.node("ReduceSum", x, axes, keepdims=1), share)

            found = average(target.tensor)
            apart = self.node("Sub", target.tensor, found)
            variance = average(self.node("Mul", apart, apart))
            deviation = self.node("Sqrt", self.node("Max", variance, self.constant(SMALLEST)))
            off = self.node("Mul", self.node("Sub", found, mean), inverse)
            wide = self.node("Mul", self.node("Sub", deviation, wanted), inverse)
            squares = self.node("Add", self.node("Mul", off, off), self.node("Mul", wide, wide))
            each = self.constant(1 / (channels * len(targets)))
            terms.append(self.node("Mul", self.node("ReduceSum", squares, keepdims=0), each))
            # d mean / dx = 1 / count;  d deviation / dx = (x - mean) / (count * deviation)
            twice = self.constant(2 / (channels * len(targets) * count))
            by_mean = self.node("Mul", self.node("Mul", off, inverse), twice)
            by_deviation = self.node("Mul", self.node("Div", self.node("Mul", wide, inverse), deviation), twice)
            derivative = self.node("Add", self.node("Mul", apart, by_deviation), by_mean)
            self._derivatives.setdefault(target.tensor, []).append(derivative)
        return self.node("Sum", *terms)

    # --- Backwards -----------------------------------------------------------------------------------------------

    def _backwards(self, nodes: Sequence[onnx.NodeProto]) -> None:
        for node in reversed(nodes):
            rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            moving = [i for i, name in enumerate(node.input) if name in self._moving]
            gradient = self._sum(node.output[0]) if node.output and moving else ""
            if rule is None or not gradient or not all(self.knows(node.input[i]) for i in moving):
                continue
            for index in moving:
                found = rule(self, node, gradient, index)
                if found:
                    self._derivatives.setdefault(node.input[index], []).append(found)

    def _sum(self, name: str) -> str:
        """The derivative by a tensor, from all that reads it; none if nothing that has one does."""
        parts = self._derivatives.pop(name, [])
        return parts[0] if len(parts) == 1 else self.node("Sum", *parts) if parts else ""


# --- Rules: `(graph, node, derivative by its output, which input) -> derivative by that input`, "" for none ----------

Rule = Callable[[Distance, onnx.NodeProto, str, int], str]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _window(graph: Distance, node: onnx.NodeProto, kernel: Sequence[int]) -> dict[str, Any] | None:
    """Strides, dilations, pads and output padding of the transposed convolution that undoes a window's shape."""
    found, axes = _attributes(node), len(kernel)
    strides, dilations = list(found.get("strides", [1] * axes)), list(found.get("dilations", [1] * axes))
    before, after = graph.shape(node.input[0])[2:], graph.shape(node.output[0])[2:]
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    auto = found.get("auto_pad", b"NOTSET")
    pads = list(found.get("pads", [0] * 2 * axes))
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        lengths = zip(before, after, strides, spans, strict=True)
        total = [max(0, (y - 1) * s + span - x) for x, y, s, span in lengths]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = [*small, *large] if auto == b"SAME_UPPER" else [*large, *small]
    sizes = zip(before, after, strides, spans, pads[:axes], pads[axes:], strict=True)
    extra = [x - (s * (y - 1) + span - p - q) for x, y, s, span, p, q in sizes]
    if min(extra, default=0) < 0 or any(e >= max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        return None  # pads beyond the input: no exporter writes these
    return {"strides": strides, "dilations": dilations, "pads": pads, "output_padding": extra}


def _conv(graph: Distance, node: onnx.NodeProto, gradient: str, index: int) -> str:
    weights = graph.constant_of(node, 1)
    window = None if weights is None or index else _window(graph, node, weights.shape[2:])
    if weights is None or window is None:
        return ""
    return _back_through(graph, gradient, weights, _attributes(node).get("group", 1), window)


def _back_through(graph: Distance, gradient: str, weights: Array, group: int, window: dict[str, Any]) -> str:
    """The transposed convolution; without strides a convolution with turned weights, which is several times faster."""
    spans = [d * (k - 1) for d, k in zip(window["dilations"], weights.shape[2:], strict=True)]
    pads = [span - pad for span, pad in zip([*spans, *spans], window["pads"], strict=True)]
    if set(window["strides"]) != {1} or min(pads) < 0:
        return graph.node("ConvTranspose", gradient, graph.constant(weights), group=group, **window)
    turned = np.flip(weights, axis=tuple(range(2, weights.ndim)))
    turned = np.concatenate([part.swapaxes(0, 1) for part in np.split(turned, group)])
    return graph.node("Conv", gradient, graph.constant(turned), group=group, pads=pads, dilations=window["dilations"])


def _average_pool(graph: Distance, node: onnx.NodeProto, gradient: str, index: int) -> str:
    kernel = list(_attributes(node)["kernel_shape"])
    window = _window(graph, node, kernel)
    if window is None:
        return ""
    channels = graph.shape(node.input[0])[1]
    return _back_through(graph, gradient, np.full((channels, 1, *kernel), 1 / prod(kernel)), channels, window)


def _max_pool(graph: Distance, node: onnx.NodeProto, gradient: str, index: int) -> str:
    """To where the largest values were; of windows that share one, only one derivative arrives there."""
    places = graph.several("MaxPool", node.input[0], outputs=2, **_attributes(node))[1]
    shape = graph.shape(node.input[0])
    flat = graph.reshaped(gradient, [-1])
    places = graph.reshaped(places, [-1])
    zeros = graph.constant(np.zeros(prod(shape)))
    return graph.reshaped(graph.node("ScatterElements", zeros, places, flat, axis=0), shape)


def _normalize(graph: Distance, node: onnx.NodeProto, gradient: str, index: int) -> str:
    gamma, variance = graph.constant_of(node, 1), graph.constant_of(node, 4)
    if index or gamma is None or variance is None:
        return ""
    scale = gamma / np.sqrt(variance + _attributes(node).get("epsilon", 1e-5))
    view = (-1, *[1] * (len(graph.shape(node.input[0])) - 2))
    return graph.node("Mul", gradient, graph.constant(scale.reshape(view)))


def _where(graph: Distance, gradient: str, *conditions: str) -> str:
    """The derivative where all conditions hold."""
    for condition in conditions:
        gradient = graph.node("Mul", gradient, graph.node("Cast", condition, to=onnx.TensorProto.FLOAT))
    return gradient


def _relu(graph: Distance, node: onnx.NodeProto, gradient: str, index: int) -> str:
    return _where(graph, gradient, graph.node("Greater", node.input[0], graph.constant(0.0)))


def _leaky_relu(graph: Distance, node: onnx.NodeProto, gradient: str, index: int) -> str:
    slope = graph.constant(_attributes(node).get("alpha", 0.01))
    above = graph.node("Greater", node.input[0], graph.constant(0.0))
    return graph.node("Where", above, gradient, graph.node("Mul", gradient, slope))


def _clip(graph: Distance, node: onnx.NodeProto, gradient: str, index: int) -> str:
    limits = [graph.constant_of(node, i) for i in (1, 2)]
    inside = [
        graph.node(op, node.input[0], graph.constant(limit.reshape(())))
        for op, limit in zip(("Greater", "Less"), limits, strict=True)
        if limit is not None and limit.size == 1
    ]
    return _where(graph, gradient, *inside) if index == 0 else ""


def _sigmoid(graph: Distance, node: onnx.NodeProto, gradient: str, index: int) -> str:
    y = node.output[0]
    return graph.node("Mul", gradient, graph.node("Mul", y, graph.node("Sub", graph.constant(1.0), y)))


def _tanh(graph: Distance, node: onnx.NodeProto, gradient: str, index: int) -> str:
    y = node.output[0]
    return graph.node("Mul", gradient, graph.node("Sub", graph.constant(1.0), graph.node("Mul", y, y)))


def _hard_sigmoid(graph: Distance, node: onnx.NodeProto, gradient: str, index: int) -> str:
    y = node.output[0]
    inside = graph.node("Greater", y, graph.constant(0.0)), graph.node("Less", y, graph.constant(1.0))
    return graph.node("Mul", _where(graph, gradient, *inside), graph.constant(_attributes(node).get("alpha", 0.2)))


def _add(graph: Distance, node: onnx.NodeProto, gradient: str, index: int) -> str:
    return graph.to_shape(gradient, node.input[index], node.output[0])


def _sub(graph: Distance, node: onnx.NodeProto, gradient: str, index: int) -> str:
    return _add(graph, node, graph.node("Neg", gradient) if index else gradient, index)


def _mul(graph: Distance, node: onnx.NodeProto, gradient: str, index: int) -> str:
    return _add(graph, node, graph.node("Mul", gradient, node.input[1 - index]), index)


def _div(graph: Distance, node: onnx.NodeProto, gradient: str, index: int) -> str:
    return "" if index else _add(graph, node, graph.node("Div", gradient, node.input[1]), 0)


def _mat_mul(graph: Distance, node: onnx.NodeProto, gradient: str, index: int) -> str:
    weights = graph.constant_of(node, 1)
    if index or weights is None or weights.ndim != 2:
        return ""
    return graph.node("MatMul", gradient, graph.node("Transpose", node.input[1]))


def _gemm(graph: Distance, node: onnx.NodeProto, gradient: str, index: int) -> str:
    found = _attributes(node)
    if index or graph.constant_of(node, 1) is None or found.get("transA", 0):
        return ""
    alpha, turned = found.get("alpha", 1.0), 1 - found.get("transB", 0)
    return graph.node("Gemm", gradient, node.input[1], alpha=alpha, transB=turned)


def _mean(graph: Distance, node: onnx.NodeProto, gradient: str, index: int) -> str:
    """Of GlobalAveragePool, and of ReduceMean with its axes kept or not."""
    shape = graph.shape(node.input[0])
    axes = _attributes(node).get("axes", graph.constant_of(node, 1))
    if node.op_type == "GlobalAveragePool":
        axes = range(2, len(shape))
    if index or axes is None:
        return ""
    over = {int(a) % len(shape) for a in axes}
    kept = [1 if i in over else d for i, d in enumerate(shape)]
    count = prod(shape[i] for i in over)
    whole = graph.node("Expand", graph.reshaped(gradient, kept), graph.constant(shape, np.int64))
    return graph.node("Mul", whole, graph.constant(1 / count))


def _same_numbers(graph: Distance, node: onnx.NodeProto, gradient: str, index: int) -> str:
    return "" if index else graph.reshaped(gradient, graph.shape(node.input[0]))


def _transpose(graph: Distance, node: onnx.NodeProto, gradient: str, index: int) -> str:
    rank = len(graph.shape(node.input[0]))
    order = list(_attributes(node).get("perm", range(rank)[::-1]))
    return graph.node("Transpose", gradient, perm=[order.index(i) for i in range(rank)])


def _picked(graph: Distance, node: onnx.NodeProto, gradient: str, index: int) -> str:
    """Of Slice: what was left out gets the zero that is put behind the rest."""
    parameters = [graph.constant_of(node, i) for i in range(1, 5)]
    shape = graph.shape(node.input[0])
    if index or parameters[0] is None or parameters[1] is None:
        return ""
    starts, ends = (list(map(int, p.reshape(-1))) for p in parameters[:2] if p is not None)
    axes = range(len(starts)) if parameters[2] is None else [int(a) % len(shape) for a in parameters[2]]
    steps = [1] * len(starts) if parameters[3] is None else list(map(int, parameters[3]))
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        rows = np.arange(shape[axis])[start:end:step]  # beyond the ends ONNX counts as Python does
        places = np.full(shape[axis], len(rows))
        places[rows] = np.arange(len(rows))
        pads = np.zeros((2, len(shape)), np.int64)
        pads[1, axis] = 1
        gradient = graph.node("Pad", gradient, graph.constant(pads.reshape(-1), np.int64))
        gradient = graph.node("Gather", gradient, graph.constant(places, np.int64), axis=axis)
    return gradient


def _concat(graph: Distance, node: onnx.NodeProto, gradient: str, index: int) -> str:
    shapes_of = [graph.shape(name) for name in node.input]
    axis = _attributes(node)["axis"] % len(shapes_of[0])
    first = sum(shape[axis] for shape in shapes_of[:index])
    limits = ([first], [first + shapes_of[index][axis]], [axis])
    return graph.node("Slice", gradient, *(graph.constant(v, np.int64) for v in limits))


def _pad(graph: Distance, node: onnx.NodeProto, gradient: str, index: int) -> str:
    pads, shape = graph.constant_of(node, 1), graph.shape(node.input[0])
    if index or pads is None or len(pads) != 2 * len(shape) or len(node.input) > 3 or min(pads) < 0:
        return ""
    starts = pads[: len(shape)]
    return graph.node("Slice", gradient, *(graph.constant(v, np.int64) for v in (starts, starts + shape)))


def _same(graph: Distance, node: onnx.NodeProto, gradient: str, index: int) -> str:
    return "" if index else gradient


RULES: Mapping[str, Rule] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "BatchNormalization": _normalize,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _div,
    "Dropout": _same,
    "Flatten": _same_numbers,
    "Gemm": _gemm,
    "GlobalAveragePool": _mean,
    "HardSigmoid": _hard_sigmoid,
    "Identity": _same,
    "LeakyRelu": _leaky_relu,
    "MatMul": _mat_mul,
    "MaxPool": _max_pool,
    "Mul": _mul,
    "Pad": _pad,
    "ReduceMean": _mean,
    "Relu": _relu,
    "Reshape": _same_numbers,
    "Sigmoid": _sigmoid,
    "Slice": _picked,
    "Squeeze": _same_numbers,
    "Sub": _sub,
    "Tanh": _tanh,
    "Transpose": _transpose,
    "Unsqueeze": _same_numbers,
}
