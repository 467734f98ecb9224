"""What a recipe makes small: the parts of its loss, weighed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from binarize_onnx.errors import UsageError
from binarize_onnx.quantize.scoring import PROBABLE
from binarize_onnx.quantize.sites import Site
from binarize_onnx.train import losses
from binarize_onnx.train.graph import GraphModule
from binarize_onnx.train.student import Student


class Teacher:
    """The float network, as it teaches.

    Args:
        module: which computes it.
        output: the output that is taught.
        sample: some inputs.

    Attributes:
        classes: how many classes the output has; None if it is not [samples, classes].
    """

    def __init__(self, module: GraphModule, output: str, sample: Mapping[str, Tensor]) -> None:
        self.module, self.output = module.eval().requires_grad_(False), output
        values, _ = self(sample)
        self.classes = int(values.shape[1]) if values.dim() == 2 and values.shape[1] > 1 else None
        sums = values.sum(-1) if self.classes else values
        ones = torch.allclose(sums, torch.ones_like(sums), atol=PROBABLE)
        self.probabilities = self.classes is not None and bool((values >= 0).all()) and ones

    def __call__(self, inputs: Mapping[str, Tensor], keep: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """The output, and tensors inside by name."""
        with torch.no_grad():
            outputs, kept = self.module(inputs, keep)
        return outputs[self.output], kept

    def logits(self, values: Tensor) -> Tensor:
        """An output as logits: where the network ends with probabilities, their logarithms."""
        return values.clamp_min(1e-12).log() if self.probabilities else values


class Objective(nn.Module):
    """The loss of a student.

    Where the output has no classes, its squared error, as a share of the teacher's variance, stands for the
    distributional loss.

    Args:
        student: what is trained; its recipe says how the parts are weighed.
        teacher: the float network.
        labelled: whether there are labels; without, their part is left out.

    Attributes:
        reads: the tensors of the teacher that it compares with.

    Raises:
        UsageError: nothing is left to be made small.
    """

    def __init__(self, student: Student, teacher: Teacher, labelled: bool) -> None:
        super().__init__()
        self.module = student.module
        self._layers, self._schedule = list(student.layers.values()), student.schedule
        self._teacher, weights = (teacher,), student.recipe.losses  # in a tuple: it is no part of this module
        self._mode = weights.contrastive_mode
        self._maps = [layer.site for layer in self._layers if layer.site.rank > 2] if weights.attention else []
        self.weights = {
            "distributional": weights.distributional,
            "labels": weights.labels if labelled and teacher.classes else 0.0,
            "attention": weights.attention if self._maps else 0.0,
            "contrastive": weights.contrastive,
        }
        if not any(self.weights.values()):
            raise UsageError("the recipe learns from labels, and there are none:", fix="add +distillation to it.")
        self.contrastive: nn.Module | None = None
        self._binary: dict[str, Tensor] = {}  # what the layers made of their inputs, by name
        sites = [layer.site for layer in self._layers]
        if self.weights["contrastive"]:
            channels = [s.channels if self._mode == "self" else s.outputs for s in sites]
            self.contrastive = losses.ContrastiveMutualInformation(channels, mode=self._mode)
            if self._mode == "self":
                for layer in self._layers:
                    layer.activation.register_forward_hook(self._noting(layer.site.name))
        against = self.weights["contrastive"] and self._mode == "teacher"
        self.reads = [site.output for site in (sites if against else self._maps)]
        self._keep = {*self.reads}
        if self.weights["contrastive"] and self._mode == "self":
            self._keep.update(site.input for site in sites)

    def forward(
        self, inputs: Mapping[str, Tensor], labels: Tensor | None, output: Tensor, features: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`(loss, parts)`, the parts before they are weighed.

        Args:
            inputs: by name.
            labels: int64 [N], if there are any.
            output: the teacher's.
            features: of the teacher, those of `reads`.
        """
        (teacher,) = self._teacher
        outputs, kept = self.module(inputs, self._keep)
        result = outputs[teacher.output]
        parts: dict[str, Tensor] = {}
        if self.weights["distributional"]:
            parts["distributional"] = (
                losses.distributional(teacher.logits(result), teacher.logits(output))
                if teacher.classes
                else (result - output).square().mean() / output.var().clamp_min(1e-12)
            )
        if self.weights["labels"]:
            assert labels is not None
            parts["labels"] = losses.cross_entropy(teacher.logits(result), labels)
        if self.weights["attention"]:
            pairs = [(_channels_second(kept[s.output], s), _channels_second(features[s.output], s)) for s in self._maps]
            parts["attention"] = losses.attention([a for a, _ in pairs], [b for _, b in pairs])
        if self.contrastive is not None:
            parts["contrastive"] = self._contrast(self.contrastive, kept, features)
        total = torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()
        return total, {name: part.detach() for name, part in parts.items()}

    def _contrast(self, module: nn.Module, kept: Mapping[str, Tensor], features: Mapping[str, Tensor]) -> Tensor:
        sites = [layer.site for layer in self._layers]
        if self._mode == "self":
            binary = [_channels_second(self._binary.pop(s.name), s) for s in sites]
            real = [_channels_second(kept[s.input], s) for s in sites]
        else:
            binary = [_channels_second(kept[s.output], s) for s in sites]
            real = [_channels_second(features[s.output], s) for s in sites]
        found: Tensor = module(binary, real, self._schedule.progress)
        return found

    def _noting(self, name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def note(module: nn.Module, inputs: object, output: Tensor) -> None:
            if torch.is_grad_enabled():
                self._binary[name] = output

        return note


def _channels_second(values: Tensor, site: Site) -> Tensor:
    return values.movedim(-1, 1) if site.kind == "product" else values
