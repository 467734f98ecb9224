"""What it takes before a network runs: to compile it, once, and to create its session, at every start."""

from __future__ import annotations

from pathlib import Path

from contest import compete
from peers import onnxruntime
from process import in_process, progress
from settings import Found, Settings
from tables import Row, Table, times

from sections.networks import RACES, compiled_file, network_file

CONVERT_RUNS = 3
CONVERT = (
    "`convert`, from the path of the file to the converted model in memory: the fastest of {runs} runs, each in a "
    "process of its own. docs/scaling.md shows how it grows."
)
SESSION = "`InferenceSession(path)` until it can run, files in the system's cache, one thread; medians, in turns."


def measure(settings: Settings) -> Found:
    """Sessions in turns; then the compiler, a process a run."""
    sessions, sources = {}, []
    for race in RACES[: 1 if settings.quick else None]:
        sessions[race.title] = str(compiled_file(race, settings.folder))
        sessions[race.replaced_title] = str(network_file(race.replaced, settings.folder))
        if not settings.quick:
            sessions[f"{race.replaced_title} int8"] = str(network_file(f"{race.replaced}-int8", settings.folder))
        sources.append((race.title, network_file(race.binary, settings.folder)))
    made = in_process("sections.start:sessions", sessions, settings.rounds)
    return {"sessions": made, "convert": [_conversion(*source, settings.quick) for source in sources]}


def sessions(paths: dict[str, str], rounds: int) -> Found:
    """Milliseconds until each file has a session, in this process."""
    progress("  sessions")
    calls = {title: lambda path=path: onnxruntime.session(path, 1) for title, path in paths.items()}
    contest = compete("session", calls, 1, rounds)
    return {title: us / 1000 for title, us in contest.us.items()}


def _conversion(title: str, source: Path, quick: bool) -> Found:
    progress(f"  convert, {title}")
    runs = [in_process("convert:convert_once", str(source)) for _ in range(1 if quick else CONVERT_RUNS)]
    return {"name": title, "megabytes": source.stat().st_size / 1e6, "seconds": min(seconds for seconds, _ in runs)}


def tables(found: Found) -> list[Table]:
    """A table each."""
    made = found["sessions"]
    ours, replaced = RACES[0].title, RACES[0].replaced_title
    said = [f"{ours} is ready {times(made[replaced] / made[ours])} as fast as {replaced}."]
    rows: list[Row] = [(title, f"{ms:.1f}") for title, ms in made.items()]
    compiled: list[Row] = [
        (row["name"], f"{row['megabytes']:.1f}", f"{row['seconds']:.2f}") for row in found["convert"]
    ]
    return [
        Table("Creating a session", SESSION, ("network", "ms"), rows, said),
        Table("Compiling", CONVERT.format(runs=CONVERT_RUNS), ("network", "source, MB", "seconds"), compiled),
    ]
