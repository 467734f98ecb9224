"""A keyword spotter: binary 1-D convolutions over time, dilated and grouped ones among them.

Qin et al. 2022, arXiv:2202.06483 (BiFSMN): memory blocks look back and forward in time and add to a float stream. The
sign is a plain one; a filter's scale is mean|w| over two axes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.base import BATCH, Feed, Network


class BinaryConv1d(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        soft = functional.hardtanh(x)
        x = torch.sign(x).detach() - soft.detach() + soft
        scale = torch.mean(torch.mean(abs(self.weight), dim=2, keepdim=True), dim=1, keepdim=True).detach()
        clipped = torch.clamp(self.weight, -1.0, 1.0)
        weight = (scale * torch.sign(self.weight)).detach() - clipped.detach() + clipped
        return functional.conv1d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class MemoryBlock(nn.Module):
    def __init__(self, width: int, dilation: int, groups: int) -> None:
        super().__init__()
        self.expand, self.norm1 = BinaryConv1d(width, 2 * width, 1), nn.BatchNorm1d(2 * width)
        self.memory = BinaryConv1d(
            2 * width, 2 * width, 5, padding=2 * dilation, dilation=dilation, groups=groups, bias=False
        )
        self.norm2 = nn.BatchNorm1d(2 * width)
        self.shrink, self.norm3 = BinaryConv1d(2 * width, width, 1, bias=False), nn.BatchNorm1d(width)
        self.act = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm1(self.expand(x))
        hidden = self.norm2(self.memory(hidden)) + hidden
        return self.act(self.norm3(self.shrink(hidden))) + x


class BiFsmn(nn.Module):
    def __init__(self, bands: int = 20, width: int = 28, words: int = 12) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv1d(bands, width, 5, stride=2, padding=2), nn.BatchNorm1d(width))
        self.blocks = nn.Sequential(MemoryBlock(width, 1, 1), MemoryBlock(width, 2, 1), MemoryBlock(width, 1, 2))
        self.fc = nn.Linear(width, words)

    def forward(self, spectrogram: Tensor) -> Tensor:
        return self.fc(self.blocks(self.front(spectrogram)).mean(dim=2))


def spectrograms(rng: np.random.Generator) -> Feed:
    """float32 [BATCH, 20 bands, 36 frames]."""
    return {"spectrogram": rng.normal(size=(BATCH, 20, 36)).astype(np.float32)}


NETWORK = Network("BiFSMN", BiFsmn, "Qin et al. 2022, arXiv:2202.06483", binary=9, inputs=spectrograms)
