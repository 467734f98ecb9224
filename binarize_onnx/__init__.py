"""Compile ONNX models into binary neural networks that onnxruntime runs with XNOR and popcount.

`convert` and `inspect` compile, `verify` compares a result with its source, `evaluate` says how good models are on
labelled samples and what they cost, `reduce` cuts a model that fails down to what matters, `InferenceSession`,
`register` and `get_library_path` run it fast. See the README for a first example.
"""

from binarize_onnx.errors import BinarizeError
from binarize_onnx.evaluate import evaluate
from binarize_onnx.pipeline import Config, Result, convert, inspect
from binarize_onnx.reduce import reduce
from binarize_onnx.runtime import InferenceSession, get_library_path, register
from binarize_onnx.verify import verify

__all__ = [
    "BinarizeError",
    "Config",
    "InferenceSession",
    "Result",
    "convert",
    "evaluate",
    "get_library_path",
    "inspect",
    "reduce",
    "register",
    "verify",
]
