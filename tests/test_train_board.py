"""Epochs for TensorBoard: what is written, once, by one process; and what is said without the package."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from float_nets import FloatNet, samples

pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("accelerate", reason="the extra `train` is not installed")

from binarize_onnx.cli import main
from binarize_onnx.errors import ModelError, RuntimeUnavailable, UsageError
from binarize_onnx.train import loop
from binarize_onnx.train.board import Board, scalars
from binarize_onnx.train.curve import Epoch
from binarize_onnx.train.finetune import FineTuned, finetune
from binarize_onnx.train.recipes import Losses, Recipe, Stage

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = Recipe(stages=(Stage(1, binary_weights=False), Stage(2)), losses=Losses(1.0, 0.5))
EPOCHS = [Epoch(1, 1, 1, 2, True, 2.5, {"labels": 2.0}, 0.5), Epoch(1, 1, 2, 2, True, 1.5, {}, 0.25, "psnr", 31.0)]


def small() -> Any:
    net = FloatNet()
    x = net.block("x", 8, 3)
    x = net.block(x, 16, 8, strides=[2, 2])
    return net.model(net.classes(net.block(x, 16, 16), 16), {"x": ["N", 3, 6, 6]})


def data() -> dict[str, Any]:
    return {**samples(small(), 24), "labels": np.arange(24) % 4}


def tuned(folder: Path, **extra: Any) -> FineTuned:
    return finetune(small(), data(), RECIPE, validation=data(), batch_size=8, tensorboard=folder, **extra)


def written(folder: Path) -> list[tuple[str, int, float]]:
    """Every scalar of every file, in the order of the files, as TensorBoard's own reader gives them."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    return [
        (value.tag, event.step, value.simple_value)
        for path in sorted(folder.glob("events.*"))
        for event in LegacyEventFileLoader(str(path)).Load()
        for value in event.summary.value
    ]


def of(epochs: list[Epoch]) -> list[tuple[str, int, float]]:
    return [(tag, epoch.epoch, float(np.float32(value))) for epoch in epochs for tag, value in scalars(epoch).items()]


def test_what_is_shown_of_an_epoch() -> None:
    assert scalars(EPOCHS[0]) == {"loss": 2.5, "loss/labels": 2.0, "learning_rate": 0.5}
    assert scalars(EPOCHS[1]) == {"loss": 1.5, "learning_rate": 0.25, "psnr": 31.0}


# --- Without the package ---------------------------------------------------------------------------------------------


def test_without_the_package_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(RuntimeUnavailable, match=r"pip install 'binarize-onnx\[tensorboard\]'"):
        finetune(tmp_path / "is not read.onnx", {}, tensorboard=tmp_path / "board")
    assert not list(tmp_path.iterdir())


def test_it_is_loaded_for_those_who_want_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    (tmp_path / "float.onnx").write_bytes(small().SerializeToString())
    np.savez(tmp_path / "train.npz", **data())
    model, out, train = (str(tmp_path / name) for name in ("float.onnx", "out.onnx", "train.npz"))
    arguments = ["finetune", model, out, "--data", train, "--epochs", "2", "--batch-size", "24"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    done = CliRunner().invoke(main, [*arguments, "--tensorboard", str(tmp_path / "board")])
    assert done.exit_code == 5
    assert "--tensorboard needs the package tensorboard" in done.stderr


# --- With it ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def board() -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")


@pytest.mark.usefixtures("board")
def test_all_epochs_are_written_once(tmp_path: Path) -> None:
    found = tuned(tmp_path / "board")
    assert written(tmp_path / "board") == of(found.training.epochs)
    assert {tag for tag, _, _ in written(tmp_path / "board")} == {
        "loss",
        "loss/distributional",
        "loss/labels",
        "learning_rate",
        "accuracy",
    }
    again = tuned(tmp_path / "board")  # the same from its beginning: all is there
    assert again.training.epochs[-1].loss == found.training.epochs[-1].loss
    assert written(tmp_path / "board") == of(found.training.epochs)


class Ended(Exception):
    """The process is gone."""


@pytest.mark.usefixtures("board")
@pytest.mark.parametrize("at", ["before it is kept", "before it is told", "in a step"])
def test_a_training_that_is_begun_again_writes_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Ended behind its second epoch: the checkpoint is older than what is on the board, or newer, or as old."""
    place = {"before it is kept": (loop._Run, "_save"), "before it is told": (Board, "write")}
    owner, name = place.get(at, (loop._Run, "_step"))
    run, calls = getattr(owner, name), Counter[str]()

    def ending(self: Any, *arguments: Any) -> None:
        calls[name] += 1
        if calls[name] == {"_save": 2, "write": 3, "_step": 8}[name]:
            raise Ended
        run(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, ending)
        with pytest.raises(Ended):
            tuned(tmp_path / "board", checkpoint=tmp_path / "run")
    assert 0 < len(written(tmp_path / "board")) < 15
    found = tuned(tmp_path / "board", checkpoint=tmp_path / "run")
    assert sorted(written(tmp_path / "board")) == sorted(of(found.training.epochs))


@pytest.mark.usefixtures("board")
def test_a_board_that_comes_later_gets_the_epochs_before(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        found = tuned(tmp_path / folder, checkpoint=tmp_path / "run")
        assert written(tmp_path / folder) == of(found.training.epochs)


@pytest.mark.usefixtures("board")
def test_one_folder_may_hold_both(tmp_path: Path) -> None:
    found = tuned(tmp_path / "run", checkpoint=tmp_path / "run")
    tuned(tmp_path / "run", checkpoint=tmp_path / "run")
    assert written(tmp_path / "run") == of(found.training.epochs)


@pytest.mark.usefixtures("board")
def test_the_folder_of_another_training_is_refused(tmp_path: Path) -> None:
    Board(tmp_path, {"seed": 0}).write(EPOCHS)
    with pytest.raises(UsageError, match=r"holds another training \(not the same: seed\)"):
        Board(tmp_path, {"seed": 1})
    assert written(tmp_path) == of(EPOCHS)


@pytest.mark.usefixtures("board")
def test_a_file_that_was_cut_short_is_completed(tmp_path: Path) -> None:
    first = Board(tmp_path, {})
    first.write(EPOCHS)
    first.close()
    (path,) = tmp_path.glob("events.*")
    path.write_bytes(path.read_bytes()[:-5])  # the process ended within the last scalar
    second = Board(tmp_path, {})
    second.write(EPOCHS)
    second.close()
    assert sorted(written(tmp_path)) == sorted(of(EPOCHS))


@pytest.mark.usefixtures("board")
def test_a_board_that_cannot_be_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(tmp_path, {})
    board.write(EPOCHS[:1])

    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(board._writer, "flush", full)
    monkeypatch.setattr(board._writer, "close", full)
    with pytest.raises(ModelError, match="events cannot be stored: No space left on device; make room"):
        board.write(EPOCHS)
    board.close()  # in which the writer would fail again


@pytest.mark.usefixtures("board")
def test_a_board_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def broken(_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(EventAccumulator, "Reload", broken)
    with pytest.raises(ModelError, match="events cannot be stored: Input/output error"):
        Board(tmp_path, {})


@pytest.mark.usefixtures("board")
def test_a_training_whose_board_cannot_be_stored_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def full(_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "flush", full)
    monkeypatch.setattr(SummaryWriter, "close", full)
    with pytest.raises(ModelError, match="events cannot be stored: No space left on device; make room"):
        tuned(tmp_path / "board")


@pytest.mark.usefixtures("board")
def test_of_several_processes_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = loop.processes

    class Other:
        """A process that is not the main one, alone as it is."""

        is_main_process = False

        def __init__(self) -> None:
            self._own = processes()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._own, name)

    monkeypatch.setattr(loop, "processes", Other)
    assert len(tuned(tmp_path / "board").training.epochs) == 3
    assert not (tmp_path / "board").exists()
