"""A binary layer that is trained: what stands in the student for a layer of the float model.

    h = activation(x)                                    ±1, {0, 1} or levels
    y = BatchNormalization(product(h, w)) + shortcut(x)  w = Σ_m α_m B_m of latent weights, B_m in {-1, +1}

In training w is multiplied as one tensor. Otherwise the layer computes what the ideal graph will, in its order: one
product a basis, exact as its terms are integers, scales with the normalisation in them, sums, a shift.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from binarize_onnx.quantize.sites import Site
from binarize_onnx.quantize.weights import Bases
from binarize_onnx.train.activations import DynamicSign, SampleMeanSign
from binarize_onnx.train.binarizers import Binarized, Binarizer
from binarize_onnx.train.graph import MOMENTUM
from binarize_onnx.train.operators import convolution
from binarize_onnx.train.shortcuts import Shortcut

EPSILON = 1e-5  # of the normalisation


@dataclass(eq=False)
class Schedule:
    """What the training tells all layers of a student: shared by them, changed by the loop.

    Attributes:
        progress: in [0, 1], the part of the present stage that is over.
        binary_weights: whether weights are binary, or real ones (first of two stages).
    """

    progress: float = 0.0
    binary_weights: bool = True


class BinaryLayer(nn.Module):
    """One layer.

    Args:
        site: the float layer.
        activation: of its input, with the values of the ideal graph in training and otherwise.
        binarizer: of its weights, made for `latent`.
        latent: float32, the shape of the site's weights: what is binarized, to begin with.
        shortcut: what is added to its output, if anything, made of its input without parameters.
        schedule: of the training.
    """

    def __init__(
        self,
        site: Site,
        activation: nn.Module,
        binarizer: Binarizer,
        latent: Tensor,
        schedule: Schedule,
        shortcut: Shortcut | None = None,
    ) -> None:
        super().__init__()
        self.site, self.activation, self.binarizer = site, activation, binarizer
        self.shortcut, self.schedule = shortcut, schedule
        self.latent = nn.Parameter(latent)
        self.scale = nn.Parameter(torch.ones(site.outputs))
        self.shift = nn.Parameter(torch.zeros(site.outputs))
        self.register_buffer("mean", torch.zeros(site.outputs))
        self.register_buffer("variance", torch.ones(site.outputs))
        self._target: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for its input [N, C, ...] or [..., K]."""
        h = self.activation(x, self.schedule.progress)
        if self._target is not None:
            y = self._settled(h, self._target - (0 if self.shortcut is None else self.shortcut(x)))
        elif self.training or not self.schedule.binary_weights:
            y = self._normalised(self.product(h, self._weights()))
        else:
            y = self._ideal(h)
        return y if self.shortcut is None else y + self.shortcut(x)

    @property
    def is_exact(self) -> bool:
        """Whether the ideal graph computes the same bits: not where sums are rounded whose order is a runtime's own."""
        fixed = not isinstance(self.activation, DynamicSign | SampleMeanSign)
        return fixed and (self.shortcut is None or self.shortcut.is_exact)

    def settle(self, target: Tensor | None) -> None:
        """Let the next calls fit mean, variance, scale and shift to a wanted output by least squares; None ends it."""
        self._target = target

    def bound(self) -> None:
        """Keep latent weights where the method wants them, after a step of the optimiser."""
        if self.schedule.binary_weights:
            self.binarizer.settle(self.latent, self.schedule.progress)

    def folded(self) -> Bases:
        """The layer as it is exported: ±1 bases, the normalisation in their scales and the shift."""
        with torch.no_grad():
            found: Binarized = self.binarizer(self.latent, self.schedule.progress)
        signs = found.bases.cpu().numpy().reshape(len(found.bases), self.site.outputs, -1).astype(np.int8)
        values = (found.scales, self.scale, self.shift, self.mean, self.variance)
        scales, scale, shift, mean, variance = (t.detach().cpu().double().numpy() for t in values)
        factor = scale / np.sqrt(variance + EPSILON)
        return Bases(signs, scales * factor, shift - mean * factor)

    def product(self, h: Tensor, weights: Tensor) -> Tensor:
        """The convolution or matrix product alone."""
        site = self.site
        if site.kind == "product":
            return h @ weights.transpose(0, 1)
        settings = {"strides": site.strides, "pads": site.pads, "dilations": site.dilations, "group": site.group}
        return convolution([h, weights], settings)

    def _weights(self) -> Tensor:
        if not self.schedule.binary_weights:
            return self.latent
        found: Binarized = self.binarizer(self.latent, self.schedule.progress)
        return found.weights

    def _per_channel(self, values: Tensor) -> Tensor:
        """A vector over output channels as it broadcasts to the output."""
        return values.reshape(-1, *[1] * (self.site.rank - 2)) if self.site.kind == "conv" else values

    def _normalised(self, y: Tensor) -> Tensor:
        channels_last = self.site.kind == "product" and y.dim() > 2
        y = y.movedim(-1, 1) if channels_last else y
        mean, variance = self.mean, self.variance
        y = functional.batch_norm(y, mean, variance, self.scale, self.shift, self.training, MOMENTUM, EPSILON)
        return y.movedim(1, -1) if channels_last else y

    def _ideal(self, h: Tensor) -> Tensor:
        bases = self.folded()
        total: Tensor | None = None
        for signs, scale in zip(bases.signs, bases.scale, strict=True):
            weights = torch.from_numpy(signs).to(h).reshape(self.latent.shape)
            factor = torch.from_numpy(scale.astype(np.float32)).to(h)
            term = self.product(h, weights) * self._per_channel(factor)
            total = term if total is None else total + term
        assert total is not None
        return total + self._per_channel(torch.from_numpy(bases.shift.astype(np.float32)).to(h))

    def _settled(self, h: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.product(h, self._weights())
            axis = 1 if self.site.kind == "conv" else -1
            rows, wanted = (t.movedim(axis, -1).reshape(-1, self.site.outputs).double() for t in (y, target))
            mean, variance = rows.mean(0), rows.var(0, correction=0)
            together = ((rows - mean) * (wanted - wanted.mean(0))).mean(0)
            spread = torch.sqrt(variance + EPSILON)
            self.mean.copy_(mean)
            self.variance.copy_(variance)
            self.scale.copy_(together / spread)
            self.shift.copy_(wanted.mean(0))
            factor = self.scale / spread.float()
            return y * self._per_channel(factor) + self._per_channel(self.shift - self.mean * factor)
