"""MeliusNet-29: dense blocks that concatenate new channels, improvement blocks that add to the last ones.

Bethge et al. 2020, arXiv:2001.05936. The sign is PyTorch's with its zero replaced by a Where; no scale follows a
convolution, and pixels outside the image are -1. Growth 20 instead of 64, a quarter of the blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.base import Network, images

GROWTH = 20


def sign(x: Tensor) -> Tensor:
    s = torch.sign(x)
    return torch.where(s == 0, torch.tensor(1.0), s)


def binarize(x: Tensor, clip: float = 1.3) -> Tensor:
    """The sign, with the gradient of the clipped identity."""
    soft = x.clamp(-clip, clip)
    return sign(x).detach() - soft.detach() + soft


class BinaryConv(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(binarize(x), (1, 1, 1, 1), mode="constant", value=-1.0)
        return functional.conv2d(x, binarize(self.weight))


class DenseBlock(nn.Module):
    """GROWTH new channels behind those that are there."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.BatchNorm2d(channels), BinaryConv(channels, GROWTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], dim=1)


class ImprovementBlock(nn.Module):
    """A residual on the newest GROWTH channels alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.BatchNorm2d(channels), BinaryConv(channels, GROWTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :-GROWTH], x[:, -GROWTH:] + self.body(x)], dim=1)


class MeliusNet(nn.Module):
    def __init__(self, blocks: tuple[int, ...] = (1, 2, 2, 1), classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, groups=8, bias=False),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        channels, layers = 32, []
        for stage, count in enumerate(blocks):
            for _ in range(count):
                layers += [DenseBlock(channels), ImprovementBlock(channels + GROWTH)]
                channels += GROWTH
            if stage < len(blocks) - 1:
                halved = channels // 2
                layers += [
                    nn.BatchNorm2d(channels),
                    nn.MaxPool2d(2, stride=2),
                    nn.ReLU(),
                    nn.Conv2d(channels, halved, 1, bias=False),
                ]
                channels = halved
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(channels, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.head(self.blocks(self.stem(image))))


NETWORK = Network("MeliusNet-29", MeliusNet, "Bethge et al. 2020, arXiv:2001.05936", binary=12, inputs=images(3, 64))
