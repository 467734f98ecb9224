"""Changes to a small network that break its meaning, or may: nearly a sign, nearly binary weights.

What comes out is another valid model, and whatever the compiler does with it must be that model: mostly, leave a layer
float. A mutation changes the net in place and returns True, or finds no place for itself and returns False.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import NodeProto, TensorProto, helper
from rewrites import COMPARISONS, constant_of, some_node, some_tensor
from small_nets import BATCH, FLOAT, SIGNS, Net, Random, along_channels, attribute, grid, pick

Mutation = Callable[[Net, Random], bool]

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def _before_layer(net: Net, random: Random, make: Callable[[str, tuple[int, ...]], str]) -> bool:
    """A step right in front of a layer."""
    shapes = net.floats()
    node = some_node(net, random, *LAYERS, where=lambda n: len(shapes.get(n.input[0], ())) >= 2)
    if node is None:
        return False
    shape = shapes[node.input[0]]
    if shape[0] != BATCH:
        return False
    node.input[0] = make(node.input[0], shape)
    return True


def constant_in_a_sign(net: Net, random: Random) -> bool:
    """A number of a sign form that is another one: 2 b - 0.5, Add 1.1, Where 1, -2, Clip to 2."""
    ops = ("Add", "Sub", "Mul", "Div", "Where", "Clip", "Equal", "Max", "Min", *COMPARISONS)
    places = [
        (node, i)
        for node in net.nodes
        for i, name in enumerate(node.input)
        if node.op_type in ops
        and name
        and (c := constant_of(net, name)) is not None
        and c.size == 1
        and c.dtype == np.float32
    ]
    if not places:
        return False
    node, index = pick(random, places)
    old = float(net.constants[node.input[index]].reshape(-1)[0])
    new = pick(random, (old + 1, old - 1, old + 0.5, old * 2, -old, 0.0, old + 2**-12, 1.0, -1.0, 2.0))
    node.input[index] = net.constant(np.full(net.constants[node.input[index]].shape, new))
    return True


def constant_that_is_no_number(net: Net, random: Random) -> bool:
    """A constant of a sign form is NaN or infinite."""
    ops = ("Add", "Sub", "Mul", "Where", "Clip", "Max", *COMPARISONS)
    places = [
        (node, i)
        for node in net.nodes
        for i, name in enumerate(node.input)
        if node.op_type in ops and name and (c := constant_of(net, name)) is not None and c.dtype == np.float32
    ]
    if not places:
        return False
    node, index = pick(random, places)
    values = net.constants[node.input[index]].copy()
    values.reshape(-1)[int(random.integers(values.size))] = pick(random, (np.nan, np.inf, -np.inf, 3e38, -3e38))
    node.input[index] = net.constant(values)
    return True


def constant_for_each_pixel(net: Net, random: Random) -> bool:
    """A number of a sign form becomes a tensor along some axis: channel, row, column, sample or feature."""
    shapes = net.floats()
    places = []
    for node in net.nodes:
        if node.op_type not in ("Add", "Sub", "Mul", "Where", *COMPARISONS):
            continue
        for i, name in enumerate(node.input):
            c, shape = constant_of(net, name), _shape_at(net, node, shapes)
            if c is not None and c.size == 1 and c.dtype == np.float32 and shape is not None and shape[0] == BATCH:
                places.append((node, i, shape))
    if not places:
        return False
    node, index, shape = pick(random, places)
    old = float(net.constants[node.input[index]].reshape(-1)[0])
    axis = int(random.integers(1, len(shape))) if net.open_batch else int(random.integers(len(shape)))
    values = np.full([n if a == axis else 1 for a, n in enumerate(shape)], old, np.float32)
    kind = random.random()
    if kind < 0.4:
        values *= random.choice(np.asarray([-1, 1], np.float32), values.shape)
    elif kind < 0.8:
        values += grid(random, *values.shape, reach=1)
    node.input[index] = net.constant(values)
    return True


def _shape_at(net: Net, node: NodeProto, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """The shape that an elementwise node works on."""
    for name in [*node.output, *node.input]:
        if len(shapes.get(name, ())) >= 2:
            return shapes[name]
    return None


def other_comparison(net: Net, random: Random) -> bool:
    """Greater for GreaterOrEqual, or turned round, or Equal."""
    node = some_node(net, random, *COMPARISONS)
    if node is None:
        return False
    node.op_type = pick(random, [op for op in (*COMPARISONS, "Equal") if op != node.op_type])
    return True


def swapped_operands(net: Net, random: Random) -> bool:
    """Sub(a, b) -> Sub(b, a); the branches of a Where."""
    node = some_node(net, random, "Sub", "Where", *COMPARISONS)
    if node is None:
        return False
    i = 1 if node.op_type == "Where" else 0
    node.input[i], node.input[i + 1] = node.input[i + 1], node.input[i]
    return True


def residue_of_another(net: Net, random: Random) -> bool:
    """(S - R) + R' with another R'."""
    shapes = net.floats()

    def is_residue(node: NodeProto) -> bool:
        return any((p := net.producer(i)) is not None and p.op_type == "Sub" for i in node.input)

    node = some_node(net, random, "Add", where=is_residue)
    if node is None or node.output[0] not in shapes:
        return False
    shape = shapes[node.output[0]]
    index = 0 if (p := net.producer(node.input[0])) is None or p.op_type != "Sub" else 1
    alike = [n for n, s in shapes.items() if s == shape and not _reaches(net, node.output[0], n)]
    made = [net.add("Clip", node.input[index], net.constant(-0.5), net.constant(0.5))]
    made += [net.add(op, node.input[index]) for op in ("Neg", "Relu", "Abs")]
    node.input[index] = pick(random, [*alike, *made]) if alike else pick(random, made)
    return True


def unbounded_residue(net: Net, random: Random) -> bool:
    """(S - x) + x with an x that nothing bounds: rounding may differ, these values do not."""
    node = some_node(net, random, "Sign")
    shapes = net.floats()
    if node is None or node.input[0] not in shapes:
        return False
    output, node.output[0] = node.output[0], net.fresh()
    residue = net.add("Mul", node.input[0], net.constant(pick(random, (1, 2.0**20, 2.0**30, 3.0))))
    net.add("Add", net.add("Sub", node.output[0], residue), residue, result=output)
    return True


def _reaches(net: Net, start: str, end: str) -> bool:
    """Whether the tensor `end` depends on `start`."""
    waiting, seen = [start], {start}
    while waiting:
        name = waiting.pop()
        if name == end:
            return True
        for node, _ in net.readers(name):
            waiting += [o for o in node.output if o not in seen]
            seen.update(node.output)
    return False


def changed_weight(net: Net, random: Random) -> bool:
    """One element of a constant of a layer: twice, half, other sign, zero, a little more."""
    names = [
        n
        for n, c in net.constants.items()
        if c.ndim >= 2 and c.size > 1 and c.dtype == np.float32 and n not in net.listed
    ]
    if not names:
        return False
    name = pick(random, names)
    values = net.constants[name].copy()
    flat = values.reshape(-1)
    at = int(random.integers(values.size))
    old = float(flat[at])
    flat[at] = pick(random, (old * 2, old / 2, -old, 0, old * (1 + 2.0**-10), old + 0.5, old * 1.5, 1e-30, -0.0))
    net.constants[name] = values
    return True


def scaled_weights(net: Net, random: Random) -> bool:
    """Weights times a factor for each input channel, tap, or output."""
    shapes = net.floats()
    found = some_node(net, random, *LAYERS, where=lambda n: n.input[1] in net.constants and n.input[0] in shapes)
    if found is None or found.input[1] in net.listed:
        return False
    values = net.constants[found.input[1]]
    axis = int(random.integers(values.ndim))
    factor = random.choice(
        np.asarray([0.5, 1, 2, -1], np.float32), [n if a == axis else 1 for a, n in enumerate(values.shape)]
    )
    found.input[1] = net.constant(values * factor)
    return True


def scaled_input(net: Net, random: Random) -> bool:
    """A factor between sign and layer: for each channel, row or feature, or one for all."""

    def make(x: str, shape: tuple[int, ...]) -> str:
        axis = int(random.integers(1, len(shape)))
        one = random.random() < 0.3
        size = [1] * len(shape) if one else [n if a == axis else 1 for a, n in enumerate(shape)]
        factor = net.constant(random.choice(np.asarray([0.5, 1, 2, -1], np.float32), size))
        return net.add("Mul", *pick(random, ((x, factor), (factor, x))))

    return _before_layer(net, random, make)


def shifted_input(net: Net, random: Random) -> bool:
    """An addition between sign and layer."""

    def make(x: str, shape: tuple[int, ...]) -> str:
        return net.add(pick(random, ("Add", "Sub")), x, net.constant(pick(random, (1.0, -1.0, 0.5, 0.0, 2.0**-12))))

    return _before_layer(net, random, make)


def gated_input(net: Net, random: Random) -> bool:
    """A factor between sign and layer that is computed: for each sample, pixel, or element."""

    def make(x: str, shape: tuple[int, ...]) -> str:
        axes = [a for a in range(1, len(shape)) if random.random() < 0.6]
        k = net.add("Abs", "x")
        if len(shape) != len(net.inputs["x"]) or shape != net.inputs["x"]:
            k, axes = net.add("Abs", x), axes or [1]
        if axes:
            k = net.add("ReduceMax", k, axes=axes, keepdims=1)
        return net.add("Mul", *pick(random, ((x, k), (k, x))))

    return _before_layer(net, random, make)


def other_step(net: Net, random: Random) -> bool:
    """A step between sign and layer that makes other values, or keeps them: pools, rounding, casts, clips."""

    def make(x: str, shape: tuple[int, ...]) -> str:
        rank = len(shape) - 2
        choices = [
            "Relu",
            "Abs",
            "Neg",
            "Round",
            "Clip",
            "Cast",
            "Sign",
            "LeakyRelu",
            "Ceil",
            "Square",
            "Tile",
            "Reverse",
        ]
        choices += ["AveragePool", "MaxPool", "Slice"] if rank > 0 else []
        match pick(random, choices):
            case "AveragePool" if rank:
                pads = [1] * (2 * rank)
                y = net.add(
                    "AveragePool", x, kernel_shape=[2] * rank, pads=pads, count_include_pad=int(random.integers(2))
                )
                return _cropped(net, y, shape)
            case "MaxPool" if rank:
                pads = [1] * rank + [0] * rank
                return net.add("MaxPool", x, kernel_shape=[2] * rank, pads=pads)
            case "Slice" if rank:
                return _cropped(net, net.add("Concat", x, x, axis=2), shape)
            case "Clip":
                bounds = sorted(pick(random, (-1.0, -0.5, 0.0)) + 1.0 * i for i in range(2))
                return net.add("Clip", x, *(net.constant(b) for b in bounds))
            case "Cast":
                kinds = (
                    TensorProto.INT32,
                    TensorProto.INT64,
                    TensorProto.BOOL,
                    TensorProto.FLOAT16,
                    TensorProto.DOUBLE,
                )
                kind = pick(random, (*kinds, TensorProto.INT8, TensorProto.UINT8))
                return net.add("Cast", net.add("Cast", x, to=kind), to=FLOAT)
            case "LeakyRelu":
                return net.add("LeakyRelu", x, alpha=0.5)
            case "Square":
                return net.add("Mul", x, x)
            case "Tile":
                return _cropped(net, net.add("Tile", x, net.constant([1, 2, *[1] * rank], np.int64)), shape, axis=1)
            case "Reverse":
                backwards = net.constant(np.arange(shape[1])[::-1], np.int64)
                return net.add("Gather", x, backwards, axis=1)
            case op:
                return net.add(op, x)

    return _before_layer(net, random, make)


def _cropped(net: Net, x: str, shape: tuple[int, ...], axis: int = 2) -> str:
    """x cut to the given shape along the axes from `axis` on."""
    axes = list(range(axis, len(shape)))
    starts = net.constant([0] * len(axes), np.int64)
    return net.add("Slice", x, starts, net.constant([shape[a] for a in axes], np.int64), net.constant(axes, np.int64))


def truncated(net: Net, random: Random) -> bool:
    """A tensor through another type."""
    found = some_tensor(net, random)
    if found is None:
        return False
    name, _ = found
    readers = net.readers(name)
    kind = pick(
        random, (TensorProto.INT32, TensorProto.INT64, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BOOL)
    )
    made = net.add("Cast", net.add("Cast", name, to=kind), to=FLOAT)
    for node, index in readers:
        node.input[index] = made
    return True


def rounded(net: Net, random: Random) -> bool:
    """Round, Floor or Ceil of a real tensor, clipped or not."""
    found = some_tensor(net, random)
    if found is None:
        return False
    name, _ = found
    readers = net.readers(name)
    made = net.add(pick(random, ("Round", "Floor", "Ceil")), name)
    if random.random() < 0.5:
        low = pick(random, (0.0, -1.0, -0.5))
        made = net.add("Clip", made, net.constant(low), net.constant(low + pick(random, (1.0, 2.0))))
    for node, index in readers:
        node.input[index] = made
    return True


def pad_value(net: Net, random: Random) -> bool:
    """A Pad with another value, mode, or axis."""
    node = some_node(net, random, "Pad")
    if node is None:
        return False
    if random.random() < 0.7:
        fill = net.constant(pick(random, (0.5, 2.0, 0.0, 1.0, -1.0, np.inf, -0.0)))
        node.input[:] = [*node.input[:2], fill]
    else:
        node.attribute.append(helper.make_attribute("mode", pick(random, ("edge", "reflect", "wrap")[:2])))
    return True


def padded_real(net: Net, random: Random) -> bool:
    """A Pad of something in front of a sign: the border goes through the sign."""
    shapes = net.floats()
    node = some_node(net, random, "Sign", "Where", *COMPARISONS, where=lambda n: len(shapes.get(n.input[0], ())) > 2)
    if node is None or node.op_type == "Where":
        return False
    rank = len(shapes[node.input[0]]) - 2
    conv = [
        c
        for c in net.nodes
        if c.op_type == "Conv" and any(attribute(c, "pads", [])) and _reaches(net, node.output[0], c.output[0])
    ]
    if not conv:
        return False
    amounts = net.constant([0, 0, *[1] * rank, 0, 0, *[1] * rank], np.int64)
    fill = net.constant(pick(random, (0.0, 1.0, -1.0)))
    node.input[0] = net.add("Pad", node.input[0], amounts, fill)
    next(a for a in conv[0].attribute if a.name == "pads").ints[:] = [0] * (2 * rank)
    return True


def joined_with_real(net: Net, random: Random) -> bool:
    """Concat of a sign with something real, or with a sign of other values."""
    node = some_node(net, random, "Concat")
    if node is None:
        return False
    shapes = net.floats()
    index = int(random.integers(len(node.input)))
    name = node.input[index]
    if name not in shapes:
        return False
    shape = shapes[name]
    alike = [n for n, s in shapes.items() if s == shape and not _reaches(net, node.output[0], n)]
    made = net.add("Mul", name, net.constant(pick(random, (0.5, 2.0, -1.0))))
    node.input[index] = pick(random, [*alike, made, net.add("Relu", name)])
    return True


def mixed_signs(net: Net, random: Random) -> bool:
    """A combination of two signs in front of a layer: sum, product, difference, maximum, choice."""

    def make(x: str, shape: tuple[int, ...]) -> str:
        sources = [n for n, s in shapes.items() if s == shape and not _reaches(net, x, n)]
        source = pick(random, sources) if sources else x
        other = pick(random, SIGNS)(net, random, source, shape)
        match pick(random, ("Add", "Sub", "Mul", "Max", "Min", "Where", "Residue")):
            case "Where":
                chosen = net.add("Greater", source, net.constant(0.25))
                return net.add("Where", chosen, x, other)
            case "Residue":
                return net.add("Add", net.add("Sub", x, other), other)
            case op:
                return net.add(op, x, other)

    shapes = net.floats()
    return _before_layer(net, random, make)


def other_source(net: Net, random: Random) -> bool:
    """One input of an elementwise node comes from another tensor of the same shape."""
    shapes = net.floats()
    ops = ("Add", "Sub", "Mul", "Where", "Sign", "Equal", "Clip", "Max", "Round", *COMPARISONS)
    node = some_node(net, random, *ops, where=lambda n: any(i in shapes for i in n.input))
    if node is None:
        return False
    index = pick(random, [i for i, name in enumerate(node.input) if name in shapes])
    alike = [n for n, s in shapes.items() if s == shapes[node.input[index]] and not _reaches(net, node.output[0], n)]
    alike = [n for n in alike if n != node.input[index]]
    if not alike:
        return False
    node.input[index] = pick(random, alike)
    return True


def computed_threshold(net: Net, random: Random) -> bool:
    """A comparison with something computed instead of a constant."""
    shapes = net.floats()
    node = some_node(net, random, *COMPARISONS, where=lambda n: any(i in shapes for i in n.input))
    if node is None:
        return False
    x = next(i for i in node.input if i in shapes)
    index = 1 - list(node.input).index(x)
    axes = list(range(1, len(shapes[x])))
    made = net.add(pick(random, ("ReduceMax", "ReduceMin")), x, axes=axes, keepdims=1) if axes else x
    node.input[index] = made
    return True


def larger_threshold(net: Net, random: Random) -> bool:
    """A threshold that has more axes, or other sizes, than the tensor: the result grows."""
    node = some_node(net, random, *COMPARISONS)
    shapes = net.floats()
    x = None if node is None else next((i for i in node.input if i in shapes), None)
    if node is None or x is None:
        return False
    index = 1 - list(node.input).index(x)
    if constant_of(net, node.input[index]) is None:
        return False
    shape = shapes[x]
    size = pick(random, ([1, *shape[1:]], [*shape[1:]], [shape[-1]], [1] * len(shape)))
    node.input[index] = net.constant(grid(random, *size, reach=1))
    return True


def other_axis(net: Net, random: Random) -> bool:
    """A parameter for each channel lies along the last axis instead."""
    shapes = net.floats()
    places = [
        (node, i)
        for node in net.nodes
        for i, name in enumerate(node.input)
        if node.op_type in ("Add", "Sub", "Mul", "Div", *COMPARISONS)
        and (c := constant_of(net, name)) is not None
        and c.size > 1
        and len(shapes.get(node.input[1 - i], ())) > 2
        and shapes[node.input[1 - i]][-1] > 1
    ]
    if not places:
        return False
    node, index = pick(random, places)
    values, shape = net.constants[node.input[index]].reshape(-1), shapes[node.input[1 - index]]
    node.input[index] = net.constant(np.resize(values, shape[-1]))
    return True


def small_values(net: Net, random: Random) -> bool:
    """Sign of a tensor so small, or with zeros so many, that sign(0) and subnormals matter."""
    node = some_node(net, random, "Sign", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    shapes = net.floats()
    if node is None or node.input[0] not in shapes:
        return False
    factor = pick(random, (0.0, 2.0**-140, 2.0**-126, -(2.0**-148), 2.0**100))
    node.input[0] = net.add("Mul", node.input[0], net.constant(factor))
    return True


def real_channel(net: Net, random: Random) -> bool:
    """A factor behind the sign that is 0 or NaN-free odd for one channel only."""
    node = some_node(net, random, "Sign", "Where", where=lambda n: len(n.output) == 1)
    shapes = net.floats()
    if node is None or len(shapes.get(node.output[0], ())) < 2:
        return False
    shape = shapes[node.output[0]]
    factor = np.ones(shape[1], np.float32)
    factor[int(random.integers(shape[1]))] = pick(random, (0.0, -1.0, 0.5, -0.0))
    output, node.output[0] = node.output[0], net.fresh()
    net.add("Mul", node.output[0], net.constant(along_channels(factor, len(shape))), result=output)
    return True


def removed_node(net: Net, random: Random) -> bool:
    """An elementwise step is missing."""
    shapes = net.floats()

    def fits(node: NodeProto) -> bool:
        return node.output[0] not in net.outputs and shapes.get(node.output[0]) == shapes.get(node.input[0], ())

    node = some_node(net, random, "Clip", "Round", "Add", "Sub", "Mul", "Sign", "Neg", "Relu", "Abs", where=fits)
    if node is None:
        return False
    net.redirect(node.output[0], node.input[0])
    net.nodes.remove(node)
    return True


def other_operator(net: Net, random: Random) -> bool:
    """An elementwise operator becomes another one with as many inputs."""
    unary = ("Sign", "Round", "Relu", "Abs", "Neg", "Floor", "Ceil", "Identity")
    binary = ("Add", "Sub", "Mul", "Max", "Min")
    node = some_node(net, random, *unary, *binary)
    if node is None:
        return False
    node.op_type = pick(random, unary if node.op_type in unary else binary)
    return True


def layer_attribute(net: Net, random: Random) -> bool:
    """Gemm's alpha and beta, dilations, pads on one side, pool windows, the axis of a Concat."""
    node = some_node(net, random, "Conv", "ConvTranspose", "Gemm", "MaxPool")
    if node is None:
        return False
    ints = {a.name: a for a in node.attribute if a.ints}
    if node.op_type == "Gemm":
        name = pick(random, ("alpha", "beta"))
        if attribute(node, name) is not None:
            return False
        node.attribute.append(helper.make_attribute(name, pick(random, (2.0, -0.5, 0.0, 1.0))))
    elif "pads" in ints:
        at = int(random.integers(len(ints["pads"].ints)))
        ints["pads"].ints[at] = int(random.integers(0, 3))
    elif "strides" in ints:
        at = int(random.integers(len(ints["strides"].ints)))
        ints["strides"].ints[at] = 2
    return True


ALL: dict[str, Mutation] = {
    mutation.__name__.replace("_", " "): mutation
    for mutation in (
        *(constant_in_a_sign, constant_that_is_no_number, constant_for_each_pixel, other_comparison, swapped_operands),
        *(residue_of_another, unbounded_residue, changed_weight, scaled_weights, scaled_input, shifted_input),
        *(gated_input, other_step, truncated, rounded, pad_value, padded_real, joined_with_real, mixed_signs),
        *(other_source, computed_threshold, larger_threshold, other_axis, small_values, real_channel),
        *(removed_node, other_operator, layer_attribute),
    )
}
