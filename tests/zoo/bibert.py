"""BiBERT: binary linear layers and attention of boolean probabilities.

Qin et al. 2022, arXiv:2203.06390. Weights are centred per output row and scaled by mean|w|; the inputs of linear layers
are plain signs. In the attention Q, K and V are signs, and the probabilities bool(score) are a sign whose -1 is
overwritten by 0 in place. Two layers of width 48.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.base import BATCH, Feed, Network

WIDTH, HEADS, LENGTH = 48, 3, 10


class BinaryQuantizer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.sign(x)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0]


class BoolQuantizer(torch.autograd.Function):
    """bool(x) of the paper's equation 11: 1 where x > 0, else 0."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        out = torch.sign(x)
        out[out == -1] = 0.0
        return out

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0]


class BinaryLinear(nn.Linear):
    def randomise(self, generator: torch.Generator) -> None:
        """No bias is 0: where the sum is 0, too, the sign would be that of the source's rounding."""
        self.weight.data.normal_(0, 0.5, generator=generator)
        self.bias.data.normal_(0, 0.3, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        centred = self.weight - torch.mean(self.weight, dim=-1, keepdim=True)
        scale = torch.mean(abs(centred), dim=1, keepdim=True).detach()
        hard = scale * torch.sign(centred)
        soft = torch.clamp(centred, -1.0, 1.0)
        weight = hard.detach() - soft.detach() + soft
        return functional.linear(BinaryQuantizer.apply(x), weight) + self.bias


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (BinaryLinear(WIDTH, WIDTH) for _ in range(3))
        self.output, self.norm = BinaryLinear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)

    def heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], HEADS, WIDTH // HEADS).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self.heads(layer(x)) for layer in (self.query, self.key, self.value))
        query, key, value = (BinaryQuantizer.apply(t) for t in (query, key, value))
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(WIDTH // HEADS)
        context = torch.matmul(BoolQuantizer.apply(scores), value)
        context = context.permute(0, 2, 1, 3).contiguous().flatten(2)
        return self.norm(self.output(context) + x)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.up, self.down = BinaryLinear(WIDTH, 2 * WIDTH), BinaryLinear(2 * WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x)
        return self.norm(self.down(functional.gelu(self.up(x))) + x)


class BiBert(nn.Module):
    def __init__(self, words: int = 30, classes: int = 3) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, WIDTH), nn.Parameter(torch.randn(1, LENGTH, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.layers = nn.Sequential(Layer(), Layer())
        self.classifier = nn.Linear(WIDTH, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.layers(self.norm(self.words(tokens) + self.places))
        return self.classifier(x[:, 0])


def sentences(rng: np.random.Generator) -> Feed:
    """Token numbers, int64 [BATCH, LENGTH]."""
    return {"tokens": rng.integers(0, 30, (BATCH, LENGTH))}


NETWORK = Network("BiBERT", BiBert, "Qin et al. 2022, arXiv:2203.06390", binary=16, inputs=sentences)
