"""The training loop, the loss that recipes weigh, the learning curve, several processes, and `finetune` as a whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from click.testing import CliRunner
from float_nets import FloatNet, samples
from onnx import numpy_helper

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("accelerate", reason="the extra `train` is not installed")

from binarize_onnx import pipeline  # noqa: E402
from binarize_onnx.cli import main  # noqa: E402
from binarize_onnx.errors import GateFailed, ModelError, NothingMatched, RuntimeUnavailable, UsageError  # noqa: E402
from binarize_onnx.pipeline import Config  # noqa: E402
from binarize_onnx.quantize import sites  # noqa: E402
from binarize_onnx.quantize.post_training import Quantized, quantize  # noqa: E402
from binarize_onnx.quantize.precision import Precision  # noqa: E402
from binarize_onnx.quantize.scoring import Labelled  # noqa: E402
from binarize_onnx.quantize.sites import Network  # noqa: E402
from binarize_onnx.train import curve, losses  # noqa: E402
from binarize_onnx.train import loop as loop_module  # noqa: E402
from binarize_onnx.train.curve import Epoch  # noqa: E402
from binarize_onnx.train.data import source  # noqa: E402
from binarize_onnx.train.finetune import FineTuned, adjusted, finetune  # noqa: E402
from binarize_onnx.train.graph import GraphModule  # noqa: E402
from binarize_onnx.train.loop import Trained, learning_rate, refit, statistics, train, weights  # noqa: E402
from binarize_onnx.train.objective import Objective, Teacher  # noqa: E402
from binarize_onnx.train.ovsw import OvSW  # noqa: E402
from binarize_onnx.train.recipes import ADDITIONS, RECIPES, Losses, Recipe, Stage  # noqa: E402
from binarize_onnx.train.student import Student  # noqa: E402
from binarize_onnx.verify.session import Runner  # noqa: E402

Array = npt.NDArray[Any]
ADAM: Any = torch.optim.Adam
TWO = (Stage(1, binary_weights=False, weight_decay=0.5), Stage(2))


pytestmark = pytest.mark.usefixtures("one_thread")


def small(softmax: bool = False, classes: bool = True) -> onnx.ModelProto:
    """Layers l0 to l3, of which l1 and l2 are chosen."""
    net = FloatNet()
    x = net.block("x", 8, 3)
    x = net.block(x, 16, 8, strides=[2, 2])
    x = net.block(x, 16, 16)
    if not classes:
        return net.model(net.convolve(x, 3, 16), {"x": ["N", 3, 6, 6]}, rank=4)
    y = net.classes(x, 16)
    return net.model(net.node("Softmax", y) if softmax else y, {"x": ["N", 3, 6, 6]})


@cache
def start(**form: bool) -> tuple[Network, Quantized]:
    network = sites.find(small(**form))
    plan, _ = network.choose(Precision(1, 1))
    return network, quantize(network, samples(small(), 24), plan)


def student(recipe: Recipe, **form: bool) -> Student:
    network, quantized = start(**form)
    torch.manual_seed(0)
    return Student(network, network.choose(Precision(1, 1))[0], recipe, quantized)


def given(count: int = 24, labels: bool = True) -> dict[str, Array]:
    found: dict[str, Array] = dict(samples(small(), count))
    return {**found, "labels": np.arange(count) % 4} if labels else found


def trained(recipe: Recipe, data: Any = None, batch: int = 8, **extra: Any) -> tuple[Student, Trained]:
    network, _ = start()
    one = student(recipe)
    return one, train(network, one, source(network.model, data or given(), batch_size=batch), **extra)


# --- Schedules -------------------------------------------------------------------------------------------------------


def test_learning_rates_fall_to_zero() -> None:
    linear, cosine = Recipe(learning_rate=2.0), Recipe(learning_rate=2.0, decay="cosine")
    assert [learning_rate(linear, t) for t in (0, 0.25, 1)] == [2.0, 1.5, 0.0]
    assert [learning_rate(cosine, t) for t in (0, 0.5, 1)] == pytest.approx([2.0, 1.0, 0.0])
    assert learning_rate(cosine, 0.25) == pytest.approx(1 + np.cos(np.pi / 4))


def test_each_stage_begins_anew_and_each_step_is_told_its_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, float, float]] = []
    made: list[Any] = []
    settled: list[tuple[bool, int]] = []

    class Spy(ADAM):  # type: ignore[misc]
        def __init__(self, groups: Any, **extra: Any) -> None:
            super().__init__(groups, **extra)
            made.append(self)

        def step(self, closure: Any = None) -> Any:
            schedule = one.schedule
            seen.append((schedule.binary_weights, schedule.progress, self.param_groups[0]["lr"]))
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "Adam", Spy)
    recipe = Recipe(stages=TWO, learning_rate=1.0)
    one = student(recipe)
    settle = one.settle

    def settling(teacher: GraphModule, inputs: Any) -> None:
        settled.append((one.schedule.binary_weights, len(inputs["x"])))
        settle(teacher, inputs)

    monkeypatch.setattr(one, "settle", settling)
    network, _ = start()
    train(network, one, source(network.model, given(), batch_size=8))
    first = [(False, k / 3, 1 - k / 3) for k in range(3)]
    second = [(True, k / 6, 1 - k / 6) for k in range(6)]
    assert [b for b, *_ in seen] == [b for b, *_ in first + second]
    assert np.allclose([s[1:] for s in seen], [s[1:] for s in first + second])
    assert settled == [(False, 24), (True, 24)]
    used = [one for one in made if one.state]
    assert len(used) == 2
    assert {int(state["step"]) for state in used[1].state.values()} == {6}


def test_what_decays_are_the_weights_of_float_layers_and_real_latent_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    network, _ = start()
    one = student(Recipe(stages=(Stage(1, False, 0.5), Stage(1, True, 0.5))))
    own = [one.module.constant(n.input[1]) for n in network.model.graph.node if n.name in ("l0", "l3")]
    assert [p.shape for p in own] == [(8, 3, 3, 3), (4, 16)]
    assert {id(p) for p in weights(one, network, latent=False)} == {id(p) for p in own}
    latents = [layer.latent for layer in one.layers.values()]
    assert {id(p) for p in weights(one, network, latent=True)} == {id(p) for p in own + latents}

    groups: list[list[tuple[int, float]]] = []

    class Spy(ADAM):  # type: ignore[misc]
        def __init__(self, given: Any, **extra: Any) -> None:
            super().__init__(given, **extra)
            groups.append([(id(p), g["weight_decay"]) for g in self.param_groups for p in g["params"]])

    monkeypatch.setattr(torch.optim, "Adam", Spy)
    train(network, one, source(network.model, given(), batch_size=8))
    by_stage = [{i for i, decay in found if decay} for found in groups[-2:]]
    assert by_stage == [{id(p) for p in own + latents}, {id(p) for p in own}]
    everything = {id(p) for p in one.module.parameters() if p.requires_grad}
    assert all({i for i, _ in found} == everything for found in groups)


def test_latent_weights_are_kept_in_bounds() -> None:
    one, _ = trained(Recipe(stages=(Stage(1),), learning_rate=3.0))
    assert max(float(layer.latent.detach().abs().max()) for layer in one.layers.values()) <= 1.0


@pytest.mark.parametrize("recipe", [Recipe(ovsw=True), Recipe()], ids=["ovsw", "plain"])
def test_ovsw_mends_where_the_recipe_has_it(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(OvSW, "mend", lambda self: calls.append(len(self._weights)))
    trained(replace(recipe, stages=(Stage(1),)))
    assert calls == ([2] * 3 if recipe.ovsw else [])


# --- Learning --------------------------------------------------------------------------------------------------------


def test_a_student_learns_labels_and_the_teacher() -> None:
    recipe = Recipe(stages=(Stage(10, False), Stage(40)), losses=Losses(0.0, 1.0), learning_rate=2e-2)
    data = given(32)
    samples_ = Labelled({"x": data["x"]}, data["labels"])
    _, found = trained(recipe, data, validation=samples_)
    assert found.epochs[-1].metric == "accuracy"
    assert found.epochs[-1].loss < 0.6 * found.epochs[0].loss
    assert found.epochs[-1].quality is not None
    assert found.epochs[-1].quality > 60  # chance is 25
    assert found.reference is not None
    assert found.reference < 60  # the float network was never shown these labels


def test_the_teacher_alone_teaches() -> None:
    recipe = Recipe(stages=(Stage(2, False), Stage(10)), learning_rate=1e-2)
    data = given(32, labels=False)
    _, found = trained(recipe, data, validation=Labelled(data))
    assert found.epochs[-1].metric == "agreement"
    assert found.reference == 100.0
    assert found.epochs[-1].parts.keys() == {"distributional"}
    assert found.epochs[-1].loss < found.epochs[2].loss


def test_running_statistics_are_the_means_over_all_batches() -> None:
    network, _ = start()
    one = student(Recipe())
    one.schedule.binary_weights = True
    stem = next(n for n in network.model.graph.node if n.op_type == "BatchNormalization")
    values = [one.module.constant(name) for name in stem.input[3:5]]
    assert {id(v) for v in values} <= {id(v) for v in statistics(one, network)}
    rng = np.random.default_rng(0)
    batches = [{"x": torch.from_numpy(rng.normal(1, 2, (5, 3, 6, 6)).astype(np.float32))} for _ in range(3)]
    before = {n: p.clone() for n, p in one.module.named_parameters()}
    refit(one, network, iter(batches), loop_module.processes())
    with torch.no_grad():
        inside = [one.module.train()(batch, [stem.input[0]])[1][stem.input[0]].double() for batch in batches]
    means = torch.stack([x.mean((0, 2, 3)) for x in inside]).mean(0)
    variances = torch.stack([x.var((0, 2, 3)) for x in inside]).mean(0)
    refit(one, network, iter(batches), loop_module.processes())  # the forward passes above have moved them
    assert torch.allclose(values[0].double(), means, atol=1e-6)
    assert torch.allclose(values[1].double(), variances, rtol=1e-5)
    assert all(torch.equal(p, before[n]) for n, p in one.module.named_parameters())


def test_a_training_ends_with_statistics_of_its_last_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    monkeypatch.setattr(loop_module, "refit", lambda student, *rest: calls.append(student.schedule.binary_weights))
    trained(Recipe(stages=TWO))
    assert calls == [True]


# --- The loss --------------------------------------------------------------------------------------------------------


def objective(weighed: Losses, labelled: bool = True, **form: bool) -> tuple[Objective, dict[str, Any], Any, Student]:
    network, _ = start(**form)
    one = student(Recipe(losses=weighed, shortcuts=False), **form)
    inputs = {"x": torch.from_numpy(samples(small(), 8, 3)["x"])}
    module = GraphModule(network.model)
    teacher = Teacher(module, module.outputs[0], inputs)
    one.module.train()
    return Objective(one, teacher, labelled), inputs, teacher, one


def computed(weighed: Losses, **form: bool) -> tuple[Any, dict[str, Any], Any, Any]:
    """The loss, its parts, the student's and the teacher's outputs."""
    found, inputs, teacher, one = objective(weighed, **form)
    output, features = teacher(inputs, found.reads)
    total, parts = found(inputs, torch.arange(8) % 4, output, features)
    total.backward()
    assert all(layer.latent.grad is not None for layer in one.layers.values())
    return total.detach(), parts, one.module(inputs)[0][teacher.output].detach(), output


def test_parts_are_weighed_and_added() -> None:
    total, parts, logits, taught = computed(Losses(2.0, 0.5, attention=3.0))
    assert parts["distributional"] == losses.distributional(logits, taught)
    assert parts["labels"] == losses.cross_entropy(logits, torch.arange(8) % 4)
    assert float(total) == pytest.approx(2 * parts["distributional"] + 0.5 * parts["labels"] + 3 * parts["attention"])
    assert parts.keys() == {"distributional", "labels", "attention"}


@pytest.mark.parametrize("mode", ["self", "teacher"])
def test_the_contrastive_loss_grows_with_the_progress(mode: Any) -> None:
    found, inputs, teacher, one = objective(Losses(contrastive=1.0, contrastive_mode=mode))
    assert any(name.startswith("contrastive.") for name, _ in found.named_parameters())
    output, features = teacher(inputs, found.reads)
    values = []
    for progress in (0.0, 0.05, 0.1, 0.5):
        one.schedule.progress = progress
        values.append(float(found(inputs, None, output, features)[1]["contrastive"]))
    assert values[0] == 0
    assert values[1] == pytest.approx(values[2] / 2, rel=1e-4)
    assert values[2] > 0
    assert values[3] == pytest.approx(values[2], rel=1e-4)


def test_probabilities_are_taken_for_what_they_are() -> None:
    plain, _, _, _ = computed(Losses(1.0, 1.0))
    softmax, _, _, _ = computed(Losses(1.0, 1.0), softmax=True)
    assert float(softmax) == pytest.approx(float(plain), rel=1e-4)


def test_an_output_without_classes_is_compared_by_its_values() -> None:
    total, _, result, wanted = computed(Losses(1.0), classes=False)
    assert float(total) == pytest.approx(float((result - wanted).square().mean() / wanted.var()))


def test_a_recipe_with_nothing_to_learn_from() -> None:
    with pytest.raises(UsageError, match=r"learns from labels, and there are none.*\+distillation"):
        trained(Recipe(losses=Losses(0.0, 1.0)), given(labels=False))


# --- What goes wrong -------------------------------------------------------------------------------------------------


def test_labels_that_do_not_fit_are_refused_before_anything_starts(tmp_path: Path) -> None:
    data = {**given(), "labels": np.arange(24)}
    with pytest.raises(ModelError, match="the labels go from 0 to 23; the output has 4 classes"):
        trained(Recipe(), data, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    bad = Labelled({"x": data["x"]}, data["labels"])
    with pytest.raises(ModelError, match="the labels go from 0 to 23; the output has 4 classes"):
        trained(Recipe(), validation=bad, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_labels_of_an_output_without_classes() -> None:
    network, _ = start(classes=False)
    with pytest.raises(ModelError, match="has no classes"):
        train(network, student(Recipe(), classes=False), source(network.model, given(), batch_size=8))


def test_the_first_tensor_that_is_not_finite_is_named() -> None:
    network, _ = start()
    one = student(Recipe(stages=(Stage(1),)))
    layer = one.layers["l1"]

    def spoiled(module: Any, inputs: Any, output: Any) -> Any:
        return output * torch.tensor(float("inf")) if one.schedule.progress > 0.5 else output

    layer.register_forward_hook(spoiled)
    with pytest.raises(ModelError, match=rf"stage 1, epoch 1, step 3: `{layer.site.output}`, which node `[^`]*`"):
        train(network, one, source(network.model, given(), batch_size=8))


def test_the_first_parameter_that_is_not_finite_is_named() -> None:
    network, _ = start()
    one = student(Recipe(stages=(Stage(1),)))
    one.layers["l1"].latent.register_hook(lambda g: g * float("nan"))
    with pytest.raises(ModelError, match=r"step 1: `latent` of layer `l1` is NaN or infinite\. Try a lower"):
        train(network, one, source(network.model, given(), batch_size=8))


def test_a_batch_of_one_value_a_channel() -> None:
    net = FloatNet()
    x = net.node("Relu", net.normalize(net.layer("Gemm", "x", net.weights(8, 8, fan=8)), 8))
    model = net.model(net.layer("Gemm", x, net.weights(8, 4, fan=8)), {"x": ["N", 8]})
    data = {"x": np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)}
    config = Config(nodes_to_quantize=("l1",))
    with pytest.raises(ModelError, match="a batch of 1 samples"):
        finetune(model, data, Recipe(stages=(Stage(1),)), config=config, batch_size=1)


# --- The curve -------------------------------------------------------------------------------------------------------

EPOCHS = [
    Epoch(1, 2, 1, 3, False, 2.0, {}, 1e-3, "accuracy", 40.0, 12.0, 24.0),
    Epoch(2, 2, 2, 3, True, 3.0, {}, 1e-3, "accuracy", None, 12.0, 12.0),
    Epoch(2, 2, 3, 3, True, 1.0, {}, 5e-4, "accuracy", 60.5, 12.0, 0.0),
]


def test_the_log_is_for_people() -> None:
    words = (
        "epoch 1/3 (stage 1/2, real weights)  loss 2.0000  learning rate 1.00e-03  accuracy 40.00 %  12 s, 24 s left"
    )
    assert str(EPOCHS[0]) == words
    assert "accuracy" not in str(EPOCHS[1])
    assert [curve.span(s) for s in (3.4, 89, 600, 7200)] == ["3 s", "89 s", "10 min", "2.0 h"]


def test_the_curve_shows_loss_quality_stages_and_the_float_network() -> None:
    root = ElementTree.fromstring(curve.svg(EPOCHS, 91.5))
    tag = "{http://www.w3.org/2000/svg}"
    lines = [
        [tuple(map(float, p.split(","))) for p in e.get("points", "").split()] for e in root.iter(f"{tag}polyline")
    ]
    assert [len(line) for line in lines] == [3, 2]
    loss, quality = lines
    assert [x for x, _ in loss] == sorted(x for x, _ in loss)
    assert loss[1][1] < loss[0][1] < loss[2][1]  # downwards is larger
    assert quality[1][1] < quality[0][1]
    texts = [e.text for e in root.iter(f"{tag}text")]
    assert "float network, 91.50" in texts
    assert {"loss", "accuracy", "epoch"} <= set(texts)
    assert len([e for e in root.iter(f"{tag}line") if e.get("stroke-dasharray")]) == 1


def test_a_curve_of_one_epoch_or_without_validation() -> None:
    for epochs in (
        EPOCHS[:1],
        [replace(e, metric="", quality=None) for e in EPOCHS],
        [replace(EPOCHS[0], loss=np.nan)],
    ):
        ElementTree.fromstring(curve.svg(epochs))


# --- As a whole ------------------------------------------------------------------------------------------------------


def test_finetune_returns_what_was_trained_compiled() -> None:
    lines: list[Epoch] = []
    data = given(32, labels=False)
    found = finetune(small(), data, Recipe(stages=TWO), validation=data, batch_size=8, log=lines.append)
    assert lines == found.training.epochs
    assert [e.epoch for e in lines] == [1, 2, 3]
    report = found.result.report
    assert {layer.name: layer.status for layer in report.layers} == {
        "l0": "float",
        "l1": "binary",
        "l2": "binary",
        "l3": "float",
    }
    assert {layer.precision for layer in report.layers if layer.status == "binary"} == {"w1a1"}
    assert any(node.op_type == "XnorConv" for node in found.result.model.graph.node)
    ideal = Runner(found.model).run(data)
    compiled = Runner(found.result.model, library=True).run(data)
    assert all(np.array_equal(ideal[name], compiled[name]) for name in ideal)
    (share,) = [line for line in report.post_training if "keep their class" in line]
    assert f"{found.training.quality:.2f}% keep their class" in share
    assert str(found) == f"trained: agreement {found.training.quality:.2f} %; the float network has 100.00"
    known = {p.key: p.value for p in found.model.metadata_props}
    assert json.loads(known["binarize_onnx.fine_tuning"])["recipe"]["binarizer"] == "react"


def test_a_compiled_network_with_a_wrong_bit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_trained = pipeline.compile_trained

    def wrong(*arguments: Any) -> pipeline.Result:
        result = compile_trained(*arguments)
        node = next(node for node in result.model.graph.node if node.op_type == "XnorConv")
        words = next(t for t in result.model.graph.initializer if t.name == node.input[1])
        values = numpy_helper.to_array(words).copy()
        values.reshape(-1)[0] ^= 1
        words.CopyFrom(numpy_helper.from_array(values, words.name))
        return result

    monkeypatch.setattr(pipeline, "compile_trained", wrong)
    with pytest.raises(GateFailed, match=r"not what was trained: `t5`, written by XnorConv `l1`: .* values differ"):
        finetune(small(), given(16), Recipe(stages=(Stage(1),)), batch_size=8)


NAMES = [*RECIPES, *(f"react2step+{addition}" for addition in ADDITIONS)]


@pytest.mark.parametrize(
    ("name", "precision"),
    [(name, precision) for name in NAMES for precision in ("w1a1", "w2a4")],
)
def test_every_recipe_takes_two_steps_a_stage_and_comes_back_exact(name: str, precision: str) -> None:
    stages = len(RECIPES[name.partition("+")[0]].stages)
    found = finetune(small(), given(16), name, precision=precision, epochs=stages, batch_size=8)
    assert all(np.isfinite(epoch.loss) for epoch in found.training.epochs)
    assert [layer.name for layer in found.result.report.layers if layer.status == "binary"] == ["l1", "l2"]


def test_an_ideal_graph_can_be_had() -> None:
    found = finetune(
        small(), given(16), Recipe(stages=(Stage(1),)), batch_size=8, config=Config(emit="ideal"), precision="w2a2"
    )
    assert {n.op_type for n in found.result.model.graph.node} >= {"Level"}
    assert {layer.precision for layer in found.result.report.layers} == {"", "w2a2"}


def test_layers_can_be_left_float() -> None:
    config = Config(nodes_to_exclude=("l2",))
    found = finetune(small(), given(16), Recipe(stages=(Stage(1),)), batch_size=8, config=config)
    assert [layer.name for layer in found.result.report.layers if layer.status == "binary"] == ["l1"]
    with pytest.raises(NothingMatched):
        finetune(small(), given(16), Recipe(), config=Config(nodes_to_exclude=("l.",)))


def test_what_does_not_compile_is_not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise NothingMatched("no")

    lines: list[Epoch] = []
    monkeypatch.setattr(pipeline, "compile_trained", refuse)
    with pytest.raises(NothingMatched, match="no"):
        finetune(small(), given(16), Recipe(stages=(Stage(1),)), batch_size=8, log=lines.append)
    assert not lines


def test_recipes_can_be_lengthened_and_slowed() -> None:
    found = adjusted(Recipe(stages=(Stage(1, False), Stage(2))), 9, 0.5)
    assert [stage.epochs for stage in found.stages] == [3, 6]
    assert [stage.binary_weights for stage in found.stages] == [False, True]
    assert found.learning_rate == 0.5
    assert adjusted("react2step", None, None) == adjusted("react2step", None, None)
    with pytest.raises(UsageError, match="no recipe 'magic'"):
        adjusted("magic", None, None)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(RuntimeUnavailable, match=r"pip install 'binarize-onnx\[train\]'"):
        finetune(small(), given())


def test_nothing_but_the_training_imports_torch() -> None:
    code = (
        "import sys, binarize_onnx, binarize_onnx.cli, binarize_onnx.train.finetune; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    onnx.save(small(), tmp_path / "float.onnx")
    np.savez(tmp_path / "train.npz", x=given(32)["x"], labels=given(32)["labels"])
    return tmp_path


def command(folder: Path, *more: str) -> Any:
    arguments = ["finetune", "float.onnx", "out.onnx", "--data", "train.npz", "--epochs", "2", "--batch-size", "16"]
    before = Path.cwd()
    os.chdir(folder)
    try:
        return CliRunner().invoke(main, [*arguments, *more])
    finally:
        os.chdir(before)


def test_the_command(files: Path) -> None:
    extra = ["--val", "train.npz", "--checkpoint", "run", "--curve", "curve.svg", "--report", "r.json"]
    done = command(files, *extra, "--augment", "crop", "--json")
    assert done.exit_code == 0, done.output
    assert "accuracy" in done.stderr.splitlines()[0]
    said = json.loads(done.stdout)
    assert said == json.loads((files / "r.json").read_text())
    assert [epoch["epoch"] for epoch in said["fine_tuning"]["epochs"]] == [1, 2]
    assert said["fine_tuning"]["reference"] > 0
    assert said["fine_tuning"]["metric"] == "accuracy"
    ElementTree.parse(files / "curve.svg")
    written = (files / "out.onnx").read_bytes()
    assert any(node.op_type == "XnorConv" for node in onnx.load(files / "out.onnx").graph.node)
    again = command(files, *extra, "--augment", "crop")  # it is finished: only written again
    assert again.exit_code == 0
    assert again.stderr == done.stderr.splitlines()[-1] + "\n"
    assert again.stderr.startswith("trained: accuracy ")
    assert (files / "out.onnx").read_bytes() == written


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--recipe", "magic"], 2, "no recipe 'magic'"),
        (["--epochs", "1"], 2, "1 epochs for 2 stages"),
        (["--precision", "w9a9"], 2, "precision"),
        (["--nodes-to-exclude", ".*"], 4, "no layer is left"),
        (["--data", "missing.npz"], 3, "cannot be read"),
        (["--val", "float.onnx"], 3, "no .npz"),
        (["--checkpoint", "."], 2, "holds no training of ours"),
        (["--curve", "out.onnx"], 2, "written twice"),
        (["--report", "train.npz"], 2, "is read"),
        (["--learning-rate", "1e30"], 3, "diverged at stage 1, epoch 1"),
    ],
)
def test_what_the_command_refuses(files: Path, arguments: list[str], code: int, words: str) -> None:
    done = command(files, *arguments)
    assert (done.exit_code, done.stdout) == (code, ""), done.output
    assert words in done.stderr
    assert not (files / "out.onnx").exists()


def test_help_names_all_recipes() -> None:
    words = CliRunner().invoke(main, ["finetune", "--help"]).output
    assert all(name in words for name in (*RECIPES, *ADDITIONS))


def test_the_command_without_the_extra(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    done = command(files)
    assert done.exit_code == 5
    assert "pip install 'binarize-onnx[train]'" in done.stderr


# --- Several processes -----------------------------------------------------------------------------------------------

PROCESS = """
import os, sys
sys.path.insert(0, {tests!r})
import torch
import test_train_loop as t
from pathlib import Path
found = t.in_processes(Path({folder!r}))
assert t.loop_module.processes().mixed_precision == "no"
rank = os.environ["RANK"]
Path({folder!r}, f"done{{rank}}").write_text(f"{{found.writes}} {{t.digest(found)}}")
"""


def in_processes(folder: Path) -> FineTuned:
    torch.set_num_threads(1)
    recipe = Recipe(stages=TWO, losses=Losses(1.0, 1.0, contrastive=0.1), ovsw=True)
    data = given(32)

    def log(epoch: Epoch) -> None:
        (folder / f"log{os.environ.get('RANK')}").write_text(str(epoch))

    return finetune(small(), data, recipe, validation=data, batch_size=16, checkpoint=folder / "run", log=log)


def digest(found: FineTuned) -> str:
    return str(hash(found.model.SerializeToString(deterministic=True)))


def test_two_processes_train_one_network(tmp_path: Path) -> None:
    code = PROCESS.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    (tmp_path / "main.py").write_text(code)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "ACCELERATE_MIXED_PRECISION": "bf16"}
    subprocess.run([*launch, str(tmp_path / "main.py")], check=True, env=environment, capture_output=True, timeout=300)
    writes, digests = zip(*((tmp_path / f"done{i}").read_text().split() for i in range(2)), strict=True)
    assert writes == ("True", "False")
    assert digests[0] == digests[1]
    assert (tmp_path / "log0").exists()
    assert not (tmp_path / "log1").exists()
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    (tmp_path / "alone").mkdir()
    alone = in_processes(tmp_path / "alone")
    # the same samples make the same steps; normalisations see half of them at a time
    assert lines[0]["loss"] == pytest.approx(alone.training.epochs[0].loss, rel=0.2)
