"""How fast the project is on this machine, beside other runtimes: all tables of docs/speed.md, in one run.

    python benchmarks/speed.py                              # everything, about ten minutes on two cores
    python benchmarks/speed.py --only layers --only bits
    python benchmarks/speed.py --write                      # docs/speed.json, and all that is made from it

Contestants take turns, so that all see the same machine, and ratios are made within a round. One thread runs on one
processor, two on two. OpenVINO takes part where it is installed (the extra `benchmark`), and the ceilings where the C++
benchmarks are built. On a busy machine give it priority: `chrt -f 50` in front.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click
import page
from process import progress
from sections import SECTIONS
from settings import Found, LeftOut, Settings

ROOT = Path(__file__).resolve().parents[1]


def measured(name: str, settings: Settings) -> Found:
    """What a section finds, or the word why it is left out."""
    progress(name)
    try:
        return SECTIONS[name].measure(settings)
    except LeftOut as words:
        return {page.LEFT_OUT: str(words)}


@click.command(help=__doc__)
@click.option("--only", type=click.Choice(list(SECTIONS)), multiple=True, help="These sections alone.")
@click.option("--rounds", default=15, show_default=True, help="Interleaved rounds of every contest.")
@click.option("--quick", is_flag=True, help="One tiny layer and one network: a try of the benchmark itself.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option(
    "--write", is_flag=True, help="Write docs/speed.json, and from it docs/speed.md, .svg and the README's table."
)
@click.option(
    "--ceilings",
    default=ROOT / "build" / "ceilings_bench",
    type=click.Path(path_type=Path),
    help="The C++ microbenchmark of the ceilings; build/ceilings_bench if not given.",
)
def main(only: tuple[str, ...], rounds: int, quick: bool, as_json: bool, write: bool, ceilings: Path) -> None:
    """Measure the sections one after the other, and show or write them."""
    if write and (only or quick):
        raise click.UsageError("the page shows one whole run: --write goes with neither --only nor --quick.")
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(rounds, quick, Path(folder), ceilings)
        found = {"machine": page.machine(), "sections": {name: measured(name, settings) for name in only or SECTIONS}}
    if as_json:
        click.echo(json.dumps(found))
    else:
        click.echo(page.text(found))
    if write:
        page.write(found, ROOT)


if __name__ == "__main__":
    main()
