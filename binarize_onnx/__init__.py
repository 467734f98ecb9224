"""Compile ONNX models into binary neural networks that onnxruntime runs with XNOR and popcount."""

from binarize_onnx.errors import BinarizeError
from binarize_onnx.pipeline import Config, Result, convert, inspect

__all__ = ["BinarizeError", "Config", "Result", "convert", "inspect"]
