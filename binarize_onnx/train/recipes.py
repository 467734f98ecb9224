"""Recipes: which pieces train a network together, and for how long; each is named after the paper that it follows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import nn

from binarize_onnx.errors import UsageError
from binarize_onnx.quantize.activations import Levels
from binarize_onnx.quantize.precision import Precision
from binarize_onnx.quantize.sites import Site
from binarize_onnx.train import activations
from binarize_onnx.train.binarizers import BINARIZERS
from binarize_onnx.train.estimators import ESTIMATORS

Optimizer = Literal["adam", "sgd"]
Decay = Literal["linear", "cosine"]


@dataclass(frozen=True)
class Stage:
    """A stretch of training.

    Attributes:
        epochs: passes over the data.
        binary_weights: whether weights are binary, or real ones under binary activations.
        weight_decay: of all but latent binary weights, thresholds, slopes and normalisations.
    """

    epochs: int
    binary_weights: bool = True
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Losses:
    """The weights of the parts of the loss; 0 leaves one out.

    Attributes:
        distributional: cross entropy to the teacher's probabilities (ReActNet).
        labels: cross entropy to the labels; without labels it is left out.
        attention: of attention maps behind each binary layer to the teacher's (Real-to-Binary).
        contrastive: of the contrastive pile-up (CMIM).
        contrastive_mode: `self`, or `teacher`.
    """

    distributional: float = 1.0
    labels: float = 0.0
    attention: float = 0.0
    contrastive: float = 0.0
    contrastive_mode: Literal["self", "teacher"] = "teacher"


@dataclass(frozen=True)
class Recipe:
    """How a student is made and trained.

    Attributes:
        binarizer: of weights, one of BINARIZERS.
        estimator: of the gradient of signs, one of ESTIMATORS.
        threshold: of one-bit activations: `learned` (RSign), `zero`, `mean` (SiMaN) or `dynamic` (DySign).
        rprelu: whether a Relu behind a binary layer becomes an RPReLU.
        slope: of its left half, to begin with; 0 is the Relu.
        shortcuts: whether a binary layer without one gets a shortcut.
        stages: one after the other.
        losses: what is minimised.
        optimizer: `adam` or `sgd` (with momentum 0.9).
        learning_rate: at the beginning of each stage.
        decay: from there to zero, within each stage.
        ovsw: whether silent weights are woken (OvSW).
    """

    binarizer: str = "react"
    estimator: str = "approx"
    threshold: Literal["learned", "zero", "mean", "dynamic"] = "learned"
    rprelu: bool = True
    slope: float = 0.25
    shortcuts: bool = True
    stages: tuple[Stage, ...] = (Stage(1, False), Stage(2))
    losses: Losses = field(default_factory=Losses)
    optimizer: Optimizer = "adam"
    learning_rate: float = 2e-3
    decay: Decay = "linear"
    ovsw: bool = False

    def __post_init__(self) -> None:
        """Refuse names that no branch would notice."""
        for name, known in (("binarizer", BINARIZERS), ("estimator", ESTIMATORS)):
            if getattr(self, name) not in known:
                raise UsageError(f"{name} is {getattr(self, name)!r};", fix=f"it is one of {', '.join(known)}.")
        if not self.stages or any(stage.epochs < 1 for stage in self.stages):
            raise UsageError("a recipe without epochs trains nothing;", fix="give each stage one at least.")

    def activation(self, site: Site, precision: Precision, levels: Levels) -> nn.Module:
        """The activation in front of a layer, with the levels of post-training quantization to begin with."""
        axis = 1 if site.kind == "conv" else -1
        if precision.bits > 1:
            low, step = (torch.from_numpy(values).float() for values in (levels.low, levels.step))
            return activations.LevelActivation(site.channels, axis, precision.bits, low, step)
        estimator = ESTIMATORS[self.estimator]
        if self.threshold == "mean":
            return activations.SampleMeanSign(estimator=estimator)
        threshold = torch.from_numpy(np.ascontiguousarray(levels.threshold[0]))
        if self.threshold == "dynamic":
            return activations.DynamicSign(site.channels, axis, estimator=estimator, threshold=threshold)
        if self.threshold == "zero":
            threshold = torch.zeros(site.channels)
        module = activations.BinaryActivation(site.channels, axis, estimator=estimator, threshold=threshold)
        module.threshold.requires_grad_(self.threshold == "learned")
        return module
