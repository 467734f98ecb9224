"""What people run over an ONNX file before they convert it: onnxsim, onnxslim, onnxruntime that saves what it made."""

from __future__ import annotations

import importlib
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest

LEVELS = {
    "onnxruntime basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "onnxruntime extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}
OPTIMISERS = ("onnxsim", "onnxslim", *LEVELS)


def optimised(source: bytes, optimiser: str) -> bytes:
    """The file after one of `OPTIMISERS` has been over it; unchanged after `none`."""
    if optimiser in LEVELS:
        return _saved_by_onnxruntime(source, LEVELS[optimiser])
    if optimiser == "none":
        return source
    tool: Any = importlib.import_module(optimiser)
    if optimiser == "onnxslim":
        return bytes(tool.slim(onnx.load_from_string(source)).SerializeToString())
    simplified, checked = tool.simplify(onnx.load_from_string(source))
    assert checked
    return bytes(simplified.SerializeToString())


def require_tools(*tools: str) -> None:
    """Skip the test where tools are missing that no user needs; fail in CI, but with its oldest versions."""
    missing = [tool for tool in tools if importlib.util.find_spec(tool) is None]
    if missing:
        words = f"{', '.join(missing)} not installed; pip install '.[zoo]'"
        if os.environ.get("CI") and not os.environ.get("BINARIZE_ONNX_OLDEST"):
            pytest.fail(words)
        pytest.skip(words)


def _saved_by_onnxruntime(source: bytes, level: Any) -> bytes:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3  # a saved model may not suit other machines, it warns
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(file)
        ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        return file.read_bytes()
