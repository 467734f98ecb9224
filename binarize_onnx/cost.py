"""What a layer costs: multiply-accumulates, and operations as the binary-network literature counts them.

One multiply-accumulate (MAC) is one operation; 64 binary MACs count as one (`OPs = BOPs/64 + FLOPs`, the convention of
Bi-Real Net and its successors). The float edges (first convolution, last dense layer, shortcuts) count in full.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import onnx_graphsurgeon as gs

BINARY_MACS_PER_OPERATION = 64

KnownShapes = Mapping[str, tuple[int | None, ...]]


def macs(node: gs.Node, known: KnownShapes) -> int | None:
    """MACs of a convolution or matrix product for one sample; None if a size is only known at run time.

    An open first dimension is the batch and counts as 1.
    """
    if node.op == "Einsum":
        return None
    counted = known.get(node.inputs[0].name if node.op == "ConvTranspose" else node.outputs[0].name)
    elements = _per_sample(counted)
    factor = _terms(node, known)
    return None if elements is None or factor is None else elements * factor


def operations(binary_macs: int, float_macs: int) -> float:
    """`BOPs/64 + FLOPs`."""
    return binary_macs / BINARY_MACS_PER_OPERATION + float_macs


def _terms(node: gs.Node, known: KnownShapes) -> int | None:
    """Terms summed for one output element (for ConvTranspose: products made from one input element)."""
    weights = node.inputs[3 if node.op.startswith("QLinear") else 1]
    shape = tuple(weights.shape) if isinstance(weights, gs.Constant) else known.get(weights.name)
    if node.op in ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv"):
        return None if shape is None or None in shape[1:] else prod(d for d in shape[1:] if d is not None)
    if not shape:
        return None
    length = shape[-1] if node.attrs.get("transB", 0) else shape[-2] if len(shape) > 1 else shape[0]
    return length


def _per_sample(shape: tuple[int | None, ...] | None) -> int | None:
    if shape is None:
        return None
    dims = (1 if shape and shape[0] is None else shape[0], *shape[1:]) if shape else ()
    return None if None in dims else prod(d for d in dims if d is not None)
