"""SiMaN on ResNet-18: activations are standardised per sample before their sign, weights are stored bits.

    y = conv(sign((x − mean_chw x) / std_chw x), 2 B − 1) * alpha

B is 1 where the magnitude of a standardised weight is above its filter's median: the sign of the weight plays no part,
so what is deployed is the buffer B. alpha is learned, behind the convolution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from zoo.base import Network, Tensor, images


class SignActivation(torch.autograd.Function):
    """sign with the gradient max(0, 2 − 2|x|)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * torch.clamp(2 - 2 * x.abs(), min=0)


class SiManConv(nn.Conv2d):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.alpha = nn.Parameter(torch.ones(outputs, 1, 1))
        self.register_buffer("B", torch.zeros_like(self.weight.data))

    def randomise(self, generator: torch.Generator) -> None:
        self.weight.data.normal_(0, 0.1, generator=generator)
        self.alpha.data.uniform_(0.02, 0.2, generator=generator)
        flat = self.weight.data.flatten(1)
        magnitude = ((flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)).abs()
        self.B.copy_((magnitude > magnitude.median(1, keepdim=True).values).float().view_as(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean([1, 2, 3], keepdim=True)
        standard = centred / torch.sqrt(centred.var([1, 2, 3], keepdim=True) + 1e-5)
        binary = 2 * self.B - 1
        bits = SignActivation.apply(standard)
        y = functional.conv2d(bits, binary, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return y * self.alpha


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = SiManConv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = SiManConv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1:
            self.shortcut = nn.Sequential(SiManConv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm1(self.conv1(x)) + self.shortcut(x)
        out = functional.hardtanh(out)
        if len(self.shortcut):
            return functional.hardtanh(self.norm2(self.conv2(out)) + out)
        return functional.hardtanh(self.norm2(self.conv2(out)) + x)


class SiMaN18(nn.Module):
    """Four stages of two blocks; widths 64, 128, 256, 512 are 20, 40, 64, 96 here. The 1x1 shortcuts are binary."""

    widths = (20, 40, 64, 96)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 20, 3, padding=1, bias=False), nn.BatchNorm2d(20)
        blocks, inputs = [], 20
        for stage, outputs in enumerate(self.widths):
            for number in range(2):
                blocks.append(Block(inputs, outputs, 2 if stage and not number else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm2 = nn.BatchNorm1d(inputs)
        self.classifier = nn.Linear(inputs, 10)

    def forward(self, image: Tensor) -> Tensor:
        out = self.blocks(functional.hardtanh(self.norm(self.conv(image))))
        out = functional.avg_pool2d(out, 2)
        return self.classifier(self.norm2(out.view(out.size(0), -1)))


NETWORK = Network("SiMaN-18", SiMaN18, "Lin et al. 2022, arXiv:2102.07981", binary=19, inputs=images(3, 16))
