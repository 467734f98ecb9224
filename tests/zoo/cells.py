"""One cell of the zoo: a network, exported by one exporter, changed by one optimiser, converted and compared.

    torch module ─► exporter ─► optimiser ─► source.onnx ─► convert ─► converted = ideal?  ideal ≈ source?

A cell is well when every layer that the paper calls binary is lowered and no other, the file equals its ideal graph bit
for bit (with the library and without), and rounding explains every difference of the ideal graph from the source.
"""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import onnxsim
import onnxslim
import torch

from zoo import network
from zoo.base import Feed, planted, randomise

SEED = 7
OPSETS = {"torchscript": 17, "dynamo": 18}
EXPORTERS = tuple(OPSETS)
OPTIMISERS = ("none", "onnxsim", "onnxslim", "ort-basic", "ort-extended")


def inputs(name: str) -> Feed:
    return network(name).inputs(np.random.default_rng(SEED))


@cache
def exported(name: str, exporter: str) -> bytes:
    """The network as ONNX, its batch size open."""
    feed = inputs(name)
    module = randomise(network(name).build(), feed, SEED)
    args = tuple(torch.from_numpy(values) for values in feed.values())
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "torchscript":
            torch.onnx.export(
                module,
                args,
                stream,
                dynamo=False,
                opset_version=OPSETS[exporter],
                input_names=list(feed),
                output_names=["output"],
                dynamic_axes={tensor: {0: "batch"} for tensor in (*feed, "output")},
            )
            return stream.getvalue()
        batch = torch.export.Dim("batch")
        program = torch.onnx.export(
            module,
            args,
            dynamo=True,
            verbose=False,
            opset_version=OPSETS[exporter],
            input_names=list(feed),
            output_names=["output"],
            dynamic_shapes=tuple({0: batch} for _ in feed),
        )
    return bytes(program.model_proto.SerializeToString())
