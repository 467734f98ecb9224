"""DoReFa-Net with one bit for weights and one for activations, on the authors' network for SVHN.

    y = conv(round(clip(x, 0, 1)), E|W| sign(W / E|W|)),   one E for the whole layer

Activations are 0 and 1; round takes ties to even, so that 0.5 is 0. First and last layer are float.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from zoo.base import Network, Tensor, images


class Quantize(torch.autograd.Function):
    """round(x n) / n for n = 2^bits − 1, and the sign of weights; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int, weights: bool) -> Tensor:
        if weights and bits == 1:
            return torch.sign(x)
        n = float(2**bits - 1)
        return torch.round(x * n) / n

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


class QuantConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        scale = torch.mean(torch.abs(self.weight)).detach()
        weight = Quantize.apply(self.weight / scale, 1, True) * scale
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Activate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Quantize.apply(torch.clamp(x, 0, 1), 1, False)


class DoReFa(nn.Module):
    """Widths 48, 64, 64, 128, 128, 128, 512 are 24, 32, 32, 48, 48, 48, 96 here."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 24, 5, padding=2),
            nn.MaxPool2d(2),
            Activate(),
            QuantConv(24, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            Activate(),
            QuantConv(32, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.MaxPool2d(2),
            Activate(),
            QuantConv(32, 48, 3, padding=0, bias=False),
            nn.BatchNorm2d(48),
            Activate(),
            QuantConv(48, 48, 3, padding=1, bias=False),
            nn.BatchNorm2d(48),
            Activate(),
            QuantConv(48, 48, 3, padding=0, bias=False),
            nn.BatchNorm2d(48),
            Activate(),
            nn.Dropout(),
            QuantConv(48, 96, 4, padding=0, bias=False),
            nn.BatchNorm2d(96),
            Activate(),
        )
        self.classifier = nn.Linear(96, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.features(image).flatten(1))


NETWORK = Network(
    "DoReFa-Net (1, 1)",
    DoReFa,
    "Zhou et al. 2016, arXiv:1606.06160",
    binary=6,
    inputs=images(3, 32),
    threshold=0.5,
    stem_norms=0,
)
