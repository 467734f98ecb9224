"""BinaryDenseNet: every layer signs the concatenation of all before it, after a batch norm of its own.

Bethge et al. 2019, arXiv:1906.08637. The straight-through estimator is an autograd function, so that its sign alone is
in the graph; split layers, ReLU and a float 1x1 convolution between the blocks. Growth 12 instead of 64.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.base import Network, images

GROWTH = 12


class Sign(torch.autograd.Function):
    """sign, +1 at zero; its gradient is cut off beyond 1."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0]


class BinaryConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(Sign.apply(x), Sign.apply(self.weight), None, self.stride, self.padding, self.dilation)


class DenseLayer(nn.Module):
    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = BinaryConv(channels, GROWTH, 3, padding=dilation, dilation=dilation, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(self.bn(x))], 1)


class BinaryDenseNet(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        channels, layers = 24, []
        for stage, (count, dilation) in enumerate(((3, 1), (3, 1), (3, 2))):
            for _ in range(count):
                layers.append(DenseLayer(channels, dilation))
                channels += GROWTH
            if stage < 2:
                layers += [
                    nn.BatchNorm2d(channels),
                    nn.MaxPool2d(2),
                    nn.ReLU(),
                    nn.Conv2d(channels, channels // 2, 1, bias=False),
                ]
                channels //= 2
        self.blocks = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.relu(self.bn(self.blocks(self.stem(image))))
        return self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))


NETWORK = Network(
    "BinaryDenseNet", BinaryDenseNet, "Bethge et al. 2019, arXiv:1906.08637", binary=9, inputs=images(3, 24)
)
