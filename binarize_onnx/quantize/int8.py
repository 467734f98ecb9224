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
from binarize_onnx.int8_edges import quantization, quiet
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
        _prepare(model, source)
        try:
            quantize_static(str(source), str(target), Reader(feeds), **settings)
        except Exception as error:  # its own errors share no base
            raise ModelError(f"onnxruntime.quantization does not quantize the model: {one_line(error)}") from None
        return onnx.load(target)


def _prepare(model: onnx.ModelProto, path: Path) -> None:
    """The model with constants folded and normalizations in the weights, in a file, with the shapes of its tensors."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(
            model.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["MatMulAddFusion"],  # the quantization of some Gemms that it makes fails
        )
    except Exception as error:  # onnxruntime's own classes share no base
        raise ModelError(f"onnxruntime does not load the model: {one_line(error)}") from None
    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(path)), path)
