"""Float networks trained as binary ones: what each piece of the training brings, and what recipes come to.

\b
    python benchmarks/fine_tuning.py                                    # everything; half a day on one core
    python benchmarks/fine_tuning.py --only fashion --models trained    # an hour; goes on where it was ended
    python benchmarks/fine_tuning.py --only fashion --models trained --write

Images are those of the corpus (see corpus_data.py); the float networks are trained here too, once. Whatever was chosen,
numbers of epochs and learning rates, was chosen on the last training images, which no network of this page is trained
on; test images are looked at by the measurement alone. `--write` puts the sections that were run into
docs/fine_tuning.json and makes docs/fine_tuning.md of all that is in it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean, stdev
from types import MappingProxyType

import corpus_data
import float_networks
import numpy as np
import onnx
import torch
from float_networks import Schooling
from process import progress
from script import Json, Page, Run, Section
from tables import Row, Table

from binarize_onnx import Config, convert
from binarize_onnx.quantize.plan import Settings
from binarize_onnx.quantize.scoring import Judge, Labelled
from binarize_onnx.train import recipes
from binarize_onnx.train.augment import Augmentation
from binarize_onnx.train.curve import Epoch
from binarize_onnx.train.finetune import finetune
from binarize_onnx.train.recipes import Losses, Recipe

HELD_BACK = 10000  # training images, the last in a random order, that nothing is trained on
FITTED = 1000  # images that layers are quantized on without training


@dataclass(frozen=True)
class Task:
    """A float network, and the images that it and what is made of it are trained and judged on.

    Attributes:
        name: of the files that are kept.
        training: with labels.
        judge: of the compiled networks.
        augmentation: of images in training.
    """

    name: str
    source: onnx.ModelProto
    training: Labelled
    judge: Judge
    augmentation: Augmentation | None = None


def accuracy(task: Task, model: onnx.ModelProto) -> float:
    """Of a compiled network in onnxruntime, with our kernels; in percent."""
    return task.judge.score(model, library=True).value


def quantized(task: Task, precision: str, seed: int) -> Json:
    """A network quantized after training: its accuracy and the seconds that took."""
    began = time.process_time()
    fitted = task.training.take(np.random.default_rng(seed).permutation(task.training.count)[:FITTED])
    config = Config(ptq=precision, ptq_settings=Settings(seed=seed))
    model = convert(task.source, config, calibration_data=fitted.inputs).model
    seconds = time.process_time() - began
    return {"accuracy": accuracy(task, model), "seconds": seconds}


def tuned(run: Run, task: Task, recipe: Recipe, name: str, precision: str, seed: int) -> Json:
    """A network trained by `finetune`: its accuracy, and the seconds of a processor that its training took.

    With a folder it is trained once, and goes on from where it was ended; only what was trained in one go has seconds.
    """
    folder = None if run.models is None else run.models / f"{task.name}.{name}.{precision}.{seed}"
    resumed = folder is not None and folder.exists()
    taken: list[float] = []

    def train() -> onnx.ModelProto:
        began = time.process_time()
        done = finetune(
            task.source,
            task.training,
            recipe,
            precision=precision,
            augmentation=task.augmentation,
            seed=seed,
            checkpoint=folder,
            log=_told,
        )
        taken.append(time.process_time() - began)
        if folder is not None:
            (folder / "seconds.json").write_text(json.dumps(None if resumed else taken[0]))
        return done.result.model

    model = train() if folder is None else replace(run, models=folder).kept("compiled", train)
    seconds = taken[0] if folder is None else json.loads((folder / "seconds.json").read_text())
    return {"accuracy": accuracy(task, model), "seconds": seconds}


def _told(epoch: Epoch) -> None:
    progress(f"    epoch {epoch.epoch} of {epoch.epochs}: loss {epoch.loss:.4f}, {epoch.seconds:.0f} s")


# --- Fashion-MNIST: what each piece brings -----------------------------------------------------------------------

FASHION_WIDTH = 64  # channels of the convolutions inside
FASHION_FLOAT = Schooling(epochs=6)
FASHION_EPOCHS = 4  # of each training
PLAIN = Recipe(
    estimator="clip",
    threshold="zero",
    rectifier="hardtanh",
    shortcuts=False,
    stages=(recipes.Stage(FASHION_EPOCHS),),
    losses=Losses(distributional=1.0),
)
RUNGS: Mapping[str, Recipe] = MappingProxyType(
    {
        "distillation": PLAIN,
        "react2step": recipes.named("react2step").with_epochs(FASHION_EPOCHS),
        "react2step+cmim": recipes.named("react2step+cmim").with_epochs(FASHION_EPOCHS),
    }
)


def fashion(run: Run) -> Json:
    """A small CNN, all its inner layers in w1a1: quantized, distilled, with ReActNet's pieces, with CMIM."""
    task = fashion_task(run, corpus_data.fashion("test", np.arange(corpus_data.FASHION_TEST)))
    rungs: dict[str, list[Json]] = {"quantized": [], **{name: [] for name in RUNGS}}
    for seed in range(run.seeds):
        progress(f"  quantized, seed {seed}")
        rungs["quantized"].append(quantized(task, "w1a1", seed))
        for name, recipe in RUNGS.items():
            progress(f"  {name}, seed {seed}")
            rungs[name].append(tuned(run, task, recipe, name, "w1a1", seed))
    return {
        "float": task.judge.reference.value,
        "float_epochs": FASHION_FLOAT.epochs,
        "images": task.training.count,
        "epochs": FASHION_EPOCHS,
        "rungs": rungs,
    }


def fashion_task(run: Run, judged: Labelled) -> Task:
    """Fashion-MNIST, judged on these images."""
    training = corpus_data.fashion("train", training_order(corpus_data.FASHION_TRAIN)[:-HELD_BACK])
    module = partial(float_networks.fashion, FASHION_WIDTH)
    return _task(run, "fashion", module, training, judged, FASHION_FLOAT)


def training_order(count: int) -> corpus_data.Indices:
    """The training images in the order whose end is held back."""
    order: corpus_data.Indices = np.random.RandomState(0).permutation(count)  # the same in every version of NumPy
    return order


def _task(
    run: Run,
    name: str,
    module: Callable[[], torch.nn.Module],
    training: Labelled,
    judged: Labelled,
    schooling: Schooling,
    augmentation: Augmentation | None = None,
) -> Task:
    """A float network, trained if it is not kept."""

    def train() -> onnx.ModelProto:
        progress("  the float network")
        torch.manual_seed(0)
        return float_networks.trained(module(), training, schooling, seed=0)

    source = run.kept(name, train)
    return Task(name, source, training, Judge(source, judged), augmentation)


# --- CIFAR-10: recipes side by side ------------------------------------------------------------------------------

CIFAR_WIDTH = 8  # channels of the first layer; ResNet-20 has 16
CIFAR_FLOAT = Schooling(epochs=12, weight_decay=1e-4, augmentation=Augmentation(flip=True))
CIFAR_EPOCHS = 12  # of each training
W1A1 = ("irnet", "recu", "reste", "siman", "react2step", "react2step+cmim")
SEVERAL_BITS = ("w1a2", "w1a4", "w2a4")  # with lsq


def cifar(run: Run) -> Json:
    """ResNet-20 of half the width: recipes side by side, and activations of several bits, one training each."""
    task = cifar_task(run, corpus_data.cifar().test(0, 10000))
    found = []
    for name, precision in [*((name, "w1a1") for name in W1A1), *(("lsq", several) for several in SEVERAL_BITS)]:
        progress(f"  {name} in {precision}")
        recipe = recipes.named(name).with_epochs(CIFAR_EPOCHS)
        found.append({"recipe": name, "precision": precision, **tuned(run, task, recipe, name, precision, 0)})
    return {
        "float": task.judge.reference.value,
        "float_epochs": CIFAR_FLOAT.epochs,
        "images": task.training.count,
        "width": CIFAR_WIDTH,
        "epochs": CIFAR_EPOCHS,
        "trained": found,
    }


def cifar_task(run: Run, judged: Labelled) -> Task:
    """CIFAR-10, judged on these images."""
    order = training_order(corpus_data.CIFAR_TRAIN)[:-HELD_BACK]
    drawn = corpus_data.cifar().take(order)
    training = Labelled({"x": drawn.inputs["input"]}, drawn.labels)
    judged = Labelled({"x": judged.inputs["input"]}, judged.labels)
    module = partial(float_networks.resnet20, CIFAR_WIDTH)
    return _task(run, "cifar", module, training, judged, CIFAR_FLOAT, CIFAR_FLOAT.augmentation)


# --- What the papers' budgets would cost ---------------------------------------------------------------------------

# Epochs of the papers, or of the code beside them; ReActNet trains 128 with real weights and 128 with binary ones.
PAPERS = MappingProxyType({"irnet": 400, "recu": 600, "reste": 1000, "siman": 400, "react2step+cmim": 256, "lsq": 90})
COST_WIDTH = 16  # of ResNet-20, as in the papers
COST_STEPS = 5
COST_IMAGES = 50000  # in an epoch


def cost(run: Run) -> Json:
    """How long an epoch of CIFAR-10 takes, from some steps of ResNet-20 on noise."""
    del run  # no chance has a part in it
    random = np.random.default_rng(0)
    count = COST_STEPS * float_networks.BATCH
    samples = Labelled({"x": random.standard_normal((count, 3, 32, 32), np.float32)}, random.integers(0, 10, count))
    torch.manual_seed(0)
    source = float_networks.exported(float_networks.resnet20(COST_WIDTH), samples)
    plain = Config(ptq_settings=Settings("sign", readout=False))  # where the training begins does not change its pace
    found = {}
    for name in PAPERS:
        progress(f"  {name}")
        recipe = recipes.named(name)
        ended: list[float] = []
        finetune(
            source,
            samples,
            recipe.with_epochs(len(recipe.stages) + 1),
            precision="w1a4" if name == "lsq" else "w1a1",
            config=plain,
            batch_size=float_networks.BATCH,
            augmentation=Augmentation(flip=True),
            log=lambda _: ended.append(time.process_time()),  # noqa: B023  # called before the next turn
        )
        found[name] = (ended[-1] - ended[-2]) / COST_STEPS
    return {"images": COST_IMAGES, "batch": float_networks.BATCH, "seconds_a_step": found}


# --- What is shown -----------------------------------------------------------------------------------------------

SHOWN = {
    "quantized": "quantized after training",
    "distillation": "plain signs, taught by the float network",
    "react2step": "ReActNet's pieces (`react2step`)",
    "react2step+cmim": "and CMIM (`react2step+cmim`)",
}


def _spread(values: Sequence[float]) -> str:
    """The mean, and the standard deviation of the seeds."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _seconds(trained: Sequence[Json]) -> str:
    """The mean of those that were measured."""
    measured = [one["seconds"] for one in trained if one["seconds"] is not None]
    return f"{mean(measured):.0f}" if measured else "–"


def _fashion(found: Json) -> Table:
    rows: list[Row] = [("float", f"{found['float']:.2f}", "–", "–")]
    for name, trained in found["rungs"].items():
        values = [one["accuracy"] for one in trained]
        rows.append((SHOWN[name], _spread(values), f"{found['float'] - mean(values):.2f}", _seconds(trained)))
    seeds = len(found["rungs"]["quantized"])
    over = f"the mean and standard deviation of {seeds} seeds" if seeds > 1 else "of one seed"
    meaning = (
        "A CNN of four convolutions and a linear layer; the three convolutions inside have binary weights and "
        f"activations (w1a1). The float network is trained once, for {found['float_epochs']} epochs of "
        f"{found['images']} images, every binary one for {found['epochs']} from it, without labels or augmentation. "
        f"Accuracy on 10000 test images in percent, of compiled networks in onnxruntime, {over}; points lost; seconds "
        "of one core, from the float file to the compiled one, of those that were trained in one go."
    )
    return Table("Fashion-MNIST, a ladder", meaning, ("", "accuracy, %", "lost", "s"), rows)


def _cifar(found: Json) -> Table:
    rows: list[Row] = [("float", f"{found['float']:.2f}", "–", "–")]
    for one in found["trained"]:
        lost = f"{found['float'] - one['accuracy']:.2f}"
        rows.append((f"{one['recipe']}, {one['precision']}", f"{one['accuracy']:.2f}", lost, _seconds([one])))
    meaning = (
        f"ResNet-20 with {found['width']} channels at first in place of 16, all convolutions but the first: one "
        f"training each of {found['epochs']} epochs of {found['images']} images, cropped and mirrored by chance, after "
        f"{found['float_epochs']} of the float network. Accuracy on 10000 test images in percent, of compiled networks "
        "in onnxruntime; points lost; seconds of one core."
    )
    return Table("CIFAR-10, recipes side by side", meaning, ("", "accuracy, %", "lost", "s"), rows)


def _cost(found: Json) -> Table:
    rows: list[Row] = []
    for name, seconds in found["seconds_a_step"].items():
        epoch = seconds * (found["images"] // found["batch"])
        days = epoch * PAPERS[name] / 86400
        rows.append((name, f"{1000 * seconds:.0f}", f"{epoch / 60:.1f}", str(PAPERS[name]), f"{days:.1f}"))
    meaning = (
        f"ResNet-20, all convolutions but the first in w1a1 (`lsq` in w1a4), batches of {found['batch']} on one core: "
        f"milliseconds a step, the teacher and augmentation among them; minutes for an epoch of {found['images']} "
        "images; the epochs that the recipe's paper trains for (ReActNet and LSQ on ImageNet, the others on CIFAR-10), "
        "and the days that so many would take."
    )
    header = ("recipe", "ms a step", "min an epoch", "paper's epochs", "days")
    return Table("What the papers' budgets would cost", meaning, header, rows)


PAGE = Page(
    "fine_tuning",
    {"fashion": Section(fashion, _fashion), "cifar": Section(cifar, _cifar), "cost": Section(cost, _cost)},
)
main = PAGE.command(__doc__, models="Keep what is trained here; what was ended goes on.")


if __name__ == "__main__":
    torch.set_num_threads(1)  # seconds are those of one core
    main()
