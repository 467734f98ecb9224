"""The doctor on a healthy machine, and on machines that are broken in every way that we can arrange."""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from processes import PACKAGE_FOLDER, python

import binarize_onnx
from binarize_onnx import cli, io, opset, runtime
from binarize_onnx.doctor import Diagnosis, Finding, examine, machine, selftest
from binarize_onnx.doctor import model as models
from binarize_onnx.errors import GateFailed, ModelError, RuntimeUnavailable

DEMO = Path(binarize_onnx.__file__).parent / "data" / "demo.onnx"
SUBJECTS = ["package", "onnxruntime", "library", "instruction set", "self-test", "subnormal numbers", "CUDA"]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("doctor") / "demo.bin.onnx"
    io.save(binarize_onnx.convert(DEMO).model, path)
    return path


@pytest.fixture(autouse=True)
def free_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(runtime.ISA_VARIABLE, raising=False)


@pytest.fixture
def loads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that have the library as it should be: no process to try it in."""
    monkeypatch.setattr(machine, "_loads", lambda _: "")


def finding(found: Diagnosis, subject: str) -> Finding:
    (only,) = [f for f in found.findings if f.subject == subject]
    return only


# --- A healthy machine ---------------------------------------------------------------------------------------------


def test_a_healthy_machine() -> None:
    found = examine()
    assert [f.subject for f in found.findings] == SUBJECTS
    isas = list(runtime.available_isas())
    expected = "warning" if isas == ["scalar"] else "ok"
    assert {f.subject: f.status for f in found.findings} == {
        **dict.fromkeys(SUBJECTS, "ok"),
        "instruction set": expected,
    }
    found.require()
    if isas != ["scalar"]:
        assert (found.speed, found.verdict) == ("fast", f"any converted file: {models.FAST}.")
    assert finding(found, "onnxruntime").facts["version"] == ort.__version__
    assert finding(found, "library").facts["path"] == str(runtime.get_library_path())
    assert finding(found, "instruction set").facts == {"available": isas, "forced": None, "selected": isas[0]}
    assert finding(found, "self-test").facts == {"ran": ["function bodies", *isas], "differences": []}
    assert finding(found, "subnormal numbers").facts == {"process_keeps": True, "session_keeps": True}
    printed = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [f["subject"] for f in printed["findings"]] == SUBJECTS
    lines = found.text().splitlines()
    assert [line.split("  ")[0] for line in lines[:7]] == SUBJECTS
    assert lines[-1] == found.verdict


# --- The self-test -------------------------------------------------------------------------------------------------


def test_the_cases_are_the_difficult_ones() -> None:
    cases = selftest.make_cases()
    assert {case.op for case in cases} == set(opset.OPS)
    convs = [case for case in cases if case.op == "XnorConv"]
    assert any(c.attributes["channels"] % 32 for c in convs)
    assert any(c.attributes["group"] > 1 for c in convs)
    assert any(set(c.attributes["strides"]) != {1} for c in convs)
    assert {c.attributes["pad_value"] for c in convs if any(c.attributes["pads"])} >= {0, 1}
    assert any(set(c.expected) == {"Q"} for c in convs)
    for case in cases:  # nothing that a kernel which always writes the same would get right
        for values in case.expected.values():
            assert np.unique(values).size > 1, case.label
        assert {**case.inputs, **case.expected}.keys() >= set(opset.OPS[case.op].inputs)


@pytest.mark.parametrize("isa", runtime.available_isas())
def test_a_wrong_kernel_is_named(isa: str, monkeypatch: pytest.MonkeyPatch, loads_at_once: None) -> None:
    """One instruction set gives one wrong bit in the second output of one convolution."""
    start = runtime.InferenceSession
    cases = selftest.make_cases()
    wrong = next(i for i, case in enumerate(cases) if case.op == "XnorConv" and set(case.expected) == {"Y", "Q"})

    class Session:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.session = start(*arguments, **options)
            self.broken = runtime.selected_isa() == isa

        def run(self, names: list[str], feed: dict[str, Any]) -> list[Any]:
            values = self.session.run(names, feed)
            if self.broken:
                values[names.index(f"{wrong}.Q")].flat[3] ^= 1
            return list(values)

    monkeypatch.setattr(runtime, "InferenceSession", Session)
    found = examine()
    tested = finding(found, "self-test")
    (difference,) = tested.facts["differences"]
    assert (difference["op"], difference["by"], difference["output"]) == ("XnorConv", isa, "Q")
    assert f"XnorConv ({cases[wrong].label}) by {isa}: output Q has 1 of " in tested.words
    assert found.speed == "none"
    assert "wrong results" in found.verdict
    with pytest.raises(GateFailed, match="XnorConv"):
        found.require()


def test_a_wrong_function_body_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = opset.functions_in_use

    def with_another_max_pool(model: onnx.ModelProto) -> list[onnx.FunctionProto]:
        functions = bodies(model)
        for function in functions:
            if function.name == "PackedMaxPool":
                node = next(n for n in function.node if n.op_type == "MaxPool")
                del node.attribute[:]
                node.attribute.append(helper.make_attribute("kernel_shape", [3, 2]))
                node.attribute.append(helper.make_attribute("strides", [2, 2]))
                node.attribute.append(helper.make_attribute("pads", [0, 0, 0, 1]))
        return functions

    monkeypatch.setattr(opset, "functions_in_use", with_another_max_pool)
    differences, _ = selftest.self_test(runtime.available_isas())
    assert {(d.op, d.by) for d in differences} == {("PackedMaxPool", selftest.BODIES)}


def test_a_kernel_that_does_not_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("no such\nkernel")

    monkeypatch.setattr(runtime, "InferenceSession", refuse)
    differences, _ = selftest.self_test(["scalar"])
    assert [str(d) for d in differences] == ["every op (all models) by scalar: output  does not run: no such kernel"]


@pytest.mark.parametrize("before", [None, "scalar"])
def test_the_self_test_leaves_the_choice_of_an_instruction_set_as_it_was(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before:
        monkeypatch.setenv(runtime.ISA_VARIABLE, before)
    with suppress(ZeroDivisionError), selftest.forced("abacus"):
        assert os.environ[runtime.ISA_VARIABLE] == "abacus"
        raise ZeroDivisionError
    selftest.self_test(runtime.available_isas())
    assert os.environ.get(runtime.ISA_VARIABLE) == before


# --- What may be broken --------------------------------------------------------------------------------------------


def test_without_onnxruntime_everything_else_is_said(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = examine(converted)
    assert [f.subject for f in found.findings] == [s for s in SUBJECTS if s != "self-test"] + ["model"]
    assert finding(found, "onnxruntime").status == "problem"
    assert finding(found, "library").status == "ok"
    assert finding(found, "model").facts["ops"]["XnorConv"] == 3
    assert found.verdict == f"demo.bin.onnx: {models.NO_ONNXRUNTIME}."
    with pytest.raises(RuntimeUnavailable, match="cannot be imported"):
        found.require()


def test_an_onnxruntime_that_fails_while_it_is_imported(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise AttributeError('_ARRAY_API not found')")
    script = "from binarize_onnx.doctor import examine\nfound = examine()\nprint(found.text())\nfound.require()"
    done = python("-c", script, PYTHONPATH=f"{tmp_path}{os.pathsep}{PACKAGE_FOLDER}")
    assert "onnxruntime" in done.stdout
    assert "_ARRAY_API not found" in done.stdout
    assert done.stderr.strip().splitlines()[-1].startswith("binarize_onnx.errors.RuntimeUnavailable: onnxruntime")


def test_a_missing_library(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_LIBRARY", "nowhere.so")
    found = examine(converted)
    assert [f.subject for f in found.findings if f.status == "problem"] == ["library"]
    assert finding(found, "self-test").facts["ran"] == ["function bodies"]
    assert (found.speed, found.verdict) == ("slow", f"demo.bin.onnx: {models.SLOWLY}: {models.UNUSABLE}.")
    with pytest.raises(RuntimeUnavailable, match=r"nowhere\.so: the kernel library is missing"):
        found.require()


@pytest.mark.parametrize("share", [0.0, 0.00003, 0.0001, 0.5, 0.999])
def test_a_truncated_library(share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a library can end the process that loads it: it must not be this one."""
    whole = runtime.get_library_path().read_bytes()
    cut = tmp_path / "cut.so"
    cut.write_bytes(whole[: int(len(whole) * share)])
    monkeypatch.setattr(runtime, "get_library_path", lambda: cut)
    found = machine.library(ort)
    assert found.status == "problem"
    assert re.search("does not load|cut short", found.words)
    assert found.facts["loads"] is False
    with pytest.raises(RuntimeUnavailable):
        Diagnosis((found,), "slow", "").require()


def test_a_library_that_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_LOAD", "import os, signal; os.kill(os.getpid(), signal.SIGBUS)")
    found = machine.library(ort)
    assert (found.status, found.exit_code, found.facts["loads"]) == ("problem", 5, False)
    assert "ends the process with SIGBUS" in found.words


def test_a_library_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = ctypes.util.find_library("m")
    if name is None:
        pytest.skip("needs the C library's libm")
    ctypes.CDLL(name)
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    other = tmp_path / "libother.so"
    other.write_bytes(next(Path(path) for path in mapped if Path(path).name == name).read_bytes())
    monkeypatch.setattr(runtime, "get_library_path", lambda: other)
    found = machine.library(ort)
    assert found.status == "problem"
    assert "RegisterCustomOps" in found.words


def test_an_onnxruntime_that_is_too_old(converted: Path, monkeypatch: pytest.MonkeyPatch, loads_at_once: None) -> None:
    def refuse(_: Any) -> None:
        raise RuntimeUnavailable("onnxruntime does not take the kernel library: needs onnxruntime >= 1.20")

    monkeypatch.setattr(ort, "__version__", "1.17.3")
    monkeypatch.setattr(runtime, "register", refuse)
    found = examine(converted)
    assert [f.subject for f in found.findings if f.status == "problem"] == ["onnxruntime", "library"]
    assert "1.17.3 gives version 17" in finding(found, "onnxruntime").words
    assert finding(found, "self-test").facts["ran"] == ["function bodies"]
    assert found.speed == "slow"
    with pytest.raises(RuntimeUnavailable, match=r"1\.17\.3 .* library: .*>= 1\.20"):
        found.require()


@pytest.mark.parametrize(
    ("version", "status", "api"), [("1.18.1", "warning", 18), ("1.20.1", "ok", 20), ("2.0.0", "ok", None)]
)
def test_other_versions(version: str, status: str, api: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "__version__", version)
    _, found = machine.onnxruntime_module()
    assert (found.status, found.facts["api"]) == (status, api)


def test_a_forced_instruction_set_that_cannot_run(
    converted: Path, monkeypatch: pytest.MonkeyPatch, loads_at_once: None
) -> None:
    monkeypatch.setenv(runtime.ISA_VARIABLE, "abacus")
    found = examine(converted)
    assert [f.subject for f in found.findings if f.status == "problem"] == ["instruction set"]
    words = finding(found, "instruction set").words
    assert "BINARIZE_ONNX_ISA='abacus'" in words
    assert all(isa in words for isa in runtime.available_isas())
    assert finding(found, "self-test").facts["ran"] == ["function bodies", *runtime.available_isas()]
    assert found.speed == "slow"
    assert os.environ[runtime.ISA_VARIABLE] == "abacus"
    with pytest.raises(RuntimeUnavailable, match="abacus"):
        found.require()


def test_a_forced_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    best, *others = runtime.available_isas()
    for name in others:
        monkeypatch.setenv(runtime.ISA_VARIABLE, name)
        _, found = machine.instruction_sets()
        assert (found.status, found.facts["forced"], found.facts["selected"]) == ("warning", name, name)
        assert f"although {best} is faster" in found.words


@pytest.mark.parametrize("with_model", [False, True], ids=["any file", "a file"])
def test_plain_kernels_are_slow(
    with_model: bool, converted: Path, monkeypatch: pytest.MonkeyPatch, loads_at_once: None
) -> None:
    """Forced, or because the processor has nothing better: slower than float, and not called fast."""
    monkeypatch.setenv(runtime.ISA_VARIABLE, "scalar")
    monkeypatch.setattr(runtime, "available_isas", lambda: ("avx2", "scalar"))
    monkeypatch.setattr(sys.modules["binarize_onnx.doctor.examine"], "self_test", lambda _: ([], ["function bodies"]))
    path = converted if with_model else None
    for reason in ("BINARIZE_ONNX_ISA forces them, although avx2 is faster", "this processor has no AVX2"):
        found = examine(path)
        found.require()
        assert finding(found, "instruction set").status == "warning"
        assert "plain C++ kernels, which are slower than float" in finding(found, "instruction set").words
        assert found.speed == "slow"
        assert "runs here, slowly: by plain C++ kernels, which are slower than float" in found.verdict
        assert reason in found.verdict
        assert reason in finding(found, "instruction set").words
        monkeypatch.setattr(runtime, "available_isas", lambda: ("scalar",))


# --- Subnormal numbers and CUDA ------------------------------------------------------------------------------------


@pytest.fixture
def flushing() -> Iterator[None]:
    """The processor's mode that -ffast-math sets, set through the C library."""
    if platform.machine() != "x86_64":
        pytest.skip("knows where x86-64 keeps the mode")
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    environment = (ctypes.c_uint32 * 8)()  # glibc's fenv_t, which ends with MXCSR
    libm.fegetenv(environment)
    before = environment[7]
    environment[7] = before | 0x8040  # FTZ and DAZ
    libm.fesetenv(environment)
    yield
    environment[7] = before
    libm.fesetenv(environment)


def test_a_process_that_flushes_subnormal_numbers_is_warned(flushing: None) -> None:
    found = machine.subnormals(None)
    assert (found.status, found.facts["process_keeps"]) == ("warning", False)
    assert "-ffast-math" in found.words


def test_a_session_that_flushes_subnormal_numbers_is_warned() -> None:
    class Session:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def run(self, *_: Any) -> list[Any]:
            return [np.zeros(1, np.float32)]

    found = machine.subnormals(SimpleNamespace(InferenceSession=Session))  # type: ignore[arg-type]
    assert (found.status, found.facts) == ("warning", {"process_keeps": True, "session_keeps": False})


def test_cuda_has_a_reason() -> None:
    with_provider: Any = SimpleNamespace(get_available_providers=lambda: ["CUDAExecutionProvider"])
    assert "our kernels of this version run on the CPU" in machine.cuda(with_provider).words
    for found in (machine.cuda(ort), machine.cuda(None)):
        assert "no CUDA kernels" in found.words


# --- A model -------------------------------------------------------------------------------------------------------


def look(path: Path, **here: bool) -> models.Facts:
    return models.look(path, onnxruntime=here.get("onnxruntime", True), library=here.get("library", True))


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def test_a_converted_file_runs_fast(converted: Path, loads_at_once: None) -> None:
    found = examine(converted)
    found.require()
    assert (found.speed, found.verdict) == ("fast", f"demo.bin.onnx: {models.FAST}.")
    facts = finding(found, "model").facts
    assert facts["ops"] == {"PackSign": 2, "PackedMaxPool": 2, "XnorConv": 3, "XnorMatMul": 1}
    assert facts["metadata"]["ops"] == "1"
    assert (facts["fails_with"], facts["fails_without"]) == ("", "")
    assert (facts["unknown"], facts["without_body"]) == ([], [])
    assert "converted by binarize-onnx" in finding(found, "model").words


def test_a_float_model_is_plain() -> None:
    facts = look(DEMO)
    assert models.judge(facts)[0] == "plain"
    assert "not written by convert" in models.findings(facts)[0].words


def test_an_ideal_graph_is_slow(tmp_path: Path) -> None:
    ideal = binarize_onnx.convert(DEMO, binarize_onnx.Config(emit="ideal")).model
    speed, words = models.judge(look(saved(ideal, tmp_path / "ideal.onnx")))
    assert speed == "slow"
    assert "--emit ideal" in words


def renamed(converted: Path, *, functions: bool) -> onnx.ModelProto:
    """The file as a later version might write it: with an op that this one does not know."""
    model = onnx.load(converted)
    for node in model.graph.node:
        if node.op_type == "XnorConv":
            node.op_type = "XnorConv2"
    for function in list(model.functions):
        if function.name == "XnorConv":
            function.name = "XnorConv2"
            if not functions:
                model.functions.remove(function)
    return model


def test_an_op_of_a_later_version_runs_slowly(converted: Path, tmp_path: Path) -> None:
    facts = look(saved(renamed(converted, functions=True), tmp_path / "later.onnx"))
    assert facts.unknown == ["XnorConv2"]
    speed, words = models.judge(facts)
    assert speed == "slow"
    assert "XnorConv2" in words
    assert "upgrade binarize-onnx" in words
    assert [f.status for f in models.findings(facts)] == ["ok", "warning"]


def test_an_op_of_a_later_version_without_a_body_does_not_run(
    converted: Path, tmp_path: Path, loads_at_once: None
) -> None:
    found = examine(saved(renamed(converted, functions=False), tmp_path / "later.onnx"))
    assert found.speed == "none"
    assert "does not run here" in found.verdict
    assert "XnorConv2" in found.verdict
    with pytest.raises(ModelError, match="XnorConv2"):
        found.require()


def test_a_file_for_newer_ops_is_mentioned(converted: Path, tmp_path: Path) -> None:
    model = onnx.load(converted)
    next(entry for entry in model.metadata_props if entry.key == "binarize_onnx.ops").value = "2"
    found = models.findings(look(saved(model, tmp_path / "newer.onnx")))
    assert [f.status for f in found] == ["ok", "warning"]
    assert "ops of version 2" in found[1].words


@pytest.mark.parametrize("domain", [opset.DOMAIN, opset.IDEAL_DOMAIN])
def test_an_import_of_newer_ops_is_mentioned(domain: str, converted: Path, tmp_path: Path) -> None:
    model = onnx.load(converted)
    entries = [entry for entry in model.opset_import if entry.domain != domain]
    del model.opset_import[:]
    model.opset_import.extend([*entries, helper.make_opsetid(domain, opset.VERSION + 1)])
    found = models.findings(look(saved(model, tmp_path / "newer.onnx")))
    assert [f.status for f in found] == ["ok", "warning"]
    assert f"ops of version {opset.VERSION + 1}, this is {opset.VERSION}: upgrade" in found[1].words


@pytest.mark.parametrize(
    ("attribute", "value"), [("pads", [-1] * 4), ("strides", [2**40] * 2)], ids=["pads", "strides"]
)
def test_a_file_that_the_kernels_refuse_does_not_run(
    attribute: str, value: Any, converted: Path, tmp_path: Path, loads_at_once: None
) -> None:
    """A plain onnxruntime loads it, and our sessions do not."""
    model = onnx.load(converted)
    node = next(node for node in model.graph.node if node.op_type == "XnorConv")
    edited = next(a for a in node.attribute if a.name == attribute)
    edited.CopyFrom(helper.make_attribute(attribute, value))
    path = saved(model, tmp_path / "damaged.onnx")
    ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = examine(path)
    assert found.speed == "none"
    assert "does not run here with the kernels: " in found.verdict
    with pytest.raises(ModelError, match=rf"{attribute}.*; the file is damaged: convert it again") as stopped:
        found.require()
    assert stopped.value.exit_code == 3
    next(entry for entry in model.metadata_props if entry.key == "binarize_onnx.ops").value = "2"
    assert models.judge(look(saved(model, path)))[1].endswith("; upgrade binarize-onnx")


def edited_body(converted: Path) -> onnx.ModelProto:
    """The file with a border of 1 in the convolution's definition, whatever `pad_value` is."""
    model = onnx.load(converted)
    body = next(function for function in model.functions if function.name == "XnorConv")
    pad = next(node for node in body.node if node.op_type == "Pad")
    one = next(node for node in body.node if any(a.name == "value_float" and a.f == 1.0 for a in node.attribute))
    pad.input[2] = one.output[0]
    return model


def test_a_definition_that_somebody_changed_is_mentioned(converted: Path, tmp_path: Path, loads_at_once: None) -> None:
    path = saved(edited_body(converted), tmp_path / "edited.onnx")
    found = examine(path)
    found.require()
    warned = finding(found, "model definitions")
    assert warned.status == "warning"
    assert warned.words.startswith("its definition of XnorConv is not this version's: without the library it may")
    assert "docs/neighbours.md" in warned.words
    assert finding(found, "model").facts["changed_body"] == ["XnorConv"]


@pytest.mark.parametrize("what", ["opset", "default opset of the model", "inputs", "attributes"])
def test_every_part_of_a_definition_counts(what: str, converted: Path) -> None:
    model = onnx.load(converted)
    body = next(function for function in model.functions if function.name == "XnorConv")
    if what == "opset":
        body.opset_import[0].version = 11
    elif what == "default opset of the model":
        next(entry for entry in model.opset_import if not entry.domain).version = 11
    elif what == "inputs":
        first, second = body.input[:2]
        body.input[0], body.input[1] = second, first
    else:
        del body.attribute[-1]
    everything = ["PackSign", "PackedMaxPool", "XnorConv", "XnorMatMul"]
    assert opset.functions_changed(model) == (everything if "model" in what else ["XnorConv"])


def test_what_means_nothing_in_a_definition_may_differ(converted: Path, tmp_path: Path) -> None:
    model = onnx.load(converted)
    for number, body in enumerate(model.functions):
        body.doc_string = "by another tool"
        attributes = sorted(body.attribute, reverse=True)
        del body.attribute[:]
        body.attribute.extend(attributes)
        for entry in body.opset_import:
            entry.domain = entry.domain or "ai.onnx"
        for node in body.node:
            node.name, node.doc_string, node.domain = f"{node.op_type}_{number}", "a step", "ai.onnx"
            values = sorted(node.attribute, key=lambda a: a.name, reverse=True)
            del node.attribute[:]
            node.attribute.extend(values)
            for value in node.attribute:
                value.doc_string = "a number"
                value.ref_attr_name = value.ref_attr_name or ""  # written and empty, as graphsurgeon does
                if value.HasField("t"):
                    value.t.name = "constant"
    assert opset.functions_changed(model) == []


@pytest.mark.parametrize("path", [*sorted((Path(__file__).parent / "golden_models").glob("*/*.onnx"))], ids=str)
def test_definitions_of_published_files_are_this_versions(path: Path, tmp_path: Path) -> None:
    """A version that changes a definition has to say which files may answer something else."""
    again = saved(onnx.load(path), tmp_path / "again.onnx")
    for file in (path, again):
        assert [f.status for f in models.findings(look(file, onnxruntime=False, library=False))] == ["ok"]


@pytest.mark.parametrize("emit", ["compiled", "ideal"])
def test_definitions_of_a_new_file_are_this_versions(emit: Any, tmp_path: Path) -> None:
    model = binarize_onnx.convert(DEMO, binarize_onnx.Config(emit=emit)).model
    path = saved(model, tmp_path / "new.onnx")
    assert look(path, onnxruntime=False, library=False).changed_body == []
    assert look(saved(onnx.load(path), path), onnxruntime=False, library=False).changed_body == []
    again = gs.export_onnx(gs.import_onnx(model))
    assert look(saved(again, path), onnxruntime=False, library=False).changed_body == []


@pytest.fixture(scope="module")
def rewritten(converted: Path) -> dict[str, Path]:
    """What onnxruntime makes of a converted file when it is asked to save it."""
    files = {}
    for ending in ("onnx", "ort"):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        files[ending] = converted.parent / f"rewritten.{ending}"
        options.optimized_model_filepath = str(files[ending])
        options.add_session_config_entry("session.save_model_format", ending.upper())
        runtime.InferenceSession(converted, options)
    return files


def test_a_file_that_onnxruntime_saved_holds_no_bodies(rewritten: dict[str, Path]) -> None:
    facts = look(rewritten["onnx"])
    assert facts.without_body == ["PackSign", "PackedMaxPool", "XnorConv", "XnorMatMul"]
    assert (facts.fails_with, bool(facts.fails_without)) == ("", True)
    assert models.judge(facts)[0] == "fast"
    assert "needs our library to load at all" in models.findings(facts)[1].words
    assert models.judge(look(rewritten["onnx"], library=False))[0] == "none"


def test_an_ort_file_is_called_by_its_name(rewritten: dict[str, Path], tmp_path: Path) -> None:
    facts = look(rewritten["ort"])
    assert facts.format == "ort"
    assert models.judge(facts)[0] == "fast"
    (warned,) = models.findings(facts)
    assert (warned.status, ".ort" in warned.words) == ("warning", True)
    damaged = tmp_path / "damaged.ort"
    damaged.write_bytes(rewritten["ort"].read_bytes()[:100])
    assert models.judge(look(damaged))[0] == "none"


def test_a_file_that_onnxruntime_is_too_old_for(tmp_path: Path, loads_at_once: None) -> None:
    model = onnx.load(DEMO)
    model.ir_version = 99
    found = examine(saved(model, tmp_path / "future.onnx"))
    assert finding(found, "model").facts["ir_version"] == 99
    assert "99" in found.verdict
    with pytest.raises(ModelError, match="99"):
        found.require()


@pytest.mark.parametrize("content", [None, b"", b"no model", b"ORT"])
def test_a_model_that_cannot_be_read(content: bytes | None, tmp_path: Path, loads_at_once: None) -> None:
    path = tmp_path / "bad.onnx"
    if content is not None:
        path.write_bytes(content)
    found = examine(path)
    assert [f.subject for f in found.findings] == [*SUBJECTS, "model"]
    with pytest.raises(ModelError, match=r"bad\.onnx"):
        found.require()


def test_ops_in_subgraphs_count(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Unpack", ["p"], ["y"], domain=opset.DOMAIN)], "inner", [], [onnx.ValueInfoProto(name="y")]
    )
    node = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    flag = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    several = helper.make_node("Switch", ["c"], ["q"], domain="elsewhere", branches=[inner])
    graph = helper.make_graph([node, several], "g", [flag], [onnx.ValueInfoProto(name="z")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(opset.DOMAIN, 1)])
    assert look(saved(model, tmp_path / "if.onnx"), onnxruntime=False, library=False).ops == {"Unpack": 3}


def test_names_in_a_model_cannot_steer_the_terminal() -> None:
    found = Diagnosis((Finding("model", "ok", "op \x1b[31m"),), "slow", "verdict \x07")
    assert not {"\x1b", "\x07"} & set(found.text())


# --- The command ---------------------------------------------------------------------------------------------------


def command(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["doctor", *map(str, arguments)], prog_name="binarize-onnx")
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_command(converted: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, loads_at_once: None) -> None:
    code, out, err = command(capsys, converted, "--json", "--report", tmp_path / "report.json")
    assert (code, err) == (0, "")
    assert (tmp_path / "report.json").read_text() == out
    assert json.loads(out)["speed"] == "fast"
    code, out, err = command(capsys)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].startswith("any converted file:")


def test_command_prints_everything_before_it_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loads_at_once: None
) -> None:
    code, out, err = command(capsys, tmp_path / "nothing.onnx")
    assert (code, out.startswith("package"), "nothing.onnx" in err) == (3, True, True)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, out, err = command(capsys)
    assert (code, out.startswith("package"), "onnxruntime" in err) == (5, True, True)
    assert len(err.splitlines()) == 1
