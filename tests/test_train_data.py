"""Samples to train on: every source, the order that a seed settles, parts of processes, augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from binarize_onnx.errors import BinarizeError, ModelError, UsageError  # noqa: E402
from binarize_onnx.images import ImageFolder  # noqa: E402
from binarize_onnx.quantize.scoring import Labelled  # noqa: E402
from binarize_onnx.train import data as data_module  # noqa: E402
from binarize_onnx.train.augment import Augmentation, Augmenter  # noqa: E402
from binarize_onnx.train.data import Batch, Share, labelled, source  # noqa: E402

Array = npt.NDArray[Any]


def model(*shape: int | str, name: str = "x") -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(shape)) for n in (name, "y")]
    node = helper.make_node("Relu", [name], ["y"])
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


ROWS = model("N", 2)


def rows(count: int = 10) -> dict[str, Array]:
    """Sample i is (i, -i), and its class is i."""
    numbers = np.arange(count, dtype=np.float32)
    return {"x": np.stack([numbers, -numbers], 1), "labels": np.arange(count)}


def ids(batches: Any) -> list[list[int]]:
    """What samples are in each batch."""
    return [batch.inputs["x"][:, 0].astype(int).tolist() for batch in batches]


def loader(count: int = 10, batch: int = 3) -> Any:
    arrays = rows(count)
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["labels"]))
    return torch.utils.data.DataLoader(dataset, batch_size=batch, shuffle=True)


def test_an_epoch_has_every_sample_once_in_an_order_of_its_own() -> None:
    found = source(ROWS, rows(), batch_size=5, seed=1)
    first, second = ids(found.epoch(0)), ids(found.epoch(1))
    assert found.steps == 2
    assert found.labelled
    for epoch in (first, second):
        assert sorted(i for batch in epoch for i in batch) == list(range(10))
    assert first != second
    assert ids(found.epoch(0)) == first
    assert ids(source(ROWS, rows(), batch_size=5, seed=2).epoch(0)) != first


def test_labels_stay_with_their_samples() -> None:
    for given in (source(ROWS, rows(), batch_size=4), source(ROWS, loader(), batch_size=4)):
        for batch in given.epoch(3):
            assert batch.labels is not None
            assert batch.labels.dtype == np.int64
            assert batch.labels.tolist() == batch.inputs["x"][:, 0].tolist()


def test_a_last_batch_that_is_not_full_is_left_out_and_a_small_set_is_one_batch() -> None:
    assert [len(batch) for batch in ids(source(ROWS, rows(11), batch_size=4).epoch(0))] == [4, 4]
    assert [len(batch) for batch in ids(source(ROWS, rows(3), batch_size=4).epoch(0))] == [3]


@pytest.mark.parametrize("given", [rows(), loader()], ids=["arrays", "loader"])
def test_an_epoch_goes_on_where_it_was(given: Any) -> None:
    whole = ids(source(ROWS, given, batch_size=3, seed=4).epoch(2))
    torch.rand(5)  # what others draw is of no importance
    again = source(ROWS, given, batch_size=3, seed=4)
    assert ids(again.epoch(2, 2)) == whole[2:]
    assert ids(again.epoch(2)) == whole


def test_a_loader_with_a_generator_of_its_own_begins_each_epoch_alike() -> None:
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(rows()["x"]))
    own = torch.utils.data.DataLoader(dataset, batch_size=4, shuffle=True, generator=torch.Generator())
    found = source(ROWS, own, batch_size=4)
    assert not found.labelled
    assert ids(found.epoch(0)) == ids(found.epoch(0)) != ids(found.epoch(1))


@pytest.mark.parametrize("given", [rows(12), loader(12, 4)], ids=["arrays", "loader"])
def test_processes_share_the_batches_of_one(given: Any) -> None:
    whole = ids(source(ROWS, given, batch_size=4).epoch(1))
    parts = [ids(source(ROWS, given, batch_size=4, share=Share(i, 2)).epoch(1)) for i in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_more_processes_than_samples() -> None:
    with pytest.raises(ModelError, match="2 samples for 3 processes"):
        list(source(ROWS, rows(), batch_size=2, share=Share(0, 3)).epoch(0))


def test_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", x=rows()["x"], labels=rows()["labels"])
    found = source(ROWS, tmp_path / "train.npz", batch_size=5)
    assert ids(found.epoch(0)) == ids(source(ROWS, rows(), batch_size=5).epoch(0))
    assert found.digest() == source(ROWS, rows(), batch_size=5).digest()


@pytest.mark.parametrize("memory", [0, 1 << 20], ids=["read when needed", "kept"])
def test_folders_of_images_are_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setattr(data_module, "IN_MEMORY", memory)
    for label in (0, 1):
        (tmp_path / str(label)).mkdir()
        for i in range(3):
            image.new("L", (4, 4), 100 * label + i).save(tmp_path / str(label) / f"{i}.png")
    found = source(model("N", 1, 4, 4), ImageFolder(tmp_path), batch_size=2)
    batches = list(found.epoch(0))
    assert sum(b.count for b in batches) == 6
    for batch in batches:
        assert batch.labels is not None
        assert (np.round(batch.inputs["x"][:, 0, 0, 0] * 255) // 100).astype(int).tolist() == batch.labels.tolist()


@pytest.mark.parametrize(
    "item",
    [
        lambda x: torch.from_numpy(x),
        lambda x: x,
        lambda x: [x],
        lambda x: {"x": x},
        lambda x: (x, np.zeros(len(x), np.int64)),
        lambda x: ({"x": x}, torch.zeros(len(x), dtype=torch.int32)),
        lambda x: {"x": x, "labels": np.zeros(len(x), np.int64)},
    ],
)
def test_what_a_batch_may_be(item: Any) -> None:
    x = rows()["x"]
    given = [item(x[:5]), item(x[5:])]
    found = source(ROWS, given, batch_size=7)
    batches = list(found.epoch(0))
    assert np.array_equal(np.concatenate([b.inputs["x"] for b in batches]), x)
    assert found.steps == 2
    assert all((b.labels is not None) == found.labelled for b in batches)
    assert np.array_equal(found.some(7)["x"], x[:7])


BAD: dict[str, tuple[Any, type[BinarizeError], str]] = {
    "another shape": ({"x": np.zeros((4, 3), np.float32)}, ModelError, "takes shape"),
    "another shape in a loader": ([np.zeros((4, 3), np.float32)], ModelError, "takes shape"),
    "another type in a loader": ([np.zeros((4, 2))], ModelError, "takes float32"),
    "not finite": ({"x": np.full((4, 2), np.nan, np.float32)}, ModelError, "NaN or infinite in sample 0"),
    "not finite in a loader": ([np.full((4, 2), np.inf, np.float32)], ModelError, "NaN or infinite in sample 0"),
    "labels that are numbers": ({"x": rows()["x"], "labels": np.zeros(10)}, ModelError, "class numbers"),
    "too few labels": ([(rows()["x"], np.zeros(3, np.int64))], ModelError, "10 class numbers"),
    "three parts": ([(1, 2, 3)], UsageError, "3 parts"),
    "nothing": ([], ModelError, "no samples"),
    "empty batches": ([np.zeros((0, 2), np.float32)], ModelError, "or none"),
    "once only": (iter([rows()["x"]]), UsageError, "only once"),
    "no data": (3, UsageError, "is a int"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case: str) -> None:
    given, error, words = BAD[case]
    with pytest.raises(error, match=words):
        source(ROWS, given, batch_size=4)


@pytest.mark.parametrize("given", [rows(), loader(), Labelled({"x": rows()["x"]}, rows()["labels"])])
def test_all_samples_at_once(given: Any) -> None:
    found = labelled(ROWS, given)
    assert found.labels is not None
    assert sorted(found.labels.tolist()) == list(range(10))
    assert np.asarray(found.inputs["x"])[:, 0].tolist() == found.labels.tolist()
    assert labelled(ROWS, [rows()["x"]]).labels is None


def test_a_loader_without_a_length() -> None:
    class Endless:
        def __iter__(self) -> Any:
            yield rows()["x"]

    with pytest.raises(UsageError, match="how many batches"):
        source(ROWS, Endless(), batch_size=4)


def test_labels_beyond_the_classes() -> None:
    with pytest.raises(ModelError, match="from 0 to 9; the output has 9 classes"):
        source(ROWS, rows(), batch_size=5).require_classes(9)
    source(ROWS, rows(), batch_size=5).require_classes(10)
    x = rows()["x"]
    found = source(ROWS, [(x, np.zeros(10, np.int64)), (x, np.full(10, 7))], batch_size=5)
    found.require_classes(3)  # the first batch is well
    with pytest.raises(ModelError, match="from 7 to 7; the output has 3 classes"):
        list(found.epoch(0))


def test_a_digest_tells_data_order_and_augmentation_apart() -> None:
    images = model("N", 1, 4, 4)
    x = {"x": np.zeros((8, 1, 4, 4), np.float32)}
    other = {"x": np.ones((8, 1, 4, 4), np.float32)}
    found = [
        source(images, x, batch_size=4),
        source(images, other, batch_size=4),
        source(images, x, batch_size=2),
        source(images, x, batch_size=4, seed=1),
        source(images, x, batch_size=4, augmentation=Augmentation()),
        source(images, x, batch_size=4, augmentation=Augmentation(flip=True)),
        source(images, [x["x"]], batch_size=4),
        source(images, [other["x"]], batch_size=4),
    ]
    assert len({one.digest() for one in found}) == len(found)


def _augmented(layout: tuple[int, ...], images: Array, how: Augmentation, **changes: Any) -> Array:
    arguments: dict[str, Any] = {"epoch": 0, "step": 0, "rows": slice(None), "count": len(images)} | changes
    return Augmenter(model("N", *layout), how, 0)({"x": images}, **arguments)["x"]


@pytest.mark.parametrize("layout", [(3, 5, 6), (5, 6, 3)], ids=["NCHW", "NHWC"])
def test_every_augmented_image_is_a_window_of_the_padded_one(layout: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).normal(size=(64, *layout)).astype(np.float32)
    found = _augmented(layout, images, Augmentation(2, flip=True))
    last = layout[0] == 3
    before, after = (np.moveaxis(v, 1, -1) if last else v for v in (images, found))
    shifts, flips = set(), 0
    for image, result in zip(before, after, strict=True):
        padded = np.pad(image, [(2, 2), (2, 2), (0, 0)])
        matches = [
            (top, left, flip)
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
            if np.array_equal(padded[top : top + 5, left : left + 6][:, :: -1 if flip else 1], result)
        ]
        assert len(matches) == 1
        shifts.add(matches[0][:2])
        flips += matches[0][2]
    assert len(shifts) > 15
    assert 16 < flips < 48


def test_augmentation_is_that_of_its_place_and_of_the_sample_alone() -> None:
    images = np.random.default_rng(0).normal(size=(8, 1, 6, 6)).astype(np.float32)
    how = Augmentation(flip=True)
    whole = _augmented((1, 6, 6), images, how)
    assert np.array_equal(_augmented((1, 6, 6), images, how), whole)
    assert np.array_equal(_augmented((1, 6, 6), images[4:], how, rows=slice(4, 8), count=8), whole[4:])
    assert not np.array_equal(_augmented((1, 6, 6), images, how, step=1), whole)
    assert not np.array_equal(_augmented((1, 6, 6), images, how, epoch=1), whole)


def test_a_source_augments_its_batches_and_not_what_it_shows() -> None:
    images = {"x": np.random.default_rng(0).normal(size=(8, 1, 6, 6)).astype(np.float32)}
    for given in (images, [images["x"]]):
        found = source(model("N", 1, 6, 6), given, batch_size=8, augmentation=Augmentation())
        batch: Batch = next(iter(found.epoch(0)))
        assert np.all(np.isin(batch.inputs["x"], np.append(images["x"], 0)))
        assert np.mean(batch.inputs["x"] == 0) > 0.1
        assert np.all(np.isin(found.some(8)["x"], images["x"]))


def test_what_is_no_image_is_not_augmented() -> None:
    with pytest.raises(UsageError, match="no input of the model is an image"):
        source(ROWS, rows(), batch_size=4, augmentation=Augmentation())
    with pytest.raises(UsageError, match="padded by -1"):
        Augmentation(-1)
