"""Train the demo network on Fashion-MNIST and export it as ordinary ONNX.

    python examples/train_demo.py --data fashion_mnist.npz --out binarize_onnx/data

Three runs follow one another, each starting from the weights of the one before:

1. the *float twin*: the topology below with ReLU for sign. The binary network is compared with it, and learns from it;
2. binary activations, real weights;
3. binary activations and binary weights; then the BatchNormalization statistics are refitted to the frozen ±1 weights.

A binary layer has no scale: the BatchNormalization behind it would divide the scale out again. The exported weights are
therefore exactly ±1. 0 counts as +1: the sign is ``Where(x >= 0, 1, -1)``, not the ONNX ``Sign``, where 0 stays 0.

The test images serve for the printed accuracies alone: nothing in this script is chosen by them.
It needs torch (and its ONNX exporter); the package does not.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import nn
from torch.nn import functional

Tensor = Any  # torch ships no complete annotations: mypy sees it as Any

BATCH = 128
LEARNING_RATE = 2e-3
MAX_SHIFT = 2  # pixels, augmentation
IMAGES_A_CLASS = 10  # in demo_images.npz


class Stage(Enum):
    """What of the inner layers is binary."""

    FLOAT = "float twin"
    BINARY_ACTIVATIONS = "binary activations, real weights"
    BINARY = "binary activations and weights"


class ApproxSign(torch.autograd.Function):  # type: ignore[misc]
    """sign(x) with 0 → +1; its gradient is that of Bi-Real Net's piecewise quadratic: 2 − 2|x| on [−1, 1]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return ±1."""
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Pass the gradient on near the threshold."""
        (x,) = ctx.saved_tensors
        return grad * (2 - 2 * x.abs()).clamp_(min=0)


class ClipSign(torch.autograd.Function):  # type: ignore[misc]
    """sign(w) with 0 → +1; the gradient passes straight through where |w| ≤ 1."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        """Return ±1."""
        ctx.save_for_backward(w)
        return torch.where(w >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Pass the gradient on inside the clip."""
        (w,) = ctx.saved_tensors
        return grad * (w.abs() <= 1)


class Activation(nn.Module):  # type: ignore[misc]
    """ReLU in the float twin, sign in the others."""

    stage = Stage.FLOAT

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        if self.stage is Stage.FLOAT:
            return functional.relu(x)
        if self.training:
            return ApproxSign.apply(x)
        return torch.where(x >= 0, 1.0, -1.0)  # exports as GreaterOrEqual, Where


class BinaryConv2d(nn.Conv2d):  # type: ignore[misc]
    """A convolution that takes the sign of its weights in ``Stage.BINARY``, and pads with real zeros."""

    stage = Stage.FLOAT

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        weight = ClipSign.apply(self.weight) if self.stage is Stage.BINARY else self.weight
        return functional.conv2d(x, weight, None, self.stride, self.padding)


class BinaryLinear(nn.Linear):  # type: ignore[misc]
    """A dense layer that takes the sign of its weights in ``Stage.BINARY``."""

    stage = Stage.FLOAT

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        weight = ClipSign.apply(self.weight) if self.stage is Stage.BINARY else self.weight
        return functional.linear(x, weight)


class DemoNet(nn.Module):  # type: ignore[misc]
    """Four binary layers between a float convolution and a float classifier.

    image [N,1,28,28]
      conv 1→32, BN                               float
      sign, binary conv 32→64, BN, max pool 2     → 14×14   only a sign reads the pool: it can be done on bits
      sign, binary conv 64→64, BN, max pool 2     → 7×7
      x + BN(binary conv 64→64(sign x)), PReLU              a Bi-Real shortcut: x stays float
      max pool 3/2                                → 3×3     again read by a sign alone
      sign, flatten, binary dense 576→64, BN, PReLU
      dense 64→10                                 float
    logits [N,10]
    """

    def __init__(self) -> None:
        """Build it with random weights."""
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32))
        self.layer1 = nn.Sequential(
            Activation(), BinaryConv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.MaxPool2d(2)
        )
        self.layer2 = nn.Sequential(
            Activation(), BinaryConv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.MaxPool2d(2)
        )
        self.branch3 = nn.Sequential(Activation(), BinaryConv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64))
        self.join3 = nn.Sequential(nn.PReLU(64), nn.MaxPool2d(3, 2))
        self.layer4 = nn.Sequential(
            Activation(), nn.Flatten(), BinaryLinear(576, 64, bias=False), nn.BatchNorm1d(64), nn.PReLU(64)
        )
        self.classifier = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        x = self.layer2(self.layer1(self.stem(image)))
        x = self.join3(x + self.branch3(x))
        return self.classifier(self.layer4(x))

    def set_stage(self, stage: Stage) -> None:
        """Say what of the inner layers is binary."""
        for module in self.modules():
            if isinstance(module, Activation | BinaryConv2d | BinaryLinear):
                module.stage = stage

    def freeze_weights(self) -> None:
        """Replace the trained weights of the binary layers by their signs, for good."""
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, BinaryConv2d | BinaryLinear):
                    module.weight.copy_(torch.where(module.weight >= 0, 1.0, -1.0))
        self.set_stage(Stage.BINARY_ACTIVATIONS)  # the weights are binary as they stand


@dataclass(frozen=True)
class Images:
    """Pictures [n,28,28] as uint8 and their labels [n]."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (image [b,1,28,28] in [0,1], label [b]) in order."""
        for start in range(0, len(self.labels), size):
            yield (
                torch.from_numpy(self.pixels[start : start + size, None].astype(np.float32) / 255),
                torch.from_numpy(self.labels[start : start + size].astype(np.int64)),
            )

    def shuffled(self, size: int, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield full batches in random order, each image shifted by up to ``MAX_SHIFT`` and mirrored half the time."""
        padded = np.pad(self.pixels, ((0, 0), (MAX_SHIFT, MAX_SHIFT), (MAX_SHIFT, MAX_SHIFT)))
        order = rng.permutation(len(self.labels))
        for start in range(0, len(order) - size + 1, size):
            pick = order[start : start + size]
            top, left = rng.integers(0, 2 * MAX_SHIFT + 1, (2, size, 1))
            rows, columns = top + np.arange(28), left + np.arange(28)
            mirrored = rng.random((size, 1)) < 0.5
            columns = np.where(mirrored, columns[:, ::-1], columns)
            pixels = padded[pick[:, None, None], rows[:, :, None], columns[:, None, :]]
            yield from Images(pixels, self.labels[pick]).batches(size)


def load(path: Path) -> tuple[Images, Images]:
    """Read the training and the test set."""
    with np.load(path, allow_pickle=False) as data:
        return Images(data["x_train"], data["y_train"]), Images(data["x_test"], data["y_test"])


def channels_last(x: Tensor) -> Tensor:
    """Lay an image batch or a network out as the CPU convolutions like it."""
    return x.to(memory_format=torch.channels_last)


def accuracy(net: DemoNet, images: Images) -> float:
    """Return the share of images whose largest logit is the label's."""
    net.eval()
    with torch.inference_mode():
        right = sum(int((net(channels_last(x)).argmax(1) == y).sum()) for x, y in images.batches(500))
    return right / len(images.labels)


def train(net: DemoNet, images: Images, *, epochs: int, rng: np.random.Generator, teacher: DemoNet | None) -> None:
    """Train with Adam, the rate falling linearly to 0; a teacher's probabilities weigh as much as the labels."""
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    steps = epochs * (len(images.labels) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for epoch in range(epochs):
        net.train()
        began, total, count = time.monotonic(), 0.0, 0
        for x, y in images.shuffled(BATCH, rng):
            x = channels_last(x)
            logits = net(x)
            loss = functional.cross_entropy(logits, y)
            if teacher is not None:
                with torch.no_grad():
                    taught = teacher(x).softmax(1)
                loss = (loss + functional.cross_entropy(logits, taught)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total, count = total + loss.item(), count + 1
        click.echo(f"  epoch {epoch + 1}/{epochs}: loss {total / count:.4f}, {time.monotonic() - began:.0f} s")


def refit_statistics(net: DemoNet, images: Images) -> None:
    """Replace every BatchNormalization's running mean and variance by the average over the training images."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # a plain average
    net.train()
    with torch.no_grad():
        for x, _ in images.batches(500):
            net(channels_last(x))
    net.eval()


def export(net: DemoNet, path: Path) -> None:
    """Write the network as a torch user would, BatchNormalization in evaluation mode and not fused into Conv."""
    net.eval()
    with warnings.catch_warnings():  # of the exporter: it calls itself legacy, and PRESERVE meant for training
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.to(memory_format=torch.contiguous_format),
            (torch.zeros(2, 1, 28, 28),),
            str(path),
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
            opset_version=17,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,  # EVAL would fuse Conv and BatchNormalization
        )
    model = onnx.load(path)
    model.ir_version = 8
    model.doc_string = "Binary demo network of binarize-onnx, trained on Fashion-MNIST (examples/train_demo.py)."
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def check_export(net: DemoNet, path: Path, images: Images) -> float:
    """Run the file in onnxruntime on the test images and return its accuracy.

    The two round the float layers differently, so a value next to 0 can take the other sign and move an image's logits;
    that is counted and printed. More than one changed prediction in a thousand is an error.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    right = moved = changed = 0
    net.eval()
    for x, y in images.batches(500):
        with torch.inference_mode():
            expected = net(x).numpy()
        (logits,) = session.run(["logits"], {"image": x.numpy()})
        moved += int((np.abs(logits - expected).max(1) > 1e-4).sum())
        changed += int((logits.argmax(1) != expected.argmax(1)).sum())
        right += int((logits.argmax(1) == y.numpy()).sum())
    click.echo(f"onnxruntime against torch: logits moved by over 1e-4 on {moved} images, predictions on {changed}")
    if changed > len(images.labels) // 1000:
        raise click.ClickException(f"{path}: onnxruntime and torch predict {changed} images differently")
    return right / len(images.labels)


def save_images(images: Images, path: Path) -> None:
    """Write the first ``IMAGES_A_CLASS`` test images of each class, in the order of the test set."""
    firsts = [np.flatnonzero(images.labels == label)[:IMAGES_A_CLASS] for label in range(10)]
    pick = np.sort(np.concatenate(firsts))
    np.savez_compressed(path, images=images.pixels[pick], labels=images.labels[pick])


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="fashion_mnist.npz with x_train, y_train, x_test, y_test (uint8).",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for demo.onnx and demo_images.npz.",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    nargs=3,
    default=(5, 4, 10),
    show_default=True,
    help="Epochs of the float twin, with binary activations, with binary weights too.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="CPU threads; another number sums in another order, and trains another network.",
)
def main(data: Path, out: Path, epochs: tuple[int, int, int], seed: int, threads: int) -> None:
    """Train the demo network and its float twin, report both accuracies, export the binary one."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    training, test = load(data)
    out.mkdir(parents=True, exist_ok=True)

    net, twin = channels_last(DemoNet()), channels_last(DemoNet())
    for stage, count in zip(Stage, epochs, strict=True):
        click.echo(stage.value)
        net.set_stage(stage)
        train(net, training, epochs=count, rng=rng, teacher=None if stage is Stage.FLOAT else twin)
        click.echo(f"  test accuracy {accuracy(net, test):.2%}")
        if stage is Stage.FLOAT:
            twin.load_state_dict(net.state_dict())
            twin.eval()

    net.freeze_weights()
    refit_statistics(net, training)
    path = out / "demo.onnx"
    export(net, path)
    save_images(test, out / "demo_images.npz")
    click.echo(f"float twin: {accuracy(twin, test):.2%} of {len(test.labels)} test images")
    click.echo(f"binary, torch: {accuracy(net, test):.2%}")
    click.echo(f"binary, {path}: {check_export(net, path, test):.2%}")


if __name__ == "__main__":
    main()
