"""Zeros at signs are counted on data, exactly: planted ones on a network known by hand, and on trained networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from corpus import load_bnn, sample_feed
from test_odd_graphs import Array, network, node

from binarize_onnx import Config, convert, inspect, summary
from binarize_onnx.cli import main
from binarize_onnx.errors import ModelError, UsageError
from binarize_onnx.report import SignSite


def planted() -> onnx.ModelProto:
    """s = Sign(x), 3 inputs; t = Sign(s W + 1), 2 columns; every row of W is (1, -1)."""
    nodes = [
        node("Sign", "x", "s"),
        node("MatMul", "s w", "a", "first"),
        node("Add", "a plus", "b"),
        node("Sign", "b", "t"),
        node("MatMul", "t v", "y", "second"),
    ]
    constants = {"w": np.asarray([[1, -1]] * 3, np.float32), "v": np.ones((2, 2), np.float32)}
    return network(nodes, {"x": ["N", 3]}, {"y": 2}, constants)


# Rows: sums 3, -1, 1, 0 and 1 (0 is a term less), so a + 1 is (4, -2), (0, 2), (2, 0), (1, 1), (2, 0).
X = np.asarray([[1, 2, 3], [-1, -1, 4], [1, -1, 1], [-0.0, 1, -1], [1, 0, 0]], np.float32)
S_ZEROS, T_ZEROS = 3, 3


class Reader:
    """A CalibrationDataReader of one row at a time."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = list(batches)

    def get_next(self) -> Any:
        return self.batches.pop(0) if self.batches else None


def counts(signs: list[SignSite]) -> list[tuple[str, str, int | None, int | None]]:
    return [(s.name, s.zero, s.zeros, s.elements) for s in signs]


COUNTED = [("s", "counted", S_ZEROS, 15), ("t", "counted", T_ZEROS, 10)]


def test_planted_zeros_are_counted() -> None:
    found = inspect(planted(), calibration_data={"x": X})
    assert counts(found.signs) == COUNTED
    assert found.signs[0].reason == "3 of 15 values were 0 on the data given; taken as +1"
    assert dict(found.totals())["sign(0)"] == (
        "taken as +1 at 2 of 2 signs, for 6 of 25 values on the data given: s (3 of 15), t (3 of 10)"
    )
    assert "s     counted      3      15  3 of 15 values were 0" in found.table()
    assert counts(inspect(planted()).signs) == [("s", "assumed", None, None), ("t", "assumed", None, None)]


def test_every_form_of_data_counts_the_same(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=X, labels=np.arange(5))
    np.save(tmp_path / "x.npy", X)
    reader = Reader([{"x": row[None]} for row in X])
    for data in (str(tmp_path / "x.npz"), tmp_path / "x.npy", reader):
        assert counts(inspect(planted(), calibration_data=data).signs) == COUNTED


def test_data_changes_no_bit_of_the_model() -> None:
    for config in (Config(), Config(emit="ideal")):
        plain, counted = convert(planted(), config), convert(planted(), config, calibration_data={"x": X})
        assert plain.model.SerializeToString(deterministic=True) == counted.model.SerializeToString(deterministic=True)


def test_a_sign_that_never_saw_0_is_not_proved() -> None:
    """Data cannot show that 0 does not come: `keep` keeps the sign, whatever was counted."""
    one = {"x": X[:1]}
    assert counts(inspect(planted(), calibration_data=one).signs) == [("s", "counted", 0, 3), ("t", "counted", 0, 2)]
    kept = inspect(planted(), Config(sign_zero="keep"), calibration_data=one)
    assert [(x.status, str(x.code)) for x in kept.layers] == [("float", "sign-zero")] * 2


def test_only_a_sign_that_saw_0_is_marked_in_a_summary() -> None:
    for data, marked in ((X[:1], [False, False]), (X[-1:], [True, True]), (X[1:2], [False, True])):
        found = summary.of_conversion(inspect(planted(), calibration_data={"x": data}))
        assert [bool(f.skipped) for f in found if f.group == "signs"] == marked


def test_proved_signs_are_not_counted() -> None:
    model = planted()
    next(n for n in model.graph.node if n.name == "first").input[0] = "x2"
    reached = [node("GreaterOrEqual", "x zero", "g"), node("Where", "g plus minus", "x2")]
    for index, made in enumerate(reached):
        model.graph.node.insert(index, made)
    del model.graph.node[2]  # Sign(x)
    next(n for n in model.graph.node if n.output[0] == "b").op_type = "Identity"
    del next(n for n in model.graph.node if n.output[0] == "b").input[1:]
    found = inspect(model, calibration_data={"x": X})
    assert [(s.zero, s.zeros) for s in found.signs] == [("proved", None)] * 2
    assert "sign(0)" not in dict(found.totals())


def test_only_channels_that_differ_are_counted() -> None:
    """a > 0 is 1, a < 0 is -1; at 0 the first column is 1, which the bit is too, and the second 0.5."""
    nodes = [
        node("Greater", "x zero", "more"),
        node("Equal", "x zero", "same"),
        node("Where", "same middle minus", "low"),
        node("Where", "more plus low", "s"),
        node("MatMul", "s v", "y", "layer"),
    ]
    constants = {"middle": np.asarray([1, 0.5], np.float32), "v": np.ones((2, 2), np.float32)}
    model = network(nodes, {"x": ["N", 2]}, {"y": 2}, constants)
    x = np.asarray([[0, 0], [0, 1], [0, -1]], np.float32)
    assert counts(inspect(model, calibration_data={"x": x}).signs) == [("s", "counted", 1, 6)]


def test_half_precision_is_counted_in_its_own_type() -> None:
    nodes = [node("Cast", "x", "h", to=10), node("Sign", "h", "s"), node("MatMul", "s v", "y", "layer")]
    model = network(nodes, {"x": ["N", 2]}, {"y": 2}, {"v": np.ones((2, 2), np.float16)})
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    x = np.asarray([[1e-12, 1], [0, -1e-12]], np.float32)  # float16 has no 1e-12
    assert counts(inspect(model, calibration_data={"x": x}).signs) == [("s", "counted", 3, 4)]


def test_a_channel_that_never_changes_its_sign() -> None:
    """Every column is constant, one 1 and one -1: nothing to count, and the right answer."""
    nodes = [
        node("Greater", "x zero", "more"),
        node("Where", "more c c", "s"),
        node("MatMul", "s v", "y", "layer"),
    ]
    constants = {"c": np.asarray([[1, -1]], np.float32), "v": np.asarray([[1, 1], [1, -1]], np.float32)}
    result = convert(network(nodes, {"x": ["N", 2]}, {"y": 2}, constants))
    assert [s.zero for s in result.report.signs] == ["proved"]
    y = ort.InferenceSession(result.model.SerializeToString()).run(None, {"x": X[:2, :2]})[0]
    np.testing.assert_array_equal(y, [[0, 2], [0, 2]])


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ({"z": X}, ModelError, "the data has `z`; the model takes `x`"),
        ({"x": X.astype(np.float64)}, ModelError, "input `x` takes float32, the data is float64"),
        ({"x": X[:, :2]}, ModelError, r"takes shape \[any, 3\], the data is \[5, 2\]"),
        ({"x": X[:0]}, ModelError, "the data has no samples"),
        (Reader([]), ModelError, "the data has no samples"),
        (Reader([{"z": X}]), ModelError, "the data has `z`"),
        (Reader([X]), UsageError, "the calibration data reader gives a ndarray"),
        (X, UsageError, "the calibration data is a ndarray"),
        ("missing.npz", ModelError, "missing.npz: cannot be read"),
    ],
)
def test_data_that_does_not_fit(data: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        inspect(planted(), calibration_data=data)


# --- Command line -------------------------------------------------------------------------------------------------

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command in a folder that has net.onnx and x.npz."""
    monkeypatch.chdir(tmp_path)
    onnx.save(planted(), tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=X)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(list(arguments), prog_name="binarize-onnx")
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return run


def test_reports_show_the_counts(command: Command) -> None:
    data = ("--calibration-data", "x.npz")
    code, out, _ = command("inspect", "net.onnx", *data, "--json")
    assert code == 0
    assert [(s["zero"], s["zeros"], s["elements"]) for s in json.loads(out)["signs"]] == [x[1:] for x in COUNTED]
    code, out, _ = command("convert", "net.onnx", "out.onnx", *data, "--markdown", "--junit", "j.xml")
    assert code == 0
    assert "| s | counted | 3 | 15 | 3 of 15 values were 0 on the data given&#59; taken as +1 |" in out
    cases = ElementTree.parse("j.xml").findall("testcase[@classname='convert net_onnx.signs']")
    assert [(c.get("name"), c.find("skipped") is not None) for c in cases] == [("s", True), ("t", True)]


@pytest.mark.parametrize(("limit", "code"), [("30%", 0), ("0.3", 0), ("29.9%", 1)])
def test_gate_on_the_sign_with_most_zeros(command: Command, limit: str, code: int) -> None:
    options = ("--calibration-data", "x.npz", "--max-sign-zeros", limit)
    done, _, err = command("convert", "net.onnx", "out.onnx", *options)
    assert (done, Path("out.onnx").exists()) == (code, code == 0)
    if code:
        words = "max-sign-zeros: sign `t` saw 0 for 3 of 10 values (30%), at most 29.9% allowed"
        assert words in err


def test_gate_fails_where_a_sign_was_not_counted() -> None:
    report = inspect(planted())
    (gate,) = report.gates(max_sign_zeros=1.0)
    assert (gate.passed, gate.measured) == (False, None)
    assert "the zeros of sign `s` were not counted" in gate.message


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--calibration-data", "missing.npz"], 3, "missing.npz: cannot be read"),
        (["--calibration-data", "net.onnx"], 3, "is no .npz or .npy file"),
        (["--calibration-data", "wrong.npz"], 3, "input `x` takes shape [any, 3], the data is [5, 2]"),
        (["--max-sign-zeros", "1%"], 2, "--max-sign-zeros needs samples"),
        (["--calibration-data", "x.npz", "--report", "x.npz"], 2, "is read, and would be written over"),
        (["--calibration-data", "out.onnx"], 2, "is read, and would be written over"),
    ],
)
def test_bad_data_writes_nothing(command: Command, options: list[str], code: int, words: str) -> None:
    np.savez("wrong.npz", x=X[:, :2])
    done, _, err = command("convert", "net.onnx", "out.onnx", *options)
    assert (done, Path("out.onnx").exists()) == (code, False)
    assert words in err
    assert "Traceback" not in err


# --- Trained networks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bmxnet_lenet_mnist", "tfc_w1a1_mnist", "cnv_w1a1_cifar10"])
def test_counts_on_a_trained_network_are_those_of_its_signs(name: str) -> None:
    """What the source's own signs give: their outputs, read from the source and compared with 0."""
    model, feed = load_bnn(name), sample_feed(name)
    feed = {key: values[:6] for key, values in feed.items()}
    signs = inspect(model, calibration_data=feed).signs
    assert signs
    assert not [s for s in signs if s.zero == "assumed"]
    counted = [s for s in signs if s.zero == "counted"]
    for output in (s.name for s in counted):
        model.graph.output.append(onnx.ValueInfoProto(name=output))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    names = [s.name for s in counted]
    outputs: list[Array] = session.run(names, feed) if names else []
    for site, values in zip(counted, outputs, strict=True):
        assert (site.zeros, site.elements) == (int(np.count_nonzero(values == 0)), values.size)


def test_zeros_planted_in_real_images() -> None:
    """The first sign of this network reads 2 x - 1: every second pixel is set to a half."""
    feed = {key: values[:4].copy() for key, values in sample_feed("tfc_w1a1_mnist").items()}
    for values in feed.values():
        values[..., ::2] = 0.5
    signs = inspect(load_bnn("tfc_w1a1_mnist"), calibration_data=feed).signs
    assert (signs[0].zeros, signs[0].elements) == (4 * 28 * 14, 4 * 28 * 28)
    assert [s.zero for s in signs] == ["counted", "proved", "proved", "proved"]
