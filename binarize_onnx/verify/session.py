"""Run a model in onnxruntime, and read tensors from inside of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from google.protobuf.message import EncodeError

from binarize_onnx import runtime
from binarize_onnx.errors import BinarizeError, ModelError, RuntimeUnavailable, one_line
from binarize_onnx.verify.arrays import Array, Arrays
from binarize_onnx.verify.graphs import with_outputs


class Runner:
    """A model in an onnxruntime session.

    Args:
        model: what to run.
        extra: inner tensors to return beside the model's outputs.
        optimise: at onnxruntime's default level; otherwise at ORT_DISABLE_ALL, every node as it is written.
        library: with our kernels; otherwise our ops run by their function bodies.

    Attributes:
        types: onnxruntime's type of everything that `run` returns, by name: `tensor(float)` and so on.
    """

    def __init__(
        self, model: onnx.ModelProto, extra: Iterable[str] = (), *, optimise: bool = False, library: bool = False
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise RuntimeUnavailable(f"onnxruntime cannot be imported ({error});", fix="install it.") from None
        try:
            data = with_outputs(model, extra).SerializeToString()
        except (EncodeError, ValueError):
            raise ModelError("the model is too large to verify: it does not fit into one protobuf of 2 GB.") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what it says in errors is passed on; the rest is not about the user's model
        if not optimise:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        start = runtime.InferenceSession if library else onnxruntime.InferenceSession
        try:
            self._session = start(data, options, providers=["CPUExecutionProvider"])
        except BinarizeError:
            raise
        except Exception as error:  # onnxruntime's own classes share no base
            raise ModelError(f"onnxruntime does not load the model: {one_line(error)}") from None
        self._inputs = [given.name for given in self._session.get_inputs()]
        self.types: dict[str, str] = {out.name: out.type for out in self._session.get_outputs()}

    def run(self, feed: Mapping[str, Array]) -> Arrays:
        """Every output by name; of the feed the model takes what it needs."""
        try:
            values = self._session.run(list(self.types), {name: feed[name] for name in self._inputs})
        except Exception as error:
            raise ModelError(f"onnxruntime does not run the model on this data: {one_line(error)}") from None
        odd = [name for name, value in zip(self.types, values, strict=True) if not isinstance(value, np.ndarray)]
        if odd:
            raise ModelError(f"output `{odd[0]}` is no tensor: only tensors can be compared.")
        return dict(zip(self.types, values, strict=True))
