"""The command line's promises: exit codes, streams, files that are whole or not there, help that is the manual."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from processes import python
from test_verify import change, input_of, network, samples

from binarize_onnx import demo as demonstration
from binarize_onnx import runtime
from binarize_onnx.cli import main


class Done(NamedTuple):
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Done]
COMMANDS = sorted(main.commands)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command line in this process."""

    def run(*arguments: str | Path) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(a) for a in arguments], prog_name="binarize-onnx")
        captured = capsys.readouterr()
        code = stopped.value.code
        return Done(code if isinstance(code, int) else int(bool(code)), captured.out, captured.err)

    return run


def in_a_process(*arguments: str | Path, **environment: str) -> Done:
    done = python("-m", "binarize_onnx", *arguments, **environment)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(network(), path)
    return path


@pytest.fixture
def float_model(tmp_path: Path) -> Path:
    model = network()
    for name in ("conv1.w", "fc.w"):
        change(
            model, name, lambda w: np.multiply(w, np.linspace(1, 2, w.size).reshape(w.shape), out=w, casting="unsafe")
        )
    path = tmp_path / "float.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture
def compiled(source: Path, command: Command) -> Path:
    path = source.with_name("net.bin.onnx")
    assert command("convert", source, path).code == 0
    return path


@pytest.fixture
def corrupted(compiled: Path) -> Path:
    model = onnx.load(compiled)

    def flip(words: Any) -> None:
        words[2, 0, 1, 2] ^= np.uint32(1 << 17)

    change(model, input_of(model, "conv1", 1), flip)
    path = compiled.with_name("corrupted.onnx")
    onnx.save(model, path)
    return path


# --- Help ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_the_manual(name: str, command: Command) -> None:
    done = command(name, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"Example:\n    binarize-onnx {name}" in done.out
    for parameter in main.commands[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.opts} says nothing"


def test_the_first_help_names_commands_and_exit_codes(command: Command) -> None:
    out = command("--help").out
    assert COMMANDS == [
        "bench",
        "convert",
        "demo",
        "doctor",
        "evaluate",
        "finetune",
        "inspect",
        "reduce",
        "sensitivity",
        "verify",
    ]
    for word in (*COMMANDS, "Exit codes", "0 well"):
        assert word in out
    assert "..." not in out.split("Commands:")[1]


def test_python_m_is_the_command() -> None:
    done = in_a_process("--help")
    assert done.code == 0
    assert done.out.startswith("Usage: binarize-onnx")


# --- inspect and convert ------------------------------------------------------------------------------------------

LAYER = {"name", "op", "status", "code", "reason", "macs", "gain", "float_us", "binary_us", "precision", "error"}
SUMMARY = {"binary_layers", "float_layers", "binary_macs", "float_macs", "ops", "bytes_before", "bytes_after"}
SUMMARY |= {"gain", "target"}


def assert_report(found: Any) -> None:
    assert {"layers", "summary"} <= set(found)
    assert [set(layer) for layer in found["layers"]] == [LAYER] * 3
    assert set(found["summary"]) == SUMMARY
    assert [layer["status"] for layer in found["layers"]] == ["float", "binary", "binary"]
    assert all(layer["reason"] for layer in found["layers"])
    assert found["summary"]["binary_layers"] == 2
    assert found["summary"]["bytes_after"] < found["summary"]["bytes_before"]


def test_inspect(source: Path, command: Command) -> None:
    table = command("inspect", source)
    assert (table.code, table.err) == (0, "")
    assert "binary layers  2 of 3" in table.out
    report = source.with_name("report.json")
    done = command("inspect", source, "--json", "--report", report)
    assert_report(done.json)
    assert json.loads(report.read_text()) == done.json


def test_inspect_takes_a_float_model(float_model: Path, command: Command) -> None:
    done = command("inspect", float_model, "--json")
    assert done.code == 0
    assert done.json["summary"]["binary_layers"] == 0


def test_convert(source: Path, command: Command) -> None:
    out, report = source.with_name("out.onnx"), source.with_name("report.json")
    done = command("convert", source, out, "--json", "--report", report)
    assert (done.code, done.err) == (0, "")
    assert_report(done.json)
    assert json.loads(report.read_text()) == done.json
    assert done.json["summary"]["bytes_after"] == out.stat().st_size
    assert "binary layers  2 of 3" in command("convert", source, out).out
    feed = samples()
    got = runtime.InferenceSession(str(out)).run(None, feed)[0]
    want = ort.InferenceSession(str(source), providers=["CPUExecutionProvider"]).run(None, feed)[0]
    np.testing.assert_array_equal(got, want)


def test_the_ideal_graph(source: Path, command: Command) -> None:
    out = source.with_name("ideal.onnx")
    assert command("convert", source, out, "--emit", "ideal").code == 0
    model = onnx.load(out)
    assert {f.name for f in model.functions} == {"BinarySign"}
    ort.InferenceSession(str(out), providers=["CPUExecutionProvider"]).run(None, samples())


@pytest.mark.parametrize(
    ("options", "binary"),
    [
        (("--nodes-to-exclude", "conv.*"), {"fc"}),
        (("--nodes-to-exclude", "conv"), {"conv1", "fc"}),  # the whole name must match
        (("--nodes-to-quantize", "f.", "--nodes-to-quantize", "stem"), {"fc"}),
        (("--op-types-to-exclude", "Gemm"), {"conv1"}),
        (("--sign-zero", "keep"), set()),  # a convolution of random weights may give 0
    ],
)
def test_options_choose_layers(options: tuple[str, ...], binary: set[str], source: Path, command: Command) -> None:
    found = command("inspect", source, "--json", *options).json
    assert {layer["name"] for layer in found["layers"] if layer["status"] == "binary"} == binary


def test_input_shapes_fix_what_is_open(tmp_path: Path, command: Command) -> None:
    model = network()
    model.graph.input[0].name = model.graph.node[0].input[0] = "x:0"
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"d{axis}"
    path = tmp_path / "open.onnx"
    onnx.save(model, path)
    assert command("inspect", path, "--json").json["layers"][0]["macs"] is None
    found = command("inspect", path, "--json", "--input-shape", "x:0:1,3,8,8").json
    assert found["layers"][0]["macs"] == 32 * 8 * 8 * 27


def test_external_data(source: Path, command: Command) -> None:
    out = source.with_name("large.onnx")
    assert command("convert", source, out, "--use-external-data-format").code == 0
    (data,) = source.parent.glob("large.onnx.*.data")
    assert data.stat().st_size > out.stat().st_size / 10
    assert command("verify", source, out).code == 0


def test_dry_run_writes_nothing(source: Path, command: Command) -> None:
    before = sorted(source.parent.iterdir())
    folder = source.parent
    done = command("convert", source, folder / "out.onnx", "--dry-run", "--report", folder / "report.json", "--json")
    assert_report(done.json)
    assert sorted(folder.iterdir()) == before


def test_two_runs_give_the_same_bytes(source: Path) -> None:
    contents = []
    for seed in ("1", "2"):
        folder = source.parent / seed
        folder.mkdir()
        done = in_a_process("convert", source, folder / "out.onnx", PYTHONHASHSEED=seed)
        assert done.code == 0, done.err
        contents.append((folder / "out.onnx").read_bytes())
    assert contents[0] == contents[1]


# --- What goes wrong ----------------------------------------------------------------------------------------------


def test_a_float_model_is_exit_4_and_a_way_on(float_model: Path, command: Command) -> None:
    out = float_model.with_name("out.onnx")
    done = command("convert", float_model, out)
    assert (done.code, done.out) == (4, "")
    assert "trained" in done.err
    assert "--allow-unchanged" in done.err
    assert not out.exists()
    assert command("convert", float_model, out, "--allow-unchanged").code == 0
    assert onnx.load(out).graph == onnx.load(float_model).graph


def bad_models(folder: Path) -> list[Path]:
    text, cut, empty = folder / "text.onnx", folder / "cut.onnx", folder / "empty.onnx"
    text.write_text("this is no model")
    cut.write_bytes(network().SerializeToString()[:-1000])
    empty.write_bytes(b"")
    return [text, cut, empty, folder, folder / "missing.onnx"]


def test_bad_models_are_exit_3(source: Path, command: Command) -> None:
    for bad in bad_models(source.parent):
        out = source.with_name("out.onnx")
        for arguments in (("inspect", bad), ("convert", bad, out), ("verify", bad, source), ("verify", source, bad)):
            done = command(*arguments)
            assert (done.code, done.out) == (3, ""), arguments
            assert done.err.startswith("error: ")
            assert bad.name in done.err
            assert done.err.count("\n") == 1
        assert not out.exists()


def test_outputs_that_cannot_be_written_are_exit_3(source: Path, command: Command) -> None:
    folder = source.parent
    for out in (folder / "no" / "out.onnx", folder, Path("/proc/out.onnx")):
        done = command("convert", source, out)
        assert (done.code, done.out) == (3, ""), out
        assert done.err.startswith("error: ")
        assert done.err.count("\n") == 1


def test_a_report_that_cannot_be_written_is_found_before_the_model_is(source: Path, command: Command) -> None:
    out = source.with_name("out.onnx")
    done = command("convert", source, out, "--report", source.parent / "no" / "report.json")
    assert done.code == 3
    assert "report.json" in done.err
    assert not out.exists()


def test_an_existing_output_survives_every_failure(source: Path, float_model: Path, command: Command) -> None:
    folder = source.parent
    out, report = folder / "out.onnx", folder / "report.json"
    out.write_bytes(b"precious")
    report.write_bytes(b"precious too")
    failing = [
        (4, "convert", float_model, out, "--report", report),
        *((3, "convert", bad, out, "--report", report) for bad in bad_models(folder)),
        (2, "convert", source, out, "--report", report, "--input-shape", "nothing:1,2"),
        (3, "convert", source, out, "--report", folder),
        (3, "convert", source, folder, "--report", report),
    ]
    before = sorted(folder.iterdir())
    for code, *arguments in failing:
        assert command(*arguments).code == code, arguments
        assert out.read_bytes() == b"precious"
        assert report.read_bytes() == b"precious too"
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("convert", "net.onnx"),
        ("convert", "net.onnx", "out.onnx", "--emit", "nonsense"),
        ("convert", "net.onnx", "out.onnx", "--sign-zero", "minus"),
        ("convert", "net.onnx", "out.onnx", "--nodes-to-exclude", "("),
        ("convert", "net.onnx", "out.onnx", "--input-shape", "x"),
        ("convert", "net.onnx", "out.onnx", "--input-shape", "x:1,-3"),
        ("convert", "net.onnx", "out.onnx", "--input-shape", "y:1,3,8,8"),
        ("inspect", "net.onnx", "--unknown"),
        ("inspect", "net.onnx", "--log-level", "loud"),
        ("verify", "net.onnx", "net.onnx", "--min-agreement", "1.5"),
        ("verify", "net.onnx", "net.onnx", "--max-metric-drop", "1"),
        ("verify", "net.onnx", "net.onnx", "--labels", "labels.npy"),
        ("verify", "net.onnx", "net.onnx", "--samples", "0"),
        ("nonsense",),
    ],
)
def test_wrong_usage_is_exit_2(
    arguments: tuple[str, ...], source: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.parent)
    done = command(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "rror: " in done.err


def test_no_traceback_on_mistakes(source: Path) -> None:
    for arguments in (
        ("convert", source.parent, "out.onnx"),
        ("verify", source, source, "--data", source),
        ("demo", "x"),
    ):
        done = in_a_process(*arguments)
        assert done.code in (2, 3)
        assert "Traceback" not in done.err


# --- verify -------------------------------------------------------------------------------------------------------


def test_verify_a_good_file(source: Path, compiled: Path, command: Command) -> None:
    done = command("verify", source, compiled, "--max-diff", "0", "--max-sign-flips", "0", "--min-agreement", "1")
    assert (done.code, done.err) == (0, "")
    assert "exact        yes" in done.out
    report = source.with_name("verified.json")
    options = ("--json", "--report", report, "--samples", "3", "--log-level", "info")
    found = in_a_process("verify", source, compiled, *options)
    assert json.loads(report.read_text()) == found.json
    assert found.json["exact"]["equal"] is True
    assert [(gate["name"], gate["passed"]) for gate in found.json["gates"]] == [("exact", True), ("rounding", True)]
    assert found.json["samples"] == 3
    assert "samples 1 to 3 of 3" in found.err


def test_verify_names_the_first_diverging_tensor(source: Path, corrupted: Path, command: Command) -> None:
    done = command("verify", source, corrupted)
    assert done.code == 1
    assert "`sign1`, written by XnorConv `conv1`" in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert "exact        NO" in done.out
    found = command("verify", source, corrupted, "--json").json
    assert found["exact"]["first_diverging"]["name"] == "sign1"
    assert [gate["name"] for gate in found["gates"] if not gate["passed"]] == ["exact"]


def test_verify_on_samples_with_labels(source: Path, compiled: Path, float_model: Path, command: Command) -> None:
    folder = source.parent
    x = samples(20)["x"]
    logits = ort.InferenceSession(str(source), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    labels = logits.argmax(axis=1)
    np.savez(folder / "data.npz", x=x, labels=labels)
    done = command("verify", source, compiled, "--data", folder / "data.npz", "--max-metric-drop", "0")
    assert done.code == 0
    assert "from data.npz" in done.out
    assert "original 100.00%, candidate 100.00%" in done.out

    np.save(folder / "x.npy", x)
    np.save(folder / "labels.npy", labels)
    arguments = ("--data", folder / "x.npy", "--labels", folder / "labels.npy")
    done = command("verify", source, float_model, *arguments, "--max-metric-drop", "5", "--min-agreement", "0.99")
    assert done.code == 1
    assert "max-metric-drop" in done.err
    assert "min-agreement" in done.err


def test_verify_with_bad_data_is_exit_3(source: Path, compiled: Path, command: Command) -> None:
    folder = source.parent
    np.savez(folder / "names.npz", y=samples()["x"])
    np.savez(folder / "types.npz", x=samples()["x"].astype(np.float64))
    np.savez(folder / "objects.npz", x=np.asarray([{}, []], object))
    (folder / "text.npz").write_text("no arrays")
    for name in ("names.npz", "types.npz", "objects.npz", "text.npz", "missing.npz", "."):
        done = command("verify", source, compiled, "--data", folder / name)
        assert (done.code, done.out) == (3, ""), name
        assert done.err.count("\n") == 1
    np.savez(folder / "good.npz", x=samples(4)["x"])
    np.save(folder / "labels.npy", np.arange(3))
    done = command("verify", source, compiled, "--data", folder / "good.npz", "--labels", folder / "labels.npy")
    assert done.code == 3
    assert "4 samples need 4 class numbers" in done.err


def test_models_that_onnxruntime_refuses_are_exit_3(tmp_path: Path, command: Command) -> None:
    node = helper.make_node("NoSuchOp", ["x"], ["y"], domain="nobody")
    values = [helper.make_tensor_value_info(name, 1, [1, 2]) for name in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("nobody", 1)]
    path = tmp_path / "strange.onnx"
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    done = command("verify", path, path)
    assert done.code == 3
    assert "onnxruntime does not load the model" in done.err


# --- The runtime --------------------------------------------------------------------------------------------------


def test_a_missing_runtime_is_exit_5(
    source: Path, compiled: Path, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("BINARIZE_ONNX_ISA", "nonsense")
        done = command("verify", source, compiled)
        assert done.code == 5
        assert "nonsense" in done.err
        assert done.err.count("\n") == 1
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "__file__", str(tmp_path / "runtime.py"))
        done = command("verify", source, compiled)
        assert done.code == 5
        assert "library is missing" in done.err
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        assert command("verify", source, compiled).code == 5


def test_convert_needs_no_runtime(source: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert command("convert", source, source.with_name("out.onnx")).code == 0


# --- demo ---------------------------------------------------------------------------------------------------------


def test_demo(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demonstration, "SECONDS", 0.05)
    done = command("demo", "--out", tmp_path / "kept", "--json")
    assert (done.code, done.err) == (0, "")
    found = done.json
    assert found["verification"]["samples"] == 100
    assert found["verification"]["exact"]["equal"] is True
    assert found["verification"]["accuracy"]["reference"] == found["verification"]["accuracy"]["candidate"] > 0.8
    assert found["report"]["summary"]["binary_layers"] >= 4
    assert found["speed"]["isa"] == runtime.selected_isa()
    assert found["speed"]["ratio"] == found["speed"]["original"]["median"] / found["speed"]["compiled"]["median"]
    (kept,) = (tmp_path / "kept").iterdir()
    assert found["written"] == str(kept)
    runtime.InferenceSession(kept).run(None, {"image": np.zeros((1, 1, 28, 28), np.float32)})


def test_demo_into_a_file_is_exit_3(source: Path, command: Command) -> None:
    done = command("demo", "--out", source)
    assert done.code == 3
    assert source.name in done.err


def test_demo_says_when_it_is_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINARIZE_ONNX_ISA", "scalar")
    slow = demonstration.Speed(demonstration.Time(1, 1, 1), demonstration.Time(2, 2, 2), 50, "scalar")
    text = "\n".join(slow.lines())
    assert "SLOWER" in text
    assert "2.00 times as long" in text
    assert "forced by BINARIZE_ONNX_ISA" in text
    fast = demonstration.Speed(demonstration.Time(3, 3, 3), demonstration.Time(2, 2, 2), 50, "scalar")
    assert "1.50 times as fast" in "\n".join(fast.lines())


def test_version(command: Command) -> None:
    done = command("--version")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("binarize-onnx, version ")


# --- What a slip would cost ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--report", "--junit"])
def test_a_report_is_not_written_over_what_is_read(option: str, source: Path, command: Command, tmp_path: Path) -> None:
    before, out = source.read_bytes(), tmp_path / "out.onnx"
    link = tmp_path / "link.onnx"
    link.symlink_to(source)
    for over in (source, link):
        done = command("convert", source, out, option, over)
        assert (done.code, source.read_bytes(), out.exists()) == (2, before, False)
        assert "is read, and would be written over" in done.err
    assert command("verify", source, source, option, source).code == 2
    assert command("bench", source, option, source, "--seconds", "0.1").code == 2
    if option == "--report":
        assert command("inspect", source, option, source).code == 2
        assert command("doctor", source, option, source).code == 2
    assert source.read_bytes() == before


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "a.onnx", "b.onnx", "--max-diff"),
        ("verify", "a.onnx", "b.onnx", "--max-metric-drop"),
        ("bench", "a.onnx", "--min-speedup"),
        ("bench", "a.onnx", "--seconds"),
    ],
)
def test_a_limit_is_a_finite_number(arguments: tuple[str, ...], value: str, command: Command) -> None:
    done = command(*arguments[:-1], f"{arguments[-1]}={value}")
    assert done.code == 2
    assert "Traceback" not in done.err


def test_a_size_has_a_bound(source: Path, command: Command) -> None:
    done = command("convert", source, "out.onnx", "--max-size", "9" * 5000)
    assert done.code == 2
    assert "is no size" in done.err


def test_a_choice_that_matches_no_layer_is_noted(source: Path, command: Command) -> None:
    done = command("inspect", source, "--nodes-to-exclude", "typo", "--op-types-to-exclude", "conv")
    assert done.code == 0
    assert "--nodes-to-exclude typo matches no layer" in done.out
    assert "--op-types-to-exclude conv matches no layer" in done.out
    assert "matches no layer" not in command("inspect", source, "--op-types-to-exclude", "Conv").out


def test_a_candidate_from_another_file_fails_unless_something_is_demanded(
    source: Path, command: Command, tmp_path: Path
) -> None:
    out, other = tmp_path / "out.onnx", tmp_path / "other.onnx"
    assert command("convert", source, out).code == 0
    model = onnx.load(source)
    model.doc_string = "trained again"
    onnx.save(model, other)
    done = command("verify", other, out)
    assert done.code == 1
    assert "was made from another file than the reference: convert again" in done.err
    assert command("verify", other, out, "--max-diff", "1000").code == 0


def test_a_reader_that_has_gone_does_not_cost_the_report(source: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    script = (
        "import os, sys; os.dup2(os.open('/dev/full', os.O_WRONLY), 1); from binarize_onnx.cli import main\n"
        "main(['inspect', sys.argv[1], '--report', sys.argv[2]])"
    )
    done = python("-c", script, source, report)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
    assert done.stderr.startswith("error: stdout")
    assert json.loads(report.read_text())["summary"]["binary_layers"] == 2
