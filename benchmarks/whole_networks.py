"""Whole image networks at their real size, with random weights: binary ones, and the float and int8 ones they race.

    python benchmarks/whole_networks.py bi-real-18 net.onnx

bi-real-18        Liu et al. 2018: ResNet-18 with sixteen binary 3x3 layers, each with a shortcut of its own
bi-real-18-prelu  the same with a PReLU behind every shortcut
reactnet-a        Liu et al. 2020: MobileNetV1's plan with binary 3x3 and 1x1 layers, RSign and RPReLU; 4.82 GMAC binary
w1a4-18           Bi-Real-18's plan with activations of four bits (DoReFa's form) in front of the binary weights
resnet-18, mobilenet-v1              float32, BatchNormalization folded into the weights as exporters do
resnet-18-int8, mobilenet-v1-int8    these two by onnxruntime's static quantization: QDQ, u8 and s8, per channel

Image [1, 3, 224, 224] in, 1000 classes out, opset 17. Weights are random, and the statistics of every
BatchNormalization are near those of the random tensors it sees: signs take both values, and nothing overflows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import onnx
from int8 import int8
from synthetic import Array, Network

IMAGE, CLASSES = 224, 1000
CALIBRATION_IMAGES = 8
WIDTHS_18 = (64, 128, 256, 512)  # of ResNet-18's stages
# Outputs and stride of MobileNet's blocks.
MOBILE = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)


class ImageNetwork(Network):
    """Adds layers whose outputs have a variance near 1 where their inputs have."""

    def per_channel(self, low: float, high: float, channels: int) -> str:
        """A constant [channels, 1, 1] of random values between the two."""
        return self.constant(self.rng.uniform(low, high, (channels, 1, 1)))

    def norm(self, x: str, channels: int, variance: float) -> str:
        """A BatchNormalization; `variance` is about that of x. A tenth of the factors is negative."""
        gamma = self.rng.uniform(0.6, 1.2, channels) * np.where(self.rng.random(channels) < 0.1, -1, 1)
        beta, mean = self.rng.normal(0, 0.2, channels), self.rng.normal(0, 0.2 * variance**0.5, channels)
        spread = variance * self.rng.uniform(0.7, 1.4, channels)
        return self.node("BatchNormalization", x, *(self.constant(p) for p in (gamma, beta, mean, spread)))

    def float_conv(self, x: str, shape: tuple[int, int, int], stride: int = 1) -> str:
        """A float convolution `(outputs, inputs, kernel)` with its normalization, which stays a node."""
        outputs, inputs, kernel = shape
        weights = self.real(outputs, inputs, kernel, kernel) * np.float32((inputs * kernel**2) ** -0.5)
        return self.norm(self.conv(x, self.constant(weights), kernel, stride), outputs, 1.0)

    def folded_conv(self, x: str, shape: tuple[int, int, int], stride: int = 1, group: int = 1, gain: float = 1) -> str:
        """A float convolution with a bias: what an exporter makes of it and its normalization."""
        outputs, inputs, kernel = shape
        scale = gain * (inputs // group * kernel**2) ** -0.5
        weights = self.constant(self.real(outputs, inputs // group, kernel, kernel) * np.float32(scale))
        bias = self.constant(self.rng.normal(0, 0.2, outputs))
        geometry = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4, "group": group}
        return self.node("Conv", x, weights, bias, **geometry)

    def binary_conv(self, bits: str, shape: tuple[int, int, int], stride: int = 1, power: float = 1.0) -> str:
        """A convolution with weights alpha * ±1 and its normalization; `power` is the mean square of what it reads."""
        outputs, inputs, kernel = shape
        real = self.real(outputs, inputs, kernel, kernel)
        alpha = np.abs(real).mean((1, 2, 3), keepdims=True)
        weights = self.constant(np.where(real < 0, -alpha, alpha))
        variance = float(alpha.mean()) ** 2 * power * inputs * kernel**2
        return self.norm(self.conv(bits, weights, kernel, stride), outputs, variance)

    def sign(self, x: str) -> str:
        """±1."""
        return self.node("Sign", x)

    def four_bits(self, x: str) -> str:
        """Round(Clip(x, 0, 1) * 15) / 15."""
        steps = self.constant(15)
        clipped = self.node("Clip", x, self.constant(0), self.constant(1))
        return self.node("Div", self.node("Round", self.node("Mul", clipped, steps)), steps)

    def prelu(self, x: str, channels: int) -> str:
        """A PReLU with a slope for each channel."""
        return self.node("PRelu", x, self.per_channel(0.05, 0.5, channels))

    def rprelu(self, x: str, channels: int) -> str:
        """PReLU between two learned shifts."""
        shifted = self.node("Add", x, self.per_channel(-0.2, 0.2, channels))
        return self.node("Add", self.prelu(shifted, channels), self.per_channel(-0.2, 0.2, channels))

    def average(self, x: str) -> str:
        """AveragePool of 2x2 by 2."""
        return self.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])

    def max_pool(self, x: str) -> str:
        """MaxPool of 3x3 by 2."""
        return self.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])

    def classified(self, x: str, channels: int) -> onnx.ModelProto:
        """The network, ended by global pooling and a dense layer."""
        flat = self.node("Flatten", self.node("GlobalAveragePool", x))
        weights = self.constant(self.real(CLASSES, channels) * np.float32(channels**-0.5))
        bias = self.constant(self.rng.normal(0, 0.1, CLASSES))
        return self.model(self.node("Gemm", flat, weights, bias, transB=1), 3, IMAGE)


def bi_real_18(prelu: bool = False) -> onnx.ModelProto:
    """Bi-Real-18: x = BN(conv(sign x)) + shortcut, with a PReLU behind it if wanted."""
    net = ImageNetwork()

    def block(x: str, inputs: int, outputs: int, stride: int) -> str:
        summed = net.node(
            "Add", net.binary_conv(net.sign(x), (outputs, inputs, 3), stride), _shortcut(net, x, inputs, outputs)
        )
        return net.prelu(summed, outputs) if prelu else summed

    return _eighteen(net, block)


def w1a4_18() -> onnx.ModelProto:
    """Bi-Real-18's plan with activations of four unsigned bits: x = BN(conv(round(15 clip(x)) / 15)) + shortcut."""
    net = ImageNetwork()

    def block(x: str, inputs: int, outputs: int, stride: int) -> str:
        convolved = net.binary_conv(net.four_bits(x), (outputs, inputs, 3), stride, power=0.3)
        return net.node("Add", convolved, _shortcut(net, x, inputs, outputs))

    return _eighteen(net, block)


def _shortcut(net: ImageNetwork, x: str, inputs: int, outputs: int) -> str:
    """x itself; where channels double and the image halves, a float 1x1 layer on its 2x2 averages."""
    return x if inputs == outputs else net.float_conv(net.average(x), (outputs, inputs, 1))


def _eighteen(net: ImageNetwork, block: Callable[[str, int, int, int], str]) -> onnx.ModelProto:
    """A float stem, four stages of four blocks `(x, inputs, outputs, stride)`, and a float dense layer."""
    x = net.max_pool(net.float_conv("x", (64, 3, 7), 2))
    inputs = 64
    for stage, outputs in enumerate(WIDTHS_18):
        for number in range(4):
            x = block(x, inputs, outputs, 2 if stage and not number else 1)
            inputs = outputs
    return net.classified(x, inputs)


def reactnet_a() -> onnx.ModelProto:
    """ReActNet-A: thirteen blocks of a binary 3x3 and a binary 1x1 layer; two of those side by side double channels."""
    net = ImageNetwork()
    x, inputs = net.float_conv("x", (32, 3, 3), 2), 32
    for outputs, stride in MOBILE:
        bits = net.sign(net.node("Add", x, net.per_channel(-0.2, 0.2, inputs)))
        spatial = net.binary_conv(bits, (inputs, inputs, 3), stride)
        x = net.rprelu(net.node("Add", spatial, net.average(x) if stride == 2 else x), inputs)
        bits = net.sign(net.node("Add", x, net.per_channel(-0.2, 0.2, inputs)))
        parts = [net.node("Add", net.binary_conv(bits, (inputs, inputs, 1)), x) for _ in range(outputs // inputs)]
        x = net.rprelu(parts[0] if len(parts) == 1 else net.node("Concat", *parts, axis=1), outputs)
        inputs = outputs
    return net.classified(x, inputs)


def resnet_18() -> onnx.ModelProto:
    """Float ResNet-18: eight blocks of two 3x3 layers, 1x1 layers of stride 2 where channels double."""
    net = ImageNetwork()
    x = net.max_pool(net.node("Relu", net.folded_conv("x", (64, 3, 7), 2)))
    inputs = 64
    for stage, outputs in enumerate(WIDTHS_18):
        for number in range(2):
            stride = 2 if stage and not number else 1
            y = net.node("Relu", net.folded_conv(x, (outputs, inputs, 3), stride))
            y = net.folded_conv(y, (outputs, outputs, 3))
            skip = x if inputs == outputs else net.folded_conv(x, (outputs, inputs, 1), stride)
            x = net.node("Relu", net.node("Add", y, skip))
            inputs = outputs
    return net.classified(x, inputs)


def mobilenet_v1() -> onnx.ModelProto:
    """Float MobileNetV1: thirteen blocks of a depthwise 3x3 and a 1x1 layer."""
    net = ImageNetwork()
    gain = 2**0.5  # a ReLU halves the power
    x, inputs = net.node("Relu", net.folded_conv("x", (32, 3, 3), 2)), 32
    for outputs, stride in MOBILE:
        depthwise = net.folded_conv(x, (inputs, inputs, 3), stride, group=inputs, gain=gain)
        x = net.node("Relu", net.folded_conv(net.node("Relu", depthwise), (outputs, inputs, 1), gain=gain))
        inputs = outputs
    return net.classified(x, inputs)


def images() -> Array:
    """What int8 is calibrated on: standard normal numbers, float32 [8, 3, 224, 224]."""
    return np.random.default_rng(1).standard_normal((CALIBRATION_IMAGES, 3, IMAGE, IMAGE), np.float32)


def quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    """The float network in int8, calibrated on those images."""
    return int8(model, (image[None] for image in images()))


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "bi-real-18": bi_real_18,
    "bi-real-18-prelu": lambda: bi_real_18(prelu=True),
    "reactnet-a": reactnet_a,
    "w1a4-18": w1a4_18,
    "resnet-18": resnet_18,
    "resnet-18-int8": lambda: quantized(resnet_18()),
    "mobilenet-v1": mobilenet_v1,
    "mobilenet-v1-int8": lambda: quantized(mobilenet_v1()),
}


@click.command(help=__doc__)
@click.argument("network", type=click.Choice(list(NETWORKS)))
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
def main(network: str, out: Path) -> None:
    """Write one network to a file."""
    onnx.save(NETWORKS[network](), out)


if __name__ == "__main__":
    main()
