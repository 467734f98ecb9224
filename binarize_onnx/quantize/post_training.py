"""A float model to one in ideal form, layer after layer: what `convert --ptq` does before it compiles.

Layers are taken in the order of the graph. Each is fitted on the inputs that the quantized network before it really
gives, so that it makes up for the errors in front of it, to what the float network computes there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx

from binarize_onnx.calibration import CalibrationData
from binarize_onnx.quantize.plan import Plan, Settings
from binarize_onnx.quantize.precision import Precision
from binarize_onnx.quantize.sites import Network

Progress = Callable[[str], None]


@dataclass(frozen=True)
class QuantizedLayer:
    """What the quantization of one layer came to.

    Attributes:
        name: of the layer.
        precision: that it has now.
        error: the squared error of its output, as a share of that output's variance, on the calibration samples: of
            the quantized network against the float one.
        patches: rows of its input that it was fitted to.
        length: terms of its dot products.
        warnings: what to think of before it is used, in sentences.
    """

    name: str
    precision: Precision
    error: float
    patches: int
    length: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class OutputAgreement:
    """How one output of the quantized network compares with the float one's, on the calibration samples.

    Attributes:
        name: of the output.
        error: squared error as a share of the variance.
        agreement: share of the samples that keep their class; None if the output is not [samples, classes].
        classes: how many there are; None likewise.
    """

    name: str
    error: float
    agreement: float | None = None
    classes: int | None = None


@dataclass(frozen=True)
class Quantized:
    """A quantized network.

    Attributes:
        model: in ideal form: Level or BinarySign, ±1 weights, scales behind; plain onnxruntime runs it.
        layers: a row for each layer of the plan.
        outputs: a row for each output.
        samples: how many there were.
        warnings: about the network as a whole.
    """

    model: onnx.ModelProto
    layers: list[QuantizedLayer]
    outputs: list[OutputAgreement]
    samples: int
    warnings: list[str]


def quantize(
    network: Network,
    data: CalibrationData,
    plan: Plan,
    settings: Settings | None = None,
    *,
    progress: Progress | None = None,
    resume: Path | None = None,
) -> Quantized:
    """Quantize the layers of a plan.

    Args:
        network: what `sites.find` made of the float model.
        data: samples as the network will see them, without labels: arrays by input name, a file of them, or an
            onnxruntime `CalibrationDataReader`.
        plan: the precision of each layer to be quantized, by name.
        settings: the methods; None for the best.
        progress: is told in words what is being done.
        resume: a folder in which the work so far is kept: begun again with the same arguments, it goes on from there,
            with the same result bit for bit.

    Raises:
        ModelError: the data cannot be read, does not fit, has no samples or holds NaN; the model does not run on it.
        UsageError: the plan names a layer that cannot be quantized, or the folder belongs to another calculation.
    """
    raise NotImplementedError
