"""DyBNN: a ReActNet whose thresholds are computed for every image, by two dense layers on its channel means.

Zhang et al. 2021, arXiv:2110.05185: DySign sign(x - tau(x)) and a PReLU with shifts of the same make. The
threshold is a tensor [N, C, 1, 1] of the graph.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.base import Network, images


class Shift(nn.Module):
    """A number for each image and channel: Linear, ReLU, Linear on the means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, channels // 4), nn.Linear(channels // 4, channels)

    def forward(self, x: Tensor) -> Tensor:
        means = functional.adaptive_avg_pool2d(x, 1).view(x.shape[0], x.shape[1])
        shift = self.fc2(functional.relu(self.fc1(means)))
        return shift.view(x.shape[0], x.shape[1], 1, 1)


class ApproxSign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        hard = torch.sign(x)
        low, middle, high = x < -1, x < 0, x < 1
        out = (-1) * low.type(torch.float32) + (x * x + 2 * x) * (1 - low.type(torch.float32))
        out = out * middle.type(torch.float32) + (-x * x + 2 * x) * (1 - middle.type(torch.float32))
        soft = out * high.type(torch.float32) + 1 * (1 - high.type(torch.float32))
        return hard.detach() - soft.detach() + soft


class DySign(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.tau, self.sign = Shift(channels), ApproxSign()

    def forward(self, x: Tensor) -> Tensor:
        return self.sign(x - self.tau(x))


class DyPReLU(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before, self.act, self.after = Shift(channels), nn.PReLU(channels), Shift(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x - self.before(x)) + self.after(x)


class BinaryConv(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.stride, self.padding, self.shape = stride, kernel // 2, (outputs, inputs, kernel, kernel)
        self.weights = nn.Parameter(torch.rand(outputs * inputs * kernel * kernel, 1) * 0.001)

    def forward(self, x: Tensor) -> Tensor:
        real = self.weights.view(self.shape)
        scale = torch.mean(
            torch.mean(torch.mean(abs(real), dim=3, keepdim=True), dim=2, keepdim=True), dim=1, keepdim=True
        )
        hard, soft = scale.detach() * torch.sign(real), torch.clamp(real, -1.0, 1.0)
        return functional.conv2d(x, hard.detach() - soft.detach() + soft, stride=self.stride, padding=self.padding)


class Block(nn.Module):
    """3x3 with a shortcut, then 1x1; where channels double, two 1x1 convolutions share the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.sign1, self.conv3, self.bn1 = DySign(inputs), BinaryConv(inputs, inputs, 3, stride), nn.BatchNorm2d(inputs)
        self.act1, self.sign2 = DyPReLU(inputs), DySign(inputs)
        self.stride = stride
        self.point = nn.ModuleList([BinaryConv(inputs, inputs, 1) for _ in range(outputs // inputs)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(inputs) for _ in range(outputs // inputs)])
        self.act2 = DyPReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.stride == 1 else functional.avg_pool2d(x, 2, 2)
        x = self.act1(self.bn1(self.conv3(self.sign1(x))) + shortcut)
        bits = self.sign2(x)
        parts = [norm(conv(bits)) + x for conv, norm in zip(self.point, self.norms, strict=True)]
        return self.act2(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))


class DyBnn(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 20, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(20)
        self.blocks = nn.Sequential(Block(20, 40, 1), Block(40, 40, 2), Block(40, 80, 1))
        self.fc = nn.Linear(80, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(self.bn(self.conv(image)))
        return self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))


NETWORK = Network("DyBNN", DyBnn, "Zhang et al. 2021, arXiv:2110.05185", binary=8, inputs=images(3, 24))
