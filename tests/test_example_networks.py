"""The networks in examples/: what they compute with our kernels and without, and what they are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

import binarize_onnx

ROOT = Path(__file__).parents[1]
NETWORKS, IMAGES = ROOT / "examples" / "networks", ROOT / "binarize_onnx" / "data" / "demo_images.npz"


@pytest.fixture(scope="module")
def samples() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The demo's images, normalised as examples/README.md says, and their classes."""
    with np.load(IMAGES) as stored:
        pixels, labels = stored["images"], stored["labels"]
    return (pixels[:, None].astype(np.float32) - np.float32(72.94)) / np.float32(90.02), labels


@pytest.mark.parametrize("name", ["fashion_float", "fashion_w1a1"])
def test_most_images_are_told_apart(name: str, samples: tuple[npt.NDArray[Any], npt.NDArray[Any]]) -> None:
    images, labels = samples
    (y,) = binarize_onnx.InferenceSession(str(NETWORKS / f"{name}.onnx")).run(None, {"x": images})
    assert (y.argmax(1) == labels).mean() > 0.85


def test_without_kernels_the_same_bits_come_out(
    samples: tuple[npt.NDArray[Any], npt.NDArray[Any]],
) -> None:
    path = str(NETWORKS / "fashion_w1a1.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    ours = binarize_onnx.InferenceSession(path, options)
    (wanted,), (found,) = (session.run(None, {"x": samples[0]}) for session in (plain, ours))
    np.testing.assert_array_equal(found, wanted)
