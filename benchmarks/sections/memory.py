"""How much memory a network takes to run, and how large its file is."""

from __future__ import annotations

from pathlib import Path

from process import in_process, progress
from settings import Found, Settings
from tables import Table, times

from binarize_onnx import get_library_path
from sections.networks import RACES, compiled_file, network_file

MEANING = (
    "The most memory that a process held which does nothing but load a network and run it on one image, one thread; "
    "`beyond the runtime` is less what Python, NumPy and onnxruntime with our library hold before they load it."
)


def measure(settings: Settings) -> Found:
    """A process a network."""
    found: list[Found] = []
    for race in RACES[: 1 if settings.quick else None]:
        files = {race.title: compiled_file(race, settings.folder)}
        files[race.replaced_title] = network_file(race.replaced, settings.folder)
        if not settings.quick:
            files[f"{race.replaced_title} int8"] = network_file(f"{race.replaced}-int8", settings.folder)
        found += [_one(title, path) for title, path in files.items() if title not in {row["name"] for row in found}]
    return found


def _one(title: str, path: Path) -> Found:
    progress(f"  memory, {title}")
    before, peak = in_process("loaded:peaks", str(path), str(get_library_path()))
    return {"name": title, "file": path.stat().st_size / 1e6, "peak": peak / 1e6, "beyond": (peak - before) / 1e6}


def tables(found: Found) -> list[Table]:
    """One table."""
    rows = [(row["name"], *(f"{row[key]:.1f}" for key in ("file", "peak", "beyond"))) for row in found]
    by_name = {row["name"]: row for row in found}
    ours, replaced = (by_name[title] for title in (RACES[0].title, RACES[0].replaced_title))
    said = [
        f"{RACES[0].title}: a file {times(replaced['file'] / ours['file'])} smaller than that of "
        f"{RACES[0].replaced_title}, and {times(replaced['beyond'] / ours['beyond'])} less memory beyond the runtime."
    ]
    return [
        Table("Memory, one thread", MEANING, ("network", "file, MB", "peak, MB", "beyond the runtime, MB"), rows, said)
    ]
