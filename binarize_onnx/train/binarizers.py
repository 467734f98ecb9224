"""Binary weights made of the latent real ones that the optimiser moves, each under its published name.

A binarizer turns W [O, D…] into M bases of ±1 and a scale for each basis and output channel (filter):

    W ≈ Σ_m scales[m, o] · bases[m, o]          M = 1 for all but `abc` and `greedy`

and lets the gradient through to W as its paper has it. sign(0) is +1, and the sign of NaN −1: there is never a 0. What
is written of mean, standard deviation and median is of a filter, unless "of the layer" stands with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from binarize_onnx.train.estimators import EDE, ESTIMATORS, Estimator, Identity, sign, step

EPSILON = 1e-5  # inside the root of a variance, where the papers' own code has one
SAME_BASES = 1e-9  # singular values of a Gram matrix below this part of the largest are 0: its bases coincide


@dataclass(frozen=True)
class Binarized:
    """Bases [M, O, D…] of −1 and +1 and scales [M, O], of the dtype of the latent weights; both may carry gradients."""

    bases: Tensor
    scales: Tensor

    @property
    def weights(self) -> Tensor:
        """The real weights that these stand for: [O, D…]."""
        return (_over(self.scales, self.bases) * self.bases).sum(dim=0)


class Binarizer(nn.Module):
    """How latent weights become binary ones.

    Args:
        weights: the latent weights [O, D…] as they are at first, D at least 1; only learned scales look at the values.
        bases: M.

    Raises:
        ValueError: more than one basis where the method has one, or less than one.
    """

    most_bases: ClassVar[int] = 1
    limit: ClassVar[float | None] = None  # latent weights beyond it would get no gradient any more

    def __init__(self, weights: Tensor, bases: int = 1) -> None:
        super().__init__()
        if not 1 <= bases <= self.most_bases:
            raise ValueError(f"{bases} bases of weights: {type(self).__name__} has 1 to {self.most_bases}")
        self.bases = bases

    def forward(self, weights: Tensor, progress: float = 0.0) -> Binarized:
        """Binary weights for `weights` [O, D…]; `progress` in [0, 1] is the part of the training that is over."""
        return self._binarize(weights, progress)

    def _binarize(self, weights: Tensor, progress: float) -> Binarized:
        raise NotImplementedError

    def settle(self, weights: Tensor, progress: float = 0.0) -> None:
        """Change latent weights in place after a step of the optimiser, where the method keeps them in bounds."""
        with torch.no_grad():
            self._settle(weights, progress)

    def _settle(self, weights: Tensor, progress: float) -> None:
        if self.limit is not None:
            weights.clamp_(-self.limit, self.limit)


class _Sign(Binarizer):
    """sign(w) times a scale: what tells these methods apart is the scale and the gradient."""

    estimator: ClassVar[Estimator] = ESTIMATORS["clip"]
    limit = 1.0

    def _binarize(self, weights: Tensor, progress: float) -> Binarized:
        return _one(sign(weights, self.estimator, progress), self._scale(weights))

    def _scale(self, weights: Tensor) -> Tensor:
        return _flat(weights.detach()).abs().mean(dim=1)


class BNN(_Sign):
    """B = sign(w), no scale; gradient 1{|w| ≤ 1} (Courbariaux, "Binarized neural networks", 2016)."""

    def _scale(self, weights: Tensor) -> Tensor:
        return weights.new_ones(len(weights))


class BiReal(_Sign):
    """α = mean|w| taken as a constant, B = sign(w), gradient α 1{|w| ≤ 1} (Liu, "Bi-Real net", 2018; "ReActNet", 2020).

    ReActNet has the same weights.
    """


class ReSTEWeights(_Sign):
    """One α = mean|w| of the layer, with a gradient of its own, B = sign(w) with the gradient of ReSTE (Wu, 2023)."""

    estimator = ESTIMATORS["reste"]
    limit = 1.5

    def _scale(self, weights: Tensor) -> Tensor:
        return weights.abs().mean().expand(len(weights))


class FDAWeights(_Sign):
    """α = mean|w| taken as a constant, B = sign(w) with the gradient of FDA (Xu, 2021)."""

    estimator = ESTIMATORS["fda"]


class XNOR(Binarizer):
    """α = mean|w| and B = sign(w), the nearest to w (Rastegari, "XNOR-Net", 2016).

    For the gradient g of the loss with respect to the products αB of a filter with n weights

        ∂L/∂w_i = g_i (1/n + α 1{|w_i| ≤ 1})                               gradient "paper": equation as printed
        ∂L/∂w_i = sign(w_i)/n · Σ_j g_j sign(w_j) + g_i α 1{|w_i| ≤ 1}     gradient "chain": the chain rule through α

    Args:
        weights: the latent weights [O, D…] as they are at first.
        bases: 1.
        gradient: which of the two.
    """

    limit = 1.0

    def __init__(self, weights: Tensor, bases: int = 1, gradient: Literal["paper", "chain"] = "paper") -> None:
        super().__init__(weights, bases)
        self.gradient = gradient

    def _binarize(self, weights: Tensor, progress: float) -> Binarized:
        scale = _flat(weights).abs().mean(dim=1)
        if self.gradient == "chain":
            return _one(sign(weights, ESTIMATORS["clip"]), scale)
        scale = scale.detach()
        return _one(sign(weights, _PrintedXNOR(_over(scale, weights), weights[0].numel())), scale)


@dataclass(frozen=True)
class _PrintedXNOR:
    """The factor of the gradient of B, which is αg: 1/(nα) + 1{|w| ≤ 1}; without the first term where α is 0."""

    alpha: Tensor
    n: int

    def gradient(self, x: Tensor, progress: float) -> Tensor:
        one = torch.where(self.alpha > 0, 1 / (self.n * self.alpha), 0.0)
        return one + ESTIMATORS["clip"].gradient(x, progress)


class IRNet(Binarizer):
    """Balanced weights (Qin, "Forward and backward information retention", IR-Net, 2020).

    ŵ = (w − mean w) / std w, B = sign ŵ with the gradient of EDE, which goes on through mean and std; scale
    2^round(log2 mean|ŵ|), taken as a constant. std has n − 1 below the sum.
    """

    estimator: ClassVar[Estimator] = EDE()

    def _binarize(self, weights: Tensor, progress: float) -> Binarized:
        balanced = _standardised(weights, 0.0)
        size = _flat(balanced.detach()).abs().mean(dim=1)
        power = torch.where(size > 0, size.log2().round().exp2(), 1.0)
        return _one(sign(balanced, self.estimator, progress), power)


class _LearnedScale(Binarizer):
    """Scales that are parameters of their own; they begin at mean|w|."""

    def __init__(self, weights: Tensor, bases: int = 1) -> None:
        super().__init__(weights, bases)
        self.scale = nn.Parameter(_flat(weights.detach()).abs().mean(dim=1))


class ReCU(_LearnedScale):
    """The rectified clamp unit, which revives weights that never change their sign (Xu, "ReCU", 2021).

    w̃ = 2√2 (w − mean w) / √(var w + 1e-5), clamped to ±Q with Q = −E|w̃| ln(2 − 2τ), E|w̃| of the layer: the quantile τ
    of a Laplace distribution; Q is a constant to the gradient. B = sign w̃ with gradient 1, none beyond ±Q; learned
    scales. τ goes from `first` to `last` as A e^progress + B does: from .85 to .99.
    """

    first: ClassVar[float] = 0.85
    last: ClassVar[float] = 0.99

    def _binarize(self, weights: Tensor, progress: float) -> Binarized:
        tau = self.first + (self.last - self.first) * math.expm1(progress) / math.expm1(1)
        spread = 2 * math.sqrt(2) * _standardised(weights, EPSILON)
        quantile = -spread.detach().abs().mean() * math.log(2 - 2 * tau)
        return _one(sign(spread.clamp(-quantile, quantile), Identity()), self.scale)


class SiMaN(_LearnedScale):
    """Sign-to-magnitude binarization (Lin, "SiMaN", 2022): the larger half of the weights of a filter is +1.

    w̃ = (w − mean w) / √(var w + 1e-5), B = +1 where |w̃| > median|w̃|, else −1. The sign of w has no part in it. The
    gradient of B goes to |w̃| as it is, and on through magnitude, mean and deviation; learned scales. Of an even number
    of weights the median is the smaller of the two in the middle, so that half of them are +1.

    `settle` centres the weights and clips their magnitudes to the percentiles p and 100 − p of the layer,
    p = 15 (1 − progress).
    """

    percentile: ClassVar[float] = 15.0

    def _binarize(self, weights: Tensor, progress: float) -> Binarized:
        magnitude = _standardised(weights, EPSILON).abs()
        ordered = _flat(magnitude.detach()).sort(dim=1).values
        median = ordered[:, (ordered.shape[1] - 1) // 2]
        return _one(step(magnitude > _over(median, magnitude), magnitude, Identity()), self.scale)

    def _settle(self, weights: Tensor, progress: float) -> None:
        part = self.percentile / 100 * (1 - progress)
        centred = weights - _over(_flat(weights).mean(dim=1), weights)
        ordered = centred.abs().flatten().sort().values
        low, high = _percentile(ordered, part), _percentile(ordered, 1 - part)
        weights.copy_(torch.sign(centred) * centred.abs().clamp(low, high))


class _LeastSquares(Binarizer):
    """M bases whose scales solve min |w − Σ_m α_m B_m|² at every step, and are constants to the gradient.

    The gradient of each basis goes to w as it is, so that ∂L/∂w = Σ_m α_m g for the gradient g of the sum. Bases that
    coincide share their scale: the shortest solution.
    """

    most_bases = 8  # published are up to five

    def _binarize(self, weights: Tensor, progress: float) -> Binarized:
        flat = _flat(weights.detach())
        shifts = self._shifts(flat)
        bases = torch.stack([sign(weights + shift.view_as(weights), Identity()) for shift in shifts])
        scales = _least_squares(bases.detach().flatten(2), flat).to(weights.dtype)
        return Binarized(bases, scales)

    def _shifts(self, flat: Tensor) -> list[Tensor]:
        """What is added to the weights [O, D] before the signs of each basis are taken: M of [O, D]."""
        raise NotImplementedError


class ABC(_LeastSquares):
    """Shifted bases (Lin, "Towards accurate binary convolutional neural network", ABC-Net, 2017).

    B_m = sign(w − mean w + u_m std w), u_m evenly from −1 to 1, and 0 for one basis. std has n below the sum.
    """

    def _shifts(self, flat: Tensor) -> list[Tensor]:
        mean, std = flat.mean(dim=1, keepdim=True), flat.std(dim=1, correction=0, keepdim=True)
        parts = [2 * m / (self.bases - 1) - 1 for m in range(self.bases)] if self.bases > 1 else [0.0]
        return [(u * std - mean).expand_as(flat) for u in parts]


class Greedy(_LeastSquares):
    """Residual bases (Guo, "Network sketching", 2017, refined): B_m = sign of what the m − 1 before have left.

    All scales are solved again before what is left is taken.
    """

    def _shifts(self, flat: Tensor) -> list[Tensor]:
        taken = [torch.zeros_like(flat)]
        signs: list[Tensor] = []
        for _ in range(self.bases - 1):
            signs.append(sign(flat + taken[-1], Identity()))
            bases = torch.stack(signs)
            taken.append(-(_least_squares(bases, flat).to(flat.dtype)[:, :, None] * bases).sum(dim=0))
        return taken


BINARIZERS: Mapping[str, type[Binarizer]] = MappingProxyType(
    {
        "bnn": BNN,
        "xnor": XNOR,
        "bireal": BiReal,
        "react": BiReal,
        "reste": ReSTEWeights,
        "fda": FDAWeights,
        "irnet": IRNet,
        "recu": ReCU,
        "siman": SiMaN,
        "abc": ABC,
        "greedy": Greedy,
    }
)


def _one(basis: Tensor, scale: Tensor) -> Binarized:
    return Binarized(basis[None], scale[None])


def _flat(weights: Tensor) -> Tensor:
    return weights.flatten(1)


def _over(of_filters: Tensor, like: Tensor) -> Tensor:
    """Values of filters, [O] or [M, O], that broadcast over the weights behind these axes in `like`."""
    return of_filters.reshape(*of_filters.shape, *[1] * (like.dim() - of_filters.dim()))


def _standardised(weights: Tensor, epsilon: float) -> Tensor:
    """(w − mean w) / √(var w + epsilon) with n − 1 below the sum of the variance; 0 where nothing varies."""
    flat = _flat(weights)
    centred = flat - flat.mean(dim=1, keepdim=True)
    variance = centred.square().sum(dim=1, keepdim=True) / max(flat.shape[1] - 1, 1) + epsilon
    return (centred / torch.where(variance > 0, variance, 1.0).sqrt()).view_as(weights)


def _percentile(ordered: Tensor, part: float) -> Tensor:
    """The value that `part` of the ascending `ordered` [n] lie below, between two of them in proportion."""
    place = part * (len(ordered) - 1)
    before = min(int(place), len(ordered) - 1)
    return torch.lerp(ordered[before], ordered[min(before + 1, len(ordered) - 1)], place - before)


def _least_squares(bases: Tensor, weights: Tensor) -> Tensor:
    """The shortest scales [M, O], in float64, with least |weights − Σ_m scales_m bases_m|: [M, O, D] and [O, D]."""
    with torch.no_grad():
        b, w = bases.double().transpose(0, 1), weights.double()
        inverse = torch.linalg.pinv(b @ b.transpose(1, 2), rtol=SAME_BASES, hermitian=True)
        return (inverse @ (b @ w[:, :, None])).squeeze(2).T
