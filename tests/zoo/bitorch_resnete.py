"""BinaryResNetE as bitorch writes it: sign with its zero set to +1 by a Where, padding with -1, no scales.

Bethge et al. 2019, arXiv:1906.08637. Every 3x3 convolution has a shortcut of its own; downsampling goes by AvgPool and
a float 1x1 convolution. The straight-through estimator is an autograd function: the sign alone is in the graph.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.base import Network, images


class SignFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor, threshold: float) -> Tensor:
        signs = torch.sign(x)
        return torch.where(signs == 0, torch.tensor(1.0, device=x.device), signs)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class QConv2d(nn.Conv2d):
    """Pads by hand after the activation."""

    def forward(self, x: Tensor) -> Tensor:
        bits = SignFunction.apply(x, 1.3)
        bits = functional.pad(bits, (1, 1, 1, 1), mode="constant", value=-1)
        return functional.conv2d(
            bits, SignFunction.apply(self.weight, 1.3), self.bias, self.stride, 0, self.dilation, self.groups
        )


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            QConv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs)
        )
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(2, 2), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


class ResNetE(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (20, 36, 64), classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]))
        inputs, blocks = widths[0], []
        for outputs in widths:
            for place in range(3):
                blocks.append(Block(inputs, outputs, 2 if place == 0 and outputs != inputs else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.relu(self.blocks(self.stem(image)))
        return self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))


NETWORK = Network(
    "BinaryResNetE (bitorch)", ResNetE, "Bethge et al. 2019, arXiv:1906.08637", binary=9, inputs=images(3, 16)
)
