"""Real trained networks: what is binary, what is exact, and how accurate they stay on real images."""

from __future__ import annotations

import functools
import io
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from corpus import bnn_bytes, corpus_path, datasets, load_bnn, sample_feed
from optimisers import LEVELS, OPTIMISERS, optimised, require_tools
from PIL import Image

from binarize_onnx import Config, convert, runtime
from binarize_onnx import io as model_io
from binarize_onnx.pipeline import Result
from binarize_onnx.verify import verify

Array = npt.NDArray[Any]
Levels = ort.GraphOptimizationLevel
ALL_LEVELS = (Levels.ORT_DISABLE_ALL, Levels.ORT_ENABLE_BASIC, Levels.ORT_ENABLE_EXTENDED, Levels.ORT_ENABLE_ALL)


@dataclass(frozen=True)
class Network:
    """A network of the corpus and what is known of it.

    `accuracy` is the published figure of the corpus in percent, on `images` test images; None where our images are
    only a part of those it was measured on. `integers` tells that nothing but integers reaches its signs.
    """

    name: str
    binary: int
    layers: int
    images: int
    accuracy: float | None
    integers: bool


NETWORKS = (
    Network("tfc_w1a1_mnist", 4, 4, 10_000, 92.96, True),
    Network("lfc_w1a1_mnist", 4, 4, 10_000, 98.34, True),
    Network("cnv_w1a1_cifar10", 8, 9, 10_000, 74.37, True),
    Network("bmxnet_lenet_mnist", 2, 4, 10_000, 97.40, False),
    Network("bmxnet_resnet18_imagenet_st1fp", 15, 22, 500, None, False),
)
by_name = pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)


@functools.cache
def compiled(name: str) -> Result:
    return convert(load_bnn(name))


@functools.cache
def ideal(name: str) -> onnx.ModelProto:
    return convert(load_bnn(name), Config(emit="ideal")).model


@functools.cache
def images(name: str) -> tuple[Array, Array]:
    """All test images in the network's own encoding, and their labels."""
    if name.endswith("mnist"):
        data = datasets("mnist")
        x = data["x_test"][:, None].astype(np.float32)
        x = np.where(x >= 128, np.float32(1), np.float32(-1)) if name.startswith("lfc") else x / np.float32(255)
        return x, data["y_test"]
    if name.endswith("cifar10"):
        data = datasets("cifar10_jpeg60k")
        header, scans, offsets = data["jpeg_header"].tobytes(), data["scans"].tobytes(), data["offsets"]
        chosen = np.flatnonzero(data["is_test"])
        files = [header + scans[offsets[i] : offsets[i + 1]] for i in chosen]
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(f)).convert("RGB")) for f in files])
        x = pixels.transpose(0, 3, 1, 2).astype(np.float32) * np.float32(2) / np.float32(255) - np.float32(1)
        return x, data["labels"][chosen]
    with zipfile.ZipFile(corpus_path("datasets/imagenet_evenclasses_500x1_256px_q90.zip")) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".jpg"))
        crops = [Image.open(io.BytesIO(archive.read(n))).convert("RGB").crop((16, 16, 240, 240)) for n in names]
    x = np.stack([np.asarray(c) for c in crops]).astype(np.float32) - np.asarray([123.68, 116.779, 103.939], np.float32)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)), np.asarray([int(n.split("/")[-1][:4]) for n in names])


def logits(model: onnx.ModelProto, x: Array, *, library: bool = True, level: Any = Levels.ORT_DISABLE_ALL) -> Array:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    data = model.SerializeToString()
    if library:
        session = runtime.InferenceSession(data, options)
    else:
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: x[i : i + 50]})[0] for i in range(0, len(x), 50)])


def same_bits(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@by_name
def test_layers_found(network: Network) -> None:
    summary = compiled(network.name).report.summary
    assert (summary.binary_layers, summary.binary_layers + summary.float_layers) == (network.binary, network.layers)
    left = [layer for layer in compiled(network.name).report.layers if layer.status == "float"]
    assert all(layer.reason for layer in left)


@by_name
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_optimised_files_are_found_as_whole_and_exact(network: Network, optimiser: str) -> None:
    if optimiser not in LEVELS:
        require_tools(optimiser)
    source = optimised(bnn_bytes(network.name), optimiser)
    result, its_ideal = convert(source), convert(source, Config(emit="ideal")).model
    assert result.report.summary.binary_layers == network.binary
    x = images(network.name)[0][:8]
    assert same_bits(logits(result.model, x), logits(its_ideal, x, library=False))
    classes = logits(load_bnn(network.name), x, library=False).argmax(axis=1)
    assert np.array_equal(logits(result.model, x).argmax(axis=1), classes)


def test_the_first_layer_of_cnv_says_why_it_stays_float() -> None:
    (layer,) = [x for x in compiled("cnv_w1a1_cifar10").report.layers if x.status == "float"]
    assert layer.name == "conv0"
    assert "no sign on it" in layer.reason


@by_name
def test_compiled_is_ideal_bit_for_bit(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    x = next(iter(sample_feed(network.name).values()))
    wanted = logits(ideal(network.name), x, library=False)
    model = compiled(network.name).model
    assert same_bits(logits(model, x, library=False), wanted), "the function bodies differ"
    for isa in runtime.available_isas():
        monkeypatch.setenv("BINARIZE_ONNX_ISA", isa)
        assert same_bits(logits(model, x), wanted), f"the {isa} kernels differ"


@by_name
def test_library_and_bodies_agree_at_every_optimisation_level(network: Network) -> None:
    """Between binary ops onnxruntime may do what it likes to float layers: so each op is compared on equal inputs."""
    model = model_io.load(compiled(network.name).model.SerializeToString())
    feeds, nodes = _binary_ops_alone(model, network.name)
    for level in ALL_LEVELS:
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.log_severity_level = 3
        data = model.SerializeToString()
        fast = runtime.InferenceSession(data, options).run(None, feeds)
        plain_options = ort.SessionOptions()
        plain_options.graph_optimization_level = level
        plain_options.log_severity_level = 3
        slow = ort.InferenceSession(data, plain_options, providers=["CPUExecutionProvider"]).run(None, feeds)
        for name, a, b in zip(nodes, fast, slow, strict=True):
            assert same_bits(a, b), f"{name} at {level}"


def _binary_ops_alone(model: onnx.ModelProto, name: str) -> tuple[dict[str, Array], list[str]]:
    """Keep only our ops, each fed with the tensors of a real run; returns those tensors and the outputs' names."""
    ours = [n for n in model.graph.node if n.domain == "binarize_onnx"]
    made = {o for n in model.graph.node for o in n.output if o}
    read = sorted({i for n in ours for i in n.input if i in made} | {o for n in ours for o in n.output if o})
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=n) for n in read)
    options = ort.SessionOptions()
    options.graph_optimization_level = Levels.ORT_DISABLE_ALL
    session = runtime.InferenceSession(probe.SerializeToString(), options)
    inputs = {k: v[:2] for k, v in sample_feed(name).items()}
    tensors = dict(zip(read, session.run(None, inputs), strict=True)) | inputs
    del model.graph.node[:], model.graph.input[:], model.graph.output[:], model.graph.value_info[:]
    feeds: dict[str, Array] = {}
    outputs: list[str] = []
    for node in ours:
        for index, tensor in enumerate(node.input):
            if tensor in made or tensor in inputs:
                node.input[index] = f"{tensor}.fed"
                feeds[f"{tensor}.fed"] = tensors[tensor]
        outputs += [o for o in node.output if o]
        model.graph.node.append(node)
    for key, values in feeds.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        model.graph.input.append(onnx.helper.make_tensor_value_info(key, kind, values.shape))
    for output in outputs:
        kind = onnx.helper.np_dtype_to_tensor_dtype(tensors[output].dtype)
        model.graph.output.append(onnx.helper.make_tensor_value_info(output, kind, [None] * tensors[output].ndim))
    return feeds, outputs


@by_name
def test_against_the_source(network: Network) -> None:
    """Integer networks: no sign differs. Others: layer by layer under the source's own signs, within rounding."""
    result = verify(load_bnn(network.name), compiled(network.name).model, inputs=sample_feed(network.name))
    result.require()
    assert result.exact is not None
    assert result.exact.equal
    assert len(result.signs) >= network.binary - 3, "layers that share a sign aside, each has its own"
    for sign in result.signs:
        assert sign.flips_outside == 0
        if network.integers:
            assert sign.flips_inside == 0


@by_name
def test_top_1_and_accuracy_on_real_images(network: Network) -> None:
    x, labels = images(network.name)
    assert len(x) == network.images
    ours = logits(compiled(network.name).model, x).argmax(axis=1)
    # The source is slow: the integer networks are compared on all images, the others on at least 500.
    some = slice(None) if network.integers else slice(0, 1000)
    theirs = logits(load_bnn(network.name), x[some], library=False)
    assert len(theirs) >= 500
    agreement = float(np.mean(ours[some] == theirs.argmax(axis=1)))
    assert agreement >= (1.0 if network.integers else 0.995)
    accuracy = 100 * float(np.mean(ours == labels))
    print(f"{network.name}: top-1 {accuracy:.2f} % of {len(x)}, agrees with its source on {100 * agreement:.2f} %")
    if network.accuracy is not None:
        # The figures have two decimals. Float layers round differently from processor to processor: five images more.
        assert accuracy == pytest.approx(network.accuracy, abs=0.005 + (0 if network.integers else 0.05))
    else:
        assert accuracy >= 100 * float(np.mean(theirs.argmax(axis=1) == labels[some])) - 0.5


@by_name
def test_integer_networks_equal_their_source(network: Network) -> None:
    if not network.integers:
        pytest.skip("float steps reach its outputs: compared layer by layer instead")
    x = images(network.name)[0][:1000]
    assert same_bits(logits(compiled(network.name).model, x), logits(load_bnn(network.name), x, library=False))


@by_name
def test_weights_take_one_bit_each(network: Network) -> None:
    """The packed weights are the source's ±1 floats at a 32nd of the size, within what the last words waste."""
    source, result = load_bnn(network.name), compiled(network.name)
    names = {x.name for x in result.report.layers if x.status == "binary"}
    constants = {t.name: t for t in source.graph.initializer}
    layers = [n for n in source.graph.node if n.name in names or n.output[0] in names]
    bits_needed = sum(int(np.prod(constants[n.input[1]].dims)) for n in layers)
    packed = {t.name: t for t in result.model.graph.initializer}
    words = [packed[n.input[1]] for n in result.model.graph.node if n.op_type in ("XnorConv", "XnorMatMul")]
    stored = 32 * sum(int(np.prod(t.dims)) for t in words)
    assert bits_needed <= stored <= 1.02 * bits_needed
    size = len(result.model.SerializeToString(deterministic=True))
    assert result.report.summary.bytes_after == pytest.approx(size, rel=0.02)
