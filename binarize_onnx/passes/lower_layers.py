"""Put each binary layer on bits: pack what it reads, pack its weights, and compute with XNOR.

    before   Conv(b, W)                      b binary, W in {-1, 0, +1}
    after    XnorConv(PackSign(b, 0), pack(W), mask, neutral epilogue) -> Y, ""

    before   MatMul(b, W)
    after    XnorMatMul(PackSign(b, 0), pack(W), mask, neutral epilogue) -> Y, ""

    before   MatMul(a, b)                    a and b binary, both computed at run time
    after    XnorMatMul(PackSign(a, last axis), PackSign(b, last axis but one), neutral epilogue) -> Y, ""

    before   Conv(Level(v, thresholds), W)
    after    XnorConv(PackSign(v, thresholds, encode), pack(W), ..., combine) -> Y, ""

Packing an already binary tensor compares it with the middle of its two values; the passes that follow move that
PackSign up the graph, towards the sign and beyond. A Pad of ±1 in front of a convolution becomes its `pad_value`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from binarize_onnx import bits, opset
from binarize_onnx.passes.base import Array, Context, Pass, Skip, align, constant_value, producer
from binarize_onnx.passes.ideal import dot_length, level_behind, low_value, unfit_product
from binarize_onnx.passes.signs import Level, match_level, pad_value
from binarize_onnx.reasons import Code, Reason


@dataclass(frozen=True)
class Site:
    """A binary layer and the tensor of bits that it reads; `weights` is None where it multiplies two of them."""

    node: gs.Node
    data: gs.Tensor
    weights: Array | None
    pads: list[int]
    pad_value: int
    level: Level | None


class LowerLayers(Pass[Site]):
    """Replace every recognised Conv and MatMul by its XNOR op."""

    def match(self, node: gs.Node) -> Site | Skip | None:
        """A recognised layer that is not lowered yet."""
        if node.name not in self.context.binary or node.op not in ("Conv", "MatMul"):
            return None
        data, weights = node.inputs[0], constant_value(node.inputs[1])
        if match_level(data) is None and level_behind(data) is not None:  # LevelLast could not bring it here
            self.context.binary.discard(node.name)
            words = f"the thresholds of its levels cannot follow them to `{data.name}`"
            return Skip(node, Reason(Code.THRESHOLD_SHAPE, words))
        if node.op == "MatMul":
            unfit = unfit_product(node, self.context) if weights is None else None
            if unfit is not None:
                self.context.binary.discard(node.name)
                return Skip(node, unfit)
            return Site(node, data, weights, [], 0, match_level(data))
        pads, value = list(node.attrs["pads"]), 0
        pad = producer(data)
        if pad is not None and pad.op == "Pad" and not any(pads):
            amounts, filled = constant_value(pad.inputs[1]), pad_value(pad)
            if amounts is not None and filled is not None and amounts.size == 8 and not np.any(amounts[[0, 1, 4, 5]]):
                data, pads, value = pad.inputs[0], [int(a) for a in amounts[[2, 3, 6, 7]]], filled
        return Site(node, data, weights, pads, value, match_level(data))

    def rewrite(self, site: Site) -> None:
        """Pack the weights and insert the op with an epilogue that does nothing."""
        node, context, weights = site.node, self.context, site.weights
        convolution = node.op == "Conv"
        rank = 4 if convolution else _rank(site.data, context)
        planes = plane_encoding(site.level)
        data = pack_input(site, context, rank, axis=1 if convolution else rank - 1)
        k = dot_length(node, context)
        assert k is not None
        mask, columns = None, None
        name = node.inputs[1].name.removesuffix(".signs")
        if weights is None:
            axis = _rank(node.inputs[1], context) - 2
            packed: gs.Tensor = pack_binary(node.inputs[1], context, axis + 2, axis)
            columns, words = context.known_dim(node.inputs[1], -1), bits.word_count(k)
            outputs = columns or 1
        else:
            k_axis = 1 if convolution else 0
            packed = context.constant(f"{name}.bits", bits.pack(weights > 0, k_axis))
            outputs, words = int(weights.shape[1 - k_axis]), int(packed.shape[k_axis])
            if np.any(weights == 0):
                mask = context.constant(f"{name}.mask", bits.pack(weights != 0, k_axis))
        epilogue = neutral_epilogue(context, convolution, outputs, words)
        if mask is not None:
            epilogue["mask"] = mask
        if weights is None and columns is None:
            epilogue["scale"] = scale_at_run_time(context, packed, epilogue["scale"])
        if planes is not None:
            epilogue["combine"] = context.constant(f"{name}.combine", planes[1])
        x_low = low_value(site.data)
        if weights is not None and convolution:
            attrs = {
                "channels": int(weights.shape[1]) * int(node.attrs["group"]),
                "group": int(node.attrs["group"]),
                "strides": list(node.attrs["strides"]),
                "pads": site.pads,
                "dilations": list(node.attrs["dilations"]),
                "pad_value": site.pad_value,
                "x_low": x_low,
                "dtype": 1,
            }
        else:
            attrs = {"k": k, "x_low": x_low, "dtype": 1}
        output = node.outputs[0]
        node.outputs.clear()
        context.insert(
            "XnorConv" if convolution else "XnorMatMul",
            [data, packed, *(epilogue[slot] for slot in opset.EPILOGUE)],
            [output, gs.Variable.empty()],
            name=node.name,
            domain=opset.DOMAIN,
            attrs=attrs,
        )


def _rank(tensor: gs.Tensor, context: Context) -> int:
    shape = context.shape(tensor)
    assert shape is not None, "recognition declines a matrix product whose input has no known rank"
    return len(shape)


def scale_at_run_time(context: Context, columns: gs.Tensor, one: gs.Tensor) -> gs.Tensor:
    """A scale of 1 for each of the columns of a packed matrix whose number only run time knows: `[1, 1, N]`."""
    size, last, dims, scale = (
        context.variable(f"{columns.name}.{part}", dtype=kind)
        for part, kind in (("size", np.int64), ("last", np.int64), ("scale.shape", np.int64), ("scale", np.float32))
    )
    context.insert("Shape", [columns], [size])
    at = [context.constant(f"last.{key}", np.asarray([v], np.int64)) for key, v in (("start", -1), ("end", 1 << 31))]
    context.insert("Slice", [size, *at], [last])
    context.insert("Concat", [context.constant("ones", np.ones(2, np.int64)), last], [dims], attrs={"axis": 0})
    context.insert("Expand", [one, dims], [scale])
    return scale


def neutral_epilogue(context: Context, convolution: bool, outputs: int, words: int) -> dict[str, gs.Tensor]:
    """All thirteen epilogue inputs, each the constant that changes nothing."""
    make = opset.conv_neutral if convolution else opset.matmul_neutral
    return {
        slot: context.constant(f"neutral.{slot}", make(slot, outputs=outputs, words=words), role=slot)
        for slot in opset.EPILOGUE
    }


def plane_encoding(level: Level | None) -> tuple[Array, Array] | None:
    """`(encode [B,P], combine [1,B])` for the P thresholds of a Level; None for a plain sign.

    2^b − 1 thresholds make b positional bits; any other number stays one plane a threshold, all of weight 1.
    """
    if level is None:
        return None
    count = level.threshold.shape[0]
    planes = (count + 1).bit_length() - 1
    if (1 << planes) != count + 1:
        return np.eye(count, dtype=np.float32), np.ones((1, count), np.float32)
    reached = np.arange(1, count + 1)
    encode = np.stack([reached % (1 << i) == 0 for i in range(planes)]).astype(np.float32)
    return encode, (1 << np.arange(planes)).astype(np.float32)[None]


def pack_input(site: Site, context: Context, rank: int, axis: int) -> gs.Tensor:
    """The packed form of what a layer reads: its levels, or its bits against the middle of their two values."""
    planes = plane_encoding(site.level)
    if site.level is None or planes is None:
        return pack_binary(site.data, context, rank, axis)
    thresholds = with_plane_axis(np.sort(site.level.threshold, axis=0), rank, axis)
    return insert_pack(context, site.level.x, thresholds, planes[0], None, axis, f"{site.data.name}.levels")


def pack_binary(tensor: gs.Tensor, context: Context, rank: int, axis: int) -> gs.Tensor:
    """The packed form of a binary tensor: its elements against the middle of their two values."""
    middle = with_plane_axis(np.full((1,), (low_value(tensor) + 1) / 2, np.float32), rank, axis)
    return insert_pack(context, tensor, middle, np.ones((1, 1), np.float32), None, axis, tensor.name)


def with_plane_axis(values: Array, rank: int, axis: int) -> Array:
    """Values `[P, ...]` that broadcast to a rank-`rank` tensor, in the form of PackSign: P just before `axis`."""
    aligned = values.reshape(values.shape[:1] + (1,) * (rank + 1 - values.ndim) + values.shape[1:])
    return np.moveaxis(aligned, 0, axis)


def insert_pack(
    context: Context, source: gs.Tensor, threshold: Array, encode: Array, flip: Array | None, axis: int, name: str
) -> gs.Tensor:
    """A PackSign of `source`; its output is named after the tensor whose bits it holds."""
    if flip is None:
        flip = np.zeros((1,) * threshold.ndim, np.bool_)
    output = context.variable(f"{name}.bits", dtype=np.uint32)
    context.insert(
        "PackSign",
        [
            source,
            context.constant(f"{name}.threshold", align(threshold, threshold.ndim).astype(np.float32)),
            context.constant(f"{name}.encode", encode),
            context.constant(f"{name}.flip", np.ascontiguousarray(flip)),
        ],
        [output],
        domain=opset.DOMAIN,
        attrs={"axis": axis},
    )
    return output
