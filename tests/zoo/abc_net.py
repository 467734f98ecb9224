"""ABC-Net: a convolution as M weight bases times N activation bases, each pair a binary convolution of its own.

Lin et al. 2017, arXiv:1711.11294. Equation 3: B_m = sign(W - mean(W) + u_m std(W)); equation 4: alpha by least squares;
equation 9: h_v(x) = clip(x + v, 0, 1), A_n = 1 where h_v(x) >= 0.5, else -1; the layer is the sum over m and n of
alpha_m beta_n conv(B_m, A_n). Here M = N = 3 on a ResNet of two blocks; alpha is a parameter, as after training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.base import Network, images

M, N = 3, 3


class AbcConv(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.alpha = nn.Parameter(torch.tensor([0.5, 0.3, 0.2]))
        self.beta = nn.Parameter(torch.tensor([0.7, 0.4, 0.3]))
        self.v = nn.Parameter(torch.tensor([0.0, 0.5, 1.0]))

    def weight_basis(self, m: int) -> Tensor:
        u = -1 + 2 * m / (M - 1)
        w = self.weight
        basis = torch.sign(w - w.mean() + u * w.std())
        return basis.detach() - w.detach() + w

    def activation_basis(self, x: Tensor, n: int) -> Tensor:
        h = torch.clamp(x + self.v[n], 0.0, 1.0)
        hard = torch.where(h >= 0.5, torch.ones_like(h), -torch.ones_like(h))
        return hard.detach() - h.detach() + h

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor | None = None
        for n in range(N):
            a = self.activation_basis(x, n)
            approximated: Tensor | None = None
            for m in range(M):
                y = functional.conv2d(a, self.weight_basis(m), stride=self.stride, padding=1) * self.alpha[m]
                approximated = y if approximated is None else approximated + y
            assert approximated is not None
            out = self.beta[n] * approximated if out is None else out + self.beta[n] * approximated
        assert out is not None
        return out


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = AbcConv(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = AbcConv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class AbcNet(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.blocks = nn.Sequential(Block(24, 24, 1), Block(24, 40, 2))
        self.fc = nn.Linear(40, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(functional.relu(self.bn(self.conv(image))))
        return self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))


NETWORK = Network(
    "ABC-Net 3x3",
    AbcNet,
    "Lin et al. 2017, arXiv:1711.11294",
    binary=4 * M * N,
    inputs=images(3, 16),
    remark="one latent weight lies 6e-8 from where its basis changes sign; onnxruntime, which computes mean and "
    "deviation when it runs the file, and our folding, which adds in another order, put it on different sides",
)
