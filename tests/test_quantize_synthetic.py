"""Samples that are made of what BatchNormalizations remember, and the gradient that they are made by."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from float_nets import NETWORKS, FloatNet, residual, samples
from onnx import TensorProto, helper, numpy_helper
from test_cli import Command, command  # noqa: F401  # a fixture

from binarize_onnx import Config, convert
from binarize_onnx.errors import ModelError, UsageError
from binarize_onnx.quantize import preset, sites, synthetic
from binarize_onnx.quantize.gradient import RULES, Distance
from binarize_onnx.quantize.plan import Settings
from binarize_onnx.verify.session import Runner

Array = npt.NDArray[Any]
Net = FloatNet
SHAPE = (3, 6, 8, 8)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many samples as are made at once."""
    monkeypatch.setattr(synthetic, "MOST", 64)


def whole(net: Net, *values: int) -> str:
    return net.constant(np.array(values), np.int64)


def spatial(net: Net, x: str) -> str:
    """Back to an image, behind what has none."""
    return net.node("Reshape", x, whole(net, SHAPE[0], -1, 2, 2))


# One small network for each operator that has a rule; what it is given is x [3, 6, 8, 8].
WITH: dict[str, Callable[[Net, str], str]] = {
    "Add": lambda net, x: net.node("Add", x, net.node("Mul", x, net.constant(np.full((6, 1, 1), 0.3)))),
    "Add, broadcast": lambda net, x: net.node("Add", net.node("GlobalAveragePool", x), x),
    "AveragePool": lambda net, x: net.node("AveragePool", x, kernel_shape=[3, 2], strides=[2, 2]),
    "BatchNormalization": lambda net, x: net.normalize(x, 6),
    "Clip": lambda net, x: net.node("Clip", x, net.constant(-0.4), net.constant(0.9)),
    "Clip, above": lambda net, x: net.node("Clip", x, "", net.constant(0.9)),
    "Concat": lambda net, x: net.node("Concat", net.node("Relu", x), net.node("Tanh", x), axis=1),
    "Conv": lambda net, x: net.convolve(x, 5, 6, 3, pads=[0, 1, 2, 0]),
    "Conv, strides": lambda net, x: net.convolve(x, 4, 6, 3, strides=[2, 3], pads=[1, 0, 0, 1]),
    "Conv, groups": lambda net, x: net.convolve(x, 4, 6, 3, group=2, dilations=[2, 1], pads=[2, 1, 2, 1]),
    "Conv, groups and strides": lambda net, x: net.convolve(x, 4, 6, 2, group=2, strides=[2, 2], pads=[0] * 4),
    "Conv, pads beyond": lambda net, x: net.convolve(x, 4, 6, 1, pads=[1, 1, 1, 1]),
    "Conv, padded as TensorFlow does": lambda net, x: net.layer(
        "Conv", x, net.weights(4, 6, 3, 3, fan=54), strides=[2, 2], auto_pad="SAME_UPPER"
    ),
    "Div": lambda net, x: net.node("Div", x, net.constant(2 + np.arange(6.0).reshape(6, 1, 1))),
    "Dropout": lambda net, x: net.node("Dropout", x),
    "Flatten": lambda net, x: spatial(net, net.node("Flatten", x)),
    "Gemm": lambda net, x: net.layer("Gemm", net.node("Flatten", x), net.weights(5, 384, fan=384), transB=1, alpha=2.0),
    "GlobalAveragePool": lambda net, x: net.node("GlobalAveragePool", x),
    "HardSigmoid": lambda net, x: net.node("HardSigmoid", x, alpha=0.3, beta=0.4),
    "Identity": lambda net, x: net.node("Identity", x),
    "LeakyRelu": lambda net, x: net.node("LeakyRelu", x, alpha=0.2),
    "MatMul": lambda net, x: net.layer("MatMul", net.node("Flatten", x), net.weights(384, 5, fan=384)),
    "MaxPool": lambda net, x: net.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]),
    "Mul": lambda net, x: net.node("Mul", x, net.node("Sigmoid", net.node("GlobalAveragePool", x))),
    "Pad": lambda net, x: net.node("Pad", x, whole(net, 0, 1, 0, 2, 0, 0, 1, 0)),
    "ReduceMean": lambda net, x: net.node("ReduceMean", x, axes=[-1, 2], keepdims=0),
    "Relu": lambda net, x: net.node("Relu", x),
    "Reshape": lambda net, x: spatial(net, x),
    "Sigmoid": lambda net, x: net.node("Sigmoid", x),
    "Slice": lambda net, x: net.node(
        "Slice", x, whole(net, 1, 7), whole(net, 99, -99), whole(net, 2, -1), whole(net, 2, -3)
    ),
    "Squeeze": lambda net, x: net.node("Squeeze", net.node("GlobalAveragePool", x), whole(net, 2, 3)),
    "Sub": lambda net, x: net.node("Sub", net.node("Relu", x), net.node("Tanh", x)),
    "Tanh": lambda net, x: net.node("Tanh", x),
    "Transpose": lambda net, x: net.node("Transpose", x, perm=[0, 3, 1, 2]),
    "Unsqueeze": lambda net, x: net.node("Squeeze", net.node("Unsqueeze", x, whole(net, 1)), whole(net, 1)),
}


@pytest.mark.parametrize("case", WITH)
def test_the_derivative_is_that_of_the_distance(case: str) -> None:
    net = Net()
    y = WITH[case](net, net.node("Mul", "x", net.constant(1.3)))
    channels = Runner(net.model(y, {"x": [*SHAPE]})).run({"x": np.zeros(SHAPE, np.float32)})[y].shape[1]
    model = net.model(net.normalize(y, channels), {"x": [*SHAPE]})
    distance = Distance(model, synthetic.targets(model))
    rng = np.random.default_rng(3)
    x = rng.normal(size=SHAPE).astype(np.float32)
    _, found = distance({"x": x})
    for direction in (found["x"] / np.linalg.norm(found["x"]), rng.normal(size=SHAPE) / np.sqrt(x.size)):
        step = 0.02
        high, low = (distance({"x": (x + way * step * direction).astype(np.float32)})[0] for way in (1, -1))
        slope = float((found["x"] * direction).sum())
        assert abs((high - low) / (2 * step) - slope) < 0.02 * float(np.linalg.norm(found["x"]))


def test_every_rule_is_tried() -> None:
    assert {case.split(",")[0] for case in WITH} == set(RULES)


def test_the_distance_is_that_of_mean_and_deviation() -> None:
    net = Net()
    model = net.model(net.normalize("x", 6), {"x": [*SHAPE]})
    (target,) = synthetic.targets(model)
    x = np.random.default_rng(0).normal(1.0, 2.0, SHAPE).astype(np.float32)
    off = (x.mean((0, 2, 3)) - target.mean) / target.deviation
    wide = (x.std((0, 2, 3)) - target.deviation) / target.deviation
    assert Distance(model, [target])({"x": x})[0] == pytest.approx(np.mean(off**2 + wide**2), rel=1e-4)


def test_nothing_is_learned_behind_operators_without_a_rule() -> None:
    net = Net()
    model = net.model(net.normalize(net.node("Exp", "x"), 6), {"x": [*SHAPE]})
    _, found = Distance(model, synthetic.targets(model))({"x": np.ones(SHAPE, np.float32)})
    assert not found["x"].any()


def remembering(model: onnx.ModelProto, inputs: dict[str, Array]) -> onnx.ModelProto:
    """The model with normalizations that remember these samples, as if it had been trained on them."""
    constants = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            seen = Runner(model, node.input[:1]).run(inputs)[node.input[0]]
            axes = tuple(i for i in range(seen.ndim) if i != 1)
            for name, values in zip(node.input[3:], (seen.mean(axes), seen.var(axes)), strict=True):
                constants[name].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
    return model


def trained() -> onnx.ModelProto:
    """A small network, trained on smooth images of another mean and deviation than noise has."""
    net = Net()
    x = net.block("x", 8, 3)
    y = net.normalize(net.convolve(net.block(x, 8, 8), 8, 8), 8)
    x = net.block(net.node("Relu", net.node("Add", x, y)), 16, 8, strides=[2, 2])
    model = net.model(net.classes(x, 16), {"x": ["N", 3, 8, 8]})
    return remembering(model, smooth(64, seed=5))


def smooth(count: int, seed: int) -> dict[str, Array]:
    """What it was trained on."""
    images = synthetic.coloured(np.random.default_rng(seed).standard_normal((count, 3, 8, 8)))
    return {"x": (images * 0.5 + 0.7).astype(np.float32)}


def test_made_samples_fit_what_the_network_remembers() -> None:
    found = synthetic.make(sites.find(trained()).model)
    assert found.inputs["x"].shape == (synthetic.MOST, 3, 8, 8)
    assert found.inputs["x"].dtype == np.float32
    assert found.normalizations == 4
    assert found.after < found.before / 3
    assert found.after < 0.15
    assert found.inputs["x"].mean() == pytest.approx(0.7, abs=0.15)


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_pixels_of_any_range_are_found(scale: float) -> None:
    net = Net()
    model = net.model(net.block("x", 8, 3), {"x": ["N", 3, 8, 8]}, rank=4)
    images = np.random.default_rng(0).uniform(0, scale, (64, 3, 8, 8)).astype(np.float32)
    found = synthetic.make(sites.find(remembering(model, {"x": images})).model)
    assert found.after < 0.1
    assert found.inputs["x"].mean() == pytest.approx(scale / 2, rel=0.2)


def test_the_seed_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "STEPS", 3)
    model = sites.find(trained()).model
    first, again, other = (synthetic.make(model, seed).inputs["x"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_noise_has_the_spectrum_of_images() -> None:
    """Amplitude falls as 1 / frequency: in both layouts alike."""
    white = np.random.default_rng(0).standard_normal((200, 3, 32, 32))
    spectrum = np.abs(np.fft.rfft2(synthetic.coloured(white))).mean((0, 1))
    assert spectrum[0, 2] / spectrum[0, 8] == pytest.approx(4, rel=0.1)
    turned = synthetic.coloured(white.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(turned, synthetic.coloured(white), atol=1e-9)
    vectors = white[:, 0, 0]
    np.testing.assert_array_equal(synthetic.coloured(vectors), vectors)


def test_a_batch_size_of_its_own_and_several_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "STEPS", 1)
    net = Net()
    both = net.node("Add", net.block("x", 8, 3), net.block("y", 8, 3))
    model = net.model(net.classes(net.block(net.block(both, 8, 8), 8, 8), 8), {n: [6, 3, 8, 8] for n in "xy"})
    found = synthetic.make(sites.find(model).model)
    assert {name: values.shape for name, values in found.inputs.items()} == dict.fromkeys("xy", (66, 3, 8, 8))
    convert(model, Config(ptq="w1a2", ptq_settings=Settings("recon"), synthetic_data=True))


def test_large_tensors_make_fewer_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "WORK_BYTES", 1 << 20)
    monkeypatch.setattr(synthetic, "BATCH_BYTES", 1 << 20)
    monkeypatch.setattr(synthetic, "STEPS", 2)
    found = synthetic.make(sites.find(trained()).model)
    assert synthetic.FEWEST <= found.count < synthetic.FEWEST + synthetic.BATCH


def test_what_nothing_can_be_made_for() -> None:
    with pytest.raises(ModelError, match="no BatchNormalization is left in the model"):
        synthetic.make(NETWORKS["products"]())
    net = Net()
    open_sizes = net.model(net.block("x", 8, 3), {"x": ["N", 3, "H", "W"]}, rank=4)
    with pytest.raises(UsageError, match="sizes that the model leaves open: give --input-shape"):
        synthetic.make(open_sizes)
    net = Net()
    explodes = net.model(net.normalize(net.node("Exp", net.node("Add", "x", net.constant(1e3))), 3), {"x": ["N", 3]})
    with pytest.raises(ModelError, match="the network overflows on whatever it is given"):
        synthetic.make(explodes)
    counted = trained()
    counted.graph.input.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["N"]))
    with pytest.raises(ModelError, match="input `ids` is not float32"):
        synthetic.make(counted)


def test_a_model_is_quantized_without_samples(command: Command, tmp_path: Path) -> None:  # noqa: F811
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(trained(), source)
    done = command("convert", source, out, "--ptq", "w2a4", "--ptq-weights", "recon", "--synthetic-data", "--json")
    assert done.code == 0, done.err
    assert any("no sample was given: layers were fitted to 64 made ones" in n for n in json.loads(done.out)["notes"])
    recorded = {p.key: p.value for p in onnx.load(out).metadata_props}[preset.KEY]
    assert json.loads(recorded)["synthetic"] is True


def test_it_answers_as_the_float_network_does() -> None:
    """On samples like those that it was trained on, none of which it was fitted to; noise does worse."""
    model = trained()
    fresh = smooth(256, seed=9)
    wanted = Runner(model).run(fresh)

    def error(**arguments: Any) -> float:
        config = Config(ptq="w2a4", ptq_settings=Settings("recon"), synthetic_data=not arguments)
        found = Runner(convert(model, config, **arguments).model).run(fresh)
        return float(np.mean([np.square(found[n] - wanted[n]).mean() / wanted[n].var() for n in wanted]))

    noise = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
    assert error() < error(calibration_data={"x": noise}) / 2


def test_samples_and_none_contradict_each_other() -> None:
    model = residual()
    with pytest.raises(UsageError, match="there are samples, so none are to be made"):
        convert(model, Config(ptq="w1a1", synthetic_data=True), calibration_data=samples(model))
    with pytest.raises(UsageError, match="synthetic data is for quantization after training alone"):
        Config(synthetic_data=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--synthetic-data",), "--synthetic-data is for --ptq PRESET"),
        (("--ptq", "auto", "--max-drop", "1", "--synthetic-data"), "--ptq auto judges networks on samples"),
        (
            ("--ptq", "w1a1", "--synthetic-data", "--calibration-data", "x.npz"),
            "--synthetic-data is for want of samples",
        ),
        (("--seed", "1"), "--seed is for --ptq PRESET"),
        (("--seed", "0"), "--seed is for --ptq PRESET"),
        (("--ptq-weights", "gptq"), "--ptq-weights is for --ptq PRESET"),
        (("--ptq-thresholds", "zero"), "--ptq-thresholds is for --ptq PRESET"),
        (("--ptq-correction", "ls"), "--ptq-correction is for --ptq PRESET"),
        (("--ptq", "w1a1", "--threads", "2"), "--threads is for --ptq auto"),
        (
            ("--ptq", "w1a1", "--calibration-data", "x.npz", "--image-mean", "0.5"),
            "--image-mean is for a folder of images",
        ),
    ],
)
def test_options_that_nothing_would_look_at(
    options: tuple[str, ...],
    words: str,
    command: Command,  # noqa: F811
    tmp_path: Path,
) -> None:
    done = command("convert", tmp_path / "in.onnx", tmp_path / "out.onnx", *options)
    assert done.code == 2
    assert words in done.err
