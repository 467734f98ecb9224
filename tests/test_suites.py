"""Models that have nothing binary go through the compiler without a change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from corpus import NodeTest, node_tests
from onnx import numpy_helper
from processes import python

from binarize_onnx import Config, convert

CASES = 173
# The suite holds what this version of onnxruntime gets right; an older one lacks some operators and bug fixes.
OLDER = tuple(int(part) for part in ort.__version__.split(".")[:2]) < (1, 31)
WITH_THE_COMMAND = (
    "node/test_add",
    "node/test_basic_conv_with_padding",
    "node/test_gemm_all_attributes",
    "pytorch-converted/test_Conv2d_padding",
    "pytorch-operator/test_operator_conv",
)


def run(model: bytes, feed: dict[str, npt.NDArray[Any]]) -> list[Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


def nodes(model: onnx.ModelProto) -> list[bytes]:
    return [node.SerializeToString(deterministic=True) for node in model.graph.node]


def assert_unchanged(case: NodeTest, converted: bytes) -> None:
    assert nodes(onnx.load_from_string(converted)) == nodes(onnx.load_from_string(case.model))
    try:
        before = run(case.model, case.feed)
    except Exception:  # onnxruntime's classes share no other base
        if not OLDER:
            raise
        return
    got = run(converted, case.feed)
    for value, source, stored in zip(got, before, case.outputs, strict=True):
        np.testing.assert_array_equal(value, source)
        if OLDER:
            continue
        # onnx's own tolerance for its node tests; the suite was chosen by it.
        np.testing.assert_allclose(value, numpy_helper.to_array(stored), rtol=1e-3, atol=1e-7)


def test_the_suite_is_whole() -> None:
    assert len(node_tests()) == CASES
    assert all(case.outputs for case in node_tests())


@pytest.mark.parametrize("index", range(CASES))
def test_unchanged(index: int) -> None:
    case = node_tests()[index]
    result = convert(case.model, Config(allow_unchanged=True))
    assert result.report.summary.binary_layers == 0, case.name
    assert_unchanged(case, result.model.SerializeToString())


@pytest.mark.parametrize("name", WITH_THE_COMMAND)
def test_unchanged_by_the_command(name: str, tmp_path: Path) -> None:
    case = next(case for case in node_tests() if case.name == name)
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    source.write_bytes(case.model)
    done = python("-m", "binarize_onnx", "convert", source, out, "--allow-unchanged")
    assert (done.returncode, done.stderr) == (0, "")
    assert_unchanged(case, out.read_bytes())
