"""onnxruntime: its own float and int8 layers, and with our library registered our layers."""

from __future__ import annotations

from typing import Any

import models
import onnx
import onnxruntime

from binarize_onnx import runtime
from peers import Call


def options(threads: int) -> Any:
    """Session options: threads of its pool, and warnings left out."""
    found = onnxruntime.SessionOptions()
    found.intra_op_num_threads = threads
    found.inter_op_num_threads = 1
    found.log_severity_level = 3
    return found


def session(model: onnx.ModelProto | str, threads: int) -> Any:
    """A session on the CPU with our kernels registered, of a model or a file."""
    return runtime.InferenceSession(model if isinstance(model, str) else model.SerializeToString(), options(threads))


def call(model: onnx.ModelProto, threads: int) -> Call:
    """Run a model of one input and one output, both bound to memory of their own."""
    running = session(model, threads)
    x = models.random_input(model)
    (source,), (target,) = running.get_inputs(), running.get_outputs()
    binding = running.io_binding()
    binding.bind_ortvalue_input(source.name, onnxruntime.OrtValue.ortvalue_from_numpy(x))
    (y,) = running.run(None, {source.name: x})
    binding.bind_ortvalue_output(target.name, onnxruntime.OrtValue.ortvalue_from_numpy(y))
    return lambda: running.run_with_iobinding(binding)
