"""A binary multilayer perceptron: sign, linear, BatchNorm1d, and nothing else.

Hubara et al. 2016, NIPS. The first layer reads real pixels with binary weights; the later ones read signs. The last
layer is binary too, and its outputs are scaled by one learned number.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.base import Network, images


def binarize(x: Tensor) -> Tensor:
    """+1 at zero, by a comparison cast to float; the gradient is that of Hardtanh."""
    hard = (x >= 0).float() * 2 - 1
    soft = functional.hardtanh(x)
    return hard.detach() - soft.detach() + soft


class BinaryLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, binarize(self.weight), self.bias)


class BinaryMlp(nn.Module):
    def __init__(self, width: int = 100, classes: int = 10) -> None:
        super().__init__()
        self.first = BinaryLinear(3 * 8 * 8, width)
        self.norms = nn.ModuleList([nn.BatchNorm1d(width), nn.BatchNorm1d(width), nn.BatchNorm1d(width)])
        self.hidden = nn.ModuleList([BinaryLinear(width, width), BinaryLinear(width, width, bias=False)])
        self.last = BinaryLinear(width, classes)
        self.scale = nn.Parameter(torch.tensor(0.03))

    def forward(self, image: Tensor) -> Tensor:
        x = self.first(image.flatten(1))
        for norm, layer in zip(self.norms, self.hidden, strict=False):
            x = layer(binarize(norm(x)))
        return self.last(binarize(self.norms[-1](x))) * self.scale


NETWORK = Network("binary MLP", BinaryMlp, "Hubara et al. 2016, NIPS", binary=3, inputs=images(3, 8))
