"""BiMatting's building blocks: shrinkable and expandable binary blocks, and a decoder that works at two resolutions.

Li et al. 2023, NeurIPS. Weights are centred over the filter before their sign. A block that widens four times is four
1x1 convolutions on one sign, concatenated, with the input repeated as shortcut; one that narrows has the mean of the
input's two halves as shortcut. Average pooling rounds up (ceil_mode); the mask comes from bilinear upsampling.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.base import Network, images


class BinaryConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        soft = torch.clamp(x, -1.0, 1.0)
        bits = torch.sign(x).detach() + soft - soft.detach()
        centred = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        scale = centred.abs().mean(dim=(1, 2, 3), keepdim=True)
        clipped = torch.clamp(centred, -1.0, 1.0)
        weight = (scale * torch.sign(centred)).detach() + clipped - clipped.detach()
        return functional.conv2d(bits, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Spatial(nn.Module):
    """3x3 with a shortcut; AvgPool where it strides."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.conv = BinaryConv(channels, channels, 3, stride, padding=1, bias=False)
        self.bn, self.act = nn.BatchNorm2d(channels), nn.PReLU(channels)
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x + self.shift)) + self.pool(x))


class Expand(nn.Module):
    """Four 1x1 convolutions side by side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([BinaryConv(channels, channels, 1, bias=False) for _ in range(4)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([norm(conv(x)) + x for conv, norm in zip(self.convs, self.norms, strict=True)], dim=1)


class Shrink(nn.Module):
    """A 1x1 convolution to half the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.bn = BinaryConv(channels, channels // 2, 1, bias=False), nn.BatchNorm2d(channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        return self.bn(self.conv(x)) + (first + second) / 2


class BiMatting(nn.Module):
    def __init__(self, width: int = 20) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width))
        self.encoder = nn.Sequential(Spatial(width, 2), Expand(width), Shrink(4 * width), Spatial(2 * width))
        self.decoder = nn.Sequential(BinaryConv(3 * width + 3, width, 3, padding=1), nn.BatchNorm2d(width), nn.PReLU())
        self.mask = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        stem = self.stem(image)
        deep = self.encoder(stem)
        deep = functional.interpolate(deep, size=stem.shape[2:], mode="bilinear", align_corners=False)
        small = functional.avg_pool2d(image, 2, 2, ceil_mode=True, count_include_pad=False)
        x = self.decoder(torch.cat([deep, stem, small], dim=1))
        x = functional.interpolate(self.mask(x), size=image.shape[2:], mode="bilinear", align_corners=False)
        return torch.sigmoid(x)


NETWORK = Network("BiMatting", BiMatting, "Li et al. 2023, NeurIPS", binary=8, inputs=images(3, 22))
