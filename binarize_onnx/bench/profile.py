"""What each node of a model takes, from onnxruntime's profiler.

The profiler takes time itself, about a microsecond a node, so it runs in sessions of their own: nothing here enters the
end-to-end times.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from binarize_onnx.bench.timing import time_in_turns

FEWEST_RUNS, MOST_RUNS = 20, 200
_KERNEL = "_kernel_time"

Start = Callable[[Any], Any]  # session options to a session


@dataclass(frozen=True)
class NodeTime:
    """A node that ran: its name and operator in the optimised graph, and microseconds a run."""

    name: str
    op: str
    us: float


@dataclass(frozen=True)
class Profile:
    """Where the time of one run goes.

    Attributes:
        total: microseconds a run, from onnxruntime's own mark around it.
        nodes: the nodes of the main graph; what a node runs inside (If, Loop) is part of its time.
        graph: the graph that ran, after onnxruntime's optimisations.
        runs: how many runs this is the mean of.
    """

    total: float
    nodes: tuple[NodeTime, ...]
    graph: onnx.GraphProto
    runs: int


def profile(contestants: Sequence[tuple[Start, Any]], folder: Path, seconds: float) -> list[Profile]:
    """Profile sessions in turns.

    Args:
        contestants: a function that starts a session from options, and the options to give it, for each.
        folder: for the profiler's files and the optimised graphs.
        seconds: of running, all together.
    """
    sessions = []
    for index, (start, options) in enumerate(contestants):
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / f"profile{index}")
        options.optimized_model_filepath = str(folder / f"optimised{index}.onnx")
        sessions.append(start(options))
    time_in_turns([session.run for session in sessions], seconds, fewest=FEWEST_RUNS, most=MOST_RUNS)
    found = []
    for index, session in enumerate(sessions):
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        optimised = onnx.load(folder / f"optimised{index}.onnx", load_external_data=False)
        total, nodes, runs = read_events(events)
        found.append(Profile(total, nodes, optimised.graph, runs))
    return found


def read_events(events: Iterable[dict[str, Any]]) -> tuple[float, tuple[NodeTime, ...], int]:
    """Microseconds a run, those of every node, and the number of runs.

    The mean is over the middle half of the runs: sums stay sums, and a run that something interrupted does not count.
    """
    timed = sorted((e for e in events if "dur" in e), key=lambda e: (e["ts"], -e["dur"]))
    whole = [e for e in timed if e["name"] == "model_run"]
    by_duration = sorted(whole, key=lambda e: e["dur"])
    quarter = len(whole) // 4
    kept = sorted(by_duration[quarter : len(whole) - quarter], key=lambda e: e["ts"])
    kernels = [e for e in timed if e.get("cat") == "Node" and e["name"].endswith(_KERNEL)]
    starts = np.asarray([e["ts"] for e in kernels])
    sums: dict[tuple[str, str], float] = {}
    for run in kept:
        end = run["ts"]
        first, last = np.searchsorted(starts, (run["ts"], run["ts"] + run["dur"] + 1))
        for event in kernels[first:last]:
            if event["ts"] < end:
                continue  # inside the node before it, whose time has it already
            end = event["ts"] + event["dur"]
            key = event["name"].removesuffix(_KERNEL), event["args"].get("op_name", "?")
            sums[key] = sums.get(key, 0.0) + event["dur"]
    total = sum(run["dur"] for run in kept) / len(kept)
    return total, tuple(NodeTime(name, op, us / len(kept)) for (name, op), us in sums.items()), len(kept)


def with_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every node of the main graph has a name of its own: what the converter would call it."""
    named = onnx.ModelProto()
    named.CopyFrom(model)
    taken = Counter(node.name for node in named.graph.node)
    for node in named.graph.node:
        if not node.name or taken[node.name] > 1:
            base = next((name for name in node.output if name), node.op_type)
            node.name = next(n for i in count() if (n := f"{base}.{i}" if i else base) and not taken[n])
            taken[node.name] += 1
    return named
