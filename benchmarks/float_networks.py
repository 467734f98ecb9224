"""Float networks that the benchmark of fine-tuning trains itself, and exports as PyTorch does."""

from __future__ import annotations

import time
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise

import onnx
import torch
from process import progress
from torch import Tensor, nn

from binarize_onnx.quantize.scoring import Labelled
from binarize_onnx.train.augment import Augmentation
from binarize_onnx.train.data import source

BATCH = 128


@dataclass(frozen=True)
class Schooling:
    """How a float network is trained: Adam, its rate to zero linearly.

    Attributes:
        epochs: passes over the samples.
        learning_rate: at the beginning.
        weight_decay: of convolutions and linear layers.
        augmentation: of images.
    """

    epochs: int
    learning_rate: float = 4e-3
    weight_decay: float = 0.0
    augmentation: Augmentation | None = None


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> list[nn.Module]:
    """A convolution, its normalisation and a ReLU."""
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return [layer, nn.BatchNorm2d(outputs), nn.ReLU()]


def fashion(width: int) -> nn.Module:
    """Four convolutions and a linear layer, for images [1, 28, 28]."""
    return nn.Sequential(
        *conv(1, width // 2, 5, 2),
        *conv(width // 2, width),
        nn.MaxPool2d(2),
        *conv(width, width),
        *conv(width, width),
        nn.Flatten(),
        nn.Linear(width * 49, 10),
    )


class Block(nn.Module):
    """Two convolutions and a shortcut round both; where it grows, every second place and zeros behind (option A)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride = outputs // inputs
        first = conv(inputs, outputs, stride=self.stride)
        self.layers = nn.Sequential(*first, *conv(outputs, outputs)[:-1])
        self.zeros = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W]."""
        around = x[:, :, :: self.stride, :: self.stride]
        if self.zeros:
            around = nn.functional.pad(around, (0, 0, 0, 0, 0, self.zeros))
        return torch.relu(self.layers(x) + around)


def resnet20(width: int) -> nn.Module:
    """ResNet-20 (He, 2016), for images [3, 32, 32]; 16 channels at first in the paper."""
    widths = [width] * 4 + [2 * width] * 3 + [4 * width] * 3
    blocks = [Block(before, after) for before, after in pairwise(widths)]
    return nn.Sequential(*conv(3, width), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


def trained(module: nn.Module, samples: Labelled, schooling: Schooling, seed: int) -> onnx.ModelProto:
    """The module trained from the beginning, as ONNX: input `x`, output `y`, its normalisations as they are.

    Args:
        module: changed in place; its weights have been drawn.
        samples: with labels, their one input `x`.
        schooling: how.
        seed: of the order of the samples and their augmentation.
    """
    data = source(exported(module, samples), samples, batch_size=BATCH, seed=seed, augmentation=schooling.augmentation)
    module.to(memory_format=torch.channels_last)  # nearly twice as fast on a CPU
    layers = [p for p in module.parameters() if p.dim() > 1]
    others = [p for p in module.parameters() if p.dim() <= 1]
    groups = [{"params": layers, "weight_decay": schooling.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.Adam(groups, lr=schooling.learning_rate)
    steps = schooling.epochs * data.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    module.train()
    for epoch in range(schooling.epochs):
        began, total = time.monotonic(), 0.0
        for batch in data.epoch(epoch):
            images = torch.from_numpy(batch.inputs["x"]).contiguous(memory_format=torch.channels_last)
            loss = nn.functional.cross_entropy(module(images), torch.from_numpy(batch.labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        progress(f"    epoch {epoch + 1}: loss {total / data.steps:.4f}, {time.monotonic() - began:.0f} s")
    module.to(memory_format=torch.contiguous_format)
    return exported(module, samples)


def exported(module: nn.Module, samples: Labelled) -> onnx.ModelProto:
    """The module as ONNX, any number of samples."""
    stream = BytesIO()
    torch.onnx.export(
        module.eval(),
        (torch.from_numpy(samples.inputs["x"][:2]),),
        stream,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
        opset_version=17,
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,  # or normalisations are folded into the layers
        do_constant_folding=False,
    )
    return onnx.load_from_string(stream.getvalue())
