"""ONNX operators in torch, as far as networks that are trained consist of them.

Every function takes a node's inputs (None where one is left out) and its attributes, with ONNX's defaults filled in by
the function itself, and returns its one output. BatchNormalization is not among them: it has a state (see graph.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from binarize_onnx.errors import ModelError

Attributes = Mapping[str, Any]
Operator = Callable[[Sequence[Tensor | None], Attributes], Tensor]


class Untrainable(ModelError):
    """A node that torch cannot compute here."""


def _first(inputs: Sequence[Tensor | None]) -> Tensor:
    x = inputs[0]
    assert x is not None
    return x


def _integers(inputs: Sequence[Tensor | None], at: int) -> list[int] | None:
    """An input of integers, None if it is left out."""
    found = inputs[at] if len(inputs) > at else None
    return None if found is None else [int(v) for v in found.reshape(-1).tolist()]


def _padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """The tensor with borders: ONNX's pads, all beginnings and then all ends, of the last axes."""
    axes = len(pads) // 2
    if not any(pads):
        return x
    both = [pads[axis + end * axes] for axis in reversed(range(axes)) for end in (0, 1)]
    return functional.pad(x, both, value=value)


def _explicit(x: Tensor, kernel: Sequence[int], attributes: Attributes) -> tuple[list[int], list[int], list[int]]:
    """`(pads, strides, dilations)` of a convolution or pool, `auto_pad` resolved."""
    axes = len(kernel)
    strides = list(attributes.get("strides", [1] * axes))
    dilations = list(attributes.get("dilations", [1] * axes))
    pads = list(attributes.get("pads", [0] * 2 * axes))
    auto = attributes.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        begins, ends = [], []
        for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
            total = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
            smaller, larger = total // 2, total - total // 2
            begins.append(smaller if auto == "SAME_UPPER" else larger)
            ends.append(larger if auto == "SAME_UPPER" else smaller)
        pads = begins + ends
    return pads, strides, dilations


CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def convolution(inputs: Sequence[Tensor | None], attributes: Attributes) -> Tensor:
    """Conv: x [N, C, ...], weights [O, C / group, ...], bias [O]."""
    x, weights = _first(inputs), inputs[1]
    assert weights is not None
    pads, strides, dilations = _explicit(x, weights.shape[2:], attributes)
    begins, ends = pads[: len(pads) // 2], pads[len(pads) // 2 :]
    if begins != ends:
        x, begins = _padded(x, pads), [0] * len(begins)
    bias = inputs[2] if len(inputs) > 2 else None
    run = CONVOLUTIONS[weights.dim() - 2]
    return run(x, weights, bias, strides, begins, dilations, attributes.get("group", 1))


def _gemm(inputs: Sequence[Tensor | None], attributes: Attributes) -> Tensor:
    a, b = _first(inputs), inputs[1]
    assert b is not None
    a = a.transpose(0, 1) if attributes.get("transA", 0) else a
    b = b.transpose(0, 1) if attributes.get("transB", 0) else b
    y = a @ b
    alpha = attributes.get("alpha", 1.0)
    y = y if alpha == 1 else y * alpha
    c = inputs[2] if len(inputs) > 2 else None
    return y if c is None else y + c * attributes.get("beta", 1.0)


def _pooled(inputs: Sequence[Tensor | None], attributes: Attributes, *, largest: bool) -> Tensor:
    x = _first(inputs)
    kernel = list(attributes["kernel_shape"])
    pads, strides, dilations = _explicit(x, kernel, attributes)
    axes = len(kernel)
    ceil = bool(attributes.get("ceil_mode", 0))
    begins, ends = pads[:axes], pads[axes:]
    if largest:
        if begins != ends or any(2 * pad > k for pad, k in zip(begins, kernel, strict=True)):
            x, begins = _padded(x, pads, value=float("-inf")), [0] * axes
        pool = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[axes]
        return pool(x, kernel, strides, begins, dilations, ceil)
    if begins != ends or any(d != 1 for d in dilations):
        raise Untrainable("AveragePool with uneven pads or dilations is not trained.")
    average = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[axes]
    return average(x, kernel, strides, begins, ceil, bool(attributes.get("count_include_pad", 0)))


def _reshape(inputs: Sequence[Tensor | None], attributes: Attributes) -> Tensor:
    x, target = _first(inputs), _integers(inputs, 1)
    assert target is not None
    if not attributes.get("allowzero", 0):
        target = [x.shape[i] if d == 0 else d for i, d in enumerate(target)]
    if target and target[0] == 1 and -1 not in target[1:] and prod(target) != x.numel():
        target = [-1, *target[1:]]  # the model was written for single samples, but is trained on batches
    return x.reshape(target)


def _axes(inputs: Sequence[Tensor | None], attributes: Attributes) -> list[int] | None:
    """Axes are an attribute in older operator sets and an input in newer ones."""
    found = attributes.get("axes")
    return list(found) if found is not None else _integers(inputs, 1)


def _reduce(inputs: Sequence[Tensor | None], attributes: Attributes, run: Callable[..., Tensor]) -> Tensor:
    x, axes = _first(inputs), _axes(inputs, attributes)
    keep = bool(attributes.get("keepdims", 1))
    if not axes:
        if attributes.get("noop_with_empty_axes", 0):
            return x
        axes = list(range(x.dim()))
    return run(x, axes, keep)


def _slice(inputs: Sequence[Tensor | None], attributes: Attributes) -> Tensor:
    x = _first(inputs)
    starts = attributes.get("starts") or _integers(inputs, 1)
    ends = attributes.get("ends") or _integers(inputs, 2)
    axes = attributes.get("axes") or _integers(inputs, 3)
    assert starts is not None
    assert ends is not None
    steps = _integers(inputs, 4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes or range(len(starts)), steps, strict=True):
        if step < 0:
            raise Untrainable("Slice with a negative step is not trained.")
        x = x[(slice(None),) * (axis % x.dim()) + (slice(start, end, step),)]
    return x


def _pad(inputs: Sequence[Tensor | None], attributes: Attributes) -> Tensor:
    x = _first(inputs)
    pads = attributes.get("pads") or _integers(inputs, 1)
    given = inputs[2] if len(inputs) > 2 else None
    value = float(attributes.get("value", 0.0)) if given is None else float(given.reshape(()).item())
    axes = _integers(inputs, 3)
    assert pads is not None
    if axes is not None:
        spread = [0] * 2 * x.dim()
        for i, axis in enumerate(axes):
            spread[axis % x.dim()], spread[axis % x.dim() + x.dim()] = pads[i], pads[i + len(axes)]
        pads = spread
    mode = attributes.get("mode", "constant")
    if mode != "constant":
        raise Untrainable(f"Pad in mode {mode} is not trained.")
    return _padded(x, pads, value)


def _prelu(inputs: Sequence[Tensor | None], attributes: Attributes) -> Tensor:
    del attributes
    x, slope = _first(inputs), inputs[1]
    return torch.where(x < 0, x * slope, x)


def _clip(inputs: Sequence[Tensor | None], attributes: Attributes) -> Tensor:
    x = _first(inputs)
    limits = [inputs[i] if len(inputs) > i else None for i in (1, 2)]
    low = attributes.get("min") if limits[0] is None else limits[0].item()
    high = attributes.get("max") if limits[1] is None else limits[1].item()
    return x if low is None and high is None else torch.clamp(x, low, high)


def _squeeze(inputs: Sequence[Tensor | None], attributes: Attributes) -> Tensor:
    x, axes = _first(inputs), _axes(inputs, attributes)
    for axis in sorted((a % x.dim() for a in axes), reverse=True) if axes else ():
        x = x.squeeze(axis)
    return x if axes else x.squeeze()


def _unsqueeze(inputs: Sequence[Tensor | None], attributes: Attributes) -> Tensor:
    x, axes = _first(inputs), _axes(inputs, attributes)
    rank = x.dim() + len(axes or ())
    for axis in sorted(a % rank for a in axes or ()):
        x = x.unsqueeze(axis)
    return x


def _softmax(inputs: Sequence[Tensor | None], attributes: Attributes, run: Callable[..., Tensor]) -> Tensor:
    return run(_first(inputs), int(attributes.get("axis", -1)))


def _depth_to_space(inputs: Sequence[Tensor | None], attributes: Attributes) -> Tensor:
    x, block = _first(inputs), int(attributes["blocksize"])
    if attributes.get("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // block**2, h * block, w * block)


def _elementwise(run: Callable[..., Tensor]) -> Operator:
    return lambda inputs, _: run(*inputs)


def _flatten(inputs: Sequence[Tensor | None], attributes: Attributes) -> Tensor:
    x, axis = _first(inputs), int(attributes.get("axis", 1))
    return x.reshape(prod(x.shape[: axis % x.dim() if axis < 0 else axis]), -1)


def _global(inputs: Sequence[Tensor | None], run: Callable[..., Tensor]) -> Tensor:
    x = _first(inputs)
    return run(x, list(range(2, x.dim())), True)


def _gather(inputs: Sequence[Tensor | None], attributes: Attributes) -> Tensor:
    x, index = _first(inputs), inputs[1]
    assert index is not None
    axis = int(attributes.get("axis", 0)) % x.dim()
    taken = x.index_select(axis, index.reshape(-1).remainder(x.shape[axis]))
    return taken.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


OPERATORS: Mapping[str, Operator] = {
    "Abs": _elementwise(torch.abs),
    "Add": _elementwise(torch.add),
    "AveragePool": lambda inputs, attributes: _pooled(inputs, attributes, largest=False),
    "Clip": _clip,
    "Concat": lambda inputs, attributes: torch.cat([t for t in inputs if t is not None], int(attributes["axis"])),
    "Conv": convolution,
    "DepthToSpace": _depth_to_space,
    "Div": _elementwise(torch.div),
    "Dropout": lambda inputs, _: _first(inputs),  # as it is run: what regularises training is the recipe's affair
    "Elu": lambda inputs, attributes: functional.elu(_first(inputs), float(attributes.get("alpha", 1.0))),
    "Erf": _elementwise(torch.erf),
    "Exp": _elementwise(torch.exp),
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda inputs, _: _global(inputs, torch.mean),
    "GlobalMaxPool": lambda inputs, _: _global(inputs, torch.amax),
    "HardSigmoid": lambda inputs, a: torch.clamp(_first(inputs) * a.get("alpha", 0.2) + a.get("beta", 0.5), 0, 1),
    "HardSwish": lambda inputs, _: functional.hardswish(_first(inputs)),
    "Identity": lambda inputs, _: _first(inputs),
    "LeakyRelu": lambda inputs, attributes: functional.leaky_relu(_first(inputs), float(attributes.get("alpha", 0.01))),
    "Log": _elementwise(torch.log),
    "LogSoftmax": lambda inputs, attributes: _softmax(inputs, attributes, torch.log_softmax),
    "MatMul": _elementwise(torch.matmul),
    "Max": lambda inputs, _: torch.stack(torch.broadcast_tensors(*inputs)).amax(0),
    "MaxPool": lambda inputs, attributes: _pooled(inputs, attributes, largest=True),
    "Min": lambda inputs, _: torch.stack(torch.broadcast_tensors(*inputs)).amin(0),
    "Mul": _elementwise(torch.mul),
    "Neg": _elementwise(torch.neg),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _elementwise(torch.pow),
    "Reciprocal": _elementwise(torch.reciprocal),
    "ReduceMax": lambda inputs, attributes: _reduce(inputs, attributes, torch.amax),
    "ReduceMean": lambda inputs, attributes: _reduce(inputs, attributes, torch.mean),
    "ReduceSum": lambda inputs, attributes: _reduce(inputs, attributes, torch.sum),
    "Relu": _elementwise(torch.relu),
    "Reshape": _reshape,
    "Shape": lambda inputs, _: torch.tensor(_first(inputs).shape, dtype=torch.int64),
    "Sigmoid": _elementwise(torch.sigmoid),
    "Slice": _slice,
    "Softmax": lambda inputs, attributes: _softmax(inputs, attributes, torch.softmax),
    "Softplus": lambda inputs, _: functional.softplus(_first(inputs)),
    "Sqrt": _elementwise(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _elementwise(torch.sub),
    "Tanh": _elementwise(torch.tanh),
    "Transpose": lambda inputs, a: _first(inputs).permute(*a.get("perm", range(_first(inputs).dim())[::-1])),
    "Unsqueeze": _unsqueeze,
}
