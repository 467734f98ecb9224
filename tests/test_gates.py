"""Gates decide as they say, nothing that is no number passes one, and summaries hold what a model calls its layers."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from click.testing import CliRunner
from test_verify import change, network, samples

from binarize_onnx import convert, inspect, summary
from binarize_onnx.cli import main, share, size
from binarize_onnx.errors import GateFailed, UsageError
from binarize_onnx.gates import Gate, at_least, at_most, percent, require
from binarize_onnx.report import shown_count, shown_size
from binarize_onnx.verify import Gates, OutputRow, Verification, verify
from binarize_onnx.verify.results import Accuracy, Exact, SignRow, TensorRow

Array = npt.NDArray[Any]
NAN, INF = float("nan"), float("inf")


def run(*arguments: str | Path) -> tuple[int, str]:
    """Exit code, and all that was printed."""
    done = CliRunner().invoke(main, [str(a) for a in arguments], prog_name="binarize-onnx")
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.output


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(network(), path)
    return path


# --- One gate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measured", "low", "high"),
    [(1.0, True, False), (2.0, True, True), (3.0, False, True), *((no, False, False) for no in (NAN, INF, -INF, None))],
)
def test_limits_hold_and_what_is_no_number_never_does(measured: float | None, low: bool, high: bool) -> None:
    assert at_most("g", measured, 2, "found").passed is low
    assert at_least("g", measured, 2, "found").passed is high


def test_a_failure_names_gate_measurement_and_limit() -> None:
    good, bad = at_most("small", 1, 2, "1 thing"), at_least("large", 0.25, 0.5, "25%")
    require([good])
    with pytest.raises(GateFailed) as error:
        require([good, bad])
    assert str(error.value) == "large: 25%, at least 0.5 demanded."


def test_measurements_that_are_no_numbers_are_null_in_json() -> None:
    for measured in (NAN, INF, None):
        assert json.dumps(at_most("g", measured, 1, "found").to_json()["measured"]) == "null"
    assert set(at_most("g", 1, 1, "found").to_json()) == {"name", "limit", "measured", "passed", "message"}


# --- Options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"), [("60%", 0.6), ("0.6", 0.6), ("1", 1), ("100%", 1), ("0", 0), ("99.5%", 0.995), (".5", 0.5)]
)
def test_shares(text: str, value: float) -> None:
    assert share(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500000", 500_000),
        ("12B", 12),
        ("500kB", 500_000),
        ("500KB", 500_000),
        ("1.5MB", 1_500_000),
        ("2MiB", 2 * 1024**2),
        ("0.5GiB", 512 * 1024**2),
        ("1GB", 10**9),
    ],
)
def test_sizes(text: str, value: int) -> None:
    assert size(text) == value


@pytest.mark.parametrize(
    "options",
    [
        *(("--min-binary-macs", text) for text in ("60", "101%", "-1", "nan", "inf", "60 %", "", "%")),
        *(("--max-size", text) for text in ("-1", "nan", "1.5XB", "MB", "1e3", "", "1 .5MB")),
        ("--json", "--markdown"),
        ("--report", "same.json", "--junit", "same.json"),
        ("--report", "out.onnx"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_exit_2(
    options: tuple[str, ...], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.parent)
    code, output = run("convert", source, "out.onnx", *options)
    assert code == 2, output
    assert sorted(p.name for p in source.parent.iterdir()) == ["net.onnx"]


@pytest.mark.parametrize("name", ["max_diff", "min_agreement", "max_metric_drop"])
@pytest.mark.parametrize("limit", [NAN, INF, -INF])
def test_limits_that_are_no_numbers_are_refused(name: str, limit: float, source: Path) -> None:
    limits: dict[str, Any] = {name: limit}
    with pytest.raises(UsageError):
        Gates(**limits)
    assert run("verify", source, source, "--data", "x.npz", f"--{name.replace('_', '-')}", str(limit))[0] == 2


# --- convert ------------------------------------------------------------------------------------------------------


def facts(source: Path) -> tuple[float, int]:
    """The binary share and the size that a conversion of the source has."""
    layers = {layer.name: layer.macs for layer in inspect(str(source)).layers}
    assert layers == {"stem": 32 * 64 * 27, "conv1": 64 * 64 * 288, "fc": 10 * 1024}
    return (64 * 64 * 288 + 10 * 1024) / (32 * 64 * 27 + 64 * 64 * 288 + 10 * 1024), written(source)


def written(source: Path) -> int:
    out = source.with_name("measured.onnx")
    assert run("convert", source, out)[0] == 0
    bytes_written = out.stat().st_size
    out.unlink()
    return bytes_written


@pytest.mark.parametrize("gate", ["min-binary-macs", "max-size"])
@pytest.mark.parametrize("holds", [True, False])
def test_gates_of_convert_up_to_their_limit(gate: str, holds: bool, source: Path) -> None:
    binary, taken = facts(source)
    if gate == "min-binary-macs":
        measured: float = binary
        limit = f"{binary if holds else np.nextafter(binary, 1):.17f}"
    else:
        measured, limit = taken, str(taken if holds else taken - 1)
    folder = source.parent
    out, report, junit = folder / "out.onnx", folder / "report.json", folder / "junit.xml"
    out.write_bytes(b"the old one")
    code, output = run("convert", source, out, f"--{gate}", limit, "--report", report, "--junit", junit, "--json")
    (found,) = json.loads(report.read_text())["gates"]
    assert (found["name"], found["measured"], found["passed"]) == (gate, measured, holds)
    assert found["limit"] == float(limit)
    assert ElementTree.parse(junit).getroot().get("failures") == ("0" if holds else "1")
    if holds:
        assert code == 0
        assert out.stat().st_size == taken
        assert json.loads(output) == json.loads(report.read_text())
    else:
        assert code == 1
        assert out.read_bytes() == b"the old one"
        assert f"error: {gate}: " in output
        assert '"passed": false' in output
    assert {p.name for p in folder.iterdir()} == {"net.onnx", "out.onnx", "report.json", "junit.xml"}


def test_several_gates_fail_together(source: Path) -> None:
    code, output = run("convert", source, source.with_name("out.onnx"), "--min-binary-macs", "100%", "--max-size", "1B")
    assert code == 1
    assert "min-binary-macs: 95.5" in output
    assert "at least 100% demanded; max-size: the model takes " in output
    assert "at most 1 bytes allowed." in output
    assert not source.with_name("out.onnx").exists()


@pytest.mark.parametrize(("limit", "code"), [("90%", 0), ("99%", 1)])
def test_a_dry_run_checks_gates_and_writes_nothing(limit: str, code: int, source: Path) -> None:
    folder = source.parent
    files = ("--report", folder / "report.json", "--junit", folder / "junit.xml")
    assert run("convert", source, folder / "out.onnx", "--dry-run", "--min-binary-macs", limit, *files)[0] == code
    assert [p.name for p in folder.iterdir()] == ["net.onnx"]


def with_open_size(source: Path, *, all_layers: bool) -> None:
    model = onnx.load(source)
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"d{axis}"
    if all_layers:  # fc has a known size of its own
        del model.graph.node[-2:]
        model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("pool", 1, ["N", 64, "h", "w"]))
    onnx.save(model, source)


def test_unknown_sizes_are_left_out(source: Path) -> None:
    with_open_size(source, all_layers=False)
    report = source.with_name("report.json")
    options = ("--min-binary-macs", "100%", "--report", report)
    assert run("convert", source, source.with_name("out.onnx"), *options)[0] == 0
    (gate,) = json.loads(report.read_text())["gates"]
    assert gate["measured"] == 1
    assert "2 layers of unknown size left out" in gate["message"]


def test_if_every_size_is_unknown_the_gate_fails(source: Path) -> None:
    with_open_size(source, all_layers=True)
    out = source.with_name("out.onnx")
    code, output = run("convert", source, out, "--min-binary-macs", "0%")
    assert code == 1
    assert "--input-shape" in output
    assert not out.exists()
    assert run("convert", source, out, "--min-binary-macs", "90%", "--input-shape", "x:1,3,8,8")[0] == 0


def test_gates_of_a_model_that_stays_as_it_is(source: Path) -> None:
    out = source.with_name("out.onnx")
    arguments = ("convert", source, out, "--nodes-to-exclude", ".*")
    assert run(*arguments, "--min-binary-macs", "0")[0] == 4  # nothing to convert comes before what was converted
    code, output = run(*arguments, "--allow-unchanged", "--min-binary-macs", "1%")
    assert code == 1
    assert "0% of the MACs are binary" in output
    assert not out.exists()
    limit = str(source.stat().st_size)
    assert run(*arguments, "--allow-unchanged", "--min-binary-macs", "0", "--max-size", limit)[0] == 0
    assert out.exists()


# --- verify -------------------------------------------------------------------------------------------------------


def found(**changes: Any) -> Verification:
    """A verification with something to see for every gate."""
    parts: dict[str, Any] = {
        "outputs": [OutputRow("a", (10, 4), 0.5, agreement=0.9), OutputRow("b", (10, 3), 0.25, agreement=1.0)],
        "accuracy": Accuracy(0.8, 0.7),
        "exact": Exact(),
        "layers": [SignRow("s", 10, flips_inside=3), TensorRow("t", 10)],
    }
    return Verification("given", 10, **{**parts, **changes})


def passed(verification: Verification, **limits: Any) -> dict[str, bool]:
    return {gate.name: gate.passed for gate in verification.gates(Gates(**limits))}


@pytest.mark.parametrize(
    ("name", "good", "boundary", "bad", "measured"),
    [
        ("max_diff", 0.6, 0.5, 0.4999, 0.5),
        ("max_sign_flips", 4, 3, 2, 3),
        ("min_agreement", 0.8, 0.9, 0.9001, 0.9),
        ("max_metric_drop", 11, 10, 9.9999, 10),
    ],
)
def test_gates_of_verify_up_to_their_limit(
    name: str, good: float, boundary: float, bad: float, measured: float
) -> None:
    option = name.replace("_", "-")
    for limit, holds in ((good, True), (boundary, True), (bad, False)):
        limits: dict[str, Any] = {name: limit}
        assert passed(found(), **limits) == {"exact": True, "rounding": True, option: holds}
        (gate,) = (g for g in found().gates(Gates(**limits)) if g.name == option)
        assert (gate.limit, gate.measured) == (limit, measured)
    with pytest.raises(GateFailed, match=rf"^{option}: .*{measured if name != 'min_agreement' else '90%'}.*\.$"):
        found().require(Gates(**limits))


LOOSE: dict[str, Any] = {"max_diff": 1e30, "min_agreement": 0.0, "max_metric_drop": 100.0}


def test_nan_fails_every_gate_on_outputs() -> None:
    assert all(passed(found(), **LOOSE).values())
    rows = [OutputRow("a", (10, 4), 0.0, agreement=1.0), OutputRow("b", (10, 3), 0.0, nans=1, agreement=1.0)]
    assert passed(found(outputs=rows), **LOOSE) == {
        "exact": True,
        "rounding": True,
        "max-diff": False,
        "min-agreement": False,
        "max-metric-drop": False,
    }


def test_infinite_differences_fail() -> None:
    assert not passed(found(outputs=[OutputRow("a", (1,), INF)]), max_diff=1e300)["max-diff"]


def test_what_was_not_measured_fails() -> None:
    nothing = found(outputs=[OutputRow("a", (1,))], accuracy=None, exact=None, layers=[])
    every = {"max_sign_flips": 10**9, "min_agreement": 0.0, "max_metric_drop": 100.0}
    assert passed(nothing, **every) == {"max-sign-flips": False, "min-agreement": False, "max-metric-drop": False}


def test_our_own_promises_are_gates() -> None:
    assert passed(found(exact=Exact(equal=False)))["exact"] is False
    for row in (SignRow("s", 10, flips_outside=1), TensorRow("s", 10, beyond=1)):
        (gate,) = (g for g in found(layers=[row]).gates() if not g.passed)
        assert (gate.name, gate.measured, gate.limit) == ("rounding", 1, 0)
        assert "`s`: 1 of 10" in gate.message


def poisoned(sample_channel: int) -> onnx.ModelProto:
    """The network, one of its scores NaN."""
    model = network()
    change(model, "fc.b", lambda values: values.__setitem__(sample_channel, np.nan))
    return model


@pytest.mark.parametrize("reference_too", [False, True])
def test_nan_in_real_outputs(reference_too: bool) -> None:
    """Also where both models agree on the NaN, bit for bit."""
    reference = poisoned(2) if reference_too else network()
    candidate = convert(reference).model if reference_too else poisoned(2)
    labels = np.full(4, 2)  # NaN is not class 2, though argmax says so
    result = verify(reference, candidate, inputs=samples(4), labels=labels)
    assert result.outputs[0].nans == 4
    assert result.outputs[0].agreement == 0
    assert result.accuracy is not None
    assert result.accuracy.candidate == 0
    assert not any(ok for name, ok in passed(result, **LOOSE).items() if name not in ("exact", "rounding"))
    if reference_too:
        result.require()  # what the source computes, the file computes


def test_a_failing_verification_writes_its_reports(source: Path) -> None:
    folder = source.parent
    onnx.save(poisoned(0), folder / "bad.onnx")
    files = ("--report", folder / "report.json", "--junit", folder / "junit.xml")
    code, output = run("verify", source, folder / "bad.onnx", "--max-diff", "1e9", "--markdown", *files)
    assert code == 1
    assert "error: max-diff: output `logits` is NaN at 8 places, at most 1000000000.0 allowed." in output
    assert "| max-diff | FAILED |" in output
    (gate,) = json.loads((folder / "report.json").read_text())["gates"]
    assert (gate["name"], gate["measured"], gate["passed"]) == ("max-diff", None, False)
    assert ElementTree.parse(folder / "junit.xml").getroot().get("failures") == "1"


# --- Summaries ----------------------------------------------------------------------------------------------------

HOSTILE = [
    'a"]]><testcase name="x"/><!--&amp;',
    "b|c\\|d`e`<script>alert(1)</script>",
    "line\nbreak\r\n\x00\x1b[31m\u202e\ud800",
    "[click](http://example.com) ![i](x) **b** _i_ ~~s~~ $x$ @someone #1 www.example.com",
    "### heading",
]


def hostile_gates() -> list[Gate]:
    return [at_most(name, 1, 0, name) for name in HOSTILE]


def test_junit_is_one_suite_that_readers_know() -> None:
    findings = [summary.Finding("good"), summary.Finding("bad", error="wrong"), summary.Finding("left", skipped="why")]
    data = summary.junit("convert net.onnx", [at_most("g", 1, 1, "one"), at_most("h", 2, 1, "two")], findings)
    root = ElementTree.fromstring(data)
    assert root.tag == "testsuite"
    assert root.attrib == {
        "name": "convert net.onnx",
        "tests": "5",
        "failures": "2",
        "errors": "0",
        "skipped": "1",
        "time": "0",
    }
    cases = [(case.get("classname"), case.get("name"), [child.tag for child in case]) for case in root]
    assert cases == [
        ("convert net_onnx.gates", "g", []),
        ("convert net_onnx.gates", "h", ["failure"]),
        ("convert net_onnx.layers", "good", []),
        ("convert net_onnx.layers", "bad", ["failure"]),
        ("convert net_onnx.layers", "left", ["skipped"]),
    ]
    failure = root.find("testcase/failure")
    assert failure is not None
    assert failure.get("message") == failure.text == "two, at most 1 allowed"
    assert all(case.get("time") == "0" for case in root)


def test_junit_of_hostile_names() -> None:
    findings = [summary.Finding(name, skipped=name) for name in HOSTILE]
    root = ElementTree.fromstring(summary.junit(HOSTILE[0], hostile_gates(), findings))
    assert len(root) == 2 * len(HOSTILE)
    assert {child.tag for case in root for child in case} == {"failure", "skipped"}
    names = [case.get("name") for case in root]
    assert names[: len(HOSTILE)] == names[len(HOSTILE) :]
    assert names[0] == HOSTILE[0]
    assert names[1] == HOSTILE[1]
    assert names[2] == "line\ufffdbreak" + "\ufffd" * 4 + "[31m\ufffd\ufffd"


def test_markdown_of_hostile_names() -> None:
    rows = [("layer", "why"), *((name, name) for name in HOSTILE)]
    text = summary.markdown(HOSTILE[2], hostile_gates(), [(name, name) for name in HOSTILE], rows)
    lines = text.splitlines()
    assert len(lines) == 1 + 3 + 3 * (2 + len(HOSTILE))  # a title, three empty lines, three tables
    assert [line.count("|") for line in lines if line.startswith("|")] == [4] * 7 + [3] * 14
    body = "".join(lines).replace("### ", "", 1).replace("| --- |", "|").replace(" --- |", "|").replace("|", "")
    assert not re.search(r"[<>`*\[\]~$@\\:!]|&(?!#\d+;)|#(?!\d+;)|www\.", body), body
    cells = [unescape(cell) for cell in re.findall(r"^\| (.*?) \| ", text.split("| layer |")[1], re.MULTILINE)]
    assert cells[1:] == ["".join(c if c.isprintable() else "\ufffd" for c in name) for name in HOSTILE]


def test_ordinary_names_stay_readable_in_markdown() -> None:
    text = summary.markdown("convert net.onnx", [], [], [("layer",), ("/layer1/conv_2.weight (3x3)",)])
    assert "### convert net.onnx" in text
    assert "| /layer1/conv_2.weight (3x3) |" in text


def test_a_hostile_model_from_end_to_end(source: Path) -> None:
    model = onnx.load(source)
    for node, name in zip([n for n in model.graph.node if n.op_type in ("Conv", "Gemm")], HOSTILE, strict=False):
        node.name = name.replace("\ud800", "")
    onnx.save(model, source)
    junit = source.with_name("junit.xml")
    code, output = run("convert", source, source.with_name("out.onnx"), "--markdown", "--junit", junit)
    assert code == 0
    assert "<script>" not in output
    assert "&#60;script&#62;" in output
    assert [case.get("name") for case in ElementTree.parse(junit).getroot()][:2] == HOSTILE[:2]
    code, output = run("inspect", source, "--markdown")
    assert "<script>" not in output
    code, output = run("inspect", source)
    assert "\x1b" not in output
    code, output = run("inspect", source.with_name("\x1b[2Jmissing.onnx"))
    assert code == 3
    assert "\x1b" not in output


def test_reports_are_the_same_bytes_every_time(source: Path) -> None:
    folder, contents = source.parent, []
    for number in range(2):
        junit, report = folder / f"{number}.xml", folder / f"{number}.json"
        options = ("--max-size", "1MB", "--junit", junit, "--report", report)
        assert run("convert", source, folder / "out.onnx", *options)[0] == 0
        contents.append((junit.read_bytes(), report.read_bytes()))
    assert contents[0] == contents[1]


def test_skipped_layers_give_their_code(source: Path) -> None:
    junit = source.with_name("junit.xml")
    assert run("convert", source, source.with_name("out.onnx"), "--junit", junit)[0] == 0
    root = ElementTree.parse(junit).getroot()
    (skipped,) = root.findall("testcase[@name='stem']/skipped")
    assert str(skipped.get("message")).startswith("float-layer: ")
    assert root.get("skipped") == "1"


def test_the_summary_of_inspect_and_verify(source: Path) -> None:
    out = source.with_name("out.onnx")
    assert run("convert", source, out)[0] == 0
    code, output = run("inspect", source, "--markdown")
    assert code == 0
    assert "### inspect net.onnx" in output
    assert "| stem | Conv | float | float-layer |" in output
    code, output = run("verify", source, out, "--markdown")
    assert code == 0
    assert "| exact | passed |" in output
    assert "| rounding | passed |" in output
    assert "| sign1 | 32768 |" in output


@pytest.mark.parametrize(
    ("share", "words"), [(0.6, "60%"), (0.125, "12.5%"), (1.0, "100%"), (0.59999999999, "59.999999999%")]
)
def test_a_percentage_tells_a_failure_from_its_limit(share: float, words: str) -> None:
    assert percent(share) == words


@pytest.mark.parametrize(
    ("n", "count", "size"),
    [
        (0, "0", "0 B"),
        (999, "999", "999 B"),
        (1000, "1 k", "1 kB"),
        (999_400, "999 k", "999 kB"),
        (999_999, "1 M", "1 MB"),
        (1_234_567, "1.23 M", "1.23 MB"),
        (2 * 10**12, "2 T", "2 TB"),
    ],
)
def test_numbers_have_three_digits_and_a_unit(n: int, count: str, size: str) -> None:
    assert (shown_count(n), shown_size(n)) == (count, size)
