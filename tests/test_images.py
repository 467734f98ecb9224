"""Folders of images as calibration data, and samples that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

from binarize_onnx.calibration import feeds, load_samples
from binarize_onnx.errors import ModelError, UsageError
from binarize_onnx.images import ImageFolder

Image = pytest.importorskip("PIL.Image")


def model(*shape: Any, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    given = helper.make_tensor_value_info("x", kind, ["N", *shape])
    out = onnx.ValueInfoProto(name="y", type=helper.make_tensor_type_proto(kind, None))
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [given], [out])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def pixels(height: int = 8, width: int = 8, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, values: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def test_both_layouts_scaled_in_the_order_of_the_paths(tmp_path: Path) -> None:
    images = [pixels(seed=i) for i in range(6)]
    for i, values in enumerate(images):
        save(tmp_path / f"{i}.png", values)
    folder = ImageFolder(tmp_path, (0.5, 0.4, 0.3), (0.2,))
    mean = np.array([0.5, 0.4, 0.3], np.float32)
    wanted = (np.stack(images).astype(np.float32) / np.float32(255) - mean) / np.float32(0.2)
    last = np.concatenate([feed["x"] for feed in feeds(model(8, 8, 3), folder)])
    first = np.concatenate([feed["x"] for feed in feeds(model(3, 8, 8), folder)])
    assert last.dtype == np.float32
    assert np.array_equal(last, wanted)
    assert np.array_equal(first, wanted.transpose(0, 3, 1, 2))
    assert load_samples(tmp_path, model(8, 8, 3))[1] is None


def test_grey_integers_and_open_sizes(tmp_path: Path) -> None:
    values = np.repeat(pixels()[:, :, :1], 3, axis=2)
    save(tmp_path / "a.png", values)
    (feed,) = feeds(model(1, "h", "w", kind=TensorProto.UINT8), tmp_path)
    assert feed["x"].dtype == np.uint8
    assert np.array_equal(feed["x"][0, 0], values[:, :, 0])


def test_other_sizes_are_covered_and_cut(tmp_path: Path) -> None:
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255
    save(tmp_path / "a.png", wide)
    (feed,) = feeds(model(3, 8, 8), tmp_path)
    assert np.all(feed["x"] == 1)  # the middle third, as it is


@pytest.mark.parametrize(("names", "classes"), [(("cat", "dog"), [0, 0, 1]), (("10", "9"), [10, 10, 9])])
def test_folders_are_classes(tmp_path: Path, names: tuple[str, str], classes: list[int]) -> None:
    for i, name in enumerate((names[0], names[0], names[1])):
        save(tmp_path / name / f"{i}.png", pixels())
    samples, labels = load_samples(tmp_path, model(3, 8, 8))
    assert samples["x"].shape == (3, 3, 8, 8)
    assert labels is not None
    assert labels.tolist() == classes


def test_images_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    save(tmp_path / "a.png", pixels())
    (tmp_path / "b.png").write_bytes(b"no image")
    samples = ImageFolder(tmp_path).samples(model(3, 8, 8))["x"]
    assert samples[0:1].shape == (1, 3, 8, 8)
    with pytest.raises(ModelError, match=r"b\.png: the image cannot be read"):
        samples[1:2]
    assert samples.take(np.array([0])).shape == (1, 3, 8, 8)


def test_what_no_folder_can_fill(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no images"):
        ImageFolder(tmp_path)
    save(tmp_path / "a.png", pixels())
    with pytest.raises(UsageError, match="std"):
        ImageFolder(tmp_path, (0.0,), (0.0,))
    with pytest.raises(UsageError, match="mean"):
        ImageFolder(tmp_path, (0.0, float("nan"), 1.0))
    with pytest.raises(ModelError, match="no image"):
        ImageFolder(tmp_path).samples(model(5))
    with pytest.raises(UsageError, match="one channel"):
        ImageFolder(tmp_path, (0.1, 0.2, 0.3)).samples(model(1, 8, 8))


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_refused_by_their_place(odd: float) -> None:
    x = np.zeros((9, 3, 8, 8), np.float32)
    x[6, 1, 2, 3] = odd
    with pytest.raises(ModelError, match="NaN or infinite in sample 6"):
        list(feeds(model(3, 8, 8), {"x": x}))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((0, 3, 8, 8), np.float32), "no samples"),
        (np.zeros((4, 3, 8, 9), np.float32), "takes shape"),
        (np.zeros((4, 3, 8, 8), np.float64), "takes float32"),
        (np.zeros((4, 8, 8, 3), np.float32), "Transpose it: the same sizes are there in another order"),
    ],
)
def test_data_that_does_not_fit_is_refused_in_words(values: npt.NDArray[Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        list(feeds(model(3, 8, 8), {"x": values}))


def test_samples_of_several_inputs(tmp_path: Path) -> None:
    """As many of each where the model counts them by one name; an array without a name fills one input only."""
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in "xy"]
    total = helper.make_tensor_value_info("sum", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Add", ["x", "y"], ["sum"])], "two", given, [total])
    both = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    rows = np.zeros((40, 3), np.float32)
    with pytest.raises(ModelError, match=r"input `y` has 30 samples in the data, `x` has 40. Give as many of each"):
        list(feeds(both, {"x": rows, "y": rows[:30]}))
    np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(ModelError, match=r"one array without a name; the model takes `x`, `y`. Store all in an .npz"):
        list(feeds(both, tmp_path / "rows.npy"))
    both.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "M"
    assert len(list(feeds(both, {"x": rows, "y": rows[:1]}))) == 1
