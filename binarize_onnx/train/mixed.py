"""Mixed precision: the layers that stay float, in fewer bits while a network trains.

    y = float32(layer(low(x), low(w), low(b)))        low: to bfloat16 or float16; Conv, Gemm and MatMul

Of the student and of its teacher, in the steps of a training alone. Everything else stays float32, and so does what
decides a bit: normalisations, thresholds, signs, the sums of binary layers. Statistics are measured, and outputs
judged, exported and compared, in float32 throughout.

bfloat16 has the exponents of float32. In float16 small gradients would vanish, so each layer's are computed with the
power of two in front that makes the largest sum of their magnitudes, over a channel, about `LARGEST_SUM`; the gradients
of its inputs are divided by it again. Powers of two round nothing, and nothing is remembered from step to step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from binarize_onnx.errors import UsageError
from binarize_onnx.train.operators import Attributes, Operator

if TYPE_CHECKING:
    from binarize_onnx.train.graph import GraphModule

MixedPrecision = Literal["no", "bf16", "fp16"]
DTYPES: dict[MixedPrecision, torch.dtype | None] = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
LARGEST_SUM = 2.0**10  # float16 ends at 2^16: a weight's gradient is no larger than this times its largest input
MOST = 100.0  # of exponents: what is smaller than 2^-90 may vanish


def dtype(wanted: MixedPrecision, device: torch.device) -> torch.dtype | None:
    """What float layers are computed in on a device; None is float32, as everything else.

    Raises:
        UsageError: the device does not compute in it.
    """
    if wanted == "fp16" and device.type == "cpu":
        words = "mixed precision fp16 needs a GPU, and this is a CPU:"
        raise UsageError(words, fix="use bf16, or leave mixed precision out.")
    if wanted == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        raise UsageError("this GPU does not compute in bf16:", fix="use fp16, or leave mixed precision out.")
    if wanted != "no" and device.type not in ("cpu", "cuda"):
        words = f"mixed precision is for CPUs and CUDA, and this is {device.type}:"
        raise UsageError(words, fix="leave mixed precision out.")
    return DTYPES[wanted]


@contextmanager
def float_layers_in(lower: torch.dtype | None, *modules: GraphModule) -> Iterator[None]:
    """Meanwhile these modules compute their float layers in it; None changes nothing."""
    for module in modules:
        module.lower = lower
    try:
        yield
    finally:
        for module in modules:
            module.lower = None


def layer(
    run: Operator, inputs: Sequence[Tensor | None], attributes: Attributes, lower: torch.dtype, channels: int
) -> Tensor:
    """A Conv, Gemm or MatMul of float32 inputs in fewer bits: float32 again, output channels on the axis `channels`."""
    if lower != torch.float16:
        return run([_to(value, lower) for value in inputs], attributes).float()
    factor = _Factor()
    divided = [None if value is None else _Divided.apply(value, factor) for value in inputs]
    y = run([_to(value, lower) for value in divided], attributes).float()
    multiplied: Tensor = _Multiplied.apply(y, factor, channels)
    return multiplied


def _to(value: Tensor | None, lower: torch.dtype) -> Tensor | None:
    return None if value is None else value.to(lower)


class _Factor:
    """What the gradients of one layer in one step are multiplied by: set where its gradient begins."""

    value: Tensor


class _Multiplied(torch.autograd.Function):
    """A layer's output; its gradient chooses the factor, and is multiplied by it."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, factor: _Factor, channels: int) -> Tensor:
        ctx.factor, ctx.channels = factor, channels
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        sums = gradient.abs()
        if gradient.dim() > 1:
            sums = sums.movedim(ctx.channels, 0).flatten(1)
        largest = sums.sum(-1).max()  # one axis alone is that of samples: one channel
        exponent = torch.floor(torch.log2(LARGEST_SUM / largest)).clamp(-MOST, MOST)  # of a gradient of 0, the most
        ctx.factor.value = torch.exp2(exponent)
        return gradient * ctx.factor.value, None, None


class _Divided(torch.autograd.Function):
    """An input of a layer; its gradient is divided by the factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: _Factor) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient / ctx.factor.value, None
