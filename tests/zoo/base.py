"""What a network of the zoo is, and parameters for it like those of a trained one.

A file of the zoo reads

    NETWORK = Network("Bi-Real-18", BiReal18, "Liu et al. 2018, arXiv:1808.00278", binary=16, inputs=images(3, 32))

Modules are written like the paper's code, in evaluation as in training: a straight-through estimator stays in the
graph as `hard.detach() - soft.detach() + soft`, weights are binarized in `forward`, scales computed from them there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

Array = npt.NDArray[Any]
Tensor = Any  # torch ships no complete annotations: mypy sees it as Any
Feed = dict[str, Array]


@dataclass(frozen=True)
class Network:
    """A network of the zoo.

    Attributes:
        title: the paper's name for it.
        build: makes the module, with whatever parameters; `randomise` gives it others.
        paper: authors, year, where.
        binary: layers (Conv, Linear, products of two activations) that the paper calls binary; a layer that the code
            evaluates twice counts twice.
        inputs: a batch of random inputs by name, in the order of `forward`; the first axis is the batch.
        threshold: where the activations' signs change.
        stem_norms: batch norms in front of the first sign.
        proto: writes the file node by node, where it comes from no PyTorch module; `build` is None then, and both
            exporters' columns are the same.
        remark: why a cell falls short, where that takes more than the cell itself can say.
        after: what a tool does to the exported file (quantization, float16), given some inputs.
    """

    title: str
    build: Callable[[], nn.Module] | None
    paper: str
    binary: int
    inputs: Callable[[np.random.Generator], Feed]
    threshold: float = 0.0
    stem_norms: int = 1
    proto: Callable[[], onnx.ModelProto] | None = None
    after: Callable[[onnx.ModelProto, Feed], onnx.ModelProto] | None = None
    remark: str = ""


BATCH = 2
STATISTICS = 12  # batches: enough for a variance where images have shrunk to one pixel


def images(channels: int, size: int) -> Callable[[np.random.Generator], Feed]:
    """Inputs of a network that reads one image: `image`, float32 [BATCH, channels, size, size]."""

    def draw(rng: np.random.Generator) -> Feed:
        return {"image": rng.normal(size=(BATCH, channels, size, size)).astype(np.float32)}

    return draw


def planted(feed: Mapping[str, Array]) -> Feed:
    """The same inputs with zeros in them, of both signs: what is quiet meets its sign's threshold.

    Of each float input the last sample becomes 0.0 and -0.0, and half of the last axis of the first one 0.0.
    """
    zeros: Feed = {}
    for name, values in feed.items():
        zeros[name] = values.copy()
        if np.issubdtype(values.dtype, np.floating):
            zeros[name][0, ..., : values.shape[-1] // 2] = 0.0
            zeros[name][-1] = 0.0
            zeros[name][-1, ..., ::2] = -0.0
    return zeros


def trained(network: Network, seed: int) -> nn.Module:
    """The network's module in evaluation mode, its parameters such as training might have left them.

    Batch norms have random gammas, a quarter of them negative, and the statistics of some inputs. In front of the first
    sign every fourth channel is quiet: mean 0, and beta the threshold, so that a zero meets that sign exactly at its
    threshold; so is every fourth bias of a layer. (Further in, a float convolution returns noise where the exact sum is
    0, and a quiet channel would leave the source's signs to that noise.) Slopes of PReLU are random, every fifth
    negative. A parameter `bias` or `shift` of no module of torch's own is random, and 0 in every fourth place; a
    parameter `weight` or `weights` of such a module is normal, with some values beyond ±1. A module with a method
    `randomise(generator)` does it itself, and its children are left to it.
    """
    assert network.build is not None
    module = network.build()
    norms: list[nn.Module] = []
    _randomise(module, torch.Generator().manual_seed(seed), network.threshold, norms)
    rng = np.random.default_rng(seed)
    batches = [list(network.inputs(rng).values()) for _ in range(STATISTICS)]
    module.train()
    with torch.no_grad():
        module(*(torch.from_numpy(np.concatenate(values)) for values in zip(*batches, strict=True)))
    for norm in norms[: network.stem_norms]:
        quiet(norm.running_mean)
        quiet(norm.bias, network.threshold)
    return module.eval()


def quiet(values: Tensor, value: float = 0.0) -> None:
    """Every fourth number becomes `value`, in place."""
    values.data.view(-1)[::4] = value


def _randomise(module: nn.Module, generator: torch.Generator, threshold: float, norms: list[nn.Module]) -> None:
    own = getattr(module, "randomise", None)
    if callable(own):
        own(generator)
        return
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.momentum = 1.0  # one batch sets the statistics
        if module.affine:
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.weight.data[3::4] *= -1
            module.bias.data.normal_(0, 0.3, generator=generator)
        norms.append(module)
    elif isinstance(module, nn.PReLU):
        module.weight.data.uniform_(0.05, 0.5, generator=generator)
        module.weight.data[4::5] *= -1
    else:
        torchs_own = type(module).__module__.startswith("torch.")
        for name, values in module.named_parameters(recurse=False):
            if name in ("bias", "shift"):
                values.data.normal_(0, 0.3, generator=generator)
                quiet(values, threshold if torchs_own else 0.0)
            elif name in ("weight", "weights"):
                values.data.normal_(0, values[0].numel() ** -0.5 if torchs_own else 0.5, generator=generator)
    for child in module.children():
        _randomise(child, generator, threshold, norms)
