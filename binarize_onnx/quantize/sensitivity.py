"""What quantizing one layer costs the whole network, for every layer and some precisions: nothing else is changed.

All layers share the float network. It runs once over the calibration samples for the ranges of all inputs, once more
for the moments that the layers are fitted to, and once over the samples that are judged: of each batch, every layer in
each of its precisions answers the float network's own input, and only what reads that answer runs again. Layers are
taken in groups, so that moments and networks of one group fit into memory; a group costs a run of the float network.
The last layer keeps its weights here (see readout.py): what it could mend is not counted for any layer.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import prod
from typing import Any

import numpy as np
import onnx

from binarize_onnx.calibration import CalibrationData, feeds
from binarize_onnx.passes.base import Array
from binarize_onnx.quantize import rewrite
from binarize_onnx.quantize.activations import ActivationStatistics, Levels
from binarize_onnx.quantize.drop_bound import Drop, finite
from binarize_onnx.quantize.patches import Patches
from binarize_onnx.quantize.plan import Settings
from binarize_onnx.quantize.post_training import Progress, batch_size, fitted, input_axis
from binarize_onnx.quantize.precision import Precision
from binarize_onnx.quantize.scoring import Judge
from binarize_onnx.quantize.sites import Network, Site
from binarize_onnx.quantize.stream import Segment, outer_reads
from binarize_onnx.quantize.weights import Bases, Moments
from binarize_onnx.report import printable
from binarize_onnx.verify.session import Runner

ENOUGH = 10  # rows a weight that a ranking needs at least
FEWEST_ROWS = 1 << 14
GROUP_BYTES = 1 << 29  # of moments, and of the weights of what runs behind the layers
RANKING = Settings(weights="recon")  # the order of layers is the same with faster methods


@dataclass(frozen=True)
class Sensitivity:
    """One layer quantized alone.

    Attributes:
        name: of the layer.
        precision: that it has.
        divergence: of the network's classes from the float network's, in nats; see `scoring.Scored`.
        drop: in accuracy or decibels; None where nothing measures that.
        macs: of the layer for one sample; None where sizes are open.
    """

    name: str
    precision: Precision
    divergence: float
    drop: Drop | None
    macs: int | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "name": self.name,
            "precision": str(self.precision),
            "divergence": finite(self.divergence),
            "lost": None if self.drop is None else finite(self.drop.drop),
            "macs": self.macs,
        }


def measure(
    network: Network,
    data: CalibrationData,
    judge: Judge,
    wanted: Mapping[str, Collection[Precision]],
    settings: Settings = RANKING,
    progress: Progress | None = None,
) -> list[Sensitivity]:
    """The sensitivities of layers in the order of the graph, each in the precisions wanted for it.

    Args:
        network: what `sites.find` made of the float model.
        data: samples that layers are fitted to.
        judge: has the samples that the network is judged on.
        wanted: precisions by the name of the layer; layers that are not in it are not measured.
        settings: of the fits.
        progress: is told in words what is being done.

    Raises:
        ModelError: the data cannot be read or does not fit, or the network does not run on it.
    """
    tell = progress or (lambda _: None)
    order = [site for site in network.sites if wanted.get(site.name)]
    found: list[Sensitivity] = []
    groups = list(_groups(network, order, wanted))
    for index, group in enumerate(groups):
        place = f", layers {index + 1} of {len(groups)} groups" if len(groups) > 1 else ""
        tell(f"fitting {len(group)} layers, each alone{place}")
        fits = _fits(network, data, group, wanted, settings)
        tell(f"running what is behind each of {len(group)} layers{place}")
        found += _judged(network, judge, group, fits)
    return found


def ranked(found: Iterable[Sensitivity]) -> list[Sensitivity]:
    """The most sensitive first: by what is lost where that is measured, then by divergence."""
    return sorted(found, key=lambda s: (-(s.drop.drop if s.drop else 0.0), -s.divergence, s.name))


def exclude_list(found: Sequence[Sensitivity], most: float) -> list[str]:
    """The layers that cost more than `most`: points or decibels that are lost, nats where nothing measures these."""
    return [s.name for s in found if (s.divergence if s.drop is None else s.drop.drop) > most]


def exclude_text(names: Sequence[str]) -> str:
    """The file that `--exclude-list` reads: regular expressions, one a line, and comments behind a #."""
    head = "# Layers that are to stay float: regular expressions of whole names, as --nodes-to-exclude takes them.\n"
    return head + "".join(f"{re.escape(name)}\n" for name in names)


def table(found: Sequence[Sensitivity], judge: Judge) -> str:
    """The ranking for a person."""
    unit = {"points": "points lost", "dB": "dB lost"}.get(judge.unit, "")
    rows = [("layer", "precision", "MACs", "divergence", *([unit] if unit else []))]
    for s in found:
        cells = (s.name, str(s.precision), "-" if s.macs is None else f"{s.macs:,}", f"{s.divergence:.4g}")
        rows.append((*cells, *([f"{s.drop.drop:+.2f}"] if s.drop else [])))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(map(printable, lines))


def _groups(
    network: Network, order: Sequence[Site], wanted: Mapping[str, Collection[Precision]]
) -> Iterator[list[Site]]:
    """The layers in groups whose moments, and whose networks behind them, fit into memory."""
    sizes = {t.name: prod(t.dims) * 4 for t in network.model.graph.initializer}
    whole = sum(sizes.values())
    group: list[Site] = []
    used = 0
    for site in order:
        bits = {p.bits for p in wanted[site.name]}
        needs = whole + len(bits) * site.group * 8 * site.length**2
        if group and used + needs > GROUP_BYTES:
            yield group
            group, used = [], 0
        group.append(site)
        used += needs
    if group:
        yield group


Fits = Mapping[tuple[str, Precision], tuple[Levels, Bases]]


def _fits(
    network: Network,
    data: CalibrationData,
    group: Sequence[Site],
    wanted: Mapping[str, Collection[Precision]],
    settings: Settings,
) -> Fits:
    """Levels and bases of every layer of the group, fitted to the float network's tensors."""
    statistics: dict[str, ActivationStatistics] = {}
    rows = dict.fromkeys((site.name for site in group), 0)
    for tensors in _float_run(network, data, {t for site in group for t in (site.input, site.output)}):
        fresh = set(statistics)
        for site in group:
            rows[site.name] += tensors[site.output].size // site.outputs
            if site.input not in fresh:
                statistics.setdefault(site.input, ActivationStatistics(site.channels))
        for site in {site.input: site for site in group}.values():
            statistics[site.input].update(tensors[site.input], input_axis(site))
    levels = {
        (site.input, p.bits): statistics[site.input].levels(p.bits, settings.thresholds)
        for site in group
        for p in wanted[site.name]
    }
    patches = {
        site.name: Patches(site, rows[site.name], max(FEWEST_ROWS, ENOUGH * site.length), (settings.seed, k))
        for k, site in enumerate(group)
    }
    moments = {
        (site.name, bits): [Moments(site.length, site.outputs // site.group) for _ in range(site.group)]
        for site in group
        for bits in {p.bits for p in wanted[site.name]}
    }
    run = _float_run(network, data, {t for site in group for t in (site.input, site.output)})
    for batch, tensors in enumerate(run):
        for site in group:
            for bits in {p.bits for p in wanted[site.name]}:
                h = levels[site.input, bits].reached(tensors[site.input], input_axis(site))
                for part, patch, answers in patches[site.name].of(batch, h, tensors[site.output].astype(np.float64)):
                    moments[site.name, bits][part].update(patch, answers)
    found = {}
    for site in group:
        for p in sorted(wanted[site.name]):
            own = levels[site.input, p.bits]
            found[site.name, p] = own, fitted(site, own, moments[site.name, p.bits], p, settings)
    return found


def _float_run(network: Network, data: CalibrationData, names: Collection[str]) -> Iterator[dict[str, Array]]:
    """Tensors of the float network, batch after batch."""
    given = {i.name for i in network.model.graph.input}
    runner = Runner(network.model, sorted(set(names) - given), optimise=True)
    for feed in feeds(network.model, data, batch_size(network.model)):
        yield {**feed, **runner.run(feed)}


def _judged(network: Network, judge: Judge, group: Sequence[Site], fits: Fits) -> list[Sensitivity]:
    """The group's layers, each quantized alone, on the judge's samples."""
    ends = {site.name: _Behind(network, site, judge.output) for site in group}
    layers = {key: _Layer(network, ends[key[0]].site, levels, bases, key[1]) for key, (levels, bases) in fits.items()}
    outputs: dict[tuple[str, Precision], list[Array]] = {key: [] for key in layers}
    wanted = {name for end in ends.values() for name in (*end.reads, end.site.input)} | {judge.output}
    for tensors in _float_run(network, judge.samples.inputs, wanted):
        for key, layer in layers.items():
            end = ends[key[0]]
            answer = layer.run(tensors[end.site.input])
            outputs[key].append(end.run({**tensors, end.site.output: answer})[judge.output])
    found = []
    for (name, precision), parts in outputs.items():
        scored = judge.score_outputs(np.concatenate(parts))
        site = ends[name].site
        found.append(Sensitivity(name, precision, scored.divergence, judge.drop(scored), site.macs))
    return found


class _Behind:
    """What depends on a layer, from its output to the output that is judged.

    Attributes:
        site: the layer.
        reads: tensors of the float network that it reads beside the layer's output.
    """

    def __init__(self, network: Network, site: Site, output: str) -> None:
        self.site = site
        graph = network.model.graph
        touched, after = {site.output}, []
        for node in graph.node:
            if not touched.isdisjoint(outer_reads(node)) and site.output not in node.output:
                after.append(node)
                touched.update(node.output)
        needed, nodes = {output}, []
        for node in reversed(after):
            if not needed.isdisjoint(node.output):
                nodes.append(node)
                needed |= outer_reads(node)
        constants = {t.name: t for t in graph.initializer}
        self.reads = sorted({name for node in nodes for name in outer_reads(node)} - touched - constants.keys())
        self._segment = Segment(network.model, nodes[::-1], {*self.reads, site.output}, {output}, constants)
        self._runs = bool(nodes)  # otherwise the judged output is the layer's own, or does not depend on it

    def run(self, tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        """The judged output, for the float network's tensors and another output of the layer."""
        return self._segment.run(tensors) if self._runs else tensors


class _Layer:
    """A layer in one precision."""

    def __init__(self, network: Network, site: Site, levels: Levels, bases: Bases, precision: Precision) -> None:
        numbers = count()
        part = rewrite.product(site, "level", bases, lambda hint: f"{hint}.{precision}.{next(numbers)}")
        constants: dict[str, onnx.TensorProto] = {t.name: t for t in part.constants}
        self._levels, self._site = levels, site
        self._segment = Segment(network.model, part.nodes, {"level"}, {site.output}, constants)

    def run(self, x: Array) -> Array:
        """Its output."""
        level = self._levels.reached(x, input_axis(self._site)).astype(np.float32)
        return self._segment.run({"level": level})[self._site.output]


def quick(settings: Settings) -> Settings:
    """The same methods, with the fastest weights that rank layers in the same order."""
    return replace(settings, weights="recon") if settings.weights == "gptq" else settings
