"""Checkpoints: a training that is ended anywhere and begun again gives the same bits; what else a folder may hold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from float_nets import FloatNet, samples

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("accelerate", reason="the extra `train` is not installed")

from binarize_onnx.errors import ModelError, UsageError  # noqa: E402
from binarize_onnx.quantize import sites  # noqa: E402
from binarize_onnx.quantize.post_training import Quantized, quantize  # noqa: E402
from binarize_onnx.quantize.precision import Precision  # noqa: E402
from binarize_onnx.quantize.sites import Network  # noqa: E402
from binarize_onnx.train import loop  # noqa: E402
from binarize_onnx.train.augment import Augmentation  # noqa: E402
from binarize_onnx.train.checkpoint import Folder, State  # noqa: E402
from binarize_onnx.train.data import source  # noqa: E402
from binarize_onnx.train.loop import Trained, train  # noqa: E402
from binarize_onnx.train.recipes import Losses, Recipe, Stage  # noqa: E402
from binarize_onnx.train.student import Student  # noqa: E402

STAGES = (Stage(2, binary_weights=False, weight_decay=1e-3), Stage(2))
RECIPES = {
    "adam": Recipe(stages=STAGES),
    "sgd, OvSW": Recipe(stages=STAGES, optimizer="sgd", learning_rate=1.0, decay="cosine", ovsw=True),
    "contrastive": Recipe(
        stages=STAGES, losses=Losses(1.0, 0.5, attention=1.0, contrastive=0.5, contrastive_mode="self")
    ),
    "learned scales": Recipe(stages=(Stage(2),), binarizer="siman", threshold="dynamic", estimator="ede"),
}
STEPS = 3  # an epoch


pytestmark = pytest.mark.usefixtures("one_thread")


def small() -> onnx.ModelProto:
    net = FloatNet()
    x = net.block("x", 8, 3)
    x = net.block(x, 16, 8, strides=[2, 2])
    x = net.block(x, 16, 16)
    return net.model(net.classes(x, 16), {"x": ["N", 3, 6, 6]})


@cache
def start() -> tuple[Network, Quantized]:
    network = sites.find(small())
    plan, _ = network.choose(Precision(1, 1))
    return network, quantize(network, samples(small(), 24), plan)


def given(seed: int = 0) -> dict[str, Any]:
    labels = np.random.default_rng(1).integers(0, 4, 8 * STEPS)
    return {**samples(small(), 8 * STEPS, seed), "labels": labels}


class Ended(Exception):
    """The process was killed, as far as a test in the same process can tell."""


def run(recipe: Recipe, folder: Path | None = None, *, end_at: int | None = None, **extra: Any) -> tuple[Any, Trained]:
    """What a training leaves, and its epochs; ended before its batch number `end_at`, counted over epochs."""
    network, quantized = start()
    torch.manual_seed(0)  # of what a student draws for a DySign, say
    student = Student(network, network.choose(Precision(1, 1))[0], recipe, quantized)
    data: Any = source(network.model, extra.pop("data", given()), batch_size=8, augmentation=Augmentation(1, flip=True))
    batches, read = iter(range(10**6)), data.epoch

    def epoch(number: int, first: int = 0) -> Iterator[Any]:
        for batch in read(number, first):
            if next(batches) == end_at:
                raise Ended
            yield batch

    data.epoch = epoch
    extra.setdefault("save_seconds", 0)
    trained = train(network, student, data, folder=folder, **extra)
    return student.module.state_dict(), trained


@cache
def whole(name: str) -> tuple[Any, Trained]:
    return run(RECIPES[name])


def same(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("end_at", [0, 1, 3, 7, 11, 13], ids=lambda n: f"before batch {n}")
@pytest.mark.parametrize("save_seconds", [0.0, 1e9], ids=["kept at each step", "kept at each epoch"])
def test_a_training_that_is_begun_again_gives_the_same_bits(tmp_path: Path, end_at: int, save_seconds: float) -> None:
    recipe = RECIPES["adam"]
    with pytest.raises(Ended):
        run(recipe, tmp_path / "run", end_at=end_at, save_seconds=save_seconds)
    state, trained = run(recipe, tmp_path / "run")
    reference, expected = whole("adam")
    assert same(state, reference)
    assert [e.loss for e in trained.epochs] == [e.loss for e in expected.epochs]
    assert [e.learning_rate for e in trained.epochs] == [e.learning_rate for e in expected.epochs]


@pytest.mark.parametrize("name", RECIPES)
def test_all_state_is_kept_whatever_the_recipe(tmp_path: Path, name: str) -> None:
    for end_at in (2, 3):  # two steps, and three more
        with pytest.raises(Ended):
            run(RECIPES[name], tmp_path / "run", end_at=end_at)
    assert same(run(RECIPES[name], tmp_path / "run")[0], whole(name)[0])


def test_a_loader_goes_on_too(tmp_path: Path) -> None:
    x, y = (torch.from_numpy(values) for values in given().values())
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8, shuffle=True)
    reference, _ = run(RECIPES["adam"], data=loader)
    with pytest.raises(Ended):
        run(RECIPES["adam"], tmp_path / "run", end_at=4, data=loader)
    assert same(run(RECIPES["adam"], tmp_path / "run", data=loader)[0], reference)


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    reference, _ = run(RECIPES["adam"], tmp_path / "run")
    state, trained = run(RECIPES["adam"], tmp_path / "run", end_at=0)
    assert same(state, reference)
    assert len(trained.epochs) == 4


def test_an_end_while_a_checkpoint_is_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = iter(range(100))

    def cut_short(file: Any, **arrays: Any) -> None:
        if next(writes) == 5:
            file.write(b"PK")
            raise Ended
        written(file, **arrays)

    written = np.savez
    monkeypatch.setattr(np, "savez", cut_short)
    with pytest.raises(Ended):
        run(RECIPES["adam"], tmp_path / "run")
    monkeypatch.setattr(np, "savez", written)
    assert same(run(RECIPES["adam"], tmp_path / "run")[0], whole("adam")[0])
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["checkpoint.npz", "log.jsonl", "run.json"]


def test_a_diverging_run_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Ended):
        run(RECIPES["adam"], tmp_path / "run", end_at=4)
    before = (tmp_path / "run" / "checkpoint.npz").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(loop, "learning_rate", lambda recipe, done: float("inf"))
        words = "diverged at stage 1, epoch 2, step 2: .* is NaN or infinite; the checkpoint before that is in"
        with pytest.raises(ModelError, match=words):
            run(RECIPES["adam"], tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint.npz").read_bytes() == before
    assert same(run(RECIPES["adam"], tmp_path / "run")[0], whole("adam")[0])


def test_the_log_has_a_line_an_epoch(tmp_path: Path) -> None:
    with pytest.raises(Ended):
        run(RECIPES["adam"], tmp_path / "run", end_at=5)
    run(RECIPES["adam"], tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert [line["stage"] for line in lines] == [1, 1, 2, 2]
    assert [line["loss"] for line in lines] == [e.loss for e in whole("adam")[1].epochs]


@pytest.mark.parametrize("change", ["recipe", "data", "seed"])
def test_another_training_is_refused(tmp_path: Path, change: str) -> None:
    with pytest.raises(Ended):
        run(RECIPES["adam"], tmp_path / "run", end_at=1)
    kept = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    recipe = RECIPES["sgd, OvSW"] if change == "recipe" else RECIPES["adam"]
    changes: dict[str, dict[str, Any]] = {"seed": {"seed": 1}, "data": {"data": given(9)}}
    extra = changes.get(change, {})
    with pytest.raises(UsageError, match=rf"holds another training \(not the same: {change}\)"):
        run(recipe, tmp_path / "run", **extra)
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == kept


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match="holds no training of ours"):
        Folder(tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    arrays = {"a/b.c": np.array([np.float32(0.1), np.inf], np.float32), "flag": np.array([True]), "none": np.zeros(0)}
    Folder(tmp_path / "run", {"model": "m", "stages": (1, 2)}).save(State(arrays, {"place": {"step": 3}, "x": 0.1}))
    found = Folder(tmp_path / "run", {"model": "m", "stages": [1, 2]}).load()
    assert found is not None
    assert found.notes == {"place": {"step": 3}, "x": 0.1}
    assert found.arrays.keys() == arrays.keys()
    assert all(found.arrays[k].dtype == v.dtype and np.array_equal(found.arrays[k], v) for k, v in arrays.items())


@pytest.mark.parametrize("name", ["checkpoint.npz", "run.json"])
@pytest.mark.parametrize("content", [b"", b"PK", b"[1]"])
def test_a_damaged_folder(tmp_path: Path, name: str, content: bytes) -> None:
    Folder(tmp_path, {"seed": 0}).save(State({}, {}))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=r"damaged"):
        Folder(tmp_path, {"seed": 0}).load()


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path) -> None:
    folder = Folder(tmp_path, {})
    np.savez(tmp_path / "checkpoint.npz", notes=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ModelError, match="damaged"):
        folder.load()


def test_a_process_that_does_not_write(tmp_path: Path) -> None:
    Folder(tmp_path / "run", {"seed": 0}, writes=False).save(State({}, {}))
    assert not list((tmp_path / "run").iterdir())


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModelError, match="cannot be stored"):
        Folder(tmp_path / "file" / "run", {})


KILLED = """
import sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import test_train_checkpoint as t
from pathlib import Path
state, _ = t.run(t.RECIPES["adam"], Path({folder!r}))
"""


def test_a_killed_process(tmp_path: Path) -> None:
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "run"))
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
    mark = tmp_path / "run" / "checkpoint.npz"
    until = time.monotonic() + 120
    while not mark.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert mark.exists()
    assert same(run(RECIPES["adam"], tmp_path / "run")[0], whole("adam")[0])
