"""The training itself: stages, epochs, steps; where it stood is kept, and it goes on from there.

    stage   layers settled on some samples, a fresh optimiser, learning rate to zero
    step    loss, gradients, OvSW where the recipe has it, the optimiser, latent weights kept in bounds
    end     running statistics measured again, with weights as they will be exported

In several processes each computes its part of every batch, gradients are averaged, and one process writes.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from binarize_onnx import shapes
from binarize_onnx.calibration import feeds
from binarize_onnx.errors import ModelError, one_line
from binarize_onnx.passes.base import Array
from binarize_onnx.quantize.post_training import batch_size
from binarize_onnx.quantize.scoring import Judge, Labelled
from binarize_onnx.quantize.sites import Network
from binarize_onnx.train import checkpoint, mixed
from binarize_onnx.train.board import Board
from binarize_onnx.train.checkpoint import Folder, State
from binarize_onnx.train.curve import Epoch
from binarize_onnx.train.data import Batch, Source
from binarize_onnx.train.graph import LAYERS, MOMENTUM, GraphModule
from binarize_onnx.train.objective import Objective, Teacher
from binarize_onnx.train.ovsw import OvSW
from binarize_onnx.train.recipes import Recipe, Stage
from binarize_onnx.train.student import Student

SETTLED = 256  # samples that layers are settled on, or fewer: all their tensors are in memory at once
SETTLED_BYTES = 1 << 30
SAVE_SECONDS = 60.0  # between two checkpoints inside an epoch
SGD_MOMENTUM = 0.9


@dataclass
class Place:
    """How far a training is: `step` of `epoch` of `stage` comes next, all from 0."""

    stage: int = 0
    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Attributes:
        epochs: one after the other.
        metric: what `quality` is, as of an epoch.
        quality: of the student as it is left, on the validation samples; None without any, and in processes that do not
            write.
        reference: the float network's own.
    """

    epochs: list[Epoch]
    metric: str = ""
    quality: float | None = None
    reference: float | None = None


def train(
    network: Network,
    student: Student,
    data: Source,
    *,
    validation: Labelled | None = None,
    seed: int = 0,
    folder: Path | None = None,
    accelerator: Accelerator | None = None,
    lower: torch.dtype | None = None,
    tensorboard: Path | None = None,
    log: Callable[[Epoch], None] | None = None,
    save_seconds: float = SAVE_SECONDS,
) -> Trained:
    """Train a student by its recipe; it is left on the CPU.

    Args:
        network: the float network, which is the teacher.
        student: changed in place.
        data: what it is trained on.
        validation: what it is judged on after each epoch: by accuracy if there are labels, else by its agreement with
            the teacher.
        seed: of what is drawn by chance at the start of parts of the loss.
        folder: where checkpoints are kept, at the end of each epoch and in between; a folder that holds some is where
            the training goes on, with the same result bit for bit where arithmetic itself is so repeatable (one
            thread of a CPU is).
        accelerator: the device and the processes; None for those of the surroundings.
        lower: what float layers are computed in, in its steps (`mixed.dtype`); None is float32.
        tensorboard: a folder for its epochs, each written there once (`board.require` first).
        log: is told of each epoch.
        save_seconds: between checkpoints inside an epoch.

    Raises:
        ModelError: the data does not fit, or the training diverges: the step is named, and the first tensor that is
            NaN or infinite. The last checkpoint stays.
        UsageError: the recipe has nothing to learn from, or a folder belongs to another training.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        run = _Run(network, student, data, validation, accelerator or processes(), log or (lambda _: None))
        run.save_seconds, run.lower = save_seconds, lower
        identity = cache(partial(_identity, network, student, data, seed, lower))
        if folder is not None:
            with run.accelerator.main_process_first():  # the others find the folder begun
                kept = Folder(folder, identity(), writes=run.accelerator.is_main_process)
            run.keep(kept)
        if tensorboard is not None and run.accelerator.is_main_process:
            run.show(Board(tensorboard, identity()))
        try:
            run.all()
        finally:
            run.show(None)
        quality = run.quality()
        student.module.cpu()
        if run.judge is None:
            return Trained(run.epochs)
        return Trained(run.epochs, run.judge.metric, quality, run.judge.reference.value)


def processes() -> Accelerator:
    """The device, and the processes that `accelerate launch` or `torchrun` started."""
    from accelerate.utils import DistributedDataParallelKwargs

    # Without a GPU accelerate must be told, or each process would train on its own.
    on_cpus = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available()
    # Scales of binary weights, say, get no gradient while weights are real ones.
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)]
    # Comparisons with thresholds are those of the exported graph in float32 alone, so whatever the launcher says,
    # accelerate may not compute a whole module in fewer bits; `mixed` does so where no bit is decided.
    return Accelerator(cpu=on_cpus, mixed_precision="no", kwargs_handlers=handlers)


class _Run:
    """One training, from its beginning or a checkpoint to its end."""

    def __init__(
        self,
        network: Network,
        student: Student,
        data: Source,
        validation: Labelled | None,
        accelerator: Accelerator,
        told: Callable[[Epoch], None],
    ) -> None:
        self.accelerator, self._told, self.save_seconds = accelerator, told, SAVE_SECONDS
        self.lower: torch.dtype | None = None
        self.epochs: list[Epoch] = []
        self._network, self._student, self._data, self._recipe = network, student, data, student.recipe
        self.judge = None if validation is None else Judge(network.model, validation)
        device = accelerator.device
        student.module.to(device)
        some = self._tensors(Batch(data.some(sample_count(network.model)), None))[0]
        teacher = GraphModule(network.model).to(device)
        self._some, self._teacher = some, Teacher(teacher, _taught(teacher, self.judge, some), some)
        if data.labelled and self._teacher.classes is None:
            words = f"output `{self._teacher.output}` has no classes [samples, classes]:"
            raise ModelError(words, fix="leave the labels out, and the network learns from the float one.")
        if self._teacher.classes is not None:
            data.require_classes(self._teacher.classes)
        self._objective = Objective(student, self._teacher, data.labelled).to(device)
        self._wrapped = accelerator.prepare_model(self._objective)
        latents = [layer.latent for layer in student.layers.values()]
        self._ovsw = OvSW(latents).to(device) if self._recipe.ovsw else None
        self._place, self._sums = Place(), _Sums()
        self._optimizer = self._fresh_optimizer()
        self._folder: Folder | None = None
        self._board: Board | None = None
        self._saved = time.monotonic()
        self._per_step = _Pace()

    # --- The order of things -------------------------------------------------------------------------------------

    def all(self) -> None:
        """What is left to do."""
        stages = self._recipe.stages
        while self._place.stage < len(stages):
            self._stage(stages[self._place.stage])
        if self._place.stage == len(stages):
            self._enter(stages[-1], 1.0)
            refit(self._student, self._network, self._teacher_batches(), self.accelerator)
            self._place = Place(len(stages) + 1)
            self._save()
        self._enter(stages[-1], 1.0)
        self._student.module.eval()

    def _stage(self, stage: Stage) -> None:
        place, steps = self._place, self._data.steps
        self._enter(stage, (place.epoch * steps + place.step) / (stage.epochs * steps))
        if place.epoch == place.step == 0:
            self._student.settle(self._teacher.module, self._some)
            self._optimizer = self._fresh_optimizer()
        while place.epoch < stage.epochs:
            self._epoch(stage)
        self._place = Place(place.stage + 1)
        self._save()

    def _epoch(self, stage: Stage) -> None:
        place, steps = self._place, self._data.steps
        began, first = time.monotonic(), place.step
        self._objective.train()
        for batch in self._data.epoch(self._epochs_before(place.stage) + place.epoch, place.step):
            self._step(stage, batch)
            place.step += 1
            if time.monotonic() - self._saved >= self.save_seconds:
                self._save()
        self._per_step.add(time.monotonic() - began, steps - first)
        place.epoch, place.step = place.epoch + 1, 0
        for value in statistics(self._student, self._network):  # each process has those of its own samples
            value.copy_(self.accelerator.reduce(value, reduction="mean"))
        self._report(stage)
        self._sums = _Sums()
        if place.epoch < stage.epochs:
            self._save()

    def _step(self, stage: Stage, batch: Batch) -> None:
        place = self._place
        done = (place.epoch * self._data.steps + place.step) / (stage.epochs * self._data.steps)
        self._student.schedule.progress = done
        rate = learning_rate(self._recipe, done)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        inputs, labels = self._tensors(batch)
        self._optimizer.zero_grad(set_to_none=True)
        try:
            with self._mixed():
                output, features = self._teacher(inputs, self._objective.reads)
                loss, parts = self._wrapped(inputs, labels, output, features)
        except ValueError as error:  # a batch of one value a channel has no variance
            raise ModelError(f"a batch of {batch.count} samples: {one_line(error)}", fix="Give larger ones.") from None
        if not torch.isfinite(loss):
            raise self._diverged(self._culprit(inputs, parts))
        self.accelerator.backward(loss)
        if self._ovsw is not None:
            self._ovsw.mend()
        self._optimizer.step()
        for layer in self._student.layers.values():
            layer.bound()
        parameters = list(self._objective.parameters())
        if not torch.stack([torch.isfinite(p).all() for p in parameters]).all():
            raise self._diverged(self._odd_parameter())
        self._sums.add(loss, parts, rate)

    def _enter(self, stage: Stage, progress: float) -> None:
        self._student.schedule.binary_weights = stage.binary_weights
        self._student.schedule.progress = progress

    def _mixed(self) -> AbstractContextManager[None]:
        """In which student and teacher compute a step."""
        return mixed.float_layers_in(self.lower, self._student.module, self._teacher.module)

    def _epochs_before(self, stage: int) -> int:
        return sum(s.epochs for s in self._recipe.stages[:stage])

    def _teacher_batches(self) -> Iterator[dict[str, Tensor]]:
        for batch in self._data.epoch(self._epochs_before(len(self._recipe.stages))):
            yield self._tensors(batch)[0]

    def _tensors(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        device = self.accelerator.device
        labels = None if batch.labels is None else torch.from_numpy(batch.labels).to(device)
        return {n: torch.from_numpy(np.ascontiguousarray(v)).to(device) for n, v in batch.inputs.items()}, labels

    def _fresh_optimizer(self) -> torch.optim.Optimizer:
        stage = self._recipe.stages[min(self._place.stage, len(self._recipe.stages) - 1)]
        decayed = {id(p) for p in weights(self._student, self._network, latent=not stage.binary_weights)}
        every = [p for p in self._objective.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in every if id(p) in decayed], "weight_decay": stage.weight_decay},
            {"params": [p for p in every if id(p) not in decayed], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if self._recipe.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=self._recipe.learning_rate, momentum=SGD_MOMENTUM)
        return torch.optim.Adam(groups, lr=self._recipe.learning_rate)

    # --- What is said of it --------------------------------------------------------------------------------------

    def _report(self, stage: Stage) -> None:
        place, stages = self._place, self._recipe.stages
        done, total = self._epochs_before(place.stage) + place.epoch, self._epochs_before(len(stages))
        means = self._sums.means(self.accelerator)
        epoch = Epoch(
            stage=place.stage + 1,
            stages=len(stages),
            epoch=done,
            epochs=total,
            binary_weights=stage.binary_weights,
            loss=means.pop("loss"),
            parts=means,
            learning_rate=self._sums.rate,
            metric="" if self.judge is None else self.judge.metric,
            quality=self.quality(),
            seconds=self._per_step.seconds * self._data.steps,
            left=self._per_step.seconds * self._data.steps * (total - done),
        )
        self.epochs.append(epoch)
        if self._folder is not None:
            self._folder.log([e.to_json() for e in self.epochs])
        if self._board is not None:
            self._board.write(self.epochs)
        if self.accelerator.is_main_process:
            self._told(epoch)

    def show(self, board: Board | None) -> None:
        """Show all epochs, those so far and those to come, on a board, and no more on the one before."""
        if self._board is not None:
            self._board.close()
        self._board = board
        if board is not None:
            board.write(self.epochs)

    def quality(self) -> float | None:
        """Of the student on the validation samples; one process computes it."""
        if self.judge is None or not self.accelerator.is_main_process:
            return None
        value = self.judge.score_outputs(self._outputs(self.judge)).value
        return value if math.isfinite(value) else None

    def _outputs(self, judge: Judge) -> Array:
        module = self._student.module.eval()
        found = []
        for feed in feeds(self._network.model, judge.samples.inputs, batch_size(self._network.model)):
            with torch.no_grad():
                outputs, _ = module(self._tensors(Batch(dict(feed), None))[0])
            found.append(outputs[judge.output].cpu().numpy())
        return np.concatenate(found)

    # --- What goes wrong -----------------------------------------------------------------------------------------

    def _diverged(self, culprit: str) -> ModelError:
        place = self._place
        where = f"stage {place.stage + 1}, epoch {place.epoch + 1}, step {place.step + 1}"
        kept = "" if self._folder is None else f"; the checkpoint before that is in {self._folder.path}"
        return ModelError(f"the training diverged at {where}: {culprit}{kept}.", fix="Try a lower learning rate.")

    def _culprit(self, inputs: Mapping[str, Tensor], parts: Mapping[str, Tensor]) -> str:
        """The first tensor that is not finite: a parameter, what a node writes, or a part of the loss."""
        odd = self._odd_parameter()
        if odd:
            return odd
        module = self._student.module.train()
        with torch.no_grad(), self._mixed():
            _, kept = module(inputs, module.written)
        nodes = {name: node for node in self._network.model.graph.node for name in node.output}
        for name in module.written:
            if not torch.isfinite(kept[name]).all():
                return f"`{name}`, which node `{nodes[name].name}` ({nodes[name].op_type}) writes, is NaN or infinite"
        return f"the loss `{next((n for n, v in parts.items() if not torch.isfinite(v)), 'sum')}` is NaN or infinite"

    def _odd_parameter(self) -> str:
        """The first parameter that is not finite, in words; empty if there is none."""
        for name, layer in self._student.layers.items():
            for own, value in layer.named_parameters():
                if not torch.isfinite(value).all():
                    return f"`{own}` of layer `{name}` is NaN or infinite"
        module = self._student.module
        for name in module.constants():
            value = module.constant(name)
            if isinstance(value, nn.Parameter) and not torch.isfinite(value).all():
                return f"`{name}` is NaN or infinite"
        for own, value in self._objective.named_parameters():
            if not torch.isfinite(value).all():
                return f"parameter `{own}` is NaN or infinite"
        return ""

    # --- What is kept --------------------------------------------------------------------------------------------

    def keep(self, folder: Folder) -> None:
        """Keep checkpoints in a folder, and go on from the one that is there."""
        self._folder = folder
        state = folder.load()
        if state is None:
            return
        place, arrays = Place(**state.notes["place"]), state.arrays
        self._place = place
        self.epochs = [Epoch(**epoch) for epoch in state.notes["epochs"]]
        self._sums = _Sums(**state.notes["sums"])
        checkpoint.load_tensors("objective", self._objective, arrays)
        if self._ovsw is not None:
            checkpoint.load_tensors("ovsw", self._ovsw, arrays)
        if place.epoch or place.step:
            self._optimizer = self._fresh_optimizer()
            checkpoint.load_moments(self._optimizer, arrays)
        torch.set_rng_state(torch.from_numpy(arrays["generator"].copy()))

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self._folder is None or not self.accelerator.is_main_process:
            return
        arrays = checkpoint.tensors("objective", self._objective) | checkpoint.moments(self._optimizer)
        if self._ovsw is not None:
            arrays |= checkpoint.tensors("ovsw", self._ovsw)
        arrays["generator"] = torch.get_rng_state().numpy()
        notes = {
            "place": vars(self._place),
            "sums": self._sums.to_json(),
            "epochs": [epoch.to_json() for epoch in self.epochs],
        }
        self._folder.save(State(arrays, notes))


class _Sums:
    """The losses of an epoch so far, float64, and the last learning rate."""

    def __init__(self, sums: Mapping[str, float] | None = None, steps: int = 0, rate: float = 0.0) -> None:
        self._sums, self._steps, self.rate = dict(sums or {}), steps, rate

    def add(self, loss: Tensor, parts: Mapping[str, Tensor], rate: float) -> None:
        for name, value in {"loss": loss, **parts}.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach())
        self._steps += 1
        self.rate = rate

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Over steps and processes."""
        names = list(self._sums)
        values = torch.tensor([self._sums[n] / self._steps for n in names], dtype=torch.float32)
        found = accelerator.reduce(values.to(accelerator.device), reduction="mean").tolist()
        return dict(zip(names, found, strict=True))

    def to_json(self) -> dict[str, Any]:
        return {"sums": self._sums, "steps": self._steps, "rate": self.rate}


class _Pace:
    """Seconds a step, over what this process has done."""

    def __init__(self) -> None:
        self._seconds, self._steps = 0.0, 0

    def add(self, seconds: float, steps: int) -> None:
        self._seconds += seconds
        self._steps += steps

    @property
    def seconds(self) -> float:
        return self._seconds / max(self._steps, 1)


def sample_count(model: onnx.ModelProto) -> int:
    """How many samples a network is looked into with at once: their tensors together have `SETTLED_BYTES` at most."""
    numbers = sum(prod(shape[1:]) for shape in shapes.infer(model).stand_in.values())
    return max(8, min(SETTLED, SETTLED_BYTES // (4 * max(numbers, 1))))


def learning_rate(recipe: Recipe, done: float) -> float:
    """The learning rate where the part `done` of a stage is over: to zero, linearly or along a cosine."""
    share = 1 - done if recipe.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
    return recipe.learning_rate * share


def weights(student: Student, network: Network, *, latent: bool) -> list[nn.Parameter]:
    """The weights that decay: those of layers that stay float, and latent ones while they are used as real numbers.

    Never biases, slopes, thresholds, scales or shifts.
    """
    replaced = {name for layer in student.layers.values() for name in layer.site.writes}
    constants = {tensor.name for tensor in network.model.graph.initializer}
    found = [layer.latent for layer in student.layers.values()] if latent else []
    for node in network.model.graph.node:
        if node.op_type in LAYERS and replaced.isdisjoint(node.output) and node.input[1] in constants:
            value = student.module.constant(node.input[1])
            if isinstance(value, nn.Parameter):
                found.append(value)
    return found


def statistics(student: Student, network: Network) -> list[Tensor]:
    """The running means and variances of all normalisations; one that several share, so many times."""
    replaced = {name for layer in student.layers.values() for name in layer.site.writes}
    found: list[Tensor] = []
    for layer in student.layers.values():
        found += [layer.mean, layer.variance]
    for node in network.model.graph.node:
        if node.op_type == "BatchNormalization" and replaced.isdisjoint(node.output):
            found += [student.module.constant(name) for name in node.input[3:5]]
    return found


def refit(
    student: Student, network: Network, batches: Iterator[Mapping[str, Tensor]], accelerator: Accelerator
) -> None:
    """Measure running statistics again, as means over all batches, with everything else as it is."""
    found = statistics(student, network)
    values = list({id(value): value for value in found}.values())
    # From zero, a batch leaves this part of its own statistics; with several uses, of their mean.
    parts = [1 - (1 - MOMENTUM) ** sum(other is value for other in found) for value in values]
    sums = [torch.zeros_like(value, dtype=torch.float64) for value in values]
    count = 0
    for inputs in batches:
        for value in values:
            value.zero_()
        with torch.no_grad():
            student.module.train()(inputs)
        for total, value, part in zip(sums, values, parts, strict=True):
            total += value.double() / part
        count += 1
    for total, value in zip(sums, values, strict=True):
        value.copy_(accelerator.reduce(total / count, reduction="mean"))


def _identity(network: Network, student: Student, data: Source, seed: int, lower: torch.dtype | None) -> dict[str, Any]:
    """All that the result depends on, but for versions and processors."""
    return {
        "model": hashlib.sha256(network.model.SerializeToString(deterministic=True)).hexdigest(),
        "layers": list(student.layers),
        "recipe": asdict(student.recipe),
        "data": data.digest(),
        "seed": seed,
        "mixed precision": None if lower is None else str(lower),
    }


def _taught(module: GraphModule, judge: Judge | None, some: Mapping[str, Tensor]) -> str:
    """The output that is taught: the one that is judged, else the first that is [samples, classes], else the first."""
    if judge is not None:
        return judge.output
    with torch.no_grad():
        outputs, _ = module.eval()(some)
    found = (n for n, v in outputs.items() if v.dim() == 2 and v.shape[1] > 1 and v.is_floating_point())
    return str(next(found, module.outputs[0]))
