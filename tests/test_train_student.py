"""Students: what becomes of a float graph, that it comes back as the same ideal graph, that a difference is seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from float_nets import NETWORKS, FloatNet, samples
from onnx import numpy_helper

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from binarize_onnx.errors import GateFailed, ModelError, UsageError  # noqa: E402
from binarize_onnx.quantize import sites  # noqa: E402
from binarize_onnx.quantize.post_training import quantize  # noqa: E402
from binarize_onnx.quantize.precision import Precision  # noqa: E402
from binarize_onnx.train import exactness  # noqa: E402
from binarize_onnx.train.graph import GraphModule, with_own_statistics  # noqa: E402
from binarize_onnx.train.recipes import ADDITIONS, RECIPES, Recipe, Stage, named  # noqa: E402
from binarize_onnx.train.shortcuts import Shortcut  # noqa: E402
from binarize_onnx.train.student import Student  # noqa: E402

Array = npt.NDArray[Any]


pytestmark = pytest.mark.usefixtures("one_thread")


def plain(stride: int = 1, outputs: int = 8) -> onnx.ModelProto:
    """A stem, a layer without a shortcut of its own, one with one, and classes."""
    net = FloatNet()
    x = net.block("x", 8, 3)
    x = net.block(x, outputs, 8, strides=[stride, stride])
    y = net.node("Relu", net.node("Add", net.normalize(net.convolve(x, outputs, outputs), outputs), x))
    return net.model(net.classes(y, outputs), {"x": ["N", 3, 8, 8]})


def made(source: onnx.ModelProto, recipe: Recipe, precision: str = "w1a1") -> tuple[Student, dict[str, Array]]:
    """A student that was settled, its weights moved a little, and samples."""
    network, data = sites.find(source), samples(source)
    plan, _ = network.choose(Precision.parse(precision))
    student = Student(network, plan, recipe, quantize(network, data, plan))
    student.settle(GraphModule(network.model), {name: torch.from_numpy(values) for name, values in data.items()})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.module.parameters():
            if parameter.dim():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return student, data


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_a_tensor_that_is_both_a_mean_and_a_shift_becomes_two() -> None:
    source = plain()
    norm = next(node for node in source.graph.node if node.op_type == "BatchNormalization")
    given = {tensor.name: tensor for tensor in source.graph.initializer}
    for place, value in ((1, 1.0), (2, 0.0), (3, 0.0), (4, 1.0)):
        given[norm.input[place]].CopyFrom(numpy_helper.from_array(np.full(8, value, "f4"), norm.input[place]))
    norm.input[3], norm.input[4] = norm.input[2], norm.input[1]  # as exporters write what has not been trained
    network = sites.find(source)
    own = with_own_statistics(network.model)
    assert with_own_statistics(own) is own
    data = {name: torch.from_numpy(values) for name, values in samples(source).items()}
    module = GraphModule(own).train()
    (output,) = module(data)[0].values()
    output.sum().backward()
    norm = next(node for node in own.graph.node if node.op_type == "BatchNormalization")
    scale, shift, mean, variance = (module.constant(name) for name in norm.input[1:])
    assert scale.grad is not None
    assert (mean.requires_grad, variance.requires_grad) == (False, False)
    assert torch.equal(shift, torch.zeros(8))
    assert not torch.equal(mean, shift)
    assert not torch.equal(variance, scale)


def test_statistics_that_two_normalizations_share_become_two() -> None:
    source = plain()
    first, second = [node for node in source.graph.node if node.op_type == "BatchNormalization"][:2]
    second.input[3:] = first.input[3:]
    own = with_own_statistics(sites.find(source).model)
    names = [name for node in own.graph.node if node.op_type == "BatchNormalization" for name in node.input[3:]]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("precision", ["w1a1", "w2a2", "w1a4"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_form_comes_back_exact(name: str, precision: str) -> None:
    student, data = made(NETWORKS[name](), RECIPES["react2step"], precision)
    model = student.export()
    onnx.checker.check_model(model)
    found = exactness.check(student, model, data)
    assert found.samples >= 8
    assert found.layers == len(student.layers) > 0


@pytest.mark.parametrize("recipe", [*RECIPES, *(f"irnet+{addition}" for addition in ADDITIONS)])
def test_every_recipe_comes_back_exact(recipe: str) -> None:
    student, data = made(plain(), named(recipe))
    exactness.check(student, student.export(), data)


def test_layers_without_a_shortcut_get_one() -> None:
    with_them, _ = made(plain(), RECIPES["react2step"])
    without, _ = made(plain(), replace(RECIPES["react2step"], shortcuts=False))
    assert [layer.shortcut for layer in with_them.layers.values()] == [Shortcut((1, 1), 1), None]
    assert operators(with_them.export()).count("Add") == operators(without.export()).count("Add") + 1
    strided, data = made(plain(stride=2, outputs=16), RECIPES["react2step"])
    assert next(iter(strided.layers.values())).shortcut == Shortcut((2, 2), 2)
    model = strided.export()
    assert {"AveragePool", "Concat"} <= {*operators(model)}
    exactness.check(strided, model, data)
    odd, _ = made(plain(stride=2, outputs=12), RECIPES["react2step"])
    assert next(iter(odd.layers.values())).shortcut is None, "12 channels are no multiple of 8"


@pytest.mark.parametrize(
    ("rectifier", "counts"),
    [
        ("relu", {"Relu": 3, "PRelu": 0, "Clip": 0}),
        ("rprelu", {"Relu": 1, "PRelu": 2, "Clip": 0}),
        ("hardtanh", {"Relu": 0, "PRelu": 0, "Clip": 3}),
        ("none", {"Relu": 0, "PRelu": 0, "Clip": 0}),
    ],
)
def test_relus_around_binary_layers_become_what_the_recipe_says(rectifier: Any, counts: dict[str, int]) -> None:
    student, data = made(plain(), replace(RECIPES["react2step"], rectifier=rectifier))
    model = student.export()
    assert {op: operators(model).count(op) for op in counts} == counts
    exactness.check(student, model, data)


def test_the_student_starts_where_post_training_quantization_ends() -> None:
    """Signs are those that it found, and normalizations are fitted to the float network's own outputs."""
    source = plain()
    network, data = sites.find(source), samples(source)
    plan, _ = network.choose(Precision.parse("w1a1"))
    quantized = quantize(network, data, plan)
    recipe = replace(RECIPES["react2step"], rectifier="relu", shortcuts=False)
    student = Student(network, plan, recipe, quantized)
    teacher = GraphModule(network.model)
    inputs = {name: torch.from_numpy(values) for name, values in data.items()}
    student.settle(teacher, inputs)
    for name, layer in student.layers.items():
        np.testing.assert_array_equal(layer.folded().signs, quantized.fitted[name][1].signs)
        spread = layer.latent.detach().flatten(1).square().mean(1).sqrt().numpy()
        np.testing.assert_allclose(spread, np.sqrt(2 / layer.site.length), rtol=1e-5)
    first = next(iter(student.layers.values()))
    with torch.no_grad():
        _, wanted = teacher.eval()(inputs, [first.site.output])
        _, found = student.module.eval()(inputs, [first.site.output])
    y, z = (t[first.site.output].double().movedim(1, 0).flatten(1) for t in (found, wanted))
    assert torch.allclose(y.mean(1), z.mean(1), atol=1e-4)
    left = ((z - y) * (y - y.mean(1, keepdim=True))).mean(
        1
    )  # least squares leave nothing that the output could explain
    assert left.abs().max() < 1e-3 * float(z.var())


def test_training_and_the_ideal_graph_see_the_same_bits() -> None:
    """In training a layer multiplies real sums of bases; what it normalizes is what the ideal graph scales."""
    student, data = made(plain(), RECIPES["react2step"], "w2a2")
    layer = next(iter(student.layers.values()))
    x = torch.randn(4, layer.site.channels, 6, 6)
    with torch.no_grad():
        ideal = layer.eval()(x)
        layer.schedule.binary_weights = False
        layer.latent.copy_(layer.binarizer(layer.latent).weights)
        real = layer(x)
    assert torch.allclose(ideal, real, rtol=1e-4, atol=1e-4)
    assert data


def _changed(model: onnx.ModelProto, part: str, change: Any) -> onnx.ModelProto:
    """The model with one value of the first constant whose name holds `part` changed."""
    tensor = next(t for t in model.graph.initializer if part in t.name)
    values = np.array(numpy_helper.to_array(tensor))
    values.flat[0] = change(values.flat[0])
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


@pytest.mark.parametrize(
    ("part", "change"),
    [
        (".signs.0", lambda v: -v),
        (".scale.0", lambda v: np.nextafter(v, np.float32(9))),
        (".threshold", lambda v: v + np.float32(0.5)),
        (".slope", lambda v: v + np.float32(0.01)),
    ],
    ids=["sign", "scale", "threshold", "slope"],
)
def test_a_difference_is_seen_and_named(part: str, change: Any) -> None:
    student, data = made(plain(), RECIPES["react2step"])
    with pytest.raises(GateFailed, match=r"(layer|node) `"):
        exactness.check(student, _changed(student.export(), part, change), data)


def test_a_float_node_that_differs_is_named() -> None:
    student, data = made(plain(), RECIPES["react2step"])
    model = student.export()
    weights = next(node for node in model.graph.node if node.op_type == "Gemm").input[1]
    with pytest.raises(GateFailed, match=r"node `l3` \(Gemm\)"):
        exactness.check(student, _changed(model, weights, lambda v: v + np.float32(1)), data)


@pytest.mark.parametrize("where", ["latent", "scale", "threshold", "slope"])
def test_nan_is_not_exported(where: str) -> None:
    student, _ = made(plain(), RECIPES["react2step"])
    layer = next(iter(student.layers.values()))
    owners = {"threshold": layer.activation, "slope": next(iter(student.module.parts[2:]))}
    with torch.no_grad():
        getattr(owners.get(where, layer), where).fill_(torch.nan)
    with pytest.raises(ModelError, match="NaN"):
        student.export()


def test_only_recu_standardises_what_its_gradient_sees() -> None:
    for name in ("recu", "irnet"):
        student, _ = made(plain(), named(name))
        assert {layer.activation.standardise for layer in student.layers.values()} == {name == "recu"}


def test_recipes_are_named_and_combined() -> None:
    recipe = named("irnet+cmim+ovsw")
    assert recipe.binarizer == "irnet"
    assert recipe.losses.contrastive > 0
    assert recipe.ovsw
    for name in ("resnet", "irnet+resnet"):
        with pytest.raises(UsageError, match="resnet"):
            named(name)
    with pytest.raises(UsageError, match="binarizer is 'x'"):
        Recipe(binarizer="x")
    with pytest.raises(UsageError, match="trains nothing"):
        Recipe(stages=())


@pytest.mark.parametrize(("epochs", "shares"), [(2, [1, 1]), (6, [2, 4]), (30, [10, 20])])
def test_epochs_are_divided_among_the_stages(epochs: int, shares: list[int]) -> None:
    recipe = replace(RECIPES["react2step"], stages=(Stage(2, False), Stage(4)))
    assert [stage.epochs for stage in recipe.with_epochs(epochs).stages] == shares
    with pytest.raises(UsageError, match="1 epochs for 2 stages"):
        recipe.with_epochs(1)
