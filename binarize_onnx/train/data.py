"""What a network is trained on: samples in an order by chance that a seed settles, batch after batch.

A step's samples are the same whatever the number of processes: each takes its part of them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import onnx
import torch

from binarize_onnx.calibration import CalibrationData, require_finite
from binarize_onnx.errors import ModelError, UsageError
from binarize_onnx.images import ImageFolder, Images
from binarize_onnx.passes.base import Array
from binarize_onnx.quantize import scoring
from binarize_onnx.quantize.scoring import Labelled
from binarize_onnx.train.augment import Augmentation, Augmenter
from binarize_onnx.verify.data import fitting_labels, require_fitting
from binarize_onnx.verify.graphs import caller_inputs

IN_MEMORY = 1 << 30  # bytes of images that are read once and kept; more are read anew in every epoch
ORDER = 0  # the stream of random numbers of the order

TrainingData = CalibrationData | Labelled | Iterable[Any]  # the last: batches, as of a torch DataLoader


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples of one step, or a process's part of them.

    Attributes:
        inputs: [N, ...] by name.
        labels: class numbers, int64 [N], if there are any.
    """

    inputs: dict[str, Array]
    labels: Array | None

    @property
    def count(self) -> int:
        """N."""
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True)
class Share:
    """Which part of every step is this process's."""

    index: int = 0
    processes: int = 1

    def of(self, count: int) -> slice:
        """Its rows of so many samples; what cannot be divided is left out.

        Raises:
            ModelError: there are fewer samples than processes.
        """
        each = count // self.processes
        if not each:
            raise ModelError(f"a step has {count} samples for {self.processes} processes:", fix="give larger batches.")
        return slice(self.index * each, (self.index + 1) * each)


class Source(Protocol):
    """Samples, epoch after epoch."""

    steps: int  # in an epoch
    labelled: bool

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `first` on; the same for the same epoch."""

    def some(self, count: int) -> dict[str, Array]:
        """About so many samples, always the same, not augmented."""

    def require_classes(self, classes: int) -> None:
        """Refuse labels that the network's output has no class for.

        Raises:
            ModelError: there are some.
        """

    def digest(self) -> str:
        """A hash of what there is and how it is drawn, as far as it can be had without reading all that is on disk."""


def source(
    model: onnx.ModelProto,
    data: TrainingData,
    *,
    batch_size: int,
    seed: int = 0,
    augmentation: Augmentation | None = None,
    share: Share = Share(),
) -> Source:
    """Samples for the training of a model.

    Args:
        model: whose inputs they are for.
        data: a file, a folder of images, arrays by name (`labels` among them or not) or a CalibrationDataReader, as
            `convert --ptq` reads them; or batches that can be gone through more than once, as a torch DataLoader gives
            them: a tensor or tensors by name, alone or before labels. Those are as large as they come.
        batch_size: samples of a step, of all processes together.
        seed: of the order and the augmentation. torch's own generator, which a DataLoader shuffles by, is set by it at
            the beginning of each epoch.
        augmentation: of images; None leaves them as they are.
        share: which of the processes this is.

    Raises:
        ModelError: the data cannot be read or does not fit the model.
        UsageError: the data is no such thing, or nothing can be augmented.
    """
    if batch_size < 1:
        raise UsageError(f"a batch of {batch_size} samples;", fix="give a number from 1 on.")
    augmenter = None if augmentation is None else Augmenter(model, augmentation, seed)
    if _comes_in_batches(data):
        return Loader(model, data, seed, augmenter, share)  # type: ignore[arg-type]  # the line above is not seen through
    return Samples(labelled(model, data), batch_size, seed, augmenter, share)


def labelled(model: onnx.ModelProto, data: TrainingData) -> Labelled:
    """All samples, with their labels if they have any; see `source` for what they may be.

    Raises:
        ModelError: the data cannot be read or does not fit the model.
        UsageError: the data is no such thing.
    """
    if isinstance(data, Labelled):
        return data
    if not _comes_in_batches(data):
        return scoring.read(model, data)  # type: ignore[arg-type]  # the line above is not seen through
    batches = list(Loader(model, data, 0, None, Share()).epoch(0))  # type: ignore[arg-type]  # likewise
    inputs = {name: np.concatenate([batch.inputs[name] for batch in batches]) for name in batches[0].inputs}
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return Labelled(inputs, np.concatenate(labels) if labels else None)


def _comes_in_batches(data: TrainingData) -> bool:
    """Whether the data is the caller's own batches; what is no data at all is refused by what reads the others."""
    known = isinstance(data, (str, os.PathLike, Mapping, ImageFolder, Labelled)) or hasattr(data, "get_next")
    return not known and isinstance(data, Iterable)


class Samples:
    """Samples in reach one by one: each epoch has them all, but for a last batch that would not be full."""

    def __init__(
        self, samples: Labelled, batch_size: int, seed: int, augmenter: Augmenter | None, share: Share
    ) -> None:
        labels = None if samples.labels is None else fitting_labels(samples.labels, samples.count).astype(np.int64)
        self._samples = Labelled({name: _kept(v) for name, v in samples.inputs.items()}, labels, samples.batch)
        self._size = min(batch_size, samples.count)
        self._seed, self._augmenter, self._share = seed, augmenter, share
        self.steps = samples.count // self._size
        self.labelled = labels is not None

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `first` on; the same for the same epoch."""
        order = np.random.default_rng([self._seed, ORDER, epoch]).permutation(self._samples.count)
        rows = self._share.of(self._size)
        for step in range(first, self.steps):
            taken = self._samples.take(order[step * self._size : (step + 1) * self._size][rows])
            inputs = _arrays(taken)
            if self._augmenter is not None:
                inputs = self._augmenter(inputs, epoch, step, rows, self._size)
            yield Batch(inputs, taken.labels)

    def some(self, count: int) -> dict[str, Array]:
        """About so many samples, always the same, not augmented."""
        if count >= self._samples.count:
            return _arrays(self._samples)
        return _arrays(self._samples.split(count, self._seed)[0])

    def require_classes(self, classes: int) -> None:
        """Refuse labels that the network's output has no class for."""
        if self._samples.labels is not None:
            _require_classes(self._samples.labels, classes)

    def digest(self) -> str:
        """A hash of arrays and labels, and of how they are drawn; of images left on disk, of their number alone."""
        found = hashlib.sha256(f"{self._size} of {self._seed}, {self._augmenter}".encode())
        for name, values in sorted(self._samples.inputs.items()):
            _add(found, name, values if isinstance(values, np.ndarray) else np.asarray(values.shape))
        if self._samples.labels is not None:
            _add(found, "labels", self._samples.labels)
        return found.hexdigest()


class Loader:
    """Batches of the caller's own; every process goes through all of them and takes its rows."""

    def __init__(
        self, model: onnx.ModelProto, batches: Iterable[Any], seed: int, augmenter: Augmenter | None, share: Share
    ) -> None:
        if isinstance(batches, Iterator):
            raise UsageError("the data can be gone through only once:", fix="give a DataLoader, or a list of batches.")
        self._model, self._batches = model, batches
        self._seed, self._augmenter, self._share = seed, augmenter, share
        self._classes: int | None = None
        try:
            self.steps = len(batches)  # type: ignore[arg-type]  # that is what is tried
        except TypeError:
            words = "nobody can tell how many batches the data has:"
            raise UsageError(
                words, fix="give something with a length, as a DataLoader of a dataset with one."
            ) from None
        if not self.steps:
            raise ModelError("the data has no samples.")
        self._first = next(self._read(0, 0))
        self.labelled = self._first.labels is not None

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `first` on; the same for the same epoch."""
        for step, batch in enumerate(self._read(epoch, first), first):
            rows = self._share.of(batch.count)
            inputs = {name: values[rows] for name, values in batch.inputs.items()}
            if self._augmenter is not None:
                inputs = self._augmenter(inputs, epoch, step, rows, batch.count)
            yield Batch(inputs, None if batch.labels is None else batch.labels[rows])

    def some(self, count: int) -> dict[str, Array]:
        """About so many samples, always the same, not augmented by us."""
        found: list[Batch] = []
        for batch in self._read(0, 0):
            found.append(batch)
            if sum(b.count for b in found) >= count:
                break
        return {name: np.concatenate([b.inputs[name] for b in found])[:count] for name in found[0].inputs}

    def require_classes(self, classes: int) -> None:
        """Refuse labels that the network's output has no class for: in the first batch now, in others as they come."""
        self._classes = classes
        if self._first.labels is not None:
            _require_classes(self._first.labels, classes)

    def digest(self) -> str:
        """A hash of the first batch, of how many there are, and how they are drawn."""
        found = hashlib.sha256(f"{self.steps} of {self._seed}, {self._augmenter}".encode())
        for name, values in sorted(self._first.inputs.items()):
            _add(found, name, values)
        return found.hexdigest()

    def _read(self, epoch: int, first: int) -> Iterator[Batch]:
        """Whole batches, checked; those before `first` are made too, so that what is drawn for them is drawn."""
        torch.manual_seed(int(np.random.SeedSequence([self._seed, ORDER, epoch]).generate_state(1)[0]))
        own = getattr(self._batches, "generator", None)
        if isinstance(own, torch.Generator):
            own.manual_seed(torch.initial_seed())
        for item in islice(self._batches, first, None):
            batch = _understood(self._model, item)
            require_fitting(self._model, batch.inputs)
            require_finite(batch.inputs)
            if batch.labels is not None and self._classes is not None:
                _require_classes(batch.labels, self._classes)
            yield batch


def _understood(model: onnx.ModelProto, item: Any) -> Batch:
    """What a loader gives: inputs, or inputs and labels."""
    labels = None
    if isinstance(item, (tuple, list)):
        if len(item) not in (1, 2):
            words = f"a batch of the data has {len(item)} parts;"
            raise UsageError(words, fix="give inputs and labels, the inputs by name if there are several.")
        labels = item[1] if len(item) == 2 else None
        item = item[0]
    names = list(caller_inputs(model))
    if not isinstance(item, Mapping):
        if len(names) != 1:
            words = f"a batch of the data is a {type(item).__name__}; the model has {len(names)} inputs:"
            raise UsageError(words, fix="give them by name.")
        item = {names[0]: item}
    inputs = {str(name): np.asarray(values) for name, values in item.items()}
    if labels is None and "labels" not in names:
        labels = inputs.pop("labels", None)
    counts = {values.shape[0] if values.ndim else None for values in inputs.values()}
    if len(counts) != 1 or None in counts or 0 in counts:
        raise ModelError("the inputs of a batch do not have the same number of samples, or none.")
    count = len(next(iter(inputs.values())))
    found = None if labels is None else fitting_labels(np.asarray(labels), count).astype(np.int64)
    return Batch(inputs, found)


def _require_classes(labels: Array, classes: int) -> None:
    if labels.min() < 0 or labels.max() >= classes:
        raise ModelError(
            f"the labels go from {labels.min()} to {labels.max()}; the output has {classes} classes.",
            fix="Number the classes as the model does, from 0.",
        )


def _kept(values: Any) -> Any:
    """Images that fit into memory are read once, and checked as arrays are."""
    if isinstance(values, Images) and values.nbytes <= IN_MEMORY:
        return values[0 : values.shape[0]]
    return values


def _arrays(samples: Labelled) -> dict[str, Array]:
    return {name: values[0 : samples.count] for name, values in samples.inputs.items()}


def _add(digest: Any, name: str, values: Array) -> None:
    digest.update(f"{name} {values.dtype} {values.shape} ".encode())
    digest.update(np.ascontiguousarray(values).tobytes())
