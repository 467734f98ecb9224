"""A binary ResNet whose float layers were quantised to int8 afterwards, QDQ, by onnxruntime's static quantization.

The stem, the 1x1 shortcuts and the classifier have QuantizeLinear and DequantizeLinear round them; the binary layers
were left out. Blocks are Bi-Real's (Liu et al. 2018, arXiv:1808.00278) with signs by comparison.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import onnxruntime.quantization as quantization
import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.base import Feed, Network, images


def sign(x: Tensor) -> Tensor:
    one = torch.tensor(1.0, dtype=x.dtype)
    return torch.where(x >= 0, one, -one)


class BinaryConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.abs().mean((1, 2, 3), keepdim=True)
        return functional.conv2d(sign(x), scale * sign(self.weight), None, self.stride, self.padding)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = BinaryConv(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(2), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + self.shortcut(x)


class BinaryResNet(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24))
        self.blocks = nn.Sequential(Block(24, 24, 1), Block(24, 24, 1), Block(24, 48, 2), Block(48, 48, 1))
        self.fc = nn.Linear(48, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.relu(self.blocks(self.stem(image)))
        return self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Samples(quantization.CalibrationDataReader):
    """The feed, once."""

    def __init__(self, feed: Feed) -> None:
        self.feeds = iter([feed])

    def get_next(self) -> Feed | None:
        return next(self.feeds, None)


def quantised(model: onnx.ModelProto, feed: Feed, nodes: list[str]) -> onnx.ModelProto:
    """The model with the nodes of those names in int8: symmetric, a scale for each tensor."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "quantised.onnx"
        quantization.quantize_static(
            model,
            file,
            Samples(feed),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QInt8,
            nodes_to_quantize=nodes,
            extra_options={"ActivationSymmetric": True},
        )
        return onnx.load(file)


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with a name for every node: the quantizer knows nodes by name."""
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    return model


def quantise_edges(model: onnx.ModelProto, feed: Feed) -> onnx.ModelProto:
    """The stem, the 1x1 convolutions and the classifier in int8."""
    layers = [node for node in named(model).graph.node if node.op_type in ("Conv", "Gemm")]
    shortcuts = [
        node for node in layers if any(a.name == "kernel_shape" and list(a.ints) == [1, 1] for a in node.attribute)
    ]
    return quantised(model, feed, [node.name for node in (layers[0], *shortcuts, layers[-1])])


NETWORK = Network(
    "binary ResNet, int8 edges",
    BinaryResNet,
    "Liu et al. 2018, arXiv:1808.00278",
    binary=4,
    inputs=images(3, 16),
    after=quantise_edges,
)
