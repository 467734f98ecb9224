"""One whole run as text and as files: docs/speed.json is the run, and everything else is made from it.

docs/speed.md, docs/speed.svg and the table of the README hold no number that is not in docs/speed.json.
"""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import roofs
from headlines import headlines
from process import processors
from sections import SECTIONS
from tables import Table

from binarize_onnx import runtime
from binarize_onnx.bench.run import cpu_name

LEFT_OUT = "left out"  # in place of a section that cannot be measured, with the word why
MARKS = ("<!-- `python benchmarks/speed.py --write` writes from here -->\n", "<!-- to here -->\n")

HEAD = """\
# How fast

`python benchmarks/speed.py --write` measured all of this in one run and wrote this page; `docs/speed.json` is the same
as data. Contestants take turns and ratios are made within a round: absolute times move from machine to machine and
from hour to hour, the ratios are what to hold. Each number is a median, and no number here is typed by hand.

Machine: {machine}.

![multiply-accumulates a nanosecond of each convolution, and the ceilings of the machine](speed.svg)

The dashed lines are what one core can do with bits, in int8 and in float32, word by word. Dots are single layers on
one thread: from bits to bits, as between the layers of a network; and from float32 to float32, where everybody pays for
reading and writing floats.
"""


def machine() -> dict[str, Any]:
    """What measured: the processor in words, and versions."""
    versions = {}
    for name in ("onnxruntime", "openvino"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = ""
    return {
        "cpu": cpu_name(),
        "family": family(),
        "processors": processors(),
        "isa": runtime.selected_isa(),
        "versions": versions,
    }


def family() -> str:
    """Which kind of processor, where its name says little: `family 25, model 17`."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    given = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    numbers = [f"{name} {given[key]}" for name, key in (("family", "cpu family"), ("model", "model")) if key in given]
    return ", ".join(numbers)


def described(found: Any) -> str:
    """The machine in a sentence."""
    given, bits = found["machine"], found["sections"].get("bits", {})
    cpu = f"{given['cpu']} ({given['family']})" if given["family"] else given["cpu"]
    cores = "one core" if given["processors"] == 1 else f"{given['processors']} cores"
    measured = bits.get("ceilings", {}).get("clock")
    clock = f" at {measured:.2f} GHz" if measured else ""
    versions = given["versions"]
    openvino = f"OpenVINO {versions['openvino'].split('-')[0]}" if versions["openvino"] else "OpenVINO is not installed"
    runtimes = f"onnxruntime {versions['onnxruntime']}, {openvino}"
    return f"{cpu}, {cores}{clock}, {given['isa']} kernels; {runtimes}"


def text(found: Any) -> str:
    """Everything for a terminal."""
    parts = [described(found)]
    for name, section in found["sections"].items():
        parts += (
            [f"{name}: left out, {section[LEFT_OUT]}"]
            if LEFT_OUT in section
            else map(Table.text, _tables(name, section))
        )
    return "\n\n".join(parts)


def markdown(found: Any) -> str:
    """docs/speed.md."""
    parts = [HEAD.format(machine=described(found))]
    for name, section in found["sections"].items():
        if LEFT_OUT in section:
            parts.append(f"## {name.capitalize()}\n\nLeft out: {section[LEFT_OUT]}.\n")
        else:
            parts += [table.markdown() for table in _tables(name, section)]
    return "\n".join(parts)


def readme(found: Any, before: str) -> str:
    """The README with its table of headline figures made new."""
    start, end = map(re.escape, MARKS)
    table = headlines(found)
    lines = [f"{described(found)}:", "", *table.lines()]
    return re.sub(f"(?<={start}).*(?={end})", lambda _: "\n".join(lines) + "\n", before, flags=re.DOTALL)


def write(found: Any, root: Path) -> None:
    """docs/speed.json, .md and .svg, and the README's table."""
    docs, page = root / "docs", root / "README.md"
    (docs / "speed.json").write_text(json.dumps(rounded(found), indent=1) + "\n")
    found = json.loads((docs / "speed.json").read_text())
    (docs / "speed.md").write_text(markdown(found))
    (docs / "speed.svg").write_text(roofs.svg(found["sections"]))
    page.write_text(readme(found, page.read_text()))


def rounded(found: Any) -> Any:
    """The same with four significant digits: more says nothing."""
    if isinstance(found, dict):
        return {key: rounded(value) for key, value in found.items()}
    if isinstance(found, list):
        return [rounded(value) for value in found]
    return float(f"{found:.4g}") if isinstance(found, float) else found


def _tables(name: str, section: Any) -> list[Table]:
    shown: list[Table] = SECTIONS[name].tables(section)
    return shown
