"""E2FIF: super-resolution with a full-precision skip round every binary convolution, the upsampler's as well.

Song et al. 2022, arXiv:2207.06893. The body's convolutions keep their width; the tail's quadruples it, and its skip is
the input repeated four times. Weights as in Bi-Real: the sign scaled by mean|w|, with the clipped weight as residue;
the activation has the residue of the piecewise polynomial. PixelShuffle, then a float convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.base import Network, images

WIDTH = 20


class ApproxSign(nn.Module):
    """The sign with Bi-Real's polynomial behind it."""

    def forward(self, x: Tensor) -> Tensor:
        hard = torch.sign(x)
        low, middle, high = (x < -1).float(), (x < 0).float(), (x < 1).float()
        soft = -1 * low + (x * x + 2 * x) * (1 - low)
        soft = soft * middle + (-x * x + 2 * x) * (1 - middle)
        soft = soft * high + 1 * (1 - high)
        return hard.detach() - soft.detach() + soft


class BinaryConv(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        scale = torch.mean(
            torch.mean(torch.mean(abs(w), dim=3, keepdim=True), dim=2, keepdim=True), dim=1, keepdim=True
        )
        hard, soft = scale.detach() * torch.sign(w), torch.clamp(w, -1.0, 1.0)
        return functional.conv2d(x, hard.detach() - soft.detach() + soft, padding=1)


class SkippedConv(nn.Module):
    """x + BN(conv(sign(x))), the skip repeated where the convolution widens."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.repeat = outputs // inputs
        self.sign, self.conv, self.bn = ApproxSign(), BinaryConv(inputs, outputs), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.repeat == 1 else x.repeat(1, self.repeat, 1, 1)
        return self.bn(self.conv(self.sign(x))) + skip


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.act, self.conv2 = SkippedConv(WIDTH, WIDTH), nn.PReLU(WIDTH), SkippedConv(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.act(self.conv1(x))) + x


class E2fif(nn.Module):
    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.body = nn.Sequential(*(Block() for _ in range(blocks)), SkippedConv(WIDTH, WIDTH))
        self.tail = nn.Sequential(SkippedConv(WIDTH, 4 * WIDTH), nn.PixelShuffle(2), nn.Conv2d(WIDTH, 3, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        x = self.head(image)
        up = functional.interpolate(image, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.tail(self.body(x) + x) + up


NETWORK = Network("E2FIF", E2fif, "Song et al. 2022, arXiv:2207.06893", binary=8, inputs=images(3, 14), stem_norms=0)
