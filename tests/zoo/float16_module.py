"""A binary ResNet in float16, cast before it was exported: weights, batch norms and the stream between layers."""

from __future__ import annotations

import numpy as np
from torch import nn

from zoo.base import BATCH, Feed, Network
from zoo.int8_edges import BinaryResNet


def half() -> nn.Module:
    return BinaryResNet().half()


def half_images(rng: np.random.Generator) -> Feed:
    """float16 [BATCH, 3, 16, 16]."""
    return {"image": rng.normal(size=(BATCH, 3, 16, 16)).astype(np.float16)}


NETWORK = Network(
    "binary ResNet, float16 module",
    half,
    "Liu et al. 2018, arXiv:1808.00278",
    binary=4,
    inputs=half_images,
)
