"""Paths of plans: one change of one layer after the other, always that which saves most for the least divergence.

One path begins at no layer at all, and one with every layer quantized as gently as may be: int8 between layers on bits
costs conversions on both sides, so a network all on bits can be faster than one that has int8 for half its layers.
Both end where every layer is as fast as it gets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from binarize_onnx.quantize.plan import Plan
from binarize_onnx.quantize.precision import Precision
from binarize_onnx.quantize.sites import Site

EPSILON = 1e-6  # nats: less divergence is none

Cost = Callable[[Site, Precision | None], float]
Wanted = Mapping[str, Sequence[Precision]]
Divergence = Mapping[tuple[str, Precision], float]


def not_outdone(precisions: Sequence[Precision], cost: Callable[[Precision], float]) -> list[Precision]:
    """Those to which no other is both finer and no slower."""
    return [
        p
        for p in precisions
        if not any(q != p and q.bases >= p.bases and q.bits >= p.bits and cost(q) <= cost(p) for q in precisions)
    ]


def fastest(sites: Sequence[Site], wanted: Wanted, cost: Cost) -> Plan:
    """Where both paths end: every layer that has precisions at all in that which costs least."""
    found = {}
    for site in sites:
        if wanted[site.name]:
            costs = {p: cost(site, p) for p in wanted[site.name]}
            found[site.name] = min(costs, key=costs.__getitem__)
    return found


def gentlest(sites: Sequence[Site], wanted: Wanted, divergence: Divergence) -> Plan:
    """Every layer that has precisions at all in that which loses least."""
    return {
        site.name: min(wanted[site.name], key=lambda p: divergence[site.name, p]) for site in sites if wanted[site.name]
    }


def path(start: Plan, sites: Sequence[Site], wanted: Wanted, cost: Cost, divergence: Divergence) -> list[Plan]:
    """Plans, each with one layer changed against the one before; the first with one changed against `start`.

    Args:
        start: precisions to begin with, by layer.
        sites: layers that may change.
        wanted: precisions of each, by name.
        cost: of a layer in a precision, or in none.
        divergence: of the network's output if this layer alone is quantized so.
    """
    plan = dict(start)
    found: list[Plan] = []
    while True:
        best: tuple[float, Site, Precision] | None = None
        for site in sites:
            now = plan.get(site.name)
            lost = 0.0 if now is None else divergence[site.name, now]
            for p in wanted[site.name]:
                saved = cost(site, now) - cost(site, p)
                if saved > 0:
                    rate = saved / max(divergence[site.name, p] - lost, EPSILON)
                    if best is None or rate > best[0]:
                        best = rate, site, p
        if best is None:
            return found
        plan = {**plan, best[1].name: best[2]}
        found.append(plan)
