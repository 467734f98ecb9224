"""ReCU ResNet-20: weights centred, divided by their deviation and clamped to a quantile before their sign.

Xu et al. 2021, arXiv:2103.12369. The scale mean|w| a filter, a vector [O, 1, 1], multiplies behind the convolution; the
activation is a plain sign, in training of the activation divided by its deviation. Hardtanh closes a block; shortcuts
take every second pixel and pad with zero channels (option A).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.base import Network, images


class BinaryQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.sign(x)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0]


class RectifiedConv(nn.Conv2d):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride, padding=1, bias=False)
        self.alpha = nn.Parameter(torch.rand(outputs, 1, 1) * 0.2 + 0.05)
        self.register_buffer("tau", torch.tensor(0.85))

    def forward(self, a: Tensor) -> Tensor:
        w = self.weight
        w0 = w - w.mean([1, 2, 3], keepdim=True)
        w1 = w0 / (torch.sqrt(w0.var([1, 2, 3], keepdim=True) + 1e-5) / 2 / math.sqrt(2))
        quantile = -w1.abs().mean([1, 2, 3], keepdim=True) * torch.log(2 - 2 * self.tau)
        w2 = torch.max(torch.min(w1, quantile), -quantile)
        a1 = a / torch.sqrt(a.var([1, 2, 3], keepdim=True) + 1e-5) if self.training else a
        out = functional.conv2d(BinaryQuantize.apply(a1), BinaryQuantize.apply(w2), None, self.stride, self.padding)
        return out * self.alpha


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = RectifiedConv(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = RectifiedConv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.stride, self.missing = stride, outputs - inputs

    def shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return x
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.missing // 2, self.missing - self.missing // 2))

    def forward(self, x: Tensor) -> Tensor:
        out = functional.hardtanh(self.bn1(self.conv1(x)) + self.shortcut(x))
        return functional.hardtanh(self.bn2(self.conv2(out)) + out)


class ReCu(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (12, 24, 40), classes: int = 10) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0])
        inputs, blocks = widths[0], []
        for outputs in widths:
            for place in range(3):
                blocks.append(Block(inputs, outputs, 2 if place == 0 and outputs != widths[0] else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.bn2, self.fc = nn.BatchNorm1d(inputs), nn.Linear(inputs, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(functional.hardtanh(self.bn(self.conv(image))))
        x = functional.avg_pool2d(x, x.shape[3])
        return self.fc(self.bn2(x.view(x.shape[0], -1)))


NETWORK = Network("ReCU ResNet-20", ReCu, "Xu et al. 2021, arXiv:2103.12369", binary=18, inputs=images(3, 16))
