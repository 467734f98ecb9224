"""Mixed precision: what is computed in fewer bits and what is not, gradients, and trainings as a whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from float_nets import FloatNet, samples

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("accelerate", reason="the extra `train` is not installed")

from binarize_onnx.cli import main  # noqa: E402
from binarize_onnx.errors import ModelError, UsageError  # noqa: E402
from binarize_onnx.train import exactness, loop, mixed  # noqa: E402
from binarize_onnx.train.finetune import FineTuned, finetune  # noqa: E402
from binarize_onnx.train.graph import GraphModule  # noqa: E402
from binarize_onnx.train.layer import BinaryLayer  # noqa: E402
from binarize_onnx.train.operators import OPERATORS  # noqa: E402
from binarize_onnx.train.recipes import Recipe, Stage  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = Recipe(stages=(Stage(1, binary_weights=False), Stage(2)))


def small() -> Any:
    """Layers l0 to l3, of which l1 and l2 are chosen."""
    net = FloatNet()
    x = net.block("x", 8, 3)
    x = net.block(x, 16, 8, strides=[2, 2])
    return net.model(net.classes(net.block(x, 16, 16), 16), {"x": ["N", 3, 6, 6]})


def data(count: int = 24) -> dict[str, Any]:
    return {**samples(small(), count), "labels": np.arange(count) % 4}


def tuned(wanted: mixed.MixedPrecision = "bf16", **extra: Any) -> FineTuned:
    return finetune(small(), data(), RECIPE, batch_size=8, mixed_precision=wanted, **extra)


# --- A layer ---------------------------------------------------------------------------------------------------------

LAYERS = [
    ("Conv", (4, 3, 6, 6), (5, 3, 3, 3), (5,)),
    ("Gemm", (4, 8), (8, 5), (5,)),
    ("MatMul", (4, 7, 8), (8, 5), None),
    ("MatMul", (7, 8), (8,), None),
]
LOWER = {"bf16": (torch.bfloat16, 2.0**-8), "fp16": (torch.float16, 2.0**-11)}  # and half a step at 1


def gradients(op: str, shapes: Any, lower: Any, size: float) -> list[Any]:
    """The output and the gradients of all inputs, the output's own gradient being of the given size."""
    rng = np.random.default_rng(0)
    given = [torch.from_numpy(rng.normal(size=s).astype(np.float32)).requires_grad_() for s in shapes if s]
    channels = 1 if op == "Conv" else -1
    y = OPERATORS[op](given, {}) if lower is None else mixed.layer(OPERATORS[op], given, {}, lower, channels)
    y.backward(torch.from_numpy(rng.normal(size=tuple(y.shape)).astype(np.float32)) * size)
    return [y.detach(), *(value.grad for value in given)]


@pytest.mark.parametrize("name", LOWER)
@pytest.mark.parametrize("size", [1.0, 1e-9, 1e9], ids=["", "tiny gradients", "huge gradients"])
@pytest.mark.parametrize(("op", "x", "weights", "bias"), LAYERS, ids=["Conv", "Gemm", "MatMul", "MatMul of one column"])
def test_a_layer_in_fewer_bits(op: str, x: Any, weights: Any, bias: Any, size: float, name: str) -> None:
    lower, rounding = LOWER[name]
    wanted = gradients(op, (x, weights, bias), None, size)
    given = gradients(op, (x, weights, bias), lower, size)
    assert all(value.dtype == torch.float32 for value in given)
    assert not torch.equal(given[0], wanted[0])
    for a, b in zip(given, wanted, strict=True):  # each factor of each term is rounded, and the sum
        assert float((a - b).abs().max()) < 4 * rounding * float(b.abs().max())


@pytest.mark.parametrize("size", [0.0, float("nan"), float("inf")])
def test_a_gradient_that_is_no_usual_number_stays_what_it_is(size: float) -> None:
    x = torch.ones((2, 3), requires_grad=True)
    y = mixed.layer(OPERATORS["MatMul"], [x, torch.ones((3, 2))], {}, torch.float16, -1)
    y.backward(torch.full_like(y, size))
    assert np.array_equal(x.grad.numpy(), np.full((2, 3), size, np.float32), equal_nan=True)


# --- A network -------------------------------------------------------------------------------------------------------


def test_float_layers_alone_are_computed_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []
    for op in ("Conv", "Gemm", "Relu"):

        def spy(read: Any, attributes: Any, op: str = op, run: Any = OPERATORS[op]) -> Any:
            calls.append((op, read[0].dtype))
            return run(read, attributes)

        monkeypatch.setitem(OPERATORS, op, spy)
    module = GraphModule(small())
    x = {"x": torch.from_numpy(data()["x"])}
    wanted, _ = module(x)
    with mixed.float_layers_in(torch.bfloat16, module):
        calls.clear()
        given, kept = module(x, module.written)
    assert dict(calls) == {
        "Conv": torch.bfloat16,
        "Gemm": torch.bfloat16,
        "Relu": torch.float32,
    }
    assert all(value.dtype == torch.float32 for value in (*given.values(), *kept.values()))
    (name,) = wanted
    assert not torch.equal(given[name], wanted[name])
    assert torch.equal(module(x)[0][name], wanted[name])  # it is over


def test_it_is_over_after_an_error_too() -> None:
    module = GraphModule(small())
    with pytest.raises(KeyError), mixed.float_layers_in(torch.bfloat16, module):
        module({})
    assert module.lower is None


# --- A training ------------------------------------------------------------------------------------------------------


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[Any]]:
    """In which module computes what: in steps, where statistics are measured, and where the export is checked."""
    found: dict[str, set[Any]] = {"step": set(), "teacher": set(), "refit": set(), "check": set(), "quality": set()}
    place = ["elsewhere"]
    forward = GraphModule.forward

    def watched(self: Any, *arguments: Any, **extra: Any) -> Any:
        if place[0] != "elsewhere":
            taught = place[0] == "step" and not torch.is_grad_enabled()  # the teacher is not trained
            found["teacher" if taught else place[0]].add(self.lower)
        return forward(self, *arguments, **extra)

    def within(name: str, run: Any) -> Any:
        def marked(*arguments: Any, **extra: Any) -> Any:
            place.append(place[0])
            place[0] = name
            try:
                return run(*arguments, **extra)
            finally:
                place[0] = place.pop()

        return marked

    monkeypatch.setattr(GraphModule, "forward", watched)
    monkeypatch.setattr(loop._Run, "_step", within("step", loop._Run._step))
    monkeypatch.setattr(loop, "refit", within("refit", loop.refit))
    monkeypatch.setattr(exactness, "check", within("check", exactness.check))
    monkeypatch.setattr(loop._Run, "quality", within("quality", loop._Run.quality))
    return found


@pytest.mark.parametrize(("wanted", "lower"), [("bf16", torch.bfloat16), ("no", None)])
def test_steps_alone_are_mixed(noted: dict[str, set[Any]], wanted: Any, lower: Any) -> None:
    tuned(wanted, validation=data())
    assert noted == {"step": {lower}, "teacher": {lower}, "refit": {None}, "check": {None}, "quality": {None}}


def test_binary_layers_stay_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[Any] = set()
    product = BinaryLayer.product

    def watched(self: Any, h: Any, weights: Any) -> Any:
        y = product(self, h, weights)
        seen.update(value.dtype for value in (h, weights, y))
        return y

    monkeypatch.setattr(BinaryLayer, "product", watched)
    tuned()
    assert seen == {torch.float32}


def test_a_mixed_training_comes_back_exact() -> None:
    plain, found = tuned("no"), tuned()
    assert [layer.name for layer in found.result.report.layers if layer.status == "binary"] == ["l1", "l2"]
    assert found.agreement.layers >= 2  # equal bit for bit, or there would be an error
    losses = [[epoch.loss for epoch in one.training.epochs] for one in (plain, found)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_a_training_in_float16_comes_back_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tuned("no").training.epochs[-1].loss
    monkeypatch.setattr(mixed, "dtype", lambda *_: torch.float16)  # a CPU is slow at it, and refused for that
    found = tuned("fp16").training.epochs[-1].loss
    assert found != plain
    assert found == pytest.approx(plain, rel=0.1)


class Ended(Exception):
    """The process is gone."""


@pytest.mark.parametrize("end_at", [1, 4, 7])
def test_a_mixed_training_that_is_begun_again_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end_at: int
) -> None:
    monkeypatch.setitem(loop.train.__kwdefaults__ or {}, "save_seconds", 0.0)
    whole, step, left = tuned().model.SerializeToString(deterministic=True), loop._Run._step, iter(range(end_at))

    def ending(*arguments: Any) -> None:
        if next(left, None) is None:
            raise Ended
        step(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(loop._Run, "_step", ending)
        with pytest.raises(Ended):
            tuned(checkpoint=tmp_path / "run")
    with pytest.raises(UsageError, match=r"holds another training \(not the same: mixed precision\)"):
        tuned("no", checkpoint=tmp_path / "run")
    assert tuned(checkpoint=tmp_path / "run").model.SerializeToString(deterministic=True) == whole


def test_what_overflows_in_fewer_bits_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixed, "dtype", lambda *_: torch.float16)
    large = {**data(), "x": data()["x"] * np.float32(1e6)}
    with pytest.raises(ModelError, match=r"step 1: `[^`]*`, which node `l0` \(Conv\) writes, is NaN or infinite"):
        finetune(small(), large, replace(RECIPE, shortcuts=False), batch_size=8, mixed_precision="fp16")


# --- What cannot be --------------------------------------------------------------------------------------------------


def test_what_a_device_does_not_compute_in(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda, other = (torch.device(name) for name in ("cpu", "cuda", "mps"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with pytest.raises(UsageError, match="does not compute in bf16: use fp16"):
        mixed.dtype("bf16", cuda)
    assert mixed.dtype("fp16", cuda) == torch.float16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert mixed.dtype("bf16", cuda) == mixed.dtype("bf16", cpu) == torch.bfloat16
    assert {mixed.dtype("no", device) for device in (cpu, cuda, other)} == {None}
    with pytest.raises(UsageError, match="this is mps: leave"):
        mixed.dtype("bf16", other)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which computes in fp16")
def test_the_command_says_what_to_do_without_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "float.onnx").write_bytes(small().SerializeToString())
    np.savez(tmp_path / "train.npz", **data())
    names = [str(tmp_path / name) for name in ("float.onnx", "out.onnx", "train.npz", "run")]
    arguments = ["finetune", *names[:2], "--data", names[2], "--checkpoint", names[3], "--mixed-precision", "fp16"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert "mixed precision fp16 needs a GPU, and this is a CPU: use bf16, or leave mixed precision out." in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float.onnx", "train.npz"]
