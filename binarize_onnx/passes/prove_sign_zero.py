"""Find out where a three-valued Sign can never see 0, so that two values lose nothing.

    BinarySign(f(acc))      acc an integer dot product, f a chain of Mul and Add by constants

f is monotone in float32, so the integers that it maps to exactly 0 are a range; bisection finds its ends. If none of
them is a value that the accumulator can take (its magnitude is bounded, its parity fixed unless zeros are
padded, weights masked or inputs more than two-valued), the source's Sign never saw a zero there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs

from binarize_onnx.passes.base import Array, Context, along_axis, constant_value, producer, split_operands
from binarize_onnx.passes.ideal import accumulator_bound, low_value
from binarize_onnx.passes.signs import match_sign


def zero_cannot_occur(sign: gs.Tensor, context: Context) -> bool:
    """Whether no sample can bring the input of this BinarySign exactly to its threshold of 0."""
    match = match_sign(sign)
    if match is None or np.any(match.threshold != 0):
        return False
    steps: list[tuple[str, Array]] = []
    tensor = match.x
    while True:
        if isinstance(tensor, gs.Constant):
            return bool(np.all(np.asarray(tensor.values) != 0))
        node = producer(tensor)
        if node is None:
            return False
        bound = accumulator_bound(tensor, context)
        if bound is not None:
            return _chain_avoids_zero(node, bound, steps)
        if node.op in ("MaxPool", "Flatten"):  # they pick values, and make none (MaxPool pads with the lowest)
            tensor = node.inputs[0]
            continue
        operands = split_operands(node) if node.op in ("Mul", "Add") else None
        if operands is None:
            return False
        steps.insert(0, (node.op, operands[1]))
        tensor = operands[0]


def _chain_avoids_zero(layer: gs.Node, bound: int, steps: list[tuple[str, Array]]) -> bool:
    weights = constant_value(layer.inputs[1])
    if weights is None or layer.op == "ConvTranspose":  # how many products an output has depends on its position
        return False
    convolution = layer.op == "Conv"
    outputs = weights.shape[0] if convolution else weights.shape[1]
    vectors = []
    for op, values in steps:
        vector = along_axis(values, 1 if convolution else 0, weights.ndim if convolution else 1)
        if vector is None and not convolution:
            vector = along_axis(values, values.ndim - 1, values.ndim)
        if vector is None or vector.dtype != np.float32 or vector.size not in (1, outputs):
            return False
        vectors.append((op, np.broadcast_to(vector, (outputs,))))

    def chain(acc: Array) -> Array:
        value = acc.astype(np.float32)
        for op, vector in vectors:
            value = value * vector if op == "Mul" else value + vector
        return value

    first, last = _zero_range(chain, bound, outputs)
    only_parity = bound % 2 if _parity_is_fixed(layer, weights) else None
    if only_parity is None:
        return bool(np.all(first > last))
    first = first + ((first % 2) != only_parity)
    return bool(np.all(first > last))


def _zero_range(chain: Callable[[Array], Array], bound: int, outputs: int) -> tuple[Array, Array]:
    """First and last integer in [-bound, bound] with chain == 0, for each channel; first > last if there is none."""
    ends = chain(np.full(outputs, bound)) >= chain(np.full(outputs, -bound))
    sign = np.where(ends, 1, -1)  # run a falling chain backwards: then every channel rises

    def least(reached: Callable[[Array], Array]) -> Array:
        low, high = np.full(outputs, -bound - 1), np.full(outputs, bound + 1)
        while np.any(high - low > 1):
            middle = (low + high) // 2
            hit = reached(chain(sign * middle))
            low, high = np.where(hit, low, middle), np.where(hit, middle, high)
        return high

    first, beyond = least(lambda v: v >= 0), least(lambda v: v > 0)
    return first, beyond - 1


def _parity_is_fixed(layer: gs.Node, weights: Array) -> bool:
    """Whether every dot product of the layer has as many ±1 terms as every other."""
    return not np.any(weights == 0) and not any(layer.attrs.get("pads", ())) and low_value(layer.inputs[0]) == -1
