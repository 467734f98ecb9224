"""Recipes: which pieces train a network together, and for how long; each is named after the paper that it follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from binarize_onnx.errors import UsageError
from binarize_onnx.quantize.activations import Levels
from binarize_onnx.quantize.precision import Precision
from binarize_onnx.quantize.sites import Site
from binarize_onnx.train import activations
from binarize_onnx.train.binarizers import BINARIZERS, Binarizer
from binarize_onnx.train.estimators import ESTIMATORS

Rectifier = Literal["relu", "rprelu", "hardtanh", "none"]
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
        standardise: whether the gradient of one-bit activations sees them in deviations of their sample (ReCU).
        rectifier: what a Relu around binary layers becomes: stays (`relu`), `rprelu` behind them, or, behind and in
            front of them, `hardtanh` or `none`: signs at zero tell nothing of values that are never negative.
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
    standardise: bool = False
    rectifier: Rectifier = "rprelu"
    shortcuts: bool = True
    stages: tuple[Stage, ...] = (Stage(2, False), Stage(4))
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
        if self.rectifier in ("hardtanh", "none"):
            threshold = torch.zeros(site.channels)  # those levels are of values that a Relu has cut
        if self.threshold == "dynamic":
            return activations.DynamicSign(site.channels, axis, estimator=estimator, threshold=threshold)
        if self.threshold == "zero":
            threshold = torch.zeros(site.channels)
        module = activations.BinaryActivation(
            site.channels, axis, estimator=estimator, threshold=threshold, standardise=self.standardise
        )
        module.threshold.requires_grad_(self.threshold == "learned")
        return module

    def binarizer_of(self, precision: Precision) -> type[Binarizer]:
        """The binarizer of a layer's weights: residual bases where the recipe's has not so many."""
        own = BINARIZERS[self.binarizer]
        return own if precision.bases <= own.most_bases else BINARIZERS["greedy"]

    def with_epochs(self, epochs: int) -> Recipe:
        """The recipe with another number of epochs in all, at least one a stage, divided among its stages as before.

        Raises:
            UsageError: there are more stages than epochs.
        """
        if epochs < len(self.stages):
            raise UsageError(f"{epochs} epochs for {len(self.stages)} stages;", fix="give each stage one at least.")
        total = sum(stage.epochs for stage in self.stages)
        shares = [max(1, round(epochs * stage.epochs / total)) for stage in self.stages]
        shares[-1] = max(1, epochs - sum(shares[:-1]))
        return replace(self, stages=tuple(replace(s, epochs=n) for s, n in zip(self.stages, shares, strict=True)))


_PAPERS = Losses(distributional=0.0, labels=1.0)
_SGD = Recipe(
    threshold="zero",
    rectifier="hardtanh",
    shortcuts=False,
    stages=(Stage(6, weight_decay=1e-4),),
    losses=_PAPERS,
    optimizer="sgd",
    learning_rate=0.1,
    decay="cosine",
)

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "react2step": Recipe(stages=(Stage(2, False, weight_decay=1e-5), Stage(4))),
        "bireal": Recipe(threshold="zero", rectifier="none", stages=(Stage(6),), losses=_PAPERS),
        "irnet": replace(_SGD, binarizer="irnet", estimator="ede"),
        "recu": replace(_SGD, binarizer="recu", standardise=True),
        "reste": replace(_SGD, binarizer="reste", estimator="reste"),
        "siman": replace(_SGD, binarizer="siman", threshold="mean", stages=(Stage(6),)),
        "xnor": replace(_SGD, binarizer="xnor", estimator="clip", optimizer="adam", learning_rate=2e-3),
        "lsq": Recipe(rectifier="relu", shortcuts=False, stages=(Stage(6),)),
    }
)


def _with(recipe: Recipe, **losses: Any) -> Recipe:
    return replace(recipe, losses=replace(recipe.losses, **losses))


ADDITIONS: Mapping[str, Callable[[Recipe], Recipe]] = MappingProxyType(
    {
        "distillation": lambda recipe: _with(recipe, distributional=1.0),
        "labels": lambda recipe: _with(recipe, labels=1.0),
        "attention": lambda recipe: _with(recipe, attention=1.0),
        "cmim": lambda recipe: _with(recipe, contrastive=0.1),
        "cmim-self": lambda recipe: _with(recipe, contrastive=0.1, contrastive_mode="self"),
        "ovsw": lambda recipe: replace(recipe, ovsw=True),
        "dysign": lambda recipe: replace(recipe, threshold="dynamic"),
        "shortcuts": lambda recipe: replace(recipe, shortcuts=True),
    }
)


def named(name: str) -> Recipe:
    """A recipe and what is added to it: `react2step`, `irnet+cmim`, `recu+distillation+ovsw`.

    Raises:
        UsageError: there is no such recipe or addition.
    """
    base, *additions = name.split("+")
    if base not in RECIPES:
        raise UsageError(f"there is no recipe {base!r};", fix=f"it is one of {', '.join(RECIPES)}.")
    recipe = RECIPES[base]
    for addition in additions:
        if addition not in ADDITIONS:
            raise UsageError(f"nothing named {addition!r} is added to a recipe;", fix=f"{', '.join(ADDITIONS)} can be.")
        recipe = ADDITIONS[addition](recipe)
    return recipe
