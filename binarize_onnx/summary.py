"""Reports in the forms that CI systems show: JUnit XML, and Markdown for job summaries and merge requests.

Names of layers and tensors come from the model, which may be anybody's. Nothing of them reaches either form as markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from binarize_onnx.gates import Gate
from binarize_onnx.report import Report, printable

if TYPE_CHECKING:  # NumPy and onnxruntime are behind these
    from binarize_onnx.bench import Benchmark
    from binarize_onnx.verify import Verification

# Everything that Markdown or HTML may read as more than itself, links and formulas included. What a site makes of plain
# text afterwards, such as mentions of its users, is out of reach.
_MARKUP = re.compile(r"[^\w ,./()=+%-]|(?<![^\W_])_|_(?![^\W_])|(?<=www)\.", re.IGNORECASE)


@dataclass(frozen=True)
class Finding:
    """What a summary says about a layer, sign or output: `error` and `skipped` in words, empty if they do not apply."""

    name: str
    error: str = ""
    skipped: str = ""
    group: str = "layers"


def of_conversion(report: Report) -> list[Finding]:
    """The layers of a conversion, and the signs where data was counted on.

    A layer that stays float counts as skipped, for the reason it has, and so does a sign that saw 0.
    """
    layers = [Finding(x.name, skipped="" if x.status == "binary" else f"{x.code}: {x.reason}") for x in report.layers]
    signs = [
        Finding(x.name, skipped=f"sign-zero: {x.reason}" if x.zeros else "", group="signs")
        for x in report.signs
        if x.zero == "counted"
    ]
    return layers + signs


def of_tensors(found: Verification) -> list[Finding]:
    """The tensors and signs of a verification: wrong where rounding does not explain them."""
    return [Finding(row.name, row.error) for row in found.layers]


def of_layer_times(found: Benchmark) -> list[Finding]:
    """The layers of a benchmark: one that is slower than its float form counts as skipped, which fails nothing."""
    return [Finding(row.layer, skipped=table.warning(row)) for table in found.layers for row in table.rows if row.layer]


def junit(suite: str, gates: Iterable[Gate], findings: Iterable[Finding]) -> bytes:
    """One test suite as Jenkins, GitLab and Surefire read it: a test case a gate, then one a finding."""
    root = ElementTree.Element("testsuite", name=printable(suite))
    for gate in gates:
        case = _case(root, suite, "gates", gate.name)
        if not gate.passed:
            _failure(case, gate.message)
    for finding in findings:
        case = _case(root, suite, finding.group, finding.name)
        if finding.error:
            _failure(case, finding.error)
        elif finding.skipped:
            ElementTree.SubElement(case, "skipped", message=printable(finding.skipped))
    root.set("tests", str(len(root)))
    root.set("failures", str(len(root.findall("testcase/failure"))))
    root.set("errors", "0")
    root.set("skipped", str(len(root.findall("testcase/skipped"))))
    root.set("time", "0")
    ElementTree.indent(root)
    data: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return data + b"\n"


def markdown(
    title: str, gates: Sequence[Gate], totals: Iterable[tuple[str, str]], *tables: Sequence[Sequence[str]]
) -> str:
    """A section of its own, so that several can follow one another: title, gates, totals, and tables with a header."""
    parts = [f"### {_plain(title)}"]
    if gates:
        header = ("gate", "result", "what was found")
        verdicts = [(gate.name, "passed" if gate.passed else "FAILED", gate.message) for gate in gates]
        parts.append(_table([header, *verdicts]))
    parts.append(_table([("", ""), *totals]))
    parts += [_table(rows) for rows in tables if len(rows) > 1]
    return "\n\n".join(parts) + "\n"


def _case(root: ElementTree.Element, suite: str, group: str, name: str) -> ElementTree.Element:
    package = suite.replace(".", "_")  # readers split class names at dots
    return ElementTree.SubElement(
        root, "testcase", classname=printable(f"{package}.{group}"), name=printable(name), time="0"
    )


def _failure(case: ElementTree.Element, words: str) -> None:
    ElementTree.SubElement(case, "failure", type="GateFailed", message=printable(words)).text = printable(words)


def _table(rows: Sequence[Sequence[str]]) -> str:
    header, *lines = ["| " + " | ".join(map(_plain, row)) + " |" for row in rows]
    return "\n".join([header, "|" + " --- |" * len(rows[0]), *lines])


def _plain(text: str) -> str:
    """Text that Markdown renders as it is: what might be markup becomes a numeric character reference."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", printable(text))
