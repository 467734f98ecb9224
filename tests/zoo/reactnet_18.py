"""ReActNet on Bi-Real's ResNet-18: a learned shift in front of every sign, RPReLU behind every shortcut.

x = RPReLU(BN(conv(sign(x + β), mean|W| sign W)) + x)        RPReLU(x) = PReLU(x + b1) + b2
"""

from __future__ import annotations

import torch
from torch import nn

from zoo.base import Network, Tensor, images
from zoo.bi_real_18 import BinaryActivation, BiReal18, HardBinaryConv, downsample


class LearnableBias(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias.expand_as(x)


class RPReLU(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before, self.prelu, self.behind = LearnableBias(channels), nn.PReLU(channels), LearnableBias(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.prelu(self.before(x)))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.move = LearnableBias(inputs)
        self.activation = BinaryActivation()
        self.conv = HardBinaryConv(inputs, outputs, stride=stride)
        self.norm = nn.BatchNorm2d(outputs)
        self.act = RPReLU(outputs)
        self.downsample = downsample(inputs, outputs) if stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.norm(self.conv(self.activation(self.move(x))))
        out += shortcut
        return self.act(out)


class ReActNet18(BiReal18):
    block = Block


NETWORK = Network("ReActNet-18", ReActNet18, "Liu et al. 2020, arXiv:2003.03488", binary=16, inputs=images(3, 32))
