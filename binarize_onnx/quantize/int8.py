"""A float model as onnxruntime's own static quantization leaves it: what everything here is measured against.

QuantizeLinear and DequantizeLinear around every operator that has an int8 kernel; activations in 8 bits over the range
that the samples show, weights in 8 bits for each output channel; normalizations folded into the weights first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx

from binarize_onnx.errors import ModelError, one_line
from binarize_onnx.int8_edges import folded, quantization, quiet
from binarize_onnx.passes.base import Array


class Reader:
    """A CalibrationDataReader of given batches."""

    def __init__(self, feeds: Iterable[Mapping[str, Array]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, Array] | None:
        """The next batch, None behind the last."""
        feed = next(self._feeds, None)
        return None if feed is None else dict(feed)


def whole(model: onnx.ModelProto, feeds: Iterable[Mapping[str, Array]]) -> onnx.ModelProto:
    """The model in int8.

    Args:
        model: a float one.
        feeds: batches of samples, by input name.

    Raises:
        ModelError: onnxruntime does not load or quantize the model.
        RuntimeUnavailable: onnxruntime's quantization cannot be imported.
    """
    quantize_static, settings = quantization()
    settings = {k: v for k, v in settings.items() if k not in ("op_types_to_quantize", "extra_options")}
    with tempfile.TemporaryDirectory() as folder, quiet():
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(onnx.shape_inference.infer_shapes(folded(model, source)), source)
        try:
            quantize_static(str(source), str(target), Reader(feeds), **settings)
        except Exception as error:  # its own errors share no base
            raise ModelError(f"onnxruntime.quantization does not quantize the model: {one_line(error)}") from None
        return onnx.load(target)
