"""The whole benchmark, read top to bottom: models, inputs, timing in turns, profile."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import EncodeError

from binarize_onnx import foreign, io, runtime
from binarize_onnx.bench import layers as counting
from binarize_onnx.bench.inputs import feed
from binarize_onnx.bench.profile import profile, with_names
from binarize_onnx.bench.results import BODIES, KERNELS, PLAIN, Benchmark, LayerTable, Machine, Row
from binarize_onnx.bench.timing import Times, ratios, rounds, summary, time_in_turns
from binarize_onnx.errors import BinarizeError, ModelError, RuntimeUnavailable, UsageError, one_line
from binarize_onnx.verify.arrays import Arrays
from binarize_onnx.verify.graphs import has_our_ops

SECONDS = 5.0
PROFILE_SHARE = 0.4  # of that time once more, for the profile


@dataclass(frozen=True)
class Contestant:
    """A model and the way to run it; `label` is what tables call it."""

    label: str
    path: Path
    model: onnx.ModelProto
    size: int
    form: str


@dataclass(frozen=True)
class Session:
    """An onnxruntime session with its inputs."""

    session: Any
    inputs: Arrays

    def run(self) -> None:
        """Run once; the outputs are dropped."""
        self.session.run(None, self.inputs)

    def end_profiling(self) -> str:
        """The file of the profile."""
        return str(self.session.end_profiling())


def benchmark(
    models: Sequence[Path],
    *,
    threads: int = 1,
    seconds: float = SECONDS,
    batch: int | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    data: Path | Arrays | None = None,
    bodies: bool = True,
    profiled: bool = True,
) -> Benchmark:
    """Time models side by side on the same inputs.

    The first model is the baseline. Converted files run with the kernels, and once more, in a row of its own, by their
    function bodies as they would without our library; a converted file that is alone has that row as its baseline.

    Args:
        models: ONNX files with the same inputs and outputs.
        threads: of onnxruntime's pool, in each session.
        seconds: of timing, all models together; models of more than a few milliseconds may need longer.
        batch: samples in a run, where the models leave that open.
        input_shapes: sizes of inputs that the models leave open, by name.
        data: .npz or .npy file to take the inputs from, or the inputs; None for seeded random ones.
        bodies: time function bodies too.
        profiled: ask onnxruntime's profiler for the time of each layer.

    Raises:
        ModelError: a model or the data cannot be read or run, or the models do not fit each other.
        UsageError: no model is given, or sizes stay open or contradict the models.
        RuntimeUnavailable: onnxruntime is missing, or a converted file is given and our library cannot be used.
    """
    if not models:
        raise UsageError("there is no model to time.")
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeUnavailable(f"onnxruntime cannot be imported ({error});", fix="install it.") from None
    given = read(models)
    fed, described = feed({c.label: c.model for c in given}, batch=batch, input_shapes=input_shapes, data=data)
    notes: list[str] = []
    everyone = given + (_bodies(given, notes) if bodies else [])
    if len(given) == 1:
        everyone.reverse()  # what a converted file is compared with when it is alone
    sessions = [Session(_start(c, c.path, _options(threads)), fed) for c in everyone]
    for contestant, session in zip(everyone, sessions, strict=True):
        _try(contestant, session)
    times = time_in_turns([session.run for session in sessions], seconds)
    del session, sessions  # the profiler makes its own
    tables = _profile(given, fed, threads, seconds * PROFILE_SHARE, notes) if profiled else ()
    sizes = {values.shape[0] for values in fed.values() if values.ndim}
    return Benchmark(
        machine=Machine(
            cpu=cpu_name(),
            onnxruntime=onnxruntime.__version__,
            threads=threads,
            isa=runtime.selected_isa() if any(c.form == KERNELS for c in given) else None,
            isa_forced=bool(os.environ.get(runtime.ISA_VARIABLE)),
        ),
        inputs=described,
        batch=sizes.pop() if len(sizes) == 1 else None,
        rows=tuple(_row(c, times[0], times[i]) for i, c in enumerate(everyone)),
        layers=tables,
        notes=tuple(notes),
    )


def cpu_name() -> str:
    """The processor as the operating system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, named), platform.processor() or platform.machine())


def read(paths: Sequence[Path]) -> list[Contestant]:
    """The models; where two files have one name, their paths tell them apart."""
    names = [path.name for path in paths]
    found: list[Contestant] = []
    for path in paths:
        source = io.read(path)
        operators = foreign.held(source.model)
        if operators:
            raise ModelError(
                f"holds {', '.join(operators)}, which onnxruntime does not have: there is no time to take.",
                where=str(path),
                fix="Time what `convert --emit ideal` makes of it.",
            )
        label = path.name if names.count(path.name) == 1 else str(path)
        if label in {c.label for c in found}:
            label = f"{label} ({sum(c.path == path for c in found) + 1})"
        found.append(
            Contestant(label, path, source.model, source.size, KERNELS if has_our_ops(source.model) else PLAIN)
        )
    return found


def _bodies(given: Sequence[Contestant], notes: list[str]) -> list[Contestant]:
    """The converted files once more, to be run by their function bodies."""
    found = []
    for c in given:
        if c.form != KERNELS:
            continue
        if c.model.functions:
            found.append(Contestant(c.label, c.path, c.model, c.size, BODIES))
        else:
            notes.append(f"{c.label} holds no function bodies: it runs with our library only")
    return found


def _options(threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads that go on spinning after a run would take the processor from the next contestant.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _start(contestant: Contestant, source: Path | bytes, options: Any) -> Any:
    import onnxruntime

    start = runtime.InferenceSession if contestant.form == KERNELS else onnxruntime.InferenceSession
    try:
        return start(source if isinstance(source, bytes) else str(source), options, providers=["CPUExecutionProvider"])
    except BinarizeError:
        raise
    except Exception as error:  # onnxruntime's own classes share no base
        raise ModelError(f"onnxruntime does not load it: {one_line(error)}", where=contestant.label) from None


def _try(contestant: Contestant, session: Session) -> None:
    """The first run of a session: if any fails, this one does."""
    try:
        session.run()
    except Exception as error:
        raise ModelError(f"onnxruntime does not run it: {one_line(error)}", where=contestant.label) from None


def _row(contestant: Contestant, baseline: Times, times: Times) -> Row:
    speedup = ratios(baseline, times)
    return Row(contestant.label, contestant.form, contestant.size, summary(times), speedup, rounds(times))


def _profile(
    given: Sequence[Contestant], fed: Arrays, threads: int, seconds: float, notes: list[str]
) -> tuple[LayerTable, ...]:
    """Layer by layer, every model against the first; one model alone has nothing to be compared with."""
    if len(given) == 1:
        return ()
    named = [with_names(c.model) for c in given]
    try:
        serialized = [model.SerializeToString() for model in named]
    except (EncodeError, ValueError):
        notes.append("no layers: a model does not fit into one protobuf of 2 GB, and cannot be profiled")
        return ()

    def starter(contestant: Contestant, data: bytes) -> Any:
        return lambda options: Session(_start(contestant, data, options), fed)

    with tempfile.TemporaryDirectory() as folder:
        contestants = [(starter(c, data), _options(threads)) for c, data in zip(given, serialized, strict=True)]
        profiles = profile(contestants, Path(folder), seconds)
    first = (named[0], profiles[0])
    return tuple(
        LayerTable(
            baseline=given[0].label,
            model=given[i].label,
            rows=counting.rows(first, (named[i], profiles[i])),
            baseline_total=profiles[0].total,
            total=profiles[i].total,
            runs=(profiles[0].runs, profiles[i].runs),
        )
        for i in range(1, len(given))
    )
