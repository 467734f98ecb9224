"""Recipes: which pieces train a network together, and for how long; each is named after the paper that it follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

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
        threshold: of one-bit activations: `learned` (RSign), `zero`, `mean` of the sample (SiMaN) or `dynamic` (DySign).
        rprelu: whether a Relu behind a binary layer becomes an RPReLU.
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
