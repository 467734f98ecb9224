"""OvSW: weights that never change their sign are made to (Xiang, "Overcoming silent weights", 2024).

Between the backward pass and the step of the optimiser, behind the unscaling of mixed precision, the gradient g of the
latent weights w becomes, for each filter

    g ← λ ‖w‖/‖g‖ · g      where ‖g‖/‖w‖ < λ                          adaptive gradient scaling
    g ← g + κ w            where w has hardly changed its sign        silence awareness decaying

The second is decided for each weight by s ← m s + (1 − m) [the sign has changed since the last call], s < threshold.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

LEAST_GRADIENT, LEAST_WEIGHT = 1e-6, 1e-3  # norms are raised to these


class OvSW(nn.Module):
    """Mends the gradients of latent weights [O, D…] before each step. Its state is in `state_dict`.

    Args:
        weights: the latent weights of all binary layers; always the same, in the same order.
        scaling: λ, 0 for none; .01 on ImageNet, .04 for ResNet-20 on CIFAR-10.
        decay: κ, 0 for none; 2e-5 on ImageNet, 9e-4 for ResNet-20 on CIFAR-10.
        momentum: m.
        threshold: of s, below which a weight is silent. All are at first.
    """

    def __init__(
        self,
        weights: Iterable[nn.Parameter],
        scaling: float = 0.01,
        decay: float = 2e-5,
        momentum: float = 0.999,
        threshold: float = 1e-4,
    ) -> None:
        super().__init__()
        self._weights = tuple(weights)  # a tuple, so that these are no parameters of this module too
        self.scaling, self.decay, self.momentum, self.threshold = scaling, decay, momentum, threshold
        for i, weight in enumerate(self._weights):
            self.register_buffer(f"positive_{i}", weight.detach() >= 0)
            self.register_buffer(f"changes_{i}", torch.zeros_like(weight))

    def mend(self) -> None:
        """Change `grad` of the weights in place; those that have none are left alone."""
        with torch.no_grad():
            for i, weight in enumerate(self._weights):
                if weight.grad is not None:
                    self._scale(weight)
                    self._decay(weight, getattr(self, f"positive_{i}"), getattr(self, f"changes_{i}"))

    def _scale(self, weight: Tensor) -> None:
        of_gradient = _norms(weight.grad).clamp_min(LEAST_GRADIENT)
        of_weight = _norms(weight).clamp_min(LEAST_WEIGHT)
        small = of_gradient / of_weight < self.scaling
        weight.grad.mul_(torch.where(small, self.scaling * of_weight / of_gradient, 1.0))

    def _decay(self, weight: Tensor, positive: Tensor, changes: Tensor) -> None:
        now = weight >= 0
        changes.mul_(self.momentum).add_((now != positive).to(changes.dtype), alpha=1 - self.momentum)
        positive.copy_(now)
        weight.grad.add_(torch.where(changes < self.threshold, weight, 0.0), alpha=self.decay)


def _norms(weight: Tensor) -> Tensor:
    """The norm of each filter of [O, D…]: [O, 1…]."""
    norms: Tensor = torch.linalg.vector_norm(weight.flatten(1), dim=1)
    return norms.reshape(-1, *[1] * (weight.dim() - 1))
