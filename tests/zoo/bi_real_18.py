"""Bi-Real Net: a shortcut round every binary convolution, scales in the weights, a piecewise quadratic estimator.

    x = BN(conv(sign x, mean|W| sign W)) + x

The residue of the activation's sign is three nested stages of comparisons, casts and products over x² ± 2x; that of
the weights a clip of the weights.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from zoo.base import Network, Tensor, images


class BinaryActivation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        hard = torch.sign(x)
        below = (x < -1).type(torch.float32)
        negative = (x < 0).type(torch.float32)
        inside = (x < 1).type(torch.float32)
        soft = (-1) * below + (x * x + 2 * x) * (1 - below)
        soft = soft * negative + (-x * x + 2 * x) * (1 - negative)
        soft = soft * inside + 1 * (1 - inside)
        return hard.detach() - soft.detach() + soft


class HardBinaryConv(nn.Module):
    """Its weights are a column, as in the authors' code, and get their shape in `forward`."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        self.shape = (outputs, inputs, kernel, kernel)
        self.weights = nn.Parameter(torch.rand((outputs * inputs * kernel * kernel, 1)) * 0.001)

    def forward(self, x: Tensor) -> Tensor:
        real = self.weights.view(self.shape)
        scale = torch.mean(
            torch.mean(torch.mean(abs(real), dim=3, keepdim=True), dim=2, keepdim=True), dim=1, keepdim=True
        )
        hard = scale.detach() * torch.sign(real)
        soft = torch.clamp(real, -1.0, 1.0)
        binary = hard.detach() - soft.detach() + soft
        return functional.conv2d(x, binary, stride=self.stride, padding=self.padding)


def downsample(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.AvgPool2d(kernel_size=2, stride=2),
        nn.Conv2d(inputs, outputs, kernel_size=1, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.activation = BinaryActivation()
        self.conv = HardBinaryConv(inputs, outputs, stride=stride)
        self.norm = nn.BatchNorm2d(outputs)
        self.downsample = downsample(inputs, outputs) if stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.norm(self.conv(self.activation(x)))
        out += shortcut
        return out


class BiReal18(nn.Module):
    """Four stages of four one-convolution blocks; widths 64, 128, 256, 512 are 20, 40, 64, 96 here."""

    widths = (20, 40, 64, 96)
    block: type[nn.Module] = Block

    def __init__(self) -> None:
        super().__init__()
        first = self.widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, kernel_size=7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(first),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        blocks: list[nn.Module] = []
        inputs = first
        for stage, outputs in enumerate(self.widths):
            for number in range(4):
                blocks.append(self.block(inputs, outputs, 2 if stage and not number else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.pool(self.blocks(self.stem(image)))
        return self.classifier(x.view(x.size(0), -1))


NETWORK = Network("Bi-Real-18", BiReal18, "Liu et al. 2018, arXiv:1808.00278", binary=16, inputs=images(3, 32))
