"""ReActNet-A: MobileNet's order of 3x3 and 1x1 convolutions, all of them binary, and channels doubled by Concat.

x = RPReLU(BN(conv3x3(RSign x)) + x)                     AvgPool of x where the convolution has stride 2
x = RPReLU(BN(conv1x1(RSign x)) + x)                     as many channels as before
x = RPReLU(Concat(BN(conv1x1(b)) + x, BN(conv1x1(b)) + x)),  b = RSign x        twice as many
"""

from __future__ import annotations

import torch
from torch import nn

from zoo.base import Network, Tensor, images
from zoo.bi_real_18 import BinaryActivation, HardBinaryConv
from zoo.reactnet_18 import LearnableBias, RPReLU


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.move1, self.move2 = LearnableBias(inputs), LearnableBias(inputs)
        self.activation = BinaryActivation()
        self.conv = HardBinaryConv(inputs, inputs, stride=stride)
        self.norm = nn.BatchNorm2d(inputs)
        self.pooling = nn.AvgPool2d(2, 2) if stride == 2 else None
        self.points = nn.ModuleList(HardBinaryConv(inputs, inputs, 1, padding=0) for _ in range(outputs // inputs))
        self.point_norms = nn.ModuleList(nn.BatchNorm2d(inputs) for _ in self.points)
        self.act1, self.act2 = RPReLU(inputs), RPReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv(self.activation(self.move1(x))))
        x = self.act1((x if self.pooling is None else self.pooling(x)) + out)
        bits = self.activation(self.move2(x))
        if len(self.points) == 1:
            out = self.point_norms[0](self.points[0](bits))
            out += x
            return self.act2(out)
        halves = [norm(conv(bits)) for conv, norm in zip(self.points, self.point_norms, strict=True)]
        for half in halves:
            half += x
        return self.act2(torch.cat(halves, dim=1))


class ReActNetA(nn.Module):
    """Thirteen blocks; widths 32, 64, 128 (twice), 256 (twice), 512 (six times), 1024 (twice), here 6 for each 32."""

    widths = (6, 12, 24, 24, 48, 48, 96, 96, 96, 96, 96, 96, 192, 192)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, self.widths[0], 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(self.widths[0])
        )
        self.blocks = nn.Sequential(
            *(
                Block(inputs, outputs, 2 if inputs != outputs and outputs != 2 * self.widths[0] else 1)
                for inputs, outputs in zip(self.widths, self.widths[1:], strict=False)
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(self.widths[-1], 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.pool(self.blocks(self.stem(image)))
        return self.classifier(x.view(x.size(0), -1))


NETWORK = Network("ReActNet-A", ReActNetA, "Liu et al. 2020, arXiv:2003.03488", binary=31, inputs=images(3, 32))
