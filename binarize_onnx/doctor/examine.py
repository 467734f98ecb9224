"""The whole examination, read top to bottom."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from binarize_onnx import opset
from binarize_onnx.doctor import machine, model
from binarize_onnx.doctor.diagnosis import Diagnosis, Finding, Speed
from binarize_onnx.doctor.selftest import BODIES, self_test
from binarize_onnx.errors import GateFailed, ModelError


def examine(path: Path | None = None) -> Diagnosis:
    """Look at the installation, test the kernels, and say how converted files, or the given one, run here.

    Whatever is broken is a finding: nothing is raised before `Diagnosis.require`.

    Args:
        path: a model to look at as well.
    """
    module, found = machine.onnxruntime_module()
    findings = [machine.package(), found, machine.library(module)]
    loads = bool(findings[-1].facts.get("loads"))
    registers = bool(findings[-1].facts.get("registers"))
    isas: tuple[str, ...] = ()
    why_plain = ""
    if loads:
        isas, found = machine.instruction_sets()
        findings.append(found)
        why_plain = machine.why_plain(found.facts)
    usable = registers and findings[-1].status != "problem"
    if module is not None:
        findings.append(_tested(isas if registers else ()))
    findings += [machine.subnormals(module), machine.cuda(module)]
    wrong = any(finding.exit_code == GateFailed.exit_code for finding in findings)
    if path is None:
        speed, verdict = _in_general(module is not None, usable, why_plain)
        subject = "any converted file"
    else:
        subject = path.name
        try:
            facts = model.look(path, onnxruntime=module is not None, library=usable)
        except ModelError as error:
            findings.append(Finding("model", "problem", str(error), {}, error.exit_code))
            return Diagnosis(tuple(findings), "none", f"{subject}: does not run here, it cannot be read.")
        findings += model.findings(facts)
        speed, verdict = model.judge(facts, why_plain)
        if speed == "none" and module is not None:
            findings.append(Finding("model load", "problem", verdict, {}, ModelError.exit_code))
    if wrong and speed != "plain":
        speed, verdict = "none", "wrong results here: see the self-test"
    return Diagnosis(tuple(findings), speed, f"{subject}: {verdict}.")


def _tested(isas: tuple[str, ...]) -> Finding:
    """The self-test in words."""
    differences, ran = self_test(isas)
    facts = {"ran": ran, "differences": [asdict(difference) for difference in differences]}
    if differences:
        words = "; ".join(str(difference) for difference in differences)
        words = f"{words}. Please report this with the output of --json"
        return Finding("self-test", "problem", words, facts, GateFailed.exit_code)
    by = ", ".join(["by " + name if name == BODIES else name for name in ran[1:] + ran[:1]])
    return Finding("self-test", "ok", f"all {len(opset.OPS)} ops give the bits of integer arithmetic: {by}", facts)


def _in_general(onnxruntime: bool, usable: bool, why_plain: str) -> tuple[Speed, str]:
    """How any converted file runs."""
    if not onnxruntime:
        return "none", model.NO_ONNXRUNTIME
    if not usable:
        return "slow", f"{model.SLOWLY}: {model.UNUSABLE}"
    return model.by_kernels(why_plain)
