"""Compute steps in the layout that they are turned from, and turned back to.

    before   y = Transpose(Clip(Relu(Transpose(x, p))), p⁻¹)
    after    y = Clip(Relu(x))                                 also Add, Mul, ... with constants, which are turned

Where exporters keep channels last, each layer stands between two such Transposes, and what is between two layers
stands between its own pair. Behind a binary layer the steps come next to it here, so that an epilogue can take them;
behind float layers they stay as they are, and bits climb over Transposes of their own (MoveWords).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from binarize_onnx.passes.base import Pass, Skip, align, constant_value, producer

STEPS = frozenset(
    {"Abs", "Add", "Cast", "Clip", "Div", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mul", "Neg", "PRelu", "Relu"}
    | {"Sigmoid", "Softplus", "Sqrt", "Sub", "Tanh"}
)


BEHIND = STEPS | {"BatchNormalization"}  # what may be between a layer and its Transpose


@dataclass(frozen=True)
class Turned:
    """Steps `chain`, the last one first, on what `first` turns and `second` turns back."""

    first: gs.Node
    chain: list[tuple[gs.Node, int]]  # a step, and which of its inputs is not constant
    second: gs.Node
    perm: list[int]


class BetweenTransposes(Pass[Turned]):
    """Remove a Transpose and its inverse from around elementwise steps behind the layers in `context.binary`."""

    def match(self, node: gs.Node) -> Turned | Skip | None:
        """A Transpose behind steps that nothing else reads, behind the inverse Transpose."""
        if node.op != "Transpose" or node.domain or self.context.escapes(node.outputs[0]):
            return None
        chain: list[tuple[gs.Node, int]] = []
        x = node.inputs[0]
        while (step := producer(x)) is not None and self.context.only_consumer(x) is not None:
            if step.op == "Transpose" and not step.domain:
                shape = self.context.shape(step.inputs[0])
                turned = None if shape is None else _perm(step, len(shape))
                back = None if turned is None else _perm(node, len(turned))
                if turned is None or back is None or [turned[i] for i in back] != list(range(len(back))):
                    return None
                return Turned(step, chain, node, back) if chain and self._is_of_bits(step.inputs[0]) else None
            variable = self._variable(step)
            if variable is None:
                return None
            chain.append((step, variable))
            x = step.inputs[variable]
        return None

    def rewrite(self, site: Turned) -> None:
        """The same steps on x itself."""
        context, output = self.context, site.second.outputs[0]
        x = site.first.inputs[0]
        site.second.outputs.clear()
        for step, variable in reversed(site.chain):
            last = step is site.chain[0][0]
            own = step.outputs[0]
            inputs = [x if i == variable else self._constant(t, site.perm) for i, t in enumerate(step.inputs)]
            step.outputs.clear()
            result = output
            if not last:
                result = context.variable(f"{own.name}.unturned", like=site.first.inputs[0], dtype=own.dtype)
            context.insert(step.op, inputs, [result], name=step.name, attrs=step.attrs)
            x = result

    def _is_of_bits(self, tensor: gs.Tensor) -> bool:
        """Whether a binary layer and steps make the tensor."""
        waiting, seen = [tensor], {tensor.name}
        while waiting:
            node = producer(waiting.pop())
            if node is None:
                continue
            if node.name in self.context.binary:
                return True
            if node.op in BEHIND and not node.domain:
                waiting += [t for t in node.inputs if t.name not in seen]
                seen |= {t.name for t in node.inputs}
        return False

    def _variable(self, step: gs.Node) -> int | None:
        """Which input of an elementwise step is not constant; None if it is no such step."""
        if step.domain or step.op not in STEPS or len(step.outputs) != 1:
            return None
        computed = [i for i, t in enumerate(step.inputs) if not t.is_empty() and constant_value(t) is None]
        if len(computed) != 1 or self.context.shape(step.inputs[computed[0]]) is None:
            return None
        rank = len(self.context.shape(step.inputs[computed[0]]) or ())
        kept = all(
            t.is_empty() or i in computed or (v := constant_value(t)) is None or v.ndim <= rank
            for i, t in enumerate(step.inputs)
        )
        same = self.context.shape(step.outputs[0]) == self.context.shape(step.inputs[computed[0]])
        return computed[0] if kept and same else None

    def _constant(self, tensor: gs.Tensor, perm: list[int]) -> gs.Tensor:
        values = None if tensor.is_empty() else constant_value(tensor)
        if values is None or values.size == 1:
            return tensor
        return self.context.constant(f"{tensor.name}.unturned", np.transpose(align(values, len(perm)), perm))


def _perm(node: gs.Node, rank: int) -> list[int]:
    return [int(i) for i in node.attrs.get("perm", range(rank)[::-1])]
