"""XNOR-Net++: behind every binary convolution one learned scale, the outer product of a vector for each of its axes.

Bulat and Tzimiropoulos 2019, arXiv:1909.13863, case 4 of section 3: Gamma = alpha [O] x beta [H] x gamma [W]. Weights
are plain signs; one parameter of the largest size serves every layer, sliced.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.base import Network, images


class XnorConv(nn.Module):
    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        super().__init__()
        self.stride, self.size = stride, size
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.alpha = nn.Parameter(torch.rand(outputs, 1, 1) + 0.5)
        self.beta = nn.Parameter(torch.rand(1, 32, 1) + 0.5)
        self.gamma = nn.Parameter(torch.rand(1, 1, 32) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        soft = functional.hardtanh(x)
        x = torch.sign(x).detach() - soft.detach() + soft
        clipped = functional.hardtanh(self.weight)
        weight = torch.sign(self.weight).detach() - clipped.detach() + clipped
        out = functional.conv2d(x, weight, stride=self.stride, padding=1)
        beta, gamma = self.beta[:, : out.shape[2], :], self.gamma[:, :, : out.shape[3]]
        return out.mul(self.alpha).mul(beta).mul(gamma)


class Block(nn.Module):
    """Batch norm, sign, convolution, PReLU, add."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1, self.act1 = nn.BatchNorm2d(inputs), XnorConv(inputs, outputs, size, stride), nn.PReLU()
        self.bn2, self.conv2, self.act2 = nn.BatchNorm2d(outputs), XnorConv(outputs, outputs, size), nn.PReLU()
        self.shortcut = nn.Sequential()
        if inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.conv1(self.bn1(x))) + self.shortcut(x)
        return self.act2(self.conv2(self.bn2(x))) + x


class XnorPlus(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.PReLU())
        self.blocks = nn.Sequential(Block(24, 24, 16, 1), Block(24, 40, 8, 2))
        self.fc = nn.Linear(40, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(image)).mean((2, 3)))


NETWORK = Network(
    "XNOR-Net++", XnorPlus, "Bulat and Tzimiropoulos 2019, arXiv:1909.13863", binary=4, inputs=images(3, 16)
)
