"""How the time and memory of `convert` grow with a network: each measurement in a process of its own.

    python benchmarks/convert.py                           # every network of benchmarks/synthetic.py, three runs each
    python benchmarks/convert.py --only resnet --runs 1
    python benchmarks/convert.py --svg docs/convert.svg    # the curve as well

`seconds` is the fastest run of `convert` on the file, from its path to the converted model in memory; `peak` the most
memory that the process held, less what it held before (importing the package), over the file's size.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import onnx
from curve import Series, svg
from process import in_process, resident_peak
from synthetic import NETWORKS

SIZES: dict[str, tuple[float, ...]] = {
    "resnet": (0.25, 0.5, 0.75, 1, 1.4),
    "cones": (0.25, 0.5, 0.75, 1),
    "chain": (63, 125, 250, 500, 1000),
    "dense": (25, 50, 100, 200),
    "foldable": (500, 1000, 2000, 4000),
}


@dataclass(frozen=True)
class Cost:
    """What converting one network took."""

    network: str
    size: float
    nodes: int
    megabytes: float
    seconds: float
    peak_megabytes: float
    peak: float


def convert_once(path: str) -> tuple[float, int]:
    """Seconds and bytes that `convert` takes for the file, beyond what the imports take."""
    from binarize_onnx import convert  # only the process that measures needs it

    before, start = resident_peak(), time.perf_counter()
    result = convert(path)
    seconds, peak = time.perf_counter() - start, resident_peak() - before
    assert result.report.summary.binary_layers, "the benchmark's networks are binary"
    return seconds, peak


def measure(network: str, size: float, runs: int, folder: Path) -> Cost:
    """The fastest of some runs, each in a process of its own, and the largest peak."""
    path = folder / f"{network}-{size:g}.onnx"
    model = NETWORKS[network](size)
    onnx.save(model, path)
    found = [in_process("convert:convert_once", str(path)) for _ in range(runs)]
    seconds, peak, length = min(s for s, _ in found), max(p for _, p in found), path.stat().st_size
    path.unlink()
    return Cost(network, size, len(model.graph.node), length / 1e6, seconds, peak / 1e6, peak / length)


def picture(costs: list[Cost]) -> str:
    """Seconds over nodes for networks that get longer, over megabytes for those that get wider."""
    wide = [name for name in ("resnet", "cones") if any(c.network == name for c in costs)]
    long = [name for name in SIZES if name not in wide and any(c.network == name for c in costs)]
    by_size = [Series(n, [(c.megabytes, c.seconds) for c in costs if c.network == n]) for n in wide]
    by_nodes = [Series(n, [(c.nodes, c.seconds) for c in costs if c.network == n]) for n in long]
    return svg([("file, MB", "convert, s", by_size), ("nodes", "convert, s", by_nodes)])


@click.command(help=__doc__)
@click.option("--only", type=click.Choice(list(SIZES)), multiple=True, help="These networks alone.")
@click.option("--runs", default=3, show_default=True, help="Runs of each, the fastest counts.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
@click.option("--svg", "svg_path", type=click.Path(dir_okay=False, path_type=Path), help="Draw the curve into a file.")
def main(only: tuple[str, ...], runs: int, as_json: bool, svg_path: Path | None) -> None:
    """Measure every network at every size and print the table."""
    if not as_json:
        header = f"{'network':<10}{'size':>6}{'nodes':>7}{'MB':>8}{'seconds':>9}{'s/knode':>9}{'s/MB':>8}"
        click.echo(f"{header}{'peak MB':>9}{'peak':>7}")
    costs: list[Cost] = []
    with tempfile.TemporaryDirectory() as folder:
        for network in only or SIZES:
            for size in SIZES[network]:
                c = measure(network, size, runs, Path(folder))
                costs.append(c)
                if not as_json:
                    rates = f"{1000 * c.seconds / c.nodes:>9.2f}{c.seconds / c.megabytes:>8.3f}"
                    row = f"{c.network:<10}{c.size:>6g}{c.nodes:>7}{c.megabytes:>8.2f}{c.seconds:>9.2f}{rates}"
                    click.echo(f"{row}{c.peak_megabytes:>9.0f}{c.peak:>6.1f}x")
    if as_json:
        click.echo(json.dumps([asdict(c) for c in costs]))
    if svg_path is not None:
        svg_path.write_text(picture(costs))


if __name__ == "__main__":
    main()
