"""The fastest network within a budget of accuracy, or the most accurate within one of time: a precision a layer.

1. Every layer is timed alone on this machine: in float32, in int8, and in each precision (`layer_times`). A precision
   that is no faster than int8 there is out: int8 costs next to nothing in accuracy.
2. Every layer is quantized alone in each precision that is left (`sensitivity`).
3. One change of one layer after the other, always that which saves most time for the least divergence, gives a path of
   plans, from none to as fast as it gets.
4. Plans on the path are really quantized, sequentially, compiled, and judged on the selection samples; bisection finds
   the last within the budget, and a few more changes are tried from there, also to precisions that the path passed by
   because they save less time for what they lose. What a plan does not quantize is left float, and once more made
   int8; the whole network in int8, by onnxruntime, competes.
5. All of these networks are timed in turns.

The selection samples are neither those that layers are fitted to nor, it is up to the caller, those of the last test. A
plan is within a budget of accuracy if the 95 % bound of its drop is, not the drop itself: searching picks lucky ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import onnx

from binarize_onnx import int8_edges, io, pipeline
from binarize_onnx.calibration import feeds
from binarize_onnx.errors import ModelError, UsageError
from binarize_onnx.gates import Gate, at_least, at_most, percent
from binarize_onnx.passes.recognise_layers import Filter
from binarize_onnx.quantize import int8, layer_times, pareto, preset, sensitivity, sites
from binarize_onnx.quantize.drop_bound import Drop, smallest_bound
from binarize_onnx.quantize.layer_times import FLOAT, INT8, LayerTimes
from binarize_onnx.quantize.pareto import Point
from binarize_onnx.quantize.plan import Plan
from binarize_onnx.quantize.post_training import Progress, quantize
from binarize_onnx.quantize.precision import Precision
from binarize_onnx.quantize.scoring import Judge, Labelled, Scored, require_budget
from binarize_onnx.quantize.sensitivity import Sensitivity
from binarize_onnx.quantize.sites import Site
from binarize_onnx.reasons import Code, Reason
from binarize_onnx.report import Report

PRESETS = tuple(Precision.parse(text) for text in ("w1a1", "w1a2", "w1a4", "w2a2", "w2a4", "w2a6", "w3a6"))
RANKED_ON = 512  # samples for the sensitivities: of those to fit to, and of those to judge on
RANGES_FROM = 128  # samples for the ranges of int8
TRIES = 4  # changes that are tried behind the last plan within the budget
SECONDS = 8.0  # of timing all networks in turns
EPSILON = 1e-6  # nats: less divergence is none

Form = str  # "float", "int8" or a precision


@dataclass(frozen=True)
class Budget:
    """What the caller can afford; at least one of these.

    Attributes:
        max_drop: percentage points of accuracy (of agreement with the float model without labels, decibels with
            targets) that may be lost: the 95 % bound is to be no larger.
        target_speedup: how many times faster than onnxruntime with the float model.
        target_ops: operations as a share of the float model's, between 0 and 1.
    """

    max_drop: float | None = None
    target_speedup: float | None = None
    target_ops: float | None = None

    def __post_init__(self) -> None:
        """Refuse budgets that say nothing."""
        if self.max_drop is None and self.target_speedup is None and self.target_ops is None:
            raise UsageError(
                "a search needs a budget:", fix="give --max-drop POINTS, --target-speedup TIMES or --target-ops SHARE."
            )
        if self.max_drop is not None and not self.max_drop >= 0:
            raise UsageError(f"max_drop is {self.max_drop};", fix="give a number from 0 on.")
        if self.target_speedup is not None and not self.target_speedup > 0:
            raise UsageError(f"target_speedup is {self.target_speedup};", fix="give a number above 0.")
        if self.target_ops is not None and not 0 < self.target_ops <= 1:
            raise UsageError(f"target_ops is {self.target_ops};", fix="give a share above 0, up to 1.")


@dataclass(frozen=True, eq=False)
class Candidate:
    """A network that was really made, with what the judge says of it."""

    model: onnx.ModelProto
    report: Report | None
    scored: Scored
    drop: Drop | None
    forms: Mapping[str, Form]
    ops: float
    kind: pareto.Kind
    name: str


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found.

    Attributes:
        points: every network that was measured.
        chosen: the one to use: it meets the budget, and no other that does is better. None if none does.
        best: the chosen one, or the nearest to the budget.
        verdict: in a sentence.
        gates: the budget, checked on `best`.
        int8_is_better: int8 is at least as fast and as good as everything with binary weights within the budget.
    """

    judge: Judge
    budget: Budget
    points: list[Point]
    chosen: Point | None
    best: Point
    verdict: str
    gates: list[Gate]
    int8_is_better: bool
    candidate: Candidate
    sensitivities: list[Sensitivity]
    times: Mapping[str, Mapping[str, float]]
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "metric": self.judge.metric,
            "unit": self.judge.unit,
            "selection_samples": self.judge.samples.count,
            "budget": {k: v for k, v in vars(self.budget).items() if v is not None},
            "verdict": self.verdict,
            "int8_is_better": self.int8_is_better,
            "chosen": None if self.chosen is None else self.chosen.name,
            "best": self.best.to_json(),
            "front": [p.name for p in pareto.front(self.points)],
            "points": [p.to_json() for p in self.points],
            "sensitivities": [s.to_json() for s in self.sensitivities],
            "layer_us": {name: dict(times) for name, times in self.times.items()},
            "notes": self.notes,
        }

    def table(self) -> str:
        """All networks for a person, and the verdict."""
        return "\n".join(
            [pareto.table(self.points, self.judge.metric, self.judge.unit, self.chosen), *self.notes, "", self.verdict]
        )

    def svg(self) -> str:
        """The picture of all networks."""
        return pareto.svg(self.points, self.judge.metric, self.judge.unit, self.chosen)


def search(
    source: io.Source,
    calibration: Labelled,
    selection: Labelled,
    budget: Budget,
    *,
    config: pipeline.Config | None = None,
    precisions: Sequence[Precision] = PRESETS,
    threads: int = 1,
    progress: Progress | None = None,
) -> Found:
    """Search for the best network within a budget.

    Args:
        source: the float model.
        calibration: samples to fit layers to; labels are not looked at.
        selection: other samples, to judge networks on; see `scoring` for what labels mean.
        budget: what can be afforded.
        config: which layers may be quantized, by which methods (`ptq_settings`), and how models are compiled.
        precisions: to choose from.
        threads: of onnxruntime, for all times.
        progress: is told in words what is being done.

    Raises:
        ModelError: samples do not fit, or a model does not run.
        UsageError: the budget needs labels, more samples, or sizes that the model leaves open.
        NothingMatched: the network has no layer that can be quantized.
    """
    config = replace(config or pipeline.Config(), ptq=None, edges="float", emit="compiled")
    return _Search(source, calibration, selection, budget, config, precisions, threads, progress).run()


def require_samples(budget: Budget, judge: Judge) -> None:
    """Refuse a budget that so few samples cannot show to be kept, even by the float model itself.

    Raises:
        UsageError: there are too few.
    """
    if budget.max_drop is None:
        return
    require_budget(judge)
    if judge.unit == "dB" and judge.samples.count < 2:
        raise UsageError("one sample shows nothing of how far PSNR varies:", fix="give more to select on.")
    if judge.unit != "points" or 100 * smallest_bound(judge.samples.count) <= budget.max_drop:
        return
    needed = judge.samples.count
    while 100 * smallest_bound(needed) > budget.max_drop and needed < 1 << 20:
        needed += max(1, needed // 20)
    raise UsageError(
        f"{judge.samples.count} samples cannot show that at most {budget.max_drop:g} points are lost:",
        fix=f"give about {needed} to select on, or a larger --max-drop.",
    )


class _Search:
    """One search; attributes are those of `search`."""

    def __init__(
        self,
        source: io.Source,
        calibration: Labelled,
        selection: Labelled,
        budget: Budget,
        config: pipeline.Config,
        precisions: Sequence[Precision],
        threads: int,
        progress: Progress | None,
    ) -> None:
        self._source, self._config, self._calibration, self._budget = source, config, calibration, budget
        self._threads, self._tell = threads, progress or (lambda _: None)
        self._network = network = sites.find(source.model, config)
        wanted = Filter(config.nodes_to_quantize, config.nodes_to_exclude, config.op_types_to_exclude)
        chosen, self._left = network.choose(Precision(1, 1), wanted)
        self._sites = [site for site in network.sites if site.name in chosen]
        if not self._sites:
            raise preset.nothing_to_choose(self._left)
        self._precisions = tuple(sorted(set(precisions)))
        self._judge = Judge(network.model, selection)
        require_samples(budget, self._judge)
        if budget.target_ops is not None and any(site.macs is None for site in network.sites):
            raise UsageError(
                "a share of the operations is demanded, and sizes are open: nothing tells how many there are.",
                fix="Fix them with --input-shape.",
            )
        self._feed = next(feeds(network.model, calibration.inputs, 1))
        self._by_ops = budget.target_ops is not None and budget.max_drop is None and budget.target_speedup is None
        self._ranges = calibration.first(RANGES_FROM)
        self._candidates: dict[tuple[tuple[str, Precision], ...], list[Candidate]] = {}
        self._float_ops = float(sum(site.macs or 0 for site in network.sites))
        self._notes: list[str] = []

    def run(self) -> Found:
        """Everything."""
        self._tell("timing the layers")
        clock = LayerTimes(self._network, self._feed, threads=self._threads)
        self._times = {site.name: clock.of(site, self._precisions) for site in self._sites}
        wanted = self._wanted = {site.name: self._worthwhile(site) for site in self._sites}
        out = sum(not precisions for precisions in wanted.values())
        if out:
            self._notes.append(f"{out} of {len(wanted)} layers are no faster in any precision than in int8 or float32")
        some = self._calibration.first(RANKED_ON)
        first = self._judge.samples.first(RANKED_ON)
        found = sensitivity.measure(
            self._network,
            some.inputs,
            Judge(self._network.model, first),
            wanted,
            sensitivity.quick(self._config.ptq_settings),
            self._tell,
        )
        self._divergence = {(s.name, s.precision): s.divergence for s in found}
        path = self._path(wanted)
        self._notes.append(f"{len(path)} plans on the path, {len(wanted)} layers")
        if path:
            self._walk(path)
        return self._conclude(found)

    # --- The path ------------------------------------------------------------------------------------------------

    def _cost(self, site: Site, precision: Precision | None) -> float:
        """Time of a layer, or its operations where these alone are asked for; None is as it is outside of plans."""
        if self._by_ops:
            return (site.macs or 0) * (1.0 if precision is None else _ops_share(precision))
        times = self._times[site.name]
        return min(times[FLOAT], times.get(INT8, np.inf)) if precision is None else times[str(precision)]

    def _worthwhile(self, site: Site) -> list[Precision]:
        return [p for p in self._precisions if self._cost(site, p) < self._cost(site, None)]

    def _path(self, wanted: Mapping[str, Sequence[Precision]]) -> list[dict[str, Precision]]:
        """Plans, each with one layer changed against the one before."""
        plan: dict[str, Precision] = {}
        path: list[dict[str, Precision]] = []
        while True:
            best: tuple[float, Site, Precision] | None = None
            for site in self._sites:
                now = plan.get(site.name)
                lost = 0.0 if now is None else self._divergence[site.name, now]
                for p in wanted[site.name]:
                    saved = self._cost(site, now) - self._cost(site, p)
                    if saved > 0:
                        rate = saved / max(self._divergence[site.name, p] - lost, EPSILON)
                        if best is None or rate > best[0]:
                            best = rate, site, p
            if best is None:
                return path
            plan = {**plan, best[1].name: best[2]}
            path.append(plan)

    def _walk(self, path: Sequence[dict[str, Precision]]) -> None:
        """Bisect for the last plan within the budget, and try what comes behind it, one change at a time."""
        forward = self._budget.max_drop is not None  # further as long as accuracy lasts; otherwise as far as needed
        low, high = -1, len(path)
        if self._enough(path[-1]) if forward else not self._enough(path[-1]):
            return  # the whole path is within the budget, or not even its end is far enough
        high = len(path) - 1
        while high - low > 1:
            middle = (low + high) // 2
            if self._enough(path[middle]) == forward:
                low = middle
            else:
                high = middle
        if forward:
            self._extend(path[low] if low >= 0 else {}, path[low + 1 :])

    def _extend(self, plan: dict[str, Precision], later: Sequence[Mapping[str, Precision]]) -> None:
        """Try the changes that come next, each also in precisions that lose less and save less."""
        tried = 0
        before: Mapping[str, Precision] = plan
        for after in later:
            (name,) = (name for name, p in after.items() if before.get(name) != p)
            before = after
            lost = self._divergence[name, after[name]]
            gentler = [p for p in self._wanted[name] if self._divergence[name, p] < lost]
            for p in [after[name], *sorted(gentler, key=lambda p: -self._divergence[name, p])]:
                extended = {**plan, name: p}
                if _key(extended) in self._candidates or p == plan.get(name):
                    continue
                if tried == TRIES:
                    return
                tried += 1
                if self._enough(extended):
                    plan = extended
                    break

    def _enough(self, plan: Plan) -> bool:
        """Whether the plan is within the budget of accuracy; without one, whether it is fast or small enough."""
        made = self._made(plan)
        if self._budget.max_drop is not None:
            return any(c.drop is not None and c.drop.bound <= self._budget.max_drop for c in made)
        if self._budget.target_speedup is not None:
            models = [self._network.model, *(c.model for c in made)]
            times = layer_times.of_networks(models, self._feed, threads=self._threads, seconds=2.0)
            return any(t.speedup >= self._budget.target_speedup for t in times[1:])
        assert self._budget.target_ops is not None
        return any(c.ops <= self._budget.target_ops * self._float_ops for c in made)

    # --- Networks ------------------------------------------------------------------------------------------------

    def _made(self, plan: Plan) -> list[Candidate]:
        """The networks of a plan: the rest float, and the rest int8."""
        key = _key(plan)
        if key not in self._candidates:
            self._tell(f"network {len(self._candidates) + 1}: {_described(plan)}")
            result = self._compiled(plan)
            rest = {s.name for s in self._network.sites if s.name not in plan}
            forms: dict[str, Form] = {**dict.fromkeys(rest, FLOAT), **{n: str(p) for n, p in plan.items()}}
            found = [self._candidate(result, forms, plan, "rest float")]
            slower = {name for name in rest if name in self._times and not self._is_int8_faster(name)}
            model, names, effects = int8_edges.quantize(result.model, self._ranges.inputs, float_layers=slower)
            if names:
                report = deepcopy(result.report)
                report.add_int8(names, effects, io.byte_size(model))
                mixed = {**forms, **dict.fromkeys(rest.intersection(names), INT8)}
                found.append(self._candidate(pipeline.Result(model, report), mixed, plan, "rest int8"))
            self._candidates[key] = found
        return self._candidates[key]

    def _compiled(self, plan: Plan) -> pipeline.Result:
        """The network of a plan, the rest of it float."""
        config, network = self._config, self._network
        quantized = quantize(network, self._calibration.inputs, plan, config.ptq_settings)
        words = "the search leaves it as it is"
        left = {site.name: Reason(Code.EXCLUDED, words) for site in network.sites if site.name not in plan}
        trained = preset.trained(self._source, config, network, plan, {**left, **self._left}, quantized)
        return pipeline.compile_trained(trained, self._source, config, None)

    def _candidate(self, result: pipeline.Result, forms: Mapping[str, Form], plan: Plan, rest: str) -> Candidate:
        scored = self._judge.score(result.model, library=True)
        name = f"{_described(plan)}; {rest}"
        return Candidate(
            result.model, result.report, scored, self._judge.drop(scored), forms, self._ops(plan), "mixed", name
        )

    def _is_int8_faster(self, name: str) -> bool:
        return self._times[name].get(INT8, np.inf) < self._times[name][FLOAT]

    def _ops(self, plan: Plan) -> float:
        return sum((s.macs or 0) * (_ops_share(plan[s.name]) if s.name in plan else 1.0) for s in self._network.sites)

    def _peers(self) -> list[Candidate]:
        """The float network, and the whole of it in int8."""
        model = self._network.model
        found = [self._peer(model, "float")]
        self._tell("the whole network in int8")
        try:
            found.append(self._peer(int8.whole(model, feeds(model, self._ranges.inputs)), "int8"))
        except ModelError as error:
            self._notes.append(f"there is no int8 to compare with: {error}")
        return found

    def _peer(self, model: onnx.ModelProto, kind: Literal["float", "int8"]) -> Candidate:
        scored = self._judge.reference if kind == FLOAT else self._judge.score(model)
        forms = {site.name: kind for site in self._network.sites}
        return Candidate(model, None, scored, self._judge.drop(scored), forms, self._float_ops, kind, kind)

    # --- The result ----------------------------------------------------------------------------------------------

    def _conclude(self, sensitivities: list[Sensitivity]) -> Found:
        made = [*self._peers(), *(c for found in self._candidates.values() for c in found)]
        self._tell(f"timing {len(made)} networks")
        models = [c.model for c in made]
        times = layer_times.of_networks(models, self._feed, threads=self._threads, seconds=SECONDS)
        points = [
            Point(
                c.name,
                c.kind,
                c.scored.value,
                self._loss(c),
                c.drop,
                t.us,
                t.speedup,
                c.ops,
                io.byte_size(c.model),
                c.forms,
            )
            for c, t in zip(made, times, strict=True)
        ]
        meets = [p for p in points if all(g.passed for g in self._gates(p))]
        order = _fastest if self._budget.max_drop is not None else _best
        eight = next((p for p in points if p.kind == INT8), None)
        worth = [p for p in meets if p.kind != "mixed" or eight is None or not eight.beats(p)]
        if eight is not None and len(worth) < len(meets):
            worth.append(eight)  # it meets what these meet, but for the bound perhaps or for operations
        chosen = min(worth, key=order, default=None)
        better = chosen is not None and chosen.kind == INT8
        best = chosen or min(points, key=lambda p: (self._distance(p), order(p)))
        candidate = made[points.index(best)]
        verdict = self._verdict(chosen, best, eight, better)
        return Found(
            self._judge,
            self._budget,
            points,
            chosen,
            best,
            verdict,
            self._gates(best),
            better,
            candidate,
            sensitivities,
            self._times,
            self._notes,
        )

    def _loss(self, candidate: Candidate) -> float:
        return candidate.scored.divergence if candidate.drop is None else candidate.drop.drop

    def _gates(self, p: Point) -> list[Gate]:
        gates, budget, unit = [], self._budget, self._judge.unit
        if budget.max_drop is not None:
            bound = None if p.drop is None else p.drop.bound
            lost = "nothing measures what is lost" if p.drop is None else f"{p.drop.drop:+.2f} {unit} lost"
            words = lost if bound is None else f"{lost} on {p.drop and p.drop.samples} samples, at most {bound:+.2f}"
            gates.append(at_most("max-drop", bound, budget.max_drop, words, lambda v: f"{v:g} {unit}"))
        if budget.target_speedup is not None:
            words = f"it is {p.speedup:.2f} times as fast as the float model"
            gates.append(at_least("target-speedup", p.speedup, budget.target_speedup, words, lambda v: f"{v:g}"))
        if budget.target_ops is not None:
            share = p.ops / self._float_ops
            words = f"it has {percent(float(f'{share:.3g}'))} of the operations"
            gates.append(at_most("target-ops", share, budget.target_ops, words, percent))
        return gates

    def _distance(self, p: Point) -> float:
        """How far from the budget, in the worst of its parts, relative to that part."""
        budget, found = self._budget, [0.0]
        if budget.max_drop is not None:
            bound = float("inf") if p.drop is None else p.drop.bound
            found.append((bound - budget.max_drop) / max(budget.max_drop, 0.1))
        if budget.target_speedup is not None:
            found.append(budget.target_speedup / p.speedup - 1)
        if budget.target_ops is not None:
            found.append(p.ops / self._float_ops / budget.target_ops - 1)
        return max(found)

    def _verdict(self, chosen: Point | None, best: Point, eight: Point | None, better: bool) -> str:
        against = f"int8: {eight.speedup:.2f} times as fast as float, {self._lost(eight)}" if eight else "no int8"
        if chosen is None:
            nearest = f"{best.name}, {best.speedup:.2f} times as fast as float, {self._lost(best)}"
            return f"No network meets the budget. Nearest to it: {nearest} ({against})."
        if better:
            return f"int8 is better here: nothing with binary weights is as fast without losing more ({against})."
        if chosen.kind == FLOAT:
            return f"Only the float model is within the budget ({against})."
        return f"{chosen.name}: {chosen.speedup:.2f} times as fast as float, {self._lost(chosen)} ({against})."

    def _lost(self, p: Point) -> str:
        if p.drop is None:
            return f"squared error {p.loss:.3g}"
        return f"{p.loss:.2f} {self._judge.unit} lost (at most {p.drop.bound:.2f})"


def _fastest(p: Point) -> tuple[float, float]:
    return p.us, p.loss


def _best(p: Point) -> tuple[float, float]:
    return p.loss, p.us


def _ops_share(precision: Precision) -> float:
    """Of a layer's float operations: every base with every bit is a binary layer."""
    return precision.bases * precision.bits / 64


def _key(plan: Plan) -> tuple[tuple[str, Precision], ...]:
    """The same for equal plans."""
    return tuple(sorted(plan.items()))


def _described(plan: Plan) -> str:
    """`12 layers: 4 w1a1, 8 w2a4`."""
    counts: dict[str, int] = {}
    for precision in sorted(plan.values()):
        counts[str(precision)] = counts.get(str(precision), 0) + 1
    words = ", ".join(f"{number} {name}" for name, number in counts.items())
    return f"{len(plan)} layer{'s' if len(plan) != 1 else ''}: {words}"
