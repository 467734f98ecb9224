"""The command line: parse, call, print. What the commands do is in the modules that they call."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from binarize_onnx.errors import BinarizeError, ModelError, UsageError

if TYPE_CHECKING:  # the packages behind these take longer to import than --help may take
    from binarize_onnx.pipeline import Config

Command = TypeVar("Command", bound=Callable[..., Any])


class Cli(click.Group):
    """A group whose commands end with one line and the right exit code when something is wrong."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; say what is wrong without a traceback."""
        try:
            return super().invoke(ctx)
        except BinarizeError as error:
            click.echo("error: " + " ".join(str(error).split()), err=True)
            ctx.exit(error.exit_code)


def installed_version() -> str:
    """The version of the installed package."""
    try:
        return version("binarize-onnx")
    except PackageNotFoundError:  # a source tree that was never installed
        return "unknown"


def regex(value: str) -> str:
    """A regular expression that compiles."""
    try:
        re.compile(value)
    except re.error as error:
        raise click.BadParameter(f"{value!r} is no regular expression: {error}") from None
    return value


def input_shape(value: str) -> tuple[str, tuple[int, ...]]:
    """`name:1,3,224,224`; the name may hold colons itself."""
    name, _, numbers = value.rpartition(":")
    if not name or not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", numbers):
        raise click.BadParameter(f"{value!r} is not of the form name:1,3,224,224")
    return name, tuple(int(number) for number in numbers.split(","))


MODEL = click.Path(path_type=Path)  # files that are missing are bad models, exit 3, which io reports


def reporting(command: Command) -> Command:
    """Options of every command that reports something."""
    levels = click.Choice(["debug", "info", "warning", "error"])
    command = click.option("--log-level", type=levels, default="warning", show_default=True, help="On stderr.")(command)
    command = click.option("--report", type=MODEL, metavar="FILE", help="Write the JSON of --json to a file.")(command)
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")(command)


def choosing(command: Command) -> Command:
    """Options that say which layers are converted and how."""
    for option in (
        click.option(
            "--input-shape",
            "input_shapes",
            type=input_shape,
            metavar="NAME:1,3,224,224",
            multiple=True,
            help="Fix the shape of an input that the model leaves open. May be repeated.",
        ),
        click.option("--op-types-to-exclude", multiple=True, metavar="OP", help="Leave layers of this operator float."),
        click.option(
            "--nodes-to-quantize",
            type=regex,
            metavar="REGEX",
            multiple=True,
            help="Convert only layers whose whole name matches. May be repeated.",
        ),
        click.option(
            "--nodes-to-exclude",
            type=regex,
            metavar="REGEX",
            multiple=True,
            help="Leave layers float whose whole name matches. May be repeated.",
        ),
        click.option(
            "--sign-zero",
            type=click.Choice(["plus", "keep"]),
            default="plus",
            show_default=True,
            help="A bit has no 0. Where 0 may reach an ONNX Sign: take it as +1 and report it, or leave the sign and "
            "the layers that read it float.",
        ),
    ):
        command = option(command)
    return command


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(installed_version(), prog_name="binarize-onnx")
def main() -> None:
    """Compile ONNX models of binary neural networks so that onnxruntime runs them with XNOR and popcount.

    \b
      binarize-onnx inspect net.onnx                  what can be converted, and why the rest cannot
      binarize-onnx convert net.onnx net.bin.onnx     convert it
      binarize-onnx verify  net.onnx net.bin.onnx     compare the two
      binarize-onnx demo                              all of this on a small network in the package

    A converted file runs in any onnxruntime from 1.20 on, and fast in a session of binarize_onnx.InferenceSession.

    Data goes to stdout and everything else to stderr. Exit codes: 0 well; 1 a check failed; 2 wrong usage; 3 a model
    or data that cannot be read, written or used; 4 nothing to convert; 5 onnxruntime or the library is missing.
    """


@main.command(short_help="What can be converted, and why the rest cannot.")
@click.argument("model", metavar="IN", type=MODEL)
@choosing
@reporting
def inspect(model: Path, as_json: bool, report: Path | None, log_level: str, **choices: Any) -> None:
    """Say what convert would do with every layer of IN, and why.

    Each convolution and matrix product is listed as binary or float with the reason, its multiply-accumulates, and
    the totals before and after. Nothing is converted; a model without binary layers is no error here.

    \b
    Example:
      binarize-onnx inspect net.onnx --json > layers.json
    """
    from binarize_onnx import pipeline

    _log_to_stderr(log_level)
    found = pipeline.inspect(str(model), _config(**choices))
    with _writing(report, found.to_json()):
        _print(found.to_json() if as_json else found.table())


@main.command(short_help="Convert what is binary already, exactly.")
@click.argument("model", metavar="IN", type=MODEL)
@click.argument("out", metavar="OUT", type=MODEL)
@choosing
@click.option(
    "--emit",
    type=click.Choice(["compiled", "ideal"]),
    default="compiled",
    show_default=True,
    help="ideal: the graph of plain ±1 floats that the compiled one equals bit for bit, for other tools and viewers.",
)
@click.option("--allow-unchanged", is_flag=True, help="If no layer is binary, write IN as it is and exit with 0.")
@click.option("--use-external-data-format", is_flag=True, help="Store large tensors in a file beside OUT.")
@click.option("--dry-run", is_flag=True, help="Report, but write no file at all.")
@reporting
def convert(
    model: Path,
    out: Path,
    as_json: bool,
    report: Path | None,
    log_level: str,
    use_external_data_format: bool,
    dry_run: bool,
    **choices: Any,
) -> None:
    """Convert the layers of IN that are binary already, exactly, and write OUT.

    A layer is binary if its input comes from a sign and its weights have one magnitude in each output channel. It
    then runs on bits, together with the scales, normalizations and activations around it. Everything else stays as it
    is. A float network has no such layers: it must be trained with binary weights and activations first (exit 4).

    OUT appears whole or not at all, and is the same, byte for byte, for the same IN, options and version.

    \b
    Example:
      binarize-onnx convert net.onnx net.bin.onnx --nodes-to-exclude 'stem/.*' --report report.json
    """
    from binarize_onnx import io, pipeline

    _log_to_stderr(log_level)
    result = pipeline.convert(str(model), _config(**choices))
    found = result.report.to_json()
    with _writing(None if dry_run else report, found):
        if not dry_run:
            io.save(result.model, out, external_data=use_external_data_format)
    _print(found if as_json else result.report.table())


@main.command(short_help="Compare a converted model with its source.")
@click.argument("reference", metavar="REF", type=MODEL)
@click.argument("candidate", metavar="CAND", type=MODEL)
@click.option(
    "--data", type=MODEL, metavar="FILE.npz", help="Samples: arrays named as the inputs, and `labels` if there are any."
)
@click.option("--labels", type=MODEL, metavar="FILE", help="Class numbers of the samples, .npz or .npy.")
@click.option(
    "--samples", type=click.IntRange(min=1), help="Use the first N samples, or N random ones.  [default: all, or 8]"
)
@click.option("--max-diff", type=click.FloatRange(min=0), help="Largest absolute difference of any output.")
@click.option("--max-sign-flips", type=click.IntRange(min=0), help="Signs that may differ, over all samples.")
@click.option("--min-agreement", type=click.FloatRange(0, 1), help="Share of samples that keep their class, 0 to 1.")
@click.option("--max-metric-drop", type=float, help="Accuracy that may be lost, in percentage points; needs labels.")
@reporting
def verify(
    reference: Path,
    candidate: Path,
    data: Path | None,
    labels: Path | None,
    samples: int | None,
    as_json: bool,
    report: Path | None,
    log_level: str,
    **gates: Any,
) -> None:
    """Compare CAND with the model REF that it was made from; exit 1 if they are not what they should be.

    Outputs are compared on the samples given (on random ones without --data), both at ORT_DISABLE_ALL, and beside
    them how far REF itself moves at onnxruntime's default level. If CAND was converted from this very REF:

    \b
    - CAND must equal REF's ideal graph bit for bit (see convert --emit ideal); if it does not, the first tensor that
      departs is named;
    - every layer, fed with REF's own tensors, must stay within the rounding of float32. A sign may differ only where
      REF is that close to the threshold; signs for which REF has 0 are counted apart.

    The options --max-diff to --max-metric-drop set further gates.

    \b
    Example:
      binarize-onnx verify net.onnx net.bin.onnx --data test.npz --max-metric-drop 0
    """
    from binarize_onnx.verify import Gates, verify_files

    _log_to_stderr(log_level)
    demanded = Gates(**gates)
    if demanded.max_metric_drop is not None and data is None:
        raise UsageError("--max-metric-drop needs samples with labels:", fix="give --data, and --labels.")
    found = verify_files(reference, candidate, data=data, labels=labels, samples=samples)
    result = {**found.to_json(), "failures": found.failures(demanded)}
    with _writing(report, result):
        _print(result if as_json else found.table())
    found.require(demanded)


@main.command(short_help="Convert, verify and time the network in the package.")
@click.option("--out", type=MODEL, metavar="DIR", help="Keep the compiled model in this folder.")
@reporting
def demo(out: Path | None, as_json: bool, report: Path | None, log_level: str) -> None:
    """Convert, verify and time the small binary network in the package, on 100 real images.

    The time is measured there and then: one image, one thread, the float original and the compiled model in turns.

    \b
    Example:
      binarize-onnx demo --out .
    """
    from binarize_onnx import demo as demonstration

    _log_to_stderr(log_level)
    found = demonstration.run(out)
    with _writing(report, found.to_json()):
        _print(found.to_json() if as_json else found.text())
    found.verification.require()


def _config(input_shapes: tuple[tuple[str, Any], ...], **choices: Any) -> Config:
    from binarize_onnx.pipeline import Config

    return Config(input_shapes=dict(input_shapes), **choices)


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(format="%(message)s")
    logging.getLogger("binarize_onnx").setLevel(level.upper())


def _print(found: Any) -> None:
    click.echo(found if isinstance(found, str) else json.dumps(found, indent=2, allow_nan=False))


@contextmanager
def _writing(path: Path | None, found: dict[str, Any]) -> Iterator[None]:
    """Write the JSON file, if one is asked for, when the block ends well; a bad path is found before the block."""
    if path is None:
        yield
        return
    from binarize_onnx import io

    try:
        with io.atomic_write(path) as file:
            file.write(json.dumps(found, indent=2, allow_nan=False).encode() + b"\n")
            yield
    except OSError as error:
        raise ModelError(f"cannot be written: {error.strerror or error}.", where=str(path)) from None
