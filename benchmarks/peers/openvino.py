"""OpenVINO: its float and int8 layers from the same ONNX files, and its own binary convolution."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import models
import numpy as np
import onnx
from shapes import Conv

from peers import Call

INSTALLED = find_spec("openvino") is not None


def call(model: onnx.ModelProto, threads: int) -> Call:
    """Run an ONNX model of one input; QuantizeLinear and DequantizeLinear make it run in int8."""
    import openvino

    return _call(openvino.Core().read_model(model.SerializeToString()), models.random_input(model), threads)


def binary_call(layer: Conv, threads: int) -> Call:
    """Run FakeQuantize to 0 and 1, which OpenVINO lowers to bits, and BinaryConvolution with weights of bits."""
    import openvino
    from openvino import opset1

    rng = np.random.default_rng(0)
    x = opset1.parameter(list(layer.input_shape), np.float32)
    edge = opset1.constant(np.zeros((1, layer.channels, 1, 1), np.float32))
    one = opset1.constant(np.ones((1, layer.channels, 1, 1), np.float32))
    bits = opset1.fake_quantize(x, edge, edge, edge, one, 2)
    packed = np.packbits(rng.integers(0, 2, layer.weight_shape, np.uint8).ravel(), bitorder="little")
    shape = openvino.Shape(list(layer.weight_shape))
    weights = openvino.op.Constant(openvino.Tensor(packed, shape, openvino.Type.u1))
    strides, pads = [layer.stride] * 2, [layer.pad] * 2
    y = opset1.binary_convolution(bits, weights, strides, pads, pads, [1, 1], "xnor-popcount", 0.0)
    run = _call(openvino.Model([y], [x], "binary"), rng.standard_normal(layer.input_shape, np.float32), threads)
    kept = packed  # OpenVINO does not copy weights of bits: they must live as long as the call

    def call_with_weights() -> None:
        run()
        _ = kept

    return call_with_weights


def _call(model: Any, x: Any, threads: int) -> Call:
    import openvino

    # Of the ways to drive it, these are the fastest: it places its threads, and outputs are not copied.
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(x))
    return lambda: request.infer(share_outputs=True)
