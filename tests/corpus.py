"""The corpus of trained binary networks, data sets and suites, which lies beside the repository.

It is not part of the project: `BINARIZE_ONNX_CORPUS` names its folder, else `../shared/data` from the repository's
root. Where it is missing, tests that need it are skipped, except in CI (`CI=true`), where that is a failure.
"""

from __future__ import annotations

import io
import lzma
import os
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

Array = npt.NDArray[Any]

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = (
    "bmxnet_lenet_mnist",
    "bmxnet_resnet18_imagenet_st1fp",
    "cnv_w1a1_cifar10",
    "lfc_w1a1_mnist",
    "tfc_w1a1_mnist",
)


def corpus_path(relative: str) -> Path:
    """A file of the corpus; the test is skipped, or fails in CI, if it is not there."""
    folder = Path(os.environ.get("BINARIZE_ONNX_CORPUS") or ROOT.parent / "shared" / "data")
    path = folder / relative
    if not path.exists():
        missing = f"the corpus file {path} is missing; BINARIZE_ONNX_CORPUS names the corpus folder"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return path


@cache
def _decompressed(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes())


def bnn_bytes(name: str) -> bytes:
    """One of NETWORKS as the bytes of its file."""
    return _decompressed(corpus_path(f"bnn/{name}.onnx.xz"))


def load_bnn(name: str) -> onnx.ModelProto:
    """One of NETWORKS."""
    return onnx.load_from_string(bnn_bytes(name))


def datasets(name: str) -> dict[str, Array]:
    """The arrays of a data set, say `mnist`."""
    with np.load(corpus_path(f"datasets/{name}.npz"), allow_pickle=False) as data:
        return {key: np.asarray(data[key]) for key in data.files}


def reference_io(name: str) -> dict[str, Array]:
    """Stored `input` and `logits` of one of NETWORKS, made by plain onnxruntime at its default level."""
    with np.load(corpus_path(f"refio/{name}.npz"), allow_pickle=False) as data:
        return {key: np.asarray(data[key]) for key in data.files}


def sample_feed(name: str) -> dict[str, Array]:
    """The stored input of one of NETWORKS under its name in the model."""
    return {load_bnn(name).graph.input[0].name: reference_io(name)["input"]}


@dataclass(frozen=True)
class NodeTest:
    """One model of the suite of single nodes, with its inputs and the outputs it must have."""

    name: str
    model: bytes
    inputs: list[onnx.TensorProto]
    outputs: list[onnx.TensorProto]

    @property
    def feed(self) -> dict[str, Array]:
        """The inputs by name."""
        proto = onnx.load_from_string(self.model)
        names = [i.name for i in proto.graph.input][: len(self.inputs)]
        return {name: numpy_helper.to_array(t) for name, t in zip(names, self.inputs, strict=True)}


@cache
def node_tests() -> tuple[NodeTest, ...]:
    """The 173 single-node models that plain onnxruntime gets right."""
    names = corpus_path("suites/onnx_node_subset_ort_pass.txt").read_text().split()
    files: dict[str, bytes] = {}
    with tarfile.open(corpus_path("suites/onnx_node_subset.tar.xz")) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                files[member.name.removeprefix("./")] = content.read()

    def tensors(name: str, kind: str) -> list[onnx.TensorProto]:
        count = sum(f.startswith(f"{name}/test_data_set_0/{kind}_") for f in files)
        paths = [f"{name}/test_data_set_0/{kind}_{i}.pb" for i in range(count)]
        return [onnx.load_tensor(io.BytesIO(files[path])) for path in paths]

    return tuple(
        NodeTest(name, files[f"{name}/model.onnx"], tensors(name, "input"), tensors(name, "output")) for name in names
    )
