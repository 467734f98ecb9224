"""The main job on the model and the images in the package: compile, verify, measure."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from binarize_onnx import io
from binarize_onnx.bench.timing import Time as Time  # it is part of what the demo returns
from binarize_onnx.bench.timing import rounds, summary, time_in_turns
from binarize_onnx.errors import ModelError, RuntimeUnavailable
from binarize_onnx.pipeline import convert
from binarize_onnx.report import Report
from binarize_onnx.verify import Verification, load_data, verify

INPUT = "image"
SECONDS = 2.0  # of timing, both models together


@dataclass(frozen=True)
class Speed:
    """Both models timed in turns, one image at a time, on one thread.

    Attributes:
        original: the float model at onnxruntime's default optimisation level.
        compiled: the compiled model, same level.
        rounds: measurements of each.
        isa: the kernels that ran.
    """

    original: Time
    compiled: Time
    rounds: int
    isa: str

    @property
    def ratio(self) -> float:
        """How many times faster the compiled model is."""
        return self.original.median / self.compiled.median

    def lines(self) -> list[str]:
        """The measurement for a person."""
        forced = " (forced by BINARIZE_ONNX_ISA)" if os.environ.get("BINARIZE_ONNX_ISA") else ""
        if self.ratio >= 1:
            verdict = f"{self.ratio:.2f} times as fast"
        else:
            verdict = f"SLOWER here: it takes {1 / self.ratio:.2f} times as long as the float model"
        return [
            f"original     {self.original}",
            f"compiled     {self.compiled}",
            f"             {verdict}: one image, one thread, {self.rounds} rounds in turns, {self.isa} kernels{forced}",
        ]


@dataclass(frozen=True)
class Demo:
    """What the demo found."""

    report: Report
    verification: Verification
    speed: Speed
    written: Path | None

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        return {
            "report": self.report.to_json(),
            "verification": self.verification.to_json(),
            "speed": {**asdict(self.speed), "ratio": self.speed.ratio},
            "written": None if self.written is None else str(self.written),
        }

    def text(self) -> str:
        """Everything for a person."""
        written = [] if self.written is None else [f"written      {self.written}"]
        return "\n".join([self.report.table(), "", self.verification.table(), *self.speed.lines(), *written])


def run(out: Path | None = None) -> Demo:
    """Compile the packaged model, verify it on the packaged images, and time both.

    Args:
        out: folder to keep the compiled model in; None for a temporary one.

    Raises:
        ModelError: the package's data is missing, or `out` cannot be written.
        RuntimeUnavailable: onnxruntime or our library is missing.
    """
    with ExitStack() as stack:
        data = resources.files("binarize_onnx") / "data"
        source = stack.enter_context(resources.as_file(data / "demo.onnx"))
        images, labels = _images(stack.enter_context(resources.as_file(data / "demo_images.npz")))
        folder = _existing(out) if out else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        compiled = folder / "demo.compiled.onnx"

        result = convert(source)
        io.save(result.model, compiled)
        verification = verify(source, compiled, inputs={INPUT: images}, labels=labels)
        verification.inputs = "images in the package"
        speed = _measure(source, compiled, images[:1])
    return Demo(result.report, verification, speed, compiled if out else None)


def _existing(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"is no folder to write to: {error.strerror or error}.", where=str(folder)) from None
    return folder


def _images(path: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
    """The packaged images as the model takes them, and their labels."""
    data = load_data(path)
    return data["images"][:, None].astype(np.float32) / np.float32(255), data["labels"]


def _measure(original: Path, compiled: Path, image: npt.NDArray[np.float32]) -> Speed:
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeUnavailable(f"onnxruntime cannot be imported ({error});", fix="install it.") from None
    from binarize_onnx import runtime

    def runner(start: Callable[..., Any], path: Path) -> Callable[[], Any]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = start(str(path), options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {INPUT: image})

    original_times, compiled_times = time_in_turns(
        [runner(onnxruntime.InferenceSession, original), runner(runtime.InferenceSession, compiled)], SECONDS
    )
    return Speed(summary(original_times), summary(compiled_times), rounds(compiled_times), runtime.selected_isa())
