"""What the documents promise and a reader relies on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from binarize_onnx import opset
from binarize_onnx.cli import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_quick_start_is_two_commands() -> None:
    section = re.search(r"^## Quick start$(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    assert section is not None
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks] == ["sh", "sh"]
    assert all(len(body.splitlines()) == 1 for _, body in blocks)


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_explains_itself(command: str) -> None:
    text = CliRunner().invoke(main, [command, "--help"]).output
    assert "Example:" in text
    assert f"binarize-onnx {command}" in text
    assert f"binarize-onnx {command}" in README, "the README names every command"


def test_the_contract_names_every_op_and_input() -> None:
    text = (ROOT / "docs" / "ops.md").read_text()
    for op in [*opset.OPS.values(), *opset.IDEAL_OPS.values()]:
        assert op.name in text
        for attribute in op.attributes:
            assert f"`{attribute}`" in text, f"{op.name}: {attribute}"
    for name in opset.EPILOGUE:
        assert f"`{name}`" in text, name


def test_architecture_names_every_pass() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for path in sorted((ROOT / "binarize_onnx" / "passes").glob("*.py")):
        for name in re.findall(r"^class (\w+)\(Pass\[", path.read_text(), re.MULTILINE):
            assert name in text, name


def test_links_lead_somewhere() -> None:
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
