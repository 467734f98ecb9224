"""Binary segmentation: dilated convolutions in the encoder, transposed binary convolutions in the decoder.

Zhuang et al. 2019, arXiv:1811.10413 (group-wise binary segmentation), the dilated backbone; the decoder is that of
binary U-Nets: ConvTranspose of stride 2 with kernels 2, 3 (padding 1, output padding 1) and 4 (padding 1). A transposed
weight is [inputs, outputs, kh, kw]: its scale is one number for each output channel, axis 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.base import Network, images


def binarize(x: Tensor) -> Tensor:
    """Ones and minus ones by comparison, with the clipped identity as residue."""
    hard = torch.where(x >= 0, torch.ones_like(x), -torch.ones_like(x))
    soft = torch.clamp(x, -1.0, 1.0)
    return hard.detach() - soft.detach() + soft


class BinaryConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.abs().mean((1, 2, 3), keepdim=True)
        weight = scale.detach() * binarize(self.weight)
        return functional.conv2d(binarize(x), weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class BinaryTransposed(nn.ConvTranspose2d):
    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        scale = self.weight.abs().mean((0, 2, 3), keepdim=True)
        weight = scale.detach() * torch.sign(self.weight)
        return functional.conv_transpose2d(
            binarize(x), weight, self.bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )


class Segmenter(nn.Module):
    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 20, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(20))
        self.down1 = BinaryConv(20, 36, 3, stride=2, padding=1, bias=False)
        self.down2 = BinaryConv(36, 48, 3, stride=2, padding=1, bias=False)
        self.wide = nn.ModuleList([BinaryConv(48, 48, 3, padding=d, dilation=d, bias=False) for d in (1, 2, 4)])
        self.up = nn.ModuleList(
            [
                BinaryTransposed(48, 36, 2, stride=2, bias=False),
                BinaryTransposed(36, 20, 3, stride=2, padding=1, output_padding=1, bias=False),
                BinaryTransposed(20, 16, 4, stride=2, padding=1),
            ]
        )
        self.down_norms = nn.ModuleList([nn.BatchNorm2d(36), nn.BatchNorm2d(48)])
        self.wide_norms = nn.ModuleList([nn.BatchNorm2d(48) for _ in range(3)])
        self.up_norms = nn.ModuleList([nn.BatchNorm2d(36), nn.BatchNorm2d(20), nn.BatchNorm2d(16)])
        self.head = nn.Conv2d(16, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        stem = self.stem(image)
        half = self.down_norms[0](self.down1(stem))
        x = self.down_norms[1](self.down2(half))
        for conv, norm in zip(self.wide, self.wide_norms, strict=True):
            x = norm(conv(x)) + x
        x = self.up_norms[0](self.up[0](x)) + half
        x = self.up_norms[1](self.up[1](x)) + stem
        return self.head(functional.relu(self.up_norms[2](self.up[2](x))))


NETWORK = Network("segmentation", Segmenter, "Zhuang et al. 2019, arXiv:1811.10413", binary=8, inputs=images(3, 32))
