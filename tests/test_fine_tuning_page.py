"""The benchmarks of quantization and of training: their pages are what was measured, and the training's script runs."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("accelerate", reason="the extra `train` is not installed")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import corpus_data  # noqa: E402
import fine_tuning  # noqa: E402
import float_networks  # noqa: E402
import page as speed_page  # noqa: E402
import post_training  # noqa: E402
import script  # noqa: E402
from float_networks import Schooling  # noqa: E402
from script import Page, Run, Section  # noqa: E402
from settings import LeftOut  # noqa: E402
from tables import Table  # noqa: E402

from binarize_onnx.quantize.scoring import Judge, Labelled  # noqa: E402
from binarize_onnx.train.recipes import named  # noqa: E402

Array = npt.NDArray[Any]
DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = [fine_tuning.PAGE, post_training.PAGE]

pytestmark = pytest.mark.usefixtures("one_thread")


# --- Pages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_holds_what_was_measured_and_no_more(page: Page, tmp_path: Path) -> None:
    names = [f"{page.name}.json", f"{page.name}.md", *(f"{picture.name}.svg" for picture in page.pictures)]
    for name in names[:2]:
        shutil.copy(DOCS / name, tmp_path)
    found = json.loads((DOCS / f"{page.name}.json").read_text())
    assert set(found["sections"]) <= set(page.sections)
    page.write(found, tmp_path)
    for name in names:
        assert (tmp_path / name).read_text() == (DOCS / name).read_text()


def test_sections_that_are_run_take_the_place_of_those_before(tmp_path: Path) -> None:
    def shown(found: Any) -> Table:
        return Table("Answers", "What they are.", ("", "is"), [("a", str(found["a"]))])

    def missing(run: Run) -> Any:
        raise LeftOut("nothing to measure")

    def measured(run: Run) -> Any:
        return {"a": 10 * run.seeds}

    sections = {"new": Section(measured, shown), "old": Section(measured, shown), "none": Section(missing, shown)}
    page = Page("tried", {**sections, "never": Section(measured, shown)})
    (tmp_path / "tried.json").write_text(json.dumps({"sections": {"old": {"a": 1}, "new": {"a": 2}}}))
    (tmp_path / "tried.md").write_text(f"before\n{page.start}\nnothing\n{script.END}\nafter\n")
    page.write(page.measured(["new", "none"], Run(3)), tmp_path)
    text = (tmp_path / "tried.md").read_text()
    assert text.startswith(f"before\n{page.start}\nMachine: ")
    assert text.endswith(f"{script.END}\nafter\n")
    assert [line for line in text.splitlines() if line.startswith(("| a", "Left"))] == [
        "| a | 30 |",
        "| a | 1 |",
        "Left out: nothing to measure.",
        "Left out: not measured yet.",
    ]
    assert speed_page.machine() == json.loads((tmp_path / "tried.json").read_text())["machine"]


# --- Float networks ------------------------------------------------------------------------------------------------


def drawn(count: int, size: int, channels: int, seed: int = 0) -> tuple[Array, Array]:
    """Images whose class is where they are bright, and the classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count)
    pixels = rng.normal(size=(count, channels, size, size)).astype(np.float32)
    for image, label in zip(pixels, labels, strict=True):
        image[:, 2 * label : 2 * label + 3, 5:20] += 2
    return pixels, labels


def images(count: int, size: int, channels: int, seed: int = 0) -> Labelled:
    pixels, labels = drawn(count, size, channels, seed)
    return Labelled({"x": pixels}, labels)


def test_a_float_network_is_trained_and_exported_with_its_normalisations() -> None:
    torch.manual_seed(0)
    module = float_networks.fashion(16)
    model = float_networks.trained(module, images(640, 28, 1), Schooling(4), seed=0)
    assert [node.op_type for node in model.graph.node].count("BatchNormalization") == 4
    judge = Judge(model, images(200, 28, 1, seed=1))
    assert judge.reference.value > 80
    with torch.no_grad():
        answers = module(torch.from_numpy(judge.samples.inputs["x"])).argmax(1).numpy()
    assert 100 * (answers == judge.samples.labels).mean() == judge.reference.value


def test_resnet_20_has_its_shape() -> None:
    model = float_networks.exported(float_networks.resnet20(4), images(2, 32, 3))
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 19
    weights = {t.name: t.dims for t in model.graph.initializer}
    assert [weights[node.input[1]][0] for node in convolutions] == [4] * 7 + [8] * 6 + [16] * 6


# --- The script ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Some dozen images, and trainings of two epochs; the folder for what is kept."""
    stored: dict[str, Any] = {}
    for kind, count in (("train", 96), ("test", 40)):
        pixels, labels = drawn(count, 28, 1)
        stored[f"x_{kind}"] = (100 + 30 * pixels[:, 0]).clip(0, 255).astype(np.uint8)
        stored[f"y_{kind}"] = labels.astype(np.uint8)
    (tmp_path / "datasets").mkdir()
    np.savez(tmp_path / "datasets" / "fashion_mnist.npz", **stored)
    monkeypatch.setenv("BINARIZE_ONNX_CORPUS", str(tmp_path))
    monkeypatch.setattr(corpus_data, "FASHION_TRAIN", 96)
    monkeypatch.setattr(corpus_data, "FASHION_TEST", 40)
    monkeypatch.setattr(corpus_data, "CIFAR_TRAIN", 48)
    monkeypatch.setattr(corpus_data, "cifar", lambda: _Cifar())
    monkeypatch.setattr(fine_tuning, "HELD_BACK", 16)
    monkeypatch.setattr(fine_tuning, "FASHION_WIDTH", 8)
    monkeypatch.setattr(fine_tuning, "FASHION_FLOAT", Schooling(1))
    monkeypatch.setattr(fine_tuning, "CIFAR_FLOAT", Schooling(1))
    monkeypatch.setattr(fine_tuning, "CIFAR_EPOCHS", 2)
    monkeypatch.setattr(fine_tuning, "CIFAR_WIDTH", 4)
    monkeypatch.setattr(fine_tuning, "W1A1", ("irnet",))
    monkeypatch.setattr(fine_tuning, "SEVERAL_BITS", ("w1a2",))
    monkeypatch.setattr(fine_tuning, "PAPERS", {"react2step": 256})
    monkeypatch.setattr(fine_tuning, "COST_WIDTH", 4)
    monkeypatch.setattr(fine_tuning, "COST_STEPS", 1)
    monkeypatch.setattr(float_networks, "BATCH", 16)
    short = {name: recipe.with_epochs(len(recipe.stages)) for name, recipe in fine_tuning.RUNGS.items()}
    monkeypatch.setattr(fine_tuning, "RUNGS", short)
    return tmp_path / "models"


class _Cifar:
    """Images in place of CIFAR-10's."""

    def take(self, indices: corpus_data.Indices) -> Labelled:
        pixels, labels = drawn(48, 32, 3)
        return Labelled({"input": pixels[indices]}, labels[indices])

    def test(self, first: int, last: int) -> Labelled:
        return self.take(np.arange(first, min(last, 48)))


def three_layers(width: int) -> Any:
    """In place of ResNet-20: `test_the_cost_of_a_paper` trains that one."""
    layers = [*float_networks.conv(3, width), *float_networks.conv(width, width), *float_networks.conv(width, width)]
    return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(width, 10))


def printed(arguments: list[str]) -> Any:
    """The JSON that the script prints in its last line."""
    result = CliRunner().invoke(fine_tuning.main, arguments, catch_exceptions=False)
    return json.loads(result.output.splitlines()[-1])


@pytest.mark.parametrize("section", ["fashion", "cifar"])
def test_a_section_runs_and_what_is_kept_is_not_trained_again(
    section: str, small_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--only", section, "--seeds", "2", "--models", str(small_corpus), "--json"]
    monkeypatch.setattr(float_networks, "resnet20", three_layers)
    found = printed(arguments)
    table = fine_tuning.PAGE.table(section, found)
    assert all(len(row) == len(table.header) for row in table.rows)
    assert not {"nan", "inf", "–"} & {cell for row in table.rows[1:] for cell in row}
    kept = [path for path in small_corpus.iterdir() if path.is_dir()]
    assert len(kept) == (6 if section == "fashion" else 2), "one for each rung and seed, or recipe"
    assert all((folder / "log.jsonl").exists() and (folder / "compiled.onnx").exists() for folder in kept)
    monkeypatch.setattr(fine_tuning, "finetune", None)
    monkeypatch.setattr(float_networks, "trained", None)
    again = printed(arguments)
    if section == "fashion":  # quantizing is done again, in other seconds
        for one in (found, again):
            [trained.pop("seconds") for trained in one["sections"][section]["rungs"]["quantized"]]
    assert again == found


def test_the_cost_of_a_paper_is_that_of_its_epochs(small_corpus: Path) -> None:
    found = printed(["--only", "cost", "--json"])["sections"]
    assert all(seconds > 0 for seconds in found["cost"]["seconds_a_step"].values())
    found["cost"] = {"images": 3200, "batch": 32, "seconds_a_step": {"react2step": 1.2}}
    rows = fine_tuning.PAGE.table("cost", {"sections": found}).rows
    assert rows == [("react2step", "1200", "2.0", "256", "0.4")]


def test_what_was_ended_goes_on_and_has_no_seconds(small_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = fine_tuning.fashion_task(Run(1, small_corpus), corpus_data.fashion("test", np.arange(40)))
    recipe = named("react2step").with_epochs(2)
    whole = fine_tuning.tuned(Run(1), task, recipe, "rung", "w1a1", 0)

    def interrupted(epoch: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fine_tuning, "_told", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fine_tuning.tuned(Run(1, small_corpus), task, recipe, "rung", "w1a1", 0)
    rest = fine_tuning.tuned(Run(1, small_corpus), task, recipe, "rung", "w1a1", 0)
    assert whole["seconds"] > 0
    assert rest == {"accuracy": whole["accuracy"], "seconds": None}


def test_images_that_are_held_back_are_not_trained_on(small_corpus: Path) -> None:
    every = np.asarray(corpus_data.fashion("train", np.arange(96)).inputs["x"])
    task = fine_tuning.fashion_task(Run(1, small_corpus), corpus_data.fashion("test", np.arange(40)))
    held = every[fine_tuning.training_order(96)[-16:]]
    trained = {image.tobytes() for image in np.asarray(task.training.inputs["x"])}
    assert len(trained) == 80
    assert trained.isdisjoint(image.tobytes() for image in held)
    assert len({image.tobytes() for image in every}) == 96


def test_the_spread_is_that_of_a_sample() -> None:
    one = {"accuracy": 90.0, "seconds": None}
    rungs = {"quantized": [one, {"accuracy": 92.0, "seconds": 30.0}, {"accuracy": 94.0, "seconds": 31.0}]}
    found = {"float": 93.0, "float_epochs": 6, "images": 50000, "epochs": 6, "rungs": rungs}
    table = fine_tuning.PAGE.table("fashion", {"sections": {"fashion": found}})
    assert table.rows[1] == ("quantized after training", "92.00 ± 2.00", "1.00", "30")
