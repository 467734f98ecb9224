"""What takes the place of the derivative of a sign, which is zero wherever it exists.

A forward pass computes the sign itself; on the way back the gradient is multiplied by a factor f(x) ≥ 0 that belongs to
the estimator. Some change while a network is trained: `progress` in [0, 1] is the part of the training that is over.

All are written for a step from −1 to +1 at 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor


class Estimator(Protocol):
    """A derivative to use for the sign."""

    def gradient(self, x: Tensor, progress: float) -> Tensor:
        """The factor f(x) of the gradient: of the shape and dtype of `x`."""


@dataclass(frozen=True)
class Identity:
    """f(x) = 1, the straight-through estimator (Bengio, "Estimating or propagating gradients", 2013)."""

    def gradient(self, x: Tensor, progress: float) -> Tensor:
        """The factor f(x) of the gradient: of the shape and dtype of `x`."""
        return torch.ones_like(x)


@dataclass(frozen=True)
class Clip:
    """f(x) = 1 where |x| ≤ limit, else 0 (Courbariaux, "Binarized neural networks", 2016; limit 1.3 in MeliusNet)."""

    limit: float = 1.0

    def gradient(self, x: Tensor, progress: float) -> Tensor:
        """The factor f(x) of the gradient: of the shape and dtype of `x`."""
        return (x.abs() <= self.limit).to(x.dtype)


@dataclass(frozen=True)
class ApproxSign:
    """f(x) = 2 − 2|x| where |x| < 1, else 0: a piecewise quadratic sign (Liu, "Bi-Real net", 2018)."""

    def gradient(self, x: Tensor, progress: float) -> Tensor:
        """The factor f(x) of the gradient: of the shape and dtype of `x`."""
        return (2 - 2 * x.abs()).clamp_min(0)


@dataclass(frozen=True)
class EDE:
    """The error decay estimator (Qin, "Forward and backward information retention", IR-Net, 2020).

    f(x) = k t (1 − tanh²(t x)) with t = first · (last / first)^progress and k = max(1/t, 1): nearly the identity at
    first, nearly the derivative of the sign in the end. `first` is that of the authors' ResNet-20; the paper has 0.1.
    """

    first: float = 1e-3
    last: float = 10.0

    def gradient(self, x: Tensor, progress: float) -> Tensor:
        """The factor f(x) of the gradient: of the shape and dtype of `x`."""
        t = self.first * (self.last / self.first) ** progress
        return max(1 / t, 1.0) * t * (1 - torch.tanh(t * x).square())


@dataclass(frozen=True)
class ReSTE:
    """The rectified straight-through estimator (Wu, "Estimator meets equilibrium perspective", 2023).

    The sign is taken for sign(x) · |x|^(1/o), with o from 1 to `last` linearly:

        f(x) = |x|^((1 − o)/o) / o      cut < |x| ≤ limit
               cut^(1/o) / cut          |x| ≤ cut, where the power would grow without bound
               0                        beyond
    """

    last: float = 3.0
    cut: float = 0.1
    limit: float = 1.5

    def gradient(self, x: Tensor, progress: float) -> Tensor:
        """The factor f(x) of the gradient: of the shape and dtype of `x`."""
        o = 1 + (self.last - 1) * progress
        size = x.abs()
        factor = size.clamp_min(self.cut).pow((1 - o) / o) / o
        factor = torch.where(size <= self.cut, self.cut ** (1 / o) / self.cut, factor)
        return torch.where(size <= self.limit, factor, 0.0)


@dataclass(frozen=True)
class FDA:
    """The Fourier series of a square wave (Xu, "Learning frequency domain approximation", 2021), on |x| ≤ 1.

    f(x) = 4ω/π · Σ cos((2i + 1) ω x), i = 0 … n, with ω = 0.1 and n from `first` to twice that in whole steps. The
    paper's noise adaptation, a network beside each layer whose part fades to nothing, is not here.
    """

    first: int = 9
    omega: float = 0.1

    def gradient(self, x: Tensor, progress: float) -> Tensor:
        """The factor f(x) of the gradient: of the shape and dtype of `x`."""
        n = self.first + int(self.first * progress)
        waves = torch.zeros_like(x)
        for i in range(n + 1):
            waves += torch.cos((2 * i + 1) * self.omega * x)
        return torch.where(x.abs() <= 1, 4 * self.omega / math.pi * waves, 0.0)


ESTIMATORS: Mapping[str, Estimator] = MappingProxyType(
    {
        "identity": Identity(),
        "clip": Clip(),
        "approx": ApproxSign(),
        "ede": EDE(),
        "reste": ReSTE(),
        "fda": FDA(),
    }
)


def sign(x: Tensor, estimator: Estimator, progress: float = 0.0) -> Tensor:
    """+1 where x ≥ 0, else −1 (of NaN too), in the dtype of `x`; its gradient is that of the estimator."""
    return step(x >= 0, x, estimator, progress)


def step(reached: Tensor, x: Tensor, estimator: Estimator, progress: float = 0.0, low: int = -1) -> Tensor:
    """+1 where `reached`, else `low`, with a gradient that goes to `x` alone.

    Args:
        reached: bool, of the shape of `x`: the comparison, as the exported graph has it.
        x: how far the threshold is away; its dtype is that of the result.
        estimator: its factor is halved where the step goes from 0 to 1.
        progress: the part of the training that is over.
        low: −1 or 0.
    """
    stepped: Tensor = _Step.apply(x, reached, estimator, progress, low)
    return stepped


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, reached: Tensor, estimator: Estimator, progress: float, low: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.estimator, ctx.progress, ctx.height = estimator, progress, 1 - low
        return reached.to(x.dtype).mul_(ctx.height).add_(low)  # several times as fast as torch.where on a CPU

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return gradient * (ctx.estimator.gradient(x, ctx.progress) * (ctx.height / 2)), None, None, None, None
