"""What a network of the zoo is, and how it gets parameters like those of a trained one.

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
    """

    title: str
    build: Callable[[], nn.Module]
    paper: str
    binary: int
    inputs: Callable[[np.random.Generator], Feed]
    threshold: float = 0.0


BATCH = 2


def images(channels: int, size: int) -> Callable[[np.random.Generator], Feed]:
    """Inputs of a network that reads one image: `image`, float32 [BATCH, channels, size, size]."""

    def draw(rng: np.random.Generator) -> Feed:
        return {"image": rng.normal(size=(BATCH, channels, size, size)).astype(np.float32)}

    return draw


def planted(feed: Mapping[str, Array]) -> Feed:
    """The same inputs with zeros in them, of both signs: what `randomise` keeps quiet meets its signs' thresholds.

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


def randomise(module: nn.Module, inputs: Feed, seed: int = 0, threshold: float = 0.0) -> nn.Module:
    """Parameters that a trained network might have, in place; the module comes back in evaluation mode.

    Batch norms get random gammas, a quarter of them negative, and the statistics of `inputs`. Every fourth channel is
    quiet: its mean is 0 and its beta the threshold, so that a zero in front of it meets a sign exactly at that sign's
    threshold. So does every fourth bias of a layer. Slopes of PReLU are random, every fifth negative. A parameter
    `bias` or `shift` of no module of torch's own is random, and 0 in every fourth place; a parameter `weight` or
    `weights` of such a module is normal, with some values beyond ±1. A module with a method `randomise(generator)`
    does it itself, and its children are left to it.
    """
    generator = torch.Generator().manual_seed(seed)
    norms: list[nn.Module] = []
    _randomise(module, generator, threshold, norms)
    module.train()
    with torch.no_grad():
        module(*(torch.from_numpy(values) for values in inputs.values()))
    for norm in norms:
        quiet(norm.running_mean)
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
            quiet(module.bias, threshold)
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
