"""Write a transposed convolution as an ordinary one of its phases.

    before   y = ConvTranspose(b, W)            W [I, O/group, kh, kw], strides (sh, sw), dilations 1
    after    y = Slice(DepthToSpace(Conv(b, W')))     W' [O·sh·sw, I/group, ⌈kh/sh⌉, ⌈kw/sw⌉] of -1, 0 and +1

Along one axis, output q (counted before the pads are cut) is sum over t of b[q // s - t] · W[q % s + s·t]: the outputs
of one phase r = q % s are a convolution with every s-th tap, turned round. The s phases are stacked as filters, the
phase counting fastest; taps that a phase does not have are 0, which the lowering turns into a mask. DepthToSpace puts
the phases side by side (Reshape and Transpose where the strides differ) and Slice cuts what pads and output_padding
leave out. Everything up to here is an integer, so no order of summation matters.

Steps for each channel that follow (Mul, Add, PRelu by constants) move in front of DepthToSpace, where they fit the
epilogue: they compute the same numbers there, before the numbers change places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from binarize_onnx.passes.base import Array, Pass, Skip, along_axis, constant_value, split_operands

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
    rows: Phases
    columns: Phases


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
        return Site(node, weights, rows, columns)

    def rewrite(self, site: Site) -> None:
        """Insert the convolution, the steps that follow it, the interleaving and the cut."""
        node, context, rows, columns = site.node, self.context, site.rows, site.columns
        group = int(node.attrs.get("group", 1))
        data, output = node.inputs[0], node.outputs[0]
        filters = _stack(site.weights, group, rows, columns)
        current = context.variable(f"{output.name}.phases")
        phases, channels = rows.stride * columns.stride, int(filters.shape[0])
        self._set_shape(current, data, channels, rows, columns, 1)
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
                "group": group,
                "pads": [rows.begin, columns.begin, rows.end, columns.end],
            },
        )
        node.inputs.clear()
        current, output = self._steps_in_front(current, output, phases, channels)
        cut = self._cut(rows, columns)
        whole = output if cut is None else context.variable(f"{output.name}.uncut")
        if phases == 1:
            if cut is None:
                self._rename(current, output)
                return
            whole = current
        elif cut is not None:
            self._set_shape(whole, data, channels // phases, rows, columns, 0)
        if phases > 1:
            self._interleave(current, whole, channels // phases, rows.stride, columns.stride)
        if cut is not None:
            context.insert("Slice", [whole, *cut], [output])

    def _steps_in_front(
        self, current: gs.Variable, output: gs.Tensor, phases: int, channels: int
    ) -> tuple[gs.Variable, gs.Tensor]:
        """Move the steps for each channel behind `output` to `current`; both as they are behind the last of them."""
        context = self.context
        while (step := context.only_consumer(output)) is not None and step.op in ("Mul", "Add", "PRelu"):
            operands = None if step.domain else split_operands(step)
            values = None if operands is None else along_axis(operands[1], 1, 4)
            if operands is None or values is None or values.size not in (1, channels // phases):
                break
            if step.op == "PRelu" and operands[0] is not step.inputs[0]:
                break
            after = context.variable(f"{step.outputs[0].name}.phases", like=current)
            shaped = np.repeat(values, phases).reshape(-1, 1, 1) if values.size > 1 else values.reshape(1, 1, 1)
            constant = context.constant(f"{step.outputs[0].name}.phases.{step.op}", shaped)
            context.insert(step.op, [current, constant], [after], name=step.name)
            current, output = after, step.outputs[0]
            step.outputs.clear()
            step.inputs.clear()
        return current, output

    def _rename(self, current: gs.Variable, output: gs.Tensor) -> None:
        """Let the node that makes `current` make `output`: nothing stands between them."""
        maker = current.inputs[0]
        maker.outputs = [output]

    def _interleave(self, x: gs.Tensor, output: gs.Tensor, outputs: int, rows: int, columns: int) -> None:
        """[N, O·rows·columns, H, W] to [N, O, H·rows, W·columns], the phases counting fastest in the channels."""
        context = self.context
        if rows == columns:
            context.insert("DepthToSpace", [x], [output], attrs={"blocksize": rows, "mode": "CRD"})
            return
        # onnxruntime's DepthToSpace has one block size for both axes: spell it out.
        phases, moved = (context.variable(f"{output.name}.{part}") for part in ("split", "moved"))
        context.insert("Reshape", [x, self._shape(x, (0, outputs, rows, columns), (1, 1))], [phases])
        context.insert("Transpose", [phases], [moved], attrs={"perm": [0, 1, 4, 2, 5, 3]})
        context.insert("Reshape", [moved, self._shape(x, (0, outputs), (rows, columns))], [output])

    def _shape(self, x: gs.Tensor, front: tuple[int, ...], factors: tuple[int, int]) -> gs.Tensor:
        """The shape `[*front, H·factors[0], W·factors[1]]` for a Reshape, from x `[N, C, H, W]`."""
        context = self.context

        def ints(*values: int) -> gs.Constant:
            return context.constant("ints", np.asarray(values, np.int64))

        sizes = [context.known_dim(x, axis) for axis in (2, 3)]
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

    def _cut(self, rows: Phases, columns: Phases) -> list[gs.Tensor] | None:
        """The inputs of the Slice that leaves the layer's own outputs; None if that is all of them."""
        axes = [(2 + a, p) for a, p in enumerate((rows, columns)) if p.cut or p.surplus]
        if not axes:
            return None
        starts, ends = [p.cut for _, p in axes], [-p.surplus or INT64_MAX for _, p in axes]
        named = {"starts": starts, "ends": ends, "axes": [a for a, _ in axes]}
        return [self.context.constant(f"cut.{key}", np.asarray(values, np.int64)) for key, values in named.items()]

    def _set_shape(
        self, tensor: gs.Variable, data: gs.Tensor, channels: int, rows: Phases, columns: Phases, of_phases: int
    ) -> None:
        """Shape of the convolution's output (`of_phases`), or of what it is interleaved."""
        shape, known = self.context.shape(data), self.context.known.get(data.name, (None,) * 4)
        if shape is None:
            return
        added = [p.begin + p.end - p.taps + 1 for p in (rows, columns)]
        factor = [1, 1] if of_phases else [rows.stride, columns.stride]
        self.context.shapes[tensor.name] = (
            shape[0],
            channels,
            *((d + a) * f for d, a, f in zip(shape[2:], added, factor, strict=True)),
        )
        self.context.known[tensor.name] = (
            known[0],
            channels,
            *(None if d is None else (d + a) * f for d, a, f in zip(known[2:], added, factor, strict=True)),
        )


def _stack(weights: Array, group: int, rows: Phases, columns: Phases) -> Array:
    """`[I, O/group, kh, kw]` to the filters of all phases, `[O·sh·sw, I/group, th, tw]`."""
    inputs, outputs, kernel_h, kernel_w = weights.shape
    grouped = weights.reshape(group, inputs // group, outputs, kernel_h, kernel_w)
    phases = columns.filters(rows.filters(grouped, 3), 5)  # [sw, sh, group, I/group, O/group, th, tw]
    stacked = phases.transpose(2, 4, 1, 0, 3, 5, 6)  # [group, O/group, sh, sw, I/group, th, tw]
    return stacked.reshape(-1, inputs // group, rows.taps, columns.taps)
