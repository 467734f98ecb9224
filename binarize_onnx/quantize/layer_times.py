"""How long each layer takes on this machine, alone: in float32, in int8, and in every precision that is asked for.

Each form is a model of that one layer, float32 in and out: what turns floats into bits or bytes is part of it. All
forms of a layer take turns. Weights are random numbers, on which the time does not depend, and layers of one shape are
measured once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from binarize_onnx import opset, pipeline, runtime
from binarize_onnx.bench.timing import Times, ratios, summary, time_in_turns
from binarize_onnx.errors import ModelError
from binarize_onnx.passes.base import Array
from binarize_onnx.quantize import int8, rewrite
from binarize_onnx.quantize.activations import Levels
from binarize_onnx.quantize.precision import Precision
from binarize_onnx.quantize.sites import Network, Site
from binarize_onnx.quantize.weights import Bases
from binarize_onnx.verify.session import Runner

FLOAT, INT8 = "float", "int8"
SECONDS = 0.4  # of timing a layer, all its forms together
FEWEST = 15  # rounds, even if that takes longer
SHORTEST = 2e-4  # seconds of one measurement
INT8_SAMPLES = 4  # of random inputs, for ranges


@dataclass(frozen=True)
class Shape:
    """What the time of a layer depends on."""

    kind: str
    weights: tuple[int, ...]
    input: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int


class LayerTimes:
    """Times of layers, measured when they are asked for.

    Args:
        network: whose layers they are.
        feed: one sample; layers are timed at the sizes that they have with it.
        threads: of onnxruntime.

    Attributes:
        measured: microseconds by shape and form.
    """

    def __init__(self, network: Network, feed: Mapping[str, Array], *, threads: int = 1) -> None:
        inner = sorted({site.input for site in network.sites} - set(feed))
        values = {**feed, **Runner(network.model, inner).run(feed)}
        self._shapes = {site.name: values[site.input].shape for site in network.sites}
        self._threads = threads
        self.measured: dict[Shape, dict[str, float]] = {}

    def of(self, site: Site, precisions: Collection[Precision]) -> dict[str, float]:
        """Microseconds that a layer takes as `float`, as `int8` if it can be, and in each precision, by name."""
        shape = Shape(
            site.kind,
            site.weights.shape,
            self._shapes[site.name],
            site.strides,
            site.pads,
            site.dilations,
            site.group,
        )
        known = self.measured.setdefault(shape, {})
        if any(str(p) not in known for p in precisions) or FLOAT not in known:
            models = forms(site, shape.input, precisions)
            x = np.random.default_rng(0).normal(size=shape.input).astype(np.float32)
            sessions = {name: session(model, self._threads) for name, model in models.items()}
            calls = [_call(one, {"x": np.maximum(x, 0)}) for one in sessions.values()]
            times = time_in_turns(calls, SECONDS, fewest=FEWEST, shortest=SHORTEST)
            known.update({name: summary(t).median for name, t in zip(models, times, strict=True)})
        return dict(known)


@dataclass(frozen=True)
class NetworkTime:
    """What one run of a network takes.

    Attributes:
        us: microseconds, the median.
        speedup: how many times faster than the first network: the median over rounds.
    """

    us: float
    speedup: float


def of_networks(
    models: Sequence[onnx.ModelProto], feed: Mapping[str, Array], *, threads: int = 1, seconds: float = 5.0
) -> list[NetworkTime]:
    """Whole networks timed in turns on the same sample; the first is what the others are compared with."""
    calls = [_call(session(model, threads), feed) for model in models]
    settle = 0.05 if threads > 1 else 0.0  # until the threads of the one before have gone to sleep
    times: Times = time_in_turns(calls, seconds, fewest=FEWEST, shortest=SHORTEST, settle=settle)
    return [NetworkTime(summary(t).median, ratios(times[0], t).median) for t in times]


def session(model: onnx.ModelProto, threads: int) -> Any:
    """A session as a user of the model would make it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _call(session: Any, feed: Mapping[str, Array]) -> Callable[[], Any]:
    names = {given.name for given in session.get_inputs()}
    taken = {name: values for name, values in feed.items() if name in names}
    return lambda: session.run(None, taken)


def forms(site: Site, shape: tuple[int, ...], precisions: Collection[Precision]) -> dict[str, onnx.ModelProto]:
    """Models of one layer: input `x` of this shape, output `y`."""
    rng = np.random.default_rng(1)
    plain = _model(_float_nodes(site), {"w": _float_weights(site, rng), "b": np.zeros(site.outputs, np.float32)}, shape)
    inputs = (np.maximum(rng.normal(size=shape), 0).astype(np.float32) for _ in range(INT8_SAMPLES))
    found = {FLOAT: plain}
    with suppress(ModelError):  # what onnxruntime cannot quantize has no time in int8
        found[INT8] = int8.whole(plain, [{"x": x} for x in inputs])
    convert = pipeline.Config(slow_layers="convert")
    for precision in sorted(precisions):
        found[str(precision)] = pipeline.convert(_ideal(site, precision, shape, rng), convert).model
    return found


def _float_weights(site: Site, rng: np.random.Generator) -> Array:
    weights = rng.normal(0, site.length**-0.5, site.weights.shape).astype(np.float32)
    return weights if site.kind == "conv" else np.ascontiguousarray(weights.T)


def _float_nodes(site: Site) -> list[onnx.NodeProto]:
    if site.kind == "product":
        return [
            helper.make_node("MatMul", ["x", "w"], ["product"], name="layer"),
            helper.make_node("Add", ["product", "b"], ["y"], name="bias"),
        ]
    attributes: dict[str, Any] = {"strides": site.strides, "pads": site.pads, "dilations": site.dilations}
    return [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="layer", group=site.group, **attributes)]


def _ideal(site: Site, precision: Precision, shape: tuple[int, ...], rng: np.random.Generator) -> onnx.ModelProto:
    alone = Site(**{**site.__dict__, "input": "x", "output": "y", "writes": ("y",), "name": "layer"})
    numbers = count()

    def unique(hint: str) -> str:
        return f"{hint}.{next(numbers)}"

    top = precision.levels
    steps = np.repeat((np.arange(top, dtype=np.float32)[:, None] + 0.5) * (2 / top), site.channels, 1)
    levels = Levels(steps, np.zeros(site.channels), np.full(site.channels, 2 / top))
    signs = rng.choice(np.array([-1, 1], np.int8), (precision.bases, site.outputs, site.length))
    scales = rng.uniform(0.1, 1, signs.shape[:2])
    activation = rewrite.activation(alone, levels, unique)
    level = activation.nodes[-1].output[0]
    layer = rewrite.product(alone, level, Bases(signs, scales, np.zeros(site.outputs)), unique)
    constants = {t.name: numpy_helper.to_array(t) for t in [*activation.constants, *layer.constants]}
    model = _model([*activation.nodes, *layer.nodes], constants, shape)
    model.opset_import.append(helper.make_opsetid(opset.IDEAL_DOMAIN, opset.VERSION))
    model.functions.extend(opset.functions_in_use(model))
    model.graph.value_info.append(helper.make_tensor_value_info(level, TensorProto.FLOAT, shape))
    return model


def _model(nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Array], shape: tuple[int, ...]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [onnx.ValueInfoProto(name="y", type=helper.make_tensor_type_proto(TensorProto.FLOAT, None))],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
