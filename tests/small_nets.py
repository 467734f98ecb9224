"""Small binary networks for the fuzz of the recogniser, and the form in which they are easy to change.

Every number is a multiple of a small power of two: inputs, scales, biases, thresholds and normalizations (whose
variance plus epsilon is a power of four). Sums and products of those are exact in float32 in any order, so two ways to
compute a network give the same values, bit for bit up to the sign of zero, and a comparison needs no tolerance. The
grid is coarse, so zeros and values right on a threshold come by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
Random = np.random.Generator
T = TypeVar("T")

BATCH = 2
EPSILON = 2.0**-10
FLOAT = TensorProto.FLOAT


def pick(random: Random, choices: Sequence[T]) -> T:
    """One of the choices."""
    return choices[int(random.integers(len(choices)))]


def grid(random: Random, *shape: int, reach: float = 2, step: float = 0.25) -> Array:
    """Multiples of `step` between -reach and reach: float32 of the given shape."""
    return (random.integers(int(-reach / step), int(reach / step) + 1, shape) * step).astype(np.float32)


def scales(random: Random, *shape: int) -> Array:
    """Positive factors of few bits: float32 of the given shape."""
    return random.choice(np.asarray([0.25, 0.5, 1, 2, 0.75, 1.5], np.float32), shape)


class Net:
    """A model as lists and dictionaries: nodes in any order, constants as arrays; the functions of a model beside them.

    Attributes:
        nodes: every node; their order means nothing.
        constants: the initializers by name.
        inputs: the shape of each graph input with `BATCH` in front, all float32.
        outputs: names of the graph outputs.
        functions: model-local functions.
        listed: initializers that are graph inputs too, as opset 8 and older had it.
        open_batch: the first dimension of the inputs is named instead of fixed.
    """

    def __init__(self, inputs: dict[str, tuple[int, ...]]) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.inputs = inputs
        self.outputs: list[str] = []
        self.functions: list[onnx.FunctionProto] = []
        self.listed: set[str] = set()
        self.open_batch = False
        self._count = 0

    def copy(self) -> Net:
        """An independent copy."""
        other = Net(dict(self.inputs))
        for node in self.nodes:
            other.nodes.append(NodeProto())
            other.nodes[-1].CopyFrom(node)
        other.constants, other.outputs = dict(self.constants), list(self.outputs)
        other.functions, other.listed = list(self.functions), set(self.listed)
        other.open_batch, other._count = self.open_batch, self._count
        return other

    def fresh(self, hint: str = "t") -> str:
        """A name that nothing has."""
        self._count += 1
        return f"{hint}{self._count}"

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """A new initializer."""
        name = self.fresh("c")
        self.constants[name] = np.asarray(values, dtype)
        return name

    def add(
        self, op: str, *inputs: str, result: str = "", outputs: int = 1, domain: str = "", **attributes: Any
    ) -> str:
        """A new node; its first output, called `result` where given."""
        names = [result or self.fresh(), *(self.fresh() for _ in range(outputs - 1))]
        node = helper.make_node(op, inputs, names, name=self.fresh(op), domain=domain, **attributes)
        self.nodes.append(node)
        return names[0]

    def producer(self, name: str) -> NodeProto | None:
        """The node that writes a tensor."""
        return next((node for node in self.nodes if name in node.output), None)

    def readers(self, name: str) -> list[tuple[NodeProto, int]]:
        """Every place where a tensor is read, as node and position."""
        return [(node, i) for node in self.nodes for i, read in enumerate(node.input) if read == name]

    def redirect(self, old: str, new: str, spare: Sequence[NodeProto] = ()) -> None:
        """Everything that reads `old`, but the spared nodes, reads `new`. Graph outputs keep their tensor."""
        for node, index in self.readers(old):
            if all(node is not spared for spared in spare):
                node.input[index] = new

    def model(self, random: Random | None = None) -> onnx.ModelProto:
        """The network as a model of opset 17; with `random`, nodes in any topological order."""
        first = "N" if self.open_batch and random is not None else BATCH
        inputs = [helper.make_tensor_value_info(n, FLOAT, [first, *s[1:]]) for n, s in self.inputs.items()]
        inputs += [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(c.dtype), c.shape)
            for n, c in self.constants.items()
            if n in self.listed
        ]
        outputs = [helper.make_tensor_value_info(name, FLOAT, None) for name in self.outputs]
        tensors = [
            numpy_helper.from_array(np.ascontiguousarray(v).reshape(v.shape), n) for n, v in self.constants.items()
        ]
        graph = helper.make_graph(self._sorted(random), "small", inputs, outputs, tensors)
        imports = [helper.make_opsetid("", 17)]
        if self.functions:
            imports.append(helper.make_opsetid("local", 1))
        return helper.make_model(graph, opset_imports=imports, functions=self.functions, ir_version=8)

    def _sorted(self, random: Random | None) -> list[NodeProto]:
        ready = {*self.inputs, *self.constants, ""}
        waiting, ordered = list(self.nodes), []
        while waiting:
            free = [i for i, node in enumerate(waiting) if ready.issuperset(node.input)]
            node = waiting.pop(free[0] if random is None else pick(random, free))
            ready.update(node.output)
            ordered.append(node)
        return ordered

    def floats(self) -> dict[str, tuple[int, ...]]:
        """The shape of every float32 tensor that is no constant, as far as inference finds it."""
        inferred = onnx.shape_inference.infer_shapes(self.model(), data_prop=True).graph
        shapes = {}
        for value in [*inferred.input, *inferred.value_info, *inferred.output]:
            kind = value.type.tensor_type
            if kind.elem_type == FLOAT and kind.HasField("shape") and value.name not in self.constants:
                dims = [d.dim_value for d in kind.shape.dim]
                if all(dims):
                    shapes[value.name] = tuple(dims)
        return shapes

    def forget_unused(self) -> None:
        """Drop nodes that no output needs, and constants that no node reads."""
        needed, changed = set(self.outputs), True
        while changed:
            before = len(needed)
            for node in self.nodes:
                if needed & set(node.output):
                    needed |= set(node.input)
            changed = len(needed) != before
        self.nodes = [node for node in self.nodes if needed & set(node.output)]
        self.constants = {n: v for n, v in self.constants.items() if n in needed}
        self.listed &= set(self.constants)


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of an attribute."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def along_channels(values: Array, rank: int) -> Array:
    """[C] as [1, C, 1, 1], [1, C, 1] or [C]: what broadcasts along the channels of a tensor of that rank."""
    return values.reshape((1, -1, *[1] * (rank - 2))) if rank > 2 else values


# --- Signs: the ways in which exporters write them ------------------------------------------------------------------

Shape = tuple[int, ...]
SignForm = Callable[[Net, Random, str, Shape], str]


def _threshold(net: Net, random: Random, shape: Shape) -> str:
    """A number to compare with: one for all, or one for each channel."""
    if len(shape) > 1 and random.random() < 0.3:
        return net.constant(along_channels(grid(random, shape[1], reach=1), len(shape)))
    return net.constant(pick(random, (0.0, 0.0, 0.5, -0.25)))


def _compare(net: Net, random: Random, x: str, shape: Shape) -> str:
    """x against a constant, with any operator, on either side."""
    op = pick(random, ("GreaterOrEqual", "Greater", "LessOrEqual", "Less"))
    operands = (x, _threshold(net, random, shape))
    compared = net.add(op, *(operands if random.random() < 0.7 else operands[::-1]))
    return net.add("Not", compared) if random.random() < 0.25 else compared


def plain(net: Net, random: Random, x: str, shape: Shape) -> str:
    """Sign(x): three values."""
    return net.add("Sign", x)


def larq(net: Net, random: Random, x: str, shape: Shape) -> str:
    """Sign(Sign(x) + 0.125) (exporters write 0.1): zero counts as +1."""
    return net.add("Sign", net.add("Add", net.add("Sign", x), net.constant(0.125)))


def bitorch(net: Net, random: Random, x: str, shape: Shape) -> str:
    """Where(Sign(x) == 0, 1, Sign(x))."""
    sign = net.add("Sign", x)
    return net.add("Where", net.add("Equal", sign, net.constant(0)), net.constant(1), sign)


def where(net: Net, random: Random, x: str, shape: Shape) -> str:
    """Where(x >= c, 1, -1), and the other way round."""
    one = pick(random, (1, -1))
    return net.add("Where", _compare(net, random, x, shape), net.constant(one), net.constant(-one))


def doubled_cast(net: Net, random: Random, x: str, shape: Shape) -> str:
    """2 b - 1 of the bits of a comparison."""
    bits = net.add("Cast", _compare(net, random, x, shape), to=FLOAT)
    doubled = net.add("Mul", bits, net.constant(2))
    return net.add(*pick(random, (("Sub", doubled, net.constant(1)), ("Add", doubled, net.constant(-1)))))


def cast(net: Net, random: Random, x: str, shape: Shape) -> str:
    """The bits of a comparison: {0, 1}."""
    return net.add("Cast", _compare(net, random, x, shape), to=FLOAT)


def heaviside(net: Net, random: Random, x: str, shape: Shape) -> str:
    """Sign(Relu(x)): {0, 1}."""
    return net.add("Sign", net.add("Relu", x))


def dorefa(net: Net, random: Random, x: str, shape: Shape) -> str:
    """Round(Clip(x, 0, 1)): {0, 1}, one half becomes 0."""
    return net.add("Round", net.add("Clip", x, net.constant(0), net.constant(1)))


def scaled(net: Net, random: Random, x: str, shape: Shape) -> str:
    """s Sign(x)."""
    operands = (net.add("Sign", x), net.constant(pick(random, (0.5, 2, 0.75))))
    return net.add("Mul", *(operands if random.random() < 0.5 else operands[::-1]))


def scaled_where(net: Net, random: Random, x: str, shape: Shape) -> str:
    """Where(x >= c, s, -s)."""
    one = pick(random, (0.5, -0.75, 2))
    return net.add("Where", _compare(net, random, x, shape), net.constant(one), net.constant(-one))


def rsign(net: Net, random: Random, x: str, shape: Shape) -> str:
    """Sign(x + beta), beta for each channel."""
    beta = net.constant(along_channels(grid(random, shape[1], reach=1), len(shape)))
    return _simple(net, random, net.add("Add", x, beta), shape)


def hard_tanh(net: Net, random: Random, x: str, shape: Shape) -> str:
    """Sign(Clip(x, -1, 1))."""
    return _simple(net, random, net.add("Clip", x, net.constant(-1), net.constant(1)), shape)


def straight_through(net: Net, random: Random, x: str, shape: Shape) -> str:
    """(S - R) + R with a bounded R: what detach leaves behind."""
    if random.random() < 0.7:
        residue, sign = net.add("Clip", x, net.constant(-1), net.constant(1)), _simple(net, random, x, shape)
    else:
        residue, sign = net.add("Clip", x, net.constant(0), net.constant(1)), dorefa(net, random, x, shape)
    operands = (net.add("Sub", sign, residue), residue)
    return net.add("Add", *(operands if random.random() < 0.6 else operands[::-1]))


def _simple(net: Net, random: Random, x: str, shape: Shape) -> str:
    return pick(random, (plain, plain, where, doubled_cast, larq, bitorch))(net, random, x, shape)


SIGNS: tuple[SignForm, ...] = (
    *(plain, plain, where, where, doubled_cast, cast, heaviside),
    *(larq, bitorch, dorefa, scaled, scaled_where, rsign, hard_tanh, straight_through, straight_through),
)


# --- Weights --------------------------------------------------------------------------------------------------------


def weights(net: Net, random: Random, shape: Shape, axis: int) -> str:
    """Binary weights of the given shape, `axis` counting outputs: folded, or as the cone that made them."""
    signs = random.choice(np.asarray([-1, 1], np.float32), shape)
    if random.random() < 0.12:
        signs = np.where(random.random(shape) < 0.25, np.float32(0), signs)
    broadcast = [1] * len(shape)
    broadcast[axis] = shape[axis]
    alpha = scales(random, *broadcast)
    if random.random() < 0.4:
        return net.constant(signs)
    if random.random() < 0.4:
        return net.constant(signs * alpha)
    # Real weights whose mean magnitude is dyadic: a power of two many, or all of one magnitude.
    many = int(np.prod(shape)) // shape[axis]
    dyadic = many & (many - 1) == 0
    magnitude = random.choice(np.asarray([0.5, 1, 1.5], np.float32), shape) if dyadic else alpha
    real = net.constant(signs * magnitude)
    kinds = ["sign", "residue", "constant scale"] + ["xnor"] * (dyadic or bool(np.all(signs)))
    kind = pick(random, kinds)
    sign = net.add("Sign", real)
    if kind == "residue":
        clipped = net.add("Clip", real, net.constant(-1), net.constant(1))
        return net.add("Add", net.add("Sub", sign, clipped), clipped)
    if kind == "xnor":
        mean = net.add("Abs", real)
        for reduced in (a for a in reversed(range(len(shape))) if a != axis):
            mean = net.add("ReduceMean", mean, axes=[reduced], keepdims=1)
        return net.add("Mul", *pick(random, ((mean, sign), (sign, mean))))
    if kind == "constant scale":
        return net.add("Mul", sign, net.constant(alpha))
    return sign


# --- Networks -------------------------------------------------------------------------------------------------------


def base_network(random: Random) -> Net:
    """A network of one to three binary layers."""
    rank = pick(random, (4, 4, 4, 4, 4, 4, 3, 2))
    channels, size = int(pick(random, (2, 4, 4, 6))), int(pick(random, (3, 4, 5)))
    shape = (BATCH, channels, *[size] * (rank - 2))
    net = Net({"x": shape})
    net.open_batch = bool(random.random() < 0.5)
    x = "x"
    if random.random() < 0.3:
        x = _affine(net, random, x, shape)
    for _ in range(int(random.integers(1, 4))):
        before, shape_before = x, shape
        x, shape = _layer(net, random, x, shape) if len(shape) > 2 else _dense(net, random, x, shape)
        x = _behind(net, random, x, shape)
        if shape == shape_before and random.random() < 0.6:
            x = net.add("Add", *pick(random, ((x, before), (before, x))))
        if random.random() < 0.25:
            net.outputs.append(x)
        if len(shape) > 2 and random.random() < 0.25:
            x, shape = _flattened(net, random, x, shape)
    if x not in net.outputs:
        net.outputs.append(x)
    return net


def _sign(net: Net, random: Random, x: str, shape: Shape) -> str:
    return pick(random, SIGNS)(net, random, x, shape)


def _layer(net: Net, random: Random, x: str, shape: Shape) -> tuple[str, Shape]:
    """A binary convolution, with what may stand between it and its sign."""
    rank, channels = len(shape) - 2, shape[1]
    if random.random() < 0.08 and shape[2] >= 2:
        x = net.add("MaxPool", x, kernel_shape=[2] * rank, strides=[1] * rank)
        shape = (*shape[:2], *(s - 1 for s in shape[2:]))
    bits = _sign(net, random, x, shape)
    kind = random.random()
    if kind < 0.1 and min(shape[2:]) >= 3:
        bits = net.add("MaxPool", bits, kernel_shape=[2] * rank, strides=[1] * rank)
        shape = (*shape[:2], *(s - 1 for s in shape[2:]))
    elif kind < 0.2:
        other = _simple(net, random, net.add("Neg", x), shape) if random.random() < 0.5 else bits
        bits, channels = net.add("Concat", bits, other, axis=1), 2 * channels
    pads, pad = [0] * (2 * rank), int(random.random() < 0.5)
    if pad and random.random() < 0.5:
        fill = net.constant(pick(random, (0, 1, -1)))
        amounts = net.constant([0, 0, *[1] * rank, 0, 0, *[1] * rank], np.int64)
        bits = net.add("Pad", bits, amounts, fill)
    elif pad:
        pads = [1] * (2 * rank)
    reach = min(min(shape[2:]) + 2 * pad, int(pick(random, (1, 2, 3))))
    group = 2 if channels % 2 == 0 and channels > 2 and random.random() < 0.2 else 1
    outputs = int(pick(random, (2, 4, channels)))
    stride = int(pick(random, (1, 1, 1, 2)))
    bias = [net.constant(grid(random, outputs))] if random.random() < 0.3 else []
    common: dict[str, Any] = {"kernel_shape": [reach] * rank, "strides": [stride] * rank, "group": group}
    if random.random() < 0.08:
        kernel = weights(net, random, (channels, outputs // group, *[reach] * rank), 1 if group == 1 else 0)
        y = net.add("ConvTranspose", bits, kernel, *bias, **common)
        return y, (BATCH, outputs, *((s + 2 * _node_pad(pad, pads) - 1) * stride + reach for s in shape[2:]))
    kernel = weights(net, random, (outputs, channels // group, *[reach] * rank), 0)
    y = net.add("Conv", bits, kernel, *bias, pads=pads, **common)
    return y, (BATCH, outputs, *((s + 2 * pad - reach) // stride + 1 for s in shape[2:]))


def _node_pad(pad: int, pads: list[int]) -> int:
    """How much a Pad node added; the attribute of a ConvTranspose is not used."""
    return 0 if any(pads) else pad


def _dense(net: Net, random: Random, x: str, shape: Shape) -> tuple[str, Shape]:
    bits, outputs = _sign(net, random, x, shape), int(pick(random, (2, 4, shape[1])))
    if random.random() < 0.1:
        other = _simple(net, random, net.add("Neg", x), shape)
        return net.add("MatMul", bits, net.add("Transpose", other, perm=[1, 0])), (BATCH, BATCH)
    if random.random() < 0.5:
        return net.add("MatMul", bits, weights(net, random, (shape[1], outputs), 1)), (BATCH, outputs)
    bias = [net.constant(grid(random, outputs))] if random.random() < 0.5 else []
    if random.random() < 0.5:
        return net.add("Gemm", bits, weights(net, random, (shape[1], outputs), 1), *bias), (BATCH, outputs)
    return net.add("Gemm", bits, weights(net, random, (outputs, shape[1]), 0), *bias, transB=1), (BATCH, outputs)


def _flattened(net: Net, random: Random, x: str, shape: Shape) -> tuple[str, Shape]:
    length = int(np.prod(shape[1:]))
    if random.random() < 0.5:
        return net.add("Flatten", x, axis=1), (BATCH, length)
    return net.add("Reshape", x, net.constant([-1, length], np.int64)), (BATCH, length)


def _normalized(net: Net, random: Random, x: str, channels: int) -> str:
    gamma = scales(random, channels) * random.choice(np.asarray([-1, 1, 1, 1], np.float32), channels)
    variance = (random.choice([0.25, 1, 4, 16], channels) - EPSILON).astype(np.float32)
    parameters = (gamma, grid(random, channels), grid(random, channels), variance)
    return net.add("BatchNormalization", x, *(net.constant(p) for p in parameters), epsilon=EPSILON)


def _affine(net: Net, random: Random, x: str, shape: Shape) -> str:
    if random.random() < 0.6:
        return _normalized(net, random, x, shape[1])
    return net.add("Mul", x, net.constant(along_channels(scales(random, shape[1]), len(shape))))


def _behind(net: Net, random: Random, x: str, shape: Shape) -> str:
    """The real-valued steps behind a layer."""
    if random.random() < 0.15:  # popcount domain and back
        x = net.add("Mul", net.add("Add", x, net.constant(8)), net.constant(0.5))
    if random.random() < 0.6:
        x = _affine(net, random, x, shape)
    match pick(random, ("none", "none", "none", "Relu", "PRelu", "Sub", "Neg")):
        case "Relu":
            x = net.add("Relu", x)
        case "PRelu":
            slope = scales(random, shape[1], *[1] * (len(shape) - 2))
            x = net.add("PRelu", x, net.constant(slope))
        case "Sub":
            x = net.add("Sub", x, net.constant(along_channels(grid(random, shape[1]), len(shape))))
        case "Neg":
            x = net.add("Neg", x)
    return x
