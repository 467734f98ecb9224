"""Samples for a model without data, made to show both values of every sign.

Standard normal numbers leave many signs constant: a bias or a normalization may lie beyond anything they reach. So more
samples are tried (other scales and offsets, images of one colour, smooth ones, sparse ones, raw bytes), and those that
come closest to a missing value are changed further. A sample is kept if it shows a value that none before it showed.

The search is deterministic: it ends when every sign of every channel was seen with both values, after a number of
trials, or, on a slow model, after some seconds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from binarize_onnx.errors import ModelError
from binarize_onnx.verify.arrays import Array, Arrays
from binarize_onnx.verify.coverage import Coverage
from binarize_onnx.verify.data import RANDOM_SAMPLES, SEED, random_inputs
from binarize_onnx.verify.graphs import caller_inputs, constants, pruned, writers
from binarize_onnx.verify.session import Runner

SECONDS = 10.0  # of search; the standard normal samples are made in any case
TRIALS = 400
PATIENCE = 120  # trials in a row that show nothing new
MOST_SAMPLES = 32

Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Generated:
    """Samples, and how they came about in words.

    Attributes:
        inputs: arrays by input name.
        described: what they are.
    """

    inputs: Arrays
    described: str


@dataclass(frozen=True)
class _Trial:
    """A feed of one batch: which values of signs it shows, and how close it comes to those that it does not."""

    feed: Arrays
    shows: Bool
    progress: npt.NDArray[np.float32]


def exercising_inputs(
    model: onnx.ModelProto,
    ideal: onnx.ModelProto | None,
    samples: int | None,
    shapes: Mapping[str, Sequence[int]],
    seconds: float = SECONDS,
) -> Generated:
    """Standard normal samples, and others where those leave a sign of the ideal graph constant.

    Args:
        model: whose inputs are to be filled.
        ideal: its ideal graph; None to make standard normal samples only.
        samples: how many at most; 8, or up to 32 where that shows more, if it is None.
        shapes: of inputs that the model leaves open.
        seconds: that the search may take.

    Raises:
        UsageError: the model leaves sizes open that only data can fill.
    """
    plain = random_inputs(model, samples or RANDOM_SAMPLES, shapes)
    described = f"random (standard normal, seed {SEED})"
    blocks = _blocks(model, plain)
    probe = _Probe(ideal) if ideal is not None else None
    if not blocks or probe is None or not probe.wanted or seconds <= 0:
        return Generated(plain, described)
    deadline = time.monotonic() + seconds
    trials, generator = [], np.random.default_rng(SEED + 1)
    try:
        for block in blocks:
            trials.append(probe.look(block))
            if time.monotonic() > deadline:
                return Generated(plain, described)
    except ModelError:  # what is wrong with it is said where the models are compared
        return Generated(plain, described)
    missing = probe.possible & ~np.any([t.shows for t in trials], axis=0)
    closest = {int(bit): max(trials, key=lambda t: t.progress[bit]) for bit in np.flatnonzero(missing)}
    last = 0  # trial that showed something new
    for number in range(TRIALS):
        if not np.any(missing) or number - last > PATIENCE or time.monotonic() > deadline:
            break
        feed = _fresh(blocks[0], number, generator) if number % 2 else _changed(closest, missing, generator)
        try:
            trial = probe.look(feed)
        except ModelError:  # the model does not take such numbers
            continue
        if np.isnan(trial.progress).any():
            continue
        if np.any(trial.shows & missing):
            trials.append(trial)
            missing &= ~trial.shows
            last = number
        for bit in np.flatnonzero(missing):
            if trial.progress[bit] > closest[int(bit)].progress[bit]:
                closest[int(bit)] = trial
    size = next(iter(blocks[0].values())).shape[0]
    chosen = _choose(trials, len(blocks), max(1, (samples or MOST_SAMPLES) // size), probe.possible)
    added = sum(i >= len(blocks) for i in chosen) * size
    if added:
        described = (
            f"random (seed {SEED}): {len(chosen) * size - added} standard normal, {added} chosen for their signs"
        )
    joined = {name: np.concatenate([trials[i].feed[name] for i in chosen]) for name in plain}
    return Generated(joined, described)


class _Probe:
    """The ideal graph, asked which values its signs take.

    Attributes:
        wanted: the signs.
        possible: for every sign and channel, low values first and then high ones, whether it can occur.
    """

    def __init__(self, ideal: onnx.ModelProto) -> None:
        self._coverage = Coverage(ideal)
        self.wanted = self._coverage.signs
        self.possible = np.zeros(0, np.bool_)
        nodes = writers(ideal)
        values = constants(ideal)
        self._nodes = {name: nodes[name] for name in self.wanted}
        self._thresholds = {name: values.get(nodes[name].input[1]) for name in self.wanted}
        self._flips = {name: values.get(nodes[name].input[-1]) for name in self.wanted}
        read = [node.input[0] for node in self._nodes.values() if node.input[0] in nodes]
        self._runner = Runner(pruned(ideal, [*self.wanted, *read]), optimise=True) if self.wanted else None

    def look(self, feed: Arrays) -> _Trial:
        """Run one feed."""
        assert self._runner is not None
        found = {**feed, **self._runner.run(feed)}
        shows: list[Bool] = []
        progress: list[Array] = []
        possible: list[Bool] = []
        for name in self.wanted:
            low, high = self._coverage.seen(name, found[name])
            shows += [low, high]
            progress += self._progress(name, found)
            if not self.possible.size:
                possible += [~self._coverage.proved(name, low.size)] * 2
        if possible:
            self.possible = np.concatenate(possible)
        return _Trial(feed, np.concatenate(shows), np.concatenate(progress))

    def _progress(self, name: str, found: Arrays) -> tuple[Array, Array]:
        """How far each channel went towards its low and towards its high value, NaN where it is no number."""
        x = found[self._nodes[name].input[0]]
        threshold, flip = self._thresholds[name], self._flips[name]
        channels = self._coverage.by_channel(name, x)
        if threshold is None or flip is None or self._nodes[name].op_type != "BinarySign":
            threshold, flip = np.zeros((), np.float32), np.zeros((), np.bool_)
        if not np.isfinite(channels).all():
            return (np.full(channels.shape[0], np.nan, np.float32),) * 2
        limited = np.clip(threshold, -(2.0**100), 2.0**100)
        above = self._coverage.by_channel(name, np.where(flip, limited - x, x - limited))
        return (-above).max(axis=1).astype(np.float32), above.max(axis=1).astype(np.float32)


def _blocks(model: onnx.ModelProto, inputs: Arrays) -> list[Arrays]:
    """The samples as feeds of the smallest batch that the model takes; none if its inputs do not count samples."""
    sizes = {values.shape[0] if values.ndim else 0 for values in inputs.values()}
    if len(sizes) != 1 or 0 in sizes:
        return []
    (count,) = sizes
    dims = [t.shape.dim[0] for t in caller_inputs(model).values() if t.HasField("shape") and t.shape.dim]
    size = count if any(d.HasField("dim_value") for d in dims) else 1
    return [{k: v[i : i + size] for k, v in inputs.items()} for i in range(0, count, size)]


def _choose(trials: list[_Trial], plain: int, most: int, possible: Bool) -> list[int]:
    """At most `most` of the trials: those that show the most together, and of the plain ones as many as fit."""
    chosen: list[int] = []
    missing = possible.copy()
    while len(chosen) < most:
        gains = [int(np.count_nonzero(t.shows & missing)) for t in trials]
        best = int(np.argmax(gains))
        if not gains[best]:
            break
        chosen.append(best)
        missing &= ~trials[best].shows
    rest = [i for i in range(plain) if i not in chosen]
    return sorted([*chosen, *rest[: max(0, min(most, max(plain, len(chosen))) - len(chosen))]])


def _fresh(like: Arrays, number: int, generator: np.random.Generator) -> Arrays:
    """Numbers of another kind."""
    return {name: _numbers(values, number // 2, generator) for name, values in like.items()}


def _numbers(like: Array, kind: int, generator: np.random.Generator) -> Array:
    shape = like.shape
    if like.dtype.kind != "f":
        top = 2 if like.dtype.kind == "b" else 2 ** int(generator.integers(1, 9))
        return generator.integers(0, min(top, 256), shape).astype(like.dtype)
    normal = generator.standard_normal(shape)
    channels = generator.standard_normal((*shape[:2], *(1,) * (len(shape) - 2)))
    scale = 2.0 ** generator.uniform(-4, 4)
    match kind % 8:
        case 0:
            made = generator.uniform(0, 1, shape)
        case 1:
            made = generator.uniform(-1, 1, shape)
        case 2:
            made = normal * scale + generator.standard_normal() * scale
        case 3:
            made = channels * scale + normal * 0.05  # one colour
        case 4:
            made = normal + channels * scale
        case 5:
            made = _smooth(shape, generator) * scale
        case 6:
            made = np.where(generator.random(shape) < 0.1, normal * scale * 4, 0.01 * normal)  # sparse
        case _:
            made = generator.integers(0, 256, shape).astype(np.float64)  # bytes, not normalized
    return np.asarray(made).astype(like.dtype)


def _smooth(shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    """A wave along every axis but the first two."""
    made = generator.standard_normal((*shape[:2], *(1,) * (len(shape) - 2)))
    for axis in range(2, len(shape)):
        phase = generator.uniform(0, 2 * np.pi)
        wave = np.cos(np.arange(shape[axis]) * generator.uniform(0.05, 1.5) + phase)
        made = made * wave.reshape(-1, *(1,) * (len(shape) - axis - 1))
    return np.broadcast_to(made, shape)


def _changed(closest: Mapping[int, _Trial], missing: Bool, generator: np.random.Generator) -> Arrays:
    """A sample that came close to a missing value, changed; early signs first, as they shape the later ones."""
    bits = np.flatnonzero(missing)
    bit = int(bits[int(generator.integers(len(bits)) * generator.random())])
    other = closest[int(generator.choice(bits))].feed
    return {name: _mutated(values, other[name], generator) for name, values in closest[bit].feed.items()}


def _mutated(values: Array, other: Array, generator: np.random.Generator) -> Array:
    if values.dtype.kind != "f":
        return np.where(generator.random(values.shape) < 0.7, values, other).astype(values.dtype)
    spread = float(np.std(values)) or 1.0
    noise = generator.standard_normal(values.shape) * spread
    match int(generator.integers(4)):
        case 0:
            made = values * 2.0 ** generator.uniform(-1, 1.5)
        case 1:
            made = values + noise * 2.0 ** generator.uniform(-4, 0)
        case 2:
            offset = generator.standard_normal((*values.shape[:2], *(1,) * (values.ndim - 2))) * spread
            made = values + offset
        case _:
            made = np.where(generator.random(values.shape) < 0.5, values, other)
    return np.asarray(np.clip(made, -1e4, 1e4)).astype(values.dtype)
