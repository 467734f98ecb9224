"""Activations: values against the plain definitions of the ideal graph and onnxruntime, gradients against formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnxruntime
import oracle
import pytest
from onnx import TensorProto, helper, numpy_helper

from binarize_onnx import opset
from binarize_onnx.passes.base import Array

torch = pytest.importorskip("torch", reason="fine-tuning needs the extra `train`")

from binarize_onnx.train.activations import (  # noqa: E402  (needs torch)
    BinaryActivation,
    DoReFa,
    DynamicSign,
    LevelActivation,
    RPReLU,
    SampleMeanSign,
)
from binarize_onnx.train.estimators import ESTIMATORS  # noqa: E402

C = 3
SHAPES = [((4, C, 5, 2), 1), ((4, 5, C), 2), ((4, 5, C), -1), ((4, C), 1)]
TINY = float(np.finfo(np.float32).smallest_subnormal)


def values(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def per_channel(parameters: Array, rank: int, axis: int) -> Array:
    """[…, C] with C on `axis` of a tensor of this rank, behind what is in front."""
    shape = [1] * rank
    shape[axis] = C
    return parameters.reshape(*parameters.shape[:-1], *shape)


def around(thresholds: Array, shape: tuple[int, ...], axis: int, seed: int = 0) -> Array:
    """Values of which most are a threshold of their channel or next to one; NaN and infinity are among them."""
    random = np.random.default_rng(seed)
    chosen = np.moveaxis(random.choice(len(thresholds), shape), axis, -1)
    exact = thresholds[chosen, np.arange(C)]
    beside = [np.nextafter(exact, np.float32(to)) for to in (-np.inf, np.inf)]
    x = np.choose(random.choice(3, exact.shape), [exact, *beside]).astype(np.float32)
    x.ravel()[:3] = np.nan, np.inf, -np.inf
    return np.moveaxis(x, -1, axis)


def modes(module: Any, x: Array) -> Array:
    """What the module makes of x, which is the same in training and afterwards."""
    given = torch.tensor(x)
    y = module.train()(given, 0.3).detach()
    assert y.dtype == torch.float32
    assert torch.equal(y, module.eval()(given, 0.9).detach())
    found: Array = y.numpy()
    return found


def run(nodes: list[onnx.NodeProto], constants: dict[str, Array], x: Array) -> Array:
    """What onnxruntime makes of x by nodes that write y, one after the other."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(opset.IDEAL_DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    opset.attach_functions(model)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    return np.asarray(y)


def gradients(module: Any, x: Array, g: Array, progress: float = 0.0) -> tuple[Array, dict[str, Array]]:
    """Those of x and of the parameters in float64, for the gradient g of the output."""
    module = module.double()
    given = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    module(given, progress).backward(torch.tensor(g, dtype=torch.float64))
    return given.grad.numpy(), {name: p.grad.numpy() for name, p in module.named_parameters()}


def approx(v: Array) -> Array:
    factor: Array = np.maximum(0, 2 - 2 * np.abs(v))
    return factor


def summed(values: Array, axis: int) -> Array:
    """Over all but the channels."""
    total: Array = np.moveaxis(values, axis, -1).reshape(-1, C).sum(0)
    return total


# --- One bit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x_low", [-1, 0])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_bits_are_those_of_binary_sign(shape: tuple[int, ...], axis: int, x_low: int) -> None:
    thresholds = np.array([0.0, -0.7, 1.3], np.float32)
    x = around(thresholds[None], shape, axis)
    bits = modes(BinaryActivation(C, axis, x_low, threshold=torch.tensor(thresholds)), x)
    threshold = per_channel(thresholds, len(shape), axis)
    fields = {"threshold": threshold, "flip": np.zeros([1] * len(shape), np.bool_)}
    (expected,) = oracle.binary_sign({"X": x, **fields}, x_low=x_low)
    np.testing.assert_array_equal(bits, expected)
    node = opset.make_node("BinarySign", ["x", "threshold", "flip"], ["y"], node_name="y", x_low=x_low)
    np.testing.assert_array_equal(bits, run([node], fields, x))
    assert set(np.unique(bits)) == {x_low, 1}


def test_zeros_and_the_smallest_numbers() -> None:
    x = np.array([[0.0], [-0.0], [TINY], [-TINY], [np.nan]], np.float32)
    assert modes(BinaryActivation(1), x).ravel().tolist() == [1, 1, 1, -1, -1]
    assert modes(BinaryActivation(1, width=4.0), x).ravel().tolist() == [1, 1, 1, -1, -1]  # -TINY / 4 is -0
    assert modes(BinaryActivation(1, threshold=TINY, x_low=0), x).ravel().tolist() == [0, 0, 1, 0, 0]
    assert modes(BinaryActivation(1, threshold=math.inf), np.array([[np.inf], [3]], np.float32)).ravel().tolist() == [
        1,
        -1,
    ]


@pytest.mark.parametrize("x_low", [-1, 0])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("name", ["clip", "approx", "ede"])
def test_gradients_of_a_bit(name: str, shape: tuple[int, ...], axis: int, x_low: int) -> None:
    thresholds, width = np.array([0.0, -0.7, 1.3]), np.array([1.0, 0.5, 2.0])
    module = BinaryActivation(C, axis, x_low, ESTIMATORS[name], torch.tensor(thresholds), torch.tensor(width))
    module = module.double()
    module.threshold.data, module.width.data = torch.tensor(thresholds), torch.tensor(width)
    x, g = 2 * values(*shape), values(*shape, seed=1)
    v = (x - per_channel(thresholds, len(shape), axis)) / per_channel(width, len(shape), axis)
    t = 10 ** (-3 + 4 * 0.8)
    factor = {
        "clip": (np.abs(v) <= 1) * 1.0,
        "approx": approx(v),
        "ede": t * (1 - np.tanh(t * v) ** 2),
    }[name]
    expected = g * factor * (1 - x_low) / 2 / per_channel(width, len(shape), axis)
    dx, of = gradients(module, x, g, 0.8)
    np.testing.assert_allclose(dx, expected, rtol=1e-9, atol=1e-12)
    assert set(of) == {"threshold"}
    np.testing.assert_allclose(of["threshold"], -summed(expected, axis), rtol=1e-9, atol=1e-12)


def through_deviation(v: Array, hat: Array, deviation: Array, n: int) -> Array:
    """∂L/∂x of hat = (x − t)/√(var x + ε) for v = ∂L/∂hat: [N, n], t a constant."""
    centred = hat - hat.mean(1, keepdims=True)
    back: Array = (v - centred * (v * hat).sum(1, keepdims=True) / (n - 1)) / deviation
    return back


def test_gradients_of_a_bit_in_units_of_the_sample() -> None:
    x, g = 3 * values(4, C, 5) + 1, values(4, C, 5, seed=1)
    module = BinaryActivation(C, threshold=0.5, standardise=True)
    rows = x.reshape(4, -1).astype(np.float64)
    deviation = np.sqrt(rows.var(1, ddof=1, keepdims=True) + 1e-5)
    hat = (rows - 0.5) / deviation
    expected = through_deviation(g.reshape(4, -1) * approx(hat), hat, deviation, rows.shape[1])
    dx, of = gradients(module, x, g)
    np.testing.assert_allclose(dx.reshape(4, -1), expected, rtol=1e-9, atol=1e-12)
    by_sign = -(g.reshape(4, -1) * approx(hat) / deviation).reshape(x.shape)
    np.testing.assert_allclose(of["threshold"], summed(by_sign, 1), rtol=1e-9)
    np.testing.assert_array_equal(
        modes(BinaryActivation(C, threshold=0.5, standardise=True), x), np.where(x >= 0.5, 1, -1)
    )


def test_dorefa_rounds_half_to_even() -> None:
    half, up, down = np.float32(0.5), np.nextafter(np.float32(0.5), np.float32(1)), np.nextafter(np.float32(0.5), 0)
    x = np.array([-1, -TINY, 0, down, half, up, 1, np.nextafter(np.float32(1), np.float32(2)), 7, np.nan], np.float32)
    expected = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 0], np.float32)
    np.testing.assert_array_equal(expected[:-1], np.round(np.clip(x[:-1], 0, 1)))
    np.testing.assert_array_equal(modes(DoReFa(), x), expected)
    assert np.float32(DoReFa.THRESHOLD) == up == DoReFa.THRESHOLD
    given = torch.tensor(x, requires_grad=True)
    DoReFa()(given).sum().backward()
    assert given.grad.tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0, 0]


def test_half_precision_is_compared_in_float32() -> None:
    x = torch.tensor([0.5, 0.50390625], dtype=torch.bfloat16)
    assert DoReFa()(x).tolist() == [0, 1]
    near = BinaryActivation(1, threshold=1 + 2.0**-20)
    assert near(torch.ones(1, 1, dtype=torch.bfloat16)).tolist() == [[-1]]


@pytest.mark.parametrize("x_low", [1, -2])
def test_a_clear_bit_is_minus_one_or_zero(x_low: int) -> None:
    for kind in (lambda: BinaryActivation(C, x_low=x_low), lambda: DynamicSign(C, x_low=x_low)):
        with pytest.raises(ValueError, match="x_low"):
            kind()
    with pytest.raises(ValueError, match="x_low"):
        SampleMeanSign(x_low)


# --- Levels -------------------------------------------------------------------------------------------------------

LOW, STEP = np.array([0.1, -2.0, 1e-3], np.float32), np.array([0.3, 0.7, -1e-2], np.float32)


def levels(axis: int, bits: int) -> Any:
    return LevelActivation(C, axis, bits, torch.tensor(LOW), torch.tensor(STEP))


@pytest.mark.parametrize("bits", [1, 2, 4, 6])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_levels_are_those_of_the_ideal_graph(shape: tuple[int, ...], axis: int, bits: int) -> None:
    module = levels(axis, bits)
    thresholds = module.thresholds().numpy()
    halves = np.arange(2**bits - 1, dtype=np.float32)[:, None] + np.float32(0.5)
    np.testing.assert_array_equal(thresholds, LOW + np.abs(STEP) * halves)
    assert thresholds.dtype == np.float32
    x = around(thresholds, shape, axis)
    h = modes(module, x)
    fields = {"threshold": per_channel(thresholds, len(shape), axis)}
    np.testing.assert_array_equal(h, oracle.level({"X": x, **fields})[0])
    np.testing.assert_array_equal(
        h, run([opset.make_node("Level", ["x", "threshold"], ["y"], node_name="y")], fields, x)
    )


def test_every_level_is_reached() -> None:
    x = np.linspace(-1, 2, 200, dtype=np.float32)[:, None] * np.ones(C, np.float32)
    module = LevelActivation(C, bits=3, low=0.0, step=0.1)
    h = modes(module, x)
    assert set(np.unique(h)) == set(range(8))
    inside = (x >= 0) & (x <= 0.7)
    assert np.abs(module.real(torch.tensor(h)).detach().numpy() - x)[inside].max() <= 0.0500001


def test_a_step_of_zero_is_no_fault() -> None:
    module = LevelActivation(1, bits=2, low=1.0, step=0.0)
    x = torch.tensor([[0.9], [1.1]], requires_grad=True)
    h = module(x)
    h.sum().backward()
    assert h.ravel().tolist() == [0, 3]
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())
    assert (module.thresholds().diff(dim=0) >= 0).all()


@pytest.mark.parametrize("bits", [1, 3])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_gradients_of_levels(shape: tuple[int, ...], axis: int, bits: int) -> None:
    x, g = 3 * values(*shape), values(*shape, seed=1).astype(np.float64)
    x.ravel()[0] = 0.1  # where `low` of the first channel is
    module = levels(axis, bits).double()
    low, size = (per_channel(p.astype(np.float64), len(shape), axis) for p in (LOW, np.abs(STEP)))
    top = 2**bits - 1
    u = (x - low) / size
    inside = (u >= 0) & (u <= top)
    assert 0 < inside.sum() < inside.size
    learned = 1 / math.sqrt(x.size / shape[0] / C * top)
    dx, of = gradients(module, x, g)
    np.testing.assert_allclose(dx, g * inside / size, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(of["low"], learned * summed(-g * inside / size, axis), rtol=1e-9, atol=1e-12)
    by_step = learned * summed(-g * inside * u / size, axis) * np.sign(STEP)
    np.testing.assert_allclose(of["step"], by_step, rtol=1e-9, atol=1e-12)


def test_gradients_at_both_ends_of_the_levels() -> None:
    ends = np.array([0.0, 3.0], np.float32)
    x = torch.tensor([ends[0], np.nextafter(ends[0], -ends[1]), ends[1], np.nextafter(ends[1], 2 * ends[1])])
    x = x[:, None].requires_grad_()
    LevelActivation(1, bits=2)(x).sum().backward()
    assert x.grad.ravel().tolist() == [1, 0, 1, 0]


def test_levels_as_learned_step_sizes_have_them() -> None:
    """∂(low + s h)/∂s of LSQ is h − u inside, and h beyond; `low` has 0 inside and 1 beyond."""
    x = torch.tensor([[-0.4], [0.33], [1.26], [9.0]], dtype=torch.float64)
    module = LevelActivation(1, bits=2, low=0.1, step=0.5).double()
    u = (x.ravel() - module.low.item()) / module.step.item()
    for i in range(4):
        module.zero_grad()
        h = module(x[i : i + 1])
        module.real(h).sum().backward()
        inside = bool(0 <= u[i] <= 3)
        factor = 3**-0.5  # one value in a sample, three steps: only of what goes through h
        assert module.step.grad.item() == pytest.approx(h.item() - factor * u[i].item() * inside)
        assert module.low.grad.item() == pytest.approx(1 - factor * inside)


@pytest.mark.parametrize("bits", [0, 7])
def test_bits_of_levels(bits: int) -> None:
    with pytest.raises(ValueError, match="1 to 6"):
        LevelActivation(C, bits=bits)


# --- Thresholds of samples ----------------------------------------------------------------------------------------


def dynamic(axis: int = 1, **options: Any) -> Any:
    torch.manual_seed(0)
    module = DynamicSign(C, axis, reduction=1, **options)
    with torch.no_grad():
        module.second.weight.normal_()
    return module


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_dynamic_thresholds(shape: tuple[int, ...], axis: int) -> None:
    module = dynamic(axis, x_low=0, threshold=torch.tensor([0.1, 0.0, -0.3])).double()
    x, g = values(*shape).astype(np.float64), values(*shape, seed=1)
    w1, b1, w2, b2 = (p.detach().numpy() for p in module.parameters())
    means = np.moveaxis(x, axis, 1).reshape(4, C, -1).mean(2)
    hidden = np.maximum(means @ w1.T + b1, 0)
    thresholds = hidden @ w2.T + b2
    np.testing.assert_allclose(module.thresholds(torch.tensor(x)).detach().numpy(), thresholds)
    full = np.moveaxis(thresholds.reshape(4, C, *[1] * (len(shape) - 2)), 1, axis)
    np.testing.assert_array_equal(module(torch.tensor(x)).detach().numpy(), np.where(x >= full, 1, 0))

    direct = g * approx(x - full) / 2
    to_thresholds = -np.moveaxis(direct, axis, 1).reshape(4, C, -1).sum(2)
    to_hidden = (to_thresholds @ w2) * (hidden > 0)
    to_means = (to_hidden @ w1).reshape(4, C, *[1] * (len(shape) - 2)) / (x.size / 4 / C)
    dx, of = gradients(module, x, g)
    np.testing.assert_allclose(dx, direct + np.moveaxis(to_means, 1, axis), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(of["second.weight"], to_thresholds.T @ hidden, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(of["first.bias"], to_hidden.sum(0), rtol=1e-9, atol=1e-12)
    assert (to_hidden != 0).any()


def test_dynamic_thresholds_begin_where_they_are_put() -> None:
    thresholds = torch.tensor([0.1, 0.0, -0.3])
    module = DynamicSign(C, threshold=thresholds)
    assert (module.thresholds(torch.tensor(values(4, C, 5))) == thresholds).all()
    assert module.first.out_features == 1


@pytest.mark.parametrize("x_low", [-1, 0])
def test_mean_of_the_sample(x_low: int) -> None:
    x, g = 3 * values(4, C, 5).astype(np.float64) + 1, values(4, C, 5, seed=1)
    module = SampleMeanSign(x_low)
    rows = x.reshape(4, -1)
    n = rows.shape[1]
    mean, deviation = rows.mean(1, keepdims=True), np.sqrt(rows.var(1, ddof=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(module.thresholds(torch.tensor(x)).numpy(), mean)
    np.testing.assert_array_equal(module(torch.tensor(x)).numpy().reshape(4, -1), np.where(rows >= mean, 1, x_low))
    hat = (rows - mean) / deviation
    v = g.reshape(4, -1) * approx(hat) * (1 - x_low) / 2
    expected = (v - v.mean(1, keepdims=True) - hat * (v * hat).sum(1, keepdims=True) / (n - 1)) / deviation
    dx, of = gradients(module, x, g)
    np.testing.assert_allclose(dx.reshape(4, -1), expected, rtol=1e-9, atol=1e-12)
    assert of == {}


def test_a_value_just_below_the_mean_is_below() -> None:
    """Divided by the deviation of this sample it would be −0, which is not below 0."""
    x = np.array([[TINY, 3 * TINY, 1e38, -1e38]], np.float32)
    x[0, 0] = -TINY
    mean = float(SampleMeanSign().thresholds(torch.tensor(x)))
    bits = modes(SampleMeanSign(), x)
    np.testing.assert_array_equal(bits, np.where(x >= np.float32(mean), 1, -1))
    assert bits[0, 0] == -1


# --- RPReLU -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_rprelu_is_add_prelu_add(shape: tuple[int, ...], axis: int) -> None:
    module = RPReLU(C, axis, torch.tensor([0.25, 0.0, 1.5]))
    shift, offset = np.array([0.1, -0.0, -1], np.float32), np.array([-0.0, 3, 0.3], np.float32)
    with torch.no_grad():
        module.shift.copy_(torch.tensor(shift))
        module.offset.copy_(torch.tensor(offset))
    x = around(np.stack([-shift, shift]), shape, axis)
    x = np.where(np.isinf(x), np.float32(1.7), x)
    constants = {
        name: per_channel(values, len(shape), axis)
        for name, values in (("shift", shift), ("slope", module.slope.detach().numpy()), ("offset", offset))
    }
    nodes = [
        helper.make_node("Add", ["x", "shift"], ["a"]),
        helper.make_node("PRelu", ["a", "slope"], ["b"]),
        helper.make_node("Add", ["b", "offset"], ["y"]),
    ]
    y = module(torch.tensor(x)).detach().numpy()
    np.testing.assert_array_equal(y, run(nodes, constants, x))
    expected = oracle.slope(x + constants["shift"], constants["slope"]) + constants["offset"]
    np.testing.assert_array_equal(y, expected)


def test_gradients_of_rprelu() -> None:
    module = RPReLU(C).double()
    x, g = values(4, C, 5).astype(np.float64), values(4, C, 5, seed=1).astype(np.float64)
    given = torch.tensor(x, requires_grad=True)
    module(given).backward(torch.tensor(g))
    dx = g * np.where(x > 0, 1, 0.25)
    np.testing.assert_allclose(given.grad.numpy(), dx)
    np.testing.assert_allclose(module.shift.grad.numpy(), summed(dx, 1))
    np.testing.assert_allclose(module.slope.grad.numpy(), summed(g * np.minimum(x, 0), 1))
    np.testing.assert_allclose(module.offset.grad.numpy(), summed(g, 1))


def test_a_slope_of_zero_is_relu_and_of_one_nothing() -> None:
    x = torch.tensor(values(4, C, 5))
    assert torch.equal(RPReLU(C, slope=0.0)(x), x.relu())
    assert torch.equal(RPReLU(C, slope=1.0)(x), x)
