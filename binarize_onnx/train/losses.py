"""What training makes small: losses against labels, against a teacher's logits, and against real-valued features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """−Σ_c q_c log p_c, the mean of the samples: p the softmax of `logits` [N, C], q from `labels`, int64 [N].

    q is 1 − smoothing at the label, and smoothing / C more for every class (Szegedy, "Rethinking Inception", 2016).
    """
    return functional.cross_entropy(logits, labels, label_smoothing=smoothing)


def distributional(logits: Tensor, teacher: Tensor) -> Tensor:
    """−Σ_c t_c log p_c, the mean of the samples: p and t the softmax of `logits` and of the teacher's, both [N, C].

    The distributional loss of ReActNet (Liu, 2020): no labels, no temperature. The teacher gets no gradient.
    """
    log_p = torch.log_softmax(logits, dim=1)
    return -(torch.softmax(teacher.detach(), dim=1) * log_p).sum(dim=1).mean()


def attention(features: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Σ_k ‖Q_k/‖Q_k‖ − R_k/‖R_k‖‖, the mean of the samples; Q = Σ_c A² where the features are, R of the teacher's.

    Attention matching of Real-to-Binary (Martinez, 2020), from Zagoruyko, 2017. The teacher gets no gradient.

    Args:
        features: of each block, [N, C, …].
        teacher: as many, with any channels and the other axes as those; at least one.

    Raises:
        ValueError: there are not as many, or not of these shapes.
    """
    losses = []
    for a, b in zip(features, teacher, strict=True):
        if a.dim() < 3 or (len(a), *a.shape[2:]) != (len(b), *b.shape[2:]):
            raise ValueError(f"features {tuple(a.shape)} with a teacher's {tuple(b.shape)}")
        apart = _attention_map(a) - _attention_map(b.detach())
        losses.append(torch.linalg.vector_norm(apart, dim=1).mean())
    return torch.stack(losses).sum()


def _attention_map(features: Tensor) -> Tensor:
    """Sums of squares over the channels, of length 1 (0 where all are 0): [N, …] in one axis."""
    return functional.normalize(features.square().sum(dim=1).flatten(1), dim=1)


class ContrastiveMutualInformation(nn.Module):
    """Maximises the mutual information of binary and real features by telling pairs apart: CMIM (Shang, 2022).

    Features of a layer are averaged over all but samples and channels, embedded by a linear head and brought to length
    1: s_i of the binary, t_i of the real ones. With S_ij = ⟨s_i, t_j⟩/τ

        L_k = −1/2N Σ_i (log softmax_j(S_ij) [i] + log softmax_j(S_ji) [i])                   InfoNCE, both ways
        L = λ min(1, progress / warm_up) Σ_k β^−(K − 1 − k) L_k                               k = 0 … K − 1, in order

    so that a pair is the same sample, and what it is told apart from are the other samples of the batch (of one
    process, where there are several; a batch of one has no loss). L_k bounds the information: I ≥ log N − L_k.

    This is not the authors' code. There positives are features of a separate float network, the last layer's only,
    negatives come from a memory of all samples, and the heads are left at random. Here the heads are parameters, which
    the optimiser must be given.

    Args:
        channels: of each binary layer.
        reference_channels: of the real features beside each; those of the layers themselves by default.
        mode: "self": the real features are what the network binarized itself; "teacher": another network's. They get no
            gradient either way; "self" wants the same channels.
        dim: the length of embeddings.
        tau: the temperature τ.
        weight: λ.
        warm_up: the part of the training in which the weight grows to λ.
        beta: from 1 up; how many times less a layer counts than the one behind it.

    Raises:
        ValueError: channels do not fit one another.
    """

    def __init__(
        self,
        channels: Sequence[int],
        reference_channels: Sequence[int] | None = None,
        mode: Literal["self", "teacher"] = "self",
        dim: int = 128,
        tau: float = 0.1,
        weight: float = 1.0,
        warm_up: float = 0.1,
        beta: float = 1.0,
    ) -> None:
        super().__init__()
        reference = list(channels if reference_channels is None else reference_channels)
        if len(reference) != len(channels) or (mode == "self" and reference != list(channels)):
            raise ValueError(f"{mode}: layers of {list(channels)} channels beside features of {reference}")
        self.tau, self.weight, self.warm_up, self.beta = tau, weight, warm_up, beta
        self.heads = nn.ModuleList([nn.Linear(c, dim) for c in channels])
        self.reference_heads = nn.ModuleList([nn.Linear(c, dim) for c in reference])

    def forward(self, binary: Sequence[Tensor], real: Sequence[Tensor], progress: float = 1.0) -> Tensor:
        """L for binary features [N, C, …] of each layer and the real ones beside them, in order.

        Raises:
            ValueError: there are not as many as heads.
        """
        losses = [
            self._layer(head(_pooled(a)), reference_head(_pooled(b.detach())))
            for head, reference_head, a, b in zip(self.heads, self.reference_heads, binary, real, strict=True)
        ]
        factor = self.weight * min(1.0, progress / self.warm_up if self.warm_up > 0 else 1.0)
        return factor * torch.stack([loss / self.beta**behind for behind, loss in enumerate(reversed(losses))]).sum()

    def _layer(self, s: Tensor, t: Tensor) -> Tensor:
        similar = functional.normalize(s, dim=1) @ functional.normalize(t, dim=1).T / self.tau
        pairs = torch.arange(len(similar), device=similar.device)
        return (functional.cross_entropy(similar, pairs) + functional.cross_entropy(similar.T, pairs)) / 2


def _pooled(features: Tensor) -> Tensor:
    """The means of the channels of [N, C, …]: [N, C]."""
    return features.flatten(2).mean(dim=2) if features.dim() > 2 else features
