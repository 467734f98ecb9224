"""The command line: parse, call, print. What the commands do is in the modules that they call."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from decimal import Decimal
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click
from click.core import ParameterSource

from binarize_onnx.errors import BinarizeError, ModelError, UsageError, one_line
from binarize_onnx.gain import REFERENCE, TARGETS
from binarize_onnx.quantize.plan import Correction, Settings, ThresholdMethod, WeightMethod
from binarize_onnx.report import printable

if TYPE_CHECKING:  # the packages behind these take longer to import than --help may take
    from binarize_onnx.calibration import CalibrationData
    from binarize_onnx.pipeline import Config
    from binarize_onnx.quantize.scoring import Metric
    from binarize_onnx.train.mixed import MixedPrecision

AUTO = "auto"  # the --ptq that searches
ONLY_AUTO = (  # options that nothing else looks at
    "labels",
    "selection_data",
    "metric",
    "max_drop",
    "target_speedup",
    "target_ops",
    "allow_int8",
    "front_svg",
    "threads",
)

Command = TypeVar("Command", bound=Callable[..., Any])

INTERRUPTED = 130  # what shells say of Ctrl-C: 128 + SIGINT

SCHEMA = 1  # of everything printed as JSON: keys are added under one number, and change or go only under the next

BYTES = {"": 1, "b": 1} | {
    prefix + unit: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for unit, base in (("b", 1000), ("ib", 1024))
}


class Cli(click.Group):
    """A group whose commands end with one line and the right exit code when something is wrong."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; say what is wrong without a traceback."""
        try:
            return super().invoke(ctx)
        except BinarizeError as error:
            click.echo(printable(f"error: {one_line(error)}"), err=True)
            ctx.exit(error.exit_code)
        except (MemoryError, RecursionError) as error:
            lacking = "memory" if isinstance(error, MemoryError) else "room to recurse: it is nested too deeply"
            click.echo(f"error: there is not enough {lacking}; nothing was written.", err=True)
            ctx.exit(ModelError.exit_code)
        except KeyboardInterrupt:  # every file in the making is gone by now
            click.echo("error: interrupted.", err=True)
            ctx.exit(INTERRUPTED)

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run; being asked to end unwinds as Ctrl-C does, and leaves no unfinished file."""
        with ExitStack() as stack:
            with suppress(ValueError):  # not the main thread: then the process is not ours
                before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
                stack.callback(signal.signal, signal.SIGTERM, before)
            try:
                return super().main(*args, **extra)
            except OSError as error:  # files say so themselves: what is left is the terminal or the pipe
                click.echo(f"error: stdout cannot be written: {error.strerror or error}.", err=True)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where Python writes the rest of its buffer at the end
                sys.exit(ModelError.exit_code)


class Finite(click.FloatRange):
    """A number in a range; click's own takes `nan` for one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        number: float = super().convert(value, param, ctx)
        if not isfinite(number):
            self.fail(f"{value!r} is no finite number.", param, ctx)
        return number

    def _describe_range(self) -> str:
        """Nothing where there are no limits; click's own would compare with None."""
        return "" if self.min is None and self.max is None else super()._describe_range()


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


def mapped_op(value: str) -> tuple[str, str]:
    """`domain::Op=sign`."""
    operator, _, target = value.rpartition("=")
    if not operator:
        raise click.BadParameter(f"{value!r} is not of the form domain::Op=sign")
    return operator, target


def span(value: str) -> tuple[float, float]:
    """`0,255`."""
    pair = numbers(value)
    if len(pair) != 2 or not all(map(isfinite, pair)) or pair[0] >= pair[1]:
        raise click.BadParameter(f"{value!r} is no range: write LOW,HIGH, as 0,255")
    return pair[0], pair[1]


def share(value: str) -> float:
    """`0.6` or `60%`; a number above 1 without a sign is neither."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)(%?)", value)
    number = Decimal(found[1]) / (100 if found[2] else 1) if found else None
    if number is None or number > 1:
        raise click.BadParameter(f"{value!r} is no share: write 60% or 0.6, for instance")
    return float(number)


def size(value: str) -> int:
    """Bytes: `500000`, `500kB`, `1.5MB`, `2MiB`."""
    found = re.fullmatch(r"(\d{1,18}\.?\d{,18}|\.\d{1,18})([a-z]*)", value, re.IGNORECASE)
    if not found or found[2].lower() not in BYTES:
        raise click.BadParameter(f"{value!r} is no size: write 500kB, 1.5MB or 2MiB, for instance")
    return int(Decimal(found[1]) * BYTES[found[2].lower()])


MODEL = click.Path(path_type=Path, readable=False)  # files that are missing are bad models, exit 3, which io reports


def reporting(command: Command) -> Command:
    """Options of every command that reports something."""
    levels = click.Choice(["debug", "info", "warning", "error"])
    command = click.option("--log-level", type=levels, default="warning", show_default=True, help="On stderr.")(command)
    command = click.option("--report", type=MODEL, metavar="FILE", help="Write the JSON of --json to a file.")(command)
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")(command)


def summarising(command: Command) -> Command:
    """Options of the commands that are steps of a CI job."""
    return click.option(
        "--markdown",
        "as_markdown",
        is_flag=True,
        help="Print Markdown instead of text, to be appended to a job summary.",
    )(command)


def gating(command: Command) -> Command:
    """Options of the commands that have gates."""
    command = click.option(
        "--junit", type=MODEL, metavar="FILE", help="Write gates and layers as test cases, in JUnit XML."
    )(command)
    return summarising(command)


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
        click.option(
            "--map-op",
            "map_ops",
            type=mapped_op,
            metavar="DOMAIN::OP=sign",
            multiple=True,
            help="Take an operator of your own domain for a sign of its first input: +1 from 0 on, -1 below. "
            "May be repeated.",
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
            "--match",
            type=click.Choice(["strict", "moderate"]),
            default="strict",
            show_default=True,
            help="moderate: also take weights for binary whose magnitudes are up to 0.5 % apart, and take off "
            "straight-through residues of any size; the report notes each.",
        ),
        click.option(
            "--target",
            type=click.Choice(TARGETS),
            default=REFERENCE,
            show_default=True,
            help="The instruction set for which gains are estimated, whatever this machine has.",
        ),
        click.option(
            "--slow-layers",
            type=click.Choice(["keep", "convert"]),
            default="keep",
            show_default=True,
            help="Binary layers that bits are estimated to make clearly slower: keep them float, or convert them too.",
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


def counting(command: Command) -> Command:
    """The option of the commands that report on signs."""
    return click.option(
        "--calibration-data",
        type=MODEL,
        metavar="FILE",
        help="Samples, as verify reads them: run IN on these and report for how many values each Sign gave 0, where "
        "the graph does not show that it never does. Only --edges int8 and --ptq convert by what they show; for --ptq "
        "they may also be a folder of images.",
    )(command)


def preset(value: str) -> str:
    """`w2a4`, or `auto`; refused before the arguments are counted, for a file may stand here by mistake."""
    from binarize_onnx.quantize.precision import Precision

    if value != AUTO:
        Precision.parse(value)
    return value


def quantizing(command: Command) -> Command:
    """Options of quantization after training."""
    for option in (
        click.option(
            "--seed",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="Of --ptq: what is drawn at random.",
        ),
        click.option(
            "--resume",
            type=MODEL,
            metavar="FOLDER",
            help="Keep the work of --ptq in a folder: the same call goes on from there, with the same result.",
        ),
        click.option(
            "--synthetic-data",
            is_flag=True,
            help="Of --ptq, for want of any samples: make some that fit what the BatchNormalizations of IN remember of "
            "its training. What that costs in accuracy cannot be seen on them; docs/post_training.md has measured it.",
        ),
        click.option(
            "--ptq-correction",
            type=click.Choice(get_args(Correction)),
            default=Settings.correction,
            show_default=True,
            help="Scales and shifts behind the layers: as the method has them, or fitted by least squares.",
        ),
        click.option(
            "--ptq-thresholds",
            type=click.Choice(get_args(ThresholdMethod)),
            default=Settings.thresholds,
            show_default=True,
            help="Where activations are cut: from zero in equal steps, or by the means of clusters.",
        ),
        click.option(
            "--ptq-weights",
            type=click.Choice(get_args(WeightMethod)),
            default=Settings.weights,
            show_default=True,
            help="How binary weights are found, from the plainest to the best.",
        ),
        click.option(
            "--ptq",
            type=preset,
            is_flag=False,
            flag_value=AUTO,
            metavar="[PRESET]",
            help="Quantize a float model, after its training, on --calibration-data (labels are not needed): w1a1, "
            "w1a2, w1a4, w2a2, w2a4, w2a6, w3a6, or any other number of weight bases (up to 4) and activation bits (up "
            "to 6). First and last layers stay float. Accuracy is lost: the report says how far each layer's output "
            "moves. auto, which is what no value means: what is fastest within --max-drop, or best within "
            "--target-speedup or --target-ops, layer by layer.",
        ),
    ):
        command = option(command)
    return command


def numbers(value: str) -> tuple[float, ...]:
    """`0.5`, or `0.485,0.456,0.406`."""
    try:
        return tuple(float(number) for number in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of numbers: write 0.5 or 0.485,0.456,0.406") from None


def imaging(command: Command) -> Command:
    """Options of the commands that read folders of images."""
    for option in (
        click.option(
            "--image-std",
            type=numbers,
            default="1",
            metavar="NUMBERS",
            help="Of images in a folder: by what to divide, one number or one a channel.  [default: 1]",
        ),
        click.option(
            "--image-mean",
            type=numbers,
            default="0",
            metavar="NUMBERS",
            help="Of images in a folder: what to subtract from pixels of 0 to 1 first.  [default: 0]",
        ),
    ):
        command = option(command)
    return command


def judging(command: Command) -> Command:
    """Options of the commands that judge what quantization loses."""
    for option in (
        click.option(
            "--exclude-list",
            type=MODEL,
            metavar="FILE",
            help="Leave the layers float that a file names: one --nodes-to-exclude a line.",
        ),
        click.option(
            "--metric",
            type=click.Choice(["accuracy", "agreement", "psnr", "error"]),
            help="Demand one: accuracy (class numbers), agreement with the float model's classes (no labels), psnr "
            "(targets of the output's shape) or error.  [default: what the samples allow]",
        ),
        click.option(
            "--selection-data",
            type=MODEL,
            metavar="FILE",
            help="Samples to judge on.  [default: --calibration-data is divided by chance]",
        ),
        click.option(
            "--labels",
            type=MODEL,
            metavar="FILE",
            help="Class numbers, or targets, of the samples to judge on, .npz or .npy.  [default: those in the data]",
        ),
    ):
        command = option(command)
    return command


def searching(command: Command) -> Command:
    """Options of `--ptq auto`."""
    for option in (
        click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Of timed models."),
        click.option("--front-svg", type=MODEL, metavar="FILE", help="Draw the networks of --ptq auto: time and loss."),
        click.option(
            "--allow-int8", is_flag=True, help="Where int8 is better than binary weights: write the model in int8."
        ),
        click.option(
            "--target-ops", type=share, metavar="SHARE", help="Of --ptq auto: operations, as a share of the float ones."
        ),
        click.option(
            "--target-speedup",
            type=Finite(min=0, min_open=True),
            metavar="TIMES",
            help="Of --ptq auto: how many times faster than the float model in onnxruntime.",
        ),
        click.option(
            "--max-drop",
            type=Finite(min=0),
            metavar="POINTS",
            help="Of --ptq auto: percentage points of accuracy that may be lost, or of agreement with the float model "
            "without labels, or dB of PSNR; the one-sided 95 % bound counts.",
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
      binarize-onnx bench   net.onnx net.bin.onnx     time the two, layer by layer
      binarize-onnx evaluate net.onnx net.bin.onnx    how good the two are on labelled samples, and what they cost
      binarize-onnx sensitivity net.onnx              which layers of a float model lose most as bits
      binarize-onnx finetune net.onnx net.bin.onnx    train the layers of a float model as binary ones
      binarize-onnx doctor  net.bin.onnx              whether it runs right and fast on this machine
      binarize-onnx reduce  net.onnx small.onnx       the smallest part that fails, for a bug report
      binarize-onnx demo                              all of this on a small network in the package

    A converted file runs in any onnxruntime from 1.20 on, and fast in a session of binarize_onnx.InferenceSession.

    Data goes to stdout and everything else to stderr. Exit codes: 0 well; 1 a check failed; 2 wrong usage; 3 a model
    or data that cannot be read, written or used; 4 nothing to convert or to
    reduce; 5 onnxruntime or the library is missing.
    """


@main.command(short_help="What can be converted, and why the rest cannot.")
@click.argument("model", metavar="IN", type=MODEL)
@choosing
@counting
@summarising
@reporting
def inspect(
    model: Path,
    calibration_data: Path | None,
    as_json: bool,
    as_markdown: bool,
    report: Path | None,
    log_level: str,
    **choices: Any,
) -> None:
    """Say what convert would do with every layer of IN, and why.

    Each convolution and matrix product is listed as binary or float with the reason and its code, its
    multiply-accumulates, an estimate of how many times faster bits are, and the totals before and after. Nothing is
    converted; a model without binary layers is no error here.

    An ONNX Sign gives 0 for 0, which a bit cannot. Of every sign the report says whether that is proved never to
    happen, counted on --calibration-data, or assumed to be taken as +1.

    \b
    Example:
      binarize-onnx inspect net.onnx --json > layers.json
    """
    from binarize_onnx import pipeline, summary

    _log_to_stderr(log_level)
    _one_of(as_json, as_markdown)
    _different(report, read=[model, calibration_data])
    found = pipeline.inspect(str(model), _config(**choices), calibration_data=calibration_data)
    printed = _json(found.to_json())
    _write({report: _line(printed)})
    if as_markdown:
        printed = summary.markdown(f"inspect {model.name}", [], found.totals(), found.rows(), found.sign_rows())
    click.echo(printed if as_json or as_markdown else found.table())


@main.command(short_help="Convert what is binary already, exactly.")
@click.argument("model", metavar="IN", type=MODEL)
@click.argument("out", metavar="OUT", type=MODEL)
@choosing
@counting
@click.option(
    "--emit",
    type=click.Choice(["compiled", "ideal"]),
    default="compiled",
    show_default=True,
    help="ideal: the graph of plain ±1 floats that the compiled one equals bit for bit, for other tools and viewers.",
)
@click.option(
    "--edges",
    type=click.Choice(["float", "int8"]),
    default="float",
    show_default=True,
    help="int8: quantize the layers that stay float, by onnxruntime's static quantization on --calibration-data. "
    "Faster, but the outputs are no longer those of IN: the report says how far they move. Binary layers stay exact.",
)
@quantizing
@searching
@judging
@imaging
@click.option("--allow-unchanged", is_flag=True, help="If no layer is binary, write IN as it is and exit with 0.")
@click.option("--use-external-data-format", is_flag=True, help="Store large tensors in a file beside OUT.")
@click.option("--dry-run", is_flag=True, help="Report and check the gates, but write no file at all.")
@click.option(
    "--min-binary-macs",
    type=share,
    metavar="SHARE",
    help="Gate: the share of the multiply-accumulates that is binary, as 60% or 0.6; layers of unknown size left out.",
)
@click.option(
    "--max-size",
    type=size,
    metavar="SIZE",
    help="Gate: the size of the converted model, as 500kB, 1.5MB, 2MiB or a number of bytes; external data counts.",
)
@click.option(
    "--max-sign-zeros",
    type=share,
    metavar="SHARE",
    help="Gate: the share of 0 among the values that reach any one sign, as 0.1% or 0.001; needs --calibration-data.",
)
@gating
@reporting
def convert(
    model: Path,
    out: Path,
    calibration_data: Path | None,
    as_json: bool,
    as_markdown: bool,
    report: Path | None,
    junit: Path | None,
    log_level: str,
    use_external_data_format: bool,
    dry_run: bool,
    min_binary_macs: float | None,
    max_size: int | None,
    max_sign_zeros: float | None,
    ptq_weights: WeightMethod,
    ptq_thresholds: ThresholdMethod,
    ptq_correction: Correction,
    seed: int,
    resume: Path | None,
    synthetic_data: bool,
    ptq: str | None,
    exclude_list: Path | None,
    image_mean: tuple[float, ...],
    image_std: tuple[float, ...],
    labels: Path | None,
    selection_data: Path | None,
    metric: Metric | None,
    max_drop: float | None,
    target_speedup: float | None,
    target_ops: float | None,
    allow_int8: bool,
    front_svg: Path | None,
    threads: int,
    **choices: Any,
) -> None:
    """Convert the layers of IN that are binary already, exactly, and write OUT.

    A layer is binary if its input comes from a sign and its weights have one magnitude in each output channel. It then
    runs on bits, together with the scales, normalizations and activations around it. Everything else stays as it is,
    and so does a binary layer that bits would make clearly slower (--slow-layers). A float network has no such layers:
    it must be trained with binary weights and activations first (exit 4), or is quantized here, with --ptq: its inner
    layers are fitted, one after the other, to what the float network computes on samples.

    OUT appears whole or not at all, and is the same, byte for byte, for the same IN, options and version; with
    --edges int8 or --ptq also for the same data, onnxruntime and processor.

    --ptq auto gives each layer float32, int8 or a precision of its own. Layers are fitted to some of the samples, and
    networks judged on others (--selection-data), which must not be those of a last test. All networks that it made are
    timed on this machine, beside the float model and the model in int8; what int8 beats in both time and accuracy is
    not chosen (exit 4, or --allow-int8). If none meets the budget, the nearest is reported, and the exit code is 1.

    If a gate (--min-binary-macs, --max-size, --max-sign-zeros, or the budget of --ptq auto) fails, OUT is not written,
    reports are, and the exit code is 1.

    \b
    Example:
      binarize-onnx convert net.onnx net.bin.onnx --nodes-to-exclude 'stem/.*' --report report.json
      binarize-onnx convert float.onnx net.bin.onnx --ptq w2a4 --calibration-data images.npz
      binarize-onnx convert float.onnx net.bin.onnx --ptq auto --max-drop 1 --calibration-data labelled.npz
    """
    from binarize_onnx import gates, io, pipeline, summary

    _log_to_stderr(log_level)
    _one_of(as_json, as_markdown)
    _different(out, report, junit, front_svg)
    _different(report, junit, front_svg, read=[model, calibration_data, labels, selection_data, exclude_list])
    _different(out, read=[calibration_data, labels, selection_data, exclude_list])
    if max_sign_zeros is not None and calibration_data is None:
        raise UsageError("--max-sign-zeros needs samples to count on:", fix="give --calibration-data.")
    if ptq is None:
        _only_with(
            "--ptq PRESET", "ptq_weights", "ptq_thresholds", "ptq_correction", "seed", "resume", "synthetic_data"
        )
    if ptq != AUTO:
        _only_with("--ptq auto", *ONLY_AUTO)
    elif resume is not None:
        raise UsageError("--resume is for one precision, not for --ptq auto.")
    elif synthetic_data:
        raise UsageError("--ptq auto judges networks on samples, and made ones tell nothing:", fix="give a precision.")
    if synthetic_data and calibration_data is not None:
        raise UsageError("--synthetic-data is for want of samples, and there are some:", fix="leave one of both out.")
    if not any(path is not None and path.is_dir() for path in (calibration_data, selection_data)):
        _only_with("a folder of images", "image_mean", "image_std")
    settings = Settings(ptq_weights, ptq_thresholds, ptq_correction, seed=seed)
    choices["nodes_to_exclude"] += _exclude_list(exclude_list)
    budget = {"max_drop": max_drop, "target_speedup": target_speedup, "target_ops": target_ops}
    instead = {"int8": allow_int8, "unchanged": bool(choices["allow_unchanged"])}
    data = _samples(calibration_data, image_mean, image_std)
    if ptq == AUTO:
        from binarize_onnx.quantize import auto

        searched = auto.convert_file(
            model,
            _config(**choices, ptq_settings=settings),
            data,
            labels,
            _samples(selection_data, image_mean, image_std),
            budget,
            metric=metric,
            threads=threads,
            seed=seed,
            progress=_progress(),
        )
        result = searched.result
    else:
        searched = None
        result = pipeline.convert(
            str(model),
            _config(**choices, ptq=ptq, ptq_settings=settings, synthetic_data=synthetic_data),
            calibration_data=data,
            resume=resume,
            progress=_progress(),
        )
    found = result.report
    checked = found.gates(min_binary_macs=min_binary_macs, max_size=max_size, max_sign_zeros=max_sign_zeros)
    checked += searched.found.gates if searched else []
    said = {**found.to_json(), **({"search": searched.found.to_json()} if searched else {})}
    title, printed = f"convert {model.name}", _json({**said, "gates": [gate.to_json() for gate in checked]})
    files = {report: _line(printed), junit: summary.junit(title, checked, summary.of_conversion(found))}
    files |= {front_svg: searched.found.svg().encode()} if searched else {}
    with _writing({} if dry_run else files):
        if not dry_run and all(gate.passed for gate in checked) and (not searched or searched.writes(**instead)):
            io.save(result.model, out, external_data=use_external_data_format)
    if as_markdown:
        printed = summary.markdown(title, checked, found.totals(), found.rows(), found.sign_rows())
    table = f"{found.table()}\n\n{searched.found.table()}" if searched else found.table()
    click.echo(printed if as_json or as_markdown else table)
    if searched:
        searched.require(**instead)
    gates.require(checked)


@main.command(short_help="Train a float model's layers as binary ones.")
@click.argument("model", metavar="IN", type=MODEL)
@click.argument("out", metavar="OUT", type=MODEL)
@click.option("--data", type=MODEL, metavar="FILE", required=True, help="Samples to train on: a file, or a folder.")
@click.option("--val", type=MODEL, metavar="FILE", help="Samples that are judged after each epoch.")
@click.option(
    "--recipe",
    default="react2step",
    show_default=True,
    help="Which methods train together, named after their papers: react2step, bireal, irnet, recu, reste, siman, xnor, "
    "lsq; and what is added: +distillation, +labels, +attention, +cmim, +cmim-self, +ovsw, +dysign, +shortcuts.",
)
@click.option("--precision", default="w1a1", show_default=True, help="Of the layers: weight bases, activation bits.")
@click.option("--epochs", type=click.IntRange(min=1), help="Of all stages together.  [default: the recipe's]")
@click.option("--batch-size", type=click.IntRange(min=2), default=128, show_default=True, help="Samples of a step.")
@click.option(
    "--learning-rate",
    type=Finite(min=0, min_open=True, max=1e30),
    help="At the beginning of each stage, from where it falls to zero.  [default: the recipe's]",
)
@click.option(
    "--augment",
    type=click.Choice(["none", "crop", "crop-flip"]),
    default="none",
    show_default=True,
    help="Of images: shifted by up to 4 pixels by chance, and mirrored left to right.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all that is drawn by chance."
)
@click.option(
    "--checkpoint",
    type=MODEL,
    metavar="FOLDER",
    help="Keep where the training stands in a folder: the same call goes on from there, with the same result.",
)
@click.option(
    "--mixed-precision",
    type=click.Choice(["no", "bf16", "fp16"]),
    default="no",
    show_default=True,
    help="In steps of the training, compute the layers that stay float, and the teacher's, in fewer bits: bf16, or fp16"
    " on GPUs. What decides a bit is float32 all the same, and what is written is as exact.",
)
@click.option(
    "--tensorboard",
    type=MODEL,
    metavar="FOLDER",
    help="Write loss, its parts, quality and learning rate of each epoch for TensorBoard (the package tensorboard).",
)
@click.option("--curve", type=MODEL, metavar="FILE", help="Draw the learning curve, in SVG.")
@click.option(
    "--emit",
    type=click.Choice(["compiled", "ideal"]),
    default="compiled",
    show_default=True,
    help="ideal: the graph of plain ±1 floats that the compiled one equals bit for bit, for other tools and viewers.",
)
@imaging
@choosing
@reporting
def finetune(
    model: Path,
    out: Path,
    data: Path,
    val: Path | None,
    recipe: str,
    precision: str,
    epochs: int | None,
    batch_size: int,
    learning_rate: float | None,
    augment: str,
    seed: int,
    checkpoint: Path | None,
    mixed_precision: MixedPrecision,
    tensorboard: Path | None,
    curve: Path | None,
    image_mean: tuple[float, ...],
    image_std: tuple[float, ...],
    as_json: bool,
    report: Path | None,
    log_level: str,
    **choices: Any,
) -> None:
    """Train the inner layers of the float model IN as binary ones, with IN as their teacher, and write OUT.

    Samples need no labels: the network learns to answer as IN does. Where the samples have labels, recipes may use
    them too. Layers are chosen as by convert --ptq, and first and last ones stay float. What was trained is exported
    as a graph of ±1 weights, compared with what torch computes, and compiled; a difference ends it (exit 1).

    One line an epoch goes to stderr. Ended at any moment, a training with --checkpoint goes on from where it was. If it
    diverges, the first tensor that is NaN or infinite is named (exit 3), and the last checkpoint stays.

    With several GPUs or machines, the same command under accelerate launch or torchrun; one process writes.

    \b
    Example:
      binarize-onnx finetune float.onnx net.bin.onnx --data train.npz --val test.npz --checkpoint run --curve curve.svg
      accelerate launch -m binarize_onnx finetune float.onnx net.bin.onnx --data photos --augment crop-flip
    """
    from binarize_onnx import io
    from binarize_onnx.train import finetune as tuning

    _log_to_stderr(log_level)
    _different(out, report, curve, read=[data, val])
    _different(report, curve, read=[model])
    samples, judged = (_samples(path, image_mean, image_std) for path in (data, val))
    assert samples is not None
    found = tuning.finetune(
        str(model),
        samples,
        recipe,
        precision=precision,
        validation=judged,
        config=_config(**choices),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        augmentation=tuning.augmentation(augment),
        mixed_precision=mixed_precision,
        seed=seed,
        checkpoint=checkpoint,
        tensorboard=tensorboard,
        log=lambda epoch: click.echo(str(epoch), err=True),
        progress=_progress(),
    )
    if not found.writes:
        return
    printed = _json({**found.result.report.to_json(), "fine_tuning": found.to_json()})
    with _writing({report: _line(printed), curve: found.curve().encode()}):
        io.save(found.result.model, out)
    click.echo(str(found), err=True)
    click.echo(printed if as_json else found.result.report.table())


@main.command(short_help="Which layers of a float model lose most when quantized.")
@click.argument("model", metavar="IN", type=MODEL)
@click.option(
    "--calibration-data", type=MODEL, metavar="FILE", required=True, help="Samples: a file, or a folder of images."
)
@click.option("--precision", default="w2a4", show_default=True, help="Of every layer, one at a time.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the division of the data.")
@click.option(
    "--write-exclude-list",
    type=MODEL,
    metavar="FILE",
    help="Write the layers that lose more than --max-loss, for --exclude-list of convert.",
)
@click.option(
    "--max-loss",
    type=Finite(min=0),
    default=1.0,
    show_default=True,
    help="Points or dB lost by one layer; nats of divergence where nothing measures that.",
)
@judging
@imaging
@choosing
@reporting
def sensitivity(
    model: Path,
    calibration_data: Path,
    precision: str,
    seed: int,
    write_exclude_list: Path | None,
    max_loss: float,
    exclude_list: Path | None,
    labels: Path | None,
    selection_data: Path | None,
    metric: Metric | None,
    image_mean: tuple[float, ...],
    image_std: tuple[float, ...],
    as_json: bool,
    report: Path | None,
    log_level: str,
    **choices: Any,
) -> None:
    """Quantize the layers of the float model IN one at a time, and rank them by what that costs, the worst first.

    Layers are fitted to some of the samples, and the network is judged on others. It loses accuracy where the samples
    have labels, PSNR where these are images, agreement with the float model otherwise; and everywhere it is said how
    far the probabilities of the classes move (Kullback and Leibler's divergence, in nats).

    Nothing is converted. What several layers lose together is more than the sum, often: see convert --ptq auto.

    \b
    Example:
      binarize-onnx sensitivity net.onnx --calibration-data labelled.npz --write-exclude-list fragile.txt
      binarize-onnx convert net.onnx net.bin.onnx --ptq w2a4 --calibration-data labelled.npz --exclude-list fragile.txt
    """
    from binarize_onnx import io
    from binarize_onnx.quantize import auto
    from binarize_onnx.quantize import sensitivity as ranking
    from binarize_onnx.quantize.precision import Precision

    _log_to_stderr(log_level)
    read = [model, calibration_data, labels, selection_data, exclude_list]
    _different(report, write_exclude_list, read=read)
    choices["nodes_to_exclude"] += _exclude_list(exclude_list)
    source, config, wanted = io.read(str(model)), _config(**choices), Precision.parse(precision)
    data, others = (_samples(path, image_mean, image_std) for path in (calibration_data, selection_data))
    assert data is not None
    fitted, judged = auto.samples(source, config, data, labels, others, seed=seed)
    found = auto.rank(source, config, fitted, judged, wanted, metric=metric, progress=_progress())
    fragile = ranking.exclude_list(found.rows, max_loss)
    printed = _json({**found.to_json(), "excluded": fragile})
    _write({report: _line(printed), write_exclude_list: ranking.exclude_text(fragile).encode()})
    click.echo(printed if as_json else found.table())


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
@click.option(
    "--max-seconds",
    type=Finite(min=0),
    default=10,
    show_default=True,
    help="Without --data: how long to look for samples that show both values of every sign.",
)
@click.option("--max-diff", type=Finite(min=0), help="Gate: largest absolute difference of any output.")
@click.option("--max-sign-flips", type=click.IntRange(min=0), help="Gate: signs that may differ, over all samples.")
@click.option(
    "--min-agreement",
    type=share,
    metavar="SHARE",
    help="Gate: the share of the samples that keep their class, as 99% or 0.99.",
)
@click.option(
    "--max-metric-drop", type=Finite(), help="Gate: accuracy that may be lost, in percentage points; needs labels."
)
@gating
@reporting
def verify(
    reference: Path,
    candidate: Path,
    data: Path | None,
    labels: Path | None,
    samples: int | None,
    max_seconds: float,
    as_json: bool,
    as_markdown: bool,
    report: Path | None,
    junit: Path | None,
    log_level: str,
    **limits: Any,
) -> None:
    """Compare CAND with the model REF that it was made from; exit 1 if they are not what they should be.

    Outputs are compared on the samples given, both at ORT_DISABLE_ALL, and beside them how far REF itself moves at
    onnxruntime's default level. Without --data, samples are generated that show both values of every sign, as far as
    such are found. If CAND was converted from this very REF:

    \b
    - CAND must equal REF's ideal graph bit for bit (see convert --emit ideal);
    - every layer, fed with REF's own tensors, must stay within the rounding of float32, and within the noise that REF
      itself has in its signs and weights. A sign may differ only where REF is that close to the threshold; signs for
      which REF has 0 are counted apart.

    The first tensor that is wrong is named, and the first that differs at all, in the order of REF. For every sign it
    is said at how many channels both values occurred, and which channels cannot change on any data.

    If CAND was converted from another file than REF, that fails, unless a gate below judges the outputs instead.

    The options --max-diff to --max-metric-drop set further gates. Where an output is NaN, every gate on outputs fails.

    \b
    Example:
      binarize-onnx verify net.onnx net.bin.onnx --data test.npz --max-metric-drop 0
    """
    from binarize_onnx import gates, summary
    from binarize_onnx.verify import Gates, verify_files

    _log_to_stderr(log_level)
    _one_of(as_json, as_markdown)
    _different(report, junit, read=[reference, candidate, data, labels])
    demanded = Gates(**limits)
    if demanded.max_metric_drop is not None and data is None:
        raise UsageError("--max-metric-drop needs samples with labels:", fix="give --data, and --labels.")
    found = verify_files(reference, candidate, data=data, labels=labels, samples=samples, seconds=max_seconds)
    checked = found.gates(demanded)
    title = f"verify {candidate.name}"
    printed = _json({**found.to_json(), "gates": [gate.to_json() for gate in checked]})
    _write({report: _line(printed), junit: summary.junit(title, checked, summary.of_tensors(found))})
    if as_markdown:
        printed = summary.markdown(title, checked, found.overview(), found.rows())
    click.echo(printed if as_json or as_markdown else found.table())
    gates.require(checked)


@main.command(short_help="Cut a model that fails down to the few nodes that matter.")
@click.argument("reference", metavar="REF", type=MODEL)
@click.argument("out", metavar="OUT", type=MODEL)
@click.argument("candidate", metavar="[CAND]", type=MODEL, required=False)
@click.option("--expect-binary", metavar="LAYER", help="The failure is that this layer is not binary.")
@click.option("--data", type=MODEL, metavar="FILE.npz", help="Samples that fail.  [default: those of verify]")
@click.option("--save-inputs", type=MODEL, metavar="FILE.npz", help="Write the inputs of OUT that show the failure.")
@click.option(
    "--max-seconds",
    type=Finite(min=0, min_open=True),
    default=60,
    show_default=True,
    help="Of search, once REF was seen to fail: stop then, and write the smallest model so far.",
)
@click.option("--keep-names", is_flag=True, help="Keep names, documentation and metadata of REF.")
@choosing
@reporting
def reduce(
    reference: Path,
    out: Path,
    candidate: Path | None,
    expect_binary: str | None,
    data: Path | None,
    save_inputs: Path | None,
    max_seconds: float,
    keep_names: bool,
    as_json: bool,
    report: Path | None,
    log_level: str,
    **choices: Any,
) -> None:
    """Write the smallest part of REF that fails as REF does, as a model of its own, to be sent with a bug report.

    REF fails if convert raises something else than an error in words, if the result does not load or does not equal
    its ideal graph bit for bit, or if a layer departs from REF by more than rounding explains (see verify); or, with
    --expect-binary, if that layer stays float. With CAND, the options are those that CAND was converted with.

    Where OUT was cut from REF it has inputs, of the shapes that the tensors have in REF. Names, documentation and
    metadata of REF are not in it: the values of the weights of the part are. Progress goes to stderr.

    OUT appears whole or not at all. If nothing fails, nothing is written, and the exit code is 4.

    
    Example:
      binarize-onnx reduce net.onnx small.onnx --save-inputs small.npz
    """
    from binarize_onnx import io
    from binarize_onnx.reduce import reduce_files

    _log_to_stderr(log_level)
    _different(out, save_inputs, report, read=[reference, candidate, data])
    found = reduce_files(
        reference,
        candidate,
        data=data,
        expect_binary=expect_binary,
        config=_config(**choices),
        seconds=max_seconds,
        keep_names=keep_names,
        progress=lambda words: click.echo(printable(words), err=True),
    )
    printed = _json(found.to_json())
    with _writing({report: _line(printed), save_inputs: found.npz()}):
        io.save(found.model, out)
    click.echo(printed if as_json else found.table())


@main.command(short_help="Time models side by side, layer by layer.")
@click.argument("models", metavar="MODEL...", type=MODEL, nargs=-1, required=True)
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Of each model's session.")
@click.option(
    "--seconds",
    type=Finite(min=0, min_open=True, max=3600),
    default=5,
    show_default=True,
    help="Of timing, all models together. Slow models take longer: each has at least 4 rounds.",
)
@click.option("--batch", type=click.IntRange(min=1), help="Samples in a run, where the models leave that open.")
@click.option(
    "--input-shape",
    "input_shapes",
    type=input_shape,
    metavar="NAME:1,3,224,224",
    multiple=True,
    help="The shape of an input that the models leave open. May be repeated.",
)
@click.option(
    "--data", type=MODEL, metavar="FILE.npz", help="Inputs: arrays named as the inputs.  [default: random numbers]"
)
@click.option("--no-bodies", is_flag=True, help="Do not time converted files without the kernels.")
@click.option("--no-layers", is_flag=True, help="Do not profile: end-to-end times only.")
@click.option(
    "--min-speedup",
    type=Finite(min=0, min_open=True),
    metavar="TIMES",
    help="Gate: how many times faster than the first model every other must be, by the median over the rounds.",
)
@gating
@reporting
def bench(
    models: tuple[Path, ...],
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...],
    no_bodies: bool,
    no_layers: bool,
    min_speedup: float | None,
    as_json: bool,
    as_markdown: bool,
    report: Path | None,
    junit: Path | None,
    log_level: str,
    **choices: Any,
) -> None:
    """Time each MODEL on the same inputs, in turns, and compare it with the first.

    Converted files run with the kernels, and once more by their function bodies, as they would without our library. A
    single converted file is compared with that. All models must have the same inputs and outputs.

    Then onnxruntime's profiler says where the time goes: for each layer, with what belongs to it (normalization,
    activation, packing), in the first model and in each other. A binary layer that is slower than it was in the first
    model is named, with the option of convert that leaves it float.

    \b
    Example:
      binarize-onnx bench net.onnx net.bin.onnx --min-speedup 2
    """
    from binarize_onnx import gates, summary
    from binarize_onnx.bench import benchmark

    _log_to_stderr(log_level)
    _one_of(as_json, as_markdown)
    _different(report, junit, read=[*models, choices["data"]])
    found = benchmark(models, input_shapes=dict(input_shapes), bodies=not no_bodies, profiled=not no_layers, **choices)
    checked = found.gates(min_speedup=min_speedup)
    title = f"bench {' '.join(path.name for path in models)}"
    printed = _json({**found.to_json(), "gates": [gate.to_json() for gate in checked]})
    _write({report: _line(printed), junit: summary.junit(title, checked, summary.of_layer_times(found))})
    if as_markdown:
        overview = [*found.conditions(), *found.remarks()]
        printed = summary.markdown(title, checked, overview, found.cells(), *(t.cells() for t in found.layers))
    click.echo(printed if as_json or as_markdown else found.table())
    gates.require(checked)


@main.command(short_help="How good models are on labelled samples, and what they cost.")
@click.argument("models", metavar="MODEL...", type=MODEL, nargs=-1, required=True)
@click.option(
    "--data",
    type=MODEL,
    metavar="FILE",
    required=True,
    help="Samples: arrays named as the inputs, and `labels`, in a .npz file; or a folder of images.",
)
@click.option(
    "--labels",
    type=MODEL,
    metavar="FILE",
    help="Class numbers, or targets of the output's shape, .npz or .npy.  [default: those in the data]",
)
@imaging
@click.option("--corruptions", "all_corruptions", is_flag=True, help="Judge on images spoiled in all known ways, too.")
@click.option(
    "--corruption",
    "corruptions",
    metavar="NAME",
    multiple=True,
    help="Judge on images spoiled in this way, blur for instance. May be repeated.",
)
@click.option(
    "--range",
    "ranges",
    type=span,
    metavar="LOW,HIGH",
    multiple=True,
    help="Of corruptions: what is dark and what is bright in the data; once, or for each channel in turn.  "
    "[default: 0,255 for bytes, else the least and the largest value of each channel]",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of corruptions: what is drawn at random.",
)
@click.option("--no-time", is_flag=True, help="Do not time the models.")
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Of timed models.")
@click.option(
    "--seconds",
    type=Finite(min=0, min_open=True, max=3600),
    default=5,
    show_default=True,
    help="Of timing, all models together.",
)
@summarising
@reporting
def evaluate(
    models: tuple[Path, ...],
    data: Path,
    labels: Path | None,
    image_mean: tuple[float, ...],
    image_std: tuple[float, ...],
    all_corruptions: bool,
    corruptions: tuple[str, ...],
    no_time: bool,
    as_json: bool,
    as_markdown: bool,
    report: Path | None,
    log_level: str,
    **choices: Any,
) -> None:
    """Judge every MODEL on the same samples, and say what each costs beside it: operations, bytes and time.

    Accuracy has an exact 95 % interval, and each model's loss against the first an upper bound. Without labels it is
    agreement with the first model that counts, with targets of the output's shape PSNR. Time is taken as bench does.

    Corruptions are made here, the same for the same --seed: eleven ways to spoil an image, at five severities each. The
    mean of the five is printed; the JSON has all.

    Of the other models BiBench's scores for task, corruption, complexity and inference are given, with the first as the
    full-precision one. They are not comparable to those of the paper, whose data sets and machines are others.

    \b
    Example:
      binarize-onnx evaluate net.onnx net.int8.onnx net.bin.onnx --data test.npz --corruptions
    """
    from binarize_onnx import summary
    from binarize_onnx.evaluate import ALL, evaluate

    _log_to_stderr(log_level)
    _one_of(as_json, as_markdown)
    _different(report, read=[*models, data, labels])
    samples = _samples(data, image_mean, image_std)
    assert samples is not None
    spoiled = (*corruptions, *([ALL] if all_corruptions else []))
    found = evaluate(models, samples, labels, corruptions=spoiled, timed=not no_time, progress=_progress(), **choices)
    printed = _json(found.to_json())
    _write({report: _line(printed)})
    if as_markdown:
        overview = [*found.conditions(), *found.remarks()]
        printed = summary.markdown(f"evaluate {' '.join(path.name for path in models)}", [], overview, *found.tables())
    click.echo(printed if as_json or as_markdown else found.table())


@main.command(short_help="Whether inference will be right and fast on this machine.")
@click.argument("model", metavar="[MODEL]", type=MODEL, required=False)
@reporting
def doctor(model: Path | None, as_json: bool, report: Path | None, log_level: str) -> None:
    """Say whether converted files, or MODEL, run right and fast on this machine, and if not, why.

    Looks at onnxruntime, the kernel library and its instruction sets, and runs every op on small difficult models with
    each instruction set and without the library: the results must be the bits of integer arithmetic. Of MODEL it says
    what it needs, whether that is here, whether it loads with and without the library, and whether its function bodies
    are those of this version.

    A file that runs slowly here is a warning. Exit codes: 1 an op computes something wrong; 3 MODEL cannot be read or
    does not run here; 5 onnxruntime or the library is missing or cannot be used.

    \b
    Example:
      binarize-onnx doctor net.bin.onnx
    """
    from binarize_onnx.doctor import examine

    _log_to_stderr(log_level)
    _different(report, read=[model])
    found = examine(model)
    printed = _json(found.to_json())
    _write({report: _line(printed)})
    click.echo(printed if as_json else found.text())
    found.require()


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
    printed = _json(found.to_json())
    _write({report: _line(printed)})
    click.echo(printed if as_json else found.text())
    found.verification.require()


def _config(input_shapes: tuple[tuple[str, Any], ...], map_ops: tuple[tuple[str, str], ...], **choices: Any) -> Config:
    from binarize_onnx.pipeline import Config

    return Config(input_shapes=dict(input_shapes), map_ops=dict(map_ops), **choices)


def _samples(path: Path | None, mean: tuple[float, ...], std: tuple[float, ...]) -> CalibrationData | None:
    """What a file or a folder of images holds."""
    if path is None or not path.is_dir():
        return None if path is None else str(path)
    from binarize_onnx.images import ImageFolder

    return ImageFolder(path, mean, std)


def _exclude_list(path: Path | None) -> tuple[str, ...]:
    """The regular expressions of a file, one a line; comments are behind a #."""
    if path is None:
        return ()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot be read: {one_line(error)}.", where=str(path)) from None
    return tuple(line for line in map(str.strip, lines) if line and not line.startswith("#"))


def _only_with(what: str, *names: str) -> None:
    """Refuse options of the command line that nothing would look at without another."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise UsageError(f"--{name.replace('_', '-')} is for {what}.")


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(format="%(message)s")
    logging.getLogger("binarize_onnx").setLevel(level.upper())


def _progress() -> Callable[[str], None] | None:
    """Says on stderr what is being done, if somebody looks."""
    if not sys.stderr.isatty():
        return None
    return lambda words: click.echo(printable(words), err=True)


def _json(found: dict[str, Any]) -> str:
    return json.dumps({"schema": SCHEMA, **found}, indent=2, allow_nan=False)


def _line(text: str) -> bytes:
    return f"{text}\n".encode()


def _one_of(as_json: bool, as_markdown: bool) -> None:
    if as_json and as_markdown:
        raise UsageError(
            "--json and --markdown exclude each other:", fix="--report FILE writes the JSON beside either."
        )


def _different(*written: Path | None, read: Iterable[Path | None] = ()) -> None:
    """Refuse to write two things into one file, or over what is read."""
    files = [os.path.realpath(path) for path in written if path is not None]
    inputs = {os.path.realpath(path) for path in read if path is not None}
    for path in files:
        if files.count(path) > 1:
            raise UsageError(f"{path} would be written twice:", fix="name a file for each output.")
        if path in inputs:
            raise UsageError(f"{path} is read, and would be written over:", fix="name another file.")


def _write(files: dict[Path | None, bytes]) -> None:
    """Write the files that are asked for."""
    with _writing(files):
        pass


@contextmanager
def _writing(files: dict[Path | None, bytes]) -> Iterator[None]:
    """Write the files that are asked for when the block ends well; a bad path is found before the block."""
    with ExitStack() as stack:
        for path, content in files.items():
            if path is not None:
                stack.enter_context(_whole(path, content))
        yield


@contextmanager
def _whole(path: Path, content: bytes) -> Iterator[None]:
    from binarize_onnx import io

    try:
        with io.atomic_write(path) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # a disk that is full says so before the block
            yield
    except OSError as error:
        raise ModelError(f"cannot be written: {error.strerror or error}.", where=str(path)) from None
