"""Real-to-Binary: the binary convolution's output is scaled per sample by a gate computed from its real-valued input.

    n = BN(x);  x = PReLU(conv(sign n, sign W) * σ(W2 relu(W1 mean_hw n))) + x

Weights are plain signs; estimators are clips, written as autograd functions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from zoo.base import Network, Tensor, images


class SignSTE(torch.autograd.Function):
    """sign with the gradient of a clip; the exporters inline its `forward`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1)


class BinaryConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, SignSTE.apply(self.weight), None, self.stride, self.padding)


class Gate(nn.Module):
    def __init__(self, inputs: int, outputs: int, reduction: int = 8) -> None:
        super().__init__()
        self.squeeze = nn.Linear(inputs, inputs // reduction, bias=False)
        self.excite = nn.Linear(inputs // reduction, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.adaptive_avg_pool2d(x, 1).flatten(1)
        gate = torch.sigmoid(self.excite(functional.relu(self.squeeze(pooled))))
        return gate[:, :, None, None]


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = BinaryConv(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.gate = Gate(inputs, outputs)
        self.prelu = nn.PReLU(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(2, 2), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        out = self.conv(SignSTE.apply(normed)) * self.gate(normed)
        return self.prelu(out) + self.shortcut(x)


class RealToBinary18(nn.Module):
    """Four stages of four one-convolution blocks; widths 64, 128, 256, 512 are 24, 40, 64, 96 here."""

    widths = (24, 40, 64, 96)

    def __init__(self) -> None:
        super().__init__()
        first = self.widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(first),
            nn.PReLU(first),
            nn.MaxPool2d(3, 2, 1),
        )
        blocks: list[nn.Module] = []
        inputs = first
        for stage, outputs in enumerate(self.widths):
            for number in range(4):
                blocks.append(Block(inputs, outputs, 2 if stage and not number else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(inputs, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(self.stem(image))
        return self.classifier(functional.adaptive_avg_pool2d(x, 1).flatten(1))


NETWORK = Network(
    "Real-to-Binary-18",
    RealToBinary18,
    "Martinez et al. 2020, arXiv:2003.11535",
    binary=16,
    inputs=images(3, 32),
    stem_norms=2,
)
