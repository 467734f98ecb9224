"""XNOR-Net on AlexNet: BatchNormalization, sign, convolution, scaled by alpha and by the map K of its input; then pool.

    y = conv(sign(BN x), sign W) * K * alpha,   K = mean_c|BN x| averaged over each window,   alpha = mean|W|

Dense layers have one K a sample. The first convolution and the last dense layer are float.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from zoo.base import Network, Tensor, images


class BinActive(torch.autograd.Function):
    """sign with the gradient of a clip."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() < 1)


class XnorConv(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, padding: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs, eps=1e-4, momentum=0.1)
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        weight = self.conv.weight
        alpha = weight.abs().mean((1, 2, 3))
        window = torch.ones(1, 1, *self.conv.kernel_size) / (self.conv.kernel_size[0] * self.conv.kernel_size[1])
        k = functional.conv2d(x.abs().mean(1, keepdim=True), window, padding=self.conv.padding)
        y = functional.conv2d(BinActive.apply(x), BinActive.apply(weight), padding=self.conv.padding)
        return functional.relu(y * k * alpha.view(1, -1, 1, 1))


class XnorLinear(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(inputs, eps=1e-4, momentum=0.1)
        self.linear = nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        weight = self.linear.weight
        k = x.abs().mean(1, keepdim=True)
        y = functional.linear(BinActive.apply(x), BinActive.apply(weight))
        return functional.relu(y * k * weight.abs().mean(1))


class XnorAlexNet(nn.Module):
    """Widths 96, 256, 384, 384, 256, 4096, 4096 are 24, 40, 64, 64, 40, 128, 96 here; stride 4 of the stem is 2."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 24, 11, stride=2),
            nn.BatchNorm2d(24, eps=1e-5),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            XnorConv(24, 40, 5, 2),
            nn.MaxPool2d(3, 2),
            XnorConv(40, 64, 3, 1),
            XnorConv(64, 64, 3, 1),
            XnorConv(64, 40, 3, 1),
            nn.MaxPool2d(3, 2),
        )
        self.classifier = nn.Sequential(
            XnorLinear(40 * 2 * 2, 128),
            nn.Dropout(),
            XnorLinear(128, 96),
            nn.BatchNorm1d(96, eps=1e-3),
            nn.Dropout(),
            nn.Linear(96, 10),
        )

    def forward(self, image: Tensor) -> Tensor:
        x = self.features(image)
        return self.classifier(x.view(x.size(0), 40 * 2 * 2))


NETWORK = Network(
    "XNOR-Net (AlexNet)",
    XnorAlexNet,
    "Rastegari et al. 2016, arXiv:1603.05279",
    binary=6,
    inputs=images(3, 59),
    stem_norms=2,
)
