"""Write brevitas_torchscript.onnx and .npz: a network of Brevitas as its QONNX exporter writes it, and torch's answers.

    pip install brevitas torch onnx onnxoptimizer && python tests/exported/make_brevitas.py

Made with Brevitas 0.13.4 and torch 2.13.0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from brevitas import nn as qnn
from brevitas.core.bit_width import BitWidthImplType
from brevitas.core.quant import QuantType
from brevitas.core.restrict_val import RestrictValueType
from brevitas.core.scaling import ScalingImplType
from brevitas.core.zero_point import ZeroZeroPoint
from brevitas.export import export_qonnx
from brevitas.inject import ExtendedInjector
from brevitas.quant.solver import ActQuantSolver, WeightQuantSolver
from torch import nn

HERE = Path(__file__).parent


class Binary(ExtendedInjector):
    """One bit, no scale."""

    quant_type = QuantType.BINARY
    bit_width = 1
    bit_width_impl_type = BitWidthImplType.CONST
    scaling_impl_type = ScalingImplType.CONST
    restrict_scaling_type = RestrictValueType.FP
    zero_point_impl = ZeroZeroPoint
    float_to_int_impl_type = "round"
    scaling_per_output_channel = False
    narrow_range = True
    signed = True


class Weights(Binary, WeightQuantSolver):
    """-1 and 1."""

    scaling_const = 1.0


class Activations(Binary, ActQuantSolver):
    """-1 and 1."""

    min_val = -1.0
    max_val = 1.0


torch.manual_seed(0)
network = nn.Sequential(
    qnn.QuantIdentity(act_quant=Activations),
    qnn.QuantConv2d(8, 32, 3, padding=1, bias=False, weight_quant=Weights),
    nn.BatchNorm2d(32),
    qnn.QuantIdentity(act_quant=Activations),
    qnn.QuantConv2d(32, 32, 3, bias=False, weight_quant=Weights),
    nn.BatchNorm2d(32),
    qnn.QuantIdentity(act_quant=Activations),
    nn.MaxPool2d(2),
    nn.Flatten(),
    qnn.QuantLinear(32 * 3 * 3, 10, bias=False, weight_quant=Weights),
)
for module in network.modules():
    if isinstance(module, nn.BatchNorm2d):
        module.running_mean.normal_()
        module.running_var.uniform_(0.5, 2)
        module.weight.data.normal_()
        module.bias.data.normal_()
x = torch.randn(2, 8, 8, 8)
y = network.eval()(x)
np.savez(HERE / "brevitas_torchscript.npz", x=x.numpy(), y=getattr(y, "value", y).detach().numpy())
export_qonnx(network, args=x, export_path=str(HERE / "brevitas_torchscript.onnx"), dynamo=False)
