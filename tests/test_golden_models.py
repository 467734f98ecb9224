"""Files that released versions wrote load and answer the same for ever, on every instruction set and by functions.

`golden_models/make.py` wrote them, a folder a version; each holds its inputs and its outputs.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import op_cases
import pytest

import binarize_onnx
from binarize_onnx import opset
from binarize_onnx.runtime import ISA_VARIABLE, available_isas, selected_isa

Array = npt.NDArray[Any]

ROOT = Path(__file__).resolve().parent / "golden_models"
SUMS = "SHA256SUMS"
# The sha256 of each folder's SHA256SUMS, oldest first. Lines are added, never changed: files like these are in use.
VERSIONS = {
    "v0.1": "39bf21d9b31c109831906dda84ee4ca2a34f15265a57cbac923e5786ab98ee80",
}
MODELS = sorted(ROOT.glob("v*/*.onnx"))
LEVELS = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


@cache
def stored(path: Path, prefix: str) -> dict[str, Array]:
    """The arrays beside a model whose names begin with `in.` or `out.`, under their names in the graph."""
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as data:
        return {key.removeprefix(prefix): data[key] for key in data.files if key.startswith(prefix)}


def check(path: Path, level: str, *, library: bool) -> None:
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.log_severity_level = 3
    start = binarize_onnx.InferenceSession if library else ort.InferenceSession
    session = start(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    wanted = stored(path, "out.")
    assert {output.name for output in session.get_outputs()} == wanted.keys()
    for name, value in zip(wanted, session.run(list(wanted), stored(path, "in.")), strict=True):
        try:
            op_cases.same(value, wanted[name])
        except AssertionError as error:
            raise AssertionError(f"{path.parent.name}/{path.name}, output {name}: {error}") from None


def model_id(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("path", MODELS, ids=model_id)
def test_kernels_answer_as_ever(path: Path, isa: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISA_VARIABLE, isa)
    assert selected_isa() == isa
    check(path, level, library=True)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("path", MODELS, ids=model_id)
def test_function_bodies_answer_as_ever(path: Path, level: str) -> None:
    check(path, level, library=False)


def nodes(folder: Path) -> list[tuple[onnx.NodeProto, dict[str, Array]]]:
    """The nodes of ours in all models of a folder, each with the constants among its inputs by their slot."""
    found = []
    for path in sorted(folder.glob("*.onnx")):
        model = onnx.load(path)
        constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        for node in model.graph.node:
            if node.domain in (opset.DOMAIN, opset.IDEAL_DOMAIN):
                slots = zip(op_cases.signature(node.op_type).inputs, node.input, strict=True)
                found.append((node, {slot: constants[name] for slot, name in slots if name in constants}))
    return found


def test_the_newest_folder_has_every_op_and_every_part_of_it() -> None:
    all_nodes = nodes(ROOT / list(VERSIONS)[-1])
    by_op: dict[str, list[tuple[onnx.NodeProto, dict[str, Array]]]] = {}
    for node, constants in all_nodes:
        by_op.setdefault(node.op_type, []).append((node, constants))
    assert by_op.keys() == opset.OPS.keys() | opset.IDEAL_OPS.keys()

    def values(op: str, attribute: str) -> set[Any]:
        found = {a.name: onnx.helper.get_attribute_value(a) for node, _ in by_op[op] for a in node.attribute}
        assert attribute in found, f"{op} has no {attribute}"
        every = [onnx.helper.get_attribute_value(a) for n, _ in by_op[op] for a in n.attribute if a.name == attribute]
        return {tuple(v) if isinstance(v, list) else v for v in every}

    assert values("XnorConv", "pad_value") == {-1, 0, 1}
    assert max(values("XnorConv", "group")) > 1
    assert any(len(set(pads)) > 1 for pads in values("XnorConv", "pads")), "asymmetric pads"
    assert values("PackedMaxPool", "ceil_mode") == {0, 1}
    for op in ("XnorConv", "XnorMatMul"):
        assert values(op, "x_low") == {-1, 0}
        assert values(op, "dtype") == {1, 10}
        asked = {tuple(bool(name) for name in node.output) for node, _ in by_op[op]}
        assert asked == {(True, True), (True, False), (False, True)}, "both outputs, and each alone"
        for slot in opset.EPILOGUE:
            given = [constants.get(slot) for _, constants in by_op[op]]  # None comes at run time
            assert not all(v is not None and is_neutral(op, slot, v) for v in given), f"{op}: {slot} is idle everywhere"
        assert any(c["scale"].shape[0] > 1 for _, c in by_op[op] if "scale" in c), "several terms"
        assert any(c["encode"].shape[0] < c["encode"].shape[1] for _, c in by_op[op] if "encode" in c), (
            "positional code"
        )
        assert any(c["combine"].shape[0] < c["combine"].shape[1] for _, c in by_op[op] if "combine" in c), "bits in one"


def is_neutral(op: str, slot: str, array: Array) -> bool:
    if slot in ("combine", "encode"):
        return np.array_equal(array, np.eye(len(array)))
    make = opset.conv_neutral if op == "XnorConv" else opset.matmul_neutral
    element = make(slot, outputs=1, words=1, dtype=array.dtype).ravel()[0]
    return {value.tobytes() for value in array.ravel()} == {element.tobytes()}  # as bytes: 0.0 is not −0.0


@pytest.mark.parametrize("version", VERSIONS)
def test_golden_files_are_as_they_were_written(version: str) -> None:
    folder = ROOT / version
    text = (folder / SUMS).read_bytes()
    assert hashlib.sha256(text).hexdigest() == VERSIONS[version], f"{version}/{SUMS} was changed"
    listed = {name: digest for digest, name in (line.split("  ") for line in text.decode().splitlines())}
    assert listed == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name != SUMS
    }


def test_every_folder_is_listed() -> None:
    assert [path.name for path in sorted(ROOT.glob("v*"))] == sorted(VERSIONS)
    assert sum(path.stat().st_size for path in ROOT.glob("v0.1/*")) < 300_000


def test_make_refuses_to_touch_a_folder() -> None:
    before = {path: path.read_bytes() for path in ROOT.glob("v0.1/*")}
    ran = subprocess.run(
        [sys.executable, str(ROOT / "make.py"), "0.1"], capture_output=True, text=True, check=False, cwd=ROOT.parents[1]
    )
    assert ran.returncode == 1
    assert "never made again" in ran.stderr
    assert before == {path: path.read_bytes() for path in ROOT.glob("v0.1/*")}
