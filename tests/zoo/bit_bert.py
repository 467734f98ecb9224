"""BiT: a transformer with elastic binarization, a learned scale on every binary activation.

Liu et al. 2022, arXiv:2205.13016. Equation 3: a x_hat with x_hat = sign((x - b)/a) where x may be negative, and
Clip(Round((x - b)/a), 0, 1) where it may not (attention probabilities, ReLU outputs). The scale is one number a layer;
the shift b is a vector added before. Weights are centred, with one scale a row; their residue is not clipped.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.base import BATCH, Feed, Network

WIDTH, HEADS, LENGTH = 40, 2, 9


class ElasticSigned(nn.Module):
    """{-a, a}."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        a = torch.where(self.scale > 1e-5, self.scale, torch.tensor(1e-5))
        soft = x.clamp(-1.0, 1.0) * a
        hard = torch.sign(x / a) * a
        return hard.detach() - soft.detach() + soft


class ElasticUnsigned(nn.Module):
    """{0, a}."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        a = torch.where(self.scale > 1e-5, self.scale, torch.tensor(1e-5))
        soft = (x / a).clamp(0, 1) * a
        hard = (x / a).round().clamp(0, 1) * a
        return hard.detach() - soft.detach() + soft


class BinaryLinear(nn.Linear):
    def __init__(self, inputs: int, outputs: int, activation: nn.Module) -> None:
        super().__init__(inputs, outputs)
        self.move, self.activation = nn.Parameter(torch.randn(inputs) / 4), activation

    def randomise(self, generator: torch.Generator) -> None:
        """No bias is 0: where the sum is 0, too, the sign would be that of the source's rounding."""
        self.weight.data.normal_(0, 0.5, generator=generator)
        self.bias.data.normal_(0, 0.3, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(x + self.move.expand_as(x))
        centred = self.weight - self.weight.mean(dim=1, keepdim=True)
        scale = centred.abs().mean(dim=1, keepdim=True)
        weight = (scale * torch.sign(centred)).detach() - centred.detach() + centred
        return functional.linear(x, weight, self.bias)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (BinaryLinear(WIDTH, WIDTH, ElasticSigned()) for _ in range(3))
        self.output, self.norm = BinaryLinear(WIDTH, WIDTH, ElasticSigned()), nn.LayerNorm(WIDTH)
        self.signs = nn.ModuleList([ElasticSigned(), ElasticSigned(), ElasticSigned()])
        self.probabilities = ElasticUnsigned(0.2)

    def heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], HEADS, WIDTH // HEADS).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        layers = (self.query, self.key, self.value)
        query, key, value = (self.heads(sign(layer(x))) for layer, sign in zip(layers, self.signs, strict=True))
        scores = query @ key.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)
        context = self.probabilities(functional.softmax(scores, dim=-1)) @ value
        return self.norm(self.output(context.permute(0, 2, 1, 3).flatten(2)) + x)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.up = BinaryLinear(WIDTH, 2 * WIDTH, ElasticSigned())
        self.down = BinaryLinear(2 * WIDTH, WIDTH, ElasticUnsigned(0.6))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x)
        return self.norm(self.down(functional.relu(self.up(x))) + x)


class BitBert(nn.Module):
    def __init__(self, words: int = 30, classes: int = 3) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, WIDTH), nn.Parameter(torch.randn(1, LENGTH, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.layers = nn.Sequential(Layer(), Layer())
        self.classifier = nn.Linear(WIDTH, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.layers(self.norm(self.words(tokens) + self.places))
        return self.classifier(x.mean(dim=1))


def sentences(rng: np.random.Generator) -> Feed:
    """Token numbers, int64 [BATCH, LENGTH]."""
    return {"tokens": rng.integers(0, 30, (BATCH, LENGTH))}


NETWORK = Network("BiT", BitBert, "Liu et al. 2022, arXiv:2205.13016", binary=16, inputs=sentences)
