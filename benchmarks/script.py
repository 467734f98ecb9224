"""What scripts share that measure a page of docs/ section by section: options, networks that are kept, the page itself.

docs/NAME.json is what was measured, and the part of docs/NAME.md between two marks is made from it alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import onnx
import page
from process import progress
from settings import LeftOut
from tables import Table

from binarize_onnx import io

Json = Any

ROOT = Path(__file__).resolve().parents[1]
END = "<!-- to here -->"


@dataclass(frozen=True)
class Run:
    """What was asked for.

    Attributes:
        seeds: how many times everything is done that chance has a part in.
        models: the folder where networks are kept, and taken from if they are there.
    """

    seeds: int
    models: Path | None = None

    def kept(self, name: str, make: Callable[[], onnx.ModelProto]) -> onnx.ModelProto:
        """The network of this name."""
        if self.models is None:
            return make()
        path = self.models / f"{name}.onnx"
        if path.exists():
            return onnx.load(path)
        model = make()
        self.models.mkdir(parents=True, exist_ok=True)
        io.save(model, path)
        return model


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        measure: plain JSON types; LeftOut if it cannot be done here.
        table: what is shown of these.
    """

    measure: Callable[[Run], Json]
    table: Callable[[Json], Table]


@dataclass(frozen=True)
class Picture:
    """A picture at the top of a page.

    Attributes:
        name: of its file in docs/, without `.svg`.
        caption: what it shows.
        draw: SVG of all that was measured; None if there is nothing to show.
    """

    name: str
    caption: str
    draw: Callable[[Json], str | None]


@dataclass(frozen=True)
class Page:
    """A page and its script.

    Attributes:
        name: of both, without their endings.
        sections: in their order on the page.
        pictures: one below the other.
    """

    name: str
    sections: Mapping[str, Section]
    pictures: Sequence[Picture] = ()

    @property
    def start(self) -> str:
        """The mark behind which the page is written."""
        return f"<!-- `python benchmarks/{self.name}.py --write` writes from here -->"

    def command(self, about: str | None, models: str) -> click.Command:
        """The command line of the script.

        Args:
            about: the docstring of the script.
            models: what `--models` keeps, in words.
        """

        @click.command(help=about)
        @click.option("--only", type=click.Choice(list(self.sections)), multiple=True, help="These sections alone.")
        @click.option("--seeds", default=3, show_default=True, type=click.IntRange(min=1), help="Of every measurement.")
        @click.option(
            "--models",
            type=click.Path(path_type=Path, file_okay=False),
            help=f"{models} What is there is taken as it is.",
        )
        @click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
        @click.option("--write", "write_it", is_flag=True, help=f"Write these sections to docs/{self.name}.*.")
        def main(only: tuple[str, ...], seeds: int, models: Path | None, as_json: bool, write_it: bool) -> None:
            found = self.measured(only or list(self.sections), Run(seeds, models))
            shown = [self.table(name, found) for name in found["sections"]]
            click.echo(json.dumps(found) if as_json else "\n\n".join(table.text() for table in shown))
            if write_it:
                self.write(found)

        return main

    def measured(self, names: Sequence[str], run: Run) -> Json:
        """These sections, one after the other."""
        sections: dict[str, Json] = {}
        for name in names:
            progress(name)
            try:
                sections[name] = self.sections[name].measure(run)
            except LeftOut as words:
                sections[name] = {page.LEFT_OUT: str(words)}
        return {"machine": page.machine(), "sections": sections}

    def table(self, name: str, found: Json) -> Table:
        """A section, or a word why it is missing."""
        section = found["sections"].get(name, {page.LEFT_OUT: "not measured yet"})
        left = section.get(page.LEFT_OUT)
        return Table(name.capitalize(), f"Left out: {left}.", ("",), []) if left else self.sections[name].table(section)

    def text(self, found: Json) -> str:
        """All between the marks."""
        drawn = "".join(f"![{one.caption}]({one.name}.svg)\n\n" for one in self.pictures if one.draw(found) is not None)
        tables = "\n".join(self.table(name, found).markdown() for name in self.sections)
        return f"{self.start}\nMachine: {page.described(found)}.\n\n{drawn}{tables}"

    def write(self, found: Json, docs: Path = ROOT / "docs") -> None:
        """The JSON with these sections in place of those before, and the page and the pictures of it.

        What was left out takes the place of nothing that was measured.
        """
        stored, shown = docs / f"{self.name}.json", docs / f"{self.name}.md"
        sections = json.loads(stored.read_text())["sections"] if stored.exists() else {}
        new = {n: s for n, s in found["sections"].items() if n not in sections or page.LEFT_OUT not in s}
        whole = page.rounded({"machine": found["machine"], "sections": {**sections, **new}})
        stored.write_text(json.dumps(whole, indent=1) + "\n")
        for picture in self.pictures:
            drawn = picture.draw(whole)
            if drawn is not None:
                (docs / f"{picture.name}.svg").write_text(drawn)
        text = shown.read_text()
        shown.write_text(f"{text[: text.index(self.start)]}{self.text(whole)}{text[text.index(END) :]}")
