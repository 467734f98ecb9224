"""QuickNet: no scales, ReLU between the binary convolution and its BatchNormalization, padding with ±1, anti-aliasing.

    x = BN(relu(conv(pad(sign x, +1), sign W))) + x

sign takes 0 to +1, spelled `where(sign == 0, 1, sign)`. Stages are joined by a max pool, a fixed blur of stride 2 and a
float 1x1 convolution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from zoo.base import Network, Tensor, images


class SteSign(torch.autograd.Function):
    """sign with 0 to +1 and the gradient of a clip."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        sign = torch.sign(x)
        return torch.where(sign == 0, torch.tensor(1.0, device=x.device), sign)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1)


class QConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        top, left = self.padding
        padded = functional.pad(SteSign.apply(x), (left, left, top, top), mode="constant", value=1.0)
        return functional.conv2d(padded, SteSign.apply(self.weight), None, self.stride, 0)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = QConv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(functional.relu(self.conv(x))) + x


class Blur(nn.Module):
    """A depthwise convolution with a fixed triangle, of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", (line[:, None] * line).expand(channels, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.kernel, stride=2, padding=1, groups=x.shape[1])


def transition(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.ReLU(),
        nn.MaxPool2d(3, stride=1, padding=1),
        Blur(inputs),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(outputs),
    )


class QuickNet(nn.Module):
    """Four sections of four blocks; widths 64, 128, 256, 512 are 20, 40, 64, 96 here."""

    widths = (20, 40, 64, 96)

    def __init__(self) -> None:
        super().__init__()
        first = self.widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, first, 1, bias=False),
            nn.ReLU(),
            nn.BatchNorm2d(first),
        )
        layers: list[nn.Module] = []
        inputs = first
        for outputs in self.widths:
            if outputs != inputs:
                layers.append(transition(inputs, outputs))
            layers += [Block(outputs) for _ in range(4)]
            inputs = outputs
        self.sections = nn.Sequential(*layers, nn.ReLU())
        self.classifier = nn.Linear(inputs, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.sections(self.stem(image)).mean((2, 3)))


NETWORK = Network(
    "QuickNet", QuickNet, "Bannink et al. 2021, arXiv:2011.09398", binary=16, inputs=images(3, 32), stem_norms=3
)
