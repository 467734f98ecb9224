"""BNN VGG-small: binary convolutions and binary dense layers, MaxPool between a convolution and its batch norm.

Courbariaux et al. 2016, arXiv:1602.02830 (the VGG for CIFAR-10 of its PyTorch code). Activations are
clipped by Hardtanh before their sign; the sign of weights and activations is a plain `sign()`. Biases are added after
the layer, expanded to its shape. Widths are not multiples of 32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.base import Network, images


class Binarize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0]


class BinaryConv(nn.Conv2d):
    """The first layer's input are real pixels: only its weights are binary."""

    def forward(self, x: Tensor) -> Tensor:
        if self.in_channels != 3:
            x = Binarize.apply(x)
        out = functional.conv2d(
            x, Binarize.apply(self.weight), None, self.stride, self.padding, self.dilation, self.groups
        )
        return out if self.bias is None else out + self.bias.view(1, -1, 1, 1).expand_as(out)


class BinaryLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        out = functional.linear(Binarize.apply(x), Binarize.apply(self.weight))
        return out if self.bias is None else out + self.bias.view(1, -1).expand_as(out)


class VggSmall(nn.Module):
    def __init__(self, width: int = 24, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for outputs, pool in ((1, False), (1, True), (2, False), (2, True), (3, False), (3, True)):
            layers.append(BinaryConv(inputs, outputs * width, 3, padding=1, bias=True))
            if pool:
                layers.append(nn.MaxPool2d(2, 2))
            layers += [nn.BatchNorm2d(outputs * width), nn.Hardtanh(inplace=True)]
            inputs = outputs * width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            BinaryLinear(inputs * 4 * 4, 80),
            nn.BatchNorm1d(80),
            nn.Hardtanh(inplace=True),
            BinaryLinear(80, 80),
            nn.BatchNorm1d(80),
            nn.Hardtanh(inplace=True),
            BinaryLinear(80, classes),
            nn.BatchNorm1d(classes),
            nn.LogSoftmax(dim=1),
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.features(image).flatten(1))


NETWORK = Network(
    "BNN VGG-small", VggSmall, "Courbariaux et al. 2016, arXiv:1602.02830", binary=8, inputs=images(3, 32)
)
