"""Write a transposed convolution as an ordinary one of its phases.

    before   y = ConvTranspose(b, W)            W [I, O/group, kh, kw], strides (sh, sw), dilations 1
    after    y = Slice(DepthToSpace(Conv(b, W')))     W' [O·sh·sw, I/group, ⌈kh/sh⌉, ⌈kw/sw⌉] of -1, 0 and +1

Along one axis, output q (counted before the pads are cut) is sum over t of b[q // s - t] · W[q % s + s·t]: the outputs
of one phase r = q % s are a convolution with every s-th tap, turned round. The s phases are stacked as filters; taps
that a phase does not have are 0, which the lowering turns into a mask. DepthToSpace puts the phases side by side
(Reshape and Transpose where the strides differ) and Slice cuts what pads and output_padding leave out. Everything up
to here is an integer, so no order of summation matters. The filters of one phase lie together, so that their bits fill
words that can be put side by side too; in a convolution with groups those of one output do.

Steps for each channel that follow (Mul, Add, PRelu by constants) move in front of DepthToSpace, where they fit the
epilogue: they compute the same numbers there, before the numbers change places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from binarize_onnx.passes.base import Array, Context, Pass, Skip, along_axis, constant_value, split_operands

INT64_MAX = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Phases:
    """One axis of a transposed convolution as the convolution of its phases.

    Attributes:
        stride: how many phases there are.
        taps: the extent that all of them share.
        begin: zeros in front of the input.
        end: zeros behind it.
        cut: interleaved outputs before the first that the layer gives.
        surplus: interleaved outputs behind the last.
    """

    stride: int
    taps: int
    begin: int
    end: int
    cut: int
    surplus: int

    @classmethod
    def of(cls, kernel: int, stride: int, pads: tuple[int, int], output_padding: int) -> Phases:
        """The phases of an axis with these attributes; the size of the input plays no part."""
        taps = -(-kernel // stride)
        # The outputs that the layer gives are those from pads[0] to s·(H - 1) + last, both included.
        last = kernel + output_padding - pads[1] - 1
        begin = max(taps - 1 - pads[0] // stride, 0)
        end = max(last // stride, 0)
        first = stride * (taps - 1 - begin)  # the first that the convolution makes
        return cls(stride, taps, begin, end, pads[0] - first, stride * (end + 1) - last - 1)

    def filters(self, weights: Array, axis: int) -> Array:
        """`[..., k, ...]` to `[stride, ..., taps, ...]`: the taps of each phase, turned round, 0 where it has none."""
        missing = self.stride * self.taps - weights.shape[axis]
        full = np.pad(weights, [(0, missing if a == axis else 0) for a in range(weights.ndim)])
        split = full.reshape(*full.shape[:axis], self.taps, self.stride, *full.shape[axis + 1 :])
        return np.flip(np.moveaxis(split, axis + 1, 0), axis + 1)


@dataclass(frozen=True)
class Site:
    """A recognised transposed convolution."""

    node: gs.Node
    weights: Array
    group: int
    rows: Phases
    columns: Phases

    @property
    def outputs(self) -> int:
        """Output channels."""
        return int(self.weights.shape[1]) * self.group

    @property
    def phases(self) -> int:
        """Phases of both axes."""
        return self.rows.stride * self.columns.stride

    @property
    def phases_first(self) -> bool:
        """Whether the filters count phases before channels; the groups of a convolution leave no choice."""
        return self.group == 1


class TransposedConv(Pass[Site]):
    """Replace every recognised ConvTranspose by a Conv of its phases."""

    def match(self, node: gs.Node) -> Site | Skip | None:
        """A two-dimensional transposed layer; its attributes are settled and its dilations are 1."""
        if node.name not in self.context.binary or node.op != "ConvTranspose":
            return None
        weights = constant_value(node.inputs[1])
        assert weights is not None
        attrs = node.attrs
        strides, pads = attrs.get("strides", [1, 1]), attrs.get("pads", [0, 0, 0, 0])
        extra = attrs.get("output_padding", [0, 0])
        rows, columns = (
            Phases.of(weights.shape[2 + a], int(strides[a]), (int(pads[a]), int(pads[a + 2])), int(extra[a]))
            for a in (0, 1)
        )
        return Site(node, weights, int(attrs.get("group", 1)), rows, columns)

    def rewrite(self, site: Site) -> None:
        """Insert the convolution, the steps that follow it, the interleaving and the cut."""
        node, context, rows, columns = site.node, self.context, site.rows, site.columns
        data, output = node.inputs[0], node.outputs[0]
        filters = _stack(site)
        current = context.variable(f"{output.name}.phases")
        self._set_shape(current, data, site, interleaved=False)
        node.outputs.clear()
        context.insert(
            "Conv",
            [data, context.constant(f"{node.inputs[1].name}.phases", np.ascontiguousarray(filters))],
            [current],
            name=node.name,
            attrs={
                "kernel_shape": list(filters.shape[2:]),
                "strides": [1, 1],
                "dilations": [1, 1],
                "group": site.group,
                "pads": [rows.begin, columns.begin, rows.end, columns.end],
            },
        )
        node.inputs.clear()
        current, output = self._steps_in_front(current, output, site)
        cut = self._cut(rows, columns)
        whole = output if cut is None else context.variable(f"{output.name}.uncut")
        if site.phases == 1:
            if cut is None:
                self._rename(current, output)
                return
            whole = current
        elif cut is not None:
            self._set_shape(whole, data, site, interleaved=True)
        if site.phases > 1:
            self._interleave(current, whole, site)
        if cut is not None:
            context.insert("Slice", [whole, *cut], [output])

    def _steps_in_front(self, current: gs.Variable, output: gs.Tensor, site: Site) -> tuple[gs.Variable, gs.Tensor]:
        """Move the steps for each channel behind `output` to `current`; both as they are behind the last of them."""
        context = self.context
        while (step := context.only_consumer(output)) is not None and step.op in ("Mul", "Add", "PRelu"):
            operands = None if step.domain else split_operands(step)
            values = None if operands is None else along_axis(operands[1], 1, 4)
            if operands is None or values is None or values.size not in (1, site.outputs):
                break
            if step.op == "PRelu" and operands[0] is not step.inputs[0]:
                break
            after = context.variable(f"{step.outputs[0].name}.phases", like=current)
            if values.size > 1:
                values = np.tile(values, site.phases) if site.phases_first else np.repeat(values, site.phases)
            constant = context.constant(f"{step.outputs[0].name}.phases.{step.op}", values.reshape(-1, 1, 1))
            context.insert(step.op, [current, constant], [after], name=step.name)
            current, output = after, step.outputs[0]
            step.outputs.clear()
            step.inputs.clear()
        return current, output

    def _rename(self, current: gs.Variable, output: gs.Tensor) -> None:
        """Let the node that makes `current` make `output`: nothing stands between them."""
        maker = current.inputs[0]
        maker.outputs = [output]

    def _interleave(self, x: gs.Tensor, output: gs.Tensor, site: Site) -> None:
        """[N, O·rows·columns, H, W] to [N, O, H·rows, W·columns]."""
        rows, columns, outputs = site.rows.stride, site.columns.stride, site.outputs
        if rows == columns:
            mode = "DCR" if site.phases_first else "CRD"
            self.context.insert("DepthToSpace", [x], [output], attrs={"blocksize": rows, "mode": mode})
        else:  # onnxruntime's DepthToSpace has one block size for both axes
            split = (rows, columns, outputs) if site.phases_first else (outputs, rows, columns)
            interleave(self.context, x, output, x, split, (rows, columns))

    def _cut(self, rows: Phases, columns: Phases) -> list[gs.Tensor] | None:
        """The inputs of the Slice that leaves the layer's own outputs; None if that is all of them."""
        axes = [(2 + a, p) for a, p in enumerate((rows, columns)) if p.cut or p.surplus]
        if not axes:
            return None
        starts, ends = [p.cut for _, p in axes], [-p.surplus or INT64_MAX for _, p in axes]
        named = {"starts": starts, "ends": ends, "axes": [a for a, _ in axes]}
        return [self.context.constant(f"cut.{key}", np.asarray(values, np.int64)) for key, values in named.items()]

    def _set_shape(self, tensor: gs.Variable, data: gs.Tensor, site: Site, *, interleaved: bool) -> None:
        """Shape of what the convolution of `data` gives, or of that with its phases side by side."""
        shape, known = self.context.shape(data), self.context.known.get(data.name, (None,) * 4)
        if shape is None:
            return
        axes = (site.rows, site.columns)
        factors = [p.stride if interleaved else 1 for p in axes]
        channels = site.outputs * (1 if interleaved else site.phases)

        def grown(sizes: Sequence[int | None]) -> list[int | None]:
            made = [None if d is None else d + p.begin + p.end - p.taps + 1 for d, p in zip(sizes, axes, strict=True)]
            return [None if d is None else d * f for d, f in zip(made, factors, strict=True)]

        self.context.shapes[tensor.name] = (shape[0], channels, *(d for d in grown(shape[2:]) if d is not None))
        self.context.known[tensor.name] = (known[0], channels, *grown(known[2:]))


def interleave(
    context: Context,
    x: gs.Tensor,
    output: gs.Tensor,
    sized: gs.Tensor,
    split: tuple[int, int, int],
    block: tuple[int, int],
) -> None:
    """DepthToSpace by Reshape, Transpose, Reshape, for blocks of any form and for words.

    Args:
        context: the graph.
        x: `[N, channels, H, W]`.
        output: `[N, channels / (rows·columns), H·rows, W·columns]`.
        sized: a tensor of the same H and W whose shape is known as far as the model fixes it.
        split: what the channels of x are made of: (rows, columns, outputs) or (outputs, rows, columns).
        block: (rows, columns).
    """
    phases_first = split[:2] == block
    outputs = split[2] if phases_first else split[0]
    perm = [0, 3, 4, 1, 5, 2] if phases_first else [0, 1, 4, 2, 5, 3]
    apart, moved = (context.variable(f"{output.name}.{part}", dtype=x.dtype) for part in ("apart", "moved"))
    shape, known = context.shape(sized), context.known.get(sized.name)
    if shape is not None and known is not None:
        sizes, fixed = (shape[0], *split, *shape[2:]), (known[0], *split, *known[2:])
        context.shapes[apart.name], context.known[apart.name] = sizes, fixed
        context.shapes[moved.name] = tuple(sizes[p] for p in perm)
        context.known[moved.name] = tuple(fixed[p] for p in perm)
    context.insert("Reshape", [x, _image_shape(context, x, sized, (0, *split), (1, 1))], [apart])
    context.insert("Transpose", [apart], [moved], attrs={"perm": perm})
    context.insert("Reshape", [moved, _image_shape(context, x, sized, (0, outputs), block)], [output])


def _image_shape(
    context: Context, x: gs.Tensor, sized: gs.Tensor, front: tuple[int, ...], factors: tuple[int, int]
) -> gs.Tensor:
    """The shape `[*front, H·factors[0], W·factors[1]]` for a Reshape, from x `[N, C, H, W]`."""

    def ints(*values: int) -> gs.Constant:
        return context.constant("ints", np.asarray(values, np.int64))

    sizes = [context.known_dim(sized, axis) for axis in (2, 3)]
    if sizes.count(None) < 2:  # Reshape finds out one size by itself
        return ints(*front, *(-1 if d is None else d * f for d, f in zip(sizes, factors, strict=True)))
    shape, size, grown, target = (
        context.variable(f"{x.name}.{part}", dtype=np.int64) for part in ("shape", "size", "grown", "target")
    )
    context.insert("Shape", [x], [shape])
    context.insert("Slice", [shape, ints(2), ints(4)], [size])
    context.insert("Mul", [size, ints(*factors)], [grown])
    context.insert("Concat", [ints(*front), grown], [target], attrs={"axis": 0})
    return target


def _stack(site: Site) -> Array:
    """The filters of all phases, `[O·sh·sw, I/group, th, tw]`, from weights `[I, O/group, kh, kw]`."""
    inputs, outputs, kernel_h, kernel_w = site.weights.shape
    grouped = site.weights.reshape(site.group, inputs // site.group, outputs, kernel_h, kernel_w)
    phases = site.columns.filters(site.rows.filters(grouped, 3), 5)  # [sw, sh, group, I/group, O/group, th, tw]
    order = (1, 0, 2, 4, 3, 5, 6) if site.phases_first else (2, 4, 1, 0, 3, 5, 6)
    return phases.transpose(order).reshape(-1, inputs // site.group, site.rows.taps, site.columns.taps)
