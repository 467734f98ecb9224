"""A float model to one in ideal form, layer after layer: what `convert --ptq` does before it compiles.

Layers are taken in the order of the graph. Each is fitted on the inputs that the quantized network before it really
gives, so that it makes up for the errors in front of it, to what the float network computes there. The last layers,
which stay float unless the plan names them, get new weights in the same way.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx

from binarize_onnx import io, opset, pipeline, scopes, shapes
from binarize_onnx.calibration import CalibrationData, feeds
from binarize_onnx.errors import ModelError, UsageError
from binarize_onnx.passes.base import Array
from binarize_onnx.quantize import rewrite
from binarize_onnx.quantize.activations import ActivationStatistics, Levels
from binarize_onnx.quantize.cuts import Cuts
from binarize_onnx.quantize.patches import Patches
from binarize_onnx.quantize.plan import Plan, Settings
from binarize_onnx.quantize.precision import Precision
from binarize_onnx.quantize.readout import refit
from binarize_onnx.quantize.sites import Network, Site
from binarize_onnx.quantize.stream import Segment, Spool, outer_reads, reading, writing
from binarize_onnx.quantize.weights import MAX_INPUTS, Bases, Moments, approximate, solve
from binarize_onnx.verify.graphs import caller_inputs

TENSOR_BYTES = 1 << 24  # of the largest tensor of a batch: as many samples go into one as that allows
MOST_SAMPLES = 256  # in a batch
MOST_OUTSIDE = 0.01  # the share of values beyond the levels of a layer above which it is warned of
ENOUGH_PATCHES = 10  # times the terms of a dot product; with fewer, signs fit the samples and not the network

FLOAT, QUANTIZED = "float/", "quantized/"  # in front of the names of tensors in a stage
BASES = (("signs", 1), ("scale", 1), ("shift", 0))  # and their axes of output channels

# Of what a folder of work holds and of how layers are fitted: a change that makes other models of the same arguments
# takes the next number, so that no calculation is begun by one way of doing it and ended by another.
WORK = 1

Progress = Callable[[str], None]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class QuantizedLayer:
    """What the quantization of one layer came to.

    Attributes:
        name: of the layer.
        precision: that it has now.
        error: the squared error of its output, as a share of that output's variance, on the calibration samples: of
            the quantized network against the float one. Where a shortcut is added whose losses it makes up for, that
            of the sum.
        outside: the share of the values of its input that lie more than a step beyond its levels.
        patches: rows of its input that it was fitted to.
        length: terms of its dot products.
        parts: the names of its further bases, which are layers of their own in the ideal graph.
        warnings: what to think of before it is used, in sentences.
    """

    name: str
    precision: Precision
    error: float
    outside: float
    patches: int
    length: int
    parts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class OutputAgreement:
    """How one output of the quantized network compares with the float one's, on the calibration samples.

    Attributes:
        name: of the output.
        error: squared error as a share of the variance.
        agreement: share of the samples that keep their class; None if the output is not [samples, classes].
        classes: how many there are; None likewise.
    """

    name: str
    error: float
    agreement: float | None = None
    classes: int | None = None

    def __str__(self) -> str:
        """The comparison in words."""
        kept = "" if self.agreement is None else f"; {self.agreement:.2%} keep their class"
        return f"`{self.name}` differs from the float network's by {self.error:.2%} of its variance{kept}"


@dataclass(frozen=True)
class Quantized:
    """A quantized network.

    Attributes:
        model: in ideal form: Level or BinarySign, ±1 weights, scales behind; plain onnxruntime runs it.
        layers: a row for each layer of the plan.
        outputs: a row for each output.
        samples: how many there were.
        samples_sha256: of all of them.
        refitted: the layers that stay float, with other weights.
        warnings: about the network as a whole.
        fitted: the levels of each layer's input and its bases, by name.
    """

    model: onnx.ModelProto
    layers: list[QuantizedLayer]
    outputs: list[OutputAgreement]
    samples: int
    samples_sha256: str
    refitted: tuple[str, ...]
    warnings: list[str]
    fitted: Mapping[str, tuple[Levels, Bases]]


def quantize(
    network: Network,
    data: CalibrationData,
    plan: Plan,
    settings: Settings | None = None,
    *,
    progress: Progress | None = None,
    resume: Path | None = None,
) -> Quantized:
    """Quantize the layers of a plan.

    Args:
        network: what `sites.find` made of the float model.
        data: samples as the network will see them, without labels: arrays by input name, a file of them, or an
            onnxruntime `CalibrationDataReader`.
        plan: the precision of each layer to be quantized, by name.
        settings: the methods; None for the best.
        progress: is told in words what is being done.
        resume: a folder in which the work so far is kept: begun again with the same arguments, it goes on from there,
            with the same result bit for bit.

    Raises:
        ModelError: the data cannot be read, does not fit, has no samples or holds NaN; the model does not run on it.
        UsageError: the plan names a layer that cannot be quantized, or the folder belongs to another calculation.
    """
    settings = settings or Settings()
    known = {site.name for site in network.sites}
    for name in plan:
        if name not in known:
            reason = network.left.get(name)
            words = "is no layer of the model" if reason is None else f"cannot be quantized: {reason.sentence}"
            raise UsageError(f"layer `{name}` {words};", fix="leave it out of the plan.")
    if not plan:
        raise UsageError("the plan names no layer;", fix="choose at least one.")
    with ExitStack() as stack:
        if resume is None:
            resume = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="binarize-onnx-")))
        return _Calibration(network, plan, settings, resume, progress or (lambda _: None)).run(data)


def readouts(network: Network, plan: Plan) -> list[Site]:
    """The last layers that a plan leaves float and that read something of what it quantizes."""
    touched = Cuts(network.model, [site for site in network.sites if site.name in plan]).touched
    return [
        site
        for site in network.sites
        if site.edge == "last" and site.name not in plan and site.input in touched and site.length <= MAX_INPUTS
    ]


@dataclass(frozen=True, eq=False)
class _Fit:
    """How one layer is quantized: levels of its input, bases of its weights, rows that these were fitted to.

    `outside` is the share of the input's values that lie more than a step beyond the levels.
    """

    levels: Levels
    bases: Bases
    patches: int
    outside: float

    def save(self, path: Path) -> None:
        with writing(path), io.atomic_write(path) as file:
            np.savez(
                file,
                threshold=self.levels.threshold,
                low=self.levels.low,
                step=self.levels.step,
                signs=self.bases.signs,
                scale=self.bases.scale,
                shift=self.bases.shift,
                patches=np.asarray(self.patches),
                outside=np.asarray(self.outside),
            )

    @classmethod
    def load(cls, path: Path) -> _Fit:
        with reading(path), np.load(path, allow_pickle=False) as found:
            levels = Levels(found["threshold"], found["low"], found["step"])
            bases = Bases(found["signs"], found["scale"], found["shift"])
            return cls(levels, bases, int(found["patches"]), float(found["outside"]))


@dataclass(frozen=True, eq=False)
class _Refit:
    """The weights of a layer that stays float: [O, D], and its bias [O]."""

    weights: Array
    bias: Array

    def save(self, path: Path) -> None:
        with writing(path), io.atomic_write(path) as file:
            np.savez(file, weights=self.weights, bias=self.bias)

    @classmethod
    def load(cls, path: Path) -> _Refit:
        with reading(path), np.load(path, allow_pickle=False) as found:
            return cls(found["weights"], found["bias"])


@dataclass(frozen=True, eq=False)
class _Rewritten:
    """A layer as it is written; `activation` is None if it has none or an earlier layer computes the same levels."""

    level: str
    activation: rewrite.Part | None
    product: rewrite.Part


class _Error:
    """Squared distance of a layer's output from the float one, as a share of the variance in its channels.

    Where the layer makes up for what a shortcut has lost, it is that of the sum of both.
    """

    def __init__(self, site: Site, shortcut: str | None) -> None:
        self._names = [site.output, *([shortcut] if shortcut else [])]
        self._axis = input_axis(site)
        self._squares = 0.0
        self._count = 0
        self._sum: Array = np.zeros(1)
        self._sum_of_squares: Array = np.zeros(1)

    def update(self, result: Arrays, reference: Arrays) -> None:
        """Add the tensors of a batch."""
        found, total = ([np.moveaxis(t[name], self._axis, 0) for name in self._names] for t in (result, reference))
        channels = len(total[0])
        self._sum, self._sum_of_squares = (np.resize(s, channels) for s in (self._sum, self._sum_of_squares))
        self._count += total[0].size // max(channels, 1)
        for channel in range(channels):  # one by one: in float64 they would be the largest tensors of all
            wanted = np.sum([part[channel] for part in total], axis=0, dtype=np.float64).reshape(-1)
            distance = np.sum([part[channel] for part in found], axis=0, dtype=np.float64).reshape(-1) - wanted
            self._squares += float(distance @ distance)
            self._sum[channel] += wanted.sum()
            self._sum_of_squares[channel] += wanted @ wanted

    @property
    def share(self) -> float:
        """0 for equal tensors, 1 for a constant in place of the reference."""
        variance = float((self._sum_of_squares - self._sum**2 / max(self._count, 1)).sum())
        return self._squares / variance if variance > 0 else float(self._squares > 0)


class _Calibration:
    """One run of `quantize`: from stage to stage of `Cuts`, a layer fitted at each.

    The folder holds what the result depends on (as hashes), the tensors of the last stage, and every layer so far.
    """

    def __init__(self, network: Network, plan: Plan, settings: Settings, folder: Path, progress: Progress) -> None:
        self._model, self._plan, self._settings = network.model, plan, settings
        self._folder, self._progress = folder, progress
        last = readouts(network, plan) if settings.readout else []
        self._cuts = Cuts(network.model, [*(site for site in network.sites if site.name in plan), *last])
        self._sites = self._cuts.sites
        shortcuts = [self._cuts.shortcut(k) for k in range(1, self._cuts.last)]
        self._shortcuts = shortcuts if settings.compensate else [None] * len(shortcuts)
        self._constants = {t.name: t for t in network.model.graph.initializer}
        written = {name for node in network.model.graph.node for name in (node.name, *node.output)}
        self._unique = scopes.Names({*self._constants, *caller_inputs(network.model), *written}).unused
        self._fits: list[_Fit | _Refit] = []
        self._activations: dict[tuple[str, int], tuple[Levels, str]] = {}  # by tensor and bits
        self._layers: list[_Rewritten] = []
        self._errors: list[float] = []  # of the layers that are fitted, but for the last
        self._batches = self._samples = 0
        self._digest = ""

    def run(self, data: CalibrationData) -> Quantized:
        """Everything, or what is left to do of it."""
        done = self._begin(data)
        for k in range(1, self._cuts.last):
            if k > done:
                self._advance(k)
            self._fit(k, kept=k < done)
        outputs = self._compare_outputs()
        rows = [self._row(k, fit) for k, fit in enumerate(self._fits, 1) if isinstance(fit, _Fit)]
        refitted = tuple(site.name for site in self._sites if site.name not in self._plan)
        warnings = _warnings(outputs, self._samples)
        fits = zip(self._sites, self._fits, strict=True)
        fitted = {site.name: (fit.levels, fit.bases) for site, fit in fits if isinstance(fit, _Fit)}
        return Quantized(self._assembled(), rows, outputs, self._samples, self._digest, refitted, warnings, fitted)

    # --- The folder ----------------------------------------------------------------------------------------------

    def _stage(self, k: int) -> Spool:
        return Spool(self._folder / f"stage.{k:04d}")

    def _begin(self, data: CalibrationData) -> int:
        """The last stage that is finished: that of the samples, where there was none."""
        mark = self._folder / "calculation.json"
        feed = feeds(self._model, data, batch_size(self._model))
        done = 0
        if mark.exists():
            self._digest = _digest(feed)
            with reading(mark):
                kept = json.loads(mark.read_text())
            if kept != self._calculation():
                raise UsageError(
                    f"{self._folder} holds the work on another model or other data, with other options or by another "
                    "version:",
                    fix="name another folder to begin anew.",
                )
            with reading(self._folder):
                done = max(k for k in range(self._cuts.last) if self._stage(k).is_complete)
        else:
            if self._holds_something_else():
                raise UsageError(f"{self._folder} is not empty, and holds no work of ours:", fix="name another folder.")
            self._progress("reading the samples")
            samples = self._stage(0)
            samples.begin()
            self._digest = _digest(self._kept(feed, samples))
            samples.finish({"batches": self._batches, "samples": self._samples, "errors": []})
            with writing(mark), io.atomic_write(mark) as file:
                file.write(json.dumps(self._calculation()).encode())
        note = self._stage(done).note
        with reading(self._folder):
            self._batches, self._samples, self._errors = note["batches"], note["samples"], note["errors"]
        return done

    def _holds_something_else(self) -> bool:
        """Whether the folder is a file, or has files and no stage that was begun."""
        if not self._folder.is_dir():
            return self._folder.exists()
        with reading(self._folder):
            return any(self._folder.iterdir()) and not self._stage(0).folder.exists()

    def _kept(self, feed: Iterator[Mapping[str, Array]], spool: Spool) -> Iterator[Mapping[str, Array]]:
        """The samples, written to the first stage as they go by."""
        for batch in feed:
            spool.write(self._batches, {FLOAT + name: values for name, values in batch.items()})
            self._batches += 1
            self._samples += max((v.shape[0] if v.ndim else 1 for v in batch.values()), default=1)
            yield batch

    def _calculation(self) -> dict[str, str]:
        """Everything that the result depends on."""
        plan = {name: str(precision) for name, precision in sorted(self._plan.items())}
        return {
            "network": hashlib.sha256(self._model.SerializeToString(deterministic=True)).hexdigest(),
            "options": json.dumps([plan, self._settings.to_json()], sort_keys=True),
            "samples": self._digest,
            "version": f"{WORK}, {pipeline.package_version()}",
        }

    # --- From stage to stage -------------------------------------------------------------------------------------

    def _advance(self, k: int) -> None:
        """Take both networks to stage k."""
        before, after = self._stage(k - 1), self._stage(k)
        after.begin()
        error = None if k == 1 else _Error(self._sites[k - 2], self._shortcuts[k - 2])
        live, own = self._cuts.float_live(k), self._cuts.quantized_live(k)
        for batch, reference, result in self._passed(k, before):
            if error is not None:
                error.update(result, reference)
            kept = {FLOAT + name: reference[name] for name in live}
            after.write(batch, kept | {QUANTIZED + name: result[name] for name in own})
            del kept, reference, result  # before the next batch is read
        self._errors += [] if error is None else [error.share]
        after.finish({"batches": self._batches, "samples": self._samples, "errors": self._errors})
        before.remove()

    def _passed(self, k: int, before: Spool) -> Iterator[tuple[int, Arrays, Arrays]]:
        """`(batch, tensors of the float network, of the quantized one)` at stage k, and what layer k - 1 writes."""
        cuts, constants = self._cuts, dict(self._constants)
        nodes, own_nodes = cuts.float_nodes(k), cuts.quantized_nodes(k)
        wanted, own_wanted = cuts.float_live(k), cuts.quantized_live(k)
        level = ""
        if k > 1:
            site, layer, fit = self._sites[k - 2], self._layers[k - 2], self._fits[k - 2]
            own_nodes = [*layer.product.nodes, *own_nodes]
            constants |= {t.name: t for t in layer.product.constants}
            wanted, own_wanted, level = wanted | {site.output}, own_wanted | {site.output}, layer.level
        stored = [{n.removeprefix(kind) for n in before.names if n.startswith(kind)} for kind in (FLOAT, QUANTIZED)]
        own_reads = {name for node in own_nodes for name in outer_reads(node)}
        wanted |= (own_reads - cuts.touched) - {level}
        floats = Segment(self._model, nodes, stored[0], wanted, constants)
        owns = Segment(self._model, own_nodes, {*wanted, *stored[0], *stored[1], level}, own_wanted, constants)
        for batch in range(self._batches):
            given = before.read(batch, before.names)
            reference = {name: given[FLOAT + name] for name in stored[0]}
            result = {name: given[QUANTIZED + name] for name in stored[1]}
            if k > 1 and isinstance(fit, _Fit):
                x = (result if site.input in cuts.touched else reference)[site.input]
                result[level] = fit.levels.reached(x, input_axis(site)).astype(np.float32)
            del given
            reference |= floats.run(reference)
            result |= owns.run({**reference, **result})
            yield batch, reference, result
            del reference, result  # before the next batch is read

    # --- One layer -----------------------------------------------------------------------------------------------

    def _fit(self, k: int, *, kept: bool) -> None:
        """Find out how layer k is quantized, or read it; it must be there if a later stage was finished."""
        site = self._sites[k - 1]
        precision = self._plan.get(site.name)
        path = self._folder / f"layer.{k:04d}.npz"
        fit: _Fit | _Refit
        if kept or path.exists():
            fit = _Fit.load(path) if precision else _Refit.load(path)
        else:
            self._progress(f"layer {k} of {len(self._sites)}: {site.name} ({precision or 'float'})")
            fit = self._fitted(k, precision) if precision else self._refitted(k)
            fit.save(path)
        self._fits.append(fit)
        self._layers.append(self._rewritten(site, fit))

    def _rewritten(self, site: Site, fit: _Fit | _Refit) -> _Rewritten:
        if isinstance(fit, _Refit):
            return _Rewritten(site.input, None, rewrite.float_layer(site, fit.weights, fit.bias, self._unique))
        key = (site.input, self._plan[site.name].bits)
        activation = None
        if key not in self._activations:
            activation = rewrite.activation(site, fit.levels, self._unique)
            self._activations[key] = fit.levels, activation.nodes[0].output[0]
        level = self._activations[key][1]
        return _Rewritten(level, activation, rewrite.product(site, level, fit.bases, self._unique))

    def _fitted(self, k: int, precision: Precision) -> _Fit:
        site = self._sites[k - 1]
        known = self._activations.get((site.input, precision.bits))
        levels = known[0] if known else self._levels_of(k, precision)
        outside = values = 0

        def reached(x: Array) -> Array:
            nonlocal outside, values
            outside += _count_outside(levels, np.moveaxis(x, input_axis(site), -1))
            values += x.size
            return levels.reached(x, input_axis(site))

        moments = self._moments(k, reached)
        bases = fitted(site, levels, moments, precision, self._settings)
        return _Fit(levels, bases, moments[0].count, outside / max(values, 1))

    def _refitted(self, k: int) -> _Refit:
        site = self._sites[k - 1]
        weights = np.split(site.weights.reshape(site.outputs, -1), site.group)
        parts = [refit(m, w) for m, w in zip(self._moments(k, lambda x: x), weights, strict=True)]
        return _Refit(*(np.concatenate(values) for values in zip(*parts, strict=True)))

    def _moments(self, k: int, reached: Callable[[Array], Array]) -> list[Moments]:
        """For each group, those of what layer k reads, as `reached` makes it, and of what it should answer."""
        site, settings, spool = self._sites[k - 1], self._settings, self._stage(k)
        x, z = self._input(site), FLOAT + site.output
        other = self._shortcuts[k - 1]
        total = sum(_rows(site, spool.shape(batch, z)) for batch in range(self._batches))
        patches = Patches(site, total, settings.patches, (settings.seed, k))
        moments = [Moments(site.length, site.outputs // site.group) for _ in range(site.group)]
        for batch in range(self._batches):
            given = spool.read(batch, [x, z, *([FLOAT + other, QUANTIZED + other] if other else [])])
            target = given[z]
            if other:
                target = target + (given[FLOAT + other] - given[QUANTIZED + other])
            h = reached(given[x])
            for group, rows, answers in patches.of(batch, h, target):
                moments[group].update(rows, answers)
            del given, target, h, rows, answers  # before the next batch is read
        return moments

    def _input(self, site: Site) -> str:
        """The tensor of a stage that a layer of the quantized network reads."""
        return (QUANTIZED if site.input in self._cuts.touched else FLOAT) + site.input

    def _levels_of(self, k: int, precision: Precision) -> Levels:
        site, spool = self._sites[k - 1], self._stage(k)
        x = self._input(site)
        statistics = ActivationStatistics(site.channels)
        for batch in range(self._batches):
            try:
                statistics.update(spool.read(batch, [x])[x], input_axis(site))
            except ValueError:  # the network makes infinities of finite samples
                raise ModelError(f"NaN or infinity reaches layer `{site.name}` on these samples.") from None
        return statistics.levels(precision.bits, self._settings.thresholds)

    def _row(self, k: int, fit: _Fit) -> QuantizedLayer:
        site = self._sites[k - 1]
        warnings = []
        if fit.patches < ENOUGH_PATCHES * site.length:
            words = f"{fit.patches} rows of input for {site.length} weights a channel: give more samples"
            warnings.append(f"{words} ({ENOUGH_PATCHES * site.length} rows are enough)")
        if fit.outside > MOST_OUTSIDE:
            words = f"{fit.outside:.1%} of the values that it reads lie beyond its levels"
            warnings.append(f"{words}: more activation bits would help")
        products = [node for node in self._layers[k - 1].product.nodes if node.op_type in ("Conv", "MatMul")]
        parts = tuple(node.name for node in products[1:])
        return QuantizedLayer(
            site.name,
            self._plan[site.name],
            self._errors[k - 1],
            fit.outside,
            fit.patches,
            site.length,
            parts,
            tuple(warnings),
        )

    # --- The whole -----------------------------------------------------------------------------------------------

    def _compare_outputs(self) -> list[OutputAgreement]:
        """Both networks to their ends."""
        k = self._cuts.last
        self._progress("comparing the outputs")
        error = _Error(self._sites[-1], self._shortcuts[-1])
        agreements = {name: _Agreement(name) for name in self._cuts.outputs}
        for _, reference, result in self._passed(k, self._stage(k - 1)):
            error.update(result, reference)
            for name, agreement in agreements.items():
                agreement.update(result.get(name, reference[name]), reference[name])
        self._errors = [*self._errors, error.share]
        return [agreement.row() for agreement in agreements.values()]

    def _assembled(self) -> onnx.ModelProto:
        """The source with the layers of the plan in ideal form."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        layers = {site.writes[0]: layer for site, layer in zip(self._sites, self._layers, strict=True)}
        replaced = {name for site in self._sites for name in site.writes}
        nodes: list[onnx.NodeProto] = []
        constants = dict(self._constants)
        for node in self._cuts.nodes:
            layer = layers.get(node.output[0]) if node.output else None
            for part in (layer.activation, layer.product) if layer else ():
                if part is not None:
                    nodes += part.nodes
                    constants |= {t.name: t for t in part.constants}
            if replaced.isdisjoint(node.output):
                nodes.append(node)
        read = {name for node in nodes for name in outer_reads(node)} | {*self._cuts.outputs}
        written = {name for node in nodes for name in node.output}
        kept = [v for v in model.graph.value_info if v.name in written]
        del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(constants[name] for name in constants if name in read)
        model.graph.value_info.extend(kept)
        opset.attach_functions(model)
        return model


class _Agreement:
    """One output of both networks, over batches."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._squares = self._sum = self._sum_of_squares = 0.0
        self._count = self._same = self._samples = 0
        self._classes: int | None = None
        self._is_classes = True

    def update(self, result: Array, reference: Array) -> None:
        """Add a batch."""
        if result.dtype.kind not in "fiub":
            return
        result, reference = result.astype(np.float64), reference.astype(np.float64)
        self._squares += float(np.square(result - reference).sum())
        self._sum += float(reference.sum())
        self._sum_of_squares += float(np.square(reference).sum())
        self._count += reference.size
        self._is_classes &= reference.ndim == 2 and reference.shape[1] > 1
        if self._is_classes:
            self._classes = int(reference.shape[1])
            self._same += int((result.argmax(axis=1) == reference.argmax(axis=1)).sum())
            self._samples += len(reference)

    def row(self) -> OutputAgreement:
        """What was found."""
        variance = self._sum_of_squares - self._sum**2 / max(self._count, 1)
        error = self._squares / variance if variance > 0 else float(self._squares > 0)
        if not self._is_classes or not self._samples:
            return OutputAgreement(self._name, error)
        return OutputAgreement(self._name, error, self._same / self._samples, self._classes)


def _warnings(outputs: Sequence[OutputAgreement], samples: int) -> list[str]:
    """What to think of before the network is used at all."""
    found = []
    for out in outputs:
        if out.agreement is None or out.classes is None:
            continue
        chance = 1 / out.classes
        if out.agreement <= chance + 3 * (chance * (1 - chance) / samples) ** 0.5:
            words = f"`{out.name}` agrees with the float network on {out.agreement:.1%} of {samples} samples"
            found.append(f"{words}, which is chance: use more bits, or fewer layers")
    return found


def _digest(feed: Iterator[Mapping[str, Array]]) -> str:
    """A hash of all samples."""
    digest = hashlib.sha256()
    for batch in feed:
        for name, values in sorted(batch.items()):
            digest.update(f"{name} {values.dtype} {values.shape} ".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def batch_size(model: onnx.ModelProto) -> int:
    """Samples that are run at once: the largest of their tensors together has `TENSOR_BYTES` at most."""
    numbers = max((prod(shape[1:]) for shape in shapes.infer(model).stand_in.values()), default=1)
    return max(1, min(MOST_SAMPLES, TENSOR_BYTES // (4 * numbers)))


def fitted(site: Site, levels: Levels, moments: Sequence[Moments], precision: Precision, settings: Settings) -> Bases:
    """The bases of a layer, from the moments of each of its groups."""
    steps = np.split(np.repeat(levels.step, site.length // (site.channels // site.group)), site.group)
    lows = np.split(np.repeat(levels.low, site.length // (site.channels // site.group)), site.group)
    weights = np.split(site.weights.reshape(site.outputs, -1), site.group)
    biases = np.split(site.bias, site.group)
    parts = []
    for found, w, bias, step, low in zip(moments, weights, biases, steps, lows, strict=True):
        if settings.correction == "ls":
            parts.append(solve(found, w * step, precision.bases, settings.weights))
        else:
            bases = approximate(w * step, precision.bases, settings.weights)
            parts.append(Bases(bases.signs, bases.scale, bias + w @ low))
    return Bases(*(np.concatenate([getattr(p, name) for p in parts], axis) for name, axis in BASES))


def input_axis(site: Site) -> int:
    """Where the channels of a layer's input are."""
    return 1 if site.kind == "conv" else -1


def _count_outside(levels: Levels, values: Array) -> int:
    """How many of the values, channels last, lie more than a step beyond their lowest or highest level."""
    low, high = levels.low - levels.step, levels.low + levels.step * (len(levels.threshold) + 1)
    apart = levels.step > 0
    low, high = np.where(apart, low, -np.inf), np.where(apart, high, np.inf)
    return int(np.count_nonzero((values < low.astype(np.float32)) | (values > high.astype(np.float32))))


def _rows(site: Site, shape: Sequence[int]) -> int:
    """How many dot products a tensor of this shape has for each output channel."""
    return prod(shape) // site.outputs
