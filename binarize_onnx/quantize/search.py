"""The fastest network within a budget of accuracy, or the most accurate within one of time: a precision a layer.

1. Every layer is timed alone on this machine: in float32, in int8, and in each precision (`layer_times`). A precision
   that is much slower than int8 there is out: int8 costs next to nothing in accuracy. One that is a little slower alone
   may be faster between others.
2. The whole network in int8, by onnxruntime, is made, judged and timed: it is what has to be beaten.
3. Every layer is quantized alone in each precision that is left (`sensitivity`).
4. Changes of one layer after the other give two paths of plans (`paths`): from none to as fast as it gets, and from all
   layers as gently as may be to there. A third has all layers in one precision.
5. Plans are *rehearsed*: a network of that form, fitted to next to nothing, tells the time. Bisection finds the first
   plan of a path that is fast enough to be chosen, and from there the last within the budget. When all paths are done,
   a few more changes are tried behind these, also to precisions that the path passed by. Only what is looked at so is
   really quantized, compiled and judged; what a plan does not quantize is left float, or made int8, whichever is
   faster.
6. All of these networks are timed in turns.

The selection samples are neither those that layers are fitted to nor, it is up to the caller, those of the last test. A
plan is within a budget of accuracy if the bound of its drop is, not the drop itself. Searching picks lucky ones: so the
bound is that of ten tests at once (Bonferroni), and no more networks than that are judged by it. What the first samples
show to be far beyond the budget is dropped there, and not counted: nothing is accepted so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import onnx

from binarize_onnx import int8_edges, io, pipeline
from binarize_onnx.calibration import Samples, feeds
from binarize_onnx.errors import ModelError, UsageError
from binarize_onnx.gates import Gate, at_least, at_most, percent
from binarize_onnx.passes.recognise_layers import Filter
from binarize_onnx.quantize import int8, layer_times, pareto, paths, preset, sensitivity, sites
from binarize_onnx.quantize.drop_bound import CONFIDENCE, Drop, smallest_bound
from binarize_onnx.quantize.layer_times import FLOAT, INT8, LayerTimes
from binarize_onnx.quantize.pareto import Point
from binarize_onnx.quantize.plan import Plan, Settings
from binarize_onnx.quantize.post_training import Progress, quantize
from binarize_onnx.quantize.precision import Precision
from binarize_onnx.quantize.scoring import Judge, Labelled, Scored, require_budget
from binarize_onnx.quantize.sensitivity import Sensitivity
from binarize_onnx.quantize.sites import Site
from binarize_onnx.reasons import Code, Reason
from binarize_onnx.report import Report

PRESETS = tuple(Precision.parse(text) for text in ("w1a1", "w1a2", "w1a4", "w2a2", "w2a4", "w2a6", "w3a6"))
RANKED_ON = 128  # samples for the sensitivities: of those to fit to, and of those to judge on
RANGES_FROM = 128  # samples for the ranges of int8
JUDGED = 10  # networks, that of int8 included, that are judged on all samples; fewer where there are few samples
FEWEST_JUDGED = 2
TRIES = 4  # changes that are tried behind the last plan within the budget
SECONDS = 8.0  # of timing all networks in turns
REHEARSED = 0.5  # seconds of timing the networks of one plan
SLOWER = 1.5  # times int8, or float32: what is slower alone is so in a network
SLACK = 0.01  # by which such a time may be wrong
REHEARSAL = Settings("greedy", "means", "none", compensate=False, readout=False, patches=64)

Form = str  # "float", "int8" or a precision
_Rest = Literal["float", "int8"]
_Key = tuple[tuple[str, Precision], ...]


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
        outdone: where int8 misses the budget itself, the best of those within it, all of which int8 beats.
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
    outdone: Point | None = None
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
            "outdone": None if self.outdone is None else self.outdone.to_json(),
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
    if networks_to_judge(budget, judge) >= FEWEST_JUDGED:
        return
    needed = judge.samples.count
    while 100 * smallest_bound(needed, certainty(FEWEST_JUDGED)) > budget.max_drop and needed < 1 << 20:
        needed += max(1, needed // 20)
    raise UsageError(
        f"{judge.samples.count} samples cannot show that at most {budget.max_drop:g} points are lost:",
        fix=f"give about {needed} to select on, or a larger --max-drop.",
    )


def networks_to_judge(budget: Budget, judge: Judge) -> int:
    """How many networks may be judged: JUDGED, or so few that a bound that holds for all can be within the budget."""
    if budget.max_drop is None or judge.unit != "points":
        return JUDGED
    bounds = {n: 100 * smallest_bound(judge.samples.count, certainty(n)) for n in range(1, JUDGED + 1)}
    return max((n for n, bound in bounds.items() if bound <= budget.max_drop), default=0)


def certainty(networks: int) -> float:
    """The confidence of a bound that is right for all of so many networks with that of one."""
    return 1 - (1 - CONFIDENCE) / networks


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
        self._most_judged = networks_to_judge(budget, self._judge)
        self._judge.confidence = certainty(self._most_judged)
        if budget.target_ops is not None and any(site.macs is None for site in network.sites):
            raise UsageError(
                "a share of the operations is demanded, and sizes are open: nothing tells how many there are.",
                fix="Fix them with --input-shape.",
            )
        self._feed = next(feeds(network.model, calibration.inputs, 1))
        self._by_ops = budget.target_ops is not None and budget.max_drop is None and budget.target_speedup is None
        self._ranges = calibration.first(RANGES_FROM)
        self._made: dict[_Key, list[Candidate]] = {}
        self._rehearsals: dict[_Key, dict[_Rest, float]] = {}
        self._judged = 0  # on all samples
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
            self._notes.append(
                f"{out} of {len(wanted)} layers are much slower in every precision than in int8 or float32"
            )
        self._peers = self._float_and_int8()
        return self._conclude(self._searched(wanted) if self._is_worth_it(wanted) else [])

    def _is_worth_it(self, wanted: paths.Wanted) -> bool:
        """Whether there is anything to gain; where accuracy has a budget, faster than what is to be beaten."""
        fastest = paths.fastest(self._sites, wanted, self._cost)
        if not fastest or self._budget.max_drop is None:
            return bool(fastest)
        if self._could_be_chosen(fastest):
            return True
        share = min(self._rehearsed(fastest).values())
        words = f"even in its fastest precisions the network takes {share:.2f} times as long as {self._bar.name}"
        self._notes.append(f"{words}: no more was looked at")
        return False

    def _searched(self, wanted: paths.Wanted) -> list[Sensitivity]:
        """Walk the paths; returns what the layers lose, each alone."""
        some = self._calibration.first(RANKED_ON)
        found = sensitivity.measure(
            self._network,
            some.inputs,
            Judge(self._network.model, self._judge.samples.first(RANKED_ON)),
            wanted,
            sensitivity.quick(self._config.ptq_settings),
            self._tell,
        )
        self._divergence = {(s.name, s.precision): s.divergence for s in found}
        for plan, later in [end for path in self._paths() for end in self._walk(path)]:
            self._extend(plan, later)
        return found

    # --- The paths -----------------------------------------------------------------------------------------------

    def _cost(self, site: Site, precision: Precision | None) -> float:
        """Time of a layer, or its operations where these alone are asked for; None is as it is outside of plans."""
        if self._by_ops:
            return (site.macs or 0) * (1.0 if precision is None else _ops_share(precision))
        times = self._times[site.name]
        return min(times[FLOAT], times.get(INT8, np.inf)) if precision is None else times[str(precision)]

    def _worthwhile(self, site: Site) -> list[Precision]:
        fast = [p for p in self._precisions if self._cost(site, p) < SLOWER * self._cost(site, None)]
        return paths.not_outdone(fast, lambda p: self._cost(site, p))

    def _paths(self) -> Iterator[list[Plan]]:
        """From no layer quantized, and from all of them as gently as may be; then all in one precision."""
        everything = paths.gentlest(self._sites, self._wanted, self._divergence)
        for before, start in (([], {}), ([everything], everything)):
            path = [*before, *paths.path(start, self._sites, self._wanted, self._cost, self._divergence)]
            self._notes.append(f"{len(path)} plans on the path from {'all' if before else 'no'} layers on bits")
            if path:
                yield path
        slowest_first = sorted(self._precisions, key=lambda p: -sum(self._cost(site, p) for site in self._sites))
        yield [{site.name: p for site in self._sites} for p in slowest_first]

    def _walk(self, path: Sequence[Plan]) -> list[tuple[Plan, Sequence[Plan]]]:
        """Without a budget of accuracy, find the first plan that is fast or small enough. With one, the first that
        could be chosen at all, and from there the last within the budget.

        Returns:
            That plan and those behind it, if more changes are worth a try.
        """
        if self._budget.max_drop is None:
            first = _first(path, self._is_enough)
            for plan in path[min(first, len(path) - 1) : first + 2]:  # a rehearsal may be too good by little
                self._candidates(plan)
            return []
        if _key(path[-1]) in self._made and self._is_within(path[-1]):
            return []  # nothing is faster
        first = last = _first(path, self._could_be_chosen)
        if first < len(path) and self._is_within(path[first]):
            last = len(path) if self._is_within(path[-1]) else first + _first(path[first:], self._is_beyond)
        before: Plan = path[last - 1] if last else {}
        if last < len(path) and self._is_near(path[last]) and len(path[last].items() - before.items()) == 1:
            return [(before, path[last:])]
        return []

    def _extend(self, plan: Plan, later: Sequence[Plan]) -> None:
        """Try the changes that come next, each also in precisions that lose less and save less."""
        tried = 0
        before: Plan = plan
        for after in later:
            (name,) = (name for name, p in after.items() if before.get(name) != p)
            before = after
            lost = self._divergence[name, after[name]]
            gentler = [p for p in self._wanted[name] if self._divergence[name, p] < lost]
            for p in [after[name], *sorted(gentler, key=lambda p: -self._divergence[name, p])]:
                extended = {**plan, name: p}
                if _key(extended) in self._rehearsals or p == plan.get(name):
                    continue
                if tried == TRIES:
                    return
                tried += 1
                if self._could_be_chosen(extended) and self._is_within(extended):
                    plan = extended
                    break

    # --- Plans ---------------------------------------------------------------------------------------------------

    def _could_be_chosen(self, plan: Plan) -> bool:
        """Whether a plan's network is faster than what is to be beaten: int8 if that is within the budget, or float."""
        return min(self._rehearsed(plan).values()) < 1 + SLACK

    def _is_within(self, plan: Plan) -> bool:
        """Whether a network of the plan is shown to be within the budget of accuracy."""
        if _key(plan) not in self._made and self._judged >= self._most_judged:
            return False
        return any(self._keeps(c.drop) for c in self._candidates(plan))

    def _is_beyond(self, plan: Plan) -> bool:
        return not self._is_within(plan)

    def _is_near(self, plan: Plan) -> bool:
        """Whether it took all samples to see that a plan is not within the budget."""
        made = self._made.get(_key(plan), [])
        return any(c.drop is not None and c.drop.samples == self._judge.samples.count for c in made)

    def _keeps(self, drop: Drop | None) -> bool:
        return self._budget.max_drop is None or (drop is not None and drop.bound <= self._budget.max_drop)

    def _is_enough(self, plan: Plan) -> bool:
        """Whether a plan is fast and small enough."""
        speedup, ops = self._budget.target_speedup, self._budget.target_ops
        fast = speedup is None or min(self._rehearsed(plan).values()) * speedup <= 1
        return fast and (ops is None or self._ops(plan) <= ops * self._float_ops)

    def _rehearsed(self, plan: Plan) -> dict[_Rest, float]:
        """The times of a plan's networks, as shares of that of the one to beat."""
        key = _key(plan)
        if key not in self._rehearsals:
            self._tell(f"timing {_described(plan)}")
            one = self._calibration.first(1).inputs
            result = self._compiled(plan, one, REHEARSAL)
            models: dict[_Rest, onnx.ModelProto] = {"float": result.model}
            with suppress(ModelError):
                models["int8"] = int8_edges.quantize(result.model, one, float_layers=self._slower_in_int8(plan))[0]
            every = [self._bar.model, *models.values()]
            times = layer_times.of_networks(every, self._feed, threads=self._threads, seconds=REHEARSED)
            self._rehearsals[key] = {rest: 1 / t.speedup for rest, t in zip(models, times[1:], strict=True)}
        return self._rehearsals[key]

    @property
    def _bar(self) -> Candidate:
        """What a network has to beat in time: int8, if that is within a budget of accuracy; otherwise float."""
        beaten = [
            c for c in self._peers if c.kind == INT8 and self._budget.max_drop is not None and self._keeps(c.drop)
        ]
        return (beaten or self._peers)[0]

    def _candidates(self, plan: Plan) -> list[Candidate]:
        """The networks of a plan, fitted and judged: the rest float or int8, the faster first, until one will do."""
        key = _key(plan)
        if key not in self._made:
            self._tell(f"network {len(self._made) + 1}: {_described(plan)}")
            times = self._rehearsed(plan)
            most = (1 + SLACK) / (1 if self._budget.max_drop is not None else self._budget.target_speedup or 1)
            fitted = self._compiled(plan, self._calibration.inputs, self._config.ptq_settings)
            found: list[Candidate] = []
            for rest in sorted(times, key=lambda rest: times[rest]):
                done = self._budget.max_drop is not None and any(self._keeps(c.drop) for c in found)
                will_do = times[rest] < most or self._by_ops
                if not found or (will_do and not done and self._judged < self._most_judged):
                    found += self._finished(plan, rest, fitted)
            self._made[key] = found
        return self._made[key]

    def _compiled(self, plan: Plan, data: Samples, settings: Settings) -> pipeline.Result:
        """The network of a plan, the rest of it float."""
        network, config = self._network, replace(self._config, ptq_settings=settings)
        quantized = quantize(network, data, plan, settings)
        words = "the search leaves it as it is"
        left = {site.name: Reason(Code.EXCLUDED, words) for site in network.sites if site.name not in plan}
        trained = preset.trained(self._source, config, network, plan, {**left, **self._left}, quantized)
        return pipeline.compile_trained(trained, self._source, config, None)

    def _finished(self, plan: Plan, rest: _Rest, fitted: pipeline.Result) -> list[Candidate]:
        """The network of a plan with its rest as wanted; none if onnxruntime cannot make it."""
        left = {s.name for s in self._network.sites if s.name not in plan}
        forms: dict[str, Form] = {**dict.fromkeys(left, FLOAT), **{n: str(p) for n, p in plan.items()}}
        model, report = fitted.model, fitted.report
        if rest == INT8:
            try:
                inputs, slower = self._ranges.inputs, self._slower_in_int8(plan)
                model, names, effects = int8_edges.quantize(model, inputs, float_layers=slower)
            except ModelError as error:
                self._notes.append(f"{_described(plan)}; left out with the rest in int8: {error}")
                return []
            report = deepcopy(report)
            report.add_int8(names, effects, io.byte_size(model))
            forms |= dict.fromkeys(left.intersection(names), INT8)
        scored, drop = self._scored(model, library=True)
        name = f"{_described(plan)}; rest {rest}"
        return [Candidate(model, report, scored, drop, forms, self._ops(plan), "mixed", name)]

    def _scored(self, model: onnx.ModelProto, *, library: bool) -> tuple[Scored, Drop | None]:
        """What the judge says: on the first samples alone if these show that the budget is missed by far."""
        most = self._budget.max_drop
        hopeless = None if most is None else lambda drop: bool(drop.least > most)
        scored = self._judge.score(model, library=library, hopeless=hopeless)
        drop = self._judge.drop(scored)
        if drop is not None and drop.samples == self._judge.samples.count:
            self._judged += 1
        return scored, drop

    def _slower_in_int8(self, plan: Plan) -> set[str]:
        times = {name: self._times[name] for name in self._times if name not in plan}
        return {name for name, t in times.items() if not t.get(INT8, np.inf) < t[FLOAT]}

    def _ops(self, plan: Plan) -> float:
        return sum((s.macs or 0) * (_ops_share(plan[s.name]) if s.name in plan else 1.0) for s in self._network.sites)

    def _float_and_int8(self) -> list[Candidate]:
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
        if kind == FLOAT:
            scored = self._judge.reference
            drop = self._judge.drop(scored)
        else:
            scored, drop = self._scored(model, library=False)
        forms = {site.name: kind for site in self._network.sites}
        return Candidate(model, None, scored, drop, forms, self._float_ops, kind, kind)

    # --- The result ----------------------------------------------------------------------------------------------

    def _conclude(self, sensitivities: list[Sensitivity]) -> Found:
        made = [*self._peers, *(c for found in self._made.values() for c in found)]
        some = sum(c.drop is not None and c.drop.samples < self._judge.samples.count for c in made)
        if some:
            self._notes.append(f"{some} of {len(made)} networks lose so much that some of the samples showed it")
        if self._judged == self._most_judged:
            self._notes.append(f"{self._judged} networks were judged: the bounds hold for no more")
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
        chosen, outdone = pareto.choose(points, meets, order)
        better = chosen is not None and chosen.kind == INT8
        best = chosen or min(points, key=lambda p: (self._distance(p), order(p)))
        candidate = made[points.index(best)]
        verdict = self._verdict(chosen, best, eight, outdone)
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
            outdone,
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

    def _verdict(self, chosen: Point | None, best: Point, eight: Point | None, outdone: Point | None) -> str:
        against = f"int8: {eight.speedup:.2f} times as fast as float, {self._lost(eight)}" if eight else "no int8"
        if chosen is None:
            nearest = f"{best.name}, {best.speedup:.2f} times as fast as float, {self._lost(best)}"
            return f"No network meets the budget. Nearest to it: {nearest} ({against})."
        if chosen.kind == INT8:
            words = f"int8 is better here: nothing with binary weights is as fast without losing more ({against})."
            if outdone is None:
                return words
            within = f"{outdone.name}, {outdone.speedup:.2f} times as fast as float, {self._lost(outdone)}"
            return f"{words} It misses the budget itself; within it, and beaten by int8: {within}."
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


def _first(path: Sequence[Plan], holds: Callable[[Plan], bool]) -> int:
    """Where a condition begins to hold, by bisection; the length of the path if nowhere."""
    low, high = -1, len(path)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(path[middle]) else (middle, high)
    return high


def _ops_share(precision: Precision) -> float:
    """Of a layer's float operations: every base with every bit is a binary layer."""
    return precision.bases * precision.bits / 64


def _key(plan: Plan) -> _Key:
    """The same for equal plans."""
    return tuple(sorted(plan.items()))


def _described(plan: Plan) -> str:
    """`12 layers: 4 w1a1, 8 w2a4`."""
    counts: dict[str, int] = {}
    for precision in sorted(plan.values()):
        counts[str(precision)] = counts.get(str(precision), 0) + 1
    words = ", ".join(f"{number} {name}" for name, number in counts.items())
    return f"{len(plan)} layer{'s' if len(plan) != 1 else ''}: {words}"
