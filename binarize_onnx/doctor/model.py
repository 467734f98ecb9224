"""One file: what it is, what it needs, and whether that is here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from binarize_onnx import checks, io, opset, runtime
from binarize_onnx.doctor.diagnosis import Finding, Speed
from binarize_onnx.doctor.machine import PLAIN_KERNELS

NO_ONNXRUNTIME = "does not run here: there is no onnxruntime"
IN_SESSIONS = "in sessions with our library (binarize_onnx.InferenceSession)"
FAST = f"runs fast here, {IN_SESSIONS}"
SLOWER = f"runs here, slowly: by {PLAIN_KERNELS}"
SLOWLY = "runs here, slowly, by its function bodies"
UNUSABLE = "the kernel library cannot be used"
_METADATA = "binarize_onnx."


@dataclass(frozen=True)
class Facts:
    """What a file is.

    Attributes:
        format: `onnx`, or `ort` for onnxruntime's own.
        ir_version: of the file; None where it cannot be seen.
        opsets: version by domain, the default domain as `ai.onnx`.
        metadata: what `convert` recorded: `version`, `ops`, `options`, `source_sha256`.
        ops: how often each op of our packed domain occurs.
        ideal_ops: the same for the functions of the ideal graph.
        unknown: ops of our domains that this version does not have.
        without_body: ops in use whose function body the file does not hold.
        changed_body: ops in use whose function body is another than this version writes.
        fails_with: why it does not load with our library; empty if it does, None if that could not be tried.
        fails_without: the same in onnxruntime alone.
    """

    format: str
    ir_version: int | None = None
    opsets: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    ops: dict[str, int] = field(default_factory=dict)
    ideal_ops: dict[str, int] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    without_body: list[str] = field(default_factory=list)
    changed_body: list[str] = field(default_factory=list)
    fails_with: str | None = None
    fails_without: str | None = None


def look(path: Path, *, onnxruntime: bool, library: bool) -> Facts:
    """Read a file, and try to load it with and without our library.

    Args:
        path: of the model.
        onnxruntime: whether there is one to try with.
        library: whether it takes our library.

    Raises:
        ModelError: the file cannot be read.
    """
    facts = _ort_format(path) or _onnx_format(path)
    with_library = _fails(runtime.InferenceSession, path, facts.format) if library else None
    without = None
    if onnxruntime:
        from onnxruntime import InferenceSession

        without = _fails(InferenceSession, path, facts.format)
    return Facts(**{**asdict(facts), "fails_with": with_library, "fails_without": without})


def findings(facts: Facts) -> list[Finding]:
    """What a reader should know of the file, apart from how it runs."""
    found = [_description(facts)]
    if facts.format == "ort":
        words = (
            "onnxruntime's own format (.ort): what is in it cannot be seen from here, and it holds no function bodies, "
            "so ops of ours in it need our library. Keep the .onnx file, and write the .ort from a session that has it"
        )
        return [Finding("model format", "warning", words)]
    if facts.unknown:
        words = f"no kernel in this version for {', '.join(facts.unknown)}: upgrade binarize-onnx"
        found.append(Finding("model ops", "warning", words))
    elif _version(facts) > opset.VERSION:
        words = f"the file was written for ops of version {_version(facts)}, this is {opset.VERSION}: upgrade"
        found.append(Finding("model ops", "warning", words))
    if facts.without_body:
        words = (
            f"no function body for {', '.join(facts.without_body)}: it was saved by onnxruntime or another tool, and "
            "needs our library to load at all. Use the file that convert wrote"
        )
        found.append(Finding("model bodies", "warning", words))
    if facts.changed_body:
        mend = "mend it as docs/neighbours.md shows, or convert it again"
        words = (
            f"its definition of {', '.join(facts.changed_body)} is not this version's: without the library it may "
            f"answer something else; {'upgrade binarize-onnx' if _from_later(facts) else mend}"
        )
        found.append(Finding("model definitions", "warning", words))
    return found


def judge(facts: Facts, why_plain: str = "") -> tuple[Speed, str]:
    """How the file runs here, and that in a sentence.

    Args:
        facts: of the file.
        why_plain: why kernels are the plain C++ ones; empty if they are not.
    """
    if facts.fails_with is None and facts.fails_without is None:
        return "none", NO_ONNXRUNTIME
    if facts.fails_with != "" and facts.fails_without != "":
        return "none", f"does not run here: {facts.fails_with or facts.fails_without}"
    if facts.format == "ort":
        if facts.fails_without == "":
            return "plain", "runs here: it loads without our library, so none of our ops is in it"
        return by_kernels(why_plain, " and in no others")
    if not facts.ops and not facts.unknown:
        if facts.ideal_ops:
            return "slow", "runs here, slowly: it is an ideal graph, of plain ±1 floats; convert without --emit ideal"
        return "plain", "runs here as any model: it has no ops of ours (`binarize-onnx inspect` says what could be)"
    if facts.fails_with is None:
        return "slow", f"{SLOWLY}: {UNUSABLE}"
    if facts.fails_with:
        remedy = "upgrade binarize-onnx" if _from_later(facts) else "the file is damaged: convert it again"
        return "none", f"does not run here with the kernels: {facts.fails_with}; {remedy}"
    if facts.unknown:
        return "slow", (
            f"runs here, slowly: {', '.join(facts.unknown)} run by function bodies, upgrade binarize-onnx for kernels"
        )
    return by_kernels(why_plain)


def by_kernels(why_plain: str, where: str = "") -> tuple[Speed, str]:
    """How what has kernels runs here, and that in a sentence.

    Args:
        why_plain: as for `judge`.
        where: what follows the sessions that have them.
    """
    if why_plain:
        return "slow", f"{SLOWER}, {IN_SESSIONS}{where}; {why_plain}"
    return "fast", f"{FAST}{where}"


def _description(facts: Facts) -> Finding:
    """What the file is and what it uses."""
    recorded = facts.metadata.get("version")
    kind = f"converted by binarize-onnx {recorded}" if recorded else "not written by convert"
    counted = ", ".join(f"{count} {name}" for name, count in {**facts.ops, **facts.ideal_ops}.items())
    opsets = ", ".join(f"{domain} {number}" for domain, number in facts.opsets.items())
    words = f"{kind}; IR version {facts.ir_version}, {opsets}; {counted or 'no ops of ours'}"
    return Finding("model", "ok", words, asdict(facts))


def _version(facts: Facts) -> int:
    """Of our ops: the newest that the file says it was written for."""
    recorded = facts.metadata.get("ops", "")
    imported = (facts.opsets.get(domain, 0) for domain in (opset.DOMAIN, opset.IDEAL_DOMAIN))
    return max(int(recorded[:9]) if recorded.isdecimal() else 0, *imported)  # int refuses thousands of digits


def _from_later(facts: Facts) -> bool:
    """Whether a later version of ours wrote the file."""
    return bool(facts.unknown) or _version(facts) > opset.VERSION


def _ort_format(path: Path) -> Facts | None:
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except (OSError, ValueError):
        return None  # which reading it as ONNX says in words
    return Facts("ort") if head[4:] == io.ORT_MAGIC else None


def _onnx_format(path: Path) -> Facts:
    model = io.load(path)
    used = Counter((node.domain, node.op_type) for node in checks.nodes(model.graph))
    known = {opset.DOMAIN: opset.OPS, opset.IDEAL_DOMAIN: opset.IDEAL_OPS}
    bodies = {(function.domain, function.name) for function in model.functions}
    ours = sorted(op for op in used if op[0] in known)
    recorded = {entry.key: entry.value for entry in model.metadata_props}
    return Facts(
        "onnx",
        ir_version=int(model.ir_version),
        opsets={entry.domain or "ai.onnx": int(entry.version) for entry in model.opset_import},
        metadata={k.removeprefix(_METADATA): v for k, v in sorted(recorded.items()) if k.startswith(_METADATA)},
        ops={name: used[domain, name] for domain, name in ours if domain == opset.DOMAIN},
        ideal_ops={name: used[domain, name] for domain, name in ours if domain == opset.IDEAL_DOMAIN},
        unknown=[name for domain, name in ours if name not in known[domain]],
        without_body=[name for domain, name in ours if (domain, name) not in bodies],
        changed_body=opset.functions_changed(model),
    )


def _fails(start: Callable[..., Any], path: Path, file_format: str) -> str:
    """Why a session does not start; empty if it does."""
    from onnxruntime import SessionOptions

    options = SessionOptions()
    options.log_severity_level = 4
    if file_format == "ort":
        options.add_session_config_entry("session.load_model_format", "ORT")
    try:
        start(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes share no base
        return " ".join(str(error).split())
    return ""
