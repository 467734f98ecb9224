"""Float models as onnxruntime's static quantization leaves them: what an int8 peer runs."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx


class _Reader:
    """A CalibrationDataReader of given inputs, for a model that has one."""

    def __init__(self, name: str, inputs: Iterable[Any]) -> None:
        self.left = iter([{name: x} for x in inputs])

    def get_next(self) -> dict[str, Any] | None:
        """The next input, None behind the last."""
        return next(self.left, None)


def int8(model: onnx.ModelProto, inputs: Iterable[Any]) -> onnx.ModelProto:
    """QuantizeLinear and DequantizeLinear around every operator; u8 activations, s8 weights, per channel.

    Args:
        model: float, with one input.
        inputs: what is fed to find the ranges. Where these begin at 0, as behind a ReLU, the zero point is 0, and
            runtimes are fastest.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    logging.getLogger().setLevel(logging.ERROR)  # it warns that the model could be optimised first: it is
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(onnx.shape_inference.infer_shapes(model), source)
        quantize_static(
            str(source),
            str(target),
            _Reader(model.graph.input[0].name, inputs),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
        return onnx.load(target)
