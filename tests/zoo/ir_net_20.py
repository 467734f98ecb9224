"""IR-Net on ResNet-20: weights are centred and standardised before their sign, and scaled by a power of two.

    v = (W − mean W) / std W;   y = conv(sign x, sign v * 2^round(log2 mean|v|))

Mean, deviation and scale are per filter. Shortcuts take every second pixel and pad channels with zeros.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from zoo.base import Network, Tensor, images


class BinaryQuantize(torch.autograd.Function):
    """sign with the gradient of k tanh(t x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: Tensor, t: Tensor) -> Tensor:
        ctx.save_for_backward(x, k, t)
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, k, t = ctx.saved_tensors
        return k * t * (1 - torch.tanh(x * t) ** 2) * gradient, None, None


class IRConv2d(nn.Conv2d):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.k, self.t = torch.tensor([10.0]), torch.tensor([0.1])

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = w - w.view(w.size(0), -1).mean(-1).view(w.size(0), 1, 1, 1)
        w = w / w.view(w.size(0), -1).std(-1).view(w.size(0), 1, 1, 1)
        mean = w.abs().view(w.size(0), -1).mean(-1)
        scale = torch.pow(torch.tensor([2.0] * w.size(0)), (torch.log(mean) / math.log(2)).round().float())
        binary = BinaryQuantize.apply(w, self.k, self.t)
        bits = BinaryQuantize.apply(x, self.k, self.t)
        binary = binary * scale.view(w.size(0), 1, 1, 1).detach()
        return functional.conv2d(bits, binary, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = IRConv2d(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = IRConv2d(outputs, outputs), nn.BatchNorm2d(outputs)
        self.padding = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding)) if self.padding else x
        out = functional.hardtanh(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += shortcut
        return functional.hardtanh(out)


class IRNet20(nn.Module):
    """Three stages of three blocks, of widths 16, 32 and 64 as in the paper."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        blocks, inputs = [], 16
        for outputs, stride in ((16, 1), (32, 2), (64, 2)):
            for number in range(3):
                blocks.append(Block(inputs, outputs, 1 if number else stride))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm2 = nn.BatchNorm1d(64)
        self.classifier = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        out = self.blocks(functional.hardtanh(self.norm(self.conv(image))))
        out = functional.avg_pool2d(out, out.size()[3])
        return self.classifier(self.norm2(out.view(out.size(0), -1)))


NETWORK = Network("IR-Net-20", IRNet20, "Qin et al. 2020, arXiv:1909.10788", binary=18, inputs=images(3, 16))
