"""Activations that take few values, and what stands around them: modules from x to what the ideal graph computes.

Values are those of `BinarySign` and `Level`: comparisons x ≥ threshold in float32, which NaN does not pass. They are
the same in training and afterwards; only gradients are estimates. Channels lie on `axis` of x, whatever its rank is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from binarize_onnx.quantize.activations import MAX_BITS
from binarize_onnx.train.estimators import ESTIMATORS, Estimator, step

EPSILON = 1e-5  # inside the root of a variance
LEAST_STEP = 1e-6  # between levels: a step of 0 would have no gradient

APPROX_SIGN = ESTIMATORS["approx"]


class BinaryActivation(nn.Module):
    """One bit with a learned threshold T for each channel: RSign (Liu, "ReActNet", 2020).

        y = 1 where x ≥ T, else x_low       ∂y/∂x = −∂y/∂T = (1 − x_low)/2 · f((x − T) / width) / width

    with the factor f of the estimator. The paper's α is T, the bias in its code −T.

    Args:
        channels: C.
        axis: that of the channels.
        x_low: −1, or 0 for what was rectified.
        estimator: of the derivative.
        threshold: at first, one number or [C]; `threshold` is the parameter.
        width: what is 1 to the estimator, one number or [C], above 0. It is not learned. With levels l and l + s, T in
            the middle, half of s makes the gradient of "clip" that of a rounding.
        standardise: take (x − T)/width in units of √(var x + 1e-5) of the sample, n − 1 below the sum, for the gradient
            (Xu, "ReCU", 2021).

    Raises:
        ValueError: another `x_low`, as of all signs here.
    """

    def __init__(
        self,
        channels: int,
        axis: int = 1,
        x_low: int = -1,
        estimator: Estimator = APPROX_SIGN,
        threshold: float | Tensor = 0.0,
        width: float | Tensor = 1.0,
        standardise: bool = False,
    ) -> None:
        super().__init__()
        self.axis, self.x_low, self.estimator, self.standardise = axis, _checked_low(x_low), estimator, standardise
        self.threshold = nn.Parameter(_of_channels(threshold, channels))
        self.register_buffer("width", _of_channels(width, channels))

    def forward(self, x: Tensor, progress: float = 0.0) -> Tensor:
        """Bits of the shape of `x`; `progress` in [0, 1] is the part of the training that is over."""
        threshold = _along(self.threshold, x, self.axis)
        away = (x - threshold) / _along(self.width, x, self.axis)
        if self.standardise:
            away = away / _deviation(x)
        return step(x >= threshold, away, self.estimator, progress, self.x_low)


class DoReFa(nn.Module):
    """One bit of an activation in [0, 1] (Zhou, "DoReFa-Net", 2016): y = round(min(max(x, 0), 1)).

    Rounding is to even, so y is 1 where x > 1/2, strictly: where x ≥ `THRESHOLD`, the next float32. The gradient is
    ∂y/∂x = 1{0 ≤ x ≤ 1}.
    """

    THRESHOLD = 0.5 + 2.0**-24
    x_low = 0

    def forward(self, x: Tensor, progress: float = 0.0) -> Tensor:
        """Bits of the shape of `x`; `progress` in [0, 1] is the part of the training that is over."""
        return step(x.float() >= self.THRESHOLD, x, _UnitInterval(), progress, self.x_low)


@dataclass(frozen=True)
class _UnitInterval:
    """f(x) = 2 where 0 ≤ x ≤ 1, else 0."""

    def gradient(self, x: Tensor, progress: float) -> Tensor:
        return 2 * ((x >= 0) & (x <= 1)).to(x.dtype)


class LevelActivation(nn.Module):
    """Levels in equal steps, both ends learned for each channel, as the kernels look them up: h counts what x reaches.

        h = Σ_p [x ≥ low + |step| (p − 1/2)],  p = 1 … P = 2^bits − 1            x ≈ low + |step| h

    The gradient is that of h ≈ u = (x − low)/|step| where 0 ≤ u ≤ P, and none beyond; low and step get theirs times
    1/√(nP), n the number of values of a channel in one sample: learned step size quantization (Esser, "LSQ", 2020; with
    an offset: Bhalgat, "LSQ+", 2020). Both write x̂ = low + |step| h; here the weights behind take the step over.

    Args:
        channels: C.
        axis: that of the channels.
        bits: 1 to 6.
        low: at first, one number or [C]; `low` is the parameter.
        step: at first, one number or [C]; `step` is the parameter.

    Raises:
        ValueError: other bits.
    """

    def __init__(
        self, channels: int, axis: int = 1, bits: int = 4, low: float | Tensor = 0.0, step: float | Tensor = 1.0
    ) -> None:
        super().__init__()
        if not 1 <= bits <= MAX_BITS:
            raise ValueError(f"{bits} bits: activations have 1 to {MAX_BITS}")
        self.axis, self.top = axis, 2**bits - 1
        self.low = nn.Parameter(_of_channels(low, channels))
        self.step = nn.Parameter(_of_channels(step, channels))

    def thresholds(self) -> Tensor:
        """What is compared with, ascending: float32 [P, C]."""
        with torch.no_grad():
            halves = torch.arange(self.top, dtype=self.low.dtype, device=self.low.device)[:, None] + 0.5
            return self.low + _positive(self.step) * halves

    def forward(self, x: Tensor, progress: float = 0.0) -> Tensor:
        """How many thresholds each value reaches, 0 … P: of the shape of `x`."""
        values = x.numel() // max(len(x) * len(self.low), 1)
        factor = (max(values, 1) * self.top) ** -0.5
        low = _along(_ScaledGradient.apply(self.low, factor), x, self.axis)
        size = _along(_positive(_ScaledGradient.apply(self.step, factor)), x, self.axis)
        thresholds = [_along(threshold, x, self.axis) for threshold in self.thresholds()]
        reached: Tensor = _Reached.apply((x - low) / size, x, thresholds)
        return reached

    def real(self, h: Tensor) -> Tensor:
        """What levels h stand for, low + |step| h: of the shape of `h`."""
        return _along(self.low, h, self.axis) + _along(_positive(self.step), h, self.axis) * h


class _Reached(torch.autograd.Function):
    """How many thresholds x reaches, with the gradient of the real number of steps, clipped to where there are any."""

    @staticmethod
    def forward(ctx: Any, steps: Tensor, x: Tensor, thresholds: list[Tensor]) -> Tensor:
        h = torch.zeros(x.shape, dtype=torch.uint8, device=x.device)
        for threshold in thresholds:
            h += x >= threshold
        ctx.save_for_backward((steps >= 0) & (steps <= len(thresholds)))
        return h.to(steps.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return torch.where(inside, gradient, 0.0), None, None


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient * ctx.factor, None


class DynamicSign(nn.Module):
    """One bit with thresholds that a sample chooses itself: DySign (Zhang, "Dynamic binary neural network", 2022).

        y = 1 where x ≥ T(x), else x_low        T(x) = second(relu(first(m))), m [N, C] the means of the channels

    The first axis of x is that of the samples. The width of the layer between is our own choice, and so is that
    `second` begins at zero, so that all thresholds begin at `threshold`. Gradients are those of `BinaryActivation`, and
    go on through T.

    Args:
        channels: C.
        axis: that of the channels, not 0.
        x_low: −1, or 0 for what was rectified.
        estimator: of the derivative.
        threshold: at first, one number or [C].
        reduction: C over the width of the layer between.
    """

    def __init__(
        self,
        channels: int,
        axis: int = 1,
        x_low: int = -1,
        estimator: Estimator = APPROX_SIGN,
        threshold: float | Tensor = 0.0,
        reduction: int = 8,
    ) -> None:
        super().__init__()
        self.axis, self.x_low, self.estimator = axis, _checked_low(x_low), estimator
        self.first = nn.Linear(channels, max(channels // reduction, 1))
        self.second = nn.Linear(max(channels // reduction, 1), channels)
        with torch.no_grad():
            self.second.weight.zero_()
            self.second.bias.copy_(_of_channels(threshold, channels))

    def thresholds(self, x: Tensor) -> Tensor:
        """The thresholds of each sample: [N, C]."""
        means = x.movedim(self.axis, 1).reshape(len(x), len(self.second.bias), -1).mean(dim=2)
        thresholds: Tensor = self.second(torch.relu(self.first(means)))
        return thresholds

    def forward(self, x: Tensor, progress: float = 0.0) -> Tensor:
        """Bits of the shape of `x`; `progress` in [0, 1] is the part of the training that is over."""
        threshold = _along(self.thresholds(x), x, self.axis)
        return step(x >= threshold, x - threshold, self.estimator, progress, self.x_low)


class SampleMeanSign(nn.Module):
    """One bit with the mean of the sample for a threshold: SiMaN (Lin, "SiMaN", 2022).

    y = 1 where x ≥ mean x, else x_low; the gradient is that of the estimator at (x − mean x) / √(var x + 1e-5), n − 1
    below the sum, and goes on through both. Samples lie on the first axis.

    Args:
        x_low: −1, or 0 for what was rectified.
        estimator: of the derivative.
    """

    def __init__(self, x_low: int = -1, estimator: Estimator = APPROX_SIGN) -> None:
        super().__init__()
        self.x_low, self.estimator = _checked_low(x_low), estimator

    def thresholds(self, x: Tensor) -> Tensor:
        """The threshold of each sample: [N, 1]."""
        return x.flatten(1).mean(dim=1, keepdim=True)

    def forward(self, x: Tensor, progress: float = 0.0) -> Tensor:
        """Bits of the shape of `x`; `progress` in [0, 1] is the part of the training that is over."""
        mean = self.thresholds(x).reshape(-1, *[1] * (x.dim() - 1))
        return step(x >= mean, (x - mean) / _deviation(x), self.estimator, progress, self.x_low)


class RPReLU(nn.Module):
    """A PReLU that is moved both ways (Liu, "ReActNet", 2020): z = x + shift; z where z > 0, else z · slope; + offset.

    In the paper's letters shift is −γ, slope β and offset ζ. Each step is rounded by itself, as in the ideal graph.

    Args:
        channels: C.
        axis: that of the channels.
        slope: at first, one number or [C]: 0 is a ReLU, 1 nothing at all.
    """

    def __init__(self, channels: int, axis: int = 1, slope: float | Tensor = 0.25) -> None:
        super().__init__()
        self.axis = axis
        self.shift = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(_of_channels(slope, channels))
        self.offset = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """The shape of `x`."""
        z = x + _along(self.shift, x, self.axis)
        z = functional.prelu(z.movedim(self.axis, 1), self.slope).movedim(1, self.axis)
        return z + _along(self.offset, x, self.axis)


def _checked_low(x_low: int) -> int:
    if x_low not in (-1, 0):
        raise ValueError(f"x_low {x_low}: a clear bit means -1 or 0")
    return x_low


def _of_channels(values: float | Tensor, channels: int) -> Tensor:
    """A float32 tensor [C] of its own, from one number or [C]."""
    return torch.as_tensor(values, dtype=torch.float32).detach().expand(channels).clone()


def _along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """Values [C] or [N, C] as they broadcast to `x` with its channels on `axis` and its samples on the first."""
    shape = [1] * x.dim()
    shape[axis] = values.shape[-1]
    if values.dim() == 2:
        shape[0] = len(values)
    return values.reshape(shape)


def _positive(step: Tensor) -> Tensor:
    return step.abs().clamp_min(LEAST_STEP)


def _deviation(x: Tensor) -> Tensor:
    """√(var x + 1e-5) of each sample, n − 1 below the sum: [N, 1…]."""
    flat = x.flatten(1)
    variance = flat.var(dim=1, correction=min(flat.shape[1] - 1, 1))
    return (variance + EPSILON).sqrt().reshape(-1, *[1] * (x.dim() - 1))
