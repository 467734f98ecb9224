"""What was found, in words, as JSON, and as an exit code."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from binarize_onnx.errors import BinarizeError, GateFailed, ModelError, RuntimeUnavailable
from binarize_onnx.report import printable

Status = Literal["ok", "warning", "problem"]
Speed = Literal["fast", "slow", "plain", "none"]

_ERRORS: dict[int, type[BinarizeError]] = {e.exit_code: e for e in (GateFailed, ModelError, RuntimeUnavailable)}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what.
        status: `problem` if inference is impossible or wrong because of it, `warning` if it is slow or may surprise.
        words: what is the case and, if it is not well, what to do.
        facts: the same for a machine.
        exit_code: of a problem: 1 wrong results, 3 a bad model, 5 no runtime.
    """

    subject: str
    status: Status
    words: str
    facts: dict[str, Any] = field(default_factory=dict)
    exit_code: int = 0


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was looked at, and what follows.

    Attributes:
        findings: in the order in which a reader would ask.
        speed: how the model, or any converted file, runs here: `fast` by kernels, `slow` by function bodies or by
            kernels in plain C++, `plain` if the model has no ops of ours, `none` if it does not run or is damaged.
        verdict: that in a sentence.
    """

    findings: tuple[Finding, ...]
    speed: Speed
    verdict: str

    def text(self) -> str:
        """The findings for a person, a line each, and the verdict."""
        width = max(len(finding.subject) for finding in self.findings)
        lines = [f"{f.subject:<{width}}  {f.status:<7}  {printable(f.words)}" for f in self.findings]
        return "\n".join([*lines, "", printable(self.verdict)])

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        return asdict(self)

    def require(self) -> None:
        """Raise what the first problem calls for, and name all of them.

        Raises:
            RuntimeUnavailable: onnxruntime or the library is missing or unusable.
            GateFailed: an op computes something else than it should.
            ModelError: the model cannot be read, or runs nowhere here.
        """
        problems = [finding for finding in self.findings if finding.status == "problem"]
        if problems:
            error = _ERRORS[problems[0].exit_code]
            raise error("; ".join(f"{p.subject}: {p.words}" for p in problems))
