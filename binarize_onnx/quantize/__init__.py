"""Post-training quantization: a float model becomes one in ideal form, which the compiler then lowers like any other.

The layers of a `Plan` get low-bit activations and binary weight bases, fitted to what the float model computes on a
few hundred samples without labels; nothing is trained. See `post_training.quantize`.
"""

from __future__ import annotations

from binarize_onnx.quantize.plan import Plan, Settings
from binarize_onnx.quantize.precision import Precision

__all__ = ["Plan", "Precision", "Settings"]
